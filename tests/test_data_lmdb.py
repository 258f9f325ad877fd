"""LSUN's databases: keys, splits, worker processes, damage, and a kept list of keys."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqkit.config import DataConfig
from vqkit.data import BatchStream, iterate_once, lmdb_keys, load_images
from vqkit.data.lmdb_file import LmdbFile
from vqkit.data.lmdb_keys import list_keys

RANDOM = np.random.default_rng(0)


def encoded(kind: str, size: tuple[int, int] = (150, 140)) -> bytes:
    stream = io.BytesIO()
    pixels = RANDOM.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write(place: Path, items: dict[str, bytes]) -> Path:
    lmdb = pytest.importorskip("lmdb")
    place.mkdir(parents=True, exist_ok=True)
    with (
        lmdb.open(str(place), map_size=1 << 24) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in items.items():
            transaction.put(key.encode(), value)
    return place


@pytest.fixture
def items() -> dict[str, bytes]:
    """Nine JPEG or WebP images under keys as LSUN has them."""
    kinds = ("JPEG", "WEBP")
    return {hashlib.sha1(bytes([n])).hexdigest(): encoded(kinds[n % 2]) for n in range(9)}


@pytest.fixture
def church(tmp_path, items) -> Path:
    """A folder with the training and the validation part of one category."""
    write(tmp_path / "lsun" / "church_outdoor_train_lmdb", items)
    write(tmp_path / "lsun" / "church_outdoor_val_lmdb", {"0a": encoded("WEBP")})
    return tmp_path / "lsun"


def config(path: Path, **settings) -> DataConfig:
    return DataConfig(source="lmdb", path=str(path), **settings)


def test_images_come_in_the_order_of_their_keys(church, items):
    images = load_images(config(church))
    assert [images.name(i) for i in range(len(images))] == sorted(items)
    for number, key in enumerate(sorted(items)):
        pixels = np.asarray(Image.open(io.BytesIO(items[key])).convert("RGB"))
        assert np.array_equal(images.image(number).permute(1, 2, 0).numpy(), pixels)
    assert images.labels is None
    assert len(load_images(config(church, limit=2))) == 2


def test_splits_and_names_of_a_database(church, tmp_path):
    train = church / "church_outdoor_train_lmdb"
    assert len(load_images(config(church, split="test"))) == 1
    assert len(load_images(config(train, split="test"))) == 9
    assert len(load_images(config(train / "data.mdb"))) == 9
    write(church / "bedroom_train_lmdb", {"0b": encoded("JPEG")})
    with pytest.raises(ValueError, match="holds bedroom_train_lmdb, church_outdoor_train_lmdb; na"):
        load_images(config(church))
    with pytest.raises(ValueError, match=r"neither data\.mdb nor a folder \*_train_lmdb"):
        load_images(config(tmp_path))


def test_two_sets_of_one_database_and_threads(church):
    cut = {"crop": "random", "crop_size": 128, "flip": True}
    first, second = (load_images(config(church, **cut)) for _ in range(2))
    batches = BatchStream(first, 4, seed=0).iterate()
    for step, batch in zip(range(3), batches, strict=False):
        assert torch.equal(batch.images, BatchStream(second, 4, seed=0).batch(step).images)
    batches.close()


def test_worker_processes_open_it_for_themselves(church):
    expected = list(iterate_once(load_images(config(church)), 2))
    for found, batch in zip(
        iterate_once(load_images(config(church, workers=2)), 2), expected, strict=True
    ):
        assert found.keys == batch.keys
        assert torch.equal(found.images, batch.images)
    file = LmdbFile(str(church / "church_outdoor_train_lmdb" / "data.mdb"))
    assert len(pickle.dumps(file)) < 300


def test_nothing_is_written_beside_it(church):
    train = church / "church_outdoor_train_lmdb"
    (train / "lock.mdb").unlink()
    load_images(config(church)).image(0)
    assert [path.name for path in train.iterdir()] == ["data.mdb"]


def test_the_fingerprint_follows_the_content_not_the_place(church, items, tmp_path):
    train = church / "church_outdoor_train_lmdb"
    before = load_images(config(train)).fingerprint()
    copy = tmp_path / "copy.mdb"
    copy.write_bytes((train / "data.mdb").read_bytes())
    assert load_images(config(copy)).fingerprint() == before
    assert load_images(config(copy, limit=8)).fingerprint() != before
    write(train, {sorted(items)[0]: encoded("WEBP")})
    assert load_images(config(train)).fingerprint() != before


def test_broken_values_are_named_or_left_out(church, items):
    key = sorted(items)[3]
    write(church / "church_outdoor_train_lmdb", {key: b"damaged"})
    with pytest.raises(ValueError, match=f"^{key}: is no readable image"):
        list(iterate_once(load_images(config(church)), 4))
    images = load_images(config(church, on_broken="skip"))
    with pytest.warns(UserWarning, match="left out"):
        batches = list(iterate_once(images, 16))
    assert [len(batch.keys) for batch in batches] == [8]


def test_a_key_that_went_away_is_named(church, items):
    lmdb = pytest.importorskip("lmdb")
    train = church / "church_outdoor_train_lmdb"
    copy = church / "copy.mdb"
    copy.write_bytes((train / "data.mdb").read_bytes())
    key = sorted(items)[0]
    with (
        lmdb.open(str(copy), subdir=False, map_size=1 << 24) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.delete(key.encode())
    with pytest.raises(ValueError, match=f"{key}: .*holds this key no more"):
        LmdbFile(str(copy))(key.encode())


def test_damaged_files_are_refused_before_they_kill_the_process(church, tmp_path):
    data = (church / "church_outdoor_train_lmdb" / "data.mdb").read_bytes()
    for name, content, message in (
        ("cut.mdb", data[: len(data) // 2], "is cut short, .* bytes; download or unpack"),
        ("text.mdb", b"no database" * 2000, r"cannot be opened as an LMDB \(.*INVALID"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_images(config(tmp_path / name))
    write(tmp_path / "empty", {})
    with pytest.raises(ValueError, match="the LMDB is empty"):
        load_images(config(tmp_path / "empty"))


def test_the_missing_package_is_named_with_its_extra(church, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with pytest.raises(ImportError, match=r"not installed; pip install 'vqkit\[lsun\]'"):
        load_images(config(church))


def test_a_slow_list_of_keys_is_kept_while_the_database_is_the_same(church, items, monkeypatch):
    monkeypatch.setattr(lmdb_keys, "SLOW_SECONDS", 0.0)
    path = church / "church_outdoor_train_lmdb" / "data.mdb"
    kept = path.with_name("data.mdb.vqkit-keys")
    list_keys(str(path), 3)
    assert not kept.exists(), "a part of the keys is no list of them"
    keys, facts = list_keys(str(path), None)
    names = [key.encode() for key in sorted(items)]
    assert list(keys) == names
    assert kept.exists()
    moved = kept.stat().st_mtime_ns
    monkeypatch.setattr(lmdb_keys, "array", None)  # listing again would fail
    assert list_keys(str(path), None)[0][:] == names
    assert list(list_keys(str(path), 4)[0]) == names[:4]
    assert list_keys(str(path), 4)[1] == facts
    monkeypatch.undo()
    kept.write_bytes(kept.read_bytes()[:-40])
    assert list(list_keys(str(path), None)[0]) == names
    write(path.parent, {"ff" * 20: b""})
    assert len(list_keys(str(path), None)[0]) == 10
    assert kept.stat().st_mtime_ns != moved
    with pytest.raises(IndexError):
        keys[9]


def test_a_folder_that_cannot_be_written_to_keeps_no_list(church, monkeypatch):
    monkeypatch.setattr(lmdb_keys, "SLOW_SECONDS", 0.0)

    def refused(*arguments, **options):
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "open", refused)
    path = church / "church_outdoor_train_lmdb" / "data.mdb"
    assert len(list_keys(str(path), None)[0]) == 9
    assert sorted(place.name for place in path.parent.iterdir()) == ["data.mdb", "lock.mdb"]
