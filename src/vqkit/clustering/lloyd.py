"""One iteration of Lloyd's algorithm, with empty centres repaired.

All sums are taken on a grid (`search.sums`), so the new centres do not depend on blocks, shards,
threads or processes. Inertia costs O(K D), not another pass over the vectors: around a fixed point
m, with n_k vectors that sum to S_k at centre c_k,

    sum |x - c(x)|^2 = sum |x - m|^2 + sum_k (c_k - m) . (n_k (c_k - m) - 2 (S_k - n_k m)),

where the first term never changes.

Legend: N vectors, n of this process, K centres, D dim, E empty centres.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vqkit.clustering.survey import Share, energy
from vqkit.search import nearest
from vqkit.search.exact import CHUNK_ELEMENTS, closeness, fold_sum
from vqkit.search.sums import code_sums, sum_grid, to_grid

MIDDLE_OF = 4096
"""Centres whose median is the fixed point m: outliers among them must not move it."""
SPARE = 64
"""More candidates for E empty centres than E: copies of one another are no use."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What all iterations over the same vectors share."""

    grid: float
    """For sums of values."""
    square_grids: tuple[float, float]
    """For sums of squared distances from `middle`, see `energy`."""
    middle: Tensor
    """(D,) float64, a point amid the vectors."""

    @classmethod
    def of(cls, low: Tensor, high: Tensor, count: int, centres: Tensor) -> Scale:
        """Choose for `count` vectors between low and high (D,), and the first centres (K, D)."""
        some = centres[:: -(-len(centres) // MIDDLE_OF)]
        middle = some.median(0).values.double()
        point = middle.cpu()
        reach = (high - point).maximum(point - low)
        largest = float(low.abs().maximum(high.abs()).max())
        # Twice the exact bound, for its own rounding.
        coarse = sum_grid(2 * float(fold_sum(reach.square()[None])), count)
        return cls(sum_grid(largest, count), (coarse, sum_grid(coarse, count)), middle)


@dataclass(frozen=True, slots=True)
class Sums:
    """Statistics of an assignment, of all processes."""

    counts: Tensor
    """(K,) int64."""
    sums: Tensor
    """(K, D) float64."""
    moved: int
    energy: float | None
    """Sum of |x - middle|^2, if it was asked for."""

    def inertia(self, centres: Tensor, middle: Tensor, energy: float) -> float:
        """Sum the squared distances from centres (K, D)."""
        step = max(1, CHUNK_ELEMENTS // centres.shape[1])
        terms = []
        for start in range(0, len(centres), step):
            part = slice(start, start + step)
            offset = centres[part].double() - middle
            counts = self.counts[part, None].double()
            terms.append(fold_sum(offset * (counts * (offset + 2 * middle) - 2 * self.sums[part])))
        return max(0.0, energy + float(fold_sum(torch.cat(terms)[None])))


def assign(
    share: Share, centres: Tensor, ids: Tensor, scale: Scale, *, measure: bool = False
) -> Sums:
    """Find the nearest centres of all vectors and sum them up; one pass.

    Args:
        share: the vectors of this process.
        centres: (K, D).
        ids: (n,) int32, those of the iteration before (-1: none); overwritten with the new ones.
        scale: grids and middle.
        measure: also sum up the energy.
    """
    num_centres, dim = centres.shape
    counts = torch.zeros(num_centres, dtype=torch.int64, device=centres.device)
    sums = torch.zeros(num_centres, dim, dtype=torch.float64, device=centres.device)
    moved = torch.zeros(1, dtype=torch.int64, device=centres.device)
    squares = torch.zeros(2, dtype=torch.float64, device=centres.device)

    def read() -> None:
        for start, vectors in share.vectors():
            found = nearest(vectors, centres)
            former = ids[start - share.start : start - share.start + len(vectors)]
            moved.add_((found != former).sum())
            former.copy_(found)
            counts.add_(torch.bincount(found, minlength=num_centres))
            code_sums(vectors, found, num_centres, scale.grid, into=sums)
            if measure:
                squares.add_(energy(vectors, scale.middle, scale.square_grids))

    share.processes.agreed(read)
    counts, sums, moved, squares = map(share.processes.sum, (counts, sums, moved, squares))
    return Sums(counts, sums, int(moved), float(squares.sum()) if measure else None)


@dataclass(frozen=True, slots=True)
class Update:
    """Centres after an iteration."""

    centres: Tensor
    """(K, D) float32."""
    sizes: Tensor
    """(K,) int64: the vectors that each is the mean of."""
    repaired: int


def update(share: Share, centres: Tensor, ids: Tensor, found: Sums, scale: Scale) -> Update:
    """Move every centre to the mean of its vectors, and empty ones to the worst served vectors.

    A centre that stays empty (no vector is away from its centre) keeps its place.
    """
    counts, sums = found.counts, found.sums
    empty = (counts == 0).nonzero()[:, 0]
    repaired = 0
    if len(empty):
        counts, sums, repaired = _relocate(share, centres, ids, found, empty, scale)
    means = (sums / counts.clamp(min=1)[:, None]).float()
    return Update(torch.where(counts[:, None] > 0, means, centres), counts, repaired)


def _relocate(
    share: Share, centres: Tensor, ids: Tensor, found: Sums, empty: Tensor, scale: Scale
) -> tuple[Tensor, Tensor, int]:
    """Give each of the empty centres (E,) the vector farthest from its own, as scikit-learn does.

    It reads the vectors once more. Vectors leave their centre's sum; equal vectors, and the only
    one that a centre has, are passed over. Ties go to the lowest row, in any number of processes.
    """
    distances, owners, vectors = _farthest(share, centres, ids, len(empty) + SPARE)
    keys = vectors.cpu().numpy()
    left = found.counts[owners].tolist()  # of the owner of each candidate, before any leaves
    taken: dict[int, int] = {}
    seen: set[bytes] = set()
    chosen: list[int] = []
    for number, owner in enumerate(owners.tolist()):
        key = keys[number].tobytes()
        if len(chosen) == len(empty) or distances[number] <= 0:
            break
        if key in seen or left[number] - taken.get(owner, 0) < 2:
            continue
        seen.add(key)
        taken[owner] = taken.get(owner, 0) + 1
        chosen.append(number)
    filled = empty[: len(chosen)]
    moved = to_grid(vectors[chosen], scale.grid) * scale.grid
    owner = owners[chosen]
    sums = found.sums.index_add(0, owner, -moved)
    sums[filled] = moved
    counts = found.counts.index_add(0, owner, torch.full_like(owner, -1))
    counts[filled] = 1
    return counts, sums, len(chosen)


def _farthest(
    share: Share, centres: Tensor, ids: Tensor, count: int
) -> tuple[list[float], Tensor, Tensor]:
    """List the vectors farthest from their centres: distances, centres' ids (m,), vectors (m, D).

    Descending, the lowest row first among equals; the same on every process.
    """
    mine = share.processes.agreed(lambda: _farthest_here(share, centres, ids, count))
    far, owners, vectors = map(share.processes.gather_rows, mine)
    keep = far.argsort(descending=True, stable=True)[:count]
    return far[keep].tolist(), owners[keep], vectors[keep]


def _farthest_here(
    share: Share, centres: Tensor, ids: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """List those of this process."""
    device = centres.device
    far = torch.empty(0, dtype=torch.float64, device=device)
    owners = torch.empty(0, dtype=torch.int64, device=device)
    vectors = torch.empty(0, centres.shape[1], device=device)
    for start, block in replace(share, tick=lambda rows: None).vectors():
        own = ids[start - share.start : start - share.start + len(block)].long()
        distance = -closeness(block, centres, None, own, "l2")
        best = distance.argsort(descending=True, stable=True)[:count]
        far = torch.cat([far, distance[best]])
        owners = torch.cat([owners, own[best]])
        vectors = torch.cat([vectors, block[best].float()])
        keep = far.argsort(descending=True, stable=True)[:count]
        far, owners, vectors = far[keep], owners[keep], vectors[keep]
    return far, owners, vectors
