"""The screen of a search: scores by a matrix product, and a rigorous bound of their error.

The score of a code c for a vector z, both in the frame, is z c - |c|^2 / 2 (`l2`) or z c. Its error
comes from rounding the factors, from adding up in float32, and in bf16 from rounding the result.

In bf16 the term -|c|^2 / 2 rides along in the product, split over three columns that meet ones: a
pass over all scores to add it would cost as much as the product itself on matrix units.

Legend: n vectors of a block, w codes of a block, K' codes padded to whole groups, D dim.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vqkit.search.candidates import Judge
from vqkit.search.exact import power_of_two
from vqkit.search.tables import near_one, unit_length

MEMBERS = (32, 16, 8, 4, 2, 1)
"""Codes of a group, whose maximum is taken at once; candidates are sought in groups that reach the
best. In bf16 the first that pads the codes by an eighth at most."""
GROUPS = 64
"""In bf16 a block has a multiple of as many groups, and the members of a group lie that far apart:
maxima are then taken over whole registers. In float32 neighbours are as fast for any number."""
ROWS_AT_ONCE = 2**13
"""Codes that are prepared at a time."""
FLOAT32 = 2.0**-24
BF16 = 2.0**-8
"""Relative error of rounding to nearest."""
LOWEST = -3.0e38
"""Bias of rows of padding: no score reaches it."""
COLUMNS = 4
"""Further columns in bf16: three of the bias, and one that keeps rows at whole words."""
LONG = 2.0**60
"""Vectors of this length are scaled down before they are multiplied."""
TF32 = 2.0**-11
PRODUCT_ERROR = {"bf16": 2.1 * BF16, "tf32": 2.1 * TF32, "ieee": 0.0}
"""Error of a float32 product by the precision that the user's settings allow for its factors."""


