"""Losses and guidance of diffusion models against their equations; their settings."""

import copy
import math

import pytest
import torch
from diffusion_cases import Fixed, count, normal, small, source

from vqkit.config import GeneratorRun, from_dict, to_dict
from vqkit.config.diffusion import (
    DiffusionConfig,
    DiffusionSampling,
    DiTNetwork,
    FlowProcess,
    GaussianProcess,
    UNetNetwork,
)
from vqkit.generation.diffusion import LatentModel, diffusion_losses, guide
from vqkit.generation.diffusion.losses import (
    flow_losses,
    gaussian_losses,
    noise_levels,
    variance_bound,
)
from vqkit.recipes import diffusion as recipes

pytest.importorskip("diffusers")


def test_velocity_is_that_of_the_straight_line():
    model = small()
    latents, noise = normal(4, 3, 4, 6), normal(4, 3, 4, 6, seed=1)
    times = torch.tensor([0.0, 0.25, 0.7, 1.0])
    model.network = Fixed(lambda x, t, y: 0.3 * x)
    labels = torch.arange(4)
    loss = flow_losses(model, latents, labels, noise, times)["loss"]
    seen, told, classes = model.network.seen[0]
    errors = []
    for i in range(4):
        t = times[i].item()
        x_t = (1 - t) * latents[i] + t * noise[i]
        torch.testing.assert_close(seen[i], x_t)
        h = 1e-3  # the velocity is the derivative of the path
        path = [(1 - s) * latents[i].double() + s * noise[i].double() for s in (t - h, t + h)]
        velocity = ((path[1] - path[0]) / (2 * h)).float()
        errors.append((0.3 * x_t - velocity).square().mean())
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    assert torch.equal(told, 1000 * times)
    assert torch.equal(classes, labels)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_noise_levels_are_products(schedule):
    process = GaussianProcess(steps=5, beta_schedule=schedule, beta_start=0.01, beta_end=0.09)
    if schedule == "linear":
        betas = [0.01, 0.03, 0.05, 0.07, 0.09]
    else:
        betas = [(0.1 + i * 0.05) ** 2 for i in range(5)]
    expected = [math.prod(1 - b for b in betas[: i + 1]) for i in range(5)]
    assert noise_levels(process).tolist() == pytest.approx(expected, rel=1e-12)


def test_noise_is_what_is_predicted():
    process = GaussianProcess(steps=10)
    model = small(process=process)
    model.network = Fixed(lambda x, t, y: 2 * x)
    latents, noise = normal(3, 3, 4, 6), normal(3, 3, 4, 6, seed=1)
    steps = torch.tensor([0, 4, 9])
    loss = gaussian_losses(model, process, latents, torch.zeros(3).long(), noise, steps)["loss"]
    beta = torch.linspace(1e-4, 2e-2, 10)
    errors = []
    for i, t in enumerate(steps.tolist()):
        kept = torch.prod(1 - beta[: t + 1])
        x_t = kept.sqrt() * latents[i] + (1 - kept).sqrt() * noise[i]
        errors.append((2 * x_t - noise[i]).square().mean())
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    assert model.network.seen[0][1].tolist() == [0.0, 400.0, 900.0]


def test_velocity_is_what_is_predicted():
    """With φ = arccos √kept, x(φ) = cos φ · x + sin φ · noise; the velocity is dx/dφ."""
    process = GaussianProcess(steps=10, beta_end=0.4, predicts="velocity")
    model = small(process=process)
    model.network = Fixed(lambda x, t, y: 2 * x)
    latents, noise = normal(3, 3, 4, 6), normal(3, 3, 4, 6, seed=1)
    steps = torch.tensor([0, 4, 9])
    loss = gaussian_losses(model, process, latents, torch.zeros(3).long(), noise, steps)["loss"]
    errors = []
    for i, t in enumerate(steps.tolist()):
        angle = noise_levels(process)[t].sqrt().arccos()
        ahead, behind = (
            (angle + h).cos() * latents[i].double() + (angle + h).sin() * noise[i].double()
            for h in (1e-5, -1e-5)
        )
        x_t = angle.cos() * latents[i] + angle.sin() * noise[i]
        errors.append((2 * x_t - (ahead - behind) / 2e-5).square().mean().float())
    torch.testing.assert_close(loss, torch.stack(errors).mean())


def test_the_bound_is_that_of_the_noise_in_a_velocity():
    latents, noise = normal(2, 3, 4, 6), normal(2, 3, 4, 6, seed=1)
    share = normal(2, 3, 4, 6, seed=2)
    steps, labels, bounds = torch.tensor([2, 7]), torch.zeros(2).long(), []
    for predicts in ("noise", "velocity"):
        process = GaussianProcess(steps=10, beta_end=0.4, variance="learned", predicts=predicts)
        kept = noise_levels(process).float()[steps][:, None, None, None]
        guess = 0.5 * noise
        if predicts == "velocity":
            noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
            guess = (guess - (1 - kept).sqrt() * noisy) / kept.sqrt()
        model = small(process=process)
        model.network = Fixed(lambda x, t, y, guess=guess: torch.cat([guess, share], dim=1))
        losses = gaussian_losses(model, process, latents, labels, noise, steps)
        bounds.append(losses["variance_bound"])
        assert losses["loss"] == losses[f"{predicts}_error"] + bounds[-1]
    torch.testing.assert_close(*bounds)


