"""Columns of numbers as plain arrays that the system maps into memory and drops again as it likes.

Parquet files are packed, so rows in random order cannot be read from them. The first time that a
shard is asked for, its SHA-256 is checked and its ids (and latents) are unpacked into files named
after that hash: in the hidden folder `.mapped` beside it or, where nothing may be written, in the
user's cache. Deleting them costs nothing but unpacking again.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from vqkit.models.files import write_beside
from vqkit.tokens.sets.layout import LATENT, Layout, Numbers, check_ids, id_column, id_type, pyarrow
from vqkit.tokens.sets.manifest import check_whole

FOLDER: Final = ".mapped"
_UNPACKED: Final = re.compile(
    r"\.?(?P<shard>[0-9a-f]{32})\.(ids|latents)\.npy(\.[0-9a-f]{32}\.part)?"
)
"""Unpacked files, and what is left of one when its writer is killed."""


class MappedShard:
    """The numbers of one shard, in files that are mapped when they are first asked for."""

    def __init__(self, folder: Path, shard: dict[str, Any], layout: Layout) -> None:
        self.path = folder / shard["file"]
        self._shard, self._layout = shard, layout
        self._arrays: dict[str, Numbers] = {}

    def ids(self) -> Numbers:
        """Return all ids (numbers,): of every image h·w·T, row by row, slots innermost."""
        return self._array("ids")

    def latents(self) -> Numbers:
        """Return all latents (numbers,) float16: of every image C·h·w, channel by channel."""
        return self._array("latents")

    def _array(self, name: str) -> Numbers:
        found = self._arrays.get(name)
        if found is None:
            path = _home(self.path.parent) / f"{self._shard['sha256'][:32]}.{name}.npy"
            if not path.is_file():
                self._unpack(name, path)
            found = self._arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        return found

    def _unpack(self, name: str, path: Path) -> None:
        check_whole(self.path, self._shard)
        columns = range(len(self._layout.slots))
        names = [LATENT] if name == "latents" else list(map(id_column, columns))
        table = read_columns(self.path, names)
        values = [table.column(one).combine_chunks().flatten().to_numpy() for one in names]
        if name == "ids":
            kind = id_type(max(slot.num_codes for slot in self._layout.slots))
            rows = np.stack([one.astype(kind, copy=False) for one in values], axis=-1)
            check_ids(rows, self._layout.slots, f"{self.path}")
            values = [rows.ravel()]
        stream = io.BytesIO()
        np.save(stream, values[0])
        write_beside(path, stream.getvalue())


def remove_unpacked(folder: Path, shards: Iterable[dict[str, Any]]) -> None:
    """Remove what lies unpacked in the folder of a token set and is of none of its `shards`.

    Nothing else there is touched, and nothing in the user's cache, where all sets lie together.
    """
    place, kept = folder / FOLDER, {shard["sha256"][:32] for shard in shards}
    for path in place.iterdir() if place.is_dir() else ():
        found = _UNPACKED.fullmatch(path.name)
        if found is not None and found["shard"] not in kept:
            path.unlink(missing_ok=True)
    with suppress(OSError):  # something else is there, or nothing ever was
        place.rmdir()


def _home(folder: Path) -> Path:
    """Return where unpacked shards of a folder lie."""
    if os.access(folder, os.W_OK):
        return folder / FOLDER
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "vqkit" / "tokens"


def read_columns(path: Path, names: list[str]) -> Any:
    """Read columns of a shard as an Arrow table; what is no such file is a `ValueError`."""
    arrow = pyarrow(f"{path}")
    try:
        return arrow.parquet.read_table(path, columns=names, memory_map=True, partitioning=None)
    except (arrow.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{path}: is no readable shard ({error}); copy it again") from error
