"""PSNR, SSIM, l1 and l2 of each image, and their means over a set that is never held in memory."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from vqkit.metrics.protocol import DEFAULT, Protocol, Rounding
from vqkit.metrics.reduction import sum_over_processes

NAMES = ("psnr", "ssim", "l1", "l2")


def to_bytes(images: Tensor, rounding: Rounding = "round") -> Tensor:
    """Clamp float images in [-1, 1] and turn them into uint8; uint8 passes through.

    `round` takes the nearest byte (halves to even), `truncate` the one below. NaN and infinity are
    a `ValueError`: they would pass for black or white.
    """
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images.dtype={images.dtype}: expected uint8, or float in [-1, 1]")
    if not bool(images.isfinite().all()):
        raise ValueError("images: hold NaN or infinity; the model that made them has diverged")
    values = (images.float().clamp(-1, 1) + 1) * 127.5
    return (values.round() if rounding == "round" else values.floor()).to(torch.uint8)


def mean_absolute_error(images: Tensor, originals: Tensor) -> Tensor:
    """Return the mean of |difference| of each image, (B,) float64.

    Both sides are (B, C, H, W), uint8 (taken as n/255) or float in [0, 1].
    """
    x, y = _pair(images, originals)
    return (x - y).abs().flatten(1).mean(1)


def mean_squared_error(images: Tensor, originals: Tensor) -> Tensor:
    """Return the mean squared difference of each image, (B,) float64.

    Inputs as `mean_absolute_error`.
    """
    x, y = _pair(images, originals)
    return (x - y).square().flatten(1).mean(1)


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Return 10·log10(1 / MSE) of each image in dB, (B,) float64, for values in [0, 1].

    Inputs as `mean_absolute_error`. Equal images give infinity, so that a mean over images needs a
    cap (`Protocol.psnr_cap`).
    """
    return -10 * mean_squared_error(images, originals).log10()


def ssim(
    images: Tensor,
    originals: Tensor,
    *,
    window: int = 11,
    sigma: float = 1.5,
    data_range: float = 1.0,
) -> Tensor:
    """Return the structural similarity of each image in [-1, 1], (B,) float64.

    Wang, Bovik, Sheikh, Simoncelli 2004 (doi:10.1109/TIP.2003.819861): Gaussian window, K1 = 0.01,
    K2 = 0.03, population covariance, every channel on its own, mean over all windows that lie
    inside the image and over channels. Inputs as `mean_absolute_error`; an image smaller than the
    window is a `ValueError`.
    """
    x, y = _pair(images, originals)
    if min(x.shape[-2:]) < window:
        raise ValueError(
            f"images of {x.shape[-2]}×{x.shape[-1]} pixels: SSIM needs at least {window}×{window}; "
            f"use larger images or leave SSIM out"
        )
    offsets = torch.arange(window, dtype=torch.float64) - window // 2
    weights = torch.exp(-0.5 * (offsets / sigma).square())
    taps = [float(weight) for weight in weights / weights.sum()]
    mean_x, mean_y = _blur(x, taps), _blur(y, taps)
    # float64 keeps the digits that E[x²] - E[x]² cancels.
    variance_x = _blur(x.square(), taps) - mean_x.square()
    variance_y = _blur(y.square(), taps) - mean_y.square()
    covariance = _blur(x * y, taps) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).flatten(1).mean(1)


class ReconstructionScores:
    """Means of PSNR, SSIM, l1 and l2 over images that come in batches, under one protocol.

    Holds ten numbers, whatever the size of the set. Several processes each update their own with
    their share of the images and call `reduce()` together.
    """

    def __init__(self, protocol: Protocol = DEFAULT) -> None:
        self.protocol = protocol
        # Sum and count of each metric in turn, then exact images, then pixels.
        self._totals = torch.zeros(2 * len(NAMES) + 2, dtype=torch.float64)

    def update(self, images: Tensor, originals: Tensor) -> None:
        """Count reconstructions (B, C, H, W), float in [-1, 1] or uint8; originals are uint8."""
        if originals.dtype != torch.uint8:
            raise ValueError(f"originals.dtype={originals.dtype}: originals are uint8")
        protocol = self.protocol
        x = to_bytes(images, protocol.rounding)
        num_images, _, height, width = originals.shape
        decibels = psnr(x, originals)
        scores = {
            "psnr": decibels.clamp(max=protocol.psnr_cap),
            "l1": mean_absolute_error(x, originals),
            "l2": mean_squared_error(x, originals),
        }
        if min(height, width) >= protocol.ssim_window:
            scores["ssim"] = ssim(
                x,
                originals,
                window=protocol.ssim_window,
                sigma=protocol.ssim_sigma,
                data_range=protocol.ssim_range,
            )
        for index, name in enumerate(NAMES):
            if name in scores:
                self._totals[2 * index] += scores[name].sum().cpu()
                self._totals[2 * index + 1] += num_images
        self._totals[-2] += decibels.isinf().sum().cpu()
        self._totals[-1] += num_images * height * width

    def reduce(self) -> ReconstructionScores:
        """Return the scores of all processes together; this object keeps its own share."""
        total = copy(self)
        total._totals = sum_over_processes(self._totals)
        return total

    def mean(self, name: str) -> float | None:
        """Return the mean `psnr` (dB), `ssim`, `l1` or `l2` (of [0, 1]); None without images."""
        total, count = self._totals[2 * NAMES.index(name)], self.count(name)
        return float(total) / count if count else None

    def count(self, name: str) -> int:
        """Return how many images that metric counted (SSIM leaves out images below its window)."""
        return int(self._totals[2 * NAMES.index(name) + 1])

    @property
    def num_images(self) -> int:
        """Images seen."""
        return self.count("l2")

    @property
    def num_exact(self) -> int:
        """Images rebuilt without any error, which entered PSNR's mean at the cap."""
        return int(self._totals[-2])

    @property
    def num_pixels(self) -> int:
        """Pixels seen: height × width, whatever the number of channels."""
        return int(self._totals[-1])


def _pair(images: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
    if images.shape != originals.shape or images.ndim != 4:
        raise ValueError(
            f"images of shape {tuple(images.shape)} against {tuple(originals.shape)}: "
            f"expected twice the same (B, C, H, W)"
        )
    return _unit(images), _unit(originals)


def _unit(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images.double() / 255
    if not images.is_floating_point():
        raise ValueError(f"images.dtype={images.dtype}: expected uint8, or float in [0, 1]")
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"images between {float(images.min()):g} and {float(images.max()):g}: "
            f"expected values in [0, 1]; for images in [-1, 1] use to_bytes(images) first"
        )
    return images.double()


def _blur(x: Tensor, taps: list[float]) -> Tensor:
    # Sums of shifted views: five times faster than a float64 convolution on a CPU, and every pixel
    # is added in the same order whatever the batch size.
    for axis in (-1, -2):
        length = x.shape[axis] - len(taps) + 1
        total = x.narrow(axis, 0, length) * taps[0]
        for shift, tap in enumerate(taps[1:], start=1):
            total.add_(x.narrow(axis, shift, length), alpha=tap)
        x = total
    return x
