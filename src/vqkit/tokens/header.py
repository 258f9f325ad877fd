"""The first bytes of a `.vqk` file, read without trusting them. docs/compression.md has the table.

Integers are unsigned and little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vqkit.config import require
from vqkit.tokens.alphabet import runs_of
from vqkit.tokens.model import MAX_GAIN, Choice

MAGIC: Final = b"VQK"
VERSION: Final = 1
_FIXED: Final = struct.Struct("<3sB8s8sBBBHHH")
_RUN: Final = struct.Struct("<III")
CHECKSUM: Final = slice(12, 20)
"""Where the checksum stands; zeros while it is computed."""
_CODED, _BY_SLOT, _TABLE = 1, 2, 4
_MAX_SIDE: Final = 2**24


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What a file says of itself."""

    tokenizer: bytes
    """First 8 bytes of `tokenizer_hash`."""
    checksum: bytes = bytes(8)
    """First 8 bytes of the SHA-256 over the whole `tokenizer_hash`, the file with zeros here, and
    all ids as 32-bit integers."""
    choice: Choice | None
    """The model of coded tokens; None for packed ones."""
    table: bytes | None
    """`Frequencies.hash` of the table that the model begins with, 4 bytes."""
    channels: int
    """Of the images: 1 or 3."""
    stride: int
    """Pixels per grid position along each side."""
    num_slots: int
    """Tokens per position."""
    runs: tuple[tuple[int, tuple[int, int]], ...]
    """(how many images, (height, width) in pixels) of consecutive images of one size."""

    def __post_init__(self) -> None:
        for name, most in (("channels", 2**8), ("stride", 2**16), ("num_slots", 2**16)):
            value = getattr(self, name)
            require(1 <= value < most, f"{name}={value:,}", f"a file holds 1 to {most - 1:,}")

    @property
    def num_images(self) -> int:
        """Images in the file."""
        return sum(count for count, _ in self.runs)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every image; check `num_images` first."""
        return [size for count, size in self.runs for _ in range(count)]

    @property
    def num_pixels(self) -> int:
        """Pixels of all images together."""
        return sum(count * height * width for count, (height, width) in self.runs)

    @property
    def num_positions(self) -> int:
        """Grid positions of all images together."""
        return sum(count * h * w for count, (h, w) in self.grids())

    def grids(self) -> list[tuple[int, tuple[int, int]]]:
        """Return (how many images, (h, w) grid positions) of every run."""
        return [
            (count, (-(-height // self.stride), -(-width // self.stride)))
            for count, (height, width) in self.runs
        ]

    def write(self) -> bytes:
        """Return the bytes of this header."""
        choice, mode, gain = self.choice, 0, 0
        if choice is not None:
            mode = _CODED | _BY_SLOT * choice.by_slot | _TABLE * choice.table
            gain = 0 if choice.gain is None else choice.gain + 1
        fixed = _FIXED.pack(
            *(MAGIC, VERSION, self.tokenizer, self.checksum, mode, gain, self.channels),
            *(self.stride, self.num_slots, len(self.runs)),
        )
        runs = b"".join(_RUN.pack(count, *size) for count, size in self.runs)
        return fixed + (self.table or b"") + runs


def runs_of_sizes(sizes: Sequence[tuple[int, int]]) -> tuple[tuple[int, tuple[int, int]], ...]:
    """Return the runs of a file's images; too many different ones in turn are a `ValueError`."""
    runs = tuple(runs_of(sizes))
    require(len(runs) < 2**16, f"{len(runs):,} changes of size", "write several files")
    for _, (height, width) in runs:
        fits = 1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE
        require(fits, f"image of {height} x {width} pixels", f"sides are 1 to {_MAX_SIDE:,}")
    return runs


def read_header(content: bytes) -> tuple[Header, int]:
    """Return the header of a file and its length; whatever is no header is a `ValueError`."""
    require(content[:3] == MAGIC, "file", "is no .vqk file; it does not begin with 'VQK'")
    require(len(content) >= _FIXED.size, f"file of {len(content)} bytes", "is truncated")
    _, version, tokenizer, checksum, mode, gain, channels, stride, num_slots, num_runs = (
        _FIXED.unpack_from(content)
    )
    require(version == VERSION, f"version={version}", f"this vqkit reads version {VERSION}")
    choice = None
    if mode & _CODED:
        exponent = gain - 1 if gain else None
        choice = Choice(bool(mode & _BY_SLOT), bool(mode & _TABLE), exponent)
    require(
        mode < 8
        and gain <= MAX_GAIN + 1
        and (choice is not None or mode == gain == 0)
        and min(channels, stride, num_slots, num_runs) >= 1,
        "header",
        "has values that no file has; the file is damaged, copy it again",
    )
    has_table = choice is not None and choice.table
    start = _FIXED.size + (4 if has_table else 0)
    end = start + num_runs * _RUN.size
    require(len(content) >= end, f"file of {len(content)} bytes", "is truncated")
    table = content[_FIXED.size : start] if has_table else None
    found = _RUN.iter_unpack(content[start:end])
    runs = tuple((count, (height, width)) for count, height, width in found)
    sane = all(
        count >= 1 and 1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE
        for count, (height, width) in runs
    )
    require(sane, "header", "names images of impossible sizes; the file is damaged, copy it again")
    header = Header(
        tokenizer=tokenizer,
        checksum=checksum,
        choice=choice,
        table=table,
        channels=channels,
        stride=stride,
        num_slots=num_slots,
        runs=runs,
    )
    return header, end
