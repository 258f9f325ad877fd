"""Losses of generator and discriminator against naive float64 sums, hand-made numbers and a GAN."""

import math

import pytest
import torch
from torch import nn

from vqkit.training import gan

KINDS = ("hinge", "non_saturating")


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def numbers(tensor):
    return [float(value) for value in tensor.double().flatten()]


def mean(values):
    return math.fsum(values) / len(values)


def naive_generator(kind, fake):
    if kind == "hinge":
        return mean([-f for f in fake])
    return mean([-math.log(1 / (1 + math.exp(-f))) for f in fake])


def naive_discriminator(kind, real, fake):
    if kind == "hinge":
        return mean([max(0, 1 - r) for r in real]) / 2 + mean([max(0, 1 + f) for f in fake]) / 2
    sure = [-math.log(1 / (1 + math.exp(-r))) for r in real]
    caught = [-math.log(1 - 1 / (1 + math.exp(-f))) for f in fake]
    return mean(sure) / 2 + mean(caught) / 2


def naive_lecam(real, fake, mean_real, mean_fake):
    above = [max(0, r - mean_fake) ** 2 for r in real]
    below = [max(0, mean_real - f) ** 2 for f in fake]
    return mean(above) + mean(below)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_the_equations(kind):
    # Another number of logits on each side: every mean is its own.
    real, fake = logits(3, 1, 5, 4, seed=1), logits(2, 1, 5, 4, seed=2)
    found = gan.generator_loss(kind, fake), gan.discriminator_loss(kind, real, fake)
    expected = (
        naive_generator(kind, numbers(fake)),
        naive_discriminator(kind, numbers(real), numbers(fake)),
    )
    assert [float(value) for value in found] == pytest.approx(expected, rel=1e-6)


def test_losses_have_the_values_computed_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0])
    # ½·(0 + 0.5 + 2)/3 + ½·(0 + 1)/2
    assert float(gan.discriminator_loss("hinge", real, fake)) == pytest.approx(2 / 3)
    assert float(gan.generator_loss("hinge", fake)) == 1.5
    zero = torch.zeros(4)  # a discriminator that knows nothing: log 2 on both sides
    assert float(gan.discriminator_loss("non_saturating", zero, zero)) == pytest.approx(math.log(2))
    assert float(gan.generator_loss("non_saturating", zero)) == pytest.approx(math.log(2))
    # (2 + 0.5)² + (0.5 + 0.5)² + 0² over 3, and (1 + 3)² + (1 - 0)² over 2
    means = torch.tensor(1.0), torch.tensor(-0.5)
    assert float(gan.lecam(real, fake, *means)) == pytest.approx(7.25 / 3 + 17 / 2)
    assert [float(x) for x in gan.accuracy(real, fake)] == pytest.approx([2 / 3, 1 / 2])


@pytest.mark.parametrize("kind", KINDS)
def test_wide_logits_give_finite_losses_and_gradients(kind):
    real = torch.tensor([-1e4, 1e4], requires_grad=True)
    fake = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = gan.generator_loss(kind, fake) + gan.discriminator_loss(kind, real, fake)
    loss.backward()
    assert torch.isfinite(torch.stack([loss.detach(), *real.grad, *fake.grad])).all()


@pytest.mark.parametrize("kind", KINDS)
def test_means_are_float32_for_bfloat16_logits(kind):
    # In bfloat16 a mean of many values near 1 would be off by 4e-3.
    real = (1 + 0.01 * logits(5000)).bfloat16()
    found = gan.discriminator_loss(kind, real, -real)
    assert found.dtype == gan.generator_loss(kind, real).dtype == torch.float32
    expected = naive_discriminator(kind, numbers(real), numbers(-real))
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_push_logits_the_right_way(kind):
    real, fake = (logits(6, seed=seed).clamp(-0.9, 0.9).requires_grad_() for seed in (1, 2))
    to_real, to_fake = torch.autograd.grad(gan.discriminator_loss(kind, real, fake), (real, fake))
    assert (to_real < 0).all(), "a step down the gradient raises real logits"
    assert (to_fake > 0).all()
    (to_fooled,) = torch.autograd.grad(gan.generator_loss(kind, fake), fake)
    assert (to_fooled < 0).all()


def test_an_unknown_kind_is_refused():
    for call in (gan.generator_loss, lambda kind, x: gan.discriminator_loss(kind, x, x)):
        with pytest.raises(ValueError, match=r"'wasserstein'.*'hinge', 'non_saturating'"):
            call("wasserstein", torch.zeros(2))


