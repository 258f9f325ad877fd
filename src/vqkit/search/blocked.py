"""Nearest codes by matrix products in blocks: any dimension, any device, exact.

A product in float32 or bf16 is only a screen: every code whose score is within the rounding error
of the best one is a candidate, and candidates are compared in float64 (`candidates.Judge`). The
error bound is rigorous, so the winner does not depend on the shapes of blocks, on the library that
multiplies, or on the precision that the user allows it. About one candidate a vector survives in
float32, one to three in bf16.

Legend: n vectors of a block, w codes of a block, K codes, D dim, P pairs of a vector and a
candidate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.search.candidates import Judge, Pairs
from vqkit.search.exact import first_copies
from vqkit.search.inputs import Metric
from vqkit.search.screen import Screen

CODES_IN_BLOCK = 4096
"""Codes of one product on a CPU; four times as many elsewhere."""
SCORES_IN_BLOCK = 2**21
"""Scores of one product on a CPU (8 MiB in float32); four times as many elsewhere."""
ELEMENTS = 2**20
"""Elements of the vectors of a block (4 MiB in float32), which stay in cache."""
BF16_DIM, BF16_CODES = 17, 512
"""From where on products in bf16 win, candidates included (measured: benchmarks/search.py)."""
MANY = 8
"""Candidates of a vector from which on something about the codes makes the screen too coarse."""
PAIRS = 2**16
"""Candidates kept before they are compared; more than that only where almost all codes tie."""
FAR = 4
"""Codes so many times as long as the median are searched by themselves if they spoil the bound."""
MAXIMA_AT_ONCE, SCORES_AT_ONCE = 2**19, 2**17
"""Maxima of groups, and scores of their members, that are searched for candidates at a time."""


def bf16_pays(codes: Tensor) -> bool:
    """Tell whether the CPU has bf16 products and those with codes (..., K, D) are large enough."""
    num_codes, dim = codes.shape[-2:]
    large = codes.device.type == "cpu" and dim >= BF16_DIM and num_codes >= BF16_CODES
    return large and any(
        getattr(torch.cpu, f"_is_{unit}_supported", bool)() for unit in ("amx_tile", "avx512_bf16")
    )


def nearest(vectors: Tensor, codes: Tensor, metric: Metric) -> Tensor:
    """Find ids (N,) of the nearest of codes (K, D) for vectors (N, D)."""
    return nearest_k(vectors, codes, 1, metric, bf16=False)[:, 0]


def nearest_in_bf16(vectors: Tensor, codes: Tensor, metric: Metric) -> Tensor:
    """Find the same ids as `nearest`, by products in bf16."""
    return nearest_k(vectors, codes, 1, metric, bf16=True)[:, 0]


def nearest_k(vectors: Tensor, codes: Tensor, k: int, metric: Metric, *, bf16: bool) -> Tensor:
    """Find ids (N, k) of the k nearest codes, best first; see `vqkit.search.nearest_k`."""
    ids = torch.empty(len(vectors), k, dtype=torch.int64, device=vectors.device)
    with torch.autocast(vectors.device.type, enabled=False):
        search = _Search(Judge(codes, metric), None, k, bf16)
        step = search.block_rows()
        for start in range(0, len(vectors), step):
            block = vectors[start : start + step]
            pairs = search.pairs(block)
            ids[start : start + step] = pairs.first_k(block, search.judge, k)
            for row in _lost(block, pairs):
                ids[start + row] = search.judge.order(block[row])[:k]
    return ids


def _lost(vectors: Tensor, pairs: Pairs) -> list[int]:
    """List vectors (n, D) on a CPU, but zeros, whose scores float32 could not bound."""
    seen = torch.zeros(len(vectors), dtype=torch.bool, device=vectors.device)
    seen[pairs.row] = True
    if vectors.device.type != "cpu" or bool(seen.all()):
        return []
    rows = seen.logical_not().nonzero()[:, 0]
    return rows[(vectors[rows] != 0).any(-1)].tolist()


class _Search:
    """One search; what it learns about the codes on the way changes its speed, never an id."""

    def __init__(self, judge: Judge, original: Tensor | None, k: int, bf16: bool) -> None:
        self.judge = judge
        self.original = original
        """The ids of the codes that are searched here; None: all."""
        self.kept: Tensor | None = None
        """Which of them are still searched (K,); None: all."""
        num_codes = len(judge.codes if original is None else original)
        self.k = min(k, num_codes)
        self.bf16 = bf16
        # Plain functions: bound ones would tie this object into a cycle that outlives the search.
        self.steps = [_Search._leave_out_copies] if k == 1 else []
        self.steps += [_Search._set_far_codes_apart, _Search._use_float32]
        self.far: _Search | None = None
        self._prepare()

    def _prepare(self) -> None:
        self.screen = Screen(self.judge, self.original, self.bf16, self.kept)
        larger = 1 if self.judge.codes.device.type == "cpu" else 4
        self.width = min(self.screen.num_rows, CODES_IN_BLOCK * larger)
        self.scores = SCORES_IN_BLOCK * larger * (2 if self.bf16 else 1)
        self.screen.reserve(self.block_rows(), self.width)

    def block_rows(self) -> int:
        """Choose how many vectors are searched at a time."""
        fitting = ELEMENTS // self.judge.codes.shape[1]
        return max(1, min(self.scores // self.width, PAIRS // (MANY * self.k), fitting))

    def pairs(self, vectors: Tensor) -> Pairs:
        """Collect for vectors (n, D) all codes that may be among the k nearest, by their ids."""
        found, start = [], 0
        for part in vectors.split(self.block_rows()):  # more rows than fit, after `_use_float32`
            found.append(self._near(part).moved(start))
            start += len(part)
        if self.far is not None:
            found.append(self.far.pairs(vectors))
        return Pairs.join(found)

    def _near(self, vectors: Tensor) -> Pairs:
        pairs = self._candidates(vectors)
        while pairs is None:
            if self.steps.pop(0)(self):
                parts = vectors.split(self.block_rows())
                starts = range(0, len(vectors), len(parts[0]))
                return Pairs.join(
                    [self._near(part).moved(n) for n, part in zip(starts, parts, strict=True)]
                )
            pairs = self._candidates(vectors)
        if self.original is not None:
            pairs.code = self.original[pairs.code]
        return pairs

    def _candidates(self, vectors: Tensor) -> Pairs | None:
        """Screen vectors (n, D); None if there are too many candidates and a step is left.

        `best` is a lower bound of the k best scores so far: the k best maxima of groups are scores
        of k different codes. A true winner is never below what `floor` makes of it.
        """
        screen, k = self.screen, self.k
        factors, slack = screen.factors(vectors)
        best = torch.full_like(slack, -torch.inf).repeat(1, k)
        pairs = Pairs.none(vectors.device)
        # With few groups for each of the k, their maxima bound the k-th best score too loosely.
        members = screen.members if k == 1 or 8 * k * screen.members <= self.width else 1
        for start in range(0, screen.num_rows, self.width):
            scores, across, along = screen.grouped(
                screen.scores(factors, start, self.width), members
            )
            maxima = scores.amax(1) if members > 1 else scores[:, 0]
            best = _best(best, maxima, k)
            floor = screen.floor(best[:, -1:], slack)
            for found in _reaching(scores, maxima, floor):
                code = start + found.member * across + found.group * along
                real = code < screen.num_codes
                pairs = Pairs.join([pairs, Pairs(found.row, code, found.score).where(real)])
                if len(pairs.row) > MANY * k * len(vectors):
                    pairs = pairs.where(pairs.score >= floor[pairs.row, 0])
                    if self.steps and len(pairs.row) > MANY * k * len(vectors):
                        return None
                if len(pairs.row) > PAIRS:
                    pairs = pairs.best_k(vectors, self.judge, k, self.original)
        if self.width == screen.num_rows:
            return pairs
        floor = screen.floor(best[:, -1:], slack)
        return pairs.where(pairs.score >= floor[pairs.row, 0])

    def _leave_out_copies(self) -> bool:
        """Collapsed codebooks hold many equal codes, every one a tie for every vector."""
        codes = self.judge.codes if self.original is None else self.judge.codes[self.original]
        first = first_copies(codes)
        if first is None:
            return False
        self._keep(first == torch.arange(len(first), device=first.device))
        return True

    def _set_far_codes_apart(self) -> bool:
        """One long code, dead far away, would make the bound of all others coarse."""
        lengths = self.screen.lengths
        known = lengths if self.kept is None else lengths[self.kept]
        near = lengths <= FAR * known.median()
        far = near.logical_not() if self.kept is None else self.kept & near.logical_not()
        if not bool(far.any()):
            return False
        ids = far.nonzero()[:, 0] if self.original is None else self.original[far]
        self.far = _Search(self.judge, ids, self.k, self.bf16)
        self._keep(near)
        return True

    def _use_float32(self) -> bool:
        was, self.bf16 = self.bf16, False
        if was:
            self._prepare()
        return was

    def _keep(self, kept: Tensor) -> None:
        self.kept = kept if self.kept is None else self.kept & kept
        self.k = min(self.k, int(self.kept.sum()))
        self.screen.leave_out(self.kept.logical_not())


class _Found(NamedTuple):
    """Scores that reach the floor of their vector: where they stand, and what they are."""

    row: Tensor
    member: Tensor
    group: Tensor
    score: Tensor


def _reaching(scores: Tensor, maxima: Tensor, floor: Tensor) -> Iterator[_Found]:
    """List the scores (n, members, groups) that reach floor (n, 1), by their groups' maxima."""
    members, num_groups = scores.shape[1:]
    some, few = max(1, MAXIMA_AT_ONCE // num_groups), max(1, SCORES_AT_ONCE // members)
    for start in range(0, len(scores), some):
        here = slice(start, start + some)
        rows, groups = (maxima[here] >= floor[here]).nonzero(as_tuple=True)
        rows += start
        for row, group in zip(rows.split(few), groups.split(few), strict=True):
            inside = scores[row, :, group]
            hit, member = (inside >= floor[row]).nonzero(as_tuple=True)
            score = inside[hit, member].to(torch.float32)
            yield _Found(row[hit], member, group[hit], score)


def _best(best: Tensor, maxima: Tensor, k: int) -> Tensor:
    if k == 1:
        return torch.maximum(best, maxima.amax(-1, keepdim=True).to(best.dtype))
    top = maxima.topk(min(k, maxima.shape[1])).values.to(best.dtype)
    return torch.cat([best, top], 1).topk(k).values
