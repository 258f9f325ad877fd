"""Batches as a pure function of (seed, step): resume, ranks, epochs, crops, and clean shutdown."""

from __future__ import annotations

import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from vqkit.config import DataConfig
from vqkit.data import BatchStream, ImageSet, decoded, iterate_once, load_images
from vqkit.data.workers import ordered

PINNED_ORDER = [5, 0, 3, 9]
PINNED_CORNERS = [115, 35, 83, 180]


@pytest.fixture(params=["array", "folder"])
def images(request, tmp_path) -> ImageSet:
    """Eleven 10x12 images whose pixels tell (image, row, column); random crops of 6 and flips."""
    rows, columns = np.indices((10, 12))
    settings = {"channels": 1, "crop": "random", "crop_size": 6, "flip": True, "crops_per_image": 2}
    pixels = [(16 * number + rows + 7 * columns).astype(np.uint8) for number in range(11)]
    if request.param == "array":
        data = (
            bytes((0, 0, 8, 3, 0, 0, 0, 11, 0, 0, 0, 10, 0, 0, 0, 12)) + np.stack(pixels).tobytes()
        )
        (tmp_path / "train-images-idx3-ubyte").write_bytes(data)
        return load_images(DataConfig(source="mnist", path=str(tmp_path), **settings))
    for number, values in enumerate(pixels):
        Image.fromarray(values).save(tmp_path / f"{number:02}.png")
    return load_images(DataConfig(source="folder", path=str(tmp_path), **settings))


def test_resumed_stream_is_bitwise_the_same(images):
    whole = list(islice(BatchStream(images, 4, seed=3).iterate(), 13))
    for start in (0, 4, 5, 9):  # an epoch has 5 batches: before, at and after its end
        resumed = BatchStream(images, 4, seed=3).iterate(start)
        for expected, batch in zip(whole[start:], resumed, strict=False):
            assert batch.keys == expected.keys
            assert torch.equal(batch.images, expected.images)
        resumed.close()


def test_batches_asked_for_in_any_order_agree(images):
    stream, other = (BatchStream(images, 4, seed=3) for _ in range(2))
    forward = {step: stream.batch(step).images for step in range(12)}
    for step in (11, 2, 7, 0, 11):
        assert torch.equal(other.batch(step).images, forward[step])


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_one_global_batch(images, world_size):
    for step in (0, 6):
        whole = BatchStream(images, 8, seed=1).batch(step)
        parts = [
            BatchStream(images, 8, seed=1, rank=rank, world_size=world_size).batch(step)
            for rank in range(world_size)
        ]
        assert [key for part in parts for key in part.keys] == whole.keys
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


def test_an_epoch_has_every_image_equally_often(images):
    stream = BatchStream(images, 2, seed=5)
    assert stream.batches_per_epoch == 11
    epochs = [
        [key for step in range(11) for key in stream.batch(11 * e + step).keys] for e in (0, 1)
    ]
    names = [images.name(i) for i in range(11)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(names * 2)
    assert epochs[0] != epochs[1]
    assert BatchStream(images, 22, seed=6).batch(0).keys != epochs[0]


def test_batch_size_does_not_change_an_epochs_images(images):
    small, large = (BatchStream(images, size, seed=5) for size in (2, 11))
    expected = torch.cat([large.batch(0).images, large.batch(1).images])
    assert torch.equal(torch.cat([small.batch(step).images for step in range(11)]), expected)


def test_crops_are_cut_from_their_image_and_reach_everywhere(images):
    stream = BatchStream(images, 22, seed=2)
    corners, mirrored = set(), set()
    for step in range(30):
        batch = stream.batch(step)
        for cut, key in zip(batch.images, batch.keys, strict=True):
            number = next(i for i in range(11) if images.name(i) == key)
            places = [
                (top, left, flip)
                for top in range(5)
                for left in range(7)
                for flip in (False, True)
                if torch.equal(
                    cut.flip(-1) if flip else cut,
                    images.image(number)[:, top : top + 6, left : left + 6],
                )
            ]
            assert len(places) == 1
            corners.add(places[0][:2])
            mirrored.add(places[0][2])
    assert len(corners) == 35  # 660 draws over 35 places
    assert mirrored == {False, True}


def test_order_and_crops_are_pinned(images):
    """A changed draw would silently change every resumed run; NumPy fixes Philox's raw words."""
    batch = BatchStream(images, 4, seed=7).batch(6)
    number = {images.name(i): i for i in range(11)}
    assert [number[key] for key in batch.keys] == PINNED_ORDER
    assert batch.images[:, 0, 0, 0].tolist() == PINNED_CORNERS


def test_iterate_once_gives_all_in_order_and_whole(images):
    batches = list(iterate_once(images, 4))
    assert [len(batch.keys) for batch in batches] == [4, 4, 3]
    assert [key for batch in batches for key in batch.keys] == [images.name(i) for i in range(11)]
    whole = torch.cat([batch.images for batch in batches])
    assert torch.equal(whole, torch.stack([images.image(i) for i in range(11)]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 23}, r"batch_size=23: an epoch has only 22 images \(11 x"),
        ({"batch_size": 6, "world_size": 4}, "multiple of world_size=4"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank=2"),
        ({"batch_size": 4, "seed": -1}, "seed=-1"),
    ],
)
def test_wrong_arguments(images, arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchStream(images, **{"seed": 0} | arguments)
    with pytest.raises(ValueError, match="step=-1"):
        BatchStream(images, 4, seed=0).batch(-1)
    with pytest.raises(ValueError, match="batch_size=0"):
        next(iterate_once(images, 0))


def test_a_full_cache_changes_nothing(images, monkeypatch):
    expected = [BatchStream(images, 4, seed=0).batch(step).images for step in range(6)]
    monkeypatch.setattr(decoded, "CACHE_BYTES", 300)
    again = load_images(images.config)
    for _ in range(2):
        stream = BatchStream(again, 4, seed=0)
        assert all(torch.equal(stream.batch(step).images, expected[step]) for step in range(6))
    if isinstance(again, decoded.DecodedImages):
        assert again._cached_bytes == 240  # two images of 120 bytes


def data_threads() -> int:
    return sum(thread.name.startswith("vqkit-data") for thread in threading.enumerate())


def test_closing_stops_the_threads(images):
    stream = BatchStream(images, 4, seed=0).iterate()
    next(stream)
    assert data_threads() > 0
    stream.close()
    assert data_threads() == 0


def test_interrupt_in_the_consumer_stops_the_threads():
    def consume():
        for number in ordered(lambda x: x, range(100), workers=2, ahead=4):
            if number == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert data_threads() == 0


def test_ordered_keeps_order_bounds_and_raises_in_place():
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.002 * (number % 3))
        if number == 7:
            raise ValueError("seven")
        return number

    got: list[int] = []

    def consume() -> None:
        for number in ordered(work, range(100), workers=3, ahead=4):
            got.append(number)
            assert max(begun) <= number + 5

    with pytest.raises(ValueError, match="seven"):
        consume()
    assert got == list(range(7))
    assert max(begun) <= 11
    assert data_threads() == 0
