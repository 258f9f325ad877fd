"""WebDataset: .tar files in which members of one name make up a sample (image, class, caption).

Opening a set reads the headers of all members once, and the small class files; images and captions
are read where they lie in the tar when they are asked for, in any order. Needs no other package.
"""

from __future__ import annotations

import tarfile
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch

from vqkit.config import DataConfig
from vqkit.data.decoded import DecodedImages
from vqkit.data.decoding import EXTENSIONS
from vqkit.data.folder import existing
from vqkit.data.image_set import ImageSet, Listing
from vqkit.data.memory import hold_small

_PARTS = {"train": ("train",), "test": ("test", "val")}
_CLASS, _CAPTIONS = "cls", ("txt", "caption")
_NO_CLASS = -(2**62)

TarPlace: TypeAlias = tuple[str, int, int]
"""Tar file, offset and size in bytes."""


def load_webdataset(config: DataConfig) -> ImageSet:
    """Images of `config.path`: one .tar, whatever its split, or a folder of them.

    Of a folder these are the tars whose names begin with the split, or all of it if none begins
    with any. A sample is a run of members whose path is the same up to the first dot of its name;
    it has an image (endings as in `decoding.EXTENSIONS`), and may have a class (`cls`, a whole
    number) and a caption (`txt` or `caption`). Others are passed over.
    """
    path = existing(config)
    index = _Index()
    for file in [path] if path.is_file() else _tars(config, path):
        index.read(file, config.limit)
    if not index.names:
        raise ValueError(
            f"data.path={config.path!r}: no sample of its tars holds an image "
            f"({', '.join(sorted(EXTENSIONS))}); name tars in WebDataset's layout"
        )
    listing = Listing(
        count=len(index.names),
        name=index.names.__getitem__,
        files=lambda: ((file.name, file.stat().st_size) for file in index.files),
        caption=index.caption if any(size >= 0 for size in index.caption_sizes) else None,
        labels=index.labels(),
    )
    return hold_small(DecodedImages(config, listing, index.place, fetch=read_place))


def read_place(place: TarPlace) -> bytes:
    """Read one member of a tar."""
    name, offset, size = place
    with open(name, "rb") as file:
        file.seek(offset)
        return file.read(size)


def _tars(config: DataConfig, folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.tar"))
    for names in _PARTS.values():
        if any(file.name.startswith(names) for file in found):
            found = [file for file in found if file.name.startswith(_PARTS[config.split])]
            break
    if not found:
        packed = " (only packed ones: unpack .gz, which cannot be read from the middle)"
        raise ValueError(
            f"data.path={config.path!r}: no {config.split}*.tar there"
            f"{packed if any(folder.glob('*.tar.gz')) else ''}; name a .tar or a folder of them"
        )
    return found


@dataclass(slots=True)
class _Sample:
    name: str = ""
    image: tuple[int, int] | None = None
    label: int = _NO_CLASS
    caption: tuple[int, int] = (0, -1)


@dataclass(slots=True)
class _Index:
    """Where everything lies: a name and five numbers for every image."""

    files: list[Path] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    classes: array[int] = field(default_factory=lambda: array("q"))
    caption_offsets: array[int] = field(default_factory=lambda: array("q"))
    caption_sizes: array[int] = field(default_factory=lambda: array("q"))

    def read(self, file: Path, limit: int | None) -> None:
        """Add the samples of a tar, up to `limit` in all."""
        self.files.append(file)
        self.starts.append(len(self.names))
        sample, prefix = _Sample(), None
        try:
            with tarfile.open(file, "r:") as tar:
                while (member := tar.next()) is not None:
                    vars(tar)["members"].clear()  # else it keeps all of them
                    if not member.isfile():
                        continue
                    folder, slash, last = member.name.rpartition("/")
                    stem, _, ending = last.partition(".")
                    if prefix != (folder, stem):
                        self._add(sample, limit)
                        sample, prefix = _Sample(), (folder, stem)
                    place = member.offset_data, member.size
                    if f".{ending.lower()}" in EXTENSIONS and sample.image is None:
                        sample.name, sample.image = f"{file.name}/{folder}{slash}{last}", place
                    elif ending.lower() == _CLASS:
                        sample.label = _class(read_place((str(file), *place)), member.name)
                    elif ending.lower() in _CAPTIONS:
                        sample.caption = place
                    if limit is not None and len(self.names) >= limit:
                        return
            self._add(sample, limit)
        except (tarfile.TarError, OSError, ValueError) as error:
            raise ValueError(
                f"data.path={str(file)!r}: is no readable tar in WebDataset's layout ({error}); "
                "fetch it again"
            ) from error

    def _add(self, sample: _Sample, limit: int | None) -> None:
        if sample.image is None or (limit is not None and len(self.names) >= limit):
            return
        self.names.append(sample.name)
        for numbers, value in (
            (self.offsets, sample.image[0]),
            (self.sizes, sample.image[1]),
            (self.classes, sample.label),
            (self.caption_offsets, sample.caption[0]),
            (self.caption_sizes, sample.caption[1]),
        ):
            numbers.append(value)

    def _file(self, index: int) -> str:
        return str(self.files[bisect_right(self.starts, index) - 1])

    def place(self, index: int) -> TarPlace:
        """Return where image `index` lies."""
        return self._file(index), self.offsets[index], self.sizes[index]

    def caption(self, index: int) -> str | None:
        """Read the caption of image `index`."""
        size = self.caption_sizes[index]
        if size < 0:
            return None
        encoded = read_place((self._file(index), self.caption_offsets[index], size))
        return encoded.decode("utf-8", "replace").strip()

    def labels(self) -> torch.Tensor | None:
        """Return all classes, -1 for samples without; None if no sample has one."""
        found = torch.tensor(self.classes, dtype=torch.int64)
        without = found == _NO_CLASS
        return None if bool(without.all()) else found.masked_fill(without, -1)


def _class(encoded: bytes, name: str) -> int:
    try:
        return int(encoded)
    except ValueError:
        raise ValueError(f"{name} holds no whole number") from None
