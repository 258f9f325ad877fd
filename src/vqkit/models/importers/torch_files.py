"""Files that `torch.save` wrote, in both formats, without `torch.load`.

Since torch 1.6 such a file is a zip archive: `NAME/data.pkl` describes the objects, and every
storage is a record of raw bytes, `NAME/data/KEY`. Before, it was five pickles in a row (a magic
number, the version, facts about the machine, the objects, the keys of the storages) and then every
storage, as its length and its bytes.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from vqkit.models.importers.pickles import MOST_BYTES, read_pickle
from vqkit.models.importers.stored import Storage

ZIP_START: Final = b"PK\x03\x04"
AGAIN: Final = "get the file again"

_MAGIC: Final = 0x1950A86A20F9469CFC6C
_VERSION: Final = 1001
_PICKLE: Final = "data.pkl"
_BIG_ENDIAN: Final = "was written by a big-endian machine; save it as safetensors there"
# What zipfile raises for archives that are damaged, encrypted or compressed in ways it lacks.
_ZIP_ERRORS: Final = (
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError),
    *(EOFError, LookupError, OSError, OverflowError),
)

Fetch = Callable[[Iterable[Storage]], Iterator[tuple[str, Tensor]]]
"""Reads storages, in any order: their keys and their numbers as flat tensors."""


def open_zip(path: Path) -> tuple[object, Fetch]:
    """Return the objects of a file in the zip format, and how to read its storages.

    Records of `torch.save` are never compressed, and compressed ones are refused: nothing that is
    read is larger than its file. Damage is a `ValueError`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [name for name in archive.namelist() if name.split("/")[1:] == [_PICKLE]]
            if len(found) != 1:
                raise ValueError(
                    f"is a zip archive with {len(found)} records */{_PICKLE}; expected one"
                )
            folder = found[0].removesuffix(_PICKLE)
            if _has(archive, f"{folder}byteorder"):
                order = _record(archive, f"{folder}byteorder", 16)
                if order != b"little":
                    raise ValueError(_BIG_ENDIAN)
            content, _ = read_pickle(io.BytesIO(_record(archive, found[0], MOST_BYTES)))
    except _ZIP_ERRORS as error:
        raise ValueError(f"is a damaged zip archive ({_line(error)}); {AGAIN}") from error

    def fetch(storages: Iterable[Storage]) -> Iterator[tuple[str, Tensor]]:
        try:
            with zipfile.ZipFile(path) as archive:
                for storage in storages:
                    name = f"{folder}data/{storage.key}"
                    numbers = _record(archive, name, storage.nbytes)
                    yield storage.key, _numbers(numbers, storage)
        except _ZIP_ERRORS as error:
            raise ValueError(f"is a damaged zip archive ({_line(error)}); {AGAIN}") from error

    return content, fetch


def open_legacy(path: Path) -> tuple[object, Fetch]:
    """Return the objects of a file in the format before torch 1.6, and how to read its storages.

    Damage, and any other kind of file, is a `ValueError`.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = io.BytesIO(file.read(MOST_BYTES))
        magic, _ = read_pickle(head)
        version, _ = read_pickle(head) if magic == _MAGIC else (None, None)
        if version != _VERSION:
            raise ValueError("is no file that torch.save or safetensors wrote")
        machine, _ = read_pickle(head)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise ValueError(_BIG_ENDIAN)
        content, storages = read_pickle(head)
        listing, _ = read_pickle(head)
        keys = [key for key in listing if type(key) is str] if isinstance(listing, list) else []
        if sorted(keys) != sorted(storages):
            raise ValueError(f"is damaged: it does not list its storages; {AGAIN}")
        starts, place = {}, head.tell()
        for key in keys:
            file.seek(place)
            numel = int.from_bytes(file.read(8), "little", signed=True)
            starts[key], place = place + 8, place + 8 + storages[key].nbytes
            if numel != storages[key].numel or place > size:
                raise ValueError(f"is cut short or damaged: a storage is not whole; {AGAIN}")

    def fetch(wanted: Iterable[Storage]) -> Iterator[tuple[str, Tensor]]:
        with path.open("rb") as file:
            for storage in wanted:
                file.seek(starts[storage.key])
                yield storage.key, _numbers(file.read(storage.nbytes), storage)

    return content, fetch


def _has(archive: zipfile.ZipFile, name: str) -> bool:
    return name in archive.NameToInfo


def _record(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Read a record of an archive, of at most so many bytes."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"has a compressed record {name[:99]!r}, which torch.save does not write")
    if info.file_size > most:
        raise ValueError(f"has {info.file_size:,} bytes in {name[:99]!r}, more than {most:,}")
    return archive.read(info)


def _numbers(content: bytes, storage: Storage) -> Tensor:
    if len(content) != storage.nbytes:
        raise ValueError(
            f"is cut short or damaged: storage {storage.key[:50]!r} is not whole; {AGAIN}"
        )
    if not content:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(bytearray(content), dtype=storage.dtype)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
