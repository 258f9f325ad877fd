"""The keys of an LMDB: listed once, and kept beside the file if that took long."""

from __future__ import annotations

import os
import time
import zipfile
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from vqkit.data.lmdb_file import environment

SLOW_SECONDS = 5.0
"""A list that took longer is kept. LMDB looks at the first page of every image on its way, so that
all 43 GB of LSUN's bedrooms are read for it."""


class Keys(Sequence[bytes]):
    """Keys one behind the other in one block: millions of `bytes` objects would take double."""

    def __init__(self, block: bytes, ends: npt.NDArray[np.uint64]) -> None:
        self.block, self.ends = block, ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"key {index} of {len(self)}")
        return self.block[int(self.ends[index - 1]) if index else 0 : int(self.ends[index])]

    def first(self, count: int | None) -> Keys:
        """Return the first `count` keys; None: all."""
        ends = self.ends[:count]
        return Keys(self.block[: int(ends[-1]) if len(ends) else 0], ends)


def list_keys(path: str, limit: int | None) -> tuple[Keys, list[tuple[str, int]]]:
    """Return the first `limit` keys of an LMDB in its order, and what changes when it changes.

    A complete list that took `SLOW_SECONDS` is written to `<path>.vqkit-keys` if that can be
    written, and read from there as long as the LMDB is the same.
    """
    began = time.monotonic()
    opened = environment(path, in_order=True)
    state = [os.stat(path).st_size, int(opened.info()["last_txnid"])]
    facts = list(zip(("data.mdb", "last transaction"), state, strict=True))
    kept = Path(f"{path}.vqkit-keys")
    keys = _read(kept, state)
    if keys is not None:
        return keys.first(limit), facts
    block, ends = bytearray(), array("Q")
    with opened.begin() as transaction, transaction.cursor() as cursor:
        for key in cursor.iternext(keys=True, values=False):
            if len(ends) == limit:
                break
            block += key
            ends.append(len(block))
    keys = Keys(bytes(block), np.frombuffer(ends, dtype=np.uint64))
    if limit is None and time.monotonic() - began > SLOW_SECONDS:
        _write(kept, state, keys)
    return keys, facts


def _read(kept: Path, state: list[int]) -> Keys | None:
    try:
        with np.load(kept, allow_pickle=False) as found:
            if found["state"].tolist() == state:
                return Keys(found["block"].tobytes(), found["ends"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # none, or damaged: a zip file knows by its checksums
    return None


def _write(kept: Path, state: list[int], keys: Keys) -> None:
    beside = kept.with_name(f"{kept.name}.{os.getpid()}")  # other processes may write it too
    with suppress(OSError):  # a folder that nobody may write to is no reason to stop
        try:
            with beside.open("wb") as file:
                block = np.frombuffer(keys.block, dtype=np.uint8)
                np.savez(file, state=np.array(state), block=block, ends=keys.ends)
            beside.replace(kept)
        finally:
            beside.unlink(missing_ok=True)
