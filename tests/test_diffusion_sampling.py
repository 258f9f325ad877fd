"""Samplers of diffusion models, against naive references and distributions that are known."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from diffusion_cases import DIT, Fixed, normal, small
from scipy.integrate import solve_ivp

from vqkit.config.diffusion import (
    FLOW_SCHEDULERS,
    GAUSSIAN_SCHEDULERS,
    DiffusionSampling,
    FlowProcess,
    GaussianProcess,
)
from vqkit.generation.diffusion import sample_latents, solvers, sources
from vqkit.generation.diffusion.losses import noise_levels

pytest.importorskip("diffusers")

MEAN, SPREAD = 1.5, 0.5
"""Of the latents in the models that are known exactly."""


def velocity_of_normal(x, times):
    """E[noise - latent | x(t)] of latents N(MEAN, SPREAD²): what a perfect SiT predicts."""
    t = times[:, None, None, None]
    variance = ((1 - t) * SPREAD) ** 2 + t**2
    share = (t - (1 - t) * SPREAD**2) / variance
    return share * (x - (1 - t) * MEAN) - MEAN


def noise_of_normal(process):
    """E[noise | x(t)] of latents N(MEAN, SPREAD²): what a perfect DDPM predicts."""
    levels = noise_levels(process).float()

    def predict(x, times, labels):
        kept = levels[(times * process.steps / 1000).round().long()][:, None, None, None]
        variance = kept * SPREAD**2 + 1 - kept
        return (1 - kept).sqrt() / variance * (x - kept.sqrt() * MEAN)

    return predict


def velocity_in_steps(process):
    """The same as a velocity: (√kept · x(t) - latent) / √(1 - kept), latent as the noise says."""
    levels, noise = noise_levels(process).float(), noise_of_normal(process)

    def predict(x, times, labels):
        kept = levels[(times * process.steps / 1000).round().long()][:, None, None, None]
        latent = (x - (1 - kept).sqrt() * noise(x, times, labels)) / kept.sqrt()
        return (kept.sqrt() * x - latent) / (1 - kept).sqrt()

    return predict


def perfect(process):
    model = small(DIT, process, channels=4, grid=(8, 8))
    if isinstance(process, FlowProcess):
        model.network = Fixed(lambda x, t, y: velocity_of_normal(x, t / 1000))
    else:
        right = velocity_in_steps if process.predicts == "velocity" else noise_of_normal
        model.network = Fixed(right(process))
    return model


def draw(model, count, **settings):
    labels = torch.full((count,), model.num_classes)
    return sample_latents(model, labels, sources(3, 0, count), DiffusionSampling(**settings))


@pytest.mark.parametrize(
    ("scheduler", "steps", "settings"),
    [
        ("ddpm", 100, {}),
        ("ddim", 50, {}),
        ("ddim", 100, {"eta": 1.0}),
        ("dpm", 20, {}),
        ("euler", 50, {}),
        ("heun", 10, {}),
        ("dopri5", None, {}),
        ("sde", 100, {}),
        ("sde", 100, {"diffusion": 3.0}),
    ],
)
def test_a_perfect_model_gives_the_distribution(scheduler, steps, settings):
    process = FlowProcess() if scheduler in FLOW_SCHEDULERS else GaussianProcess(steps=400)
    if isinstance(process, GaussianProcess):
        process = GaussianProcess(steps=400, beta_end=0.05)  # ends in pure noise, like 1,000 steps
    found = draw(perfect(process), 100, scheduler=scheduler, steps=steps, **settings)
    assert found.shape == (100, 4, 8, 8)
    # 25,600 numbers: their mean is known to 0.003; the rest is the error of so many steps.
    assert found.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert found.std().item() == pytest.approx(SPREAD, abs=0.03)
    lag = (found[..., 1:] - MEAN) * (found[..., :-1] - MEAN)
    assert lag.mean().item() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("scheduler", GAUSSIAN_SCHEDULERS)
def test_noise_and_velocity_give_the_same_samples(scheduler):
    settings = {"steps": 20, "eta": 0.5 if scheduler == "ddim" else 0.0, "scheduler": scheduler}
    found = [
        draw(perfect(GaussianProcess(steps=400, beta_end=0.05, predicts=predicts)), 3, **settings)
        for predicts in ("noise", "velocity")
    ]
    torch.testing.assert_close(*found, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("norm", [0.5, 1.0, 2.5])
def test_the_sde_is_that_of_sits_code(norm):
    """Written out as it is there, in time from noise to data, with its diffusion norm · σ.

    Drift velocity + diffusion · score and noise √(2 diffusion), which is w = 2 norm · σ here. The
    score is that of the normal distribution itself, not taken from the velocity.
    """
    x = start = normal(2, 1, 2, 3).double()
    draws = [normal(2, 1, 2, 3, seed=10 + n).double() for n in range(6)]
    times = np.linspace(0, 1 - 0.04, 7)
    for number, noise in enumerate(draws):
        time, step = 1 - times[number], times[number + 1] - times[number]
        drift = -velocity_of_normal(x, torch.full((2,), time, dtype=torch.float64))
        score = -(x - (1 - time) * MEAN) / (((1 - time) * SPREAD) ** 2 + time**2)
        diffusion = norm * time
        mean = x + step * (drift + diffusion * score)
        x = mean + math.sqrt(2 * diffusion) * math.sqrt(step) * noise
    x = x - 0.04 * velocity_of_normal(x, torch.full((2,), 0.04, dtype=torch.float64))
    source = iter(draws)
    found = solvers.sde(velocity_of_normal, start, 7, diffusion=2 * norm, draw=lambda: next(source))
    torch.testing.assert_close(found, x, rtol=0, atol=1e-6)  # times are rounded to float32


@pytest.mark.parametrize("diffusion", [0.0, 1.0, 4.0])
def test_the_sde_keeps_the_marginals(diffusion):
    """What is drawn enters the result linearly, so that its mean and variance are known exactly.

    Row j of the batch is the response to draw j alone, the last row that to none. Both must come to
    the marginal at 0.04 moved by the last step: the mean, which moves along a line, at once, the
    variance with an error in proportion to the steps.
    """

    def errors(steps):
        units = torch.eye(steps + 1, dtype=torch.float64)[:, :, None, None, None]
        source = iter(range(1, steps))
        found = solvers.sde(
            velocity_of_normal,
            units[:, 0],
            steps,
            diffusion=diffusion,
            draw=lambda: units[:, next(source)],
        ).flatten()
        mean, variance = found[-1], (found[:-1] - found[-1]).square().sum()
        return abs(mean - expected[0]).item(), abs(variance - expected[1]).item()

    time, level = 0.04, torch.full((2,), 0.04, dtype=torch.float64)
    points = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None, None]
    first, second = (points - time * velocity_of_normal(points, level)).flatten().tolist()
    slope, at = second - first, (1 - time) * MEAN
    expected = (first + slope * at, slope**2 * (((1 - time) * SPREAD) ** 2 + time**2))
    few, many = errors(150), errors(300)
    assert many[0] < 1e-6
    assert many[1] < 0.01
    assert few[1] / many[1] == pytest.approx(2, abs=0.2)


def test_an_ode_takes_noise_where_it_belongs():
    """The flow of a normal distribution only shifts and scales, so that every value is known."""
    noise = normal(5, 1, 2, 2)
    expected = MEAN + SPREAD * noise
    torch.testing.assert_close(
        solvers.dopri5(velocity_of_normal, noise, atol=1e-6, rtol=1e-5), expected, atol=1e-3, rtol=0
    )
    errors = {
        name: [
            (solver(velocity_of_normal, noise, steps) - expected).abs().max().item()
            for steps in (32, 64)
        ]
        for name, solver in (("euler", solvers.euler), ("heun", solvers.heun))
    }
    assert errors["euler"][0] / errors["euler"][1] == pytest.approx(2, abs=0.3)  # of order 1
    assert errors["heun"][0] / errors["heun"][1] == pytest.approx(4, abs=0.8)  # of order 2


def test_dopri5_against_scipy():
    matrix = normal(4, 4, seed=5).double() * 2

    def velocity(x, times):
        return torch.tanh(x @ matrix) + 3 * times[:, None, None, None] ** 2

    x = normal(3, 1, 1, 4).double()
    found = solvers.dopri5(velocity, x, atol=1e-8, rtol=1e-8)
    for row, start in zip(found, x, strict=True):
        solved = solve_ivp(
            lambda t, y: np.tanh(y @ matrix.numpy()) + 3 * t**2,
            (1, 0),
            start.flatten().numpy(),
            method="DOP853",
            rtol=1e-11,
            atol=1e-11,
        )
        torch.testing.assert_close(
            row.flatten(), torch.from_numpy(solved.y[:, -1]), atol=1e-6, rtol=0
        )


def test_dopri5_says_when_there_is_no_end():
    with pytest.raises(ValueError, match="without an end"):
        solvers.dopri5(lambda x, t: x * math.nan, normal(1, 1, 1, 1), atol=1e-6, rtol=1e-3)


def test_euler_is_that_of_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    solver = FlowMatchEulerDiscreteScheduler()
    solver.set_timesteps(sigmas=np.linspace(1, 0, 9)[:-1])
    x = normal(2, 1, 2, 2)
    expected = x
    for time in solver.timesteps:
        velocity = velocity_of_normal(expected, torch.full((2,), time / 1000))
        expected = solver.step(velocity, time, expected).prev_sample
    torch.testing.assert_close(solvers.euler(velocity_of_normal, x, 8), expected)


def test_the_score_is_the_gradient_of_the_density():
    x = normal(4, 1, 2, 2).requires_grad_()
    t = 0.3
    spread = (((1 - t) * SPREAD) ** 2 + t**2) ** 0.5
    density = torch.distributions.Normal((1 - t) * MEAN, spread).log_prob(x).sum()
    (expected,) = torch.autograd.grad(density, x)
    velocity = velocity_of_normal(x, torch.full((4,), t))
    torch.testing.assert_close(solvers.score(x, velocity, t), expected)


def test_ddpm_is_ancestral_sampling():
    """DDPM's algorithm 2, written out, with the noise of each sample's own generator."""
    process = GaussianProcess(steps=6, beta_start=0.05, beta_end=0.3)
    model = small(process=process)
    found = sample_latents(
        model, torch.tensor([1, 4]), sources(0, 7, 2), DiffusionSampling(scheduler="ddpm", steps=6)
    )
    beta = torch.linspace(0.05, 0.3, 6)
    kept = (1 - beta).cumprod(0)
    for row, (label, source) in enumerate(zip([1, 4], sources(0, 7, 2), strict=True)):
        x = torch.randn((1, 3, 4, 6), generator=source)
        for t in range(5, -1, -1):
            with torch.no_grad():
                noise = model(x, torch.tensor([t * 1000 / 6]), torch.tensor([label]))
            x = (x - beta[t] / (1 - kept[t]).sqrt() * noise) / (1 - beta[t]).sqrt()
            if t > 0:
                variance = (1 - kept[t - 1]) / (1 - kept[t]) * beta[t]
                x = x + variance.sqrt() * torch.randn((1, 3, 4, 6), generator=source)
        torch.testing.assert_close(found[row], x[0], atol=1e-5, rtol=1e-4)


def test_ddim_is_its_formula():
    """DDIM (arXiv:2010.02502), equation 12, with eta 0."""
    process = GaussianProcess(steps=12, beta_start=0.05, beta_end=0.3)
    model = small(process=process)
    found = sample_latents(
        model, torch.tensor([2]), sources(0, 0, 1), DiffusionSampling(scheduler="ddim", steps=4)
    )
    kept = noise_levels(process).float()
    (source,) = sources(0, 0, 1)
    x = torch.randn((1, 3, 4, 6), generator=source)
    for t, before in ((11, 8), (8, 5), (5, 2), (2, None)):
        with torch.no_grad():
            noise = model(x, torch.tensor([t * 1000 / 12]), torch.tensor([2]))
        guess = (x - (1 - kept[t]).sqrt() * noise) / kept[t].sqrt()
        left = torch.tensor(1.0) if before is None else kept[before]
        x = left.sqrt() * guess + (1 - left).sqrt() * noise
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("scheduler", "variance"),
    [*product(GAUSSIAN_SCHEDULERS, ("fixed", "learned")), *product(FLOW_SCHEDULERS, ("fixed",))],
)
def test_a_sample_does_not_depend_on_its_batch(scheduler, variance):
    if scheduler in FLOW_SCHEDULERS:
        process = FlowProcess()
    else:
        process = GaussianProcess(steps=20, beta_end=0.3, variance=variance)
    model = small(process=process)
    if scheduler == "dopri5":  # of random weights it takes steps without number
        model.network = Fixed(lambda x, t, y: torch.tanh(x * (y + 1)[:, None, None, None]))
    settings = DiffusionSampling(
        scheduler=scheduler,
        steps=None if scheduler == "dopri5" else 5,
        guidance=1.5,
        eta=0.5 if scheduler == "ddim" else 0.0,
    )
    labels = torch.tensor([0, 3, 5, 1])
    together = sample_latents(model, labels, sources(9, 10, 4), settings)
    for i in range(4):
        alone = sample_latents(model, labels[i : i + 1], sources(9, 10 + i, 1), settings)
        torch.testing.assert_close(together[i], alone[0], atol=1e-4, rtol=1e-4)
    assert (together[0] != together[1]).any()
    other = sample_latents(model, labels, sources(8, 10, 4), settings)
    assert (other != together).any()


def test_sources_differ_and_repeat():
    first = [torch.rand(1, generator=g).item() for g in sources(0, 0, 1000)]
    assert len(set(first)) == 1000
    assert first[10] == torch.rand(1, generator=sources(0, 10, 1)[0]).item()
    assert first[0] != torch.rand(1, generator=sources(1, 0, 1)[0]).item()


def test_bf16_is_near():
    model = small()
    labels = torch.tensor([0, 3])
    exact = sample_latents(model, labels, sources(0, 0, 2), DiffusionSampling(steps=4))
    half = sample_latents(
        model, labels, sources(0, 0, 2), DiffusionSampling(steps=4, precision="bf16")
    )
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.1, rtol=0.05)
    assert (half != exact).any()


@pytest.mark.parametrize(
    ("process", "sampling", "problem"),
    [
        (FlowProcess(), {"scheduler": "ddpm"}, "this model is one of a flow; use one of euler"),
        (GaussianProcess(), {"scheduler": "heun"}, "noise in steps; use one of ddpm"),
        (GaussianProcess(), {"steps": 2000}, "steps=2000: the process has 1000"),
        (GaussianProcess(), {"scheduler": "ddim", "steps": 300}, "a divisor of the 1000"),
        (FlowProcess(), {"guidance_channels": 4}, "the latents have 3 channels"),
    ],
)
def test_settings_that_do_not_fit_the_model(process, sampling, problem):
    model = small(process=process)
    with pytest.raises(ValueError, match=problem):
        sample_latents(model, torch.tensor([0]), sources(0, 0, 1), DiffusionSampling(**sampling))


def test_guidance_needs_a_free_prediction():
    for model, problem in (
        (small(num_classes=0, conditional=False), "trained without classes"),
        (small(label_dropout=0.0), "label_dropout=0"),
    ):
        with pytest.raises(ValueError, match=problem):
            sample_latents(
                model, torch.tensor([0]), sources(0, 0, 1), DiffusionSampling(guidance=2.0)
            )


def test_a_model_that_predicts_nan_is_named():
    model = small()
    model.network = Fixed(lambda x, t, y: x * math.nan)
    with pytest.raises(ValueError, match=r"scheduler='heun', guidance=1\.0: the sampled"):
        sample_latents(model, torch.tensor([0]), sources(0, 0, 1), DiffusionSampling(steps=2))
