"""One process's part of an image set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vqkit.config import require
from vqkit.data.decoding import BrokenImageError
from vqkit.data.image_set import ImageSet, Listing
from vqkit.data.preparing import Pixels


class Share(ImageSet):
    """Images start, start + 1, …, stop - 1 of another set."""

    partial = True

    def __init__(self, whole: ImageSet, start: int, stop: int) -> None:
        listing = Listing(
            count=stop - start,
            name=lambda index: whole.name(start + index),
            files=lambda: (),
            labels=None if whole.labels is None else whole.labels[start:stop],
            label_names=whole.label_names,
        )
        super().__init__(whole.config, listing)
        self.sizes = whole.sizes[start:stop]
        self._whole, self._start = whole, start

    @classmethod
    def of(cls, whole: ImageSet, share: tuple[int, int]) -> ImageSet:
        """Return part `rank` of `count` nearly equal ones in order, for share = (rank, count)."""
        rank, count = share
        require(0 <= rank < count, f"share={share}", "expected (rank, number of processes)")
        if count == 1:
            return whole
        return cls(whole, len(whole) * rank // count, len(whole) * (rank + 1) // count)

    def fingerprint(self) -> str:
        """Return that of the whole set with the place of this part."""
        return f"{self._whole.fingerprint()}[{self._start}:{self._start + len(self)}]"

    @property
    def in_memory(self) -> bool:
        """As the whole set."""
        return self._whole.in_memory

    def image(self, index: int) -> Tensor:
        """Return image `index` of this part, uint8 (C, H, W)."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self._whole.image(self._start + index)

    def gather(
        self, indices: Sequence[int], draws: npt.NDArray[np.float64]
    ) -> tuple[Tensor, list[str]]:
        """Stack images of this part, see `ImageSet.gather`."""
        return self._whole.gather([self._start + index for index in indices], draws)

    @contextmanager
    def reading(self) -> Iterator[ImageSet]:
        """See `ImageSet.reading`."""
        with self._whole.reading() as whole:
            yield Share(whole, self._start, self._start + len(self))

    def several(
        self, indices: Sequence[int], draws: npt.NDArray[np.float64] | None = None
    ) -> list[Pixels | BrokenImageError]:
        """See `ImageSet.several`."""
        return self._whole.several([self._start + index for index in indices], draws)

    @property
    def parallel(self) -> int:
        """As the whole set."""
        return self._whole.parallel

    def stop(self) -> None:
        """See `ImageSet.stop`."""
        self._whole.stop()
