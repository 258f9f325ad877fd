"""MNIST, Fashion-MNIST and CIFAR-10 in their original formats, whole, damaged and hostile."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from vqkit.config import DataConfig
from vqkit.data import load_images
from vqkit.data.image_set import ArrayImages

RANDOM = np.random.default_rng(0)


def write_idx(path: Path, values: np.ndarray, extra: bytes = b"") -> None:
    data = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    data += values.astype(np.uint8).tobytes() + extra
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize(
    ("source", "folder", "ending"),
    [
        ("mnist", "", ""),
        ("mnist", "MNIST/raw", ".gz"),
        ("fashion_mnist", "FashionMNIST/raw", ".gz"),
        ("fashion_mnist", "", ""),
    ],
)
def test_idx_files(tmp_path, source, folder, ending):
    pictures = RANDOM.integers(0, 256, (4, 28, 28), dtype=np.uint8)
    write_idx(tmp_path / folder / f"t10k-images-idx3-ubyte{ending}", pictures)
    write_idx(tmp_path / folder / f"t10k-labels-idx1-ubyte{ending}", np.array([3, 1, 4, 1]))
    config = DataConfig(source=source, path=str(tmp_path), split="test", channels=1, limit=3)
    images = load_images(config)
    assert isinstance(images, ArrayImages)
    assert torch.equal(images.pixels, torch.from_numpy(pictures[:3, None]))
    assert images.labels is not None
    assert images.labels.tolist() == [3, 1, 4]


def test_idx_in_colour_and_resized(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", np.full((3, 28, 28), 77))
    images = load_images(DataConfig(source="mnist", path=str(tmp_path), resize=32))
    assert isinstance(images, ArrayImages)
    assert images.pixels.shape == (3, 3, 32, 32)
    assert bool((images.pixels == 77).all())
    assert images.labels is None


def test_idx_damage_is_named(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    config = DataConfig(source="mnist", path=str(tmp_path))
    write_idx(path, np.zeros((2, 28, 28)), extra=b"surplus")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte: holds more bytes"):
        load_images(config)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte: holds fewer bytes"):
        load_images(config)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte: is no readable idx file"):
        load_images(config)
    path.unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"x" * 99)[:-9])
    with pytest.raises(ValueError, match=r"ubyte\.gz: is no readable idx file"):
        load_images(config)


def test_idx_labels_must_match(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((2, 28, 28)))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(3))
    with pytest.raises(ValueError, match="3 labels for 2 images"):
        load_images(DataConfig(source="mnist", path=str(tmp_path)))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("mnist", r"train-images-idx3-ubyte .*MNIST/raw/"),
        ("cifar10", r"data_batch_1 .*batches-py/"),
    ],
)
def test_absent_originals_are_listed(tmp_path, source, expected):
    with pytest.raises(ValueError, match=rf"expected {expected}.*train\.parquet"):
        load_images(DataConfig(source=source, path=str(tmp_path)))


def python_two_batch(rows: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 and its numpy wrote the published ones: protocol 2, byte strings."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    raw = rows.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    )
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"K" + bytes([len(rows)]) + b"M" + struct.pack("<H", rows.shape[1]) + b"\x86"
    state = b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + state + text(b"labels") + listed + b"u."


def cifar_rows(count: int = 2) -> np.ndarray:
    return RANDOM.integers(0, 256, (count, 3072), dtype=np.uint8)


def test_hand_written_batch_is_a_real_pickle():
    rows = cifar_rows()
    content = pickle.loads(python_two_batch(rows, [1, 2]), encoding="bytes")
    assert np.array_equal(content[b"data"], rows)
    assert content[b"labels"] == [1, 2]


@pytest.mark.parametrize("form", ["published", "protocol 2", "protocol 4", "binary"])
def test_cifar_batches(tmp_path, form):
    rows = cifar_rows(10)
    labels = list(range(10))
    for part in range(5):
        two, names = rows[2 * part : 2 * part + 2], labels[2 * part : 2 * part + 2]
        path = tmp_path / "cifar-10-batches-py" / f"data_batch_{part + 1}"
        if form == "published":
            data = python_two_batch(two, names)
        elif form == "binary":
            path = tmp_path / f"data_batch_{part + 1}.bin"
            data = np.concatenate([np.array(names, np.uint8)[:, None], two], axis=1).tobytes()
        else:
            data = pickle.dumps({"data": two, "labels": names}, protocol=int(form[-1]))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    images = load_images(DataConfig(source="cifar10", path=str(tmp_path)))
    assert isinstance(images, ArrayImages)
    assert torch.equal(images.pixels, torch.from_numpy(rows.reshape(10, 3, 32, 32)))
    assert images.labels is not None
    assert images.labels.tolist() == labels


class Malicious:
    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_malicious_pickle_is_refused_without_running(tmp_path, protocol):
    mark = tmp_path / "ran"
    for bad in (Malicious(os.mkdir, str(mark)), Malicious(eval, f"open({str(mark)!r}, 'w')")):
        data = pickle.dumps({"data": bad, "labels": [0]}, protocol=protocol)
        (tmp_path / "test_batch").write_bytes(data)
        with pytest.raises(
            ValueError, match=r"test_batch: is no CIFAR-10 batch \(it asks for .*refused"
        ):
            load_images(DataConfig(source="cifar10", path=str(tmp_path), split="test"))
        assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"labels": [0]},
        {"data": [1], "labels": [0]},
        {"data": np.zeros((1, 3072), np.float32), "labels": [0]},
        {"data": np.zeros((1, 3000), np.uint8), "labels": [0]},
        {"data": np.asfortranarray(np.zeros((2, 3072), np.uint8)), "labels": [0, 0]},
        {"data": np.zeros((1, 3072), np.uint8), "labels": [11]},
        {"data": np.zeros((1, 3072), np.uint8), "labels": [0, 1]},
    ],
)
def test_other_pickles_are_refused(tmp_path, content):
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="test_batch"):
        load_images(DataConfig(source="cifar10", path=str(tmp_path), split="test"))


def test_cut_and_lacking_cifar_files(tmp_path):
    (tmp_path / "test_batch").write_bytes(python_two_batch(cifar_rows(), [1, 2])[:3000])
    with pytest.raises(ValueError, match="test_batch: is no CIFAR-10 batch"):
        load_images(DataConfig(source="cifar10", path=str(tmp_path), split="test"))
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3073))
    with pytest.raises(ValueError, match=r"data_batch_2\.bin, .* missing beside data_batch_1\.bin"):
        load_images(DataConfig(source="cifar10", path=str(tmp_path)))
    (tmp_path / "test_batch").unlink()
    (tmp_path / "test_batch.bin").write_bytes(bytes(3000))
    with pytest.raises(ValueError, match=r"test_batch\.bin: 3000 bytes"):
        load_images(DataConfig(source="cifar10", path=str(tmp_path), split="test"))
