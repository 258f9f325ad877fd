"""The coder's model: how often every code is expected, in whole numbers, block after block.

Let c_k be how often code k was drawn on training data (0 without a table of frequencies) and n_k
how often in the stream so far. With a Dirichlet(1/2, ..., 1/2) prior on the probabilities of the
codes, the expected probability after both is the estimate of Krichevsky and Trofimov (IEEE
Transactions on Information Theory 27, 1981) over the two together, (c_k + n_k + 1/2) / (C + N +
K/2). An image differs from the training set more than one sample of it from another, so that each
of its tokens counts as g training tokens:

    p_k = w_k / W,   w_k = 2 c_k + 1 + 2 g n_k,   W = the sum of w.

That is the estimate under a Dirichlet prior whose mean is the table's and whose strength is
(C + K/2) / g tokens. The writer takes the g with the fewest bits and names it in the file: g = 0
is the table as it is (without one: all codes alike), g > 1 without a table is Dirichlet(1 / 2g),
which suits large codebooks of which an image uses few codes.

All is integer arithmetic within 64 bits, the same on every machine. Counts change only after a
block of positions, an eighth longer than all before it: the counts used are at most that much
behind, which costs at most about an eighth of what learning the counts costs, (K - 1) / 2 *
log2(N) bits for tokens that follow one distribution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vqkit.tokens.alphabet import Alphabet, Rows
from vqkit.tokens.frequencies import Frequencies

PRECISION: Final = 24
"""Bits of the probabilities: frequencies of a context add up to 2 ** 24."""
MAX_WEIGHTS: Final = 2**22
"""Codes of all contexts together (32 MiB) that are coded; more are packed."""
MAX_TOKENS: Final = 2**27
"""Tokens of one stream; with this `frequencies` stays within 64 bits."""
MAX_GAIN: Final = 10
GAINS: Final = (None, 0, 2, 4, 6, 8, 10)
"""Exponents of 2 for g that the writer tries; None is g = 0."""
_SAMPLE: Final = 2**17
"""Tokens from which a gain is chosen, spread over the stream."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the writer chose, and the file names."""

    by_slot: bool
    """Whether each slot is counted on its own, instead of all slots of a codebook together."""
    table: bool
    """Whether counts begin with the table of frequencies."""
    gain: int | None
    """Exponent of 2 for g, at most `MAX_GAIN`; None is g = 0."""

    @property
    def step(self) -> int:
        """What one token adds to the weight of its code: 2 g."""
        return 0 if self.gain is None else 2 << self.gain


