"""Where centres begin: random rows, or rows far from one another (k-means++).

`k-means++` (Arthur and Vassilvitskii 2007) draws every centre with a probability proportional to
the squared distance from the centres before it. Here it works on a sample of 32 rows for each
centre (8 where 32 are more than 1 GiB; 16,384 at least, all rows of small data). Up to 256 centres
it is that, one draw after the other. Beyond, every round draws a fifth of the centres it ends with
at once and only then updates the distances, as k-means|| does (Bahmani et al. 2012, "Scalable
k-means++"), so that all rounds together search the sample once.

Squared distances (float64) are rounded to a grid on which their sums are exact, and a draw inverts
the cumulative sum: the centres do not depend on how the sample is spread over processes.

Legend: n sample rows of this process, S of all, D dim, K centres.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqkit.clustering.draws import Purpose, distinct_rows, uniforms
from vqkit.clustering.processes import Processes
from vqkit.clustering.settings import KMeansSettings
from vqkit.search import nearest
from vqkit.search.exact import CHUNK_ELEMENTS, fold_sum
from vqkit.search.sums import sum_grid, to_grid

ROWS_PER_CENTRE = (8, 32)
SAMPLE_BYTES = 2**30
MIN_SAMPLE = 2**14
ONE_BY_ONE = 256
"""Up to so many centres every one is a round of its own."""
GROWTH = 4
"""Later rounds draw one centre for so many that there are."""
MAX_ROUNDS = 512
"""What is then missing (data with a few huge distances after one another) are random rows."""


def wanted_rows(settings: KMeansSettings, num_vectors: int, dim: int) -> Tensor:
    """Return the ascending numbers (S,) of the rows that centres will be chosen from."""
    if settings.init == "given":
        return torch.empty(0, dtype=torch.int64)
    count = settings.num_clusters
    if settings.init == "k-means++":
        few, many = (per_centre * count for per_centre in ROWS_PER_CENTRE)
        count = max(few, min(many, SAMPLE_BYTES // (4 * dim)), MIN_SAMPLE)
    count = min(count, num_vectors)
    return distinct_rows(settings.seed, Purpose.SAMPLE, 0, count, num_vectors)


def seed_centres(settings: KMeansSettings, rows: Tensor, processes: Processes) -> Tensor:
    """Choose centres (K, D) from this process's part (n, D) of the wanted rows."""
    if settings.init == "random":
        return processes.gather_rows(rows)
    return _Seeding(settings, rows, processes).run()


class _Seeding:
    """k-means++ over a sample that may be spread over processes."""

    def __init__(self, settings: KMeansSettings, rows: Tensor, processes: Processes) -> None:
        self.seed, self.num_centres = settings.seed, settings.num_clusters
        self.rows, self.processes = rows, processes
        counts = processes.gather(len(rows))
        self.offset = sum(counts[: processes.rank])
        self.total = sum(counts)
        self.distances = torch.full(
            (len(rows),), torch.inf, dtype=torch.float64, device=rows.device
        )
        self.chosen = torch.zeros(self.total, dtype=torch.bool)
        self.centres: list[Tensor] = []
        self.count = 0

    def run(self) -> Tensor:
        """Draw rounds of centres until there are K."""
        first = distinct_rows(self.seed, Purpose.SEEDING, 0, 1, self.total)
        self._add(first)
        for step in range(1, MAX_ROUNDS):
            missing = self.num_centres - self.count
            if missing == 0:
                break
            drawn = self._draw(step, self._size_of_round(missing))
            if len(drawn) == 0:
                break  # every row lies on a centre
            self._add(drawn)
        missing = self.num_centres - self.count
        if missing:
            free = (~self.chosen).nonzero()[:, 0]
            some = distinct_rows(self.seed, Purpose.LEFTOVER, 0, missing, len(free))
            self._add(free[some])
        return torch.cat(self.centres)

    def _size_of_round(self, missing: int) -> int:
        if self.num_centres <= ONE_BY_ONE:
            return 1
        return min(max(1, self.count // GROWTH), missing)

    def _draw(self, step: int, count: int) -> Tensor:
        """Draw up to `count` different rows by their squared distances, as numbers in the sample.

        All arithmetic is exact but for the rounding of the targets, which everybody does alike.
        """
        largest = max(self.processes.gather(float(self.distances.max()) if len(self.rows) else 0.0))
        if largest == 0:
            return torch.empty(0, dtype=torch.int64)
        grid = sum_grid(largest, self.total)
        cumulative = to_grid(self.distances, grid).cumsum(0)  # whole numbers below 2^53
        subtotals = self.processes.gather(float(cumulative[-1]) if len(self.rows) else 0.0)
        before = sum(subtotals[: self.processes.rank])
        targets = (uniforms(self.seed, Purpose.SEEDING, step, count) * sum(subtotals)).floor()
        targets = targets.clamp(max=sum(subtotals) - 1) - before
        mine = targets[(targets >= 0) & (targets < subtotals[self.processes.rank])]
        places = torch.searchsorted(cumulative, mine.to(cumulative.device), right=True).cpu()
        return torch.cat(self.processes.gather(places + self.offset)).unique()

    def _add(self, numbers: Tensor) -> None:
        """Make rows with ascending numbers (m,) in the sample centres, and update distances."""
        self.chosen[numbers] = True
        mine = numbers[(numbers >= self.offset) & (numbers < self.offset + len(self.rows))]
        centres = self.processes.gather_rows(self.rows[(mine - self.offset).to(self.rows.device)])
        self.centres.append(centres)
        self.count += len(centres)
        ids = None if len(centres) == 1 or len(self.rows) == 0 else nearest(self.rows, centres)
        step = max(1, CHUNK_ELEMENTS // self.rows.shape[1])
        for start in range(0, len(self.rows), step):
            part = slice(start, start + step)
            near = centres if ids is None else centres[ids[part]]
            squared = fold_sum((self.rows[part].double() - near).square_())
            torch.minimum(self.distances[part], squared, out=self.distances[part])
