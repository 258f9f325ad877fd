"""Parquet files of encoded images, in the layout of Hugging Face image data sets."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from vqkit.config import DataConfig
from vqkit.data.decoded import DecodedImages
from vqkit.data.decoding import BrokenImageError
from vqkit.data.folder import existing
from vqkit.data.image_set import ImageSet, Listing
from vqkit.data.memory import hold_small

if TYPE_CHECKING:
    import pyarrow

SUBFOLDERS = ("", "data", "plain_text", "mnist", "fashion_mnist")
"""Where Hugging Face repositories keep their files, below the data folder."""
_PARTS = {"train": ("train",), "test": ("test", "val")}
_IMAGES = ("image", "img")
# Small batches keep the 2 GB limit of an Arrow binary array away from large photographs.
_ROWS = 1024


def load_parquet(config: DataConfig) -> ImageSet:
    """Images of `config.path`: one file, whatever its split, or a folder with <split>*.parquet.

    Needs a column `image` (or `img`) of {bytes, path} or of plain bytes; a column `label` is
    optional. The encoded bytes stay in memory, so a set larger than that belongs in a folder of
    files.
    """
    path = existing(config)
    files = [path] if path.is_file() else find_parquet(path, config.split)
    if not files:
        raise ValueError(
            f"data.path={config.path!r}: no {config.split}*.parquet there"
            f"{_listed(path)}; name a .parquet file or the folder that holds it"
        )
    return read_parquet(config, files)


def find_parquet(folder: Path, split: str) -> list[Path]:
    """The sorted parquet files of a split in `folder` or a usual subfolder, or an empty list."""
    for subfolder in SUBFOLDERS:
        for part in _PARTS[split]:
            found = sorted((folder / subfolder).glob(f"{part}*.parquet"))
            if found:
                return found
    return []


def read_parquet(config: DataConfig, files: list[Path]) -> ImageSet:
    """Read the rows of `files`, in order, up to `config.limit`."""
    columns: list[Any] = []
    starts: list[int] = []
    names: list[tuple[str, int]] = []
    labels: list[int] = []
    count = 0
    for file in files:
        first = count
        for images, batch_labels in _batches(file):
            room = len(images) if config.limit is None else min(len(images), config.limit - count)
            columns.append(images)
            starts.append(count)
            names.append((file.name, count - first))
            labels += batch_labels[:room]
            count += room
            if count == config.limit:
                break
        if count == config.limit:
            break
    if count == 0:
        raise ValueError(
            f"data.path={config.path!r}: {files[0].name} holds no rows; name another file"
        )

    def name(index: int) -> str:
        part = bisect_right(starts, index) - 1
        file_name, row = names[part]
        return f"{file_name}[{row + index - starts[part]}]"

    def encoded(index: int) -> bytes:
        part = bisect_right(starts, index) - 1
        value = columns[part][index - starts[part]].as_py()
        if value is None:
            raise BrokenImageError(name(index), "the row holds no image bytes")
        return bytes(value)

    listing = Listing(
        count=count,
        name=name,
        files=lambda: ((file.name, file.stat().st_size) for file in files),
        labels=torch.tensor(labels, dtype=torch.int64) if len(labels) == count else None,
    )
    return hold_small(DecodedImages(config, listing, encoded, fetch=bytes))


def _batches(file: Path) -> Iterator[tuple[Any, list[int]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"data.path={str(file)!r}: reading parquet needs pyarrow, which is not installed; "
            "pip install 'vqkit[train]'"
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            column = next((name for name in _IMAGES if name in schema.names), None)
            if column is None or not _holds_bytes(pyarrow.types, schema.field(column).type):
                raise ValueError(
                    f"data.path={str(file)!r}: no column 'image' of {{bytes, path}} (columns: "
                    f"{', '.join(schema.names)}); write it as Hugging Face image data sets are"
                )
            labelled = "label" in schema.names and pyarrow.types.is_integer(
                schema.field("label").type
            )
            wanted = [column, "label"] if labelled else [column]
            for batch in opened.iter_batches(batch_size=_ROWS, columns=wanted):
                images = batch.column(column)
                if pyarrow.types.is_struct(images.type):
                    images = images.field("bytes")
                values = batch.column("label").to_pylist() if labelled else []
                yield images, [value for value in values if value is not None]
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"data.path={str(file)!r}: is no readable parquet file ({error}); fetch it again"
        ) from error


def _holds_bytes(types: ModuleType, kind: pyarrow.DataType) -> bool:
    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(types, kind.field(index).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _listed(folder: Path) -> str:
    found = sorted(file.name for file in folder.glob("*.parquet"))[:5]
    return f" (only {', '.join(found)})" if found else ""
