"""A folder of image files, searched recursively, and the photographs inside two Python packages."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from vqkit.config import DataConfig
from vqkit.data.decoded import DecodedImages
from vqkit.data.decoding import EXTENSIONS
from vqkit.data.image_set import ImageSet, Listing

PARTS = {"train": ("train", "training"), "test": ("test", "val", "validation")}
"""Names under which a split may lie in a folder; the first that exists is taken."""

PHOTOS = {
    "train": (
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/coffee.png"),
        ("skimage", "data/hubble_deep_field.jpg"),
        ("skimage", "data/motorcycle_left.png"),
        ("skimage", "data/motorcycle_right.png"),
        ("skimage", "data/rocket.jpg"),
        ("sklearn", "datasets/images/china.jpg"),
    ),
    "test": (
        ("skimage", "data/chelsea.png"),
        ("sklearn", "datasets/images/flower.jpg"),
    ),
}
"""The colour photographs that scikit-image 0.26 and scikit-learn 1.9 carry in their wheels
(package and path inside it). Fixed, so that numbers stay comparable; none is ever downloaded."""


def load_folder(config: DataConfig) -> ImageSet:
    """Images below `config.path`/<split> if the folder has such parts, else below `config.path`.

    Files are told by their ending (`decoding.EXTENSIONS`) and sorted by path; hidden files and
    folders are passed over. With `config.files` it is the files that this list names, in its order.
    If every image lies in a subfolder, the first subfolder's name is its class.
    """
    root = _folder(config)
    if config.files is None:
        root = _part(config, root)
        names = _image_files(root)
    else:
        names = _listed(config.files, root)
    if not names:
        raise ValueError(
            f"data.path={config.path!r}: no image file in {root} or below it; put images there "
            f"({', '.join(sorted(EXTENSIONS))}), or use data.source=parquet for .parquet files"
        )
    names = names[: config.limit]
    labels, label_names = _classes(names)
    return _set_of_files(config, names, root, labels, label_names)


def load_photos(config: DataConfig) -> ImageSet:
    """The photographs of `PHOTOS` for `config.split`; a missing package is an `ImportError`."""
    files = [_inside(package, path) for package, path in PHOTOS[config.split]][: config.limit]
    listing = Listing(
        count=len(files),
        name=lambda i: files[i].name,
        files=lambda: ((file.name, file.stat().st_size) for file in files),
    )
    return DecodedImages(config, listing, files.__getitem__)


def _set_of_files(
    config: DataConfig,
    names: list[str],
    root: Path,
    labels: torch.Tensor | None,
    label_names: tuple[str, ...] | None,
) -> ImageSet:
    # Paths are put together when they are needed: a million of them would take half a gigabyte.
    start = os.path.abspath(root)
    listing = Listing(
        count=len(names),
        name=names.__getitem__,
        files=lambda: ((name, os.stat(os.path.join(start, name)).st_size) for name in names),
        labels=labels,
        label_names=label_names,
    )
    return DecodedImages(config, listing, lambda i: os.path.join(start, names[i]))


def existing(config: DataConfig) -> Path:
    """`config.path` as a `Path` that exists, or a `ValueError`."""
    path = Path(config.path or "").expanduser()
    if not path.exists():
        raise ValueError(
            f"data.path={config.path!r}: does not exist (seen from {Path.cwd()}); "
            "correct the path, or put the images there"
        )
    return path


def _folder(config: DataConfig) -> Path:
    root = existing(config)
    if not root.is_dir():
        raise ValueError(
            f"data.path={config.path!r}: is a file, and data.source='folder' reads a folder; "
            "name the folder, or use data.source=parquet"
        )
    return root


def _part(config: DataConfig, root: Path) -> Path:
    for name in PARTS[config.split]:
        if (root / name).is_dir():
            return root / name
    # Falling back to the whole folder here would test on what was trained on.
    others = [name for names in PARTS.values() for name in names if (root / name).is_dir()]
    if others:
        raise ValueError(
            f"data.split={config.split!r}: {config.path!r} holds {', '.join(others)}/ but neither "
            f"{' nor '.join(PARTS[config.split])}/; name the images' own folder in data.path"
        )
    return root


def _image_files(root: Path) -> list[str]:
    found: list[str] = []
    visited: set[str] = set()
    for place, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(place).relative_to(root).as_posix()
        found += (
            name if below == "." else f"{below}/{name}"
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
        )
    return sorted(found)


def _listed(files: str, root: Path) -> list[str]:
    """Read a list of files: one path a line, relative to `root` or below it; blank lines pass."""
    setting = f"data.files={files!r}"
    try:
        lines = Path(files).expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{setting}: cannot be read ({error}); name a text file with one path a line"
        ) from error
    names: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            continue
        name = os.path.relpath(name, root) if os.path.isabs(name) else os.path.normpath(name)
        if name.partition(os.sep)[0] == os.pardir:
            raise ValueError(
                f"{setting}: line {number} names {line.strip()!r}, which is not below {root}; "
                "write paths relative to data.path"
            )
        if name in names:
            raise ValueError(
                f"{setting}: line {number} names {name!r} a second time (first in line "
                f"{names[name]}); name every image once"
            )
        names[name] = number
    if not names:
        raise ValueError(f"{setting}: names no file; write one path a line")
    missing = [name for name in names if not os.path.isfile(os.path.join(root, name))]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(
            f"{setting}: {len(missing):,} of its {len(names):,} files are not in {root} ({shown}); "
            "unpack the data set there, or correct data.path or the list"
        )
    return list(names)


def _classes(names: Sequence[str]) -> tuple[torch.Tensor | None, tuple[str, ...] | None]:
    if not all("/" in name for name in names):
        return None, None
    first = [name.split("/", 1)[0] for name in names]
    label_names = tuple(sorted(set(first)))
    number = {name: i for i, name in enumerate(label_names)}
    return torch.tensor([number[name] for name in first], dtype=torch.int64), label_names


def _inside(package: str, path: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"data.source='photos': reads photographs inside {package}, which is not installed; "
            "pip install 'vqkit[demo]'"
        )
    file = Path(next(iter(spec.submodule_search_locations)), path)
    if not file.is_file():
        raise ValueError(
            f"data.source='photos': the installed {package} does not carry {path}; "
            "install scikit-image 0.26 and scikit-learn 1.9 or another version that does"
        )
    return file
