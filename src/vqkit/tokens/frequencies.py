"""How often the codes of a tokenizer are drawn on training data: `frequencies.safetensors`.

The file lies in the folder of the tokenizer, which it names by hash, with the fingerprint of the
images that were counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from vqkit.config import require
from vqkit.data import ImageSet, iterate_once
from vqkit.models import ImageTokenizer, config_values
from vqkit.models.files import FREQUENCIES, write_beside
from vqkit.tokens.alphabet import Alphabet
from vqkit.training.health import fingerprint

FORMAT: Final = "1"
"""Version of the layout; raised when older code could misread newer files."""
MAX_COUNT: Final = 2**30
"""Tokens of all slots together; larger counts are halved, which keeps the coder in 64 bits."""
MAX_CODES: Final = 2**24
"""Codes of all slots together that one table may have."""

Progress = Callable[[int, int], None]
"""Called after every batch with (images done, images of the set)."""


def tokenizer_hash(tokenizer: ImageTokenizer) -> str:
    """Return the identity of a tokenizer: 64 hexadecimal digits.

    SHA-256 over its settings as JSON with sorted keys and no spaces, a zero byte, and the SHA-256
    of all tensors of its state, bit for bit in their order. It is the same in a folder, in memory
    and on another device; another precision, more training or a compact form have another.
    """
    settings = json.dumps(config_values(tokenizer.config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(settings.encode() + b"\0" + fingerprint(tokenizer)).hexdigest()


@dataclass(frozen=True)
class Frequencies:
    """Draws of every code on training data, slot by slot."""

    counts: tuple[npt.NDArray[np.int64], ...]
    """(K,) for each slot, in the order of the slots."""
    tokenizer: str
    """`tokenizer_hash` of the tokenizer."""
    data: str
    """Fingerprint of the images (`ImageSet.fingerprint`)."""
    num_images: int

    def __post_init__(self) -> None:
        low = min((int(counts.min()) for counts in self.counts if len(counts)), default=0)
        require(low >= 0, f"frequencies: {low}", "a count cannot be negative")
        total = sum(int(counts.sum()) for counts in self.counts)
        require(total <= MAX_COUNT, f"frequencies of {total:,} tokens", f"at most {MAX_COUNT:,}")

    @cached_property
    def hash(self) -> bytes:
        """First 4 bytes of the SHA-256 over all counts as little-endian 64-bit integers.

        Enough to name a table: that it is the right one is up to the checksum of the tokens.
        """
        digest = hashlib.sha256()
        for counts in self.counts:
            digest.update(len(counts).to_bytes(8, "little") + counts.astype("<i8").tobytes())
        return digest.digest()[:4]

    @property
    def num_tokens(self) -> int:
        """Tokens in the table (after halving, if it was halved)."""
        return sum(int(counts.sum()) for counts in self.counts)

    def check(self, alphabet: Alphabet, tokenizer: str) -> None:
        """Raise `ValueError` unless these are the frequencies of this tokenizer."""
        require(
            self.tokenizer == tokenizer and tuple(map(len, self.counts)) == alphabet.slot_codes,
            f"frequencies of tokenizer {self.tokenizer[:16]}",
            f"this one is {tokenizer[:16]}; count them anew with vqkit frequencies",
        )

    def save(self, path: Path) -> Path:
        """Write the file, whole or not at all, and return its path."""
        metadata = {
            "format": f"vqkit-frequencies-{FORMAT}",
            "tokenizer": self.tokenizer,
            "data": self.data,
            "num_images": str(self.num_images),
            "slot_codes": json.dumps([len(counts) for counts in self.counts]),
        }
        flat = {"counts": np.concatenate(self.counts).astype(np.int32)}
        return write_beside(path, safetensors.numpy.save(flat, metadata))

    @classmethod
    def load(cls, path: Path) -> Frequencies:
        """Read a file; a missing, damaged or foreign one is a `ValueError`."""
        require(path.is_file(), f"{path}", "no such file; vqkit frequencies TOKENIZER writes it")
        try:
            with safe_open(path, "np") as file:
                metadata: dict[str, Any] = file.metadata() or {}
                flat = file.get_tensor("counts")
            slot_codes = json.loads(metadata["slot_codes"])
            num_images = int(metadata["num_images"])
        except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: holds no code frequencies ({error}); count anew") from error
        sizes = slot_codes if isinstance(slot_codes, list) else []
        require(
            metadata.get("format") == f"vqkit-frequencies-{FORMAT}"
            and len(sizes) > 0
            and all(type(size) is int and size >= 1 for size in sizes)
            and flat.dtype == np.int32
            and flat.shape == (sum(sizes),),
            f"{path}",
            "is no file of code frequencies that this vqkit reads; count them anew",
        )
        counts = tuple(np.split(flat.astype(np.int64), np.cumsum(sizes)[:-1]))
        return cls(counts, metadata.get("tokenizer", ""), metadata.get("data", ""), num_images)


def find_frequencies(folder: Path, tokenizer: ImageTokenizer) -> Frequencies | None:
    """Return the frequencies in the folder of a tokenizer, None if there are none.

    Those of another tokenizer (of one trained on since, say) are a `ValueError`.
    """
    if not (folder / FREQUENCIES).is_file():
        return None
    found = Frequencies.load(folder / FREQUENCIES)
    found.check(Alphabet.of(tokenizer.quantizer), tokenizer_hash(tokenizer))
    return found


def count_frequencies(
    tokenizer: ImageTokenizer,
    images: ImageSet,
    *,
    batch_size: int = 16,
    progress: Progress = lambda done, total: None,
) -> Frequencies:
    """Count the tokens of every image of a set, which should be one for training.

    Raises:
        ValueError: no images, images that the tokenizer does not take, and more codes than a table
            may have.
    """
    alphabet = Alphabet.of(tokenizer.quantizer)
    require(len(images) > 0, "images", "hold no image; check data.path and data.limit")
    codes = sum(alphabet.slot_codes)
    require(codes <= MAX_CODES, f"{codes:,} codes", f"a table has at most {MAX_CODES:,}")
    counts = [np.zeros(size, dtype=np.int64) for size in alphabet.slot_codes]
    device, done = next(tokenizer.parameters()).device, 0
    for batch in iterate_once(images, batch_size):
        ids = tokenizer.encode(batch.images.to(device)).flatten(0, -2).cpu().numpy()
        for slot, table in enumerate(counts):
            table += np.bincount(ids[:, slot], minlength=len(table))
        done += len(batch.images)
        progress(done, len(images))
    return Frequencies(
        counts=_halved(counts),
        tokenizer=tokenizer_hash(tokenizer),
        data=images.fingerprint(),
        num_images=done,
    )


def _halved(counts: Sequence[npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], ...]:
    while sum(int(table.sum()) for table in counts) > MAX_COUNT:
        counts = [(table + 1) // 2 for table in counts]  # what was drawn stays above zero
    return tuple(counts)
