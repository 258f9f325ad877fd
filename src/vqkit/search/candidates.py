"""Candidates of a screen: pairs of a vector and a code, and the exact comparison that decides.

Legend: n vectors of a block, K codes, D dim, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vqkit.search.exact import CHUNK_ELEMENTS, fold_sum, wide
from vqkit.search.inputs import Metric
from vqkit.search.tables import Frame, unit_length

REMOTE = 2.0**10
"""Vectors so many times as far from the mean code as codes spread are compared in the frame."""
SAMPLE = 64
MAXIMA_AT_ONCE = 2**19
"""Maxima of groups that are compared with what candidates must reach at a time."""


class Judge:
    """Compares pairs in float64 by a chain of operations that no batch changes."""

    def __init__(self, codes: Tensor, metric: Metric) -> None:
        self.codes = codes
        self.metric = metric
        self.frame = Frame.of(codes, metric, shift_codes=True, scaled=True)
        self.precision = torch.float64 if codes.dtype == torch.float64 else torch.float32
        self.centre = self.frame.centre.to(wide(codes.device))
        # A few codes tell enough of the spread, since both comparisons are fine enough.
        self.limit = REMOTE * (codes[:SAMPLE] - self.centre).abs().amax()

    def closeness(self, vectors: Tensor, row: Tensor, code: Tensor) -> Tensor:
        """Score pairs (P,) of vectors (n, D) and codes: higher is closer, within one vector.

        `l2` is minus the squared distance, but for a remote vector, whose distances all round to
        one number, z c - |c|^2 / 2 from the mean code. So are `cosine` and `dot`, without |c|^2.
        """
        step = max(1, CHUNK_ELEMENTS // vectors.shape[1])
        remote = self._remote(vectors) if self.metric == "l2" else None
        parts = [
            self._score(
                vectors.index_select(0, rows).to(self.centre.dtype),
                self.codes.index_select(0, codes),
                None if remote is None else remote[rows],
            )
            for rows, codes in zip(row.split(step), code.split(step), strict=True)
        ]
        return torch.cat(parts)

    def _remote(self, vectors: Tensor) -> Tensor | None:
        """Find remote vectors (n,), None if there are none for sure."""
        if vectors.device.type == "cpu" and vectors.numel():
            low, high = (value.to(self.centre.dtype) for value in torch.aminmax(vectors))
            if torch.maximum(high, -low) + self.centre.abs().amax() <= self.limit:
                return None
        step = max(1, CHUNK_ELEMENTS // vectors.shape[1])
        parts = [(part - self.centre).abs().amax(-1) for part in vectors.split(step)]
        return torch.cat(parts) > self.limit

    def _score(self, z: Tensor, code: Tensor, remote: Tensor | None) -> Tensor:
        if self.metric == "l2":
            direct = -fold_sum((z - code).square_())
            if remote is None:
                return direct
            code = code - self.centre
            framed = fold_sum((z - self.centre) * code) - fold_sum(code * code) / 2
            return framed.where(remote, direct)
        code = code.to(z.dtype)
        if self.metric == "cosine":
            code = unit_length(code)
        return fold_sum(z * (code - self.centre))

    def order(self, vector: Tensor) -> Tensor:
        """Sort all codes by closeness to one vector (D,), lowest ids first among equals -> (K,)."""
        every = torch.arange(len(self.codes), device=vector.device)
        close = self.closeness(vector[None], torch.zeros_like(every), every)
        return close.argsort(descending=True, stable=True)


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
        return cls(nothing, nothing, torch.empty(0, dtype=torch.float32, device=device))

    @classmethod
    def join(cls, parts: Sequence[Pairs]) -> Pairs:
        """Join lists, of which there is at least one."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            torch.cat([part.row for part in parts]),
            torch.cat([part.code for part in parts]),
            torch.cat([part.score for part in parts]),
        )

    def moved(self, rows: int) -> Pairs:
        """Count the vectors from `rows` on."""
        return Pairs(self.row + rows, self.code, self.score) if rows else self

    def where(self, keep: Tensor) -> Pairs:
        """Keep the pairs at which `keep` (P,) is true."""
        return Pairs(self.row[keep], self.code[keep], self.score[keep])

    def best_k(self, vectors: Tensor, judge: Judge, k: int) -> Pairs:
        """Keep the k best pairs of every vector."""
        order, rank = self._ranked(vectors, judge)
        order = order[rank < k]
        return Pairs(self.row[order], self.code[order], self.score[order])

    def first_k(self, vectors: Tensor, judge: Judge, k: int) -> Tensor:
        """Decide: ids (n, k). A vector without enough candidates keeps ids from 0 to k - 1."""
        if k == 1:
            return self._first(vectors, judge)[:, None]
        ids = torch.arange(k, device=vectors.device).repeat(len(vectors), 1)
        order, rank = self._ranked(vectors, judge)
        order, rank = order[rank < k], rank[rank < k]
        ids[self.row[order], rank] = self.code[order]
        return ids

    def _first(self, vectors: Tensor, judge: Judge) -> Tensor:
        """Decide ids (n,) without sorting: most vectors have one candidate."""
        ids = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        ids[self.row] = self.code
        several = torch.bincount(self.row, minlength=len(vectors))[self.row] > 1
        row, code = self.row[several], self.code[several]
        close = judge.closeness(vectors, row, code)
        best = close.new_full((len(vectors),), -torch.inf).scatter_reduce_(0, row, close, "amax")
        wins = close == best[row]
        ids[row[wins]] = len(judge.codes)
        return ids.scatter_reduce_(0, row[wins], code[wins], "amin")

    def _ranked(self, vectors: Tensor, judge: Judge) -> tuple[Tensor, Tensor]:
        """Order pairs by vector, closeness and lowest id; also the rank within the vector."""
        close = judge.closeness(vectors, self.row, self.code)
        order = self.code.argsort()
        order = order[close[order].argsort(descending=True, stable=True)]
        order = order[self.row[order].argsort(stable=True)]
        count = torch.bincount(self.row, minlength=len(vectors))
        before = count.cumsum(0) - count
        rank = torch.arange(len(order), device=order.device) - before[self.row[order]]
        return order, rank


def reaching(maxima: Tensor, floor: Tensor, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
    """List rows and groups whose maximum (n, g) reaches floor (n, 1), so many at once."""
    num_groups = maxima.shape[1]
    some = max(1, MAXIMA_AT_ONCE // num_groups)
    for start in range(0, len(maxima), some):
        here = slice(start, start + some)
        reach = (maxima[here] >= floor[here]).view(-1)
        if reach.device.type == "cpu":  # numpy finds few among many twice as fast
            found = torch.from_numpy(reach.numpy().nonzero()[0])
        else:
            found = reach.nonzero()[:, 0]
        for part in found.split(at_once):
            row = part.div(num_groups, rounding_mode="floor")
            yield row + start, part - row * num_groups
