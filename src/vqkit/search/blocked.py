"""Nearest codes by matrix products in blocks: any dimension, any device, exact.

A product in float32 (or bf16, where the CPU multiplies that faster) is only a screen: every code
whose score is within the rounding error of the best one is a candidate, and candidates are compared
by `exact.closeness`. The error bound is rigorous, so the winner does not depend on the shapes of
blocks, on the library that multiplies, or on the precision that the user allows it. About one
candidate a vector survives in float32, one to three in bf16.

Legend: n vectors of a block, K codes, D dim, P pairs of a vector and a candidate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vqkit.search.exact import closeness, distinct
from vqkit.search.inputs import Metric
from vqkit.search.tables import Frame

GROUP = 32
"""Codes whose maximum is taken at once; candidates are sought in groups that reach the best."""
CODES_IN_BLOCK = 2048
"""Codes of one product on a CPU; four times as many elsewhere."""
SCORES_IN_BLOCK = 2**21
"""Scores of one product on a CPU (8 MiB); four times as many elsewhere."""
PAIRS = 2**16
"""Candidates kept before they are compared; more than that only where almost all codes tie."""
SCORES_AT_ONCE = 2**17
"""Scores of groups that are searched for candidates at a time."""
FLOAT32 = 2.0**-24
ROUNDING = {"bf16": 3.1 * 2.0**-9, "tf32": 2.1 * 2.0**-10, "ieee": 0.0}
"""Error of a product relative to the lengths: both factors rounded, and for bf16 the result too."""


@dataclass(slots=True)
class _Screen:
    """Codes padded to whole groups, and the bound on the error of their scores."""

    frame: Frame
    rows: Tensor
    """(K', D + 1) float32; the last column, times one, is the bias: -inf in the padding."""
    bf16_rows: Tensor | None
    longest: Tensor
    """Length of the longest code, ()."""

    @classmethod
    def of(cls, codes: Tensor, metric: Metric) -> _Screen:
        frame = Frame.of(codes, metric, shift_codes=True)
        rows = frame.table(codes, columns=1, multiple=GROUP)
        norms = torch.linalg.vector_norm(rows, dim=-1)
        if metric == "l2":
            rows[:, -1] = norms.square() / -2
        rows[len(codes) :, -1] = -torch.inf
        bf16_rows = rows[:, :-1].bfloat16() if _bf16_is_faster(codes) else None
        return cls(frame, rows, bf16_rows, norms.max())

    def slack(self, points: Tensor) -> Tensor:
        """Bound the error of a difference of two scores, (n, 1); NaN gives a point no candidate."""
        length = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
        product = length * self.longest
        quadratic = self.longest.square() if self.frame.metric == "l2" else 0.0
        bound = (points.shape[-1] + 8) * FLOAT32 * (product + quadratic)
        if self.bf16_rows is not None:
            bound = bound + ROUNDING["bf16"] * product
        else:
            allowed = ROUNDING[_product_precision(self.rows.device)]
            bound = bound + allowed * (product + quadratic)
        bound = 2 * bound + points.shape[-1] * torch.finfo(torch.float32).tiny  # underflow
        usable = bound.isfinite()
        if self.frame.metric != "l2":
            usable = usable & (length > 0)  # a zero vector ties with everything
        return bound.where(usable, torch.nan)

    def factors(self, points: Tensor) -> Tensor:
        """Make points (n, D) the left factor of `scores`."""
        if self.bf16_rows is not None:
            return points.bfloat16()
        return torch.nn.functional.pad(points, (0, 1), value=1.0)

    def scores(self, factors: Tensor, start: int, buffer: Tensor) -> Tensor:
        """Multiply `factors` of n points with codes from `start` on into `buffer` (n, width)."""
        stop = min(start + buffer.shape[1], len(self.rows))
        scores = buffer.view(-1)[: len(factors) * (stop - start)].view(len(factors), -1)
        if self.bf16_rows is None:
            return torch.mm(factors, self.rows[start:stop].T, out=scores)
        product = factors @ self.bf16_rows[start:stop].T
        return torch.add(product, self.rows[start:stop, -1], out=scores)


def nearest(vectors: Tensor, codes: Tensor, metric: Metric) -> Tensor:
    """Find ids (N,) of the nearest of codes (K, D) for vectors (N, D)."""
    return nearest_k(vectors, codes, 1, metric)[:, 0]


def nearest_k(vectors: Tensor, codes: Tensor, k: int, metric: Metric) -> Tensor:
    """Find ids (N, k) of the k nearest codes, best first; see `vqkit.search.nearest_k`."""
    original = distinct(codes) if k == 1 else None
    if original is not None:
        return original[nearest_k(vectors, codes[original], k, metric)]
    with torch.autocast(vectors.device.type, enabled=False):
        return _all_blocks(vectors, codes, k, metric)


def _all_blocks(vectors: Tensor, codes: Tensor, k: int, metric: Metric) -> Tensor:
    screen = _Screen.of(codes, metric)
    ids = torch.empty(len(vectors), k, dtype=torch.int64, device=vectors.device)
    larger = 1 if vectors.device.type == "cpu" else 4
    width = min(len(screen.rows), CODES_IN_BLOCK * larger)
    step = max(1, min(SCORES_IN_BLOCK * larger // width, PAIRS // k, len(vectors)))
    # One buffer for all blocks: fresh ones would scatter the heap and cost page faults.
    buffer = screen.rows.new_empty(step, width)
    for start in range(0, len(vectors), step):
        block = vectors[start : start + step]
        pairs = _candidates(block, codes, screen, k, buffer)
        ids[start : start + step] = pairs.first_k(block, codes, k, metric)
        if screen.bf16_rows is not None and len(pairs.row) > 4 * k * len(block):
            screen.bf16_rows = None  # too coarse for these vectors; ids do not depend on it
    return ids


@dataclass(slots=True)
class _Pairs:
    """Candidates (P,): vector `row` may have `code` among its nearest, by the screen's `score`."""

    row: Tensor
    code: Tensor
    score: Tensor

    def where(self, keep: Tensor) -> _Pairs:
        return _Pairs(self.row[keep], self.code[keep], self.score[keep])

    def and_also(self, other: _Pairs) -> _Pairs:
        return _Pairs(
            torch.cat([self.row, other.row]),
            torch.cat([self.code, other.code]),
            torch.cat([self.score, other.score]),
        )

    def ranked(self, vectors: Tensor, codes: Tensor, metric: Metric) -> tuple[_Pairs, Tensor]:
        """Sort by vector, exact closeness and lowest id; also the rank (P,) within the vector."""
        close = closeness(vectors, codes, self.row, self.code, metric)
        order = self.code.argsort()
        order = order[close[order].argsort(descending=True, stable=True)]
        order = order[self.row[order].argsort(stable=True)]
        count = torch.bincount(self.row, minlength=len(vectors))
        before = count.cumsum(0) - count
        row = self.row[order]
        rank = torch.arange(len(row), device=row.device) - before[row]
        return _Pairs(row, self.code[order], self.score[order]), rank

    def first_k(self, vectors: Tensor, codes: Tensor, k: int, metric: Metric) -> Tensor:
        """Decide: ids (n, k). Vectors that are not finite have no candidates and get 0 to k - 1."""
        ids = torch.arange(k, device=vectors.device).repeat(len(vectors), 1)
        open_pairs = self
        if k == 1:
            ids[self.row, 0] = self.code
            open_pairs = self.where(torch.bincount(self.row, minlength=len(vectors))[self.row] > 1)
        pairs, rank = open_pairs.ranked(vectors, codes, metric)
        chosen = rank < k
        ids[pairs.row[chosen], rank[chosen]] = pairs.code[chosen]
        return ids


def _candidates(vectors: Tensor, codes: Tensor, screen: _Screen, k: int, buffer: Tensor) -> _Pairs:
    """Collect for vectors (n, D) all codes that may be among the k nearest.

    `best` is a lower bound of the k best scores so far: the k best maxima of groups are scores of k
    different codes. A true winner is never more than `slack` below it.
    """
    points = screen.frame.points(vectors)
    slack = screen.slack(points)
    factors = screen.factors(points)
    best = torch.full((len(points), k), -torch.inf, device=points.device)
    none = torch.empty(0, dtype=torch.int64, device=points.device)
    pairs = _Pairs(none, none, best[:0, 0])
    width = buffer.shape[1]
    # With few groups for each of the k, their maxima bound the k-th best score too loosely.
    group = GROUP if k == 1 or 8 * k * GROUP <= width else 1
    for start in range(0, len(screen.rows), width):
        scores = screen.scores(factors, start, buffer).view(len(points), -1, group)
        maxima = scores.amax(-1) if group > 1 else scores[..., 0]
        best = _best(best, maxima, k)
        for found in _reaching(scores, maxima, best[:, -1:] - slack):
            found.code += start
            pairs = pairs.and_also(found.where(found.code < len(codes)))
            if len(pairs.row) > PAIRS:
                pairs, rank = pairs.ranked(vectors, codes, screen.frame.metric)
                pairs = pairs.where(rank < k)
    floor = best[:, -1] - slack[:, 0]
    return pairs.where(pairs.score >= floor[pairs.row])


def _best(best: Tensor, maxima: Tensor, k: int) -> Tensor:
    if k == 1:
        return torch.maximum(best, maxima.amax(-1, keepdim=True))
    top = maxima.topk(min(k, maxima.shape[1])).values
    return torch.cat([best, top], 1).topk(k).values


def _reaching(scores: Tensor, maxima: Tensor, floor: Tensor) -> Iterator[_Pairs]:
    """List the codes of scores (n, groups, group) that reach floor (n, 1), by their groups."""
    _, num_groups, group = scores.shape
    rows, numbers = (maxima >= floor).nonzero(as_tuple=True)
    flat = scores.view(-1, group)
    step = SCORES_AT_ONCE // group
    for row, number in zip(rows.split(step), numbers.split(step), strict=True):
        inside = flat[row * num_groups + number]
        hit, lane = (inside >= floor[row]).nonzero(as_tuple=True)
        yield _Pairs(row[hit], number[hit] * group + lane, inside[hit, lane])


def _bf16_is_faster(codes: Tensor) -> bool:
    """Tell whether the CPU has bf16 matrix units and the product is large enough to gain."""
    has_units = getattr(torch.cpu, "_is_amx_tile_supported", bool)
    return codes.device.type == "cpu" and codes.shape[1] >= 64 and len(codes) >= 512 and has_units()


def _product_precision(device: torch.device) -> str:
    """Name the precision that the user's settings allow float32 products on this device."""
    library = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    setting = str(getattr(getattr(library, "matmul", None), "fp32_precision", "ieee"))
    return setting if setting in ROUNDING else "ieee"
