"""Where vectors come from: a tensor, an array (memory-mapped too), or shards on a disk.

A source is read row by row in rising order, block by block, so that it may be larger than memory.
Values are used as float32 (float64 is rounded; `survey` refuses data that this would spoil).

Legend: N vectors, D dim.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqkit.config import require

FLOATS = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
SAMPLE_ROWS = 32
"""Rows by which data are recognised."""


class VectorSource(ABC):
    """N vectors of D dimensions. Write a subclass for a storage that is not here.

    It sets `num_vectors`, `dim` and `dtype`, and has `read`.
    """

    num_vectors: int
    dim: int
    dtype: torch.dtype
    in_memory = False
    """Whether reading costs nothing, so that nothing need be read ahead."""
    device = torch.device("cpu")
    """Where blocks are read to."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Return vectors start to stop - 1, (stop - start, D), any floating type."""

    def take(self, rows: Tensor) -> Tensor:
        """Return the vectors with ascending numbers `rows` (n,), (n, D)."""
        if len(rows) == 0:
            return torch.empty(0, self.dim, dtype=self.dtype, device=self.device)
        cuts = ((rows[1:] - rows[:-1]) != 1).nonzero()[:, 0] + 1
        runs = rows.tensor_split(cuts)
        return torch.cat([self.read(int(run[0]), int(run[-1]) + 1) for run in runs])

    def sample_rows(self) -> Tensor:
        """Return up to 32 ascending row numbers all over the source that are cheap to read."""
        count = min(SAMPLE_ROWS, self.num_vectors)
        return torch.arange(count) * (self.num_vectors - 1) // max(count - 1, 1)

    def place(self, row: int) -> str:
        """Name a row for a message."""
        return f"row {row}"

    def parts(self) -> list[Any]:
        """Return what else tells these data from others, as JSON values: names, sizes."""
        return []

    def column(self, name: str) -> Tensor:
        """Return a column of whole numbers (N,) that stands beside the vectors."""
        raise ValueError(
            f"groups={name!r}: only parquet shards have columns; pass an array of whole numbers"
        )


class MemorySource(VectorSource):
    """A tensor (N, D) on any device."""

    in_memory = True

    def __init__(self, vectors: Tensor) -> None:
        require_matrix(tuple(vectors.shape), "vectors")
        require(
            vectors.is_floating_point(),
            f"vectors.dtype={vectors.dtype}",
            "need floating point; call .float() first",
        )
        self._vectors = vectors.detach()
        self.num_vectors, self.dim = vectors.shape
        self.dtype, self.device = vectors.dtype, vectors.device

    def read(self, start: int, stop: int) -> Tensor:
        """Return a view."""
        return self._vectors[start:stop]

    def take(self, rows: Tensor) -> Tensor:
        """Copy rows."""
        return self._vectors[rows.to(self.device)]


class ArraySource(VectorSource):
    """A numpy array (N, D) of float16, float32 or float64; memory-mapped ones are read by block."""

    def __init__(self, vectors: np.ndarray) -> None:
        require_matrix(vectors.shape, "vectors")
        self.dtype = float_type(vectors.dtype, "vectors")
        self._vectors = vectors
        self.num_vectors, self.dim = vectors.shape
        self.in_memory = not isinstance(vectors, np.memmap)

    def read(self, start: int, stop: int) -> Tensor:
        """Return a view where torch can, else a copy of the block."""
        return self._tensor(self._vectors[start:stop])

    def take(self, rows: Tensor) -> Tensor:
        """Copy rows."""
        return self._tensor(self._vectors[rows.numpy()])

    def _tensor(self, block: np.ndarray) -> Tensor:
        kind = block.dtype.newbyteorder("=")
        return torch.from_numpy(np.require(block, dtype=kind, requirements=["C", "W"]))


class RowsSource(VectorSource):
    """Some rows of another source, by their ascending numbers (n,)."""

    def __init__(self, source: VectorSource, rows: Tensor, held: Tensor | None = None) -> None:
        """Read rows when they are wanted, or give them from `held` (n, D) where they are known."""
        self._source, self._rows, self._held = source, rows, held
        self.num_vectors, self.dim = len(rows), source.dim
        self.dtype, self.device = source.dtype, source.device
        self.in_memory = held is not None

    def read(self, start: int, stop: int) -> Tensor:
        """Take the rows."""
        if self._held is not None:
            return self._held[start:stop]
        return self._source.take(self._rows[start:stop])

    def place(self, row: int) -> str:
        """Name the row as the whole source does."""
        return self._source.place(int(self._rows[row]))


def open_vectors(vectors: object, column: str | None = None) -> VectorSource:
    """Make a source of whatever holds vectors.

    Args:
        vectors: a tensor (N, D) of any floating type, a numpy array (N, D), a path of a `.npy` or
            `.parquet` file or of a folder of such shards (in the order of their names), or a
            `VectorSource`.
        column: of parquet files, lists of D numbers; None takes the only such column.

    Raises:
        ValueError: something else, a wrong shape or type, no shards, an unreadable file.
    """
    found: VectorSource
    require_plain(vectors, "vectors")
    if isinstance(vectors, VectorSource):
        missing = [name for name in ("num_vectors", "dim", "dtype") if not hasattr(vectors, name)]
        kind = f"vectors: {type(vectors).__name__}"
        require(not missing, kind, f"a VectorSource has {', '.join(missing)} too; set it")
        found = vectors
    elif isinstance(vectors, Tensor):
        found = MemorySource(vectors)
    elif isinstance(vectors, np.ndarray):
        found = ArraySource(vectors)
    elif isinstance(vectors, str | Path):
        from vqkit.clustering.shards import open_shards

        return open_shards(Path(vectors), column)
    else:
        raise ValueError(
            f"vectors: {type(vectors).__name__} holds no vectors; pass a tensor, a numpy array, "
            "a file or folder of .npy or .parquet shards, or a VectorSource"
        )
    require(
        column is None,
        f"column={column!r}",
        "only parquet shards have columns; leave it out",
    )
    return found


def sample(source: VectorSource) -> Tensor:
    """Return up to 32 rows from all over the source (n, D), float32."""
    return source.take(source.sample_rows()).float()


def fingerprint(source: VectorSource, rows: Tensor) -> dict[str, Any]:
    """Describe the data of `source`, whose `sample` is `rows`, as JSON values."""
    content = rows.cpu().contiguous().numpy().tobytes()
    return {
        "num_vectors": source.num_vectors,
        "dim": source.dim,
        "type": str(source.dtype).removeprefix("torch."),
        "parts": source.parts(),
        "sample": hashlib.sha256(content).hexdigest(),
    }


def require_matrix(shape: tuple[int, ...], name: str) -> None:
    """Raise `ValueError` unless `shape` is (N, D) with D at least 1."""
    require(
        len(shape) == 2 and shape[1] >= 1,
        f"{name}={tuple(shape)}",
        "need (vectors, dimensions); reshape them",
    )


def require_plain(values: object, name: str) -> None:
    """Raise `ValueError` for a masked array, whose hidden values would be used."""
    require(
        not isinstance(values, np.ma.MaskedArray),
        name,
        "is a masked array; fill it, or leave out the rows that are masked",
    )


def float_type(dtype: np.dtype, name: str) -> torch.dtype:
    """Return torch's name of a numpy type that holds vectors."""
    require(
        dtype.name in FLOATS,
        f"{name}: type {dtype}",
        "need float16, float32 or float64; convert the values",
    )
    return FLOATS[dtype.name]
