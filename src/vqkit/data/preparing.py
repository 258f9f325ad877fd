"""From an image's place to its pixels: decode, resize, cut, mirror.

Threads and worker processes both come here, so that they give the same bits. Nothing in this module
imports torch: a worker process starts in a fraction of a second and stays small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from vqkit.config import DataConfig
from vqkit.data.decoding import BrokenImageError, check_pixels, decode

Pixels: TypeAlias = npt.NDArray[np.uint8]
Size: TypeAlias = tuple[int, int]
"""(height, width) of an upright image as its file has it, in pixels."""
Place: TypeAlias = Any
"""What a source needs to find one image again, small and picklable: a path, a key, its encoded
bytes; or a Pillow image, which is already decoded."""


@dataclass(frozen=True, slots=True)
class Task:
    """One image to prepare."""

    name: str
    place: Place
    draws: tuple[float, float, float] | None
    """In [0, 1): row and column of a random crop, and below 0.5 a mirror; None: neither."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """How the images of one set are prepared. It can be pickled, and so sent to other processes."""

    config: DataConfig
    fetch: Callable[[Place], bytes | Path]
    """Turns a place into an encoded image."""

    def whole(self, name: str, place: Place) -> tuple[Pixels, Size]:
        """Decode, resize and centre-crop one image: uint8 (C, H, W), a view, and its first size.

        Raises `BrokenImageError` for what is no image, `ValueError` for one smaller than the crop.
        """
        if isinstance(place, Image.Image):
            picture = place
        else:
            picture = decode(self.fetch(place), name, self.config.channels)
        size = picture.height, picture.width
        try:
            picture = resize(picture, self.config.resize, stretch=self.config.stretch)
        except ValueError as error:
            raise BrokenImageError(name, str(error)) from error
        pixels = np.asarray(picture, dtype=np.uint8)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        side = self.config.crop_size
        if side is not None:
            check_crop(name, pixels.shape, side)
            if self.config.crop == "center":
                pixels = window(pixels, side, *middle(pixels.shape, side))
        return pixels, size

    def __call__(self, task: Task) -> tuple[Pixels, Size]:
        """Prepare one image, random crop and mirror included; see `whole`."""
        pixels, size = self.whole(task.name, task.place)
        return cut(pixels, self.config, task.draws), size


def cut(pixels: Pixels, config: DataConfig, draws: Sequence[float] | None) -> Pixels:
    """Crop and mirror (C, H, W) at random, as `config` says and `draws` decide; a view."""
    if draws is None:
        return pixels
    if config.crop == "random":
        size = config.crop_size or 0
        row, column = (
            int(corner(length, size, np.float64(draw)))
            for length, draw in zip(pixels.shape[-2:], draws, strict=False)
        )
        pixels = window(pixels, size, row, column)
    return pixels[..., ::-1] if config.flip and draws[2] < 0.5 else pixels


def resize(image: Image.Image, side: int | None, *, stretch: bool = False) -> Image.Image:
    """Give the shorter side, or with `stretch` both sides, `side` pixels; None changes nothing.

    Pillow's bicubic filter, which is antialiased. A result above Pillow's limit for decompression
    bombs (a strip 1 pixel high) is a `ValueError`.
    """
    if side is None:
        return image
    size = resized(image.size, side, stretch=stretch)
    if size == image.size:
        return image
    check_pixels(size)
    return image.resize(size, Image.Resampling.BICUBIC)


def resized(size: tuple[int, int], side: int, *, stretch: bool) -> tuple[int, int]:
    """Sides (either order, kept) after `resize`."""
    if stretch:
        return side, side
    first, second = (max(1, round(length * side / min(size))) for length in size)
    return first, second


def box(config: DataConfig, size: Size) -> tuple[float, float, float, float]:
    """Top, left, height and width of what is left of an image of `size`, in its own pixels.

    The whole, or the centre crop, which after a resize begins between pixels.
    """
    if config.crop != "center" or config.crop_size is None:
        return 0.0, 0.0, float(size[0]), float(size[1])
    shape = size if config.resize is None else resized(size, config.resize, stretch=config.stretch)
    scales = size[0] / shape[0], size[1] / shape[1]
    top, left = middle(shape, config.crop_size)
    side = config.crop_size
    return top * scales[0], left * scales[1], side * scales[0], side * scales[1]


def check_crop(name: str, shape: Sequence[int], crop_size: int) -> None:
    """Raise `ValueError` naming the file if an image of `shape` (..., H, W) is below the crop."""
    height, width = shape[-2:]
    if min(height, width) < crop_size:
        raise ValueError(
            f"data.crop_size={crop_size}: {name} is only {width}x{height} (width x height); "
            f"set data.resize={crop_size} or more, choose a smaller crop, or leave the file out"
        )


def window(pixels: Pixels, size: int, top: int, left: int) -> Pixels:
    """Cut a square out of (..., H, W); a view."""
    return pixels[..., top : top + size, left : left + size]


def middle(shape: Sequence[int], size: int) -> tuple[int, int]:
    """Top and left of the middle square; of an odd rest the larger part lies below and right."""
    return (shape[-2] - size) // 2, (shape[-1] - size) // 2


def corner(
    length: int, crop_size: int, draws: npt.NDArray[np.float64] | np.float64
) -> npt.NDArray[np.int64]:
    """Turn draws from [0, 1) into crop starts, uniform over 0..length-crop_size."""
    return np.floor(draws * (length - crop_size + 1)).astype(np.int64)
