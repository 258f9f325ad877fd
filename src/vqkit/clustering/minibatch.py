"""Mini-batch k-means: D. Sculley, "Web-scale k-means clustering", WWW 2010, algorithm 1.

Every centre is the mean of all vectors that batches have given it so far (a learning rate of
1 / count), taken a batch at a time. A batch is made of runs of `batch_run` neighbouring rows; all
runs come once in a seeded order before any comes again, so files are read in whole pieces.

Seldom used centres (a count below 1 % of the largest) move to vectors of the batch once ten
vectors for each centre have passed, as in scikit-learn; at most half a batch is used for that.

Legend: N vectors, n of this process, K centres, D dim, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vqkit.clustering.draws import Purpose, distinct_rows, order
from vqkit.clustering.lloyd import Scale, Sums
from vqkit.clustering.settings import KMeansSettings
from vqkit.clustering.survey import Share, energy, usable
from vqkit.search import nearest
from vqkit.search.sums import code_sums

_order = lru_cache(maxsize=2)(order)  # an epoch has many batches

SELDOM = 0.01
PASSED_PER_CENTRE = 10


@dataclass(frozen=True, slots=True)
class Means:
    """Running means."""

    centres: Tensor
    """(K, D) float64."""
    counts: Tensor
    """(K,) int64: vectors in each mean."""
    passed: int
    """Vectors seen since seldom used centres were last looked for."""


@dataclass(frozen=True, slots=True)
class Batches:
    """The order in which rows come."""

    settings: KMeansSettings
    num_vectors: int

    def rows(self, step: int) -> Tensor:
        """Return the rows (B,) of batch number `step`, ascending; a function of step alone."""
        run = min(self.settings.batch_run, self.num_vectors)
        num_runs = -(-self.num_vectors // run)
        in_batch = min(max(1, self.settings.batch(self.num_vectors) // run), num_runs)
        epoch, place = divmod(step * in_batch, num_runs)
        shuffled = _order(self.settings.seed, Purpose.BATCH, epoch, num_runs)
        chosen = shuffled[place : place + in_batch]
        if len(chosen) < in_batch:  # the rest begins the next epoch, without what is there already
            following = _order(self.settings.seed, Purpose.BATCH, epoch + 1, num_runs)
            chosen = torch.cat([chosen, following[: in_batch - len(chosen)]])
        starts = chosen.unique() * run
        rows = (starts[:, None] + torch.arange(run)).flatten()
        return rows[rows < self.num_vectors]


def step_batch(
    share: Share, means: Means, rows: Tensor, scale: Scale, settings: KMeansSettings, step: int
) -> tuple[Means, float, int]:
    """Use the batch of `rows` (B,): new means, inertia scaled to all vectors, centres moved."""
    first, last = share.processes.share(len(rows))
    vectors = share.processes.agreed(
        lambda: usable(share.source.take(rows[first:last]).to(share.device))
    )
    centres = means.centres.float()
    found = _batch_sums(share, vectors, centres, scale)
    assert found.energy is not None, "it was measured"
    inertia = found.inertia(centres, scale.middle, found.energy)
    total = means.counts + found.counts
    mixed = (means.centres * means.counts[:, None] + found.sums) / total.clamp(min=1)[:, None]
    mixed = torch.where(total[:, None] > 0, mixed, means.centres)
    result, moved = Means(mixed, total, means.passed + len(rows)), 0
    if result.passed >= PASSED_PER_CENTRE * len(centres):
        result, moved = _reassign(share, result, vectors, len(rows), settings.seed, step)
    share.tick(len(rows))
    return result, inertia * share.source.num_vectors / len(rows), moved


def _batch_sums(share: Share, vectors: Tensor, centres: Tensor, scale: Scale) -> Sums:
    ids = nearest(vectors, centres)
    counts = torch.bincount(ids, minlength=len(centres))
    sums = code_sums(vectors, ids, len(centres), scale.grid)
    squares = energy(vectors, scale.middle, scale.square_grids)
    counts, sums, squares = map(share.processes.sum, (counts, sums, squares))
    return Sums(counts, sums, 0, float(squares.sum()))


def _reassign(
    share: Share, means: Means, vectors: Tensor, size: int, seed: int, step: int
) -> tuple[Means, int]:
    """Move seldom used centres to different rows of the batch; `vectors` are this process's."""
    seldom = (means.counts < SELDOM * means.counts.max()).nonzero()[:, 0]
    seldom = seldom[means.counts[seldom].argsort(stable=True)][: size // 2]
    if len(seldom) == 0:
        return Means(means.centres, means.counts, 0), 0
    rows = distinct_rows(seed, Purpose.REASSIGN, step, len(seldom), size)
    first, last = share.processes.share(size)
    mine = rows[(rows >= first) & (rows < last)] - first
    chosen = share.processes.gather_rows(vectors[mine.to(vectors.device)].double())
    centres, counts = means.centres.clone(), means.counts.clone()
    used = torch.ones_like(counts, dtype=torch.bool)
    used[seldom] = False
    centres[seldom] = chosen
    counts[seldom] = counts[used].min()  # as mobile as the least settled of the others
    return Means(centres, counts, 0), len(seldom)
