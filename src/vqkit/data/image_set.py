"""A set of images after resize and centre crop: held as one array, or decoded when asked for."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vqkit.config import DataConfig
from vqkit.data.decoding import BrokenImageError
from vqkit.data.transforms import (
    center_crop,
    check_crop,
    corner,
    crop_each,
    resize_shorter,
    to_tensor,
)

CACHE_BYTES = 1 << 30
"""Decoded pixels (after resize) that an image set may keep in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """What is known about a set without decoding it."""

    count: int
    """Images, after `data.limit`."""
    name: Callable[[int], str]
    """The name of image i: path below the data folder, or file and row."""
    files: Callable[[], Iterable[tuple[str, int]]]
    """Name and size in bytes of every file, for the fingerprint."""
    labels: Tensor | None = None
    """(count,) int64."""
    label_names: tuple[str, ...] | None = None


class ImageSet(ABC):
    """Images of one `DataConfig`, uint8 (C, H, W), after resize and, with crop="center", the cut.

    Random crops and flips belong to `BatchStream`. With `on_broken="fail"` the first broken file
    met is a `BrokenImageError`. With "skip" it is recorded in `skipped` and warned about once: sets
    held as one array (small images) drop it when they load; sets decoded on demand cannot know
    before they reach it, so there a training batch takes the next readable image in its place (the
    same one whenever and wherever that batch is made) and `iterate_once` leaves it out.
    """

    def __init__(self, config: DataConfig, listing: Listing) -> None:
        self.config = config
        self.labels = listing.labels
        self.label_names = listing.label_names
        self._listing = listing
        self._broken: dict[str, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._listing.count

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (colour)."""
        return self.config.channels

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of the broken files found so far, sorted by name."""
        with self._lock:
            return sorted(self._broken.items())

    def name(self, index: int) -> str:
        """The name of image `index`; batches carry it as their key."""
        return self._listing.name(index)

    def fingerprint(self) -> str:
        """SHA-256 of the settings (but the path) and of every file's name and size."""
        digest = hashlib.sha256()
        settings = asdict(self.config) | {"path": None}
        digest.update(json.dumps(settings, sort_keys=True).encode())
        for name, size in self._listing.files():
            digest.update(json.dumps([name, size]).encode())
        return digest.hexdigest()

    @property
    @abstractmethod
    def in_memory(self) -> bool:
        """Whether all pixels lie in one array, so that threads gain nothing."""

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """Image `index` as uint8 (C, H, W).

        A broken one is a `BrokenImageError`, one out of range an `IndexError`.
        """

    @abstractmethod
    def gather(
        self, indices: Sequence[int], draws: npt.NDArray[np.float64]
    ) -> tuple[Tensor, list[str]]:
        """Stack images `indices`; crop="random" cuts at corners given by `draws` (b, 2) in [0, 1).

        Returns uint8 (b, C, H, W) and the names. Images of different sizes, or smaller than the
        crop, are a `ValueError` naming a file.
        """

    def keep_or_fail(self, broken: BrokenImageError) -> None:
        """Note a broken image, warning at the first one; raise it if the user chose to fail."""
        if self.config.on_broken == "fail":
            raise broken
        with self._lock:
            first = not self._broken
            self._broken[broken.name] = broken.reason
        if first:
            warnings.warn(
                f"data.on_broken='skip': {broken.name} is no readable image ({broken.reason}) and "
                "is left out, as will be any other; image_set.skipped lists them",
                stacklevel=2,
            )

    def all_broken(self) -> ValueError:
        """The error for a set without one readable image."""
        name, reason = self.skipped[0]
        return ValueError(
            f"data.path={self.config.path!r}: none of {len(self)} images can be read "
            f"(first: {name}: {reason}); check that the path holds images"
        )


class ArrayImages(ImageSet):
    """Images of one size in one tensor, `pixels` uint8 (N, C, H, W); batches are plain indexing."""

    def __init__(self, config: DataConfig, listing: Listing, pixels: Tensor) -> None:
        super().__init__(config, listing)
        if config.crop_size is not None:
            check_crop(self.name(0), pixels, config.crop_size)
            if config.crop == "center":
                pixels = center_crop(pixels, config.crop_size)
        self.pixels = pixels

    @property
    def in_memory(self) -> bool:
        """True."""
        return True

    def image(self, index: int) -> Tensor:
        """See `ImageSet.image`."""
        _check_index(index, len(self))
        return self.pixels[index]

    def gather(
        self, indices: Sequence[int], draws: npt.NDArray[np.float64]
    ) -> tuple[Tensor, list[str]]:
        """See `ImageSet.gather`."""
        images = self.pixels[torch.as_tensor(indices, dtype=torch.int64)]
        if self.config.crop == "random":
            size = self.config.crop_size or 0
            height, width = images.shape[-2:]
            tops, lefts = corner(height, size, draws[:, 0]), corner(width, size, draws[:, 1])
            images = crop_each(images, torch.from_numpy(tops), torch.from_numpy(lefts), size)
        return images, [self.name(int(index)) for index in indices]


class DecodedImages(ImageSet):
    """Images decoded when asked for; up to `CACHE_BYTES` of them stay in memory.

    The cache takes images until it is full and never evicts: training visits all images equally
    often, and then a fixed part that hits always is worth more than a moving part that hits rarely.
    """

    def __init__(
        self, config: DataConfig, listing: Listing, decode: Callable[[int], Image.Image]
    ) -> None:
        super().__init__(config, listing)
        self._decode = decode
        self._cache: dict[int, Tensor] = {}
        self._cached_bytes = 0

    @property
    def in_memory(self) -> bool:
        """False: threads decode in parallel."""
        return False

    def image(self, index: int) -> Tensor:
        """See `ImageSet.image`."""
        _check_index(index, len(self))
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        image = self.prepare(index)
        with self._lock:
            if index not in self._cache and self._cached_bytes + image.nbytes <= CACHE_BYTES:
                self._cache[index] = image
                self._cached_bytes += image.nbytes
        return image

    def prepare(self, index: int) -> Tensor:
        """Decode, resize and centre-crop image `index`, past the cache."""
        picture = self._decode(index)
        if self.config.resize is not None:
            try:
                picture = resize_shorter(picture, self.config.resize)
            except ValueError as error:
                raise BrokenImageError(self.name(index), str(error)) from error
        image = to_tensor(picture)
        if self.config.crop_size is not None:
            check_crop(self.name(index), image, self.config.crop_size)
            if self.config.crop == "center":
                image = center_crop(image, self.config.crop_size)
        return image

    def as_array(self, pixels: Tensor, good: Tensor) -> ArrayImages:
        """This set held in `pixels` (N, C, H, W), less the images where `good` (N,) is False."""
        listing = self._listing
        if not bool(good.all()):
            kept = torch.nonzero(good)[:, 0].tolist()
            pixels = pixels[good]
            listing = replace(
                listing,
                count=len(kept),
                name=lambda i: self._listing.name(kept[i]),
                labels=None if self.labels is None else self.labels[good],
            )
        images = ArrayImages(self.config, listing, pixels)
        images._broken = dict(self._broken)
        return images

    def gather(
        self, indices: Sequence[int], draws: npt.NDArray[np.float64]
    ) -> tuple[Tensor, list[str]]:
        """See `ImageSet.gather`; a broken image gives its place to the next readable one."""
        images: list[Tensor] = []
        names: list[str] = []
        for index, draw in zip(indices, draws, strict=True):
            used, image = self._readable(int(index))
            if self.config.crop == "random":
                size = self.config.crop_size or 0
                top, left = (
                    int(corner(length, size, draw[i])) for i, length in enumerate(image.shape[-2:])
                )
                image = image[:, top : top + size, left : left + size]
            if images and image.shape != images[0].shape:
                raise ValueError(
                    f"data.crop='none': {self.name(used)} is {_size(image)} and {names[0]} is "
                    f"{_size(images[0])} (width x height), and a batch holds images of one size; "
                    "set data.crop=random or center with data.crop_size"
                )
            images.append(image)
            names.append(self.name(used))
        return torch.stack(images), names

    def _readable(self, index: int) -> tuple[int, Tensor]:
        for used in (*range(index, len(self)), *range(index)):
            try:
                return used, self.image(used)
            except BrokenImageError as broken:
                self.keep_or_fail(broken)
        raise self.all_broken()


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"


def _check_index(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise IndexError(f"image {index} of {count}")
