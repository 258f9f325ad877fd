"""Tokenizing that is killed, and that of several processes of any engine, gives the same bytes.

Run as a script it is one process that is killed: see `main`.
"""

import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_images import contents, image_folder
from killed_processes import finish, kill_at_rename, start
from token_cases import tokenizer

from vqkit import cli
from vqkit.config import DataConfig
from vqkit.tokens import TokenSet, write_token_set
from vqkit.tokens.sets import on_ray
from vqkit.tokens.sets.job import Job

pytest.importorskip("pyarrow")

SIZES = [(12, 16), (12, 16), (9, 20), (12, 16), (16, 12)]
LONG = 60
"""Shards of a run that is killed from outside."""


def run(images, out, **options):
    options = {"shard_images": 4, "batch_size": 3, "latents": True, "progress": False, **options}
    data = DataConfig(source="folder", path=str(images))
    return write_token_set(tokenizer(), data, out, **options)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    image_folder(folder, [SIZES[i % len(SIZES)] for i in range(23)])
    return folder


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """The bytes of a run of one process without a kill."""
    out = tmp_path_factory.mktemp("whole") / "set"
    run(images, out)
    return contents(out)


@pytest.mark.slow
def test_killed_twice(images, whole, tmp_path):
    """SIGKILL where a shard gets its name, then where a record does; places drawn at random."""
    out, source = tmp_path / "out", np.random.default_rng(3)
    # The facts of the set, then two files for each of six shards; a second run renames fewer.
    for number, place in enumerate([3 + 2 * source.integers(0, 3), 2 + 2 * source.integers(0, 2)]):
        code, error = finish(start(__file__, "one", images, out, int(place)))
        assert code == -signal.SIGKILL, error
        assert (out / "unfinished.json").exists()
        assert list(out.glob(".*.part")), "it was about to rename something"
        assert len(list(out.glob("*.parquet"))) >= number
    run(images, out)
    assert contents(out) == whole


