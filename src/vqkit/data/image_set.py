"""A set of images after resize and centre crop, and the kind that is held as one array."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqkit.config import DataConfig
from vqkit.data.decoding import BrokenImageError
from vqkit.data.preparing import Pixels, check_crop, corner, cut
from vqkit.data.transforms import center_crop, crop_each
from vqkit.data.workers import count_workers


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """What is known about a set without decoding it."""

    count: int
    """Images, after `data.limit`."""
    name: Callable[[int], str]
    """The name of image i: path below the data folder, or file and row."""
    files: Callable[[], Iterable[tuple[str, int]]]
    """Name and size in bytes of every file, for the fingerprint."""
    caption: Callable[[int], str | None] | None = None
    """The caption of image i, if the set has any."""
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

    partial = False
    """Whether this is one process's part of a set."""

    def __init__(self, config: DataConfig, listing: Listing) -> None:
        self.config = config
        self.labels = listing.labels
        self.label_names = listing.label_names
        self.sizes = np.zeros((listing.count, 2), dtype=np.int32)
        """Height and width of every image as its file has it; zeros until it was read."""
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

    @property
    def labelled(self) -> bool:
        """Whether images have classes."""
        return self.labels is not None

    def label(self, index: int) -> int:
        """The class of image `index`, -1 without one; of a stream, of images just read."""
        return -1 if self.labels is None else int(self.labels[index])

    @property
    def captioned(self) -> bool:
        """Whether images have captions."""
        return self._listing.caption is not None

    def caption(self, index: int) -> str | None:
        """The caption of image `index`, None without one; of a stream, of images just read."""
        return None if self._listing.caption is None else self._listing.caption(index)

    def original_size(self, index: int) -> tuple[int, int]:
        """Height and width of image `index` as its file has it, once it was read."""
        height, width = map(int, self.sizes[index])
        return height, width

    def fingerprint(self) -> str:
        """SHA-256 of every file's name and size, in order, and of the settings that change pixels.

        Neither the place of the images nor the number of worker processes counts.
        """
        digest = hashlib.sha256()
        settings = asdict(self.config) | {"path": None}
        del settings["files"], settings["workers"]
        if not settings["stretch"]:  # as before there was this setting: old runs go on
            del settings["stretch"]
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
        """Stack images `indices`, cropped and mirrored by `draws` (b, 3) as the settings say.

        The draws lie in [0, 1): row and column of a random crop, and below 0.5 a mirror. Returns
        uint8 (b, C, H, W) and the names. Images of different sizes, or smaller than the crop, are
        a `ValueError` naming a file.
        """

    def several(
        self, indices: Sequence[int], draws: npt.NDArray[np.float64] | None = None
    ) -> list[Pixels | BrokenImageError]:
        """Images `indices`, uint8 (C, H, W) views, cropped and mirrored if there are `draws`.

        A broken image leaves its error in its place; nothing is noted or raised for it here.
        """
        found: list[Pixels | BrokenImageError] = []
        for row, index in enumerate(indices):
            try:
                image = self.image(int(index)).numpy()
            except BrokenImageError as broken:
                found.append(broken)
                continue
            found.append(cut(image, self.config, None if draws is None else draws[row]))
        return found

    @contextmanager
    def reading(self) -> Iterator[ImageSet]:
        """Give this set, or the same one read through the worker processes of `data.workers`."""
        yield self

    @property
    def parallel(self) -> int:
        """Threads worth asking for images at the same time."""
        return 1 if self.in_memory else count_workers()

    def stop(self) -> None:  # noqa: B027 (most sets have none)
        """End worker processes at once, if there are any, whatever they do."""

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
        self.sizes[:] = pixels.shape[-2:]
        if config.crop_size is not None:
            check_crop(self.name(0), pixels.shape, config.crop_size)
            if config.crop == "center":
                pixels = center_crop(pixels, config.crop_size)
        self.pixels = pixels

    @property
    def in_memory(self) -> bool:
        """True."""
        return True

    def image(self, index: int) -> Tensor:
        """See `ImageSet.image`."""
        check_index(index, len(self))
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
        if self.config.flip:
            mirrored = torch.from_numpy(draws[:, 2] < 0.5)
            images[mirrored] = images[mirrored].flip(-1)
        return images, [self.name(int(index)) for index in indices]


def check_index(index: int, count: int) -> None:
    """Raise `IndexError` unless 0 <= index < count."""
    if not 0 <= index < count:
        raise IndexError(f"image {index} of {count}")
