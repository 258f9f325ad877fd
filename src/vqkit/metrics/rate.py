"""What the images cost without loss: raw, and as PNG files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from copy import copy

import torch
from PIL import Image
from torch import Tensor

from vqkit.metrics.reduction import sum_over_processes


def png_bytes(image: Tensor) -> int:
    """Return the size in bytes of the optimized PNG file of one image (C, H, W) uint8, C 1 or 3."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(
            f"image of shape {tuple(image.shape)}, {image.dtype}: expected uint8 (1 or 3, H, W)"
        )
    pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.contiguous().cpu().numpy()).save(buffer, "PNG", optimize=True)
    return buffer.tell()


class LosslessRate:
    """Bits per pixel of a set of images, raw and as one PNG file each (Pillow, `optimize=True`)."""

    def __init__(self) -> None:
        # PNG bits, raw bits, pixels, images.
        self._totals = torch.zeros(4, dtype=torch.int64)

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> LosslessRate:
        """Measure batches (B, C, H, W) uint8."""
        rate = cls()
        for images in batches:
            rate.update(images)
        return rate

    def update(self, images: Tensor) -> None:
        """Count a batch (B, C, H, W) uint8, in threads: compression frees the interpreter."""
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            sizes = list(pool.map(png_bytes, images))
        num_images, channels, height, width = images.shape
        pixels = num_images * height * width
        self._totals += torch.tensor([8 * sum(sizes), 8 * channels * pixels, pixels, num_images])

    def reduce(self) -> LosslessRate:
        """Return the rate over the images of all processes; this object keeps its own share."""
        total = copy(self)
        total._totals = sum_over_processes(self._totals)
        return total

    @property
    def png(self) -> float:
        """Bits per pixel as PNG files, headers included."""
        return self._bits_per_pixel(0)

    @property
    def raw(self) -> float:
        """Bits per pixel uncompressed: 8 for grey, 24 for colour."""
        return self._bits_per_pixel(1)

    @property
    def num_images(self) -> int:
        """Images counted."""
        return int(self._totals[3])

    @property
    def num_pixels(self) -> int:
        """Pixels counted: height × width, whatever the number of channels."""
        return int(self._totals[2])

    def _bits_per_pixel(self, index: int) -> float:
        if not self.num_images:
            raise ValueError(
                "images: none were counted, so there is no rate; update with images first"
            )
        return float(self._totals[index]) / float(self._totals[2])
