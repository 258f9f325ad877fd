"""Feature sets on the disk: shards that are whole or not there, and the manifest of them all.

A shard is a file of rows, for images with classes a file of their groups, and, as long as the set
is unfinished, a record beside it: 00000.npy, groups/00000.npy, 00000.json. The record is written
last, so a shard counts once its record is there.

Legend: n rows, D dim.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from vqkit.codebooks.set_folders import GROUPS, MANIFEST, Kind, finished_shards, tidy, write_object
from vqkit.config import require
from vqkit.models.files import write_beside
from vqkit.weights import sha256_of

WHITENING: Final = "whitening.safetensors"
FEATURES: Final = Kind("features", re.compile(r"\d{5,}\.npy"), (WHITENING,))


class ShardWriter:
    """Writes shard `number` of a feature set row by row; memory does not grow with it.

    Call `add` as often as there are rows, then `finish`; or `drop` what was written.
    """

    def __init__(self, folder: Path, number: int, dtype: npt.DTypeLike) -> None:
        self._folder, self._number, self._dtype = folder, number, np.dtype(dtype)
        self._part = folder / f".{number:05}.npy.{uuid.uuid4().hex}.part"
        self._file: IO[bytes] | None = None
        self._rows, self._dim, self._header = 0, 0, 0

    def add(self, rows: npt.NDArray[Any]) -> None:
        """Append rows (n, D) of the type of the shard; another D than before is a `ValueError`."""
        if len(rows) == 0:
            return
        if self._file is None:
            self._file, self._dim = self._part.open("w+b"), rows.shape[1]
            self._header = self._write_header(0)
        require(
            rows.shape[1] == self._dim,
            f"features of {rows.shape[1]} and {self._dim} dimensions",
            "the encoder must give every image the same number of them",
        )
        with self._naming():
            self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self._rows += len(rows)

    def _write_header(self, rows: int) -> int:
        """Write the header; numpy leaves room in it for the number of rows to grow."""
        assert self._file is not None
        self._file.seek(0)
        kind = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (rows, self._dim),
        }
        np.lib.format.write_array_header_1_0(self._file, kind)
        return self._file.tell()

    def finish(self, facts: dict[str, Any], groups: npt.NDArray[np.int64] | None) -> None:
        """Give the files their names, then write the record: `facts`, sizes and SHA-256.

        `groups` (n,) are those of all rows. A shard without rows is a record alone.
        """
        with self._naming():
            self._finish(facts, groups)

    def _finish(self, facts: dict[str, Any], groups: npt.NDArray[np.int64] | None) -> None:
        record = {**facts, "file": f"{self._number:05}.npy", "rows": self._rows, "dim": self._dim}
        if self._file is not None:
            length = self._write_header(self._rows)
            assert length == self._header, "numpy leaves room for the rows"
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            record |= {"bytes": self._part.stat().st_size, "sha256": sha256_of(self._part)}
            os.replace(self._part, self._folder / record["file"])
            if groups is not None:
                record["groups"] = self._write_groups(groups)
        write_object(self._folder / f"{self._number:05}.json", record)

    def _write_groups(self, groups: npt.NDArray[np.int64]) -> dict[str, Any]:
        assert len(groups) == self._rows, "one group for every row"
        stream = io.BytesIO()
        np.save(stream, groups)
        content = stream.getvalue()
        name = f"{GROUPS}/{self._number:05}.npy"
        write_beside(self._folder / name, content)
        return {"file": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Say what was being written when the disk was full."""
        try:
            yield
        except OSError as error:
            place = self._folder / f"{self._number:05}.npy"
            text = f"{error.strerror}, while writing {place}; the finished shards are whole"
            raise OSError(error.errno, text) from error

    def drop(self) -> None:
        """Remove what is not finished; after `finish` this does nothing."""
        if self._file is not None:
            with suppress(OSError):  # what could not be written cannot be flushed either
                self._file.close()
        self._part.unlink(missing_ok=True)


def complete(
    folder: Path, facts: dict[str, Any], count: int, left_out: Iterable[tuple[str, str]]
) -> None:
    """Write the manifest of a set of `count` shards that are all there, and tidy up.

    `left_out` are broken images (name, reason) that no shard knows of: those of sets in memory.

    A set without one row, and shards of different dimensions, are a `ValueError`.
    """
    shards, skipped = finished_shards(folder, facts, count, left_out)
    dims = sorted({record["dim"] for record in shards})
    require(len(dims) == 1, f"features of {dims} dimensions", "the encoder must give one number")
    listed = ("file", "rows", "first_image", "images", "bytes", "sha256", "groups")
    manifest = {
        **FEATURES.mark,
        "dim": dims[0],
        "num_vectors": sum(record["rows"] for record in shards),
        **facts,
        "skipped": skipped,
        "shards": [{name: record[name] for name in listed if name in record} for record in shards],
    }
    write_object(folder / MANIFEST, manifest)
    tidy(folder)
