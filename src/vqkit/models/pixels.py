"""What goes into a tokenizer: the checks of images, and their conversion to floats."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vqkit.config import require
from vqkit.data import to_float

TOLERANCE = 1e-3
"""How far images may reach beyond [-1, 1]; resizing and rounding overshoot that much."""


def check_shape(images: Tensor, channels: int) -> None:
    """Raise `ValueError` unless `images` is a tensor (B, channels, H, W) with no empty side."""
    require(isinstance(images, Tensor), f"images={type(images).__name__}", "expected a tensor")
    shape = tuple(images.shape)
    require(
        images.dim() == 4,
        f"images.shape={shape}",
        "expected (B, C, H, W)" + ("; add a batch with images[None]" if images.dim() == 3 else ""),
    )
    require(
        shape[1] == channels,
        f"images.shape={shape}",
        f"this model takes {channels} channels, in the order (B, C, H, W)",
    )
    require(min(shape) >= 1, f"images.shape={shape}", "is empty")


def to_unit_range(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return images as floats in [-1, 1]: uint8 is converted, floats are checked.

    Raises `ValueError` for other types, for NaN or infinity, and for values outside [-1, 1].
    """
    if images.dtype == torch.uint8:
        return to_float(images).to(dtype)
    require(
        images.is_floating_point(),
        f"images.dtype={images.dtype}",
        "expected uint8 in [0, 255], or floats in [-1, 1]",
    )
    low, high = (value.item() for value in images.aminmax())  # NaN wins in both
    require(
        low >= -1 - TOLERANCE and high <= 1 + TOLERANCE,
        f"images in [{low:.4g}, {high:.4g}]",
        "expected finite floats in [-1, 1]; convert pixels of [0, 255] with images / 127.5 - 1, "
        "those of [0, 1] with images * 2 - 1",
    )
    return images.to(dtype)


def pad_to_stride(images: Tensor, stride: int) -> Tensor:
    """Repeat the last row and column until height and width are multiples of `stride`."""
    height, width = images.shape[-2:]
    bottom, right = -height % stride, -width % stride
    if bottom == right == 0:
        return images
    return F.pad(images, (0, right, 0, bottom), mode="replicate")
