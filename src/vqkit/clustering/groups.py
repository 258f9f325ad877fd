"""Every group of vectors clustered by itself, as VQGAN-LC does with the classes of ImageNet.

Each group is clustered by one process alone, with a seed of its own, so its result depends on
nothing but its vectors, in their order. As many groups as fit into 1 GiB are read together; a
larger group is read from its source in every iteration.

Legend: N vectors, G groups, K centres of all groups together, D dim.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqkit.clustering.draws import Purpose, words
from vqkit.clustering.processes import Processes
from vqkit.clustering.report import Clustering, Iteration, Report
from vqkit.clustering.settings import KMeansSettings
from vqkit.clustering.sources import RowsSource, VectorSource
from vqkit.clustering.state import State
from vqkit.config import require

GROUP_BYTES = 2**30
"""Vectors of groups held at a time."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Which rows belong together, and how many centres they get."""

    labels: Tensor
    """(G,) int64, ascending."""
    rows: Tensor
    """(N,) int64: rows of the first group, ascending, then of the second, ..."""
    sizes: Tensor
    """(G,) int64."""
    centres: Tensor
    """(G,) int64."""

    @classmethod
    def of(cls, labels: Tensor, num_vectors: int, num_clusters: int | Sequence[int]) -> Groups:
        """Sort rows by their labels (N,).

        Raises:
            ValueError: not one whole number per vector, not one K of at least 1 per group, or a
                group with fewer vectors than centres.
        """
        whole = not labels.is_floating_point() and labels.dtype != torch.bool
        require(
            labels.shape == (num_vectors,) and whole,
            f"groups={tuple(labels.shape)} of {labels.dtype}",
            f"need a whole number for each of the {num_vectors:,} vectors",
        )
        found, inverse, sizes = labels.long().cpu().unique(return_inverse=True, return_counts=True)
        wanted = _one_each(num_clusters, len(found))
        for label, size, count in zip(found.tolist(), sizes.tolist(), wanted, strict=True):
            require(
                count <= size,
                f"num_clusters={count}",
                f"group {label} has only {size:,} vectors; ask for fewer centres, or leave the "
                "group out",
            )
        return cls(found, inverse.argsort(stable=True), sizes, torch.tensor(wanted))

    def fingerprint(self) -> str:
        """Return a hash of rows, labels and numbers of centres."""
        digest = hashlib.sha256()
        for part in (self.labels, self.rows, self.sizes, self.centres):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()

    def settings(self, settings: KMeansSettings, group: int) -> KMeansSettings:
        """Return those of group number `group`: its K, and a seed by its label."""
        label = int(self.labels[group]) % 2**32
        seed = int(words(settings.seed, Purpose.GROUP, label, 0, 1)[0] >> np.uint64(1))
        return replace(settings, num_clusters=int(self.centres[group]), seed=seed)

    def batches(self, row_bytes: int) -> Iterator[list[int]]:
        """Yield neighbouring groups that are read together."""
        batch: list[int] = []
        held = 0
        for group, size in enumerate(self.sizes.tolist()):
            if batch and held + size * row_bytes > GROUP_BYTES:
                yield batch
                batch, held = [], 0
            batch.append(group)
            held += size * row_bytes
        if batch:
            yield batch

    def split(self, source: VectorSource, groups: list[int]) -> dict[int, VectorSource]:
        """Return a source for each of `groups`, read at once if they are not too many."""
        ends = self.sizes.cumsum(0)
        rows = {g: self.rows[int(ends[g] - self.sizes[g]) : int(ends[g])] for g in groups}
        if not groups:
            return {}
        row_bytes = source.dim * source.dtype.itemsize
        if sum(map(len, rows.values())) * row_bytes > GROUP_BYTES:
            return {g: RowsSource(source, rows[g]) for g in groups}
        order = torch.cat([rows[g] for g in groups]).sort()
        place = torch.empty_like(order.indices)
        place[order.indices] = torch.arange(len(place))
        held = source.take(order.values)
        parts = place.split([len(rows[g]) for g in groups])
        return {
            g: RowsSource(source, rows[g], held[part.to(held.device)])
            for g, part in zip(groups, parts, strict=True)
        }


