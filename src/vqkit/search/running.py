"""The best code so far of every vector, by float32, and how closely it bounds all others.

In bf16 the error of a score is as large as the lengths of vector and code, even where vectors lie
far closer to their codes than both are long. Most of it is common to all codes near the best one.
With z = b(z) + e, c = b(c) + f split into the rounded part and the rest, and a code c' at distance
d from z, every code c at least as close satisfies

    z c - b(z) b(c) - b(c) f = (b(z) - b(c)) f + e c' + e (c - c')
                            <= (d + |e| + |f|) |f| + e c' + 2 d |e|

where b(c) f is part of the bias of c and e c' one number for a vector. Codes farther than c' win
nothing, so that it does not matter what is said of them.

Legend: n vectors of a block, w codes of a block, g groups, D dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqkit.search.exact import FLOAT32
from vqkit.search.screen import SAFE, Screen

UNDERFLOW = 2.0**-62
"""Distances below it are lost in float32; codes that are not scaled are 2^-40 long at least."""


class Running:
    """Follows the best score of a block of vectors through the blocks of codes (`l2`, one code)."""

    def __init__(self, screen: Screen, coefficients: Tensor) -> None:
        """Start after `screen.factors`, with the coefficients (n, 5) that it gave."""
        self.screen = screen
        self.points, self.error, self.length, self.rounded, self.offset = screen.seen
        self.given = coefficients
        self.every = torch.arange(len(self.points), device=self.points.device)
        self.floor = torch.full_like(self.length, -torch.inf)
        """(n, 1) what the best code scores at least."""
        self._away = torch.full_like(self.length, torch.inf)
        self._common = torch.zeros_like(self.length)
        self._to = torch.zeros_like(self.length)

    def meet(self, maxima: Tensor, scores: Tensor, start: int, across: int, along: int) -> None:
        """Score the best code of a block in float32.

        Args:
            maxima: (n, g) of groups.
            scores: (n, members, g), in bf16.
            start: the place where the block begins.
            across: distance of two members in places.
            along: distance of two groups.
        """
        screen, points = self.screen, self.points
        group = maxima.argmax(1)
        member = scores[self.every, :, group].argmax(1)
        place = start + member * across + group * along
        rows = screen.frame.table(
            screen.judge.codes.index_select(0, screen.code_at[place].clamp_(min=0))
        )
        to = screen.lengths[place, None]
        away = torch.linalg.vector_norm(points - rows, dim=1, keepdim=True)
        common = (self.error * rows).sum(1, keepdim=True)
        score = rows.mul_(points).sum(1, keepdim=True) - to.square() / 2 + self.offset
        floor = score - self._slack(to)
        better = floor > self.floor
        self.floor = torch.where(floor.isnan(), floor, torch.maximum(floor, self.floor))
        self._away = torch.where(better, away, self._away)
        self._common = torch.where(better, common, self._common)
        self._to = torch.where(better, to, self._to)

    def _adding(self) -> float:
        return (self.points.shape[1] + 8) * FLOAT32

    def _slack(self, to: Tensor) -> Tensor:
        """Bound the error (n, 1) of a score in float32 of a code of length `to` (n, 1)."""
        product = SAFE * 2 * self._adding() * self.length * to
        return product + self.given[:, 2:3] * to.square() + self.given[:, 3:4]

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Return what replaces the coefficients (n, 5) of `Screen.factors`, and e c' (n, 1)."""
        rest = self.given[:, 3:4]
        adding = self._adding()
        # What the judge cannot tell apart counts as equally far.
        away = (1 + adding) * self._away + 2 * FLOAT32 * (self.length + self._to)
        away = away + (2 * rest).sqrt() + UNDERFLOW
        near = 2 * away < self._to
        zero = torch.zeros_like(away)
        slack = [
            2 * adding * self.length + torch.where(near, zero, self.rounded),
            away + self.rounded,
            self.given[:, 2:3],
            rest + torch.where(near, 2 * away * self.rounded, zero),
            torch.full_like(away, 2.0**-7),
        ]
        # e c' has a sign, so that it is no part of a product that may be rounded.
        return SAFE * torch.cat(slack, 1), torch.where(near, self._common, zero)
