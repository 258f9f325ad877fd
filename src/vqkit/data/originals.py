"""MNIST, Fashion-MNIST and CIFAR-10 in the file formats in which their authors publish them."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from vqkit.config import DataConfig
from vqkit.data.cifar_pickle import read_cifar_pickle
from vqkit.data.folder import existing
from vqkit.data.image_set import ImageSet, Listing
from vqkit.data.memory import from_pixels
from vqkit.data.parquet import find_parquet, read_parquet

Pixels = npt.NDArray[np.uint8]

_IDX_FOLDERS = {
    "mnist": ("", "MNIST/raw", "raw"),
    "fashion_mnist": ("", "FashionMNIST/raw", "raw"),
}
_IDX_STEMS = {"train": "train", "test": "t10k"}
_CIFAR_FOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin")
_CIFAR_FILES = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}
_CIFAR_ROW = 1 + 3 * 32 * 32


def load_original(config: DataConfig) -> ImageSet:
    """`mnist`, `fashion_mnist` or `cifar10` from `config.path`: original files, or <split>.parquet.

    The folder itself and the subfolders that torchvision and the archives make are searched.
    Missing files are a `ValueError` that says which ones are expected.
    """
    path = existing(config)
    if path.is_file() and path.suffix == ".parquet":
        return read_parquet(config, [path])
    if not path.is_dir():
        raise ValueError(
            f"data.path={config.path!r}: is no folder; name the folder that holds "
            f"{_expected(config)}"
        )
    found = _find_cifar(config, path) if config.source == "cifar10" else _find_idx(config, path)
    if not found:
        files = find_parquet(path, config.split)
        if files:
            return read_parquet(config, files)
        raise ValueError(
            f"data.path={config.path!r}: expected {_expected(config)}, in that folder or in "
            f"{_usual(config)}; download and unpack the data set there (vqkit downloads nothing)"
        )
    pixels, labels = _read_cifar(found) if config.source == "cifar10" else _read_idx_pair(found)
    pixels = pixels[: config.limit]
    listing = Listing(
        count=len(pixels),
        name=lambda i: f"{config.split}[{i}]",
        files=lambda: ((file.name, file.stat().st_size) for file in found),
        labels=None if labels is None else torch.from_numpy(labels[: len(pixels)].astype(np.int64)),
    )
    return from_pixels(config, listing, torch.from_numpy(pixels))


def read_idx(path: Path, ndim: int) -> Pixels:
    """Read one idx-ubyte file, plain or .gz, as a uint8 array of `ndim` axes.

    Layout (LeCun's MNIST page): two zero bytes, type 0x08, number of axes, big-endian sizes, then
    the values. A wrong magic number, missing or surplus bytes are a `ValueError` naming the file.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            header = stream.read(4 + 4 * ndim)
            if len(header) < 4 + 4 * ndim or header[:4] != bytes((0, 0, 8, ndim)):
                raise ValueError(f"does not begin as an idx file of {ndim} axes of bytes")
            shape = tuple(int(size) for size in np.frombuffer(header[4:], dtype=">u4"))
            expected = int(np.prod(shape, dtype=object))
            # One byte more than declared shows a surplus without unpacking a hostile .gz.
            values = stream.read(expected + 1)
    except (OSError, EOFError, zlib.error, OverflowError, MemoryError, ValueError) as error:
        raise ValueError(
            f"{path.name}: is no readable idx file ({error}); fetch it again"
        ) from error
    if len(values) != expected or 0 in shape:
        relation = "more" if len(values) > expected else "fewer"
        raise ValueError(
            f"{path.name}: holds {relation} bytes than its header {shape} says; fetch it again"
        )
    return np.frombuffer(bytearray(values), dtype=np.uint8).reshape(shape)


def _find_idx(config: DataConfig, root: Path) -> list[Path]:
    stem = _IDX_STEMS[config.split]
    for folder in _IDX_FOLDERS[config.source]:
        images = _first(root / folder, f"{stem}-images", "idx3-ubyte")
        if images is not None:
            labels = _first(root / folder, f"{stem}-labels", "idx1-ubyte")
            return [images] if labels is None else [images, labels]
    return []


def _first(folder: Path, stem: str, kind: str) -> Path | None:
    # Some unpackers write a dot for the dash before "idx".
    names = [f"{stem}{joint}{kind}{ending}" for ending in ("", ".gz") for joint in ("-", ".")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_idx_pair(files: list[Path]) -> tuple[Pixels, Pixels | None]:
    pixels = read_idx(files[0], 3)[:, None]
    if len(files) == 1:
        return pixels, None
    labels = read_idx(files[1], 1)
    if len(labels) != len(pixels):
        raise ValueError(
            f"{files[1].name}: {len(labels)} labels for {len(pixels)} images of {files[0].name}; "
            "take both files from the same data set"
        )
    return pixels, labels


def _find_cifar(config: DataConfig, root: Path) -> list[Path]:
    for folder in _CIFAR_FOLDERS:
        for ending in ("", ".bin"):
            files = [root / folder / (name + ending) for name in _CIFAR_FILES[config.split]]
            missing = [file.name for file in files if not file.is_file()]
            if not missing:
                return files
            if len(missing) < len(files):
                raise ValueError(
                    f"data.path={config.path!r}: {', '.join(missing)} missing beside "
                    f"{next(file.name for file in files if file.is_file())}; "
                    "unpack the archive again"
                )
    return []


def _read_cifar(files: list[Path]) -> tuple[Pixels, Pixels]:
    parts = [_read_cifar_binary(f) if f.suffix == ".bin" else read_cifar_pickle(f) for f in files]
    for file, (pixels, labels) in zip(files, parts, strict=True):
        if len(pixels) != len(labels):
            raise ValueError(
                f"{file.name}: {len(labels)} labels for {len(pixels)} images; fetch it again"
            )
    rows = np.concatenate([pixels for pixels, _ in parts])
    return rows.reshape(-1, 3, 32, 32), np.concatenate([labels for _, labels in parts])


def _read_cifar_binary(path: Path) -> tuple[Pixels, Pixels]:
    size = path.stat().st_size
    if size == 0 or size % _CIFAR_ROW:
        raise ValueError(
            f"{path.name}: {size} bytes are no whole number of CIFAR-10 rows of {_CIFAR_ROW}; "
            "fetch it again"
        )
    rows = np.fromfile(path, dtype=np.uint8).reshape(-1, _CIFAR_ROW)
    return rows[:, 1:], rows[:, 0]


def _expected(config: DataConfig) -> str:
    if config.source == "cifar10":
        names = _CIFAR_FILES[config.split]
        span = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"
        return f"{span} (python version) or the same with .bin (binary version)"
    stem = _IDX_STEMS[config.split]
    return f"{stem}-images-idx3-ubyte and {stem}-labels-idx1-ubyte (plain or .gz)"


def _usual(config: DataConfig) -> str:
    folders = _CIFAR_FOLDERS if config.source == "cifar10" else _IDX_FOLDERS[config.source]
    return f"{', '.join(f'{name}/' for name in folders if name)}, or {config.split}.parquet"
