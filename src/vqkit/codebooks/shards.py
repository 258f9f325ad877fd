"""Feature sets on the disk: shards that are whole or not there, and how a set begins and ends.

A shard is a file of rows, for images with classes a file of their groups, and, as long as the set
is unfinished, a record beside it: 00000.npy, groups/00000.npy, 00000.json. The record is written
last, so a shard counts once its record is there.

Legend: n rows, D dim.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from vqkit.config import require
from vqkit.models.files import write_beside
from vqkit.weights import sha256_of

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
UNFINISHED: Final = "unfinished.json"
WHITENING: Final = "whitening.safetensors"
GROUPS: Final = "groups"
_MARK: Final = {"library": "vqkit", "format": FORMAT, "kind": "features"}
_SHARD: Final = re.compile(r"\d{5,}\.npy")
_RECORD: Final = re.compile(r"\d{5,}\.json")
_PART: Final = re.compile(r"\..+\.part")


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


def read_records(folder: Path, count: int) -> dict[int, dict[str, Any]]:
    """Return the records of the shards below `count` that are there as their records say."""
    found = {}
    for number in range(count):
        path = folder / f"{number:05}.json"
        if not path.is_file():
            continue
        record = read_object(path)
        files = [part for part in (record, record.get("groups")) if part and record["rows"]]
        sizes = [_size(folder / part["file"]) == part["bytes"] for part in files]
        if all(sizes):  # a file that somebody took away is written again
            found[number] = record
    return found


def begin(folder: Path, facts: dict[str, Any], *, resume: bool) -> bool:
    """Make ready a folder for the features that `facts` describe; True if they are there already.

    Raises `ValueError` if it holds something else, or features of other settings (it names which)
    that may not be removed because of `resume`.
    """
    where = f"out={str(folder)!r}"
    require(not folder.is_file(), where, "is a file; name a folder")
    there = _begun(folder)
    if there is None:
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        foreign = [name for name in names if not _PART.fullmatch(name)]
        require(not foreign, where, "holds something else; name a new or an empty folder")
    elif resume:
        differ = _differences(there, json.loads(json.dumps(facts)))
        require(
            not differ,
            where,
            f"holds features of other settings: {'; '.join(differ)}; use those, name another "
            "folder, or begin again with resume=False (--fresh)",
        )
        if (folder / MANIFEST).is_file():
            _tidy(folder)
        return (folder / MANIFEST).is_file()
    else:
        remove_set(folder)
    write_object(folder / UNFINISHED, {**_MARK, **facts})
    return False


def complete(
    folder: Path, facts: dict[str, Any], count: int, left_out: Iterable[tuple[str, str]]
) -> None:
    """Write the manifest of a set of `count` shards that are all there, and tidy up.

    `left_out` are broken images (name, reason) that no shard knows of: those of sets in memory.

    A set without one row, and shards of different dimensions, are a `ValueError`.
    """
    records = [record for _, record in sorted(read_records(folder, count).items())]
    assert len(records) == count, "every shard has been written"
    shards = [record for record in records if record["rows"]]
    skipped = [broken for record in records for broken in record["skipped"]]
    known = {name for name, _ in skipped}
    skipped += [[name, reason] for name, reason in left_out if name not in known]
    if not shards:
        name, reason = skipped[0]
        raise ValueError(
            f"data.path={facts['data']['path']!r}: none of {facts['data']['images']:,} images can "
            f"be read (first: {name}: {reason}); check that the path holds images"
        )
    dims = sorted({record["dim"] for record in shards})
    require(len(dims) == 1, f"features of {dims} dimensions", "the encoder must give one number")
    listed = ("file", "rows", "first_image", "images", "bytes", "sha256", "groups")
    manifest = {
        **_MARK,
        "dim": dims[0],
        "num_vectors": sum(record["rows"] for record in shards),
        **facts,
        "skipped": skipped,
        "shards": [{name: record[name] for name in listed if name in record} for record in shards],
    }
    write_object(folder / MANIFEST, manifest)
    _tidy(folder)


def _begun(folder: Path) -> dict[str, Any] | None:
    """Return what an extraction has written about itself, finished or not."""
    for name in (MANIFEST, UNFINISHED):
        if (folder / name).is_file():
            found = read_object(folder / name)
            ours = {key: found.get(key) for key in _MARK} == _MARK
            place = f"out={str(folder)!r}"
            require(ours, place, f"has a {name} of something else; name another folder")
            return found
    return None


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    """Name the settings in `here` that differ; places and names of the same things may."""
    differ = []
    for key, value in here.items():
        name, other = f"{prefix}{key}", there.get(key)
        if isinstance(value, dict):
            differ += _differences(other if isinstance(other, dict) else {}, value, f"{name}.")
        elif name == "encoder.sha256" and value is None:
            continue  # whitening to be fitted; `encoder.whitening` tells that it was there too
        elif value != other and name not in ("data.path", "encoder.name"):
            differ.append(f"{name} ({_short(other)} there, {_short(value)} here)")
    return differ


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _tidy(folder: Path) -> None:
    """Remove what only an unfinished set has; the manifest is there."""
    (folder / UNFINISHED).unlink(missing_ok=True)
    remove_leftovers(folder)


def remove_leftovers(folder: Path, names: Iterable[re.Pattern[str]] = (_RECORD, _PART)) -> None:
    """Remove what only an unfinished set has: records, and parts that killed processes left."""
    for place in (folder, folder / GROUPS):
        for path in place.iterdir() if place.is_dir() else ():
            if any(pattern.fullmatch(path.name) for pattern in names) and path.is_file():
                path.unlink(missing_ok=True)


def remove_set(folder: Path) -> None:
    """Remove a feature set, finished or not, and nothing else that may lie in its folder.

    A kill in between leaves an unfinished set: never a manifest without its shards, and never
    shards that nothing says the kind of.
    """
    if (folder / MANIFEST).exists():
        os.replace(folder / MANIFEST, folder / UNFINISHED)
    remove_leftovers(folder, (_RECORD, _PART, _SHARD))
    for name in (WHITENING, UNFINISHED):
        (folder / name).unlink(missing_ok=True)


def write_object(path: Path, values: dict[str, Any]) -> None:
    """Write JSON values whole or not at all."""
    write_beside(path, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


def read_object(path: Path) -> dict[str, Any]:
    """Read JSON values; an unreadable file is a `ValueError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); get or make it again") from error
    require(isinstance(values, dict), f"{path}", "holds no JSON object; get or make it again")
    return dict(values)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