class AdaptiveModel:
    """Weights of every context, which follow the stream."""

    def __init__(self, alphabet: Alphabet, choice: Choice, table: Frequencies | None) -> None:
        self.contexts = alphabet.contexts(choice.by_slot)
        self._step = choice.step
        self.weights = [  # (K,) of each context
            first_weights(alphabet, slots, table if choice.table else None)
            for slots in self.contexts
        ]

    def blocks(self, num_positions: int) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of the positions coded with the same counts."""
        start = 0
        while start < num_positions:
            length = 1 + start // 8 if self._step else num_positions
            stop = min(num_positions, start + length)
            yield start, stop
            start = stop

    def frequencies(self, context: int) -> npt.NDArray[np.int64]:
        """Return the frequencies (K,), each at least 1, which add up to 2 ** PRECISION.

        Cumulative weights are scaled and rounded down, so that rounding never accumulates.
        """
        cumulative = np.cumsum(self.weights[context])
        free = (1 << PRECISION) - len(cumulative)  # beyond the 1 that every code has
        edges = cumulative * free // cumulative[-1]
        frequencies: npt.NDArray[np.int64] = np.diff(edges, prepend=0) + 1
        return frequencies

    def count(self, context: int, symbols: npt.NDArray[np.int64]) -> None:
        """Add the tokens of a block to the weights."""
        if self._step:
            weights = self.weights[context]
            weights += self._step * np.bincount(symbols, minlength=len(weights))


def first_weights(
    alphabet: Alphabet, slots: tuple[int, ...], table: Frequencies | None
) -> npt.NDArray[np.int64]:
    """Return 2 c + 1 of a context, (K,)."""
    num_codes = alphabet.slot_codes[slots[0]]
    counts = np.zeros(num_codes, dtype=np.int64)
    if table is not None:
        for slot in slots:
            counts += table.counts[slot]
    return 2 * counts + 1


def code_length(rows: Rows, alphabet: Alphabet, choice: Choice, table: Frequencies | None) -> float:
    """Return the ideal bits of a stream under the model: the sum of -log2 of its frequencies."""
    model, bits = AdaptiveModel(alphabet, choice, table), 0.0
    for start, stop in model.blocks(len(rows)):
        for context, slots in enumerate(model.contexts):
            symbols = rows[start:stop, slots].ravel()
            drawn = model.frequencies(context)[symbols]
            bits += float((PRECISION - np.log2(drawn)).sum())
            model.count(context, symbols)
    return bits


def choices(alphabet: Alphabet, table: Frequencies | None) -> list[Choice]:
    """List what a writer may choose from; nothing for codebooks too large to be coded."""
    alike = alphabet.contexts(True) == alphabet.contexts(False)
    return [
        Choice(by_slot, with_table, gain)
        for by_slot in ([False] if alike else [False, True])
        if 0 < alphabet.num_weights(by_slot) <= MAX_WEIGHTS
        for with_table in ([False] if table is None else [False, True])
        for gain in GAINS
    ]


def choose(
    rows: Rows, alphabet: Alphabet, table: Frequencies | None
) -> tuple[Choice | None, float]:
    """Return the choice with the fewest bits and about how many these are.

    Only the writer decides, so that floating point is good enough here.
    """
    best: tuple[Choice | None, float] = (None, float("inf"))
    drawn: dict[bool, _Drawn] = {}
    for choice in choices(alphabet, table) if len(rows) else []:
        if choice.by_slot not in drawn:
            drawn[choice.by_slot] = _Drawn(rows, alphabet, choice.by_slot)
        bits = drawn[choice.by_slot].bits(choice, table)
        if bits < best[1]:
            best = (choice, bits)
    return best


class _Drawn:
    """For a sample of a stream's tokens: which code, and how often it was drawn before."""

    def __init__(self, rows: Rows, alphabet: Alphabet, by_slot: bool) -> None:
        model = AdaptiveModel(alphabet, Choice(by_slot, False, 0), None)  # weights are 1 + 2 n
        every = max(1, rows.size // _SAMPLE)
        found: list[list[tuple[Rows, Rows, Rows]]] = [[] for _ in model.contexts]
        for start, stop in model.blocks(len(rows)):
            for context, slots in enumerate(model.contexts):
                symbols = rows[start:stop, slots]
                sample = symbols[-start % every :: every].ravel()
                seen = model.weights[context][sample] >> 1
                found[context].append((sample, seen, np.full_like(seen, start * len(slots))))
                model.count(context, symbols.ravel())
        self._tokens = [tuple(map(np.concatenate, zip(*parts, strict=True))) for parts in found]
        self._alphabet, self._contexts = alphabet, model.contexts
        self._share = len(rows[::every]) / len(rows)

    def bits(self, choice: Choice, table: Frequencies | None) -> float:
        """Return about how many bits the whole stream takes."""
        total = 0.0
        for slots, (symbols, seen, before) in zip(self._contexts, self._tokens, strict=True):
            first = first_weights(self._alphabet, slots, table if choice.table else None)
            free = (1 << PRECISION) - len(first)
            weights = first[symbols] + choice.step * seen
            sums = int(first.sum()) + choice.step * before
            total += float((PRECISION - np.log2(weights * (free / sums) + 1)).sum())
        return total / self._share
