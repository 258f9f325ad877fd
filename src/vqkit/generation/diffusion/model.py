"""A diffusion model of latents: its network, the statistics it works with, and guidance.

Shapes: B images, C channels of the latents, h w positions of the grid.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from vqkit.config import require
from vqkit.config.diffusion import DiffusionConfig, DiffusionSampling, GaussianProcess
from vqkit.generation.diffusion.networks import build_network

Prediction = Callable[[Tensor, Tensor], Tensor]
"""Normalised noisy latents (B, C, h, w) and times (B,) in [0, 1000] to the network's answer."""


class LatentModel(nn.Module):
    """The network of a diffusion model, and the mean and spread of the latents it was made for.

    Args:
        config: Network and process.
        channels: C of the latents.
        grid: (h, w).
        num_classes: Classes that it learns; 0 for none.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: DiffusionConfig,
        *,
        channels: int,
        grid: tuple[int, int],
        num_classes: int,
    ) -> None:
        super().__init__()
        require(channels >= 1, f"channels={channels}", "must be at least 1")
        require(min(grid) >= 1, f"grid={grid}", "must have at least 1 row and 1 column")
        self.config, self.channels, self.grid = config, channels, grid
        self.num_classes = num_classes
        outputs = channels * (2 if self.learns_variance else 1)
        self.network = build_network(
            config.network, channels=channels, outputs=outputs, grid=grid, num_classes=num_classes
        )
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    @property
    def learns_variance(self) -> bool:
        """Whether the second half of what the network predicts is a variance."""
        process = self.config.process
        return isinstance(process, GaussianProcess) and process.variance == "learned"

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Take the mean and spread (C,) of the training latents, if the settings use them.

        Raises:
            ValueError: they are not finite, or a spread is not above 0.
        """
        good = bool(mean.isfinite().all() and std.isfinite().all() and (std > 0).all())
        require(
            good and len(mean) == len(std) == self.channels,
            "latent_mean, latent_std of the token set",
            f"expected {self.channels} finite numbers each, spreads above 0; some latents are NaN, "
            "infinite, or all the same: tokenize again",
        )
        if self.config.normalise == "statistics":
            self.mean.copy_(mean)
            self.std.copy_(std)

    def normalise(self, latents: Tensor) -> Tensor:
        """Return latents (B, C, h, w) with mean 0 and spread 1 in each channel."""
        return (latents - self.mean[:, None, None]) / self.std[:, None, None]

    def denormalise(self, latents: Tensor) -> Tensor:
        """Return the latents (B, C, h, w) that `normalise` would have made these of."""
        return latents * self.std[:, None, None] + self.mean[:, None, None]

    def forward(self, noisy: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Predict from normalised noisy latents (B, C, h, w), times (B,) in [0, 1000], labels (B,).

        Returns (B, C, h, w), or twice the channels with learned variances; `num_classes` as a label
        means no class.
        """
        out: Tensor = self.network(noisy, times, labels)
        return out

    def guided(self, labels: Tensor, sampling: DiffusionSampling) -> Prediction:
        """Return how samples of the classes (B,) are predicted, with classifier-free guidance.

        Where the network predicts a variance, that of the asked class is taken.
        """
        scale, first = sampling.guidance, sampling.guidance_channels or self.channels
        require(
            first <= self.channels,
            f"guidance_channels={first}",
            f"the latents have {self.channels} channels",
        )
        require(
            scale == 1 or self.num_classes > 0,
            f"guidance={scale}",
            "this model was trained without classes; leave it out",
        )
        require(
            scale == 1 or self.config.label_dropout > 0,
            f"guidance={scale}",
            "this model was trained with label_dropout=0 and knows no free prediction; leave it "
            "out, or train with label_dropout=0.1",
        )
        free = torch.full_like(labels, self.num_classes)
        plain = scale == 1 or bool((labels == free).all())

        def predict(noisy: Tensor, times: Tensor) -> Tensor:
            if plain:
                return self._precise(noisy, times, labels, sampling)
            both = self._precise(
                noisy.repeat(2, 1, 1, 1), times.repeat(2), torch.cat([labels, free]), sampling
            )
            asked, unasked = both.chunk(2)
            return guide(asked, unasked, scale, first)

        return predict

    def _precise(
        self, noisy: Tensor, times: Tensor, labels: Tensor, sampling: DiffusionSampling
    ) -> Tensor:
        half = sampling.precision == "bf16"
        with torch.autocast(noisy.device.type, torch.bfloat16) if half else nullcontext():
            return self(noisy, times, labels).float()


def guide(asked: Tensor, free: Tensor, scale: float, channels: int) -> Tensor:
    """Return `free + scale × (asked - free)` in the first `channels`, `asked` in the others.

    Classifier-free guidance (arXiv:2207.12598, eq. 6, with scale = 1 + w). The published code of
    DiT guides three channels, the colours of images, of latents that have four.
    """
    first = free[:, :channels] + scale * (asked[:, :channels] - free[:, :channels])
    return torch.cat([first, asked[:, channels:]], dim=1)
