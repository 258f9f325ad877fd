"""One door to every source of images."""

from __future__ import annotations

from collections.abc import Callable

from vqkit.config import DataConfig, Source
from vqkit.data.folder import load_folder, load_photos
from vqkit.data.image_set import ImageSet
from vqkit.data.lmdb_images import load_lmdb
from vqkit.data.originals import load_original
from vqkit.data.parquet import load_parquet
from vqkit.data.streamed import load_streamed
from vqkit.data.webdataset import load_webdataset

LOADERS: dict[Source, Callable[[DataConfig], ImageSet]] = {
    "folder": load_folder,
    "parquet": load_parquet,
    "lmdb": load_lmdb,
    "webdataset": load_webdataset,
    "huggingface": load_streamed,
    "mnist": load_original,
    "fashion_mnist": load_original,
    "cifar10": load_original,
    "photos": load_photos,
}


def load_images(config: DataConfig) -> ImageSet:
    """Open the images that `config` describes.

    Small images of one size are decoded now and kept as one uint8 array; files of a folder and
    large images are decoded when they are first used. A missing path, an empty folder, absent files
    of a known data set, or a crop larger than `resize` are a `ValueError` that names them; a
    missing optional package is an `ImportError` that names the extra to install.
    """
    if (
        config.resize is not None
        and config.crop_size is not None
        and config.crop_size > config.resize
    ):
        raise ValueError(
            f"data.crop_size={config.crop_size}: is larger than data.resize={config.resize}, the "
            "shorter side that images are given; lower it or raise data.resize"
        )
    return LOADERS[config.source](config)
