"""Nearest codes by matrix products in blocks: any dimension, any device, exact.

A product in float32 or bf16 is only a screen: every code whose score is within the rounding error
of the best one is a candidate, and candidates are compared by `exact.closeness`. The error bound is
rigorous, so the winner does not depend on the shapes of blocks, on the library that multiplies, or
on the precision that the user allows it. About one candidate a vector survives in float32, one to
three in bf16.

Legend: n vectors of a block, w codes of a block, K codes, D dim, P pairs of a vector and a
candidate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqkit.search.candidates import Pairs
from vqkit.search.exact import closeness, distinct
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
PAIRS = 2**16
"""Candidates kept before they are compared; more than that only where almost all codes tie."""
MANY = 8
"""Candidates of a vector from which on the screen is too coarse, or codes are equal."""
SCORES_AT_ONCE = 2**17
"""Scores of groups that are searched for candidates at a time."""


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
    with torch.autocast(vectors.device.type, enabled=False):
        return _Search(codes, k, metric, bf16).all_of(vectors)


class _Search:
    """One search; what it learns about the codes on the way changes its speed, never an id."""

    def __init__(self, codes: Tensor, k: int, metric: Metric, bf16: bool) -> None:
        self.k = k
        self.codes = codes
        self.original: Tensor | None = None
        """The ids of `codes`, once copies have been left out."""
        self.looked_for_copies = k > 1
        self.screen = Screen(codes, metric, bf16)
        larger = 1 if codes.device.type == "cpu" else 4
        self.scores_in_block = SCORES_IN_BLOCK * larger * (2 if bf16 else 1)
        self.width = min(self.screen.num_rows, CODES_IN_BLOCK * larger)

    def all_of(self, vectors: Tensor) -> Tensor:
        """Search vectors (N, D) block by block -> ids (N, k)."""
        ids = torch.empty(len(vectors), self.k, dtype=torch.int64, device=vectors.device)
        fitting = max(1, ELEMENTS // vectors.shape[1])
        at_most = min(self.scores_in_block // self.width, PAIRS // self.k, fitting, len(vectors))
        step = max(1, at_most)
        self.screen.reserve(step, self.width)
        for start in range(0, len(vectors), step):
            block = vectors[start : start + step]
            pairs = self.candidates(block)
            if len(pairs.row) > MANY * self.k * len(block) and self.simpler():
                pairs = self.candidates(block)
            found = pairs.first_k(block, self.codes, self.k, self.screen.frame.metric)
            if self.original is not None:
                found = self.original[found]
            ids[start : start + step] = self.checked(block, found)
        return ids

    def simpler(self) -> bool:
        """Leave out copies of codes; if there are none, screen in float32. False: all was done.

        Collapsed codebooks hold many equal codes, every one a tie for every vector.
        """
        metric = self.screen.frame.metric
        if not self.looked_for_copies:
            self.looked_for_copies = True
            self.original = distinct(self.codes)
            if self.original is not None:
                self.codes = self.codes[self.original]
                self.screen = self.screen.anew(self.codes, metric, self.screen.bf16)
                return True
        if not self.screen.bf16:
            return False
        self.screen = self.screen.anew(self.codes, metric, False)
        return True

    def candidates(self, vectors: Tensor) -> Pairs:
        """Collect for vectors (n, D) all codes that may be among the k nearest.

        `best` is a lower bound of the k best scores so far: the k best maxima of groups are scores
        of k different codes. A true winner is never below what `floor` makes of it.
        """
        screen = self.screen
        factors, slack = screen.factors(vectors)
        best = torch.full((len(vectors), self.k), -torch.inf, device=vectors.device)
        pairs = Pairs.none(vectors.device)
        width = min(self.width, screen.num_rows)
        # With few groups for each of the k, their maxima bound the k-th best score too loosely.
        group = screen.members if self.k == 1 or 8 * self.k * screen.members <= width else 1
        for start in range(0, screen.num_rows, width):
            scores, member, step = screen.grouped(screen.scores(factors, start, width), group)
            maxima = scores.amax(1) if group > 1 else scores[:, 0]
            best = _best(best, maxima, self.k)
            floor = screen.floor(best[:, -1:], slack)
            rows, numbers = (maxima >= floor).nonzero(as_tuple=True)
            at_once = SCORES_AT_ONCE // group
            for row, number in zip(rows.split(at_once), numbers.split(at_once), strict=True):
                inside = scores[row, :, number]
                hit, lane = (inside >= floor[row]).nonzero(as_tuple=True)
                code = start + lane * member + number[hit] * step
                found = Pairs(row[hit], code, inside[hit, lane])
                pairs = pairs.and_also(found.where(code < len(self.codes)))
                if len(pairs.row) > PAIRS:
                    pairs = pairs.best_k(vectors, self.codes, self.k, screen.frame.metric)
        if width == screen.num_rows:
            return pairs
        floor = screen.floor(best[:, -1:], slack)
        return pairs.where(pairs.score >= floor[pairs.row, 0])

    def checked(self, vectors: Tensor, ids: Tensor) -> Tensor:
        """Redo vectors on a CPU that are too long for float32 to square; ids (n, k) of the rest."""
        if vectors.device.type != "cpu" or self.screen.all_usable:
            return ids
        metric = self.screen.frame.metric
        for row in self.screen.unusable.tolist():
            every = torch.arange(len(self.codes))
            close = closeness(vectors, self.codes, torch.full_like(every, row), every, metric)
            order = close.argsort(descending=True, stable=True)[: self.k]
            ids[row] = order if self.original is None else self.original[order]
        return ids


def _best(best: Tensor, maxima: Tensor, k: int) -> Tensor:
    if k == 1:
        return torch.maximum(best, maxima.amax(-1, keepdim=True).float())
    top = maxima.topk(min(k, maxima.shape[1])).values.float()
    return torch.cat([best, top], 1).topk(k).values