class Screen:
    """Prepared codes. In float32 they are prepared block by block, in bf16 one copy is held."""

    def __init__(
        self, judge: Judge, ids: Tensor | None, bf16: bool, kept: Tensor | None = None
    ) -> None:
        self.judge = judge
        self.ids = ids
        """Which of the judge's codes (K,); None: all."""
        self.bf16 = bf16
        self.metric = judge.metric
        codes = judge.codes
        self.num_codes = len(codes) if ids is None else len(ids)
        groups = GROUPS if bf16 else 1
        padded = {m: self.num_codes + -self.num_codes % (groups * m) for m in MEMBERS}
        self.members = next((m for m in MEMBERS if 8 * padded[m] <= 9 * self.num_codes), 1)
        self.num_rows = padded[self.members]
        zero = torch.zeros((), dtype=torch.float32, device=codes.device)
        self.bias = zero.new_full((self.num_rows,), LOWEST)
        self.lengths, self.errors = zero.new_empty(2, self.num_codes)
        """Lengths of codes in the frame, and of their rounding errors."""
        self.table = codes.new_zeros(
            self.num_rows if bf16 else 0, codes.shape[1] + COLUMNS, dtype=torch.bfloat16
        )
        self._buffers: tuple[Tensor, Tensor, Tensor] | None = None
        if ids is None and kept is None:
            self.frame = judge.frame
            self._prepare(None)
        else:
            self.leave_out(None if kept is None else kept.logical_not())

    def _part(self, start: int, stop: int) -> Tensor:
        if self.ids is None:
            return self.judge.codes[start:stop]
        return self.judge.codes[self.ids[start:stop]]

    def leave_out(self, gone: Tensor | None) -> None:
        """Search all codes but those at which gone (K,) is true, in their own frame."""
        kept = self.num_codes if gone is None else int(gone.numel() - gone.sum())
        centre = torch.zeros_like(self.judge.centre)
        for start in range(0, self.num_codes, ROWS_AT_ONCE):
            part = self._part(start, start + ROWS_AT_ONCE)
            part = part if gone is None else part[gone[start : start + ROWS_AT_ONCE].logical_not()]
            part = part.to(centre.dtype)
            centre += (unit_length(part) if self.metric == "cosine" else part).sum(0)
        centre = (centre / kept).to(self.judge.frame.centre.dtype)
        self.frame = replace(self.judge.frame, centre=centre)
        self._prepare(gone)

    def _prepare(self, gone: Tensor | None) -> None:
        dim = self.judge.codes.shape[1]
        for start in range(0, self.num_codes, ROWS_AT_ONCE):
            rows = self.frame.table(self._part(start, start + ROWS_AT_ONCE))
            here = slice(start, start + len(rows))
            lengths = torch.linalg.vector_norm(rows, dim=-1)
            self.lengths[here] = lengths
            self.bias[here] = lengths.square() / -2 if self.metric == "l2" else 0.0
            if self.bf16:
                self.table[here, :dim] = rows
                rows -= self.table[here, :dim]
                self.errors[here] = torch.linalg.vector_norm(rows, dim=-1)
        counted, errors = self.lengths, self.errors
        if gone is not None:
            self.bias[: self.num_codes][gone] = LOWEST
            counted, errors = counted[gone.logical_not()], errors[gone.logical_not()]
        self.longest = counted.max()
        shift = (self.frame.centre.to(self.judge.centre.dtype) - self.judge.centre).norm()
        self.shift = (shift if self.frame.scale is None else shift * self.frame.scale).float()
        """How far the frame has moved from the judge's."""
        if self.bf16:
            self.coarsest = errors.max()
            rest = self.bias
            for column in range(dim, dim + 3):
                self.table[:, column] = rest
                rest = rest - self.table[:, column].float()

    def reserve(self, count: int, width: int) -> None:
        """Make room for the scores of `count` vectors and `width` codes at a time.

        One buffer for all blocks: fresh ones would scatter the heap and cost page faults.
        """
        dim, device = self.judge.codes.shape[1], self.judge.codes.device
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        scores = torch.empty(count, width, dtype=dtype, device=device)
        factors = torch.ones(count, dim + (COLUMNS if self.bf16 else 1), dtype=dtype, device=device)
        rows = torch.empty(0 if self.bf16 else width, dim + 1, dtype=torch.float32, device=device)
        self._buffers = scores, factors, rows

    def factors(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Prepare vectors (n, D): the left factor, and twice the bound of a score's error (n, 1).

        The bound is NaN for vectors that must get no candidate: what float32 cannot square, and
        zero vectors where all codes tie.
        """
        assert self._buffers is not None
        factors = self._buffers[1][: len(vectors)]
        dim = vectors.shape[1]
        points = self._points(vectors, None if self.bf16 else factors[:, :dim])
        if self.bf16:
            factors[:, :dim] = points
        length = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
        weight = self._weight(points, length, factors)
        product = length * self.longest
        quadratic = self.longest.square() * weight if self.metric == "l2" else 0.0
        bound = (dim + 8) * FLOAT32 * (product + quadratic)
        if self.bf16:
            error = points - factors[:, :dim]
            rounded = torch.linalg.vector_norm(error, dim=-1, keepdim=True)
            bound = bound + 1.001 * (rounded * self.longest + (length + rounded) * self.coarsest)
        else:
            allowed = PRODUCT_ERROR[_product_precision(vectors.device)]
            bound = bound + allowed * (product + quadratic)
        bound = bound + self.judge.error(length, self.longest + self.shift, weight, dim)
        bound = 2 * bound + dim * torch.finfo(torch.float32).tiny  # underflow
        usable = bound.isfinite() & (bound < -LOWEST)
        if self.metric != "l2":
            usable = usable & (length > 0)  # a zero vector ties with everything
        return factors, bound.where(usable, torch.nan)

    def _weight(self, points: Tensor, length: Tensor, factors: Tensor) -> Tensor | float:
        """Weigh the scores of long vectors down by powers of two (n, 1), in all three arguments.

        It changes no order of scores, and nothing overflows. Ones and other vectors stay.
        """
        dim = points.shape[1]
        factors[:, dim:] = 1.0
        long = length < LONG
        if self.metric != "l2" or (points.device.type == "cpu" and bool(long.all())):
            return 1.0
        exponent = torch.frexp(points.abs().amax(-1, keepdim=True)).exponent
        weight = power_of_two(-exponent, torch.float32).where(~long, 1.0)
        factors *= weight.to(factors.dtype)
        if self.bf16:  # in float32 they are the factors
            points *= weight
        length.copy_(torch.linalg.vector_norm(points, dim=-1, keepdim=True))
        return weight

    def _points(self, vectors: Tensor, out: Tensor | None) -> Tensor:
        """Bring vectors (n, D) into the frame, as float32, in `out` if it is given."""
        frame = self.frame
        narrow = vectors.dtype == torch.float32 == frame.centre.dtype
        if out is not None and narrow and frame.metric == "l2" and frame.scale is None:
            return torch.sub(vectors, frame.centre, out=out)
        points = frame.points(vectors)  # never `vectors` itself where it is changed: see `_weight`
        if frame.metric != "l2":
            # The length of a vector changes no order.
            points = near_one(vectors if vectors.dtype == torch.float64 else points).float()
        return points if out is None else out.copy_(points)

    def scores(self, factors: Tensor, start: int, width: int) -> Tensor:
        """Score `factors` of n vectors with up to `width` codes from `start` on -> (n, w)."""
        assert self._buffers is not None
        stop = min(start + width, self.num_rows)
        shape = len(factors), stop - start
        scores = self._buffers[0].view(-1)[: shape[0] * shape[1]].view(shape)
        if self.bf16:
            return torch.mm(factors, self.table[start:stop].T, out=scores)
        rows = self._buffers[2][: stop - start]
        part = self._part(start, stop)
        rows[: len(part), :-1] = self.frame.table(part)
        rows[len(part) :, :-1] = 0
        rows[:, -1] = self.bias[start:stop]
        return torch.mm(factors, rows.T, out=scores)

    def grouped(self, scores: Tensor, members: int) -> tuple[Tensor, int, int]:
        """View scores (n, w) as (n, members, groups), and give the distance of both in codes."""
        if not self.bf16:
            return scores.view(len(scores), -1, members).transpose(1, 2), 1, members
        return scores.view(len(scores), members, -1), scores.shape[1] // members, 1

    def floor(self, best: Tensor, slack: Tensor) -> Tensor:
        """Bound from below the score (n, 1) that a winner shows if another code shows `best`.

        In bf16 scores are rounded, `best` too: its true value may be smaller by its last digit.
        Rounding keeps order, so what is not smaller before is not smaller after.
        """
        if not self.bf16:
            return best - slack
        return (best - 1.01 * BF16 * best.abs() - slack).bfloat16()


def _product_precision(device: torch.device) -> str:
    """Name the precision that the user's settings allow float32 products on this device."""
    library = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    setting = str(getattr(getattr(library, "matmul", None), "fp32_precision", "ieee"))
    return setting if setting in PRODUCT_ERROR else "ieee"
