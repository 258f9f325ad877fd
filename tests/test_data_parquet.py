"""Parquet data sets of small, mixed and broken images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqkit.config import DataConfig
from vqkit.data import BatchStream, iterate_once, load_images
from vqkit.data.decoded import DecodedImages
from vqkit.data.image_set import ArrayImages

RANDOM = np.random.default_rng(0)


def png(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(path: Path, images: list[bytes | None], labels: list[int] | None = None) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array([{"bytes": b, "path": None} for b in images], kind)}
    if labels is not None:
        columns["label"] = pa.array(labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_parquet_of_small_images_becomes_one_array(tmp_path):
    pictures = RANDOM.integers(0, 256, (5, 6, 4), dtype=np.uint8)
    write_parquet(tmp_path / "data" / "train-0.parquet", [png(p) for p in pictures[:3]], [0, 1, 2])
    write_parquet(tmp_path / "data" / "train-1.parquet", [png(p) for p in pictures[3:]], [3, 4])
    images = load_images(DataConfig(source="parquet", path=str(tmp_path), channels=1, limit=4))
    assert isinstance(images, ArrayImages)
    assert torch.equal(images.pixels, torch.from_numpy(pictures[:4, None]))
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 2, 3]
    assert images.name(3) == "train-1.parquet[0]"


def test_parquet_of_mixed_sizes_is_decoded_on_demand(tmp_path):
    write_parquet(tmp_path / "x.parquet", [png(np.full((s, s), s, np.uint8)) for s in (4, 4, 6)])
    images = load_images(DataConfig(source="parquet", path=str(tmp_path / "x.parquet")))
    assert isinstance(images, DecodedImages)
    assert images.labels is None
    shapes = [tuple(batch.images.shape) for batch in iterate_once(images, 8)]
    assert shapes == [(2, 3, 4, 4), (1, 3, 6, 6)]
    with pytest.raises(ValueError, match=r"x\.parquet\[\d\] is \dx\d .*one size"):
        BatchStream(images, 3, seed=0).batch(0)


def test_parquet_broken_rows(tmp_path):
    good = [png(np.full((4, 4), v, np.uint8)) for v in (1, 2)]
    write_parquet(tmp_path / "x.parquet", [good[0], b"damaged", None, good[1]], [5, 6, 7, 8])
    path = str(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet\[1\]: is no readable image"):
        load_images(DataConfig(source="parquet", path=path))
    with pytest.warns(UserWarning, match="left out") as caught:
        images = load_images(DataConfig(source="parquet", path=path, on_broken="skip"))
    assert len(caught) == 1
    assert [images.name(i) for i in range(len(images))] == ["x.parquet[0]", "x.parquet[3]"]
    assert images.labels is not None
    assert images.labels.tolist() == [5, 8]
    assert [name for name, _ in images.skipped] == ["x.parquet[1]", "x.parquet[2]"]


def test_parquet_that_is_none_or_holds_no_images(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    with pytest.raises(ValueError, match=r"no train\*\.parquet there"):
        load_images(DataConfig(source="parquet", path=str(tmp_path)))
    (tmp_path / "train.parquet").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"train\.parquet'?: is no readable parquet file"):
        load_images(DataConfig(source="parquet", path=str(tmp_path)))
    pq.write_table(pa.table({"picture": [b"x"]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"no column 'image' .*columns: picture"):
        load_images(DataConfig(source="parquet", path=str(tmp_path)))


def test_originals_may_be_parquet(tmp_path):
    write_parquet(tmp_path / "test.parquet", [png(np.full((28, 28), 9, np.uint8))], [9])
    images = load_images(DataConfig(source="mnist", path=str(tmp_path), split="test", channels=1))
    assert images.image(0).unique().tolist() == [9]
