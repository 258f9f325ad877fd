"""A short cut where few codes win: collapsed codebooks, whose dead codes need not be scored.

A vector z at distance d from some code has no nearer one whose length rules it out: for any centre
m

    |z - c| >= ||z - m| - |c - m||,

so that only codes with lengths from |z - m| - d to |z - m| + d may win. Where all vectors together
leave few such codes, the favourites, most vectors need no look at others; two places in the sorted
lengths of the others tell which. Those that do are searched in full. Margins are a thousand times
the rounding errors of float32, and strict: no tie and no near tie is settled.

Legend: n vectors of a block, o open ones, K codes, D dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from vqkit.search.candidates import Judge, Pairs
from vqkit.search.screen import Screen

CODES, SCORES = 4096, 2**25
"""Fewer codes, and searches of fewer scores in all, are as fast in full."""
LEARN = 256
"""Vectors searched in full before their winners are taken for favourites."""
SHARE = 32
"""At most one code of so many is a favourite."""
LEFT_OUT = (0.0, 1 / 16, 1 / 4)
"""Shares of the vectors, at both ends of the lengths, that favourites need not be enough for."""
MARGIN, TINY = 2.0**-9, 2.0**-60
"""Relative margin of lengths and distances, and the absolute one, for what underflows."""


class Search(Protocol):
    """What is used of `blocked._Search`."""

    judge: Judge
    screen: Screen

    def pairs(self, vectors: Tensor) -> Pairs:
        """Collect all codes that may be nearest."""

    def decide(self, vectors: Tensor, out: Tensor) -> None:
        """Write ids of the nearest codes."""


def may_pay(judge: Judge, vectors: Tensor) -> bool:
    """Tell whether the short cut holds for these codes, and whether the search is large enough."""
    codes = judge.codes
    narrow = torch.float64 not in (codes.dtype, vectors.dtype)
    plain = judge.metric == "l2" and judge.frame.scale is None and codes.device.type == "cpu"
    large = len(codes) >= CODES and len(vectors) * len(codes) >= SCORES
    return large and plain and narrow


class Favourites:
    """Settles vectors by the codes that won before, and has the others searched."""

    def __init__(self, search: Search, among: Callable[[Tensor], Search]) -> None:
        """Take a search of all codes, and what makes one among some of them, by sorted ids."""
        self._search, self._among = search, among
        self._won = torch.empty(0, dtype=torch.int64)
        self._seen = 0
        """Vectors met."""
        self._few: Search | None = None
        self._off = False

    def decide(self, vectors: Tensor, out: Tensor) -> None:
        """Write ids of the nearest codes of vectors (n, D) to `out` (n, 1)."""
        if self._few is None:
            self._search.decide(vectors, out)
            self._learn(vectors, out, len(vectors))
            return
        left = self._settle(vectors, out).logical_not().nonzero()[:, 0]
        if len(left):
            found = out[left]
            self._search.decide(vectors[left], found)
            out[left] = found
        self._learn(vectors, out, len(left))

    def _settle(self, vectors: Tensor, out: Tensor) -> Tensor:
        """Write the best favourites, and tell for which vectors (n,) nothing else can win."""
        assert self._few is not None
        pairs = self._few.pairs(vectors)
        out[:] = pairs.first_k(vectors, self._search.judge, 1)
        settled = torch.zeros(len(vectors), dtype=torch.bool)
        settled[pairs.row] = True  # the others are beyond what float32 compares
        length, away = self._place(vectors, out)
        place = torch.searchsorted(self._others, length)
        last = len(self._others) - 1
        for other, none in ((place - 1, place == 0), (place, place > last)):
            near = self._others[other.clamp(0, last)]
            far = away + MARGIN * (length + near) + TINY < (length - near).abs()
            settled &= far | none
        return settled

    def _place(self, vectors: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lengths (n,) of vectors in the frame, and how far codes (n, 1) are off."""
        codes = self._search.judge.codes.index_select(0, ids[:, 0])
        away = torch.linalg.vector_norm(vectors.float() - codes.float(), dim=-1)
        return torch.linalg.vector_norm(self._frame.points(vectors), dim=-1), away

    def _learn(self, vectors: Tensor, found: Tensor, num_open: int) -> None:
        """Take in the winners (n, 1) of a block, and choose how to go on."""
        if self._off:
            return
        before, self._won = len(self._won), torch.cat([self._won, found[:, 0]]).unique()
        self._seen += len(found)
        if self._seen < LEARN:
            return
        fruitless = self._few is not None and 2 * num_open > len(found)
        if fruitless or len(self._won) > self._seen // 2:
            self._few, self._off = None, True
        elif self._few is None or (len(self._won) > before and 16 * num_open > len(found)):
            self._choose(vectors, found)

    def _choose(self, vectors: Tensor, found: Tensor) -> None:
        """Take codes that have won, or that the lengths of most vectors (n, D) leave."""
        screen = self._search.screen
        self._frame = screen.frame  # the search may take another one later
        ids = screen.code_at[screen.code_at >= 0]
        lengths, order = screen.lengths[screen.code_at >= 0].sort()
        length, away = self._place(vectors, found)
        away = away + 4 * MARGIN * (length + away)
        most = len(self._search.judge.codes) // SHARE - len(self._won)
        for share in LEFT_OUT:
            ends = (length - away).quantile(share), (length + away).quantile(1 - share)
            first, last = torch.searchsorted(lengths, torch.stack(ends)).tolist()
            if last - first <= most:
                few = torch.cat([self._won, ids[order[first:last]]]).unique()
                self._others = lengths[torch.isin(ids[order], few, invert=True)]
                self._few = self._among(few)
                return
        self._few, self._off = None, True
