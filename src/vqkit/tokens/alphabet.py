"""What the tokens of one tokenizer can be: the codes of every slot, and which slots share a book.

Shapes: P grid positions (of one or many images, one after another, each row by row), T tokens per
position, K codes of a slot. A stream of tokens is rows (P, T).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vqkit.config import require

if TYPE_CHECKING:
    from vqkit.quantizers.grid import GridQuantizer

Rows = npt.NDArray[np.int64]
"""(P, T) ids."""


@dataclass(frozen=True, slots=True)
class Alphabet:
    """The codes of every slot, and the slots grouped by the codebook that they draw from."""

    slot_codes: tuple[int, ...]
    books: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        named = sorted(chain.from_iterable(self.books))
        require(
            named == list(range(self.num_slots)) and self.num_slots > 0,
            f"books={self.books}",
            f"must name each of {self.num_slots} slots exactly once",
        )
        require(min(self.slot_codes) >= 1, f"slot_codes={self.slot_codes}", "a slot has codes")
        same = all(len({self.slot_codes[slot] for slot in book}) == 1 for book in self.books)
        require(same, f"books={self.books}", "slots of one codebook must have as many codes")

    @classmethod
    def of(cls, quantizer: GridQuantizer | Any) -> Alphabet:
        """Read `slots` and `books` of a quantizer."""
        return cls(tuple(slot.num_codes for slot in quantizer.slots), tuple(quantizer.books))

    @property
    def num_slots(self) -> int:
        """T, the tokens of one position."""
        return len(self.slot_codes)

    def contexts(self, by_slot: bool) -> tuple[tuple[int, ...], ...]:
        """Return groups of slots whose tokens are counted together, those of a codebook or single.

        Slots with one code say nothing and are left out.
        """
        groups = [(slot,) for slot in range(self.num_slots)] if by_slot else self.books
        return tuple(tuple(group) for group in groups if self.slot_codes[group[0]] > 1)

    def num_weights(self, by_slot: bool) -> int:
        """Return the codes of all contexts together."""
        return sum(self.slot_codes[group[0]] for group in self.contexts(by_slot))

    def check(self, rows: Rows) -> None:
        """Raise `ValueError` unless rows are (P, T) int64 with ids in their slots' ranges."""
        require(
            rows.ndim == 2 and rows.shape[1] == self.num_slots and rows.dtype == np.int64,
            f"ids of shape {rows.shape}, {rows.dtype}",
            f"expected int64 with {self.num_slots} tokens in the last dimension",
        )
        inside = bool(((rows >= 0) & (rows < np.array(self.slot_codes))).all())
        require(inside, "ids", f"outside [0, num_codes) of their slot; num_codes={self._shown()}")

    def _shown(self) -> str:
        return ", ".join(map(str, dict.fromkeys(self.slot_codes)))


def runs_of(values: Sequence[tuple[int, int]]) -> list[tuple[int, tuple[int, int]]]:
    """Return (how many, value) of consecutive equal values."""
    runs: list[tuple[int, tuple[int, int]]] = []
    for value in values:
        if runs and runs[-1][1] == value:
            runs[-1] = (runs[-1][0] + 1, value)
        else:
            runs.append((1, value))
    return runs
