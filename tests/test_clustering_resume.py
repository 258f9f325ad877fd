"""The state: killed, stopped, damaged or foreign; what continues is bit for bit the same.

Run as a script it is the process that gets killed: see `main`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import vqkit
from vqkit.clustering import kmeans

pytestmark = pytest.mark.slow

CASES = {
    "lloyd": {"num_clusters": 30, "iterations": 12},
    "shards": {"num_clusters": 30, "iterations": 12, "init": "random", "block_rows": 200},
    "minibatch": {"num_clusters": 30, "iterations": 40, "algorithm": "minibatch"},
    "groups": {"num_clusters": 6, "iterations": 8},
}


def data(case, folder):
    """Vectors of a case, and their groups; some rows are equal, so that centres get empty."""
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(1500, 5, generator=generator)
    vectors[::3] = vectors[0]
    if case == "shards":
        folder = Path(folder) / "shards"
        if not folder.exists():
            folder.mkdir(parents=True)
            for number, part in enumerate(vectors.chunk(3)):
                np.save(folder / f"{number}.npy", part.numpy())
        return folder, {}
    groups = {"groups": torch.arange(1500) % 9} if case == "groups" else {}
    return vectors, groups


def run(case, folder, state=None, **changes):
    vectors, groups = data(case, folder)
    options = {"save_seconds": 0.0, "progress": False, **groups, **CASES[case], **changes}
    return kmeans(vectors, state=state, **options)


def facts(clustering):
    iterations = [(i.inertia, i.moved, i.repaired) for i in clustering.report.iterations]
    report = clustering.report
    return {
        "centres": clustering.centres.flatten().tolist(),
        "sizes": clustering.sizes.tolist(),
        "iterations": iterations,
        "rest": [report.converged, report.unused, report.num_vectors],
    }


def stop_after(saves, monkeypatch, error=KeyboardInterrupt):
    """Make the call stop after so many saves, as Ctrl-C between two iterations does."""
    from vqkit.clustering import keeper

    write, count = keeper.write_state, [0]

    def counted(path, state):
        write(path, state)
        count[0] += 1
        if count[0] == saves:
            raise error

    monkeypatch.setattr(keeper, "write_state", counted)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("saves", [1, 3])
def test_stopped_and_resumed_is_bit_for_bit_the_same(case, saves, tmp_path, monkeypatch):
    expected = facts(run(case, tmp_path))
    state = tmp_path / "out" / "state.safetensors"
    with monkeypatch.context() as patch:
        stop_after(saves, patch)
        with pytest.raises(KeyboardInterrupt):
            run(case, tmp_path, state)
    assert facts(run(case, tmp_path, state)) == expected
    assert [p.name for p in state.parent.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("case", CASES)
def test_interrupted_inside_an_iteration_keeps_the_last_whole_one(case, tmp_path, monkeypatch):
    """Nothing is saved on the way; the interrupt itself saves."""
    from vqkit.clustering import lloyd, minibatch

    expected = facts(run(case, tmp_path))
    state = tmp_path / "state.safetensors"
    with monkeypatch.context() as patch:
        room, at = (minibatch, 20) if case == "minibatch" else (lloyd, 9)
        nearest, count = room.nearest, [0]

        def interrupted(*arguments):
            count[0] += 1
            if count[0] == at:
                raise KeyboardInterrupt
            return nearest(*arguments)

        patch.setattr(room, "nearest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(case, tmp_path, state, save_seconds=1e9)
    assert state.exists()
    calls = [0]
    with monkeypatch.context() as patch:

        def counted(*arguments):
            calls[0] += 1
            return nearest(*arguments)

        patch.setattr(room, "nearest", counted)
        assert facts(run(case, tmp_path, state)) == expected
    if case in ("lloyd", "minibatch"):  # one search for each iteration
        assert calls[0] == len(expected["iterations"]) - (at - 1)


def test_finished_is_returned_as_it_is(tmp_path, monkeypatch):
    state = tmp_path / "state.safetensors"
    first = run("lloyd", tmp_path, state)
    from vqkit.clustering import lloyd

    monkeypatch.setattr(lloyd, "nearest", None)  # nothing is searched
    again = run("lloyd", tmp_path, state)
    assert facts(again) == facts(first)
    assert again.report == first.report  # seconds too


@pytest.mark.parametrize("case", CASES)
def test_more_iterations_go_on_and_fewer_are_refused(case, tmp_path):
    state = tmp_path / "state.safetensors"
    run(case, tmp_path, state, iterations=4)
    assert facts(run(case, tmp_path, state)) == facts(run(case, tmp_path))
    with pytest.raises(ValueError, match=r"iterations=3: state=.* has done \d+ already"):
        run(case, tmp_path, state, iterations=3)


def test_groups_that_are_done_are_not_done_again(tmp_path, monkeypatch):
    from vqkit.clustering.groups import GroupRun

    state = tmp_path / "state.safetensors"
    short = run("groups", tmp_path, state, iterations=5)
    started = []
    cluster = GroupRun._cluster

    def counted(self, sources, group, work):
        started.append(group)
        return cluster(self, sources, group, work)

    monkeypatch.setattr(GroupRun, "_cluster", counted)
    assert facts(run("groups", tmp_path, state, iterations=5)) == facts(short)
    assert not started
    run("groups", tmp_path, state, iterations=300)
    assert len(started) == len(set(started)) > 0
    started.clear()
    assert run("groups", tmp_path, state, iterations=400).report.converged
    assert not started


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_clusters": 31}, r"settings.num_clusters: 30 there, 31 here"),
        ({"seed": 1}, r"settings.seed: 0 there, 1 here"),
        ({"init": "random"}, r"settings.init: 'k-means\+\+' there, 'random' here"),
        ({"init": torch.zeros(30, 5)}, r"settings.centres: None there"),
        ({"groups": torch.zeros(1500).long()}, r"settings.groups: None there"),
        ({"resume": False}, r"resume=False: .* already holds a state"),
    ],
)
def test_a_state_of_other_settings_is_refused(changes, message, tmp_path):
    state = tmp_path / "state.safetensors"
    run("lloyd", tmp_path, state, iterations=2)
    before = state.read_bytes()
    with pytest.raises(ValueError, match=message):
        run("lloyd", tmp_path, state, **changes)
    assert state.read_bytes() == before
    run("lloyd", tmp_path, state, block_rows=700, save_seconds=5.0)  # these may change


def test_a_state_of_other_data_is_refused(tmp_path):
    state = tmp_path / "state.safetensors"
    run("shards", tmp_path, state, iterations=2)
    part = tmp_path / "shards" / "1.npy"
    values = np.load(part)
    np.save(part, values[:-1])
    with pytest.raises(ValueError, match=r"data.num_vectors: 1500 there, 1499 here"):
        run("shards", tmp_path, state)
    np.save(part, -values)
    with pytest.raises(ValueError, match=r"data.sample: "):
        run("shards", tmp_path, state)
    np.save(part, values)
    part.rename(tmp_path / "shards" / "1b.npy")
    with pytest.raises(ValueError, match=r"data.parts: "):
        run("shards", tmp_path, state)
    vectors, _ = data("lloyd", tmp_path)
    with pytest.raises(ValueError, match=r"data.parts: "):
        kmeans(vectors, 30, iterations=12, init="random", state=state)


@pytest.mark.parametrize("case", ["lloyd", "groups"])
def test_damaged_states_are_refused(case, tmp_path):
    from damage import damaged

    state = tmp_path / "state.safetensors"
    expected = facts(run(case, tmp_path, state))
    content = state.read_bytes()
    source = np.random.default_rng(0)
    for _ in range(60):
        state.write_bytes(damaged(content, source))
        with pytest.raises(ValueError, match=r"state=.* (delete it to begin|choose another path)"):
            run(case, tmp_path, state)
    state.write_bytes(content)
    assert facts(run(case, tmp_path, state)) == expected


def test_a_safetensors_file_of_something_else_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no state of a clustering"):
        run("lloyd", tmp_path, tmp_path / "model.safetensors")


@pytest.mark.parametrize("content", [None, b"", b"# Notes\n", b"\x00" * 500])
def test_what_is_no_state_is_never_to_be_deleted(content, tmp_path):
    path = tmp_path / "mine"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="is no state of a clustering; choose another") as error:
        run("lloyd", tmp_path, path)
    assert "delete" not in str(error.value)
    assert path.is_dir() if content is None else path.read_bytes() == content


def test_a_full_disk_leaves_the_older_state_whole(tmp_path, monkeypatch):
    state = tmp_path / "state.safetensors"
    run("lloyd", tmp_path, state, iterations=2)
    before = state.read_bytes()
    with monkeypatch.context() as patch:

        def full(descriptor):
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device, while saving"):
            run("lloyd", tmp_path, state)
    assert state.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    assert facts(run("lloyd", tmp_path, state)) == facts(run("lloyd", tmp_path))


def start(case, folder, saves=0):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(vqkit.__file__).parents[1]),
    }
    command = [sys.executable, __file__, case, str(folder), str(saves)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_killed_outright(tmp_path):
    """SIGKILL right after a save, and right before the next one gets its name."""
    process = start("minibatch", tmp_path, saves=5)
    assert process.wait(60) == -signal.SIGKILL, process.stderr.read()
    process.stderr.close()
    assert (tmp_path / "state.part").exists()
    state = tmp_path / "state"
    assert facts(run("minibatch", tmp_path, state)) == facts(run("minibatch", tmp_path))
    assert not (tmp_path / "state.part").exists()


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES)
def test_killed_at_any_moment_again_and_again(case, tmp_path):
    """Kills from outside, wherever they hit: while seeding, iterating or saving."""
    expected = facts(run(case, tmp_path, **LONG[case]))
    source, kills = np.random.default_rng(0), 0
    started = tmp_path / "started"
    for _ in range(60):
        started.unlink(missing_ok=True)
        process = start(case, tmp_path, saves=-1)
        while not started.exists() and process.poll() is None:
            time.sleep(0.01)
        try:
            assert process.wait(timeout=source.uniform(0.0, 1.5)) == 0, process.stderr.read()
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        finally:
            process.stderr.close()
    assert kills > 0
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(expected))


LONG = {
    "lloyd": {"num_clusters": 200, "iterations": 300},
    "shards": {"num_clusters": 200, "iterations": 200},
    "minibatch": {"iterations": 1200},
    "groups": {"num_clusters": 60, "iterations": 100},
}


def main(case, folder, saves):
    """Cluster with a state; kill this process within save number `saves`, or never if negative."""
    torch.set_num_threads(1)
    (Path(folder) / "started").touch()
    changes = LONG[case] if saves < 0 else {}
    if saves > 0:
        replace, count = os.replace, [0]

        def deadly(part, path):
            count[0] += 1
            if count[0] == saves:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(part, path)

        os.replace = deadly
    found = run(case, folder, Path(folder) / "state", **changes)
    (Path(folder) / "result.json").write_text(json.dumps(facts(found)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))


@pytest.mark.parametrize("case", ["lloyd", "shards"])
def test_progress_after_a_resume_counts_every_row_that_is_read(case, tmp_path, monkeypatch):
    """Also those that are read again to find the ids, else the time left would be absurd."""
    bars = []

    class Counter:
        def __init__(self, show, total):
            self.total, self.done = total, 0
            bars.append(self)

        def tick(self, rows):
            self.done += rows

        skip = tick

    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            run(case, tmp_path, tmp_path / "state")
    monkeypatch.setattr(sys.modules[kmeans.__module__], "open_progress", Counter)
    found = run(case, tmp_path, tmp_path / "state")
    (bar,) = bars
    left_out = CASES[case]["iterations"] - len(found.report.iterations)  # it converged before
    assert bar.done == bar.total - left_out * 1500
