"""Samples of latents from a model by any scheduler; sample i draws from (seed, i) alone."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from vqkit.config import require
from vqkit.config.diffusion import (
    FLOW_SCHEDULERS,
    GAUSSIAN_SCHEDULERS,
    DiffusionSampling,
    GaussianProcess,
    Scheduler,
)
from vqkit.generation.diffusion import solvers
from vqkit.generation.diffusion.losses import noise_levels
from vqkit.generation.diffusion.model import LatentModel, Prediction

STEPS: dict[Scheduler, int] = {
    "ddpm": 250,
    "sde": 250,
    "ddim": 50,
    "euler": 50,
    "dpm": 25,
    "heun": 25,
    "dopri5": 1,
}


def sources(seed: int, start: int, count: int) -> list[torch.Generator]:
    """Return the generators (CPU) of samples start to start + count - 1.

    torch's generator on the CPU keeps 32 bits of a seed: samples of one seed are numbered from
    there on, so that no two of them are the same.

    Raises:
        ValueError: a negative seed or number.
    """
    require(seed >= 0, f"seed={seed}", "must not be negative")
    require(start >= 0, f"start={start}", "must not be negative")
    first = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big")
    return [torch.Generator().manual_seed((first + i) % 2**32) for i in range(start, start + count)]


@torch.no_grad()
def sample_latents(
    model: LatentModel, labels: Tensor, draws: list[torch.Generator], sampling: DiffusionSampling
) -> Tensor:
    """Return latents (B, C, h, w) as the tokenizer has them, on the model's device.

    Args:
        model: In evaluation mode.
        labels: (B,) classes on the model's device; `num_classes` means none.
        draws: One generator on the CPU for each sample.
        sampling: Scheduler, steps, guidance.

    Raises:
        ValueError: settings that do not fit the model, or a model that predicts NaN.
    """
    scheduler, steps = _resolved(model, sampling)
    predict = model.guided(labels, sampling)
    noise = _noise(model, draws, labels.device)
    process = model.config.process
    if isinstance(process, GaussianProcess):
        latents = _step_by_step(model, process, predict, noise, draws, scheduler, steps, sampling)
    else:
        latents = _along_flow(model, predict, noise, draws, scheduler, steps, sampling)
    latents = model.denormalise(latents)
    require(
        bool(latents.isfinite().all()),
        f"scheduler={scheduler!r}, guidance={sampling.guidance}",
        "the sampled latents hold NaN or infinity; lower the guidance, or use a model whose "
        "training went well",
    )
    return latents


def _resolved(model: LatentModel, sampling: DiffusionSampling) -> tuple[Scheduler, int]:
    """Return the scheduler and its steps, checked against the model."""
    process = model.config.process
    gaussian = isinstance(process, GaussianProcess)
    fitting = GAUSSIAN_SCHEDULERS if gaussian else FLOW_SCHEDULERS
    scheduler: Scheduler = sampling.scheduler or ("ddpm" if gaussian else "heun")
    require(
        scheduler in fitting,
        f"scheduler={scheduler!r}",
        f"this model is one of {'noise in steps' if gaussian else 'a flow'}; use one of "
        f"{', '.join(fitting)}",
    )
    steps = sampling.steps or STEPS[scheduler]
    if isinstance(process, GaussianProcess):
        steps = steps if sampling.steps else min(steps, process.steps)
        require(steps <= process.steps, f"steps={steps}", f"the process has {process.steps}")
        require(
            scheduler != "ddim" or process.steps % steps == 0,
            f"steps={steps}",
            f"ddim takes a divisor of the {process.steps} steps of the process",
        )
    return scheduler, steps


def _noise(model: LatentModel, draws: list[torch.Generator], device: torch.device) -> Tensor:
    shape = (model.channels, *model.grid)
    return torch.stack([torch.randn(shape, generator=source) for source in draws]).to(device)


def _along_flow(
    model: LatentModel,
    predict: Prediction,
    noise: Tensor,
    draws: list[torch.Generator],
    scheduler: Scheduler,
    steps: int,
    sampling: DiffusionSampling,
) -> Tensor:
    def velocity(x: Tensor, times: Tensor) -> Tensor:
        return predict(x, 1000 * times)

    if scheduler == "euler":
        return solvers.euler(velocity, noise, steps)
    if scheduler == "heun":
        return solvers.heun(velocity, noise, steps)
    if scheduler == "dopri5":
        return solvers.dopri5(velocity, noise, atol=sampling.atol, rtol=sampling.rtol)

    def draw() -> Tensor:
        return _noise(model, draws, noise.device)

    return solvers.sde(velocity, noise, steps, diffusion=sampling.diffusion, draw=draw)


def _step_by_step(
    model: LatentModel,
    process: GaussianProcess,
    predict: Prediction,
    x: Tensor,
    draws: list[torch.Generator],
    scheduler: Scheduler,
    steps: int,
    sampling: DiffusionSampling,
) -> Tensor:
    solver = _diffusers_scheduler(process, scheduler, steps)
    extra: dict[str, Any] = {} if scheduler == "dpm" else {"generator": draws}
    if scheduler == "ddim":
        extra["eta"] = sampling.eta
    for time in solver.timesteps.tolist():
        out = predict(x, x.new_full((len(x),), time * (1000 / process.steps)))
        if model.learns_variance and scheduler != "ddpm":
            out = out[:, : model.channels]
        x = solver.step(out, time, x, **extra).prev_sample
    return x


def _diffusers_scheduler(process: GaussianProcess, scheduler: Scheduler, steps: int) -> Any:
    """Return a scheduler of diffusers with its times set."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    kept = noise_levels(process)
    before = torch.cat([kept.new_ones(1), kept[:-1]])
    common: dict[str, Any] = {
        "num_train_timesteps": process.steps,
        "trained_betas": (1 - kept / before).tolist(),
        "prediction_type": "v_prediction" if process.predicts == "velocity" else "epsilon",
    }
    solver: Any
    if scheduler == "ddim":
        solver = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **common)
        solver.set_timesteps(steps)
    elif scheduler == "dpm":
        solver = DPMSolverMultistepScheduler(**common)
        solver.set_timesteps(steps)
    else:
        kind = "learned_range" if process.variance == "learned" else "fixed_small"
        solver = DDPMScheduler(clip_sample=False, variance_type=kind, **common)
        # Given one by one, since with equal spacing it would assume steps that rounding changed.
        times = torch.linspace(process.steps - 1, 0, steps, dtype=torch.float64).round().int()
        solver.set_timesteps(timesteps=times.tolist())
    return solver
