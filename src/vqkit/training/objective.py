"""What training minimises, less the discriminator: how far images are off, and what codes cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vqkit.config import ObjectiveConfig
from vqkit.metrics.lpips import LPIPS, load_lpips
from vqkit.models import TokenizerOutput
from vqkit.quantizers import ranks


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars of one (micro-)batch."""

    image: Tensor
    """Reconstruction and perceptual loss, weighted: a function of the output images alone."""
    codes: Tensor
    """The terms of the quantizer, weighted."""
    weighted: dict[str, Tensor]
    """What `image` and `codes` are sums of: `reconstruction`, `lpips_weighted`, and every term of
    the quantizer as `quantizer.<path>`, weights applied."""
    raw: dict[str, Tensor]
    """Unweighted, without gradient, on images in [-1, 1]: `mse` and `l1`, means over elements, and
    `lpips`, mean over images."""

    @property
    def total(self) -> Tensor:
        """What is differentiated where there is no discriminator."""
        return self.image + self.codes


class Objective(Protocol):
    """Anything the loop can minimise."""

    def __call__(self, images: Tensor, output: TokenizerOutput) -> Losses:
        """Return the losses of `images` (B, C, H, W) in [-1, 1] and what the model made of them."""


class TokenizerObjective:
    """Reconstruction and perceptual loss of `ObjectiveConfig` plus `output.quantized.terms`.

    `mse` is divided by the variance of the training pixels in [0, 1] (the VQ-VAE code). `log_mse`
    is SQ-VAE's (D/2)·log(S), S the squared error summed over an image, mean over the batch, and
    D = C·H·W (arXiv:2205.07547). It is no mean over images, so S is first averaged over all
    processes: several processes then give the gradient of one process on the whole batch.
    """

    def __init__(self, config: ObjectiveConfig, device: torch.device | None = None) -> None:
        """Read the weights of LPIPS if they are needed; without them this is a `ValueError`."""
        self.config = config
        self.lpips: LPIPS | None = None
        if config.perceptual == "lpips":
            self.lpips = load_lpips(config.lpips_weights).to(device)

    def __call__(self, images: Tensor, output: TokenizerOutput) -> Losses:
        """Return the losses; images and `output.images` are (B, C, H, W) in [-1, 1]."""
        error = output.images.float() - images
        mse, l1 = error.square().mean(), error.abs().mean()
        raw = {"mse": mse.detach(), "l1": l1.detach()}
        if self.config.reconstruction == "mse":
            image = mse / self.config.variance
        elif self.config.reconstruction == "l1":
            image = l1
        else:
            image = _log_mse(error)
        weighted = {"reconstruction": image}
        if self.lpips is not None:
            distance = self.lpips(output.images, images).float().mean()
            raw["lpips"] = distance.detach()
            weighted["lpips_weighted"] = self.config.perceptual_weight * distance
            image = image + weighted["lpips_weighted"]
        codes = torch.zeros_like(image)
        for path, term in output.quantized.terms.items():
            paid = weighted[f"quantizer.{path}"] = self.config.quantizer_weight * term
            codes = codes + paid
        return Losses(image, codes, weighted, raw)


def _log_mse(error: Tensor) -> Tensor:
    elements = error[0].numel()
    here = error.square().sum() / len(error)
    everywhere = ranks.sum_over_ranks(here.detach()) / ranks.world_size()
    # The value is log(everywhere); the gradient is that of this process's share of it.
    return elements / 2 * (everywhere.log() + (here - here.detach()) / everywhere)
