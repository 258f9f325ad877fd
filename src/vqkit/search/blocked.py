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

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from vqkit.search import favourites
from vqkit.search.candidates import Judge, Pairs, reaching
from vqkit.search.exact import first_copies
from vqkit.search.inputs import Metric
from vqkit.search.running import UNDERFLOW, Running
from vqkit.search.screen import Screen

CODES_IN_BLOCK = 4096
"""Codes of one float32 product on a CPU; four times as many in bf16, or elsewhere."""
SCORES_IN_BLOCK = 2**22
"""Scores of one product on a CPU (8 MiB in float32); four times as many elsewhere."""
ELEMENTS = 2**20
"""Elements of the vectors of a block (4 MiB in float32), which stay in cache."""
BF16_DIM, BF16_CODES = 17, 512
"""From where on products in bf16 win, candidates included (measured: benchmarks/search.py)."""
MANY = 200
"""Candidates of a vector from which on something about the codes makes the screen too coarse."""
CROWD = 3
"""Candidates of a vector from which on a closer bound pays (`running`)."""
FIRST = 64
"""Vectors of the first block in bf16, from which the screen learns."""
ROOM = 8
"""Candidates that there is room for, for each vector of a block."""
PAIRS = 2**16
"""Candidates kept before they are compared; more than that only where almost all codes tie."""
SCORES_AT_ONCE = 2**17
"""Scores of the members of groups that are searched for candidates at a time."""
SIEVED = 2**18
"""Elements of pairs whose distances are taken at a time, which stay in cache."""


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
    if not len(vectors):
        return ids
    with torch.autocast(vectors.device.type, enabled=False):
        search = _Search(Judge(codes, metric), k, bf16, len(vectors))
        step = search.block_rows()
        decide: Callable[[Tensor, Tensor], None] = search.decide
        if k == 1 and favourites.may_pay(search.judge, vectors):
            decide = favourites.Favourites(search, search.among).decide
        first = min(FIRST, step) if bf16 else step
        for start, stop in pairwise([0, *range(first, len(vectors), step), len(vectors)]):
            decide(vectors[start:stop], ids[start:stop])
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

    def __init__(
        self,
        judge: Judge,
        k: int,
        bf16: bool,
        num_vectors: int,
        kept: Tensor | None = None,
    ) -> None:
        self.judge, self.k, self.bf16, self.num_vectors = judge, k, bf16, num_vectors
        self.kept = kept
        """The ids that are searched; None: all."""
        # Plain functions: bound ones would tie this object into a cycle that outlives the search.
        self.steps = [_Search._leave_out_copies] if k == 1 else []
        self.steps += [_Search._follow_best] if bf16 and k == 1 else []
        self.steps += [_Search._use_float32]
        self.crowded = False
        """Whether vectors have so many candidates that following the best code pays."""
        self._prepare()

    def _prepare(self) -> None:
        larger = 1 if self.judge.codes.device.type == "cpu" else 4
        width = CODES_IN_BLOCK * larger * (4 if self.bf16 else 1)
        self.screen = Screen(self.judge, self.kept, self.bf16, width)
        self.scores = SCORES_IN_BLOCK * larger * (2 if self.bf16 else 1)
        self.screen.reserve(self.block_rows())

    def block_rows(self) -> int:
        """Choose how many vectors are searched at a time."""
        fitting = ELEMENTS // self.judge.codes.shape[1]
        by_scores = self.scores // self.screen.width
        if self._members() == 1:  # then every score is a maximum, with a bound of its own
            by_scores //= 8
        return max(1, min(by_scores, PAIRS // (ROOM * self.k), fitting, self.num_vectors))

    def _members(self) -> int:
        """Choose how large groups are: few for each of the k bound the k-th best too loosely."""
        members = self.screen.members
        return members if self.k == 1 or 8 * self.k * members <= self.screen.width else 1

    def among(self, ids: Tensor) -> _Search:
        """Return a search for the nearest of some codes, by rising ids."""
        found = _Search(self.judge, 1, bf16=False, num_vectors=self.block_rows(), kept=ids)
        found.steps = []  # they begin with all codes
        return found

    def decide(self, vectors: Tensor, out: Tensor, of: int | None = None) -> None:
        """Write ids of the k nearest codes of vectors (n, D), left of `of`, to `out` (n, k)."""
        pairs = self.pairs(vectors, of)
        out[:] = pairs.first_k(vectors, self.judge, self.k)
        for row in _lost(vectors, pairs):
            out[row] = self.judge.order(vectors[row])[: self.k]

    def pairs(self, vectors: Tensor, of: int | None = None) -> Pairs:
        """Collect for vectors (n, D) all codes that may be among the k nearest, by their ids.

        If the vectors are those of `of` that others did not settle, they may have more candidates.
        """
        found, start = [], 0
        for part in vectors.split(self.block_rows()):  # more rows than fit, after `_use_float32`
            pairs = self._candidates(part, max(len(part), of or 0))
            if pairs is None:
                return self._simpler().pairs(vectors, of)
            found.append(pairs.moved(start))
            start += len(part)
        return Pairs.join(found)

    def _simpler(self) -> _Search:
        """Take the steps that are left, up to one that changes something."""
        while self.steps and not self.steps.pop(0)(self):
            continue
        return self

    def _candidates(self, vectors: Tensor, of: int) -> Pairs | None:
        """Screen vectors (n, D); None if there are too many candidates and a step is left.

        They are too many for `of` vectors, n or more.

        `floor` is a lower bound of the k best true scores so far: the k best maxima of groups, less
        their slack, belong to k different codes. What cannot reach it is no winner.
        """
        screen, k = self.screen, self.k
        factors, coefficients = screen.factors(vectors)
        close = self.crowded and screen.bf16 and screen.all_short
        running = Running(screen, coefficients) if close else None
        common = torch.zeros_like(coefficients[:, :1])
        best = torch.full((len(vectors), k), -torch.inf, dtype=torch.float32, device=vectors.device)
        found, held, seen = [Pairs.none(vectors.device)], 0, 0
        members = self._members()
        for start in range(0, screen.num_rows, screen.width):
            scores, across, along = screen.grouped(screen.scores(factors, start), members)
            maxima = (scores.amax(1) if members > 1 else scores[:, 0]).to(torch.float32)
            bounds = screen.bounds(start, members)
            if running is not None:
                running.meet(maxima, scores, start, across, along)
                (coefficients, common), best = running.coefficients(), running.floor
            slack = screen.spread(maxima, coefficients @ bounds + common)
            if running is None:
                best = _best(best, maxima - slack, k)
            floor = best[:, -1:]
            for row, group in reaching(
                maxima.add_(slack), floor, SCORES_AT_ONCE // max(members, 8)
            ):
                of_group = bounds.T.index_select(0, group)
                own = of_group.mul_(coefficients.index_select(0, row)).sum(1) + common[row, 0]
                inside = scores[row, :, group]
                least = screen.least(floor[row, 0] - own)[:, None]
                hit, member = (inside >= least).nonzero(as_tuple=True)
                score = inside[hit, member].to(torch.float32)
                score += screen.spread(score, own[hit])
                code = screen.code_at[start + member * across + group[hit] * along]
                # Joined once there are many: lists that grow step by step scatter the heap.
                found.append(Pairs(row[hit], code, score))
                held, seen = held + len(hit), seen + len(hit)
                if held > PAIRS:
                    if self.steps and seen > MANY * k * of:
                        screen.learn(best[:, :1], factors)
                        return None
                    found = [self._thinned(Pairs.join(found), floor, vectors)]
                    held = len(found[0].row)
        screen.learn(best[:, :1], factors)
        if self.steps and seen > max(MANY * k * of, PAIRS // ROOM):
            return None
        self.crowded = self.bf16 and k == 1 and (self.crowded or seen > CROWD * of)
        pairs = Pairs.join(found)
        if screen.width < screen.num_rows:
            pairs = pairs.where(pairs.score >= best[pairs.row, -1])
        return self._sieved(pairs, vectors)

    def _thinned(self, pairs: Pairs, floor: Tensor, vectors: Tensor) -> Pairs:
        """Drop what can no longer win; where almost all codes tie, decide."""
        pairs = self._sieved(pairs.where(pairs.score >= floor[pairs.row, 0]), vectors)
        return pairs.best_k(vectors, self.judge, self.k) if len(pairs.row) > PAIRS else pairs

    def _sieved(self, pairs: Pairs, vectors: Tensor) -> Pairs:
        """Drop pairs that distances in float32 rule out, if this is a search for one code.

        The difference of two vectors errs in proportion to itself: far less than a product.
        """
        screen = self.screen
        if self.judge.metric != "l2" or screen.frame.scale is not None or self.k > 1:
            return pairs
        count = torch.bincount(pairs.row, minlength=len(vectors))
        several = ((count > 1) & screen.short)[pairs.row]  # of each vector by itself
        rows, codes = pairs.row[several], pairs.code[several]
        dim = vectors.shape[1]
        step = max(1, SIEVED // dim)
        kind = torch.promote_types(self.judge.precision, vectors.dtype)
        away = torch.empty(len(rows), dtype=kind, device=rows.device)
        for out, row, code in zip(
            away.split(step), rows.split(step), codes.split(step), strict=True
        ):
            between = vectors.index_select(0, row).to(kind)
            between -= self.judge.codes.index_select(0, code)
            torch.linalg.vector_norm(between, dim=-1, out=out)
        error = (dim + 8) * 2.0**-24 * away + UNDERFLOW
        nearest = away.new_full((len(vectors),), torch.inf)
        nearest.scatter_reduce_(0, rows, away + error, "amin")
        keep = several.logical_not()
        keep[several] = away - error <= nearest[rows]
        return pairs.where(keep)

    def _follow_best(self) -> bool:
        """Codes may lie so dense that the plain bound of bf16 lets hundreds through.

        The next attempt also knows from this one where the best scores lie (`Screen.learn`).
        """
        was, self.crowded = self.crowded, True
        return not was

    def _leave_out_copies(self) -> bool:
        """Collapsed codebooks hold many equal codes, every one a tie for every vector."""
        self.screen.reserve(0)  # both would take more memory than promised
        first = first_copies(self.judge.codes)
        if first is None:
            self.screen.reserve(self.block_rows())
            return False
        kept = first == torch.arange(len(first), device=first.device)
        self.kept = kept.nonzero()[:, 0]
        del self.screen  # before the next one is made
        self._prepare()
        return True

    def _use_float32(self) -> bool:
        was, self.bf16 = self.bf16, False
        if was:
            del self.screen
            self._prepare()
        return was


def _best(best: Tensor, maxima: Tensor, k: int) -> Tensor:
    if k == 1:
        return torch.maximum(best, maxima.amax(-1, keepdim=True).to(best.dtype))
    top = maxima.topk(min(k, maxima.shape[1])).values.to(best.dtype)
    return torch.cat([best, top], 1).topk(k).values
