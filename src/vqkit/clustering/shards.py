"""Shards on a disk: .npy files here, parquet in `parquet_shards`; read by block, memory is flat."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqkit.clustering.sources import VectorSource, float_type, require_matrix
from vqkit.config import require


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of vectors."""

    path: Path
    num_vectors: int
    dim: int
    dtype: torch.dtype
    size: int
    """Bytes of the file."""


class ShardedSource(VectorSource):
    """Files, one after the other."""

    def __init__(self, shards: list[Shard]) -> None:
        first = shards[0]
        for shard in shards:
            require(
                shard.dim == first.dim and shard.dtype == first.dtype,
                f"{shard.path}: {shard.dim} dimensions, {shard.dtype}",
                f"{first.path.name} has {first.dim} of {first.dtype}; make the shards alike",
            )
        self.shards = shards
        self.ends = list(accumulate(shard.num_vectors for shard in shards))
        self.num_vectors, self.dim, self.dtype = self.ends[-1], first.dim, first.dtype

    def locate(self, row: int) -> tuple[int, int]:
        """Return the number of the shard that holds `row`, and the row inside it."""
        number = bisect_right(self.ends, row)
        return number, row - (self.ends[number - 1] if number else 0)

    def place(self, row: int) -> str:
        """Name file and row."""
        number, inside = self.locate(row)
        return f"{self.shards[number].path.name} row {inside}"

    def parts(self) -> list[Any]:
        """Name all files with their sizes."""
        return [[shard.path.name, shard.num_vectors, shard.size] for shard in self.shards]


class NpyShards(ShardedSource):
    """`.npy` files (rows, D). They are read, not mapped: mapped pages count as memory in use."""

    def __init__(self, paths: list[Path]) -> None:
        headers = [_header(path) for path in paths]
        self._starts = [start for _, start, _ in headers]
        self._kinds = [kind for _, _, kind in headers]
        super().__init__([shard for shard, _, _ in headers])

    def read(self, start: int, stop: int) -> Tensor:
        """Read rows, from one file or several."""
        parts = []
        while start < stop:
            number, inside = self.locate(start)
            count = min(stop - start, self.shards[number].num_vectors - inside)
            parts.append(self._read(number, inside, count))
            start += count
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def _read(self, number: int, row: int, count: int) -> Tensor:
        path, kind = self.shards[number].path, self._kinds[number]
        offset = self._starts[number] + row * self.dim * kind.itemsize
        try:
            values = np.fromfile(path, kind, count * self.dim, offset=offset)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error}); write it again") from error
        require(
            len(values) == count * self.dim, f"{path}", "ends before its last row; write it again"
        )
        native = values.astype(kind.newbyteorder("="), copy=False)
        return torch.from_numpy(native).view(count, self.dim)


def open_shards(path: Path, column: str | None) -> VectorSource:
    """Open a file or a folder of `.npy` or `.parquet` shards; errors as `open_vectors`."""
    require(path.exists(), f"vectors={str(path)!r}", "there is no such file or folder")
    names = sorted(path.iterdir()) if path.is_dir() else [path]
    files = {end: [p for p in names if p.suffix == end] for end in (".npy", ".parquet")}
    if len(files[".npy"]) > 0 and len(files[".parquet"]) > 0:
        raise ValueError(
            f"vectors={str(path)!r}: holds .npy and .parquet files; keep one kind in the folder"
        )
    if files[".npy"]:
        require(column is None, f"column={column!r}", ".npy files have no columns; leave it out")
        return NpyShards(files[".npy"])
    require(
        bool(files[".parquet"]),
        f"vectors={str(path)!r}",
        "holds no .npy or .parquet file; name a file or folder that does",
    )
    from vqkit.clustering.parquet_shards import ParquetShards

    return ParquetShards(files[".parquet"], column)


def _header(path: Path) -> tuple[Shard, int, np.dtype[Any]]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: is no readable .npy file ({error}); write it again") from error
    require_matrix(array.shape, str(path))
    require(
        array.flags.c_contiguous,
        f"{path}",
        "holds its columns one after the other; save numpy.ascontiguousarray of it",
    )
    shard = Shard(
        path, len(array), array.shape[1], float_type(array.dtype, str(path)), path.stat().st_size
    )
    return shard, int(array.offset), array.dtype
