"""The PatchGAN discriminator of pix2pix (arXiv:1611.07004), with the layers of VQGAN's code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from vqkit.config import AdversarialConfig, require
from vqkit.config.adversarial import Norm
from vqkit.quantizers import ranks

WIDEST = 8
"""Largest number of channels, in multiples of the first layer's."""


class PatchDiscriminator(nn.Module):
    """Judges every patch of an image: high logits for real, low for fake.

    `num_layers` convolutions of 4×4 with stride 2 and two with stride 1, LeakyReLU(0.2) between
    them. Channels double from `width` to at most 8 times that; all but the first and the last
    convolution are normalised, and where a normalisation follows they have no bias. `spectral`
    divides the weights of all convolutions by their largest singular value instead, estimated by
    one power iteration in every training forward. Weights start
    at N(0, 0.02), those of the normalisation at N(1, 0.02); biases of convolutions as torch does.
    """

    def __init__(self, config: AdversarialConfig, image_channels: int) -> None:
        super().__init__()
        self.image_channels, self.num_layers = image_channels, config.num_layers
        channels = config.width
        first = nn.Conv2d(image_channels, channels, 4, stride=2, padding=1)
        layers: list[nn.Module] = [first, nn.LeakyReLU(0.2, inplace=True)]
        for number in range(1, config.num_layers + 1):
            wider = config.width * min(2**number, WIDEST)
            stride = 2 if number < config.num_layers else 1
            bias = config.norm in ("none", "spectral")
            layers.append(nn.Conv2d(channels, wider, 4, stride=stride, padding=1, bias=bias))
            layers += _normalisation(config.norm, wider)
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            channels = wider
        layers.append(nn.Conv2d(channels, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)
        if config.norm == "spectral":
            for convolution in [layer for layer in self.layers if isinstance(layer, nn.Conv2d)]:
                spectral_norm(convolution)

    @property
    def patch_size(self) -> int:
        """Side in pixels of the patch that one logit sees: 16, 34, 70 for 1, 2, 3 layers."""
        side = 1
        for stride in (1, 1, *[2] * self.num_layers):
            side = (side - 1) * stride + 4
        return side

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, 1, H/s - 2, W/s - 2), s = 2**num_layers, halves rounded down.

        Args:
            images: (B, image_channels, H, W) in [-1, 1].

        Raises:
            ValueError: another number of channels, or sides below 3·s, which leave no logit.
        """
        smallest = 3 * 2**self.num_layers
        require(
            images.ndim == 4 and images.shape[1] == self.image_channels,
            f"images of shape {tuple(images.shape)}",
            f"expected (B, {self.image_channels}, H, W)",
        )
        require(
            min(images.shape[2:]) >= smallest,
            f"adversarial.num_layers={self.num_layers} with images of "
            f"{images.shape[2]}×{images.shape[3]} pixels",
            f"needs at least {smallest}×{smallest}; use fewer layers",
        )
        logits: Tensor = self.layers(images)
        return logits


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the images of all processes, on any device and backend.

    In training x is (b, C, H, W), b at least 1 and free to differ between processes. Mean and
    variance are those of the joined batch, gradients pass through both, and the running statistics
    are the same bits on all processes. Each process's gradient is that of the sum of all
    processes' losses, so that averaging gradients gives that of the mean loss. All processes must
    call it equally often. With one process, and in evaluation, it is `nn.BatchNorm2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map, of the shape and type of `x`."""
        if not self.training or ranks.world_size() == 1:
            return super().forward(x)
        joined = self._joined
        if torch.compiler.is_compiling():  # cannot trace collectives
            joined = torch.compiler.disable(joined)
        out: Tensor = joined(x)
        return out

    def _joined(self, x: Tensor) -> Tensor:
        wide = x.float()
        here = wide.new_full((1,), x.numel() // x.shape[1])
        sums = _SumOverRanks.apply(torch.cat([wide.sum((0, 2, 3)), here]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        # A second pass: E[x²] - E[x]² would lose the digits of a small spread around a large mean.
        centred = wide - _as_map(mean)
        variance = _SumOverRanks.apply(centred.square().sum((0, 2, 3))) / count
        self._count(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * _as_map(scale) + _as_map(self.bias)).to(x.dtype)

    @torch.no_grad()
    def _count(self, mean: Tensor, variance: Tensor) -> None:
        assert self.momentum is not None  # as built here
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


class _SumOverRanks(torch.autograd.Function):
    """The sum over processes; its gradient is the sum over processes too, and differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return ranks.sum_over_ranks(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _SumOverRanks.apply(gradients[0])


def _as_map(channels: Tensor) -> Tensor:
    return channels.view(1, -1, 1, 1)


def _normalisation(norm: Norm, channels: int) -> list[nn.Module]:
    if norm in ("none", "spectral"):
        return []
    return [nn.BatchNorm2d(channels) if norm == "batch" else SyncedBatchNorm(channels)]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
