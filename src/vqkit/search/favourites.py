"""A short cut where few codes win: collapsed codebooks, whose dead codes need not be scored.

A vector z whose distance to the best of the favourites, the codes that have won so far, is d has no
other code as near if the lengths of the others rule it out: for any centre m

    |z - c| >= ||z - m| - |c - m||,

so that a look into the sorted lengths decides. What is not settled so is searched in full. Margins
are a thousand times the rounding errors of float32, and strict: no tie and no near tie is settled.

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
        """Vectors searched in full."""
        self._few: Search | None = None
        self._off = False

    def decide(self, vectors: Tensor, out: Tensor) -> None:
        """Write ids of the nearest codes of vectors (n, D) to `out` (n, 1)."""
        if self._few is None:
            self._search.decide(vectors, out)
            self._learn(out, 0)
            return
        left = self._settle(vectors, out).logical_not().nonzero()[:, 0]
        found = out[left]
        if len(left):
            self._search.decide(vectors[left], found)
            out[left] = found
        self._learn(found, len(vectors) - len(left))

    def _settle(self, vectors: Tensor, out: Tensor) -> Tensor:
        """Write the best favourites, and tell for which vectors (n,) nothing else can win."""
        assert self._few is not None
        judge, frame = self._search.judge, self._search.screen.frame
        pairs = self._few.pairs(vectors)
        out[:] = pairs.first_k(vectors, judge, 1)
        settled = torch.zeros(len(vectors), dtype=torch.bool)
        settled[pairs.row] = True  # the others are beyond what float32 compares
        between = vectors.float() - judge.codes.index_select(0, out[:, 0]).float()
        away = torch.linalg.vector_norm(between, dim=-1)
        length = torch.linalg.vector_norm(frame.points(vectors), dim=-1)
        place = torch.searchsorted(self._lengths, length)
        last = len(self._lengths) - 1
        for other, none in ((place - 1, place == 0), (place, place > last)):
            near = self._lengths[other.clamp(0, last)]
            far = away + MARGIN * (length + near) + TINY < (length - near).abs()
            settled &= far | none
        return settled

    def _learn(self, found: Tensor, num_settled: int) -> None:
        """Take in the winners (o, 1) of a block's open vectors, and choose how to go on."""
        if self._off:
            return
        self._seen += len(found)
        before, self._won = len(self._won), torch.cat([self._won, found[:, 0]]).unique()
        if self._seen < LEARN:
            return
        most = min(self._seen // 2, len(self._search.judge.codes) // SHARE)
        fruitless = self._few is not None and num_settled < len(found)
        if len(self._won) > most or fruitless:
            self._few, self._off = None, True
        elif self._few is None or (len(self._won) > before and 16 * len(found) > num_settled):
            self._choose()

    def _choose(self) -> None:
        screen = self._search.screen
        others = screen.code_at >= 0
        others &= torch.isin(screen.code_at, self._won, invert=True)
        self._lengths = screen.lengths[others].sort().values
        self._few = self._among(self._won)
