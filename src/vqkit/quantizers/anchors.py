"""CVQ's online clustering of seldom-used codes, the same for any number of processes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vqkit.search import (
    Metric,
    choose_by_weight,
    nearest_with_scores,
    sample_softmax_rows,
    softmax_row_log_weights,
)

from . import ranks
from .clock import Clock
from .codebooks import Codebook
from .records import Assigned
from .updates import RowSample, Statistics, UpdateRule, count_codes

ANCHOR_DRAW, POOL_ORDER = 5, 6  # streams of random numbers; see Clock.uniform


class Anchors(UpdateRule):
    """CVQ's online clustering: seldom-used codes are drawn to vectors (arXiv:2307.15139, eq. 4-6).

    p ← γp + (1-γ)·share;  α = exp(-p·K·10/(1-γ) - 1e-3);  code ← (1-α)·code + α·anchor.

    Anchors: `closest`, the most similar vector of the step; `random`, a pool of vectors;
    `probrandom`, one draw per code from the softmax of the similarities over all vectors.
    """

    usage: Tensor
    counts: Tensor

    def __init__(
        self,
        codebook: Codebook,
        *,
        anchors: str = "closest",
        metric: Metric = "l2",
        decay: float = 0.99,
    ) -> None:
        super().__init__(codebook)
        if anchors not in SOURCES:
            choices = ", ".join(map(repr, SOURCES))
            raise ValueError(f"anchors={anchors!r}: expected one of {choices}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: must lie in [0, 1)")
        self.kind, self.metric, self.decay = anchors, metric, decay
        self.source = SOURCES[anchors](codebook, metric)
        self.register_buffer("usage", torch.zeros(codebook.groups, codebook.num_codes))
        self.register_buffer("counts", torch.zeros(codebook.groups, codebook.num_codes))

    def collect(self, a: Assigned, codebook: Codebook, clock: Clock) -> None:
        """Add one training batch to the statistics."""
        assert a.table is not None, "a lattice is not writable; check() has seen to it"
        self.counts += count_codes(a.ids, codebook.num_codes)
        self.source.collect(a.z.detach(), a.table.detach(), clock)

    def reduce(self, clock: Clock) -> None:
        """Find every code's anchor among the vectors of all processes."""
        self.counts.copy_(ranks.sum_over_ranks(self.counts))
        self.source.reduce(clock)

    def apply_to(self, codebook: Codebook, clock: Clock) -> None:
        """Draw seldom-used codes to their anchors."""
        share = self.counts / self.counts.sum(-1, keepdim=True).clamp(min=1)
        self.usage.lerp_(share, 1 - self.decay)
        pull = torch.exp(-self.usage * codebook.num_codes * 10 / (1 - self.decay) - 1e-3)
        codes = codebook.table(clock).detach()
        anchors = self.source.take(codes, clock).to(codes)
        codebook.write(codes.lerp(anchors, pull[..., None].to(codes)))
        self.forget()

    def forget(self) -> None:
        """Clear the statistics."""
        self.counts.zero_()
        self.source.forget()

    def summary(self) -> str:
        """Name the rule."""
        return f"{self.kind} anchors"


class AnchorSource(Statistics):
    """Base class: where the anchors (G, K, D) come from."""

    anchors: Tensor

    def __init__(self, codebook: Codebook, metric: Metric) -> None:
        super().__init__()
        self.metric = metric
        shape = (codebook.groups, codebook.num_codes, codebook.dim)
        self.register_buffer("anchors", torch.zeros(shape))

    def collect(self, z: Tensor, table: Tensor, clock: Clock) -> None:
        """Add vectors (G, N, D) that were compared with `table` (G, K, D)."""
        raise NotImplementedError

    def reduce(self, clock: Clock) -> None:
        """Join all processes."""
        raise NotImplementedError

    def take(self, codes: Tensor, clock: Clock) -> Tensor:
        """Return the anchors of codes (G, K, D)."""
        raise NotImplementedError

    def forget(self) -> None:
        """Begin the next step, or this one again."""
        raise NotImplementedError

    def _take_from(self, winner: Tensor, anchors: Tensor) -> None:
        """Let each code's anchor be that of process `winner` (G, K); zeros add nothing."""
        mine = (winner == ranks.rank())[..., None]
        self.anchors.copy_(ranks.sum_over_ranks(torch.where(mine, anchors, 0.0)))


