"""The screen of a search: scores by a matrix product, and a rigorous bound of their error.

The score of a code c for a vector z, both in the frame, is z c - |c|^2 / 2 (`l2`) or z c. Its error
comes from rounding the factors, from adding up in float32, and in bf16 from rounding the result; it
grows with the length of the code. So codes are sorted by length and bounded in groups: one long
code, dead far away, does not spoil the bound of the others.

In bf16 the term -|c|^2 / 2 rides along in the product, split over three columns that meet ones: a
pass over all scores to add it would cost as much as the product itself on matrix units. For `l2`
the product of the rounded code and its rounding error does too, without which `running` could not
bound scores by distances.

Legend: n vectors of a block, w codes of a block, K' codes padded to whole groups, g groups, D dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqkit.search.candidates import Judge
from vqkit.search.exact import BF16, FLOAT32, power_of_two, product_error
from vqkit.search.tables import Frame, near_one

MEMBERS = (32, 16, 8, 4, 2, 1)
"""Codes of a group, whose maximum is taken at once; candidates are sought in groups that reach the
best. In bf16 the first that pads the codes by an eighth at most."""
GROUPS = 64
"""In bf16 a block has a multiple of as many groups, and the members of a group lie that far apart:
maxima are then taken over whole registers. In float32 neighbours are as fast for any number."""
ELEMENTS, HELD = 2**18, 2**22
"""Elements of codes that are prepared at a time, and that float32 holds (16 MiB)."""
LOWEST = -3.0e38
"""Bias of rows of padding: no score reaches it."""
COLUMNS = 4
"""Further columns in bf16: three of the bias, and one of an offset of the vector."""
FAR, LEARNT = 16, 512
"""Times the median length from which codes are far away; vectors whose scores `learn` looks at."""
SAFE = 1.02
"""Bounds are this much larger: their own product may be rounded to bf16, if the user allows it."""


class Screen:
    """Prepared codes: one copy in bf16; in float32 prepared block by block if they are many."""

    def __init__(self, judge: Judge, kept: Tensor | None, bf16: bool, width: int) -> None:
        self.judge, self.bf16 = judge, bf16
        every = torch.arange(len(judge.codes), device=judge.codes.device)
        ids = every if kept is None else kept
        groups = GROUPS if bf16 else 1
        padded = {m: len(ids) + -len(ids) % (groups * m) for m in MEMBERS}
        self.members = next((m for m in MEMBERS if 8 * padded[m] <= 9 * len(ids)), 1)
        self.num_rows = padded[self.members]
        self.width = min(width, self.num_rows)
        self._share, self.all_short = 0.0, False
        self._bounds: dict[tuple[int, int], Tensor] = {}
        self._set_frame(judge.frame if kept is None else judge.frame.around(judge.codes, ids))
        self._arrange(ids)
        self._fill()

    def _set_frame(self, frame: Frame) -> None:
        self.frame = frame
        shift = (frame.centre.to(self.judge.centre.dtype) - self.judge.centre).norm()
        self.shift = (shift * (1.0 if frame.scale is None else frame.scale)).float()
        """How far the frame has moved from the judge's."""

    def _rows_at_once(self) -> int:
        return max(1, ELEMENTS // self.judge.codes.shape[1])

    def _arrange(self, ids: Tensor) -> None:
        """Give every code its place: groups hold codes of about one length."""
        if self.judge.metric != "cosine":  # unit codes are about equally long
            lengths = self._lengths(ids)
            middle = lengths.median()
            if bool(lengths.max() > FAR * middle):
                # Codes far away drag the mean with them: the others get a frame of their own.
                self._set_frame(self.judge.frame.around(self.judge.codes, ids[lengths <= middle]))
                lengths = self._lengths(ids)
            ids = ids[lengths.argsort()]
        self.code_at = torch.nn.functional.pad(ids, (0, self.num_rows - len(ids)), value=-1)
        """The id at every place (K',), -1 in the padding."""
        if self.bf16:
            blocks = [
                block.view(-1, self.members).T.flatten() for block in self.code_at.split(self.width)
            ]
            self.code_at = torch.cat(blocks)

    def _lengths(self, ids: Tensor) -> Tensor:
        lengths = torch.empty(len(ids), dtype=torch.float32, device=ids.device)
        step = self._rows_at_once()
        for here, part in zip(lengths.split(step), ids.split(step), strict=True):
            torch.linalg.vector_norm(
                self.frame.table(self.judge.codes.index_select(0, part)), dim=-1, out=here
            )
        return lengths

    def _fill(self) -> None:
        """Prepare the codes, or only what their bounds need."""
        dim, device = self.judge.codes.shape[1], self.judge.codes.device
        self.bias = torch.full((self.num_rows,), LOWEST, dtype=torch.float32, device=device)
        self.lengths, self.errors = torch.zeros(
            2, self.num_rows, dtype=torch.float32, device=device
        )
        held = self.bf16 or self.num_rows * (dim + 1) <= HELD
        kind = torch.bfloat16 if self.bf16 else torch.float32
        columns = dim + (COLUMNS if self.bf16 else 1)
        self.table = torch.zeros(self.num_rows if held else 0, columns, dtype=kind, device=device)
        step = self._rows_at_once()
        for start in range(0, self.num_rows, step):
            here = slice(start, min(start + step, self.num_rows))
            real = self.code_at[here] >= 0
            rows = self._rows(here)
            lengths = torch.linalg.vector_norm(rows, dim=-1, out=self.lengths[here])
            squares = lengths.square() / -2 if self.judge.metric == "l2" else lengths * 0
            self.bias[here] = squares.where(real, LOWEST)
            if held:
                self.table[here, :dim] = rows
            if self.bf16:
                stored = self.table[here, :dim].float()
                rows -= stored
                torch.linalg.vector_norm(rows, dim=-1, out=self.errors[here])
                if self.judge.metric == "l2":
                    self.bias[here] += rows.mul_(stored).sum(-1)
        if self.bf16:
            rest = self.bias
            for column in range(dim, dim + 3):
                self.table[:, column] = rest
                rest = rest - self.table[:, column].float()
            self.table[:, dim + 3] = 1.0
        elif held:
            self.table[:, dim] = self.bias

    def _rows(self, here: slice) -> Tensor:
        """Prepare the codes at some places, zeros in the padding."""
        ids = self.code_at[here]
        rows = self.frame.table(self.judge.codes.index_select(0, ids.clamp(min=0)))
        return rows.mul_((ids >= 0)[:, None]) if here.stop == self.num_rows else rows

    def reserve(self, count: int) -> None:
        """Make room for the scores of `count` vectors.

        One buffer for all blocks: fresh ones would scatter the heap and cost page faults.
        """
        dim, device = self.judge.codes.shape[1], self.judge.codes.device
        kind = torch.bfloat16 if self.bf16 else torch.float32
        self._scores = torch.empty(count * self.width, dtype=kind, device=device)
        columns = dim + (COLUMNS if self.bf16 else 1)
        self._factors = torch.empty(count, columns, dtype=kind, device=device)
        rows = 0 if len(self.table) else self.width
        self._block = torch.empty(rows, dim + 1, dtype=torch.float32, device=device)

    def factors(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Prepare vectors (n, D): the left factor, and the coefficients (n, 5) of `slack`.

        They are NaN for vectors that must get no candidate: what float32 cannot square, and zero
        vectors where all codes tie.
        """
        factors = self._factors[: len(vectors)]
        dim = vectors.shape[1]
        points = self._points(vectors, None if self.bf16 else factors[:, :dim])
        if self.bf16:
            factors[:, :dim] = points
        length = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
        weight = self._weight(points, length, factors)
        offset = self._offset(length, factors)
        adding, judging = (dim + 8) * FLOAT32, (dim + 4) * 2.0**-50
        if self.bf16:
            error = points - factors[:, :dim]
            rounded = 1.001 * torch.linalg.vector_norm(error, dim=-1, keepdim=True)
            of_errors, allowed = 1.001 * length + rounded, 0.0
            self.seen = points, error, length, rounded, offset
        else:
            allowed = product_error(vectors.device)
            rounded = of_errors = torch.zeros_like(length)
        # The judge errs too: codes that it cannot tell apart must all be candidates.
        far = judging * (length * self.shift + 2 * weight * self.shift.square())
        if self.judge.metric == "l2":
            direct = length <= dim**0.5 * self.judge.limit.float() + self.shift
            far = torch.where(direct, judging * length.square(), far)
        slack = [
            (adding + allowed + 2 * judging) * length + rounded,
            of_errors,
            (adding + allowed + 2 * judging) * weight,
            far + adding * offset.abs() + dim * 4 * torch.finfo(torch.float32).tiny,  # underflow
            1.01 * weight,
        ]
        coefficients = SAFE * torch.cat(slack, 1)
        most = coefficients @ self._columns(self.lengths.max(), self.errors.max())
        usable = most.isfinite() & (most < -LOWEST / 4)
        if self.judge.metric != "l2":
            usable = usable & (length[:, 0] > 0)  # a zero vector ties with everything
        return factors, coefficients.where(usable[:, None], torch.nan)

    def _columns(self, lengths: Tensor, errors: Tensor) -> Tensor:
        """Stack what coefficients meet: lengths, rounding errors, squared lengths, ones, ..."""
        zeros = torch.zeros_like(lengths)
        l2 = self.judge.metric == "l2"
        squares, products = (lengths.square(), lengths * errors) if l2 else (zeros, zeros)
        return torch.stack([lengths, errors, squares, torch.ones_like(lengths), products])

    def bounds(self, start: int, members: int) -> Tensor:
        """Return what the coefficients meet (5, g), for groups of the block from `start` on."""
        if (start, members) not in self._bounds:
            here = slice(start, start + self.width)
            lengths, errors = (
                self.grouped(values[None, here], members)[0].amax(1)[0]
                for values in (self.lengths, self.errors)
            )
            self._bounds[start, members] = self._columns(lengths, errors)
        return self._bounds[start, members]

    def _weight(self, points: Tensor, length: Tensor, factors: Tensor) -> Tensor:
        """Weigh the scores of long vectors down by powers of two (n, 1), in all three arguments.

        It changes no order of scores, and nothing overflows. Ones and other vectors stay.
        """
        dim = points.shape[1]
        factors[:, dim:] = 1.0
        short = length < 2.0**60
        weight = torch.ones_like(length)
        self.short = short[:, 0]
        self.all_short = self.judge.metric == "l2" and bool(short.all())
        if self.judge.metric != "l2" or self.all_short:
            return weight
        exponent = torch.frexp(points.abs().amax(-1, keepdim=True)).exponent
        weight = power_of_two(-exponent, torch.float32).where(~short, 1.0)
        factors *= weight.to(factors.dtype)
        if self.bf16:  # in float32 they are the factors
            points *= weight
        length.copy_(torch.linalg.vector_norm(points, dim=-1, keepdim=True))
        return weight

    def _offset(self, length: Tensor, factors: Tensor) -> Tensor:
        """Bring the best scores near zero, where bf16 is finest, by the last column (n, 1).

        They are guessed as a share of |z|^2 / 2, which `learn` took from the vectors before.
        """
        if not self.bf16 or not self.all_short:
            factors[:, -1] *= not self.bf16  # in float32 it meets the bias
            return torch.zeros_like(length)
        factors[:, -1:] = length.square() * (-self._share / 2)
        self._halves = length.square() / 2
        return factors[:, -1:].float()

    def learn(self, best: Tensor, factors: Tensor) -> None:
        """Take from the best scores (n, 1) of a block what `_offset` shall guess for the next."""
        if self.bf16 and self.all_short:
            best, factors, halves = best[:LEARNT], factors[:LEARNT], self._halves[:LEARNT]
            share = ((best - factors[:, -1:].float()) / halves).nanmedian()
            self._share = float(share.nan_to_num(0.0, 0.0, 0.0).clamp(-4, 1))

    def _points(self, vectors: Tensor, out: Tensor | None) -> Tensor:
        """Bring vectors (n, D) into the frame, as float32, in `out` if it is given."""
        frame = self.frame
        narrow = vectors.dtype == torch.float32 == frame.centre.dtype
        if out is not None and narrow and frame.metric == "l2" and frame.scale is None:
            return torch.sub(vectors, frame.centre, out=out)
        points = frame.points(vectors)
        if frame.metric != "l2":
            # The length of a vector changes no order.
            points = near_one(vectors if vectors.dtype == torch.float64 else points).float()
        return points if out is None else out.copy_(points)

    def scores(self, factors: Tensor, start: int) -> Tensor:
        """Score `factors` of n vectors with the codes of the block from `start` on -> (n, w)."""
        here = slice(start, min(start + self.width, self.num_rows))
        shape = len(factors), here.stop - here.start
        scores = self._scores[: shape[0] * shape[1]].view(shape)
        if len(self.table):
            return torch.mm(factors, self.table[here].T, out=scores)
        rows = self._block[: shape[1]]
        step = self._rows_at_once()
        for part, first in zip(rows.split(step), range(start, here.stop, step), strict=True):
            part[:, :-1] = self._rows(slice(first, first + len(part)))
        rows[:, -1] = self.bias[here]
        return torch.mm(factors, rows.T, out=scores)

    def grouped(self, scores: Tensor, members: int) -> tuple[Tensor, int, int]:
        """View scores (n, w) as (n, members, g), and give the distance of both in places."""
        if not self.bf16:
            return scores.view(len(scores), -1, members).transpose(1, 2), 1, members
        return scores.view(len(scores), members, -1), scores.shape[1] // members, 1

    def spread(self, scores: Tensor, slack: Tensor) -> Tensor:
        """Add to slack what rounding the result may have changed: nothing in float32."""
        return slack.add_(scores.abs(), alpha=BF16) if self.bf16 else slack

    def least(self, floor: Tensor) -> Tensor:
        """Return the smallest score that `spread` may lift to floor (P,), as scores are stored.

        It is rounded like the scores, which keeps order: what reached it before still does.
        """
        if not self.bf16:
            return floor
        return torch.where(floor > 0, floor / (1 + BF16), floor / (1 - BF16)).bfloat16()
