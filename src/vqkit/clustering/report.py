"""What a clustering brings: centres, how many vectors each has, and how it went."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Iteration:
    """One pass over the vectors, or one batch."""

    inertia: float
    """Sum of the squared distances from the nearest of the centres that the iteration began with;
    of a batch, times vectors / batch size."""
    moved: float | None
    """Share of the vectors whose nearest centre is another one than in the iteration before; 1 in
    the first. None for batches, which hold other vectors every time."""
    repaired: int
    """Centres without vectors that were moved to one."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """How good a clustering is."""

    iterations: tuple[Iteration, ...]
    converged: bool
    """Whether it stopped before the last iteration allowed, because nothing changed any more (or
    less than the tolerance)."""
    unused: int
    """Centres without vectors that no repair could help: there are fewer different vectors."""
    num_vectors: int

    @property
    def inertia(self) -> float:
        """Inertia of the last iteration: a bound, since its update made the centres better."""
        return self.iterations[-1].inertia

    @property
    def repaired(self) -> int:
        """Empty centres repaired in all iterations."""
        return sum(iteration.repaired for iteration in self.iterations)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Clustering:
    """The result of `kmeans`, on the device of the search."""

    centres: Tensor
    """(K, D) float32."""
    sizes: Tensor
    """(K,) int64: how many vectors each centre is the mean of. With `minibatch`: those of all
    batches so far, a vector once for each batch that held it; a seldom used centre that was moved
    begins with the smallest number of the others. No counts of an assignment of all vectors."""
    report: Report
    groups: Tensor | None = None
    """Group of every centre (K,), int64, ascending; None without groups."""

    def summary(self) -> str:
        """Describe the clustering in a few lines of facts."""
        report, sizes = self.report, self.sizes.double()
        share = sizes[sizes > 0] / sizes.sum()
        perplexity = float(torch.exp(-(share * share.log()).sum()))
        middle = int(self.sizes.median())
        batches = report.iterations[-1].moved is None
        counted = "vectors in each mean, over all batches" if batches else "vectors per centre"
        lines = [
            f"{report.num_vectors:,} vectors, {len(sizes):,} centres, "
            f"{len(report.iterations):,} iterations" + (", converged" if report.converged else ""),
            f"{counted}: smallest {int(sizes.min()):,}, median {middle:,}, largest "
            f"{int(sizes.max()):,}; perplexity {perplexity:,.1f}",
            f"empty centres: {report.repaired:,} repaired, {report.unused:,} left",
        ]
        for number, iteration in enumerate(report.iterations, 1):
            moved = "" if iteration.moved is None else f"moved {100 * iteration.moved:.2f} %, "
            lines.append(
                f"iteration {number}: inertia {iteration.inertia:.6g}, {moved}"
                f"repaired {iteration.repaired:,}, {iteration.seconds:.2f} s"
            )
        return "\n".join(lines)
