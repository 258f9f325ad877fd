"""Training with a discriminator: the step against a plain one, parts against the whole, resume."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F
from training_runs import assert_same_run, comparable_log, run_config, write_images

from vqkit.config import AdversarialConfig, OptimConfig, VQGANNetwork, with_changes
from vqkit.data import BatchStream, load_images, to_float
from vqkit.training import train
from vqkit.training.adversary import Adversary, adaptive_weight
from vqkit.training.machine import make_accelerator
from vqkit.training.objective import TokenizerObjective
from vqkit.training.schedule import learning_rate_factor
from vqkit.training.trainer import Trainer

pytestmark = pytest.mark.slow

NETWORK = VQGANNetwork(
    width=8,
    multipliers=(1, 2),
    num_res_blocks=1,
    attention_strides=(),
    z_channels=8,
    norm_groups=4,
)
JUDGE = AdversarialConfig(start=0, num_layers=1, width=4, norm="none")


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), side=16)


def adversarial(images, preset="looc", *, judge=JUDGE, **changes):
    """A run of 12 steps of 8 images of 16 x 16 pixels, with a discriminator."""
    # A large eps: Adam would make steps of the rounding noise of gradients that are zero.
    changes = {"objective__reconstruction": "l1", "optim__eps": 1e-3} | changes
    return run_config(images, preset, network=NETWORK, adversarial=judge, **changes)


def trainer_of(config):
    return Trainer(config, make_accelerator(), TokenizerObjective(config.objective))


def batches(config, count):
    stream = BatchStream(load_images(config.data), config.optim.batch_size, seed=config.seed)
    return [stream.batch(step) for step in range(count)]


def weights(trainer):
    model = {f"model.{k}": v.clone() for k, v in trainer.tokenizer.state_dict().items()}
    return model | {f"judge.{k}": v.clone() for k, v in trainer.adversary.state_dict().items()}


def plain_steps(config, count):
    """The same steps written as in the reference codes; returns weights and adaptive weights."""
    trainer = trainer_of(config)  # for the same initial weights
    model, judge = trainer.tokenizer, trainer.adversary.discriminator
    options = {"lr": config.optim.lr, "betas": config.optim.betas, "eps": config.optim.eps}
    first = torch.optim.Adam(model.parameters(), **options)
    second = torch.optim.Adam(judge.parameters(), **options)
    seen = []
    for batch in batches(config, count):
        real = to_float(batch.images)
        out = model(real)
        rec, gan = (out.images - real).abs().mean(), -judge(out.images).mean()
        of_rec, of_gan = (
            torch.autograd.grad(loss, model.decoder.last_weight, retain_graph=True)[0].norm()
            for loss in (rec, gan)
        )
        ratio = (of_rec / (of_gan + 1e-4)).clamp(0, 1e4).detach()
        first.zero_grad()
        (rec + out.quantized.loss + 0.8 * ratio * gan).backward()
        first.step()
        model.quantizer.step()
        second.zero_grad()
        real_logits, fake_logits = judge(real), judge(out.images.detach())
        (F.relu(1 - real_logits).mean() / 2 + F.relu(1 + fake_logits).mean() / 2).backward()
        second.step()
        seen.append(float(ratio))
    return weights(trainer), seen


@pytest.mark.parametrize("preset", ["looc", "dual", "gumbel"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_steps_equal_plain_ones(preset, norm, images):
    judge = dataclasses.replace(JUDGE, norm=norm)
    config = adversarial(images, preset, judge=judge)
    expected, ratios = plain_steps(config, 3)
    trainer = trainer_of(config)
    reports = [trainer.step(batch) for batch in batches(config, 3)]
    assert [r.losses["adaptive_weight"] for r in reports] == pytest.approx(ratios, rel=1e-4)
    for name, value in weights(trainer).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("preset", ["looc", "vq_ema"])
def test_parts_are_the_whole(preset, adaptive, images):
    """Also the adaptive weight, which is no sum over parts."""
    judge = dataclasses.replace(JUDGE, adaptive=adaptive, lecam=0.1, r1=1.0, r1_every=2)
    found = []
    for accumulate in (1, 4):
        config = adversarial(images, preset, judge=judge, optim__accumulate=accumulate)
        trainer = trainer_of(config)
        reports = [trainer.step(batch).losses for batch in batches(config, 3)]
        found.append((weights(trainer), reports))
    (whole, one), (parts, four) = found
    for a, b in zip(one, four, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
        assert ("adaptive_weight" in a) == adaptive
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_the_discriminator_comes_in_when_it_should(images):
    judge = dataclasses.replace(JUDGE, start=4, warmup=2, ramp=4, weight=0.5, adaptive=False)
    config = adversarial(images, judge=judge, optim__num_steps=10)
    trainer = trainer_of(config)
    before = weights(trainer)
    for step, batch in enumerate(batches(config, 10)):
        report = trainer.step(batch).losses
        assert ("discriminator" in report) == (step >= 2)
        assert ("generator" in report) == (step >= 4)
        if step == 1:
            unchanged = weights(trainer)
            assert all(
                torch.equal(unchanged[k], v) for k, v in before.items() if k.startswith("judge.")
            )
        if step >= 4:
            share = report["generator_weighted"] / report["generator"]
            assert share == pytest.approx(0.5 * min(1, (step - 3) / 4), rel=1e-5)


def test_without_weight_the_generator_learns_as_alone(images):
    judge = dataclasses.replace(JUDGE, weight=0.0)
    alone, judged = adversarial(images, judge=None), adversarial(images, judge=judge)
    one, other = trainer_of(alone), trainer_of(judged)
    for batch in batches(alone, 3):
        one.step(batch)
        other.step(batch)
    for name, value in one.tokenizer.state_dict().items():
        assert torch.equal(value, other.tokenizer.state_dict()[name]), name


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e3])
def test_the_adaptive_weight_undoes_the_scale_of_the_loss(scale):
    config = dataclasses.replace(JUDGE, adaptive_delta=1e-12, adaptive_max=1e9)
    source = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 4, generator=source) for _ in range(2))
    one = adaptive_weight([a.clone()], [b.clone()], config) * b
    other = adaptive_weight([a.clone()], [scale * b], config) * scale * b
    torch.testing.assert_close(one, other)
    assert float(adaptive_weight([a], [b], config)) == pytest.approx(float(a.norm() / b.norm()))


def test_the_adaptive_weight_is_clamped():
    config = dataclasses.replace(JUDGE, adaptive_max=5.0)
    assert float(adaptive_weight([torch.ones(4)], [torch.zeros(4)], config)) == 5.0


def test_lecam_means_follow_the_logits(images):
    judge = dataclasses.replace(JUDGE, lecam=0.1, lecam_decay=0.9)
    trainer = trainer_of(adversarial(images, judge=judge))
    logits = [trainer.step(batch).losses["logits_real"] for batch in batches(trainer.config, 3)]
    expected = (0.81 * logits[0] + 0.9 * logits[1] + logits[2]) / 2.71
    assert float(trainer.adversary.lecam_real) == pytest.approx(expected, rel=1e-5)


def test_raw_terms_are_those_before_their_weights(images):
    trainer = trainer_of(adversarial(images, "dual", objective__quantizer_weight=0.1))
    report = trainer.step(batches(trainer.config, 1)[0]).losses
    for half in ("global", "local"):
        raw, paid = (report[f"quantizer.{half}.commitment{end}"] for end in ("_raw", ""))
        assert paid == pytest.approx(0.1 * 0.25 * raw, rel=1e-5)
        assert raw == pytest.approx(report[f"quantizer.{half}.codebook_raw"], rel=1e-5)


@pytest.mark.parametrize(("preset", "accumulate"), [("looc", 1), ("dual", 2)])
def test_a_stopped_run_goes_on_bit_for_bit(preset, accumulate, images, tmp_path):
    judge = dataclasses.replace(JUDGE, start=3, warmup=1, ramp=6, norm="batch", lecam=0.1, r1=0.1)
    changes = {
        "optim__accumulate": accumulate,
        "optim__weight_ema": 0.9,
        "optim__schedule": "constant",
        "optim__warmup_steps": 6,
    }
    config = adversarial(images, preset, judge=judge, **changes)
    train(config, out=tmp_path / "whole", progress=False)
    shorter = with_changes(config, optim__num_steps=8)
    train(shorter, out=tmp_path / "stopped", progress=False)
    train(config, out=tmp_path / "stopped", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped", 12)
    lines = comparable_log(tmp_path / "whole")
    assert "discriminator" in lines[-1]
    assert (tmp_path / "whole" / "step_00000012" / "discriminator.safetensors").exists()


@pytest.mark.parametrize("judge", [None, JUDGE])
@pytest.mark.parametrize("preset", ["looc", "dual", "gumbel", "sq_vae"])
def test_bf16_keeps_the_quantizer_in_float32(preset, judge, images):
    """Forward and backward: no gradient of its parameters has been rounded to bf16."""
    trainer = trainer_of(adversarial(images, preset, judge=judge, optim__precision="bf16"))
    taken = []
    quantize = trainer.tokenizer.quantizer.quantizer.quantize

    def watched(z):
        taken.append(z.dtype)
        return quantize(z)

    trainer.tokenizer.quantizer.quantizer.quantize = watched
    reports = [trainer.step(batch) for batch in batches(trainer.config, 3)]
    assert taken == [torch.float32] * 3
    moments = [
        trainer.optimizer.state[p]["exp_avg_sq"].sqrt()
        for p in trainer.tokenizer.quantizer.parameters()
        if p.requires_grad
    ]
    assert not any(torch.equal(m, m.bfloat16().float()) for m in moments if m.any())
    assert not any(report.problem for report in reports)
    assert all(p.dtype == torch.float32 for p in trainer.tokenizer.parameters())


def test_compiled_steps_are_those_of_the_plain_networks(images, monkeypatch):
    """With everything that runs backward more than once; traced, but no C++ compiler is asked."""
    compiled_by = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module: compiled_by(module, backend="aot_eager")
    )
    judge = dataclasses.replace(JUDGE, r1=0.1, r1_every=2)
    network = dataclasses.replace(NETWORK, checkpointing=True)
    found = []
    for compiled in (False, True):
        changes = {"optim__compile": compiled, "optim__accumulate": 2, "network": network}
        config = with_changes(adversarial(images, judge=judge), **changes)
        trainer = trainer_of(config)
        reports = [trainer.step(batch).losses for batch in batches(config, 3)]
        found.append(reports)
    for plain, compiled in zip(*found, strict=True):
        assert compiled == pytest.approx(plain, rel=1e-3, abs=1e-5)


def test_nothing_is_updated_when_the_discriminator_breaks(images):
    trainer = trainer_of(adversarial(images, judge=dataclasses.replace(JUDGE, adaptive=False)))
    first, second = batches(trainer.config, 2)
    trainer.step(first)
    with torch.no_grad():
        next(trainer.adversary.discriminator.parameters()).fill_(math.inf)
    before = trainer.tokenizer.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    report = trainer.step(second)
    assert report.problem
    assert all(torch.equal(before[n], v) for n, v in trainer.tokenizer.state_dict().items())
    assert trainer.done == 1


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        ("constant", 0, 1 / 10),
        ("constant", 9, 1.0),
        ("constant", 99, 1.0),
        ("cosine", 4, 0.5),
        ("cosine", 9, 1.0),
        ("cosine", 54, 0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2),
        ("cosine", 99, 0.1),
        ("linear", 54, 0.1 + 0.9 / 2),
        ("linear", 99, 0.1),
    ],
)
def test_learning_rate(schedule, step, factor):
    optim = OptimConfig(num_steps=100, schedule=schedule, warmup_steps=10, final_lr=0.1)
    assert learning_rate_factor(optim, step) == pytest.approx(factor)


def test_both_learning_rates_follow_the_schedule(images):
    judge = dataclasses.replace(JUDGE, lr=1e-2)
    trainer = trainer_of(adversarial(images, judge=judge, optim__warmup_steps=4))
    report = trainer.step(batches(trainer.config, 1)[0])
    assert report.losses["learning_rate"] == pytest.approx(3e-3 / 4)
    assert trainer.adversary.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / 4)


def test_its_state_is_in_the_state_dict():
    adversary = Adversary(JUDGE, OptimConfig(num_steps=1), 3)
    assert {"lecam_real", "lecam_fake"} <= set(adversary.state_dict())


def test_penalties_stand_in_every_line(images):
    """R1 is computed in every second step; the others show the last one."""
    judge = dataclasses.replace(JUDGE, lecam=0.1, r1=0.5, r1_every=2, discriminator_weight=2.0)
    config = adversarial(images, judge=judge)
    trainer = trainer_of(config)
    reports = [trainer.step(batch).losses for batch in batches(config, 4)]
    first, second, third, fourth = (report["r1"] for report in reports)
    assert first == second > 0
    assert third == fourth != first
    for report in reports:
        assert report["r1_weighted"] == pytest.approx(2.0 * 0.5 * report["r1"])
        assert report["lecam_weighted"] == pytest.approx(2.0 * 0.1 * report["lecam"])
        assert report["discriminator_weighted"] == pytest.approx(2.0 * report["discriminator"])
