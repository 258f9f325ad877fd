"""PSNR, SSIM, l1 and l2 of each image, and their means over a set that is never held in memory."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from vqkit.data import to_float
from vqkit.metrics.pixels import grey, luma, shrink, side_unit
from vqkit.metrics.pools import Pools
from vqkit.metrics.protocol import DEFAULT, Protocol, SsimKernel
from vqkit.metrics.reduction import sum_over_processes

NAMES = ("psnr", "ssim", "l1", "l2")
CACHED = 2**18
"""Values of a side that SSIM works on at a time: what it computes of them stays in the cache."""


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
    kernel: SsimKernel = "gaussian",
) -> Tensor:
    """Return the structural similarity of each image in [-1, 1], (B,) float64.

    Wang, Bovik, Sheikh, Simoncelli 2004 (doi:10.1109/TIP.2003.819861): Gaussian window, K1 = 0.01,
    K2 = 0.03, population covariance, every channel on its own, mean over all windows that lie
    inside the image and over channels. `kernel="uniform"` is what scikit-image does by default:
    equal weights and the sample covariance. Inputs as `mean_absolute_error`; an image smaller than
    the window is a `ValueError`.
    """
    x, y = _pair(images, originals)
    if min(x.shape[-2:]) < window:
        raise ValueError(
            f"images of {x.shape[-2]}×{x.shape[-1]} pixels: SSIM needs at least {window}×{window}; "
            f"use larger images or leave SSIM out"
        )
    few = max(1, CACHED // x[0].numel()) if len(x) else 1
    settings = (_window(window, sigma, kernel), data_range)
    parts = zip(x.split(few), y.split(few), strict=True)
    return torch.cat([_similarities(a, b, *settings) for a, b in parts])


def _similarities(
    x: Tensor, y: Tensor, window: tuple[list[float], float], data_range: float
) -> Tensor:
    """Return SSIM of each image, given the weights of a window and the factor of covariances."""
    taps, unbiased = window
    mean_x, mean_y = _blur(x, taps), _blur(y, taps)
    product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    # float64 keeps the digits that E[x²] - E[x]² cancels. Only the sum of both variances is needed.
    variances = (_blur(x.square().add_(y.square()), taps) - squares) * unbiased
    covariance = (_blur(x * y, taps) - product) * unbiased
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * product + c1) / (squares + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return (luminance * structure).flatten(1).mean(1)


class ReconstructionScores:
    """Means of PSNR, SSIM, l1 and l2 over images that come in batches, under one protocol.

    Holds a few numbers, whatever the size of the set. Several processes each update their own with
    their share of the images and call `reduce()` together. `first` is the place of the first image
    in the whole set, which matters where a protocol averages consecutive images first.
    """

    def __init__(self, protocol: Protocol = DEFAULT, *, first: int = 0) -> None:
        self.protocol = protocol
        # Sum and count of each metric in turn, then exact images, then pixels.
        self._totals = torch.zeros(2 * len(NAMES) + 2, dtype=torch.float64)
        self._pools = (
            None if protocol.batch is None else Pools(protocol.batch, protocol.psnr_cap, first)
        )

    def update(self, images: Tensor, originals: Tensor) -> None:
        """Count reconstructions (B, C, H, W), float in [-1, 1] or uint8; originals are uint8."""
        if originals.dtype != torch.uint8:
            raise ValueError(f"originals.dtype={originals.dtype}: originals are uint8")
        _check_shapes(images, originals)
        protocol = self.protocol
        x = side_unit(images, protocol)
        y = side_unit(originals, protocol, original=True)
        num_images, _, height, width = originals.shape
        l1, l2 = _errors(x, y)
        error = l2
        if protocol.psnr_colour == "luma":
            error = _errors(luma(x), luma(y))[1]
        decibels = -10 * (error + protocol.psnr_epsilon).log10()
        if protocol.errors == "outputs":
            l1, l2 = _errors(_outputs(images), _outputs(originals))
        similar = _similarity(x, y, protocol)
        capped = decibels.clamp(max=protocol.psnr_cap)
        for index, scores in enumerate((capped, similar, l1, l2)):
            if scores is not None:
                self._totals[2 * index] += scores.sum().cpu()
                self._totals[2 * index + 1] += num_images
        self._totals[-1] += num_images * height * width
        if self._pools is None:
            self._totals[-2] += decibels.isinf().sum().cpu()
        else:
            self._pools.update(error, similar, x[0].numel())

    def reduce(self) -> ReconstructionScores:
        """Return the scores of all processes together; this object keeps its own share."""
        total = copy(self)
        total._totals = sum_over_processes(self._totals)
        total._pools = None if self._pools is None else self._pools.reduce()
        return total

    def mean(self, name: str) -> float | None:
        """Return the mean `psnr` (dB), `ssim`, `l1` or `l2` (of [0, 1]); None without images."""
        total, count = self._totals[2 * NAMES.index(name)], self.count(name)
        if count and self._pools is not None and name == "psnr":
            return self._pools.psnr()
        if count and self._pools is not None and name == "ssim":
            return self._pools.ssim()
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


def _similarity(x: Tensor, y: Tensor, protocol: Protocol) -> Tensor | None:
    """Return SSIM of each image under a protocol, or None for images below its window."""
    if protocol.ssim_colour == "grey":
        x, y = grey(x), grey(y)
    if protocol.ssim_shrink is not None:
        x, y = shrink(x, protocol.ssim_shrink), shrink(y, protocol.ssim_shrink)
    if min(x.shape[-2:]) < protocol.ssim_window:
        return None
    return ssim(
        x,
        y,
        window=protocol.ssim_window,
        sigma=protocol.ssim_sigma,
        data_range=protocol.ssim_range,
        kernel=protocol.ssim_kernel,
    )


def _errors(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean absolute and the mean squared difference of each image, (B,) each."""
    difference = (x - y).flatten(1)
    return difference.abs().mean(1), difference.square().mean(1)


def _outputs(images: Tensor) -> Tensor:
    """Return one side as float64 in [-1, 1], unclamped."""
    return (to_float(images) if images.dtype == torch.uint8 else images).double()


def _check_shapes(images: Tensor, originals: Tensor) -> None:
    if images.shape != originals.shape or images.ndim != 4:
        raise ValueError(
            f"images of shape {tuple(images.shape)} against {tuple(originals.shape)}: "
            f"expected twice the same (B, C, H, W)"
        )


def _pair(images: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
    _check_shapes(images, originals)
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


def _window(size: int, sigma: float, kernel: SsimKernel) -> tuple[list[float], float]:
    """Return the weights along one side, and the factor that makes a covariance unbiased."""
    if kernel == "uniform":
        return [1 / size] * size, size**2 / (size**2 - 1)
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-0.5 * (offsets / sigma).square())
    return [float(weight) for weight in weights / weights.sum()], 1.0


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