@pytest.mark.slow
def test_worker_processes_write_what_one_process_writes(images, whole, tmp_path):
    run(images, tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == whole


def test_a_kill_before_the_manifest_leaves_nothing_to_deal(images, whole, tmp_path, monkeypatch):
    """No engine is started for no shard: Ray refuses to start no actor."""
    with monkeypatch.context() as patch:
        patch.setattr("vqkit.tokens.sets.writing.complete", _killed)
        with pytest.raises(KeyboardInterrupt):
            run(images, tmp_path / "out")
    monkeypatch.setattr(on_ray, "run_on_ray", _killed)
    run(images, tmp_path / "out", engine="ray")
    assert contents(tmp_path / "out") == whole


def _killed(*_):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_killed_worker_ends_the_command_which_goes_on(images, whole, tmp_path, monkeypatch):
    from vqkit.tokens.sets import workers

    begin = workers._Worker.__init__

    def killed(self, message, numbers):
        begin(self, message, numbers)
        if numbers[0] == 0:
            self._process.kill()

    monkeypatch.setattr(workers._Worker, "__init__", killed)
    with pytest.raises(
        ChildProcessError, match=r"was killed by SIGKILL; finished shards are whole"
    ):
        run(images, tmp_path / "out", workers=2)
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.undo()
    run(images, tmp_path / "out", workers=2)
    assert contents(tmp_path / "out") == whole


@pytest.mark.slow
def test_an_error_of_a_worker_is_that_of_the_command(images, tmp_path):
    broken = tmp_path / "images"
    image_folder(broken, [(8, 8)] * 6)
    (broken / "05.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"05\.png: is no readable image"):
        run(broken, tmp_path / "out", workers=2, shard_images=2)


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(images, tmp_path):
    process = start(__file__, "workers", images, tmp_path / "out", -1)
    found = b""
    while b" " not in found and process.poll() is None:
        time.sleep(0.05)
        place = tmp_path / "out.workers"
        found = place.read_bytes() if place.exists() else b""
    process.kill()
    finish(process)
    pids = [int(pid) for pid in found.split()]
    assert len(pids) == 2
    limit = time.monotonic() + 20
    while any(map(_runs, pids)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(map(_runs, pids))


def _runs(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.mark.slow
def test_two_processes_of_torchrun(images, whole, tmp_path):
    """Both start as torchrun would start them, and run the command."""
    model = tokenizer()
    model.save_pretrained(tmp_path / "tokenizer")
    command = ["tokenize", str(tmp_path / "tokenizer"), "--out", str(tmp_path / "out"), "--latents"]
    command += ["--data.source", "folder", "--data.path", str(images), "--device", "cpu"]
    command += ["--shard_images", "4", "--batch_size", "3", "--engine", "torchrun"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [start(__file__, "command", *command, RANK=str(rank), **variables) for rank in range(2)]
    for code, error in map(finish, both):
        assert code == 0, error
    assert contents(tmp_path / "out") == whole


@pytest.mark.slow
def test_ray_data_with_two_actors(images, whole, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    run(images, tmp_path / "out", engine="ray", workers=2)
    assert contents(tmp_path / "out") == whole
    assert not ray.is_initialized()


def test_an_error_of_an_actor_travels_as_a_row(tmp_path):
    folder = tmp_path / "images"
    data = image_folder(folder, [(8, 8)] * 3)
    found = run(folder, tmp_path / "whole", shard_images=2)
    (folder / "02.png").write_bytes(b"no image")
    (tmp_path / "out").mkdir()
    writer = on_ray._Writer(Job(tokenizer(), data, tmp_path / "out", found.manifest, "cpu"))
    assert writer({"item": np.array([0])}) == {"images": [2], "error": [b""]}
    assert (tmp_path / "out" / "00000.parquet").read_bytes() == (
        tmp_path / "whole" / "00000.parquet"
    ).read_bytes()
    answer = writer({"item": np.array([1])})
    assert answer["images"] == [0]
    error = pickle.loads(answer["error"][0])
    assert isinstance(error, ValueError)
    assert str(error).startswith("02.png: is no readable image")


@pytest.mark.soak
def test_killed_at_any_moment_thirty_times(tmp_path):
    """Kills from outside, wherever they hit; a set that comes to its end is followed by another."""
    images = tmp_path / "images"
    image_folder(images, [(12, 16)] * (2 * LONG - 1) + [(9, 20)] * (2 * LONG + 1))
    run(images, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    source, kills, ends = np.random.default_rng(0), 0, 0
    while kills < 30 or ends == 0:
        out = tmp_path / f"out{ends}"
        process = start(__file__, "workers" if kills % 3 == 0 else "one", images, out, -1)
        while not Path(f"{out}.started").exists() and process.poll() is None:
            time.sleep(0.01)
        try:
            process.wait(timeout=source.uniform(0.0, 2.0))
            code, error = finish(process)
            assert code == 0, error
            ends += 1
        except subprocess.TimeoutExpired:
            process.kill()
            finish(process)
            kills += 1
        Path(f"{out}.started").unlink(missing_ok=True)
        if (out / "manifest.json").exists():
            run(images, out)  # tidies up where the kill came just before that
            assert contents(out) == expected
            assert TokenSet.open(out).num_images == 4 * LONG


def main(case, images, out, place):
    """Tokenize with `kill_at_rename`."""
    torch.set_num_threads(1)
    kill_at_rename(place, out)
    if case == "workers":
        note_workers(Path(f"{out}.workers"))
    run(images, out, workers=2 if case == "workers" else 1)


def note_workers(path):
    """Write the numbers of all worker processes into a file once they have started."""
    from vqkit.tokens.sets import workers

    begin, pids = workers._Worker.__init__, []

    def noted(self, *arguments):
        begin(self, *arguments)
        pids.append(str(self._process.pid))
        if len(pids) == 2:
            path.write_text(" ".join(pids))

    workers._Worker.__init__ = noted


if __name__ == "__main__":
    if sys.argv[1] == "command":
        torch.set_num_threads(1)
        sys.exit(cli.main(sys.argv[2:]))
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
