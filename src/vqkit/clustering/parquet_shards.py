"""Parquet shards: a column of lists, all of one length, read batch by batch (needs pyarrow)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqkit.clustering.shards import Shard, ShardedSource
from vqkit.clustering.sources import FLOATS, SAMPLE_ROWS
from vqkit.config import require

BATCH_ELEMENTS = 2**18
"""Numbers decoded at a time."""


class ParquetShards(ShardedSource):
    """Files with a column of vectors; memory holds one batch, not one row group.

    Rows come out by decoding their row group from its beginning, so reading goes on from where the
    last read ended, also past rows of that group that nobody wants.
    """

    def __init__(self, paths: list[Path], column: str | None) -> None:
        self._arrow = _pyarrow(paths[0])
        self.name = _vector_column(self._arrow, paths[0], column)
        self._stream: Iterator[Tensor] = iter(())
        self._rest = torch.empty(0, 0)
        self._next = -1
        self._num_rows = 0
        self._groups: list[int] = []
        """First rows of all row groups."""
        super().__init__([self._shard(path) for path in paths])

    def read(self, start: int, stop: int) -> Tensor:
        """Read rows, from one file or several."""
        group = self._groups[bisect_right(self._groups, start) - 1]
        if not group <= self._next <= start:
            self._stream = self._batches(start)
            self._rest = torch.empty(0, self.dim, dtype=self.dtype)
            self._next = start
        while self._next + len(self._rest) < start:
            self._next += len(self._rest)
            self._rest = next(self._stream)
        self._rest = self._rest[start - self._next :]
        parts, missing = [self._rest[:0]], stop - start
        while missing:
            if len(self._rest) == 0:
                self._rest = next(self._stream)
            parts.append(self._rest[:missing])
            self._rest = self._rest[len(parts[-1]) :]
            missing -= len(parts[-1])
        self._next = stop
        return torch.cat(parts)

    def sample_rows(self) -> Tensor:
        """Return the first rows of up to 32 row groups."""
        some = super().sample_rows()
        numbers = torch.tensor(self._groups)
        first = numbers[torch.searchsorted(numbers, some, right=True) - 1].unique()
        each = -(-SAMPLE_ROWS // len(first))
        rows = (first[:, None] + torch.arange(each)).flatten()
        return rows[rows < self.num_vectors].unique()

    def column(self, name: str) -> Tensor:
        """Return a column of whole numbers of all shards (N,), int64."""
        parts = []
        for shard in self.shards:
            with _opened(self._arrow, shard.path) as file:
                known = file.schema_arrow.names
                require(
                    name in known
                    and self._arrow.types.is_integer(file.schema_arrow.field(name).type),
                    f"groups={name!r}",
                    f"{shard.path.name} has no such column of whole numbers (columns: "
                    f"{', '.join(known)}); name one",
                )
                values = file.read([name]).column(0)
                require(values.null_count == 0, f"{shard.path}", f"column {name!r} has gaps")
                parts.append(torch.from_numpy(values.to_numpy().astype(np.int64)))
        return torch.cat(parts)

    def _shard(self, path: Path) -> Shard:
        with _opened(self._arrow, path) as file:
            require(
                self.name in file.schema_arrow.names,
                f"column={self.name!r}",
                f"{path.name} has only {', '.join(file.schema_arrow.names)}",
            )
            kind = file.schema_arrow.field(self.name).type
            problem = f"{path}: column {self.name!r} is {kind}"
            require(_is_list(self._arrow, kind), problem, "need lists of floating point numbers")
            dtype = FLOATS.get(_numpy_name(kind.value_type))
            if dtype is None:
                raise ValueError(f"{problem}: need float16, float32 or float64; convert the values")
            first = next(file.iter_batches(1, columns=[self.name]), None)
            lists = None if first is None else first.column(0)
            size = 0 if lists is None or lists.null_count else len(lists.flatten())
            require(size > 0, f"{path}", f"column {self.name!r} begins with no vector")
            rows = self._num_rows
            for number in range(file.metadata.num_row_groups):
                self._groups.append(rows)
                rows += file.metadata.row_group(number).num_rows
            self._num_rows = rows
            return Shard(path, file.metadata.num_rows, size, dtype, path.stat().st_size)

    def _batches(self, row: int) -> Iterator[Tensor]:
        """Yield the vectors from `row` on."""
        number, skip = self.locate(row)
        rows = max(1, BATCH_ELEMENTS // self.dim)
        for shard in self.shards[number:]:
            with _opened(self._arrow, shard.path) as file:
                groups = list(range(file.metadata.num_row_groups))
                while groups and file.metadata.row_group(groups[0]).num_rows <= skip:
                    skip -= file.metadata.row_group(groups.pop(0)).num_rows
                begin = shard.num_vectors - sum(file.metadata.row_group(g).num_rows for g in groups)
                for batch in file.iter_batches(rows, row_groups=groups, columns=[self.name]):
                    count = batch.num_rows
                    if skip < count:
                        yield self._tensor(batch.column(0), f"{shard.path.name} row", begin)[skip:]
                    skip = max(0, skip - count)
                    begin += count

    def _tensor(self, lists: Any, where: str, begin: int) -> Tensor:
        """Make a tensor (n, D) of an Arrow array of lists that begins at row `begin`."""
        if lists.null_count:
            gap = int(np.flatnonzero(lists.is_null().to_numpy(zero_copy_only=False))[0])
            raise ValueError(f"{where} {begin + gap}: holds no vector; leave the row out")
        values = lists.flatten()
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
        if (lengths != self.dim).any():
            odd = int(np.flatnonzero(lengths != self.dim)[0])
            raise ValueError(
                f"{where} {begin + odd}: has {lengths[odd]} numbers, others {self.dim}; "
                "vectors have one length"
            )
        # A null inside a vector becomes NaN, which the survey reports with its place.
        numbers = values.to_numpy(zero_copy_only=False).reshape(-1, self.dim)
        return torch.from_numpy(np.array(numbers))


def _vector_column(arrow: ModuleType, path: Path, column: str | None) -> str:
    if column is not None:
        return column
    with _opened(arrow, path) as file:
        lists = [field.name for field in file.schema_arrow if _is_list(arrow, field.type)]
    require(
        len(lists) == 1,
        f"{path}: {len(lists)} columns of lists ({', '.join(lists)})",
        "name the one with the vectors: column=...",
    )
    return str(lists[0])


def _is_list(arrow: ModuleType, kind: Any) -> bool:
    types = arrow.types
    return bool(types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind))


def _numpy_name(kind: Any) -> str:
    return {"halffloat": "float16", "float": "float32", "double": "float64"}.get(str(kind), "")


@contextmanager
def _opened(arrow: ModuleType, path: Path) -> Iterator[Any]:
    """Open a file with small buffers; what pyarrow refuses is a `ValueError`."""
    try:
        with arrow.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
            yield file
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: is no readable parquet file ({error}); fetch it again"
        ) from error


def _pyarrow(path: Path) -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"vectors={str(path)!r}: reading parquet needs pyarrow, which is not installed; "
            "pip install 'vqkit[train]'"
        ) from error
    return pyarrow
