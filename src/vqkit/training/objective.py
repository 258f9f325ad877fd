"""What training minimises: a reconstruction loss plus the quantizer's own terms.

Kept apart from the loop, so that a loss with more parts (perceptual, adversarial) is another
callable of the same form: `losses = objective(images, output)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vqkit.config import ObjectiveConfig
from vqkit.models import TokenizerOutput
from vqkit.quantizers import ranks


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars of one (micro-)batch."""

    total: Tensor
    """What is differentiated: the sum of `weighted`."""
    weighted: dict[str, Tensor]
    """`reconstruction` and every term of the quantizer as `quantizer.<path>`, weights applied."""
    raw: dict[str, Tensor]
    """Unweighted, without gradient, on images in [-1, 1]: `mse` and `l1`, means over elements."""


class Objective(Protocol):
    """Anything the loop can minimise."""

    def __call__(self, images: Tensor, output: TokenizerOutput) -> Losses:
        """Return the losses of `images` (B, C, H, W) in [-1, 1] and what the model made of them."""


class TokenizerObjective:
    """Reconstruction loss of `ObjectiveConfig` plus `output.quantized.terms`.

    `mse` is divided by the variance of the training pixels in [0, 1] (the VQ-VAE code). `log_mse`
    is SQ-VAE's (D/2)·log(S), S the squared error summed over an image, mean over the batch, and
    D = C·H·W (arXiv:2205.07547). It is no mean over images, so S is first averaged over all
    processes: several processes then give the gradient of one process on the whole batch.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config

    def __call__(self, images: Tensor, output: TokenizerOutput) -> Losses:
        """Return the losses; images and `output.images` are (B, C, H, W) in [-1, 1]."""
        error = output.images.float() - images
        mse, l1 = error.square().mean(), error.abs().mean()
        if self.config.reconstruction == "mse":
            reconstruction = mse / self.config.variance
        elif self.config.reconstruction == "l1":
            reconstruction = l1
        else:
            reconstruction = _log_mse(error)
        weighted = {"reconstruction": reconstruction}
        for path, term in output.quantized.terms.items():
            weighted[f"quantizer.{path}"] = term
        total = torch.stack(list(weighted.values())).sum()
        return Losses(total, weighted, {"mse": mse.detach(), "l1": l1.detach()})


def _log_mse(error: Tensor) -> Tensor:
    elements = error[0].numel()
    here = error.square().sum() / len(error)
    everywhere = ranks.sum_over_ranks(here.detach()) / ranks.world_size()
    # The value is log(everywhere); the gradient is that of this process's share of it.
    return elements / 2 * (everywhere.log() + (here - here.detach()) / everywhere)
