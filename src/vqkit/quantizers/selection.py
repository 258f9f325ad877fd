"""Which features are codes: places of seldom drawn ones go to others from a pool.

The codes of VQGAN-LC lie where the features lie, one cluster next to another. Vectors may be dense
where features are rare; a projector that moves all codes at once cannot help there. What can is
another choice of features. Every code stays a feature of the pretrained encoder, and frozen.

Legend: N vectors, K codes, D dim, M features of the pool, F numbers of a feature.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqkit.search import Metric, nearest_with_scores

from . import ranks
from .clock import Clock
from .codebooks import Codebook, ProjectedCodebook
from .records import Assigned
from .updates import RowSample, UpdateRule, count_codes

TRIED, MOST = 4, 1024
"""Vectors that are tried for each code to be replaced, since not every one has a feature closer
than its code; and in a step at most, since all of the pool is searched for them."""


class Reselect(UpdateRule):
    """Replace codes that are not drawn by features whose projections lie among the vectors.

    A code that was not drawn while K times `patience` vectors went by is replaced (one that had
    the share 1/K would be missed with probability exp(-patience)). Vectors of the step are drawn,
    four for each such code and 1,024 at most; features of the pool that are no codes yet and lie
    closer to one of them than its code become codes. Places for which there is none wait for the
    next step. It is no part of VQGAN-LC, and on a GPU the step waits for the number of these codes.

    Args:
        codebook: frozen features behind a projector.
        pool: (M, F), any number of features of the same encoder.
        patience: vectors per code to wait for, above 0.
        metric: that of the assignment; what is closer is decided by it.

    Raises:
        ValueError: another codebook, a pool of another width, or a patience out of range.
    """

    pool: Tensor
    row: Tensor
    waited: Tensor
    counts: Tensor

    def __init__(
        self, codebook: Codebook, pool: Tensor, *, patience: float = 8.0, metric: Metric = "l2"
    ) -> None:
        super().__init__(codebook)
        self.check(codebook)
        assert isinstance(codebook, ProjectedCodebook)
        width = codebook.features.shape[1]
        if pool.ndim != 2 or pool.shape[1] != width or not pool.is_floating_point():
            raise ValueError(
                f"pool of shape {tuple(pool.shape)} and type {pool.dtype}: expected rows of "
                f"{width} floating-point numbers, like the features"
            )
        if not patience > 0:
            raise ValueError(f"patience={patience}: must be above 0")
        self.patience, self.metric = patience, metric
        self.register_buffer("pool", pool.detach().float().clone())
        self.register_buffer("row", torch.full((codebook.num_codes,), -1))
        self.register_buffer("waited", torch.zeros(codebook.num_codes, dtype=torch.int64))
        self.register_buffer("counts", torch.zeros(codebook.num_codes))
        self.sample = RowSample(codebook)

    def check(self, codebook: Codebook) -> None:
        """Raise `ValueError` unless there are frozen features behind a projector."""
        if not isinstance(codebook, ProjectedCodebook):
            raise ValueError(
                f"Reselect chooses among frozen features, and {type(codebook).__name__} has none; "
                "use a ProjectedCodebook, or drop the rule"
            )
        if isinstance(codebook.features, nn.Parameter):
            raise ValueError("Reselect: needs frozen features (frozen=True); these are trained")

    def collect(self, a: Assigned, codebook: Codebook, clock: Clock) -> None:
        """Count the codes of one training batch, and offer its vectors to the sample."""
        self.counts += count_codes(a.ids, codebook.num_codes)[0]
        self.sample.collect(a.z.detach(), clock)

    def reduce(self, clock: Clock) -> None:
        """Join the counts and samples of all processes."""
        self.counts.copy_(ranks.sum_over_ranks(self.counts))
        self.sample.reduce()

    def apply_to(self, codebook: Codebook, clock: Clock) -> None:
        """Give the places of codes that waited too long to features of the pool."""
        assert isinstance(codebook, ProjectedCodebook)
        self.waited += int(self.counts.sum())
        self.waited[self.counts > 0] = 0
        idle = (self.waited > self.patience * codebook.num_codes).nonzero()[:, 0]
        vectors = self.sample.sorted()[1][0]
        vectors = vectors[torch.isfinite(vectors).all(-1)][: min(TRIED * len(idle), MOST)]
        self.forget()
        chosen = self._features_near(vectors, codebook, clock)[: len(idle)]
        places = idle[: len(chosen)]
        codebook.features[places] = self.pool[chosen].to(codebook.features.dtype)
        self.row[places], self.waited[places] = chosen, 0

    def _features_near(self, vectors: Tensor, codebook: Codebook, clock: Clock) -> Tensor:
        """Return rows of the pool, each once, that are closer to one of vectors (n, D) than a code.

        One that is not would be drawn by nobody either.
        """
        assert isinstance(codebook, ProjectedCodebook)
        free = torch.ones(len(self.pool), dtype=torch.bool, device=self.pool.device)
        free[self.row[self.row >= 0]] = False
        rows = free.nonzero()[:, 0]
        if not len(vectors) or not len(rows):
            return rows[:0]
        features = self.pool[rows].to(codebook.features.dtype)
        codes, candidates = codebook.compute(clock)[0].detach(), codebook.projector(features)
        there = nearest_with_scores(vectors, codes, self.metric)[1]
        ids, here = nearest_with_scores(vectors, candidates, self.metric)
        chosen = rows[ids[here > there]]
        order = torch.arange(len(chosen), device=chosen.device)
        first = torch.full((len(free),), len(order), device=chosen.device)
        own = first.scatter_reduce_(0, chosen, order, "amin")[chosen] == order
        return chosen[own]

    def forget(self) -> None:
        """Clear the statistics of the step; how long codes have waited stays."""
        self.counts.zero_()
        self.sample.clear()

    def numbers(self) -> dict[str, int]:
        """Return how many codes are features of the pool by now, in place of their own."""
        return {"reselected": int((self.row >= 0).sum())}

    def summary(self) -> str:
        """Name the rule."""
        return f"reselected from {len(self.pool):,} features"
