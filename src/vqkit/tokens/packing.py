"""Tokens as plain bits: ceil(log2 K) for every token, most significant bit first, without gaps."""

from __future__ import annotations

from typing import Final

import numpy as np

from vqkit.config import require
from vqkit.tokens.alphabet import Alphabet, Rows

_POSITIONS: Final = 2**12
"""Positions handled at a time, a multiple of 8, so that each part fills whole bytes."""


def packed_bytes(num_positions: int, alphabet: Alphabet) -> int:
    """Return the size of packed tokens in bytes."""
    return -(-num_positions * sum(_widths(alphabet)) // 8)


def pack_bits(rows: Rows, alphabet: Alphabet) -> bytes:
    """Pack ids (P, T), which are in range; the last byte is filled up with zeros."""
    columns, shifts, _ = _bits(alphabet)
    parts = []
    for start in range(0, len(rows), _POSITIONS):
        bits = rows[start : start + _POSITIONS][:, columns] >> shifts & 1
        parts.append(np.packbits(bits.astype(np.uint8)).tobytes())
    return b"".join(parts)


def unpack_bits(content: bytes, num_positions: int, alphabet: Alphabet) -> Rows:
    """Return the ids (P, T); a wrong length, other filling and ids out of range: `ValueError`."""
    expected = packed_bytes(num_positions, alphabet)
    require(
        len(content) == expected,
        f"payload of {len(content):,} bytes",
        f"expected {expected:,}; the file is damaged, copy it again",
    )
    columns, shifts, starts = _bits(alphabet)
    rows = np.zeros((num_positions, alphabet.num_slots), dtype=np.int64)
    if not len(columns):
        return rows
    used = np.unique(columns)
    data, width = np.frombuffer(content, dtype=np.uint8), len(columns)
    for start in range(0, num_positions, _POSITIONS):
        count = min(_POSITIONS, num_positions - start)
        piece = data[start * width // 8 : -(-(start + count) * width // 8)]
        bits = np.unpackbits(piece)
        require(not bits[count * width :].any(), "payload", "does not end in zeros; it is damaged")
        values = bits[: count * width].reshape(count, width).astype(np.int64) << shifts
        rows[start : start + count, used] = np.add.reduceat(values, starts, axis=1)
    alphabet.check(rows)
    return rows


def _widths(alphabet: Alphabet) -> list[int]:
    return [(num_codes - 1).bit_length() for num_codes in alphabet.slot_codes]


def _bits(alphabet: Alphabet) -> tuple[Rows, Rows, Rows]:
    """Return the slot and the shift of every bit of a position, and where slots begin in it."""
    widths = np.array(_widths(alphabet), dtype=np.int64)
    columns = np.repeat(np.arange(len(widths)), widths)
    ends = np.cumsum(widths)
    shifts = np.repeat(ends, widths) - 1 - np.arange(len(columns))
    return columns, shifts, (ends - widths)[widths > 0]
