"""A run over one source: how it begins or continues, and what one iteration does.

Legend: N vectors, n of this process, K centres, D dim.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from vqkit.clustering.lloyd import Scale, Update, assign, update
from vqkit.clustering.minibatch import Batches, Means, step_batch
from vqkit.clustering.report import Clustering, Iteration, Report
from vqkit.clustering.seeding import seed_centres, wanted_rows
from vqkit.clustering.settings import KMeansSettings
from vqkit.clustering.state import State
from vqkit.clustering.survey import Share, survey
from vqkit.search import nearest


@dataclass(frozen=True, slots=True)
class Moment:
    """Everything between two iterations; replaced as a whole, so an interrupt finds it whole."""

    centres: Tensor
    """(K, D) float32; minibatch float64."""
    previous: Tensor
    """(K, D) centres before the last update of `lloyd`: they give back the ids, which are not
    saved."""
    sizes: Tensor
    """(K,) int64."""
    iterations: tuple[Iteration, ...] = ()
    converged: bool = False
    energy: float | None = None
    passed: int = 0

    @property
    def step(self) -> int:
        """Iterations done."""
        return len(self.iterations)


class Run(ABC):
    """One algorithm at work."""

    def __init__(self, share: Share, settings: KMeansSettings, scale: Scale, now: Moment) -> None:
        self.share, self.settings, self.scale, self.now = share, settings, scale, now

    @abstractmethod
    def advance(self) -> None:
        """Do one iteration."""

    def state(self) -> State:
        """Return what `resumed` needs."""
        now = self.now
        tensors = {
            "centres": now.centres,
            "previous": now.previous,
            "sizes": now.sizes,
            "middle": self.scale.middle,
        }
        record = {
            "iterations": [asdict(iteration) for iteration in now.iterations],
            "converged": now.converged,
            "energy": now.energy,
            "passed": now.passed,
            "grids": [self.scale.grid, *self.scale.square_grids],
        }
        return State(tensors, record)

    def result(self) -> Clustering:
        """Return what there is."""
        now = self.now
        report = Report(
            now.iterations,
            now.converged,
            int((now.sizes == 0).sum()),
            self.share.source.num_vectors,
        )
        return Clustering(now.centres.float(), now.sizes, report)


class LloydRun(Run):
    """All vectors in every iteration."""

    def __init__(self, share: Share, settings: KMeansSettings, scale: Scale, now: Moment) -> None:
        super().__init__(share, settings, scale, now)
        self._ids: Tensor | None = None

    def advance(self) -> None:
        """Assign all vectors and move the centres."""
        began, now = time.monotonic(), self.now
        ids = self._former_ids()
        found = assign(self.share, now.centres, ids, self.scale, measure=now.energy is None)
        energy = found.energy if now.energy is None else now.energy
        assert energy is not None, "the first iteration measures it"
        inertia = found.inertia(now.centres, self.scale.middle, energy)
        new = update(self.share, now.centres, ids, found, self.scale)
        if found.moved == 0 and new.repaired and torch.equal(new.centres, now.centres):
            # Repaired as in the iteration before, which no vector noticed: nothing will change.
            new = Update(now.centres, found.counts, 0)
        done = Iteration(
            inertia,
            found.moved / self.share.source.num_vectors,
            new.repaired,
            time.monotonic() - began,
        )
        still = found.moved == 0 or self._little_gained(inertia)
        self.now = Moment(
            new.centres,
            now.centres,
            new.sizes,
            (*now.iterations, done),
            still and new.repaired == 0,
            energy,
        )

    def _little_gained(self, inertia: float) -> bool:
        if not self.now.iterations or self.settings.tolerance == 0:
            return False
        before = self.now.iterations[-1].inertia
        return before - inertia < self.settings.tolerance * before

    def _former_ids(self) -> Tensor:
        """Return the ids (n,) of the iteration before; after a resume they are found again."""
        if self._ids is None:
            share = self.share
            count = share.stop - share.start
            ids = torch.full((count,), -1, dtype=torch.int32, device=share.device)
            if self.now.step:
                share.processes.agreed(lambda: self._find_again(ids))
            self._ids = ids
        return self._ids

    def _find_again(self, ids: Tensor) -> None:
        for start, vectors in self.share.vectors():
            place = start - self.share.start
            ids[place : place + len(vectors)] = nearest(vectors, self.now.previous)


class MinibatchRun(Run):
    """A batch in every iteration."""

    def advance(self) -> None:
        """Use the next batch."""
        began, now = time.monotonic(), self.now
        rows = Batches(self.settings, self.share.source.num_vectors).rows(now.step)
        means = Means(now.centres, now.sizes, now.passed)
        new, inertia, moved = step_batch(
            self.share, means, rows, self.scale, self.settings, now.step
        )
        done = Iteration(inertia, None, moved, time.monotonic() - began)
        self.now = replace(
            now,
            centres=new.centres,
            sizes=new.counts,
            iterations=(*now.iterations, done),
            passed=new.passed,
        )


RUNS: dict[str, type[Run]] = {"lloyd": LloydRun, "minibatch": MinibatchRun}


def begin(share: Share, settings: KMeansSettings, start: Tensor | None, sample: Tensor) -> Run:
    """Survey the vectors and choose the first centres.

    `start` (K, D) are given ones; `sample` (n, D) rows of the whole source.
    """
    source = share.source
    wanted = wanted_rows(settings, source.num_vectors, source.dim)
    found = survey(share, wanted, sample)
    if start is None:
        start = seed_centres(settings, found.rows, share.processes)
    kind = torch.float32 if settings.algorithm == "lloyd" else torch.float64
    centres = start.to(share.device, kind)
    scale = Scale.of(found.low, found.high, source.num_vectors, centres)
    sizes = torch.zeros(len(centres), dtype=torch.int64, device=share.device)
    previous = centres.new_empty(0, source.dim)
    return RUNS[settings.algorithm](share, settings, scale, Moment(centres, previous, sizes))


def resumed(share: Share, settings: KMeansSettings, state: State) -> Run:
    """Build the run that a state was saved from."""
    record = state.record
    tensors = {name: tensor.to(share.device) for name, tensor in state.tensors.items()}
    moment = Moment(
        tensors["centres"],
        tensors["previous"],
        tensors["sizes"],
        tuple(Iteration(**values) for values in record["iterations"]),
        record["converged"],
        record["energy"],
        record["passed"],
    )
    grid, coarse, fine = record["grids"]
    scale = Scale(grid, (coarse, fine), tensors["middle"])
    return RUNS[settings.algorithm](share, settings, scale, moment)
