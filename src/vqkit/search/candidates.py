"""Candidates of a screen: pairs of a vector and a code, compared exactly at the end.

Legend: n vectors of a block, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqkit.search.exact import closeness
from vqkit.search.inputs import Metric


@dataclass(slots=True)
class Pairs:
    """Candidates (P,): vector `row` may have `code` among its nearest, by the screen's `score`."""

    row: Tensor
    code: Tensor
    score: Tensor

    @classmethod
    def none(cls, device: torch.device) -> Pairs:
        """Start without candidates."""
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return cls(nothing, nothing, torch.empty(0, device=device))

    def where(self, keep: Tensor) -> Pairs:
        """Keep the pairs at which `keep` (P,) is true."""
        return Pairs(self.row[keep], self.code[keep], self.score[keep])

    def and_also(self, other: Pairs) -> Pairs:
        """Join two lists."""
        return Pairs(
            torch.cat([self.row, other.row]),
            torch.cat([self.code, other.code]),
            torch.cat([self.score, other.score.float()]),
        )

    def best_k(self, vectors: Tensor, codes: Tensor, k: int, metric: Metric) -> Pairs:
        """Keep the k best pairs of every vector."""
        pairs, rank = self._ranked(vectors, codes, metric)
        return pairs.where(rank < k)

    def first_k(self, vectors: Tensor, codes: Tensor, k: int, metric: Metric) -> Tensor:
        """Decide: ids (n, k). A vector without enough candidates keeps ids from 0 to k - 1."""
        if k == 1:
            return self._first(vectors, codes, metric)[:, None]
        ids = torch.arange(k, device=vectors.device).repeat(len(vectors), 1)
        pairs, rank = self._ranked(vectors, codes, metric)
        chosen = rank < k
        ids[pairs.row[chosen], rank[chosen]] = pairs.code[chosen]
        return ids

    def _first(self, vectors: Tensor, codes: Tensor, metric: Metric) -> Tensor:
        """Decide ids (n,) without sorting: most vectors have one candidate."""
        ids = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        ids[self.row] = self.code
        several = torch.bincount(self.row, minlength=len(vectors))[self.row] > 1
        row, code = self.row[several], self.code[several]
        close = closeness(vectors, codes, row, code, metric)
        best = close.new_full((len(vectors),), -torch.inf).scatter_reduce_(0, row, close, "amax")
        wins = close == best[row]
        ids[row[wins]] = len(codes)
        return ids.scatter_reduce_(0, row[wins], code[wins], "amin")

    def _ranked(self, vectors: Tensor, codes: Tensor, metric: Metric) -> tuple[Pairs, Tensor]:
        """Sort by vector, exact closeness and lowest id; also the rank (P,) within the vector."""
        close = closeness(vectors, codes, self.row, self.code, metric)
        order = self.code.argsort()
        order = order[close[order].argsort(descending=True, stable=True)]
        order = order[self.row[order].argsort(stable=True)]
        count = torch.bincount(self.row, minlength=len(vectors))
        before = count.cumsum(0) - count
        row = self.row[order]
        rank = torch.arange(len(row), device=row.device) - before[row]
        return Pairs(row, self.code[order], self.score[order]), rank
