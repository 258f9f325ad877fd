"""`TokenCoder`: token maps of one tokenizer to the bytes of a `.vqk` file, and back exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from vqkit.config import require
from vqkit.models import ImageTokenizer
from vqkit.tokens.alphabet import Alphabet, Rows
from vqkit.tokens.entropy import can_code, decode_rows, encode_rows
from vqkit.tokens.frequencies import Frequencies, tokenizer_hash
from vqkit.tokens.header import CHECKSUM, Header, read_header, runs_of_sizes
from vqkit.tokens.model import MAX_TOKENS, MAX_WEIGHTS, choose
from vqkit.tokens.packing import pack_bits, packed_bytes, unpack_bits

SUFFIX: Final = ".vqk"
READ_TOKENS: Final = 2**25
"""Tokens of a file that is read unless the caller allows more: 256 MiB of ids."""
READ_PIXELS: Final = 2**27
"""Pixels of all images of a file that is read unless the caller allows more."""
READ_IMAGES: Final = 2**16
"""Images of a file that is read unless the caller allows more."""


@dataclass(frozen=True, slots=True)
class TokenMaps:
    """What a file holds."""

    ids: tuple[Tensor, ...]
    """int64 (h, w, T) of every image."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of every image in pixels."""


class TokenCoder:
    """Writes and reads the token maps of one tokenizer."""

    def __init__(
        self,
        alphabet: Alphabet,
        *,
        stride: int,
        channels: int,
        tokenizer: str,
        frequencies: Frequencies | None = None,
    ) -> None:
        """`tokenizer` is its `tokenizer_hash`; `of` reads all but the last from the tokenizer."""
        if frequencies is not None:
            frequencies.check(alphabet, tokenizer)
        self.alphabet, self.frequencies = alphabet, frequencies
        self.stride, self.channels, self.tokenizer = stride, channels, tokenizer

    @classmethod
    def of(cls, tokenizer: ImageTokenizer, frequencies: Frequencies | None = None) -> TokenCoder:
        """Return the coder of a tokenizer; `find_frequencies` reads its table, if it has one."""
        return cls(
            Alphabet.of(tokenizer.quantizer),
            stride=tokenizer.stride,
            channels=tokenizer.config.network.image_channels,
            tokenizer=tokenizer_hash(tokenizer),
            frequencies=frequencies,
        )

    def encode(self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> bytes:
        """Return the file of the token maps of one or more images.

        The tokens are coded or packed, whichever is smaller; without constriction always packed.

        Args:
            maps: int64 ids (h, w, T) of every image.
            sizes: (height, width) of every image in pixels.

        Raises:
            ValueError: no maps, ids of other slots or out of range, sizes that such grids cannot
                come from, and more than `MAX_TOKENS` tokens.
        """
        require(len(maps) == len(sizes) > 0, f"{len(maps)} maps, {len(sizes)} sizes", "no pairs")
        header = Header(
            tokenizer=bytes.fromhex(self.tokenizer)[:8],
            choice=None,
            table=None,
            channels=self.channels,
            stride=self.stride,
            num_slots=self.alphabet.num_slots,
            runs=runs_of_sizes(sizes),
        )
        grids = [grid for count, grid in header.grids() for _ in range(count)]
        for ids, grid in zip(maps, grids, strict=True):
            fits = isinstance(ids, Tensor) and ids.ndim == 3 and tuple(ids.shape[:2]) == grid
            require(fits, f"ids {_shape(ids)}", f"expected a grid of {grid[0]} x {grid[1]}")
        rows = np.concatenate([self._rows(ids) for ids in maps])
        require(rows.size <= MAX_TOKENS, f"{rows.size:,} tokens", "too many; write several files")
        header, payload = self._smallest(header, rows)
        header = replace(header, checksum=self._checksum(header.write() + payload, rows))
        return header.write() + payload

    def decode(
        self,
        content: bytes,
        *,
        max_tokens: int = READ_TOKENS,
        max_pixels: int = READ_PIXELS,
        max_images: int = READ_IMAGES,
    ) -> TokenMaps:
        """Return what `encode` was given.

        Nothing is allocated for a file before what it claims is checked against the tokenizer, the
        limits and its own length, and nothing is returned that its checksum does not confirm.

        Raises:
            ValueError: a file of another tokenizer or with another table of frequencies, a damaged
                one, and one beyond the limits.
            ImportError: coded tokens without constriction.
        """
        header, start = read_header(content)
        self._check(header)
        for what, count, limit in (
            ("images", header.num_images, max_images),
            ("pixels", header.num_pixels, max_pixels),
            ("tokens", header.num_positions * header.num_slots, min(max_tokens, MAX_TOKENS)),
        ):
            more = f"more than max_{what}={limit:,}; allow more if you trust it"
            require(count <= limit, f"file of {count:,} {what}", more)
        rows = self._read(header, content[start:])
        require(
            self._checksum(content, rows) == header.checksum,
            "checksum",
            "does not fit; the file is damaged, copy it again",
        )
        tokens, begin = torch.from_numpy(rows), 0
        maps: list[Tensor] = []
        for count, (h, w) in header.grids():
            many = tokens[begin : begin + count * h * w].reshape(count, h, w, -1)
            maps.extend(many.unbind())
            begin += count * h * w
        return TokenMaps(tuple(maps), tuple(header.sizes))

    def _rows(self, ids: Tensor) -> Rows:
        rows = ids.detach().cpu().flatten(0, -2).numpy()
        self.alphabet.check(rows)
        return rows

    def _smallest(self, header: Header, rows: Rows) -> tuple[Header, bytes]:
        """Return header and payload of the smallest form."""
        packed = packed_bytes(len(rows), self.alphabet)
        choice, bits = choose(rows, self.alphabet, self.frequencies) if can_code() else (None, 0)
        if choice is not None and bits / 8 < packed:
            table = self.frequencies if choice.table else None
            coded = encode_rows(rows, self.alphabet, choice, table)
            named = table.hash if table is not None else None
            if len(coded) + len(named or b"") < packed:
                return replace(header, choice=choice, table=named), coded
        return header, pack_bits(rows, self.alphabet)

    def _check(self, header: Header) -> None:
        mine = bytes.fromhex(self.tokenizer)[:8]
        require(
            header.tokenizer == mine,
            f"file of tokenizer {header.tokenizer.hex()}",
            f"this one is {mine.hex()}; name the tokenizer that wrote it",
        )
        same = (self.channels, self.stride, self.alphabet.num_slots)
        require(
            (header.channels, header.stride, header.num_slots) == same,
            "header",
            "does not describe the tokenizer that it names; the file is damaged, copy it again",
        )
        if header.table is None or (self.frequencies and self.frequencies.hash == header.table):
            return
        held = self.frequencies.hash.hex() if self.frequencies else "none"
        raise ValueError(
            f"file coded with frequencies {header.table.hex()}: this tokenizer comes with {held}; "
            "put the writer's frequencies.safetensors into its folder"
        )

    def _read(self, header: Header, payload: bytes) -> Rows:
        positions, choice = header.num_positions, header.choice
        if choice is None:
            return unpack_bits(payload, positions, self.alphabet)
        packed = packed_bytes(positions, self.alphabet)
        require(
            0 < len(payload) < packed and self.alphabet.num_weights(choice.by_slot) <= MAX_WEIGHTS,
            f"payload of {len(payload):,} bytes",
            f"nobody codes {packed:,} bytes of packed tokens so; the file is damaged",
        )
        return decode_rows(payload, positions, self.alphabet, choice, self.frequencies)

    def _checksum(self, content: bytes, rows: Rows) -> bytes:
        digest = hashlib.sha256(bytes.fromhex(self.tokenizer))
        digest.update(content[: CHECKSUM.start] + bytes(8) + content[CHECKSUM.stop :])
        digest.update(rows.astype("<u4").tobytes())
        return digest.digest()[:8]


def read_file(path: Path, limit: int = 2**30) -> bytes:
    """Return the content of a file of at most `limit` bytes; a larger one is a `ValueError`."""
    require(path.is_file(), f"{path}", "no such file")
    size = path.stat().st_size
    require(size <= limit, f"{path}: {size:,} bytes", f"more than {limit:,}; no file of tokens")
    return path.read_bytes()


def _shape(ids: object) -> str:
    return f"of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
