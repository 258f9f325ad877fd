"""Tokens through the range coder of constriction, under the model of this room.

constriction takes probabilities as floating-point numbers and gives code k of K the frequency
1 + floor(sum of the probabilities before k + 1, times (2 ** 24 - K) / their sum) - the same for k
(`Categorical` with perfect=False; tested with 0.4.2 and 0.5.0). It is given whole numbers that add
up to 2 ** 24 - K: every sum is exact in float32 already, the factor is 1, nothing is ever rounded,
and the frequencies are those of `AdaptiveModel.frequencies` on every machine.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from vqkit.tokens.alphabet import Alphabet, Rows
from vqkit.tokens.frequencies import Frequencies
from vqkit.tokens.model import AdaptiveModel, Choice


def can_code() -> bool:
    """Whether constriction is installed."""
    try:
        _constriction()
    except ImportError:
        return False
    return True


def encode_rows(rows: Rows, alphabet: Alphabet, choice: Choice, table: Frequencies | None) -> bytes:
    """Return the coded ids (P, T), which are in range: words of 32 bits, little-endian."""
    stream = _constriction()
    encoder = stream.queue.RangeEncoder()
    model = AdaptiveModel(alphabet, choice, table)
    for start, stop in model.blocks(len(rows)):
        for context, slots in enumerate(model.contexts):
            symbols = rows[start:stop, slots].ravel()
            probabilities = _categorical(stream, model.frequencies(context))
            encoder.encode(symbols.astype(np.int32), probabilities)
            model.count(context, symbols)
    words: npt.NDArray[np.uint32] = encoder.get_compressed()
    return words.astype("<u4").tobytes()


def decode_rows(
    content: bytes,
    num_positions: int,
    alphabet: Alphabet,
    choice: Choice,
    table: Frequencies | None,
) -> Rows:
    """Return the ids (P, T) that `encode_rows` coded.

    Other content gives other ids in range, or a `ValueError`: whoever calls this needs a checksum.
    Raises `ImportError` without constriction.
    """
    if len(content) % 4:
        raise ValueError(f"payload of {len(content):,} bytes: is damaged, no whole number of words")
    stream = _constriction()
    words = np.frombuffer(content, dtype="<u4").astype(np.uint32)
    decoder = stream.queue.RangeDecoder(words)
    model = AdaptiveModel(alphabet, choice, table)
    rows = np.zeros((num_positions, alphabet.num_slots), dtype=np.int64)
    for start, stop in model.blocks(num_positions):
        for context, slots in enumerate(model.contexts):
            probabilities = _categorical(stream, model.frequencies(context))
            try:
                symbols = decoder.decode(probabilities, (stop - start) * len(slots))
            except AssertionError as error:  # constriction's word for damage
                raise ValueError(f"payload: is damaged and cannot be decoded ({error})") from error
            symbols = symbols.astype(np.int64)
            rows[start:stop, slots] = symbols.reshape(stop - start, len(slots))
            model.count(context, symbols)
    return rows


def _categorical(stream: ModuleType, frequencies: npt.NDArray[np.int64]) -> Any:
    return stream.model.Categorical((frequencies - 1).astype(np.float64), perfect=False)


def _constriction() -> ModuleType:
    try:
        from constriction import stream
    except ImportError as error:
        raise ImportError(
            "coded tokens need constriction; pip install 'vqkit[tokens]', or write packed files"
        ) from error
    module: ModuleType = stream
    return module
