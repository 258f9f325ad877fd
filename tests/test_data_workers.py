"""Worker processes: the bits of threads, errors in their place, and nothing left behind."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqkit.config import DataConfig
from vqkit.data import BatchStream, BrokenImageError, decoder_pool, iterate_once, load_images
from vqkit.data.decoder_pool import DecoderPool
from vqkit.data.preparing import Preparation, Task
from vqkit.data.share import Share

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(0)
CUT = {"resize": 20, "crop": "random", "crop_size": 16, "flip": True}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Thirteen JPEG files of noise, 24 to 36 pixels high and 30 wide."""
    place = tmp_path / "images"
    place.mkdir()
    for number in range(13):
        pixels = RANDOM.integers(0, 256, (24 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02}.jpg", quality=90)
    return place


@pytest.fixture
def started(monkeypatch) -> list[subprocess.Popen]:
    """The worker processes that a test starts."""
    processes: list[subprocess.Popen] = []
    start = subprocess.Popen

    def recording(*arguments, **options):
        processes.append(start(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(decoder_pool.subprocess, "Popen", recording)
    return processes


def images_of(folder: Path, workers: int, **settings):
    return load_images(DataConfig(source="folder", path=str(folder), workers=workers, **settings))


def gone(pid: int) -> bool:
    """Whether there is no such process, not even a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def assert_same(batches, others) -> None:
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys == other.keys
        assert torch.equal(batch.images, other.images)


def test_any_number_of_processes_gives_the_batches_of_threads_also_after_a_resume(folder):
    expected = list(islice(BatchStream(images_of(folder, 0, **CUT), 4, seed=3).iterate(), 8))
    for workers, start in ((2, 0), (1, 5)):  # an epoch has 3 batches
        batches = BatchStream(images_of(folder, workers, **CUT), 4, seed=3).iterate(start)
        assert_same(expected[start:], list(islice(batches, 8 - start)))
        batches.close()


def test_ranks_share_one_global_batch_without_duplicates(folder):
    whole = BatchStream(images_of(folder, 0, **CUT), 6, seed=1).batch(0)
    parts = []
    for rank in range(2):
        stream = BatchStream(images_of(folder, 1, **CUT), 6, seed=1, rank=rank, world_size=2)
        batches = stream.iterate()
        parts.append(next(batches))
        batches.close()
    assert [key for part in parts for key in part.keys] == whole.keys
    assert len(set(whole.keys)) == 6
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


@pytest.mark.parametrize(
    ("workers", "settings"), [(2, {}), (1, {"resize": 40}), (1, {"resize": 16, "stretch": True})]
)
def test_an_evaluation_sees_the_same_in_order(folder, workers, settings):
    expected = list(iterate_once(images_of(folder, 0, **settings), 3))
    assert_same(expected, list(iterate_once(images_of(folder, workers, **settings), 3)))


def test_a_share_of_an_evaluation(folder):
    expected = [batch.keys for batch in iterate_once(images_of(folder, 0, resize=8), 1)]
    share = Share.of(images_of(folder, 1, resize=8), (1, 2))
    assert [batch.keys for batch in iterate_once(share, 1)] == expected[6:]


def test_large_images_outgrow_the_first_memory(tmp_path):
    for number, side in enumerate((10, 1200, 30)):
        pixels = RANDOM.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.bmp")
    expected = list(iterate_once(images_of(tmp_path, 0), 1))
    assert_same(expected, list(iterate_once(images_of(tmp_path, 1), 1)))


@pytest.mark.filterwarnings("ignore:data.on_broken")
def test_sources_of_bytes_and_of_pixels_too(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded = []
    for _ in range(5):
        stream = io.BytesIO()
        Image.fromarray(RANDOM.integers(0, 256, (140, 150), dtype=np.uint8)).save(stream, "PNG")
        encoded.append(stream.getvalue())
    encoded[2] = None  # a row without an image
    pq.write_table(pa.table({"image": pa.array(encoded, pa.binary())}), tmp_path / "x.parquet")
    header = bytes((0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 8))
    values = RANDOM.integers(0, 256, 5 * 64, dtype=np.uint8).tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + values)
    for settings in (
        {"source": "parquet", "path": str(tmp_path / "x.parquet"), "on_broken": "skip"},
        {"source": "mnist", "path": str(tmp_path), "resize": 200},
    ):
        threads, processes = (
            list(iterate_once(load_images(DataConfig(workers=n, **settings)), 2)) for n in (0, 1)
        )
        assert_same(threads, processes)


def test_broken_files_fail_in_their_place_or_are_skipped_as_with_threads(folder):
    (folder / "05.jpg").write_bytes(b"damaged")
    seen: list[list[str]] = []
    with pytest.raises(BrokenImageError, match=r"^05\.jpg: is no readable image"):
        _collect(iterate_once(images_of(folder, 1, resize=8, crop="center", crop_size=8), 1), seen)
    assert [key for (key,) in seen] == [f"{number:02}.jpg" for number in range(4)]
    with pytest.raises(BrokenImageError, match=r"^05\.jpg"):
        next(BatchStream(images_of(folder, 1, **CUT), 13, seed=0).iterate())
    skipping = [images_of(folder, n, on_broken="skip", **CUT) for n in (0, 2)]
    streams = [BatchStream(images, 4, seed=3).iterate() for images in skipping]
    with pytest.warns(UserWarning, match="left out") as caught:
        assert_same(*(list(islice(batches, 6)) for batches in streams))
    assert len(caught) == 2
    assert [name for name, _ in skipping[1].skipped] == ["05.jpg"]
    for batches in streams:
        batches.close()


def test_an_error_comes_home_at_its_step_with_its_words(folder):
    Image.new("RGB", (5, 9)).save(folder / "13.jpg")
    images = images_of(folder, 1, crop="random", crop_size=16)
    stream = BatchStream(images, 2, seed=0)
    guilty = next(step for step in range(7) if _names(stream, step) & {"13.jpg"})
    assert guilty > 0, "another seed is needed to see an order"
    batches = stream.iterate()
    got: list[list[str]] = []
    with pytest.raises(ValueError, match=r"data\.crop_size=16: 13\.jpg is only 5x9"):
        _collect(batches, got)
    assert got == [stream.batch(step).keys for step in range(guilty)]


def _collect(batches, got: list[list[str]]) -> None:
    for batch in batches:
        got.append(batch.keys)


def _names(stream: BatchStream, step: int) -> set[str]:
    try:
        return set(stream.batch(step).keys)
    except ValueError:
        return {"13.jpg"}


def test_no_process_outlives_its_generator(folder, started):
    batches = BatchStream(images_of(folder, 2, **CUT), 4, seed=0).iterate()
    assert not started, "nothing starts before the first batch is asked for"
    next(batches)
    assert len(started) == 2
    batches.close()
    with pytest.raises(RuntimeError, match="in the consumer"):
        _consume(BatchStream(images_of(folder, 1, **CUT), 4, seed=0).iterate())
    assert len(started) == 3
    assert all(process.returncode == -signal.SIGKILL and gone(process.pid) for process in started)


def _consume(batches) -> None:
    for _ in batches:
        raise RuntimeError("an error in the consumer")


@pytest.mark.parametrize(("workers", "moment"), [(1, "idle"), (2, "busy")])
def test_a_killed_worker_is_a_clear_error(folder, started, workers, moment):
    batches = BatchStream(images_of(folder, workers, **CUT), 4, seed=0).iterate()
    next(batches)
    pid = started[0].pid
    if moment == "busy":
        os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    expected = rf"^data\.workers={workers}: worker process {pid} was killed by SIGKILL; if memory"
    with pytest.raises(ChildProcessError, match=expected):
        list(batches)
    assert all(gone(process.pid) for process in started)


def test_a_worker_that_cannot_start_says_so(folder, monkeypatch, capfd):
    monkeypatch.setattr(decoder_pool.decoder_process, "__name__", "vqkit.data.absent")
    with pytest.raises(ChildProcessError, match=r"ended by itself \(exit code 1; its own"):
        list(iterate_once(images_of(folder, 1), 4))
    assert "No module named vqkit.data.absent" in capfd.readouterr().err


PARENT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from pathlib import Path
from vqkit.config import DataConfig
from vqkit.data import decoder_pool
from vqkit.data.preparing import Preparation, Task

config = DataConfig(source="folder", path=sys.argv[1])
pool = decoder_pool.DecoderPool(Preparation(config, Path), 1)
pool.prepare([Task("x", sys.argv[2], None)])
print(pool._all[0]._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_parent_that_dies_leaves_no_orphans(folder):
    # No guard around the main program either: the workers do not import it again.
    command = [sys.executable, "-c", PARENT, str(folder), str(folder / "00.jpg")]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    parents = [subprocess.Popen(command, **options) for _ in range(3)]
    pids = [int(parent.stdout.readline()) for parent in parents]
    assert not any(gone(pid) for pid in pids)
    for parent, number in zip(parents, ("SIGKILL", "SIGTERM", "SIGINT"), strict=True):
        parent.send_signal(getattr(signal, number))
        parent.wait(timeout=10)
        parent.stdout.close()
    deadline = time.monotonic() + 10
    while not all(gone(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert all(gone(pid) for pid in pids)


def test_workers_take_over_pillows_limit_know_no_torch_and_leave_signals_alone(folder, monkeypatch):
    preparation = Preparation(DataConfig(source="folder", path=str(folder)), Path)
    task = Task("00.jpg", str(folder / "00.jpg"), None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with DecoderPool(preparation, 1) as pool:
        pid = pool._all[0]._process.pid
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(pid, number)  # at once: there is no moment in which they would act
        (found,) = pool.prepare([task])
        maps = Path(f"/proc/{pid}/maps")
        if maps.exists():
            assert "torch" not in maps.read_text()
    assert isinstance(found, BrokenImageError)
    assert "decompression bomb" in found.reason


def test_the_number_of_workers_is_no_part_of_the_data(folder):
    assert images_of(folder, 0).fingerprint() == images_of(folder, 7).fingerprint()
    with pytest.raises(ValueError, match=r"data\.workers=-1: must not be negative"):
        images_of(folder, -1)


def test_sets_in_memory_start_no_process(tmp_path, started):
    header = bytes((0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 8))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + bytes(5 * 64))
    images = load_images(DataConfig(source="mnist", path=str(tmp_path), workers=2))
    batches = BatchStream(images, 2, seed=0).iterate()
    next(batches)
    batches.close()
    assert not started
