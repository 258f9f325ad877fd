"""What a protocol looks at: the pixels of reconstructions and originals before they are compared.

Shapes: B images, C channels, H and W pixels. Outputs of a decoder are floats around [-1, 1].
"""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vqkit.data import to_float
from vqkit.metrics.protocol import Protocol, Rounding

LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
"""Weights of R, G, B in Y' of BT.601; its offset of 16/255 cancels in differences."""


def to_bytes(images: Tensor, rounding: Rounding = "round") -> Tensor:
    """Clamp float images in [-1, 1] and turn them into uint8; uint8 passes through.

    `round` takes the nearest byte (halves to even), `half_up` the floor of 127.5 x + 128,
    `truncate` the byte below. NaN and infinity are a `ValueError`: they would pass for black or
    white.
    """
    if images.dtype == torch.uint8:
        return images
    x = _finite(images)
    if rounding == "half_up":
        return (x * 127.5 + 128).clamp(0, 255).floor().to(torch.uint8)
    values = (x.clamp(-1, 1) + 1) * 127.5
    if rounding == "truncate":
        return values.floor().to(torch.uint8)
    if rounding != "round":
        raise ValueError(f"rounding={rounding!r}: makes no bytes; use round, half_up or truncate")
    return values.round().to(torch.uint8)


def outputs_of(originals: Tensor, way: Literal["torch", "numpy"]) -> Tensor:
    """Turn uint8 originals into the floats in [-1, 1] that a data loader gives.

    `torch`: in float32, as ToTensor and Normalize. `numpy`: in float64, rounded to float32 at last.
    The two differ in the last bit, which truncation then sees.
    """
    if way == "numpy":
        return (originals.double() / 127.5 - 1).float()
    return (originals.float() / 255 - 0.5) / 0.5


def side_bytes(images: Tensor, protocol: Protocol, *, original: bool = False) -> Tensor:
    """Return one side (B, C, H, W) as the uint8 pixels that the protocol would write to files.

    Of `rounding=none`, which writes no files for PSNR, these are the bytes that FID sees.
    """
    images = _output(images, protocol, original)
    rounding = protocol.rounding
    if rounding == "none":
        rounding = protocol.fid_rounding or "round"
    pixels = stretch(images) if protocol.stretch == "image" else to_bytes(images, rounding)
    if protocol.colour == "rgb" and pixels.shape[1] == 1:
        pixels = pixels.expand(-1, 3, -1, -1)
    return pixels if protocol.jpeg is None else through_jpeg(pixels, protocol.jpeg)


def side_unit(images: Tensor, protocol: Protocol, *, original: bool = False) -> Tensor:
    """Return one side (B, C, H, W) as PSNR and SSIM see it: float64 in [0, 1]."""
    if protocol.rounding != "none":
        return side_bytes(images, protocol, original=original).double() / 255
    images = _output(images, protocol, original)
    if images.dtype == torch.uint8:
        return images.double() / 255
    # (x + 1) · 127.5 and then / 255 in float32, as VQGAN-LC does.
    return ((_finite(images).clamp(-1, 1) + 1) * 127.5 / 255).double()


def stretch(images: Tensor) -> Tensor:
    """Stretch each image (B, C, H, W) from its own least and largest value to the bytes 0 … 255.

    What torchvision's `save_image(..., normalize=True)` writes for one image at a time: all
    channels share the two values, and halves are rounded up.
    """
    x = _finite(to_float(images) if images.dtype == torch.uint8 else images)
    low, high = x.flatten(1).aminmax(dim=1)
    low, high = low.view(-1, 1, 1, 1), high.view(-1, 1, 1, 1)
    unit = (x - low) / (high - low).clamp(min=1e-5)
    return (unit * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def through_jpeg(images: Tensor, quality: int) -> Tensor:
    """Write each uint8 image (B, 1 or 3, H, W) as a JPEG file (4:2:0) in memory and read it."""
    read = []
    for image in images.cpu():
        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        buffer = io.BytesIO()
        picture = Image.fromarray(np.ascontiguousarray(pixels.numpy()))
        picture.save(buffer, "JPEG", quality=quality)
        array = torch.from_numpy(np.array(Image.open(buffer)))
        read.append(array[None] if len(image) == 1 else array.permute(2, 0, 1))
    return torch.stack(read).to(images.device)


def luma(images: Tensor) -> Tensor:
    """Return Y' of BT.601 without its offset, (B, 1, H, W), of RGB in [0, 1]; grey stays."""
    if images.shape[1] != 3:
        return images
    weights = images.new_tensor(LUMA).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def grey(images: Tensor) -> Tensor:
    """Return Pillow's conversion to L, (B, 1, H, W) in [0, 1], of RGB bytes in [0, 1]."""
    if images.shape[1] != 3:
        return images
    red, green, blue = (images * 255).round().to(torch.int64).unbind(1)
    # Fixed point with 16 bits, rounded half up, as Pillow's libImaging does.
    value = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return value[:, None].double() / 255


def shrink(images: Tensor, side: int) -> Tensor:
    """Average over squares so that the shorter side is near `side`; the rest is cut off."""
    factor = max(1, round(min(images.shape[-2:]) / side))
    return images if factor == 1 else F.avg_pool2d(images, factor)


def _output(images: Tensor, protocol: Protocol, original: bool) -> Tensor:
    if original and protocol.originals != "bytes":
        return outputs_of(images, protocol.originals)
    return images


def _finite(images: Tensor) -> Tensor:
    if not images.is_floating_point():
        raise ValueError(f"images.dtype={images.dtype}: expected uint8, or float in [-1, 1]")
    if not bool(images.isfinite().all()):
        raise ValueError("images: hold NaN or infinity; the model that made them has diverged")
    return images.float()
