"""Images that are decoded when they are asked for, by threads or by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqkit.config import DataConfig
from vqkit.data.decoder_pool import DecoderPool
from vqkit.data.decoding import BrokenImageError
from vqkit.data.image_set import ArrayImages, ImageSet, Listing, check_index
from vqkit.data.preparing import Pixels, Place, Preparation, Task

CACHE_BYTES = 1 << 30
"""Decoded pixels (after resize) that an image set may keep in memory."""


class DecodedImages(ImageSet):
    """Images decoded when asked for; up to `CACHE_BYTES` of them stay in memory.

    The cache takes images until it is full and never evicts: training visits all images equally
    often, and then a fixed part that hits always is worth more than a moving part that hits rarely.
    Worker processes (`data.workers`) hold no cache.

    Args:
        place: gives the place of image i, see `Place`; a `BrokenImageError` if there is none.
        fetch: turns a place into an encoded image; picklable.
    """

    def __init__(
        self,
        config: DataConfig,
        listing: Listing,
        place: Callable[[int], Place],
        fetch: Callable[[Place], bytes | Path] = Path,
    ) -> None:
        super().__init__(config, listing)
        self._place = place
        self._preparation = Preparation(config, fetch)
        self.cache_bytes = CACHE_BYTES
        """Pixels that may stay in memory; 0 for whoever reads every image once."""
        self._cache: dict[int, Tensor] = {}
        self._cached_bytes = 0

    @property
    def in_memory(self) -> bool:
        """False: threads or processes decode in parallel."""
        return False

    def image(self, index: int) -> Tensor:
        """See `ImageSet.image`."""
        check_index(index, len(self))
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        image = torch.from_numpy(np.array(self.prepare(index), order="C"))
        with self._lock:
            if index not in self._cache and self._cached_bytes + image.nbytes <= self.cache_bytes:
                self._cache[index] = image
                self._cached_bytes += image.nbytes
        return image

    def prepare(self, index: int) -> Pixels:
        """Decode, resize and centre-crop image `index`, past the cache; a view."""
        pixels, size = self._preparation.whole(self.name(index), self._place(index))
        self.sizes[index] = size
        return pixels

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
                caption=self._listing.caption and (lambda i: self.caption(kept[i])),
                labels=None if self.labels is None else self.labels[good],
            )
        images = ArrayImages(self.config, listing, pixels)
        images.sizes = self.sizes[good.numpy()]
        images._broken = dict(self._broken)
        return images

    def gather(
        self, indices: Sequence[int], draws: npt.NDArray[np.float64]
    ) -> tuple[Tensor, list[str]]:
        """See `ImageSet.gather`; a broken image gives its place to the next readable one."""
        batch: Pixels | None = None
        names: list[str] = []
        for row, found in enumerate(self.several(indices, draws)):
            used = int(indices[row])
            if isinstance(found, BrokenImageError):
                used, found = self._next_readable(used, found, draws[row])
            if batch is None:
                batch = np.empty((len(indices), *found.shape), dtype=np.uint8)
            if found.shape != batch.shape[1:]:
                raise ValueError(
                    f"data.crop='none': {self.name(used)} is {_size(found)} and {names[0]} is "
                    f"{_size(batch)} (width x height), and a batch holds images of one size; "
                    "set data.crop=random or center with data.crop_size"
                )
            batch[row] = found
            names.append(self.name(used))
        if batch is None:
            raise ValueError("indices=[]: a batch holds at least one image")
        return torch.from_numpy(batch), names

    def _next_readable(
        self, index: int, broken: BrokenImageError, draws: npt.NDArray[np.float64]
    ) -> tuple[int, Pixels]:
        self.keep_or_fail(broken)
        for used in (*range(index + 1, len(self)), *range(index)):
            (found,) = self.several([used], draws[None])
            if not isinstance(found, BrokenImageError):
                return used, found
            self.keep_or_fail(found)
        raise self.all_broken()

    @contextmanager
    def reading(self) -> Iterator[ImageSet]:
        """See `ImageSet.reading`; the processes live as long as the context."""
        if not self.config.workers:
            yield self
            return
        with DecoderPool(self._preparation, self.config.workers) as pool:
            yield _ByProcesses(self, self._place, pool)


class _ByProcesses(DecodedImages):
    """The images of another set, prepared by worker processes."""

    def __init__(
        self, whole: DecodedImages, place: Callable[[int], Place], pool: DecoderPool
    ) -> None:
        super().__init__(whole.config, whole._listing, place)
        self._broken, self._lock, self.sizes = whole._broken, whole._lock, whole.sizes
        self._pool = pool

    @property
    def parallel(self) -> int:
        """One thread for every process, and one that puts a batch together meanwhile."""
        return self.config.workers + 1

    def image(self, index: int) -> Tensor:
        """See `ImageSet.image`."""
        check_index(index, len(self))
        (found,) = self.several([index])
        if isinstance(found, BrokenImageError):
            raise found
        return torch.from_numpy(found)

    def several(
        self, indices: Sequence[int], draws: npt.NDArray[np.float64] | None = None
    ) -> list[Pixels | BrokenImageError]:
        """See `ImageSet.several`."""
        found: dict[int, Pixels | BrokenImageError] = {}
        tasks: dict[int, Task] = {}
        for row, index in enumerate(indices):
            drawn = None if draws is None else tuple(draws[row].tolist())
            try:
                tasks[row] = Task(self.name(int(index)), self._place(int(index)), drawn)
            except BrokenImageError as broken:
                found[row] = broken
        prepared = self._pool.prepare(list(tasks.values()))
        for row, one in zip(tasks, prepared, strict=True):
            if isinstance(one, BrokenImageError):
                found[row] = one
            else:
                found[row], self.sizes[indices[row]] = one
        return [found[row] for row in range(len(indices))]

    def stop(self) -> None:
        """See `ImageSet.stop`."""
        self._pool.stop()


def _size(image: Pixels) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"
