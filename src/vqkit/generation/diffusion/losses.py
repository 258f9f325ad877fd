"""What a diffusion model is trained by: noise or velocity predicted, in steps or along a flow.

Times of both run from latents to noise. Everything drawn comes from the given generator, on the
CPU, so that a step draws the same on every device.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit.config.diffusion import FlowProcess, GaussianProcess
from vqkit.generation.diffusion.model import LatentModel


def diffusion_losses(
    model: LatentModel, latents: Tensor, labels: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return `loss` and its parts for normalised latents (B, C, h, w) and classes (B,).

    A share `label_dropout` of the classes is replaced by `num_classes`, which means none.
    """
    if model.num_classes > 0:
        draws = torch.rand(len(labels), generator=generator).to(labels.device)
        labels = labels.masked_fill(draws < model.config.label_dropout, model.num_classes)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    process = model.config.process
    if isinstance(process, GaussianProcess):
        times = torch.randint(process.steps, (len(latents),), generator=generator)
        return gaussian_losses(model, process, latents, labels, noise, times.to(latents.device))
    times = draw_times(process, len(latents), generator)
    return flow_losses(model, latents, labels, noise, times.to(latents.device))


def draw_times(process: FlowProcess, count: int, generator: torch.Generator) -> Tensor:
    """Draw times (count,) in (0, 1) for a flow."""
    if process.times == "uniform":
        return torch.rand(count, generator=generator)
    return torch.randn(count, generator=generator).sigmoid()


def flow_losses(
    model: LatentModel, latents: Tensor, labels: Tensor, noise: Tensor, times: Tensor
) -> dict[str, Tensor]:
    """Mean squared error of the velocity at times (B,) in [0, 1].

    x(t) = (1 - t) x + t noise has the velocity noise - x (SiT, section 2, the linear path).
    """
    t = times[:, None, None, None]
    velocity = model((1 - t) * latents + t * noise, 1000 * times, labels)
    return {"loss": F.mse_loss(velocity.float(), noise - latents)}


def gaussian_losses(
    model: LatentModel,
    process: GaussianProcess,
    latents: Tensor,
    labels: Tensor,
    noise: Tensor,
    times: Tensor,
) -> dict[str, Tensor]:
    """Mean squared error of the predicted noise at steps (B,), from 0 (DDPM, eq. 14).

    Or of the velocity √kept · noise - √(1 - kept) · x (arXiv:2202.00512, appendix D).
    Learned variances add their variational bound in bits per number, in which the mean is fixed
    (arXiv:2102.09672, eqs. 15 and 16).
    """
    kept = noise_levels(process)

    def at(table: Tensor) -> Tensor:
        return table.to(latents)[times][:, None, None, None]

    near, far = at(kept.sqrt()), at((1 - kept).sqrt())
    noisy = near * latents + far * noise
    velocity = process.predicts == "velocity"
    aim = near * noise - far * latents if velocity else noise
    out = model(noisy, times * (1000 / process.steps), labels).float()
    if not model.learns_variance:
        return {"loss": F.mse_loss(out, aim)}
    predicted, share = out.chunk(2, dim=1)
    error = F.mse_loss(predicted, aim)
    fixed = predicted.detach()
    fixed = near * fixed + far * noisy if velocity else fixed
    bound = variance_bound(process, latents, noisy, fixed, share, times)
    return {"loss": error + bound, f"{process.predicts}_error": error, "variance_bound": bound}


def variance_bound(
    process: GaussianProcess,
    latents: Tensor,
    noisy: Tensor,
    predicted: Tensor,
    share: Tensor,
    times: Tensor,
) -> Tensor:
    """Return the mean of KL(q(x[t-1] | x[t], x) | p(x[t-1] | x[t])) in bits per number.

    `share` in about [-1, 1] places the log variance of p between those of q and of the whole step.
    The last step, to x itself, counts by the log density of x; DiT's code counts grey levels of
    pixels there, which latents have not.
    """
    kept = noise_levels(process)
    before = F.pad(kept[:-1], (1, 0), value=1.0)
    beta = 1 - kept / before
    spread = beta * (1 - before) / (1 - kept)
    least = torch.cat([spread[1:2], spread[1:]]).log()  # that of step 0 would be -infinity

    def at(table: Tensor) -> Tensor:
        return table.to(latents)[times][:, None, None, None]

    def mean(x: Tensor) -> Tensor:  # DDPM, eq. 7
        of_x = at(before.sqrt() * beta / (1 - kept)) * x
        return of_x + at((kept / before).sqrt() * (1 - before) / (1 - kept)) * noisy

    guess = (noisy - at((1 - kept).sqrt()) * predicted) / at(kept.sqrt())
    place = (share + 1) / 2
    log_p, log_q = place * at(beta.log()) + (1 - place) * at(least), at(least)
    distance = (mean(latents) - mean(guess)).square() * (-log_p).exp()
    divergence = 0.5 * (log_p - log_q - 1 + (log_q - log_p).exp() + distance)
    density = 0.5 * (math.log(2 * math.pi) + log_p + distance)  # mean(latents) is x at step 0
    per_number = torch.where((times == 0)[:, None, None, None], density, divergence)
    return per_number.mean() / math.log(2)


@lru_cache(maxsize=8)
def noise_levels(process: GaussianProcess) -> Tensor:
    """Return the share (steps,) of the latents' variance that is left after each step, float64."""
    if process.beta_schedule == "linear":
        beta = torch.linspace(
            process.beta_start, process.beta_end, process.steps, dtype=torch.float64
        )
    else:
        root = torch.linspace(
            process.beta_start**0.5, process.beta_end**0.5, process.steps, dtype=torch.float64
        )
        beta = root.square()
    return (1 - beta).cumprod(0)
