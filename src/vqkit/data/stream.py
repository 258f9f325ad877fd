"""Batches: random ones that are a pure function of (seed, step), or every image once in order."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, count

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqkit.data.decoding import BrokenImageError
from vqkit.data.image_set import ArrayImages, ImageSet
from vqkit.data.preparing import Pixels
from vqkit.data.workers import ordered

_ORDER, _DRAWS = 0, 1
_RUN = 4
"""Images that an evaluation asks for at once."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one size and where they come from."""

    images: Tensor
    """(b, C, H, W) uint8."""
    keys: list[str]
    """The name of each image."""


@dataclass(frozen=True, slots=True)
class _Epoch:
    number: int
    order: npt.NDArray[np.int64]
    draws: npt.NDArray[np.float64]
    """(items, 3) in [0, 1): row and column of the crop, and the flip, of each item."""


class Shuffle:
    """Which items make up every batch: a pure function of (items, batch_size, seed, step).

    An epoch visits every item once, in an order drawn from (seed, epoch); what does not fill a last
    batch is left for other epochs. Rank r of `world_size` gets rows [r·b, (r+1)·b) of the global
    batch, b = batch_size / world_size. The draws are raw words of NumPy's Philox, whose stream is
    fixed over versions. The last two epochs stay in memory.

    Raises `ValueError` for a batch that the ranks cannot share or the items cannot fill.
    """

    def __init__(
        self,
        items: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        too_few: str | None = None,
    ) -> None:
        """`too_few` says what an epoch has, and what to do if it does not fill a batch."""
        if seed < 0:
            raise ValueError(f"seed={seed}: must not be negative; choose 0 or more")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}: must lie in 0..world_size-1={world_size - 1}")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch_size={batch_size}: must be a positive multiple of world_size={world_size}, "
                "so that every process gets the same share; change it or the number of processes"
            )
        if items < batch_size:
            found = too_few or f"an epoch has only {items} images; lower the batch size"
            raise ValueError(f"batch_size={batch_size}: {found}")
        self.items, self.batch_size, self.seed = items, batch_size, seed
        self._share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._epochs: dict[int, _Epoch] = {}
        self._lock = threading.Lock()

    def batch(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """This rank's items of global batch `step` (0, 1, …) and their three draws (b, 3)."""
        if step < 0:
            raise ValueError(f"step={step}: must not be negative; the first batch is step 0")
        number, position = divmod(step, self.items // self.batch_size)
        epoch = self._epoch(number)
        start = position * self.batch_size
        items = epoch.order[start : start + self.batch_size][self._share]
        return items, epoch.draws[items]

    def _epoch(self, number: int) -> _Epoch:
        with self._lock:
            epoch = self._epochs.get(number)
            if epoch is None:
                epoch = _draw_epoch(self.seed, number, self.items)
                # At an epoch's end the threads ahead already work in the next one: keep two.
                while len(self._epochs) >= 2:
                    del self._epochs[min(self._epochs)]
                self._epochs[number] = epoch
            return epoch


class BatchStream:
    """Shuffled batches without end, each a pure function of (image set, batch_size, seed, step).

    An epoch visits every image `crops_per_image` times, see `Shuffle`; the global batch is the same
    for any number of ranks. Crop and flip are drawn from (seed, epoch, index). Nothing has to be
    saved to resume: ask for the next step.

    Args:
        image_set: from `load_images`.
        batch_size: images per step over all ranks together.
        seed: 0 or more.
        rank, world_size: this process and the number of processes.

    Raises `ValueError` for a batch that the ranks cannot share or the set cannot fill.
    """

    def __init__(
        self, image_set: ImageSet, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        items = len(image_set) * image_set.config.crops_per_image
        self._shuffle = Shuffle(
            items,
            batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            too_few=f"an epoch has only {items} images "
            f"({len(image_set)} x data.crops_per_image={image_set.config.crops_per_image}); "
            "lower optim.batch_size, give more images, or raise data.crops_per_image "
            "(with data.crop=random)",
        )
        self.image_set = image_set
        self.batch_size = batch_size
        self.seed = seed

    @property
    def batches_per_epoch(self) -> int:
        """Full batches in one epoch; `epoch = step // batches_per_epoch`."""
        return self._shuffle.items // self.batch_size

    def batch(self, step: int) -> Batch:
        """This rank's share of global batch `step` (0, 1, …): batch_size/world_size images."""
        return self._batch(self.image_set, step)

    def _batch(self, images: ImageSet, step: int) -> Batch:
        items, draws = self._shuffle.batch(step)
        indices = (items % len(self.image_set)).tolist()
        return Batch(*images.gather(indices, draws))

    def iterate(self, start_step: int = 0) -> Generator[Batch, None, None]:
        """Yield batches `start_step`, `start_step` + 1, … without end, prepared ahead.

        Threads prepare them, or the processes of `data.workers`. A few batches wait at most. An
        error of a worker is raised here; a process that was killed is a `ChildProcessError`. Close
        the generator (or let it go) to stop threads and processes.
        """
        with self.image_set.reading() as images:
            threads = images.parallel
            make = partial(self._batch, images)
            yield from ordered(
                make, count(start_step), workers=threads, ahead=threads + 1, stop=images.stop
            )


def iterate_once(image_set: ImageSet, batch_size: int) -> Iterator[Batch]:
    """Yield every image once, in order, without random crop or flip; for evaluation.

    A batch holds consecutive images of one size, at most `batch_size`; a change of size ends it.
    With `on_broken="skip"` broken images are left out; if none is readable this is a `ValueError`,
    but for a part of a set, which then yields nothing.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")

    if isinstance(image_set, ArrayImages):
        for start in range(0, len(image_set), batch_size):
            pixels = image_set.pixels[start : start + batch_size]
            yield Batch(pixels, [image_set.name(start + i) for i in range(len(pixels))])
        return

    runs = [range(i, min(i + _RUN, len(image_set))) for i in range(0, len(image_set), _RUN)]
    batch: list[Pixels] = []
    keys: list[str] = []
    with image_set.reading() as source, closing(_in_order(source, runs)) as found:
        for index, image in enumerate(chain.from_iterable(found)):
            if isinstance(image, BrokenImageError):
                image_set.keep_or_fail(image)
                continue
            if batch and (len(batch) == batch_size or image.shape != batch[0].shape):
                yield Batch(torch.from_numpy(np.stack(batch)), keys)
                batch, keys = [], []
            batch.append(image)
            keys.append(image_set.name(index))
    if not batch:
        if image_set.partial:  # other parts may have readable ones
            return
        raise image_set.all_broken()
    yield Batch(torch.from_numpy(np.stack(batch)), keys)


def _in_order(
    source: ImageSet, runs: list[range]
) -> Generator[list[Pixels | BrokenImageError], None, None]:
    threads = source.parallel
    return ordered(source.several, runs, workers=threads, ahead=threads + 1, stop=source.stop)


def _draw_epoch(seed: int, number: int, items: int) -> _Epoch:
    def words(purpose: int, amount: int) -> npt.NDArray[np.uint64]:
        source = np.random.Philox(
            key=np.array([seed, number], dtype=np.uint64),
            counter=np.array([0, 0, 0, purpose], dtype=np.uint64),
        )
        return np.asarray(source.random_raw(amount), dtype=np.uint64)

    order = np.argsort(words(_ORDER, items), kind="stable").astype(np.int64)
    draws = (words(_DRAWS, 3 * items) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return _Epoch(number, order, draws.reshape(items, 3))
