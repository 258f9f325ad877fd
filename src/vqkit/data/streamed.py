"""A data set of the Hugging Face hub, or a folder that `datasets` reads, streamed: never stored.

Images come in the order of the data set. Whoever asks for others than the next ones waits until the
stream has passed them, so this source is for `vqkit tokenize`, whose processes read long runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqkit.config import DataConfig, require
from vqkit.data.decoding import BrokenImageError
from vqkit.data.image_set import ImageSet, Listing, check_index
from vqkit.data.preparing import Preparation, Size

_IMAGES, _LABELS, _CAPTIONS = (
    ("image", "img", "jpg", "png"),
    ("label", "fine_label"),
    ("caption", "text"),
)
_KEPT = 65_536
"""Images whose size, class and caption are remembered after they were read."""


def load_streamed(config: DataConfig) -> ImageSet:
    """Images of the hub data set or local folder `config.path`, in the split `config.split`.

    Needs a column of images (`image`, `img`, `jpg` or `png`); a column `label` of whole numbers and
    a `caption` or `text` of one string are optional. How many images there are must be known: from
    the data set's own card, from local parquet files, or as data.limit.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "data.source='huggingface': streams with datasets, which is not installed; "
            "pip install 'vqkit[streaming]'"
        ) from error
    path, where = str(config.path), f"data.path={config.path!r}"
    try:
        builder = datasets.load_dataset_builder(path)
        rows = builder.as_streaming_dataset(split=config.split)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{where}: datasets cannot read it ({error})") from error
    features = rows.features or {}
    names = {
        "image": _first(features, _IMAGES),
        "label": _first(features, _LABELS, "int", "uint"),
        "caption": _first(features, _CAPTIONS, "string", "large_string"),
    }
    require(
        names["image"] is not None,
        where,
        f"has no column of images ({', '.join(_IMAGES)}), only {', '.join(features) or 'none'}",
    )
    rows = rows.select_columns([name for name in names.values() if name is not None])
    rows = rows.cast_column(names["image"], datasets.Image(decode=False))
    label = features.get(names["label"])
    label_names = getattr(label, "names", None)
    files = builder.config.data_files or {}
    found = files.get(config.split, [])
    listing = Listing(
        count=_count(config, builder, [str(file) for file in found]),
        name=lambda i: f"{config.split}[{i}]",
        files=lambda: _files(found, builder),
        label_names=None if label_names is None else tuple(label_names),
    )
    return StreamedImages(config, listing, rows, names)


def _first(features: Any, names: Sequence[str], *kinds: str) -> str | None:
    """Return the first of `names` that is a column, of a type that begins as one of `kinds`."""
    for name in names:
        kind = str(getattr(features.get(name), "dtype", ""))
        if name in features and (not kinds or kind.startswith(kinds)):
            return name
    return None


def _count(config: DataConfig, builder: Any, files: list[str]) -> int:
    """Return how many images there are, at most data.limit."""
    splits = builder.info.splits or {}
    known = splits[config.split].num_examples if config.split in splits else 0
    if not known and files and all(Path(file).suffix == ".parquet" for file in files):
        known = _rows(files)
    require(
        bool(known) or config.limit is not None,
        f"data.path={config.path!r}",
        "does not say how many images it has; give data.limit",
    )
    return min(filter(None, (known, config.limit)))


def _rows(files: list[str]) -> int:
    import pyarrow.parquet

    if not all(Path(file).is_file() for file in files):
        return 0
    return sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)


def _files(files: Any, builder: Any) -> Iterator[tuple[str, int]]:
    """Name what is streamed: files with their sizes, or the commit that they are of."""
    for file in map(str, files):
        local = Path(file)
        yield (local.name, local.stat().st_size) if local.is_file() else (file, 0)
    yield json.dumps([builder.dataset_name, builder.config.name, str(builder.info.version)]), 0


class StreamedImages(ImageSet):
    """Images of a stream, read one after the other; one thread reads at a time."""

    def __init__(
        self, config: DataConfig, listing: Listing, rows: Any, names: dict[str, str | None]
    ) -> None:
        super().__init__(config, listing)
        self._rows, self._names = rows, names
        self._preparation = Preparation(config, bytes)
        self._next = -1
        self._stream: Iterator[dict[str, Any]] = iter(())
        self._details: dict[int, tuple[Size, int, str | None]] = {}

    @property
    def in_memory(self) -> bool:
        """False: nothing is kept."""
        return False

    @property
    def parallel(self) -> int:
        """One thread, in the order of the stream."""
        return 1

    @property
    def labelled(self) -> bool:
        """See `ImageSet.labelled`."""
        return self._names["label"] is not None

    @property
    def captioned(self) -> bool:
        """See `ImageSet.captioned`."""
        return self._names["caption"] is not None

    def label(self, index: int) -> int:
        """See `ImageSet.label`."""
        return self._details[index][1]

    def caption(self, index: int) -> str | None:
        """See `ImageSet.caption`."""
        return self._details[index][2]

    def original_size(self, index: int) -> Size:
        """See `ImageSet.original_size`."""
        return self._details[index][0]

    def image(self, index: int) -> Tensor:
        """See `ImageSet.image`; others than the next wait for the stream to come there."""
        check_index(index, len(self))
        row = self._row(index)
        value = row[self._names["image"] or ""] or {}
        encoded = value.get("bytes")
        if encoded is None and value.get("path") and Path(value["path"]).is_file():
            encoded = Path(value["path"]).read_bytes()
        if encoded is None:
            raise BrokenImageError(self.name(index), "the row holds no image bytes")
        pixels, size = self._preparation.whole(self.name(index), encoded)
        label, caption = (row.get(self._names[kind] or "") for kind in ("label", "caption"))
        if len(self._details) >= _KEPT:
            del self._details[next(iter(self._details))]
        self._details[index] = (size, -1 if label is None else int(label), caption)
        return torch.from_numpy(np.array(pixels, order="C"))

    def _row(self, index: int) -> dict[str, Any]:
        if not 0 <= self._next <= index:
            self._stream, self._next = iter(self._rows.skip(index)), index
        found: dict[str, Any] = {}
        while self._next <= index:
            found = next(self._stream, {})
            if not found:
                raise ValueError(
                    f"data.path={self.config.path!r}: ends before image {self._next:,} of "
                    f"{len(self):,}; give data.limit={self._next}, or less"
                )
            self._next += 1
        return found

    def gather(
        self, indices: Sequence[int], draws: npt.NDArray[np.float64]
    ) -> tuple[Tensor, list[str]]:
        """Refuse: random images of a stream would read all of it for each."""
        raise ValueError(
            f"data.source={self.config.source!r}: is streamed in order, for vqkit tokenize; to "
            "train on it, download it and take data.source=parquet or folder"
        )
