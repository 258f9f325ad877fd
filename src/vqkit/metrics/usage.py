"""Code usage and perplexity over a whole split, with the number of draws and what they allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vqkit.metrics.counts import make_counts
from vqkit.metrics.reduction import sum_over_processes


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeStatistics:
    """How the codes of one codebook (or of one slot of it) were used."""

    slots: tuple[int, ...]
    """Places in `quantizer.slots` whose tokens were counted."""
    num_codes: int
    num_tokens: int
    """Tokens drawn."""
    num_used: int
    """Codes drawn at least once."""
    entropy: float
    """Zero-order entropy of the drawn codes in bits per token (plug-in estimate: too low when there
    are few tokens for many codes)."""

    @property
    def perplexity(self) -> float:
        """2 to the power of the entropy: so many equally used codes would look the same."""
        return 2.0**self.entropy

    @property
    def usage(self) -> float:
        """Share of codes drawn at least once, in [0, 1]."""
        return self.num_used / self.num_codes

    @property
    def ceiling(self) -> float:
        """Largest usage that so many tokens can show at all: min(1, tokens / codes)."""
        return min(1.0, self.num_tokens / self.num_codes)

    @property
    def uniform_usage(self) -> float:
        """Usage to expect from so many uniform draws."""
        return uniform_usage(self.num_codes, self.num_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return everything above as JSON values."""
        return {
            **asdict(self),
            "slots": list(self.slots),
            "perplexity": self.perplexity,
            "usage": self.usage,
            "ceiling": self.ceiling,
            "uniform_usage": self.uniform_usage,
        }


def uniform_usage(num_codes: int, num_tokens: int) -> float:
    """Return the share of codes that uniform draws are expected to touch: 1 - (1 - 1/K)^N."""
    if num_codes == 1:
        return min(1.0, float(num_tokens))
    return -math.expm1(num_tokens * math.log1p(-1 / num_codes))


class CodeUsage:
    """Counts every token of a split: per slot, and pooled over the slots that share a codebook.

    `slot_codes[t]` is the number of codes of slot t. `books` groups the slots that draw from the
    same codebook (LooC's segments: one group; PQ's: one group each); every slot stands in one.
    """

    def __init__(self, slot_codes: Sequence[int], books: Sequence[Sequence[int]]) -> None:
        self.slot_codes = tuple(slot_codes)
        self.books = tuple(tuple(book) for book in books)
        if sorted(slot for book in self.books for slot in book) != list(
            range(len(self.slot_codes))
        ):
            raise ValueError(
                f"books={self.books}: must name each of {len(self.slot_codes)} slots exactly once"
            )
        for book in self.books:
            sizes = {self.slot_codes[slot] for slot in book}
            if len(sizes) > 1:
                raise ValueError(
                    f"books={self.books}: slots {book} share one codebook "
                    f"but have {sorted(sizes)} codes"
                )
        self._counts = [make_counts(len(book), self.slot_codes[book[0]]) for book in self.books]
        self._positions = torch.zeros(1, dtype=torch.int64)

    def update(self, ids: Tensor) -> None:
        """Count tokens (..., T) int64, one per slot; ids out of range are a `ValueError`."""
        if ids.dtype != torch.int64 or ids.shape[-1] != len(self.slot_codes):
            raise ValueError(
                f"ids of shape {tuple(ids.shape)}, {ids.dtype}: expected int64 with "
                f"{len(self.slot_codes)} tokens in the last dimension"
            )
        rows = ids.reshape(-1, len(self.slot_codes))
        if not len(rows):
            return
        limits = torch.tensor(self.slot_codes, device=rows.device)
        if bool(((rows < 0) | (rows >= limits)).any()):
            raise ValueError(
                f"ids: outside [0, num_codes) of their slot; num_codes={self.slot_codes}"
            )
        for book, counts in zip(self.books, self._counts, strict=True):
            counts.add(rows[:, list(book)])
        self._positions += len(rows)

    def reduce(self) -> CodeUsage:
        """Return the counts of all processes together; this object keeps its own share."""
        total = copy(self)
        total._counts = [counts.reduce() for counts in self._counts]
        total._positions = sum_over_processes(self._positions)
        return total

    @property
    def num_positions(self) -> int:
        """Grid positions counted, each with one token per slot."""
        return int(self._positions)

    @property
    def num_tokens(self) -> int:
        """Tokens counted: positions × slots."""
        return self.num_positions * len(self.slot_codes)

    def by_book(self) -> tuple[CodeStatistics, ...]:
        """Return the statistics of every codebook, its slots pooled, in the order of `books`."""
        pairs = zip(self.books, self._counts, strict=True)
        return tuple(self._statistics(book, counts.pooled()) for book, counts in pairs)

    def by_slot(self) -> tuple[CodeStatistics, ...]:
        """Return the statistics of every slot on its own, in the order of the slots."""
        found = {
            slot: self._statistics((slot,), counts.of_slot(place))
            for book, counts in zip(self.books, self._counts, strict=True)
            for place, slot in enumerate(book)
        }
        return tuple(found[slot] for slot in range(len(self.slot_codes)))

    def _statistics(self, slots: tuple[int, ...], counts: Tensor) -> CodeStatistics:
        shares = counts.double() / counts.sum()
        return CodeStatistics(
            slots=slots,
            num_codes=self.slot_codes[slots[0]],
            num_tokens=int(counts.sum()),
            num_used=len(counts),
            # abs: a single used code gives -0.0.
            entropy=abs(float((shares * shares.log2()).sum())),
        )
