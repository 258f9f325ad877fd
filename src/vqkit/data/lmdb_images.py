"""LSUN's format: one LMDB of JPEG or WebP bytes for each category and split."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vqkit.config import DataConfig
from vqkit.data.decoded import DecodedImages
from vqkit.data.folder import existing
from vqkit.data.image_set import ImageSet, Listing
from vqkit.data.lmdb_file import LmdbFile, name_of
from vqkit.data.lmdb_keys import list_keys
from vqkit.data.memory import hold_small

_ENDINGS = {"train": ("train_lmdb",), "test": ("test_lmdb", "val_lmdb")}
_DATA = "data.mdb"


def load_lmdb(config: DataConfig) -> ImageSet:
    """Images of an LMDB, named by their keys and in the order of these.

    `config.path` is the database itself (a folder with `data.mdb`, or the file), whatever its
    split; or a folder that holds just one `*_train_lmdb`, and one `*_val_lmdb` for the test.
    """
    path = str(_data_file(config).absolute())
    keys, facts = list_keys(path, config.limit)
    if not keys:
        raise ValueError(f"data.path={config.path!r}: the LMDB is empty; name another one")

    facts.append((hashlib.sha256(keys.block).hexdigest(), len(keys)))
    listing = Listing(count=len(keys), name=lambda i: name_of(keys[i]), files=lambda: facts)
    return hold_small(DecodedImages(config, listing, keys.__getitem__, fetch=LmdbFile(path)))


def _data_file(config: DataConfig) -> Path:
    path = existing(config)
    if path.is_file():
        return path
    if (path / _DATA).is_file():
        return path / _DATA
    endings = _ENDINGS[config.split]
    for ending in endings:
        found = sorted(place for place in path.glob(f"*{ending}") if (place / _DATA).is_file())
        if len(found) == 1:
            return found[0] / _DATA
        if found:
            raise ValueError(
                f"data.path={config.path!r}: holds {', '.join(place.name for place in found)}; "
                "name the one that is meant"
            )
    raise ValueError(
        f"data.path={config.path!r}: holds neither {_DATA} nor a folder *_{' or *_'.join(endings)} "
        "with it; name the folder that the archive of the category unpacks to"
    )
