"""The share of vectors that a process works on, read block by block, and what must be known first.

Legend: N vectors, n of a block, D dim, K centres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vqkit.clustering.processes import Processes
from vqkit.clustering.sources import VectorSource
from vqkit.search.exact import CHUNK_ELEMENTS, fold_sum
from vqkit.search.sums import sum_grid, to_grid

FLOAT32 = 2.0**-24
COARSE = 2.0**-7
"""Largest rounding that is accepted: of float64 data to float32, relative to their range; of values
to the grid of the sums, relative to the spread of the vectors."""


@dataclass(frozen=True, slots=True)
class Share:
    """A contiguous run of the rows of a source."""

    source: VectorSource
    processes: Processes
    block_rows: int
    device: torch.device
    tick: Callable[[int], None] = field(default=lambda rows: None)
    """Is told how many rows are done, after each block of a pass."""

    @property
    def start(self) -> int:
        """First row."""
        return self.processes.share(self.source.num_vectors)[0]

    @property
    def stop(self) -> int:
        """Last row + 1."""
        return self.processes.share(self.source.num_vectors)[1]

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (number of the first row, vectors (n, D)) as stored, on the device."""
        starts = list(range(self.start, self.stop, self.block_rows))
        if self.source.in_memory:
            for start in starts:
                yield start, self._read(start).to(self.device)
                self.tick(min(self.block_rows, self.stop - start))
            return
        with ThreadPoolExecutor(1) as reader:  # the next block is read while this one is used
            coming = reader.submit(self._read, starts[0]) if starts else None
            for start, following in zip(starts, [*starts[1:], None], strict=True):
                assert coming is not None, "there is a block for every start"
                block = coming.result()
                coming = None if following is None else reader.submit(self._read, following)
                yield start, block.to(self.device)
                self.tick(len(block))

    def vectors(self) -> Iterator[tuple[int, Tensor]]:
        """Yield blocks as they are searched: float16, bfloat16 or float32."""
        for start, block in self.blocks():
            yield start, usable(block)

    def _read(self, start: int) -> Tensor:
        return self.source.read(start, min(start + self.block_rows, self.stop))


def usable(block: Tensor) -> Tensor:
    """Round float64 to float32; half precision is widened by the search itself, piece by piece."""
    return block.float() if block.dtype == torch.float64 else block


@dataclass(frozen=True, slots=True)
class Survey:
    """What one pass over all vectors finds out."""

    low: Tensor
    """(D,) float64, smallest float32 value of each dimension, over all processes."""
    high: Tensor
    """(D,) largest."""
    rows: Tensor
    """The wanted rows of this process (n, D), float32."""


def survey(share: Share, wanted: Tensor, sample: Tensor) -> Survey:
    """Check all values, find their bounds, and pick the rows with ascending numbers `wanted`.

    `sample` (n, D) are some rows from all over the source, the same on every process.

    Raises:
        ValueError: a value that is not finite in float32 (the lowest such row is named, on every
            process), float64 values that are all alike in float32, or a value so large that the
            grid of the sums hides how the other vectors differ (its row is named).
    """
    source = share.source
    here, picked = share.processes.agreed(lambda: _look(share, wanted))
    found: list[_Looked] = share.processes.gather(here)
    bad = min(part.bad for part in found)
    if bad < source.num_vectors:
        raise ValueError(
            f"vectors: {source.place(bad)} holds a value that is not a finite float32; "
            "leave such rows out"
        )
    bounds, stored = here.bounds, here.stored
    for part in found:
        bounds, stored = bounds.wider(part.bounds), stored.wider(part.stored)
    _check_resolution(bounds, stored)
    largest, row = max((part.far for part in found), key=lambda far: (far[0], -far[1]))
    _check_spread(source, sample, largest, row)
    return Survey(bounds.low, bounds.high, picked)


@dataclass(frozen=True, slots=True)
class _Looked:
    """What one process has seen."""

    bad: int
    """Its first row that is not finite, or N."""
    bounds: _Bounds
    stored: _Bounds
    """Before float64 is rounded."""
    far: tuple[float, int]
    """Its largest absolute value, and the first row with it."""


