"""Tensors of pixels: crops of many images at once, grey, and the range [-1, 1]."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vqkit.data.preparing import middle

# Fixed-point weights of Pillow's "L" conversion (ITU-R 601): arrays and files agree bit for bit.
_LUMA = (19595, 38470, 7471)


def to_float(images: Tensor) -> Tensor:
    """Map uint8 images of any shape to float32 in [-1, 1]; another type is a `ValueError`."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images.dtype={images.dtype}: expected torch.uint8; nothing to convert")
    return images.to(torch.float32) / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """Map float images in [-1, 1] to uint8: clamp, then round. Undoes `to_float` exactly."""
    if not images.is_floating_point():
        raise ValueError(f"images.dtype={images.dtype}: expected floating point in [-1, 1]")
    return ((images.to(torch.float32).clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


def to_picture(image: Tensor) -> Image.Image:
    """Turn a uint8 tensor (1 or 3, H, W) into a Pillow image of mode "L" or "RGB"."""
    pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(pixels.numpy()))


def center_crop(images: Tensor, crop_size: int) -> Tensor:
    """Cut the middle square of (..., H, W); of an odd rest the larger part lies below and right."""
    top, left = middle(images.shape, crop_size)
    return images[..., top : top + crop_size, left : left + crop_size].contiguous()


def crop_each(images: Tensor, tops: Tensor, lefts: Tensor, crop_size: int) -> Tensor:
    """Cut a square out of every image of (b, C, H, W) at its own corner: (b, C, size, size)."""
    span = torch.arange(crop_size)
    number = torch.arange(len(images))[:, None, None]
    rows = (tops[:, None] + span)[:, :, None]
    columns = (lefts[:, None] + span)[:, None, :]
    return images.permute(0, 2, 3, 1)[number, rows, columns].permute(0, 3, 1, 2).contiguous()


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Convert uint8 (N, 1 or 3, H, W) to `channels`: grey by luma as Pillow, colour by copies."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    grey = torch.empty_like(images[:, :1])
    for start in range(0, len(images), 4096):  # int32 copies of a whole data set would be large
        part = images[start : start + 4096].to(torch.int32)
        luma = sum(weight * part[:, i] for i, weight in enumerate(_LUMA)) + 0x8000
        grey[start : start + 4096, 0] = torch.as_tensor(luma >> 16).to(torch.uint8)
    return grey
