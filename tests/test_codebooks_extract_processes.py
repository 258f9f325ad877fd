"""Extractions that are killed, and those of several processes, give the bytes of one run.

Run as a script it is one of the processes: see `main`.
"""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from feature_images import array_set, cells, contents, image_folder, random_pixels
from killed_processes import finish, kill_at_rename, start

from vqkit import cli
from vqkit.codebooks.extraction import extract
from vqkit.codebooks.pixels import PixelPatches

LONG = 60
"""Shards of a run that is killed from outside."""


def run(case, out, rank=0):
    """Extract with whitening or with a module; `fail` breaks in one process alone."""
    torch.set_num_threads(1)
    count = {"long": 4 * LONG, "pixels": 23, "fail": 23, "seeds": 23}[case]
    labels = torch.arange(count) % 3
    images = array_set(random_pixels(count), labels, ("a", "b", "c"))
    options = {"shard_images": 4, "batch_size": 3, "progress": False, "max_per_image": 7}
    if case == "fail":
        return extract(images, cells(fail=3 if rank else None)[0], out, **options)
    if case == "seeds":
        return extract(images, cells()[0], out, seed=rank, **options)
    return extract(images, PixelPatches(patch=4, stride=3, sample=400), out, **options)


@pytest.mark.slow
def test_killed_outright(tmp_path):
    """SIGKILL where a file is about to get its name, at a place drawn at random."""
    run("pixels", tmp_path / "whole")
    # Two files of the set, then three for each of six shards.
    place = int(np.random.default_rng(5).integers(4, 20))
    process = start(__file__, "pixels", tmp_path / "out", place)
    code, error = finish(process)
    assert code == -signal.SIGKILL, error
    assert (tmp_path / "out" / "unfinished.json").exists()
    assert list((tmp_path / "out").rglob(".*.part")), "it was about to rename something"
    run("pixels", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.soak
def test_killed_at_every_kind_of_place(tmp_path):
    """Before the rows, the groups or the record of the next shard get their names, in turn."""
    run("pixels", tmp_path / "whole")
    kills = 0
    for place in itertools.cycle([4, 5, 6]):
        code, error = finish(start(__file__, "pixels", tmp_path / "out", place))
        if code == 0:
            break
        assert code == -signal.SIGKILL, error
        kills += 1
    assert kills >= 5
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.soak
def test_killed_at_any_moment_twenty_times(tmp_path):
    """Kills from outside, wherever they hit; a set that comes to its end is followed by another."""
    run("long", tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    source, kills, ends = np.random.default_rng(0), 0, 0
    while kills < 20 or ends == 0:
        out = tmp_path / f"out{ends}"
        process = start(__file__, "long", out, -1)
        mark = Path(f"{out}.started")
        while not mark.exists() and process.poll() is None:
            time.sleep(0.01)
        try:
            process.wait(timeout=source.uniform(0.0, 1.5))
            code, error = finish(process)
            assert code == 0, error
            ends += 1
        except subprocess.TimeoutExpired:
            process.kill()
            finish(process)
            kills += 1
        mark.unlink(missing_ok=True)
        if (out / "manifest.json").exists():
            run("long", out)  # tidies up where the kill came just before that
            assert contents(out) == expected


@pytest.mark.slow
def test_two_processes_write_what_one_writes_and_share_errors(tmp_path):
    """Both start once, as torchrun would, for a command and three extractions after it."""
    run("pixels", tmp_path / "whole")
    image_folder(tmp_path / "images", [(16, 24)] * 5)
    options = ["--device", "cpu", "--shard_images", "2", "--sample", "90"]
    command = ["codebook", "extract", str(tmp_path / "one"), "--path", str(tmp_path / "images")]
    assert cli.main([*command, *options]) == 0
    command[2] = str(tmp_path / "two")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    words = ["pixels,fail,seeds", tmp_path, 0, *command, *options]
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [start(__file__, *words, RANK=str(rank), **variables) for rank in range(2)]
    for code, error in map(finish, both):
        assert code == 0, error
        lines = [
            line for line in error.splitlines() if line.startswith(("pixels", "fail", "seeds"))
        ]
        assert lines[0] == "pixels: done"
        assert lines[1] == "fail: the device is gone"
        assert lines[2].startswith("seeds: settings: not the same in all 2 processes")
    assert contents(tmp_path / "pixels") == contents(tmp_path / "whole")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def main(cases, out, place, command):
    """Run a command if there are two processes, then extract with `kill_at_rename`."""
    kill_at_rename(place, out)
    if "RANK" not in os.environ:
        run(cases, Path(out))
        return
    assert cli.main(command) == 0
    rank, method = int(os.environ["RANK"]), f"file://{out}/meeting"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=2)
    for case in cases.split(","):
        try:
            run(case, Path(out) / case, rank)
        except (ValueError, OSError) as error:
            sys.stderr.write(f"{case}: {error}\n")
        else:
            sys.stderr.write(f"{case}: done\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