def _look(share: Share, wanted: Tensor) -> tuple[_Looked, Tensor]:
    """Read the rows of this process, and pick those it has of `wanted`."""
    source = share.source
    mine = wanted[(wanted >= share.start) & (wanted < share.stop)]
    bounds, stored = _Bounds.none(source.dim), _Bounds.none(source.dim)
    bad, far = source.num_vectors, (-1.0, 0)
    picked = [torch.empty(0, source.dim, device=share.device)]
    for start, block in share.blocks():
        vectors = usable(block)
        own = _Bounds.of(vectors)
        bounds = bounds.wider(own)
        if not bounds.finite():
            bad = start + int((~vectors.isfinite().all(-1)).nonzero()[0])
            break
        if own.largest() > far[0]:
            far = (own.largest(), start + int(vectors.amax(1).maximum(-vectors.amin(1)).argmax()))
        if block.dtype == torch.float64:
            stored = stored.wider(_Bounds.of(block))
        first, last = torch.searchsorted(mine, torch.tensor([start, start + len(block)])).tolist()
        picked.append(vectors[(mine[first:last] - start).to(share.device)].float())
    return _Looked(bad, bounds, stored, far), torch.cat(picked)


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Smallest and largest values (D,) float64, NaN where there is one."""

    low: Tensor
    high: Tensor

    @classmethod
    def none(cls, dim: int) -> _Bounds:
        nothing = torch.full((dim,), torch.inf, dtype=torch.float64)
        return cls(nothing, -nothing)

    @classmethod
    def of(cls, vectors: Tensor) -> _Bounds:
        return cls(vectors.amin(0).double().cpu(), vectors.amax(0).double().cpu())

    def wider(self, other: _Bounds) -> _Bounds:
        return _Bounds(self.low.minimum(other.low), self.high.maximum(other.high))

    def finite(self) -> bool:
        return bool((self.low.isfinite() & self.high.isfinite()).all())

    def largest(self) -> float:
        return float(self.low.abs().maximum(self.high.abs()).max())


def _check_resolution(bounds: _Bounds, stored: _Bounds) -> None:
    """Refuse float64 data so far from the origin that float32 cannot tell them apart."""
    rounding = FLOAT32 * bounds.low.abs().maximum(bounds.high.abs())
    coarse = (stored.high > stored.low) & (rounding > COARSE * (stored.high - stored.low))
    if bool(coarse.any()):
        column = int(coarse.nonzero()[0])
        low, high = float(stored.low[column]), float(stored.high[column])
        raise ValueError(
            f"vectors: column {column} lies in [{low!r}, {high!r}], which float32 can hardly tell "
            "apart; subtract its mean first"
        )


def _check_spread(source: VectorSource, sample: Tensor, largest: float, row: int) -> None:
    """Refuse data with an outlier so far away that sums fit for it cannot tell the others apart."""
    rows = sample.double()
    away = (rows - rows.median(0).values).abs().amax(-1)
    away = away[away > 0]
    grid = sum_grid(largest, source.num_vectors)
    if len(away) and grid > COARSE * float(away.median()):
        raise ValueError(
            f"vectors: {source.place(row)} holds {largest:.3g} (absolute), while vectors differ by "
            f"about {float(away.median()):.3g}, which sums with such a value cannot hold; leave "
            "outliers out, or subtract the mean if all vectors lie that far from the origin"
        )


def energy(vectors: Tensor, middle: Tensor, grids: tuple[float, float]) -> Tensor:
    """Sum the squared distances of vectors (n, D) from `middle` (D,), exactly on two grids.

    What the coarse grid, which bears outliers, cuts off each distance goes onto the fine one.

    Returns:
        (2,) float64, the sums on both grids.
    """
    coarse, fine = grids
    total = torch.zeros(2, dtype=torch.float64, device=vectors.device)
    for part in vectors.split(max(1, CHUNK_ELEMENTS // vectors.shape[1])):
        squared = fold_sum((part.double() - middle).square_())
        rough = to_grid(squared, coarse) * coarse
        total[0] += rough.sum()
        total[1] += to_grid(squared - rough, fine).sum() * fine
    return total
