"""Folders of image files, what happens to broken ones, and the photographs inside wheels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from vqkit.config import DataConfig
from vqkit.data import BatchStream, iterate_once, load_images
from vqkit.data.folder import PHOTOS


def save(path: Path, value: int, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


def test_folder_sorts_labels_and_passes_over_other_files(tmp_path):
    save(tmp_path / "b" / "2.png", 20)
    save(tmp_path / "a" / "deep" / "1.PNG", 10)
    save(tmp_path / ".hidden" / "3.png", 30)
    save(tmp_path / "b" / "._2.png", 40)
    (tmp_path / "notes.txt").write_text("no image")
    images = load_images(DataConfig(source="folder", path=str(tmp_path), channels=1))
    assert [images.name(i) for i in range(len(images))] == ["a/deep/1.PNG", "b/2.png"]
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1]
    assert images.label_names == ("a", "b")
    assert [int(images.image(i)[0, 0, 0]) for i in range(2)] == [10, 20]
    with pytest.raises(IndexError):
        images.image(2)


def test_folder_follows_links_but_not_in_circles(tmp_path):
    save(tmp_path / "far" / "1.png", 1)
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "far", tmp_path / "set" / "link")
    os.symlink(tmp_path / "set", tmp_path / "far" / "back")
    images = load_images(DataConfig(source="folder", path=str(tmp_path / "set")))
    assert [images.name(i) for i in range(len(images))] == ["link/1.png"]


@pytest.mark.parametrize(("split", "value"), [("train", 1), ("test", 2)])
def test_folder_takes_its_split(tmp_path, split, value):
    save(tmp_path / "train" / "x.png", 1)
    save(tmp_path / "val" / "x.png", 2)
    images = load_images(DataConfig(source="folder", path=str(tmp_path), split=split))
    assert int(images.image(0)[0, 0, 0]) == value
    assert images.labels is None


def test_folder_never_tests_on_the_training_part(tmp_path):
    save(tmp_path / "train" / "x.png", 1)
    with pytest.raises(
        ValueError, match=r"data\.split='test': .* holds train/ but neither test nor val"
    ):
        load_images(DataConfig(source="folder", path=str(tmp_path), split="test"))


def test_empty_missing_and_wrong_paths_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no image file in .*below it; put images there"):
        load_images(DataConfig(source="folder", path=str(tmp_path)))
    for source in ("folder", "parquet", "mnist", "cifar10"):
        with pytest.raises(ValueError, match=r"data\.path='.*absent': does not exist"):
            load_images(DataConfig(source=source, path=str(tmp_path / "absent")))
    with pytest.raises(ValueError, match="is a file"):
        load_images(DataConfig(source="folder", path=str(save(tmp_path / "x.png", 1))))


def broken_folder(tmp_path: Path) -> str:
    for number in (0, 2, 4):
        save(tmp_path / f"{number}.png", 10 * number)
    (tmp_path / "1.png").write_bytes(b"damaged")
    (tmp_path / "3.png").write_bytes((tmp_path / "4.png").read_bytes()[:40])
    return str(tmp_path)


def test_broken_file_fails_by_name(tmp_path):
    images = load_images(DataConfig(source="folder", path=broken_folder(tmp_path)))
    with pytest.raises(ValueError, match=r"1\.png: is no readable image \(unknown or damaged"):
        list(iterate_once(images, 2))
    with pytest.raises(ValueError, match=r"[13]\.png: is no readable image"):
        BatchStream(images, 5, seed=0).batch(0)


def test_broken_files_are_skipped_with_one_warning_and_without_history(tmp_path):
    config = DataConfig(source="folder", path=broken_folder(tmp_path), on_broken="skip")
    images = load_images(config)
    with pytest.warns(UserWarning, match="left out") as caught:
        batches = list(iterate_once(images, 2))
    assert len(caught) == 1
    assert [batch.keys for batch in batches] == [["0.png", "2.png"], ["4.png"]]
    assert [name for name, _ in images.skipped] == ["1.png", "3.png"]
    # The next readable image stands in, whatever was read before.
    known = BatchStream(images, 5, seed=0).batch(3)
    with pytest.warns(UserWarning, match="left out"):
        fresh = BatchStream(load_images(config), 5, seed=0).batch(3)
    assert sorted(fresh.keys) == ["0.png", "2.png", "2.png", "4.png", "4.png"]
    assert fresh.keys == known.keys
    assert torch.equal(fresh.images, known.images)


def test_a_folder_without_one_readable_image(tmp_path):
    (tmp_path / "1.png").write_bytes(b"damaged")
    config = DataConfig(source="folder", path=str(tmp_path), on_broken="skip")
    for use in (lambda s: list(iterate_once(s, 1)), lambda s: BatchStream(s, 1, seed=0).batch(0)):
        with (
            pytest.warns(UserWarning, match="left out"),
            pytest.raises(ValueError, match=r"none of 1 images can be read \(first: 1\.png"),
        ):
            use(load_images(config))


def test_resize_and_centre_crop(tmp_path):
    save(tmp_path / "x.png", 9, (30, 20))
    path = str(tmp_path)
    images = load_images(
        DataConfig(source="folder", path=path, resize=10, crop="center", crop_size=8)
    )
    assert images.image(0).shape == (3, 8, 8)
    assert load_images(DataConfig(source="folder", path=path, resize=10)).image(0).shape == (
        3,
        10,
        15,
    )


@pytest.mark.parametrize("crop", ["random", "center"])
def test_image_smaller_than_the_crop(tmp_path, crop):
    save(tmp_path / "x.png", 9, (30, 20))
    images = load_images(
        DataConfig(source="folder", path=str(tmp_path), crop=crop, crop_size=24, on_broken="skip")
    )
    with pytest.raises(ValueError, match=r"data\.crop_size=24: x\.png is only 30x20 .*resize=24"):
        BatchStream(images, 1, seed=0).batch(0)


def test_crop_above_resize_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"crop_size=9: is larger than data\.resize=8"):
        load_images(
            DataConfig(source="folder", path=str(tmp_path), resize=8, crop="random", crop_size=9)
        )


def test_fingerprint_follows_content_and_settings_not_the_place(tmp_path):
    for place in ("here", "there"):
        save(tmp_path / place / "x.png", 5)
    here = DataConfig(source="folder", path=str(tmp_path / "here"))
    there = DataConfig(source="folder", path=str(tmp_path / "there"))
    first = load_images(here).fingerprint()
    assert load_images(there).fingerprint() == first
    changed = DataConfig(source="folder", path=str(tmp_path / "here"), resize=4)
    assert load_images(changed).fingerprint() != first
    save(tmp_path / "here" / "y.png", 5)
    assert load_images(here).fingerprint() != first


def test_photos_are_fixed_and_held_out():
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    test = load_images(DataConfig(source="photos", split="test"))
    assert [test.name(i) for i in range(len(test))] == ["chelsea.png", "flower.jpg"]
    assert test.image(0).shape == (3, 300, 451)
    train = load_images(DataConfig(source="photos"))
    names = {train.name(i) for i in range(len(train))}
    assert {"astronaut.png", "coffee.png", "rocket.jpg", "china.jpg"} < names
    assert not set(PHOTOS["train"]) & set(PHOTOS["test"])
    assert len(train) == len(names) == len(train.fingerprint()) - 57


def test_photos_without_the_packages(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"skimage, which is not installed; pip install 'vqkit\[demo\]'"
    ):
        load_images(DataConfig(source="photos"))