@pytest.mark.parametrize("step", [1, 4, 9])
def test_variance_bound_is_the_divergence_of_two_normals(step):
    """KL by torch, of the posterior as in DDPM's equations 6 and 7."""
    process = GaussianProcess(steps=10, beta_start=0.01, beta_end=0.2)
    latents, noise = normal(2, 3, 2, 2).double(), normal(2, 3, 2, 2, seed=1).double()
    predicted, share = normal(2, 3, 2, 2, seed=2).double(), normal(2, 3, 2, 2, seed=3).double()
    beta = torch.linspace(0.01, 0.2, 10, dtype=torch.float64)
    a_t, a_before = torch.prod(1 - beta[: step + 1]), torch.prod(1 - beta[:step])
    noisy = a_t.sqrt() * latents + (1 - a_t).sqrt() * noise

    def mean(x):
        first = a_before.sqrt() * beta[step] / (1 - a_t)
        return first * x + (1 - beta[step]).sqrt() * (1 - a_before) / (1 - a_t) * noisy

    spread = (1 - a_before) / (1 - a_t) * beta[step]
    place = (share + 1) / 2
    learned = (place * beta[step].log() + (1 - place) * spread.log()).exp()
    guess = (noisy - (1 - a_t).sqrt() * predicted) / a_t.sqrt()
    true = torch.distributions.Normal(mean(latents), spread.sqrt())
    model = torch.distributions.Normal(mean(guess), learned.sqrt())
    expected = torch.distributions.kl_divergence(true, model).mean() / math.log(2)
    times = torch.full((2,), step)
    found = variance_bound(process, latents, noisy, predicted, share, times)
    torch.testing.assert_close(found, expected)


def test_the_last_step_counts_by_density():
    process = GaussianProcess(steps=10, beta_start=0.01, beta_end=0.2)
    latents, noise = normal(2, 3, 2, 2).double(), normal(2, 3, 2, 2, seed=1).double()
    predicted, share = normal(2, 3, 2, 2, seed=2).double(), normal(2, 3, 2, 2, seed=3).double()
    noisy = 0.99**0.5 * latents + 0.1 * noise
    guess = (noisy - 0.1 * predicted) / 0.99**0.5
    least = 0.01 / (1 - 0.99 * (1 - 0.2 / 9 - 0.01 * 8 / 9)) * (0.2 / 9 + 0.01 * 8 / 9)
    place = (share + 1) / 2
    spread = (place * math.log(0.01) + (1 - place) * math.log(least)).exp().sqrt()
    density = torch.distributions.Normal(guess, spread).log_prob(latents)
    found = variance_bound(process, latents, noisy, predicted, share, torch.tensor([0, 0]))
    torch.testing.assert_close(found, -density.mean() / math.log(2))


def test_learned_variances_leave_the_mean_alone():
    model = small(process=GaussianProcess(steps=20, variance="learned"))
    latents, labels = normal(4, 3, 4, 6), torch.arange(4)
    losses = diffusion_losses(model, latents, labels, source())
    torch.testing.assert_close(
        losses["loss"], losses["noise_error"] + losses["variance_bound"], rtol=0, atol=0
    )
    answer = {}
    model.network.register_forward_hook(lambda _, __, out: answer.update(out=out))
    bound = diffusion_losses(model, latents, labels, source())["variance_bound"]
    (gradient,) = torch.autograd.grad(bound, answer["out"])
    assert (gradient[:, :3] == 0).all()
    assert (gradient[:, 3:] != 0).any()


def test_guidance_of_all_and_of_three_channels():
    asked, free = normal(2, 4, 2, 2), normal(2, 4, 2, 2, seed=1)
    torch.testing.assert_close(guide(asked, free, 3.0, 4), 3 * asked - 2 * free)
    torch.testing.assert_close(guide(asked, free, 1.0, 4), asked)
    torch.testing.assert_close(guide(asked, free, 0.0, 4), free)
    three = guide(asked, free, 3.0, 3)
    torch.testing.assert_close(three[:, :3], 3 * asked[:, :3] - 2 * free[:, :3])
    assert torch.equal(three[:, 3], asked[:, 3])


