"""What is done to token maps in training: erasing, shifts, mixing of two maps, soft classes.

Mixup (arXiv:1710.09412), CutMix (1905.04899) and random erasing (1708.04896), in the form in which
MAE fine-tunes (2111.06377, appendix A.2), on normalised maps instead of images: a position of a map
is what a patch of pixels is there.

Shapes: B maps, D channels, h x w positions, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vqkit.config.classification import Augmentation

_AREA = (0.02, 1 / 3)
"""Share of a map that is erased, least and most."""
_ASPECT = 0.3
"""Least height over width of what is erased; its inverse is the most."""


def augmented(
    maps: Tensor, labels: Tensor, classes: int, settings: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return maps to train on and their targets.

    Args:
        maps: (B, D, h, w), normalised: about zero mean and unit variance.
        labels: (B,) int64.
        classes: K.
        settings: what is done.
        generator: of all draws, on the CPU.

    Returns:
        (B, D, h, w), and (B, K) shares that add up to 1.
    """
    targets = F.one_hot(labels, classes).float()
    targets = targets * (1 - settings.smoothing) + settings.smoothing / classes
    if settings.shift:
        maps = shifted(maps, settings.shift, generator)
    if settings.erase:
        maps = erased(maps, settings.erase, generator)
    if settings.mixup or settings.cutmix:
        maps, share = _mixed(maps, settings, generator)
        targets = share * targets + (1 - share) * targets.flip(0)
    return maps, targets


def shifted(maps: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move every map by its own -most..most rows and columns; edges are repeated."""
    count, _, h, w = maps.shape
    down, right = torch.randint(-most, most + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(h) - down).clamp(0, h - 1).to(maps.device)  # (B, h)
    columns = (torch.arange(w) - right).clamp(0, w - 1).to(maps.device)
    number = torch.arange(count, device=maps.device)[:, None, None]
    moved: Tensor = maps.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None]]
    return moved.permute(0, 3, 1, 2)


def erased(maps: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Fill a rectangle of every map, with the probability `share`, with normal noise."""
    count, _, h, w = maps.shape
    chosen = torch.rand(count, generator=generator) < share
    area = torch.empty(count).uniform_(*_AREA, generator=generator) * (h * w)
    aspect = torch.empty(count).uniform_(math.log(_ASPECT), -math.log(_ASPECT), generator=generator)
    height = (area * aspect.exp()).sqrt().round().clamp(1, h)
    width = (area / aspect.exp()).sqrt().round().clamp(1, w)
    inside = _within(height, h, generator)[:, :, None] & _within(width, w, generator)[:, None]
    inside &= chosen[:, None, None]
    noise = torch.randn(maps.shape, generator=generator).to(maps)
    return torch.where(inside[:, None].to(maps.device), noise, maps)


def _within(lengths: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Place spans of `lengths` (B,) anywhere in 0..size-1; return which places they cover."""
    starts = (torch.rand(len(lengths), generator=generator) * (size - lengths + 1)).floor()
    places = torch.arange(size)
    return (places >= starts[:, None]) & (places < (starts + lengths)[:, None])


def _mixed(
    maps: Tensor, settings: Augmentation, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Mix every map with that at the other end of the batch; return the share of its own."""
    both = settings.mixup > 0 and settings.cutmix > 0
    first = torch.rand((), generator=generator) < 0.5 if both else settings.mixup > 0
    if first:
        share = _beta(settings.mixup, generator)
        return share * maps + (1 - share) * maps.flip(0), share
    share = _beta(settings.cutmix, generator)
    h, w = maps.shape[-2:]
    top, bottom = _cut(h, share, generator)
    left, right = _cut(w, share, generator)
    mixed = maps.clone()
    mixed[:, :, top:bottom, left:right] = maps.flip(0)[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (h * w)  # of what was really cut


def _cut(size: int, share: float, generator: torch.Generator) -> tuple[int, int]:
    """Return a span about a place anywhere, of sqrt(1 - share) of the size, clipped at the ends."""
    length = int(size * math.sqrt(1 - share))
    middle = int(torch.randint(size, (), generator=generator))
    return max(0, middle - length // 2), min(size, middle + (length + 1) // 2)


def _beta(parameter: float, generator: torch.Generator) -> float:
    """Draw from Beta(parameter, parameter), as a ratio of two gamma variates."""
    shapes = torch.full((2,), parameter, dtype=torch.float64)
    own, other = torch._standard_gamma(shapes, generator=generator).tolist()
    total = own + other
    return own / total if total > 0 else float(torch.rand((), generator=generator) < 0.5)
