"""A short cut where few codes win: collapsed codebooks, whose dead codes need not be scored.

A vector z at distance d from some code has no nearer one whose length rules it out: for any centre
m

    |z - c| >= ||z - m| - |c - m||,

so that only codes with lengths from |z - m| - d to |z - m| + d may win. Where all vectors together
leave few such codes, the favourites, most vectors need no look at others; two places in the sorted
lengths of the others tell which. Those that do are searched in full. Margins are well above the
rounding errors of float32, (D + 8) 2^-24, and strict: no tie and no near tie is settled.

Legend: n vectors of a block, K codes, D dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from vqkit.search.candidates import Judge, Pairs
from vqkit.search.exact import first_copies
from vqkit.search.screen import Screen

CODES, SCORES = 4096, 2**25
"""Fewer codes, and searches of fewer scores in all, are as fast in full."""
LEARN = 256
"""Vectors searched in full before favourites are chosen."""
SHARE, ELEMENTS = 32, 2**18
"""At most one code of so many is a favourite, and favourites have so many elements (1 MiB)."""
LEFT_OUT = (0.0, 1 / 16, 1 / 4)
"""Shares of the vectors at either end of the lengths that a choice of favourites ignores."""
CHOICES = 4
"""Choices in a row that settle less than half of the vectors, after which the short cut ends."""
MARGIN, TINY = 2.0**-9, 2.0**-60
"""Relative margin of lengths and distances, and the absolute one, for what underflows."""
DIM = 4096
"""Most dimensions: eight times fewer than those whose rounding errors reach the margin."""


class Search(Protocol):
    """What is used of `blocked._Search`."""

    judge: Judge
    screen: Screen

    def pairs(self, vectors: Tensor) -> Pairs:
        """Collect all codes that may be nearest."""

    def decide(self, vectors: Tensor, out: Tensor, of: int | None = None) -> None:
        """Write ids of the nearest codes; the vectors are what is left of `of`."""


def may_pay(judge: Judge, vectors: Tensor) -> bool:
    """Tell whether the short cut holds for these codes, and whether the search is large enough."""
    codes = judge.codes
    narrow = torch.float64 not in (codes.dtype, vectors.dtype) and codes.shape[1] <= DIM
    plain = judge.metric == "l2" and judge.frame.scale is None and codes.device.type == "cpu"
    large = len(codes) >= CODES and len(vectors) * len(codes) >= SCORES
    return large and plain and narrow


class Favourites:
    """Settles vectors by the codes that may win, and has the others searched."""

    def __init__(self, search: Search, among: Callable[[Tensor], Search]) -> None:
        """Take a search of all codes, and what makes one among some of them, by sorted ids."""
        self._search, self._among = search, among
        codes = search.judge.codes
        self._won = torch.empty(0, dtype=torch.int64, device=codes.device)
        self._room = min(len(codes) // SHARE, ELEMENTS // codes.shape[1])
        self._seen = self._fruitless = 0
        """Vectors met; choices on end that settled too little."""
        self._few: Search | None = None
        self._off = self._due = False

    def decide(self, vectors: Tensor, out: Tensor) -> None:
        """Write ids of the nearest codes of vectors (n, D) to `out` (n, 1)."""
        if self._due:
            self._choose(*self._last)
        num_open = len(vectors)
        if self._few is None:
            self._search.decide(vectors, out)
        else:
            still = self._settle(vectors, out).logical_not().nonzero()[:, 0]
            num_open = len(still)
            if num_open:
                found = out[still]
                self._search.decide(vectors[still], found, len(vectors))
                out[still] = found
        if not self._off:
            self._learn(vectors, out, num_open)

    def _settle(self, vectors: Tensor, out: Tensor) -> Tensor:
        """Write the best favourites, and tell for which vectors (n,) nothing else can win."""
        assert self._few is not None
        pairs = self._few.pairs(vectors)
        out[:] = pairs.first_k(vectors, self._search.judge, 1)
        settled = torch.zeros(len(vectors), dtype=torch.bool, device=vectors.device)
        settled[pairs.row] = True  # the others are beyond what float32 compares
        last = len(self._others) - 1
        if last < 0:
            return settled
        length, away = self._measure(vectors, out)
        place = torch.searchsorted(self._others, length)
        for other, none in ((place - 1, place == 0), (place, place > last)):
            near = self._others[other.clamp(0, last)]
            far = away + MARGIN * (length + near) + TINY < (length - near).abs()
            settled &= far | none
        return settled

    def _measure(self, vectors: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lengths (n,) of vectors in the frame, and how far codes (n, 1) are off."""
        codes = self._search.judge.codes.index_select(0, ids[:, 0])
        away = torch.linalg.vector_norm(vectors.float() - codes.float(), dim=-1)
        return torch.linalg.vector_norm(self._frame.points(vectors), dim=-1), away

    def _learn(self, vectors: Tensor, found: Tensor, num_open: int) -> None:
        """Take in the winners (n, 1) of a block, and tell how to go on."""
        before, self._won = len(self._won), torch.cat([self._won, found[:, 0]]).unique()
        grown = len(self._won) > before
        self._seen += len(found)
        if self._seen < LEARN:
            return
        fruitless = self._few is not None and 2 * num_open > len(found)
        self._fruitless = self._fruitless + 1 if fruitless else 0
        lost = fruitless and (not grown or self._fruitless == CHOICES)
        if lost or len(self._won) > min(3 * self._seen // 4, self._room):
            self._end()
        else:
            self._due = self._few is None or (grown and 16 * num_open > len(found))
            self._last = vectors, found

    def _end(self) -> None:
        self._few, self._off, self._due = None, True, False

    def _choose(self, vectors: Tensor, found: Tensor) -> None:
        """Take codes that have won, or that the lengths of most vectors (n, D) leave."""
        self._few, self._due = None, False
        screen = self._search.screen
        self._frame = screen.frame  # the search may take another one later
        ids = screen.code_at[screen.code_at >= 0]
        lengths, order = screen.lengths[screen.code_at >= 0].sort()
        length, away = self._measure(vectors, found)
        away = away + 4 * MARGIN * (length + away)
        within = away.isfinite()
        low, high = (length - away)[within], (length + away)[within]
        for share in LEFT_OUT if len(low) else ():
            ends = torch.stack([low.quantile(share), high.quantile(1 - share)])
            first, last = torch.searchsorted(lengths, ends).tolist()
            chosen = ids.new_zeros(len(self._search.judge.codes), dtype=torch.bool)
            chosen[self._won] = chosen[ids[order[first:last]]] = True
            if int(chosen.sum()) <= self._room:
                self._others = lengths[chosen[ids[order]].logical_not()]
                self._few = self._among(self._without_copies(chosen.nonzero()[:, 0]))
                return
        self._end()

    def _without_copies(self, ids: Tensor) -> Tensor:
        """Keep the first of equal codes among some: of hundreds every one would be a candidate."""
        first = first_copies(self._search.judge.codes.index_select(0, ids))
        return ids if first is None else ids[first.unique()]
