"""The python version of CIFAR-10: pickles, read without running any code that they name.

A pickle may call whatever it can import. The reader here resolves exactly the five names that the
published batches (and copies re-saved by numpy) hold, and to inert stand-ins of its own: nothing of
numpy, nor anything else, is ever called by the file.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt

_ROW = 3 * 32 * 32
# The published batches have 31 MB; a pickle this much larger is something else.
_MOST_BYTES = 1 << 28


class _Inert:
    """What any admitted name builds: keeps its arguments and its state, does nothing with them."""

    __slots__ = ("arguments", "state")

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Array(_Inert):
    __slots__ = ()


class _Dtype(_Inert):
    __slots__ = ()


class _Latin(_Inert):
    """Bytes as Python 3 writes them in protocol 2: a text and the name of its encoding."""

    __slots__ = ()


_ADMITTED: dict[tuple[str, str], type[_Inert]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Latin,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> type[_Inert]:
        """Resolve an admitted name to its stand-in; refuse every other."""
        found = _ADMITTED.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return found


def read_cifar_pickle(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Read one batch: pixels (n, 3072) and labels (n,), both uint8.

    A file that names any other object, is damaged, or holds something else is a `ValueError` naming
    it; nothing that it names is imported or run.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MiB")
        with path.open("rb") as stream:
            content = _Reader(stream, encoding="bytes").load()
        return _pixels(_entry(content, "data")), _labels(_entry(content, "labels"))
    except (
        *(pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError),
        *(AttributeError, ImportError, MemoryError, OverflowError, OSError, RecursionError),
    ) as error:
        raise ValueError(
            f"{path.name}: is no CIFAR-10 batch ({error}); fetch the python version again from "
            "its authors, or use the binary version"
        ) from error


def _entry(content: object, key: str) -> object:
    if not isinstance(content, dict):
        raise ValueError("it holds no dictionary")
    found = content.get(key.encode(), content.get(key))
    if found is None:
        raise ValueError(f"it has no entry {key!r}")
    return found


def _pixels(array: object) -> npt.NDArray[np.uint8]:
    # numpy's state of an array: version, shape, dtype, Fortran order, bytes.
    if not isinstance(array, _Array) or not isinstance(array.state, tuple) or len(array.state) != 5:
        raise ValueError("'data' is no array")
    _, shape, dtype, fortran, values = array.state
    kind = dtype.arguments[0] if isinstance(dtype, _Dtype) and dtype.arguments else None
    if kind not in (b"u1", "u1") or fortran:
        raise ValueError("'data' is no array of bytes in row order")
    if isinstance(values, _Latin):
        text, encoding = values.arguments
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise ValueError("'data' is oddly encoded")
        values = text.encode("latin1")
    if not isinstance(values, bytes) or shape != (len(values) // _ROW, _ROW) or not values:
        raise ValueError(f"'data' is not of shape (n, {_ROW})")
    if len(values) % _ROW:
        raise ValueError("'data' is cut short")
    return np.frombuffer(bytearray(values), dtype=np.uint8).reshape(shape)


def _labels(labels: object) -> npt.NDArray[np.uint8]:
    if not isinstance(labels, list) or not all(
        type(label) is int and 0 <= label < 10 for label in labels
    ):
        raise ValueError("'labels' is no list of numbers from 0 to 9")
    return np.array(labels, dtype=np.uint8)
