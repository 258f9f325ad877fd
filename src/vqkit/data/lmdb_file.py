"""An LMDB of encoded images, read by threads and by worker processes; torch is not needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from vqkit.data.decoding import BrokenImageError

if TYPE_CHECKING:
    import lmdb

# LMDB forbids to open the same file twice in one process: all sets of a file share one environment.
_OPEN: WeakValueDictionary[str, lmdb.Environment] = WeakValueDictionary()


class LmdbFile:
    """The data file of an LMDB, opened for reading without locks; other processes may have it too.

    Pickled, it is the path alone: the process that receives it opens the file for itself. Raises
    `ValueError` for a file that is no LMDB or is cut short, `ImportError` without the package.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._environment = environment(path)

    def __reduce__(self) -> tuple[type[LmdbFile], tuple[str]]:
        return LmdbFile, (self.path,)

    def __call__(self, key: bytes) -> bytes:
        """Read one image, still encoded."""
        with self._environment.begin(buffers=True) as transaction:
            value = transaction.get(key)
            if value is None:
                raise BrokenImageError(name_of(key), "the database holds this key no more")
            return bytes(value)


def environment(path: str, *, in_order: bool = False) -> lmdb.Environment:
    """Open the data file at `path`, or give the environment in which it is open already.

    `in_order` lets the system read ahead, which random reads should not.
    """
    place = os.path.realpath(path)
    found = _OPEN.get(place)
    if found is None:
        found = _OPEN[place] = _open(path, in_order)
    return found


def name_of(key: bytes) -> str:
    """Show a key as text."""
    return key.decode("utf-8", errors="backslashreplace")


def _open(path: str, in_order: bool) -> lmdb.Environment:
    try:
        import lmdb
    except ImportError as error:
        raise ImportError(
            f"data.path={path!r}: reading an LMDB needs the package lmdb, which is not installed; "
            "pip install 'vqkit[lsun]'"
        ) from error
    options = {"subdir": False, "readonly": True, "lock": False, "create": False}
    try:
        opened = lmdb.open(path, readahead=in_order, max_spare_txns=16, **options)
    except lmdb.Error as error:
        raise ValueError(
            f"data.path={path!r}: cannot be opened as an LMDB ({error}); unpack the data set again"
        ) from error
    # Reading behind the end of a memory-mapped file kills the process, so look before.
    expected = (opened.info()["last_pgno"] + 1) * opened.stat()["psize"]
    present = Path(path).stat().st_size
    if present < expected:
        opened.close()
        raise ValueError(
            f"data.path={path!r}: is cut short, {present:,} of {expected:,} bytes; download or "
            "unpack the data set again"
        )
    return opened