class GroupRun:
    """Results of the groups so far."""

    def __init__(self, groups: Groups, state: State | None, iterations: int) -> None:
        """Begin, or continue a state: groups that had too few `iterations` are done again."""
        self.groups = groups
        self.results: dict[int, Clustering] = {}
        if state is not None:
            self._restore(state, iterations)

    def advance(
        self,
        source: VectorSource,
        cluster: Callable[[VectorSource, int], Clustering],
        processes: Processes,
    ) -> Iterator[int]:
        """Cluster what is missing; yields the vectors of the groups that have become ready.

        `cluster` does one group of a source. Every process does one at a time, then they exchange
        the results, or the first error.
        """
        for batch in self.groups.batches(source.dim * source.dtype.itemsize):
            missing = [group for group in batch if group not in self.results]
            mine = missing[processes.rank :: processes.size]
            sources = processes.agreed(partial(self.groups.split, source, mine))
            for first in range(0, len(missing), processes.size):
                together = missing[first : first + processes.size]
                group = together[processes.rank] if processes.rank < len(together) else None
                outcome = processes.agreed(partial(self._cluster, sources, group, cluster))
                for ready, found in zip(together, processes.gather(outcome), strict=False):
                    self.results[ready] = found
                yield int(self.groups.sizes[together].sum())

    def _cluster(
        self,
        sources: dict[int, VectorSource],
        group: int | None,
        cluster: Callable[[VectorSource, int], Clustering],
    ) -> Clustering | None:
        """Do one group and let go of its vectors; None if there is none left for this process."""
        if group is None:
            return None
        try:
            return on_cpu(cluster(sources.pop(group), group))
        except ValueError as error:
            raise ValueError(f"group {int(self.groups.labels[group])}: {error}") from error

    def state(self) -> State:
        """Return the results as a state."""
        done = sorted(self.results)
        found = [self.results[group] for group in done]
        none = torch.empty(0)
        tensors = {
            "groups": torch.tensor(done, dtype=torch.int64),
            "centres": torch.cat([none, *(c.centres.flatten() for c in found)]),
            "sizes": torch.cat([none.long(), *(c.sizes for c in found)]),
        }
        return State(tensors, {"reports": [asdict(c.report) for c in found]})

    def _restore(self, state: State, allowed: int) -> None:
        done = state.tensors["groups"].tolist()
        counts = self.groups.centres[done].tolist()
        flat, sizes = state.tensors["centres"], state.tensors["sizes"]
        centres = flat.view(sum(counts), -1) if done else flat.view(0, 1)
        for group, part, size, values in zip(
            done, centres.split(counts), sizes.split(counts), state.record["reports"], strict=True
        ):
            iterations = tuple(Iteration(**iteration) for iteration in values["iterations"])
            report = Report(**{**values, "iterations": iterations})
            if report.converged or len(report.iterations) >= allowed:
                self.results[group] = Clustering(part.clone(), size.clone(), report)

    @property
    def num_done(self) -> int:
        """Vectors of the groups that are done."""
        return int(self.groups.sizes[sorted(self.results)].sum())

    def result(self, device: torch.device) -> Clustering:
        """Join the groups in the order of their labels."""
        found = [self.results[group] for group in sorted(self.results)]
        return Clustering(
            torch.cat([c.centres for c in found]).to(device),
            torch.cat([c.sizes for c in found]).to(device),
            _joined([c.report for c in found]),
            self.groups.labels.repeat_interleave(self.groups.centres).to(device),
        )


def _one_each(num_clusters: Any, num_groups: int) -> list[int]:
    """Return K of every group, of one number for all or of one for each."""
    if isinstance(num_clusters, Tensor | np.ndarray):
        num_clusters = num_clusters.tolist()
    if isinstance(num_clusters, Integral):
        num_clusters = [num_clusters] * num_groups
    several = isinstance(num_clusters, Sequence) and not isinstance(num_clusters, str | bytes)
    wanted: list[Any] = list(num_clusters) if several else [num_clusters]
    for count in wanted:
        require(
            isinstance(count, Integral) and not isinstance(count, bool) and int(count) >= 1,
            f"num_clusters={count!r}",
            "need a whole number of at least 1, or a list with one for each group",
        )
    require(
        len(wanted) == num_groups,
        f"num_clusters: {len(wanted)} numbers",
        f"there are {num_groups} groups; give one number, or one for each group",
    )
    return [int(count) for count in wanted]


def _joined(reports: list[Report]) -> Report:
    """Add up reports; a group that has stopped keeps its last inertia."""
    total = sum(report.num_vectors for report in reports)
    joined = []
    for step in range(max(len(report.iterations) for report in reports)):
        running = [report for report in reports if step < len(report.iterations)]
        moved = [(r.iterations[step].moved, r.num_vectors) for r in running]
        joined.append(
            Iteration(
                sum(r.iterations[min(step, len(r.iterations) - 1)].inertia for r in reports),
                None
                if any(share is None for share, _ in moved)
                else sum((share or 0.0) * count for share, count in moved) / total,
                sum(r.iterations[step].repaired for r in running),
                sum(r.iterations[step].seconds for r in running),
            )
        )
    return Report(
        tuple(joined),
        all(report.converged for report in reports),
        sum(report.unused for report in reports),
        total,
    )


def on_cpu(result: Clustering) -> Clustering:
    """Return the result with its tensors on the CPU, where processes exchange them."""
    return replace(result, centres=result.centres.cpu(), sizes=result.sizes.cpu())
