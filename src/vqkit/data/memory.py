"""Small images of one size become one tensor; everything else stays decoded on demand."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vqkit.config import DataConfig
from vqkit.data.decoded import DecodedImages
from vqkit.data.decoding import BrokenImageError
from vqkit.data.image_set import ArrayImages, ImageSet, Listing
from vqkit.data.preparing import Pixels
from vqkit.data.transforms import to_picture, with_channels
from vqkit.data.workers import count_workers, ordered

ARRAY_BYTES = 1 << 30
"""A set larger than this, decoded, is not held as one array (unless its file already is one)."""
_SMALL = 128 * 128
_CHUNK = 256


def from_pixels(config: DataConfig, listing: Listing, pixels: Tensor) -> ImageSet:
    """Build a set from uint8 (N, 1 or 3, H, W) that a file gave whole."""
    pixels = with_channels(pixels, config.channels)
    sides = set(pixels.shape[-2:]) if config.stretch else {min(pixels.shape[-2:])}
    if config.resize is None or sides == {config.resize}:
        return ArrayImages(config, listing, pixels)
    return hold_small(DecodedImages(config, listing, lambda i: to_picture(pixels[i])))


def hold_small(images: DecodedImages) -> ImageSet:
    """Decode `images` into one array if they are small, of one size and fit in `ARRAY_BYTES`.

    Broken ones are dropped or raised here, as `on_broken` says. If the first image is large or one
    has another size, `images` itself comes back: what holds depends on the files alone.
    """
    sample = _first_readable(images)
    _, height, width = sample.shape
    if height * width > _SMALL or sample.nbytes * len(images) > ARRAY_BYTES:
        return images
    rows = np.empty((len(images), *sample.shape), dtype=np.uint8)
    good = torch.ones(len(images), dtype=torch.bool)

    def fill(start: int) -> bool:
        for index in range(start, min(start + _CHUNK, len(images))):
            try:
                image = images.prepare(index)
            except BrokenImageError as broken:
                images.keep_or_fail(broken)
                good[index] = False
                continue
            if image.shape != sample.shape:
                return False
            rows[index] = image
        return True

    starts = range(0, len(images), _CHUNK)
    workers = count_workers()
    for same_size in ordered(fill, starts, workers=workers, ahead=2 * workers):
        if not same_size:
            return images
    return images.as_array(torch.from_numpy(rows), good)


def _first_readable(images: DecodedImages) -> Pixels:
    for index in range(len(images)):
        try:
            return images.prepare(index)
        except BrokenImageError as broken:
            images.keep_or_fail(broken)
    raise images.all_broken()