@pytest.mark.parametrize("channels", [None, 2])
def test_a_guided_prediction_asks_twice(channels):
    process = GaussianProcess(steps=10, variance="learned")
    model = small(process=process)
    labels, noisy, times = torch.tensor([2, 0]), normal(2, 3, 4, 6), torch.tensor([400.0, 400.0])
    sampling = DiffusionSampling(guidance=2.5, guidance_channels=channels)
    with torch.no_grad():
        found = model.guided(labels, sampling)(noisy, times)
        asked = model(noisy, times, labels)
        free = model(noisy, times, torch.tensor([5, 5]))
    first = channels or 3
    expected = asked.clone()
    expected[:, :first] = free[:, :first] + 2.5 * (asked - free)[:, :first]
    torch.testing.assert_close(found, expected)  # variances are those of the asked class
    with torch.no_grad():
        plain = model.guided(labels, DiffusionSampling())(noisy, times)
    assert torch.equal(plain, asked)


def test_a_share_of_the_labels_is_hidden():
    model = small(label_dropout=0.25)
    model.network = Fixed(lambda x, t, y: 0 * x)
    labels = torch.arange(5).repeat(400)
    diffusion_losses(model, torch.zeros(2000, 3, 1, 1), labels, source())
    seen = model.network.seen[0][2]
    hidden = seen == 5
    assert 0.2 < hidden.float().mean().item() < 0.3
    assert torch.equal(seen[~hidden], labels[~hidden])


def test_times_are_uniform_or_in_the_middle():
    seen = {}
    for times in ("uniform", "logit_normal"):
        model = small(process=FlowProcess(times=times))
        model.network = Fixed(lambda x, t, y: 0 * x)
        diffusion_losses(model, torch.zeros(4000, 3, 1, 1), torch.zeros(4000).long(), source())
        seen[times] = model.network.seen[0][1] / 1000
    assert seen["uniform"].std().item() == pytest.approx(12**-0.5, abs=0.01)
    assert seen["logit_normal"].logit().std().item() == pytest.approx(1, abs=0.05)


def test_normalisation_is_undone():
    model = small()
    mean, std = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 3.0, 1.0])
    model.set_statistics(mean, std)
    latents = normal(500, 3, 4, 6) * std[:, None, None] + mean[:, None, None]
    found = model.normalise(latents)
    torch.testing.assert_close(found.mean(), torch.tensor(0.0), rtol=0, atol=0.02)
    torch.testing.assert_close(found.std(), torch.tensor(1.0), rtol=0, atol=0.02)
    torch.testing.assert_close(model.denormalise(found), latents)
    plain = small(normalise="none")
    plain.set_statistics(mean, std)
    assert torch.equal(plain.normalise(latents), latents)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_statistics_that_are_no_numbers_are_refused(bad):
    model = small()
    with pytest.raises(ValueError, match="some latents are NaN"):
        model.set_statistics(torch.tensor([0.0, bad, 0.0]), torch.ones(3))
    with pytest.raises(ValueError, match="spreads above 0"):
        model.set_statistics(torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    "name", [n for n in vars(recipes) if n.endswith(("_mnist", "_cifar10", "_photos"))]
)
def test_small_recipes_are_small_and_survive_json(name):
    run = getattr(recipes, name)()
    assert from_dict(GeneratorRun, to_dict(run)) == run
    with torch.device("meta"):
        model = LatentModel(run.model, channels=8, grid=(8, 8), num_classes=10)
    assert 1e6 < count(model) < 3e6
    assert f"{count(model) / 1e6:.1f} million" in getattr(recipes, name).__doc__


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: DiTNetwork(width=100, heads=3), "model.network.width=100: must be a multiple"),
        (lambda: DiTNetwork(patch=0), "model.network.patch=0"),
        (lambda: UNetNetwork(attention=(True,)), "for each of the 2 levels"),
        (lambda: UNetNetwork(channels=(48, 96)), "model.network.channels=48: must be a multiple"),
        (lambda: GaussianProcess(beta_start=0.0), "0 < beta_start"),
        (lambda: GaussianProcess(predicts="x"), "model.process.predicts='x': expected one of"),
        (lambda: DiffusionConfig(label_dropout=1.0), "model.label_dropout=1.0"),
        (lambda: DiffusionSampling(scheduler="ddmp"), "scheduler='ddmp': expected one of"),
        (lambda: DiffusionSampling(eta=1.0), "is a setting of scheduler='ddim'"),
        (lambda: DiffusionSampling(scheduler="dopri5", steps=5), "chooses its own steps"),
        (lambda: DiffusionSampling(guidance=-1.0), "must not be negative"),
        (lambda: recipes.lc_ldm(data_set="mnist"), "data_set='mnist'"),
    ],
)
def test_bad_settings(make, problem):
    with pytest.raises(ValueError, match=problem.replace("(", r"\(")):
        make()


def test_models_copy():
    model = small()
    twin = copy.deepcopy(model)
    x, t, y = normal(1, 3, 4, 6), torch.tensor([10.0]), torch.tensor([0])
    assert torch.equal(twin(x, t, y), model(x, t, y))
