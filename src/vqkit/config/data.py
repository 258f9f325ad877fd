"""Where images come from and how they are cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vqkit.config.core import check_choice, require

Source = Literal[
    "folder",
    "parquet",
    "lmdb",
    "webdataset",
    "huggingface",
    "mnist",
    "fashion_mnist",
    "cifar10",
    "photos",
]
Crop = Literal["none", "center", "random"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where images come from and how they are cut."""

    source: Source
    """`folder` (image files, searched recursively), `parquet` (Hugging Face image layout), `lmdb`
    (LSUN), `webdataset` (.tar files), `huggingface` (a data set of the hub, or a folder, streamed
    for `vqkit tokenize`), `mnist`, `fashion_mnist`, `cifar10` (original file formats, or parquet,
    in `path`), or `photos` (the photographs inside the scikit-image and scikit-learn wheels; no
    path)."""
    path: str | None = None
    """Folder or file, or of `huggingface` the name on the hub; needed by all but `photos`."""
    files: str | None = None
    """Text file that names the images of a `folder` to use, one path relative to it a line: the
    official list of a split."""
    split: Literal["train", "test"] = "train"
    """Which part of a data set that has parts; `photos` keeps fixed photographs for `test`."""
    channels: Literal[1, 3] = 3
    """Images are converted to grey (1) or colour (3)."""
    resize: int | None = None
    """Shorter side in pixels after an antialiased resize; None keeps the size."""
    stretch: bool = False
    """Resize both sides to `resize`, whatever the shape of the image (ADE20K in Dual's code)."""
    crop: Crop = "none"
    """`random` or `center` cut of `crop_size`; `none` keeps whole images (batches of one size)."""
    crop_size: int | None = None
    """Side of the square crop in pixels."""
    flip: bool = False
    """Mirror left to right at random."""
    crops_per_image: int = 1
    """How many random crops of every image make one epoch (small sets of large photographs)."""
    limit: int | None = None
    """Only the first so many images."""
    workers: int = 0
    """Processes that decode, resize and cut, for every training process; 0: threads inside it, one
    for every processor, at most 8. Sets that are held in memory need neither."""
    on_broken: Literal["fail", "skip"] = "fail"
    """What to do with a file that is no readable image: stop, or leave it out and say so."""

    def __post_init__(self) -> None:
        check_choice("data.source", self.source, Source)
        check_choice("data.crop", self.crop, Crop)
        require(
            bool(self.path) or (self.path is None and self.source == "photos"),
            f"data.path={self.path!r} with data.source={self.source!r}",
            "name the folder or file that holds the images",
        )
        require(
            self.path is None or self.source != "photos",
            f"data.path={self.path!r} with data.source='photos'",
            "these photographs are inside the wheels; leave the path out, or use 'folder'",
        )
        require(
            (self.crop == "none") == (self.crop_size is None),
            f"data.crop_size={self.crop_size} with data.crop={self.crop!r}",
            "a crop needs a size, and crop='none' takes none",
        )
        for name in ("resize", "crop_size", "limit", "crops_per_image"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"data.{name}={value}", "must be at least 1")
        require(
            self.files is None or self.source == "folder",
            f"data.files={self.files!r} with data.source={self.source!r}",
            "only a folder takes a list of its files",
        )
        require(
            not self.stretch or self.resize is not None,
            f"data.stretch={self.stretch} with data.resize={self.resize}",
            "give the side that images are stretched to",
        )
        require(self.workers >= 0, f"data.workers={self.workers}", "must not be negative")
        require(
            self.crops_per_image == 1 or self.crop == "random",
            f"data.crops_per_image={self.crops_per_image} with data.crop={self.crop!r}",
            "several crops of one image differ only with crop='random'",
        )
