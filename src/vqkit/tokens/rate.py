"""Real bytes: what token maps cost as `.vqk` files, header included."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from vqkit.metrics.reduction import sum_over_processes
from vqkit.tokens.coder import TokenCoder


class CodedRate:
    """Bits per pixel of a set of images whose tokens are written as one `.vqk` file each."""

    def __init__(self, coder: TokenCoder) -> None:
        self._coder = coder
        # Bytes, pixels, images.
        self._totals = torch.zeros(3, dtype=torch.int64)

    def update(self, ids: Tensor, size: tuple[int, int]) -> None:
        """Write the tokens (B, h, w, T) of images of (height, width) pixels, and count bytes."""
        num_bytes = sum(len(self._coder.encode([image], [size])) for image in ids)
        self._totals += torch.tensor([num_bytes, len(ids) * size[0] * size[1], len(ids)])

    def reduce(self) -> CodedRate:
        """Return the rate over the images of all processes; this object keeps its own share."""
        total = copy(self)
        total._totals = sum_over_processes(self._totals)
        return total

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return int(self._totals[0])

    @property
    def num_images(self) -> int:
        """Images counted."""
        return int(self._totals[2])

    @property
    def bits_per_pixel(self) -> float:
        """Bits of all files per pixel of all images."""
        if not self.num_images:
            raise ValueError(
                "images: none were counted, so there is no rate; update with images first"
            )
        return 8 * self.num_bytes / float(self._totals[1])


def coded_rate(
    maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]], coder: TokenCoder
) -> float:
    """Return bits per pixel of token maps (h, w, T) together in one `.vqk` file, header included.

    `sizes` are the (height, width) of the images in pixels. `CodedRate` writes a file for each.
    """
    pixels = sum(height * width for height, width in sizes)
    return 8 * len(coder.encode(maps, sizes)) / pixels
