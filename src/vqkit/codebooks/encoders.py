"""What turns images into a grid of features: the protocol, and what all kinds of it share.

`encoders_modules` has modules of torch and the encoders of tokenizers, `encoders_transformers`
published vision models, `pixels` the encoder that needs no weights.

Legend: B images, C channels, H W pixels, h w positions of the grid, D dim, n tokens.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.config import require
from vqkit.data import ImageSet

POOL = 4
"""Positions along each side that VQGAN-LC's code averages CLIP's grid to: 16 features an image."""


class PatchEncoder(ABC):
    """Images to features, one for every position of a grid. Subclass it for an encoder of your own.

    It is called with uint8 images (B, C, H, W), on any device, and returns float32 (B, D, h, w). It
    holds no state: an image gives the same features whatever came before it.
    """

    size: int | None = None
    """Side of the square images it takes; None: any size."""
    resize: int | None = None
    """Shorter side that `extract` gives images before it cuts the middle square of `size`."""
    pool: int | None = None
    """Positions along each side that `extract` averages the grid to by default; None: all stay."""
    autocasts = True
    """Whether `precision="bf16"` makes it faster."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features (B, D, h, w), float32, of uint8 images (B, C, H, W)."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels per position of the grid, along each side."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return JSON values that tell this encoder from others: kind, name, SHA-256, options."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device("cpu")

    @abstractmethod
    def to(self, device: str | torch.device) -> None:
        """Move it."""

    def prepared(self, images: ImageSet, file: Path) -> PatchEncoder:
        """Return this encoder as fitted to the images, which it keeps in `file`; most need not."""
        return self

    def restored(self, file: Path) -> PatchEncoder:
        """Return this encoder as `prepared` has left it in `file`."""
        return self


def grid_of_tokens(
    tokens: Tensor,
    who: str,
    shape: tuple[int, int] | None = None,
    *,
    extras: tuple[int, ...] = (0, 1, 2),
) -> Tensor:
    """Turn tokens (B, n, D), row by row, into a grid (B, D, h, w).

    `extras` are how many tokens may stand before those of the grid (class, registers). A grid of
    `shape` (h, w) is looked for first, then a square one; `ValueError` if none fits.
    """
    count = tokens.shape[1]
    squares = [(math.isqrt(max(count - e, 0)),) * 2 for e in extras]
    for h, w in ([shape] if shape is not None else []) + squares:
        extra = count - h * w
        if h * w > 0 and extra in extras:
            return tokens[:, extra:].transpose(1, 2).unflatten(2, (h, w))
    expected = "a square grid" if shape is None else f"{shape[0]} x {shape[1]} positions"
    raise ValueError(
        f"{who}: gives {count} tokens for an image, which are not {expected} after at most "
        f"{max(extras)} class and register tokens; wrap the model in a module that returns "
        "(B, D, h, w), and pass that to ModuleEncoder"
    )


def pool_grid(grid: Tensor, pool: int | None) -> Tensor:
    """Average a grid (B, D, h, w) to `pool` x `pool` positions; None or 0 leaves it as it is.

    Where `pool` divides the sides this is AvgPool, as in VQGAN-LC's code; elsewhere neighbouring
    windows overlap by a row. A grid that is too small is a `ValueError`.
    """
    if not pool:
        return grid
    h, w = grid.shape[-2:]
    require(
        min(h, w) >= pool,
        f"pool={pool}",
        f"the encoder gives {h} x {w} positions for an image; lower pool, or leave it out with 0",
    )
    return F.adaptive_avg_pool2d(grid, pool)


def hash_state(state: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal digits, of tensors by name: names, types and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        require(isinstance(tensor, Tensor), f"state {name}", "is no tensor and cannot be hashed")
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def with_planes(images: Tensor, channels: int) -> Tensor:
    """Give grey images three equal planes where a model wants colour; others are a `ValueError`."""
    have = images.shape[1]
    if have == 1 and channels == 3:
        return images.expand(-1, 3, -1, -1)
    require(
        have == channels,
        f"data.channels={have}",
        f"the encoder takes images of {channels} channels; set data.channels={channels}",
    )
    return images


def check_images(images: Tensor, size: int | None) -> None:
    """Raise `ValueError` unless images are uint8 (B, C, H, W), square of `size` if there is one."""
    require(
        images.dtype == torch.uint8 and images.dim() == 4,
        f"images: {images.dtype} of shape {tuple(images.shape)}",
        "expected uint8 (B, C, H, W)",
    )
    require(
        size is None or images.shape[-2:] == (size, size),
        f"images of {images.shape[-2]} x {images.shape[-1]} pixels",
        f"this encoder takes {size} x {size}; extract resizes and cuts them so",
    )


def check_sizes(size: int | None, resize: int | None) -> None:
    """Raise `ValueError` unless the sizes are at least 1 and the shorter side holds the crop."""
    for name, value in (("size", size), ("resize", resize)):
        require(value is None or value >= 1, f"{name}={value}", "must be at least 1")
    require(
        resize is None or (size is not None and resize >= size),
        f"resize={resize}",
        f"is the shorter side before the crop to size={size}; give as many pixels or more",
    )


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter or buffer, else the CPU."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")