class ClosestVectors(AnchorSource):
    """For every code the most similar vector of the step: a running best row per code."""

    scores: Tensor

    def __init__(self, codebook: Codebook, metric: Metric) -> None:
        super().__init__(codebook, metric)
        self.register_buffer("scores", torch.full(self.anchors.shape[:2], -math.inf))

    def collect(self, z: Tensor, table: Tensor, clock: Clock) -> None:
        """Keep a vector where it is more similar than the best so far."""
        rows, scores = nearest_with_scores(table, z, self.metric)
        better = scores > self.scores
        self.scores.copy_(torch.where(better, scores, self.scores))
        self.anchors.copy_(torch.where(better[..., None], take_rows(z, rows), self.anchors))

    def reduce(self, clock: Clock) -> None:
        """Join all processes; the first of equals wins."""
        if ranks.world_size() == 1:
            return
        scores = ranks.gather_over_ranks(self.scores)  # (R, G, K)
        best = scores.max(0).values
        number = torch.arange(len(scores), device=scores.device)[:, None, None]
        winner = torch.where(scores == best, number, len(scores)).min(0).values
        self._take_from(winner, self.anchors)
        self.scores.copy_(best)

    def take(self, codes: Tensor, clock: Clock) -> Tensor:
        """Return the anchors, (G, K, D); a code without one (no finite vector) stays itself."""
        found = torch.isfinite(self.scores)[..., None]
        return torch.where(found, self.anchors, codes.to(self.anchors))

    def forget(self) -> None:
        """Forget the best vectors."""
        self.anchors.zero_()
        self.scores.fill_(-math.inf)


class VectorPool(AnchorSource):
    """A pool of K vectors, refreshed at every step by vectors drawn at random.

    It starts at U(±1/K). A step with fewer than K vectors replaces as many slots at random.
    """

    def __init__(self, codebook: Codebook, metric: Metric) -> None:
        super().__init__(codebook, metric)
        self.anchors.uniform_(-1 / codebook.num_codes, 1 / codebook.num_codes)
        self.sample = RowSample(codebook)

    def collect(self, z: Tensor, table: Tensor, clock: Clock) -> None:
        """Offer vectors to the sample."""
        self.sample.collect(z, clock)

    def reduce(self, clock: Clock) -> None:
        """Join all processes."""
        self.sample.reduce()

    def take(self, codes: Tensor, clock: Clock) -> Tensor:
        """Return the refreshed pool, (G, K, D)."""
        rows = self.sample.sorted()[1]
        position = torch.arange(self.anchors.shape[1], device=rows.device)
        places = clock.uniform(POOL_ORDER, position).argsort()[: rows.shape[1]]
        found = torch.isfinite(rows).all(-1, keepdim=True)
        self.anchors[:, places] = torch.where(found, rows, self.anchors[:, places])
        return self.anchors.clone()

    def forget(self) -> None:
        """Forget the sample; the pool stays."""
        self.sample.clear()


class WeightedDraws(AnchorSource):
    """One vector per code, drawn from the softmax of the similarities over all of a step.

    One uniform number per code inverts the cumulative weights of all vectors, process after
    process. Which vector it hits is known only when all are there, so they wait until `reduce`,
    beside the codes that the step began with.
    """

    rows: Tensor
    codes: Tensor
    free_length = ("rows",)  # as many as were waiting when a state was saved

    def __init__(self, codebook: Codebook, metric: Metric) -> None:
        super().__init__(codebook, metric)
        self.register_buffer("rows", self.anchors[:, :0].clone())
        self.register_buffer("codes", torch.zeros_like(self.anchors))

    def collect(self, z: Tensor, table: Tensor, clock: Clock) -> None:
        """Keep the vectors."""
        if self.rows.shape[1] == 0:
            self.codes.copy_(table)
        self.rows = torch.cat([self.rows, z.to(self.rows)], 1)

    def reduce(self, clock: Clock) -> None:
        """Draw from the vectors of all processes."""
        groups, num_codes, _ = self.codes.shape
        index = torch.arange(groups * num_codes, device=self.codes.device)
        uniform = clock.uniform(ANCHOR_DRAW, index).view(groups, num_codes)
        empty = self.rows.shape[1] == 0  # nothing that this process saw was sound
        local = uniform.new_full(uniform.shape, -math.inf)
        if not empty:
            local = softmax_row_log_weights(self.rows, self.codes, self.metric)
        shares = ranks.gather_over_ranks(local).permute(1, 2, 0)  # (G, K, R)
        winner, within = choose_by_weight(shares, uniform)
        drawn = torch.full_like(self.anchors, math.nan)
        if not empty:
            rows = sample_softmax_rows(self.rows, self.codes, within, self.metric)
            drawn = take_rows(self.rows, rows)
        self._take_from(winner, drawn)
        self.forget()

    def take(self, codes: Tensor, clock: Clock) -> Tensor:
        """Return the anchors, (G, K, D); a code whose draw found no finite vector stays itself."""
        found = torch.isfinite(self.anchors).all(-1, keepdim=True)
        return torch.where(found, self.anchors, codes.to(self.anchors))

    def forget(self) -> None:
        """Forget the vectors that wait."""
        self.rows = self.rows[:, :0].clone()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}rows" in state:  # as many as were waiting when it was saved
            self.rows = torch.zeros_like(state[f"{prefix}rows"], device=self.rows.device)
        super()._load_from_state_dict(state, prefix, *args)


SOURCES: dict[str, type[AnchorSource]] = {
    "closest": ClosestVectors,
    "random": VectorPool,
    "probrandom": WeightedDraws,
}


def take_rows(z: Tensor, rows: Tensor) -> Tensor:
    """Gather vectors: z (G, N, D), rows (G, K) -> (G, K, D)."""
    return z.gather(1, rows[..., None].expand(-1, -1, z.shape[-1]))