class LineGAN:
    """Data at 2 ± 0.3 on a line, a generator that shifts noise, a discriminator of one layer."""

    def __init__(self, kind):
        self.kind, self.source = kind, torch.Generator().manual_seed(3)
        self.shift = nn.Parameter(torch.zeros(()))
        self.judge = nn.Linear(1, 1)
        nn.init.zeros_(self.judge.weight)
        nn.init.zeros_(self.judge.bias)

    def real(self):
        return 2 + 0.3 * torch.randn(256, 1, generator=self.source)

    def fake(self):
        return self.shift + 0.3 * torch.randn(256, 1, generator=self.source)

    def step_discriminator(self, rate, extra=None):
        real, fake = self.judge(self.real()), self.judge(self.fake().detach())
        loss = gan.discriminator_loss(self.kind, real, fake)
        self._descend(loss + (extra(real, fake) if extra else 0), self.judge.parameters(), rate)
        return gan.accuracy(real, fake)

    def step_generator(self, rate):
        self._descend(gan.generator_loss(self.kind, self.judge(self.fake())), [self.shift], rate)

    @staticmethod
    def _descend(loss, parameters, rate):
        parameters = list(parameters)
        with torch.no_grad():
            gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= rate * gradient


@pytest.mark.parametrize("kind", KINDS)
def test_a_gan_on_a_line_moves_towards_the_data(kind):
    line = LineGAN(kind)
    for _ in range(20):
        accuracy = line.step_discriminator(0.5)
    assert min(accuracy) > 0.9, "alone, the discriminator separates"
    places = []
    for _ in range(20):
        line.step_generator(0.05)
        places.append(float(line.shift.detach()))
    assert places == sorted(places)
    assert 0 < places[0] < places[-1]


def test_lecam_is_the_equation_and_keeps_logits_near_the_other_mean():
    real, fake = logits(3, 1, 4, 4, seed=1), logits(2, 1, 4, 4, seed=2)
    means = torch.tensor(0.7), torch.tensor(-0.4)
    expected = naive_lecam(numbers(real), numbers(fake), 0.7, -0.4)
    assert float(gan.lecam(real, fake, *means)) == pytest.approx(expected, rel=1e-6)
    free, held = LineGAN("hinge"), LineGAN("hinge")
    zero = torch.zeros(())
    for _ in range(30):
        free.step_discriminator(0.2)
        held.step_discriminator(0.2, lambda r, f: gan.lecam(r, f, zero, zero))
    spread = [abs(float(line.judge.weight.detach())) for line in (free, held)]
    assert 0 < spread[1] < 0.7 * spread[0]


def test_lecam_gives_its_means_no_gradient():
    means = torch.tensor(0.7, requires_grad=True), torch.tensor(-0.4, requires_grad=True)
    real, fake = logits(4, seed=1).requires_grad_(), logits(4, seed=2).requires_grad_()
    gan.lecam(real, fake, *means).backward()
    assert [m.grad for m in means] == [None, None]
    assert bool(real.grad.any())
    assert bool(fake.grad.any())


def test_running_mean_weighs_values_by_their_age():
    values, decay = [float(v) for v in logits(7)], 0.8
    found = torch.zeros(())
    for number, value in enumerate(values, start=1):
        found = gan.running_mean(found, torch.tensor(value), decay, number - 1)
        weights = [decay ** (number - i) for i in range(1, number + 1)]
        pairs = zip(weights, values, strict=False)
        expected = math.fsum(w * v for w, v in pairs) / math.fsum(weights)
        assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(gan.running_mean(found, torch.tensor(5.0), 0.0, 99)) == 5.0


def naive_r1(judge, images, step=1e-4):
    """Half the mean of squared central differences of the mean logit of each image."""
    total = 0.0
    for image in images:
        for index in range(image.numel()):
            ends = []
            for sign in (1, -1):
                moved = image.clone().flatten()
                moved[index] += sign * step
                ends.append(judge(moved.view(1, *image.shape)).mean().item())
            total += ((ends[0] - ends[1]) / (2 * step)) ** 2
    return total / len(images) / 2


def small_judge(dtype):
    torch.manual_seed(4)
    layers = nn.Conv2d(2, 3, 3), nn.Softplus(), nn.Conv2d(3, 1, 2)
    return nn.Sequential(*layers).to(dtype)


def test_r1_is_half_the_mean_squared_gradient():
    judge, images = small_judge(torch.float64), logits(3, 2, 5, 5).double()
    expected = naive_r1(judge, images)
    images.requires_grad_()
    assert gan.r1_penalty(judge(images), images).item() == pytest.approx(expected, rel=1e-5)
    line = torch.tensor([[1.0], [4.0]], requires_grad=True)  # D(x) = 3x: ½·9
    assert gan.r1_penalty(3 * line, line).item() == pytest.approx(4.5)


def test_r1_can_be_differentiated_and_flattens_the_discriminator():
    judge, images = small_judge(torch.float32), logits(3, 2, 5, 5).requires_grad_()
    before = gan.r1_penalty(judge(images), images)
    gradients = torch.autograd.grad(before, judge.parameters(), allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(judge.parameters(), gradients, strict=True):
            if gradient is not None:
                parameter -= 0.1 * gradient
    after = gan.r1_penalty(judge(images), images)
    assert after.item() < 0.99 * before.item()


def test_r1_needs_a_gradient_at_the_images():
    with pytest.raises(ValueError, match=r"images\.requires_grad=False"):
        gan.r1_penalty(torch.zeros(2), torch.zeros(2, 1, 4, 4))


def test_accuracy_counts_zero_as_undecided():
    zero = torch.zeros(3)
    assert [float(x) for x in gan.accuracy(zero, zero)] == [0, 0]
