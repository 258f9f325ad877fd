"""Two processes under torch.distributed bring what one brings, bit for bit.

Run as a script it is one of the processes: see `main`.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vqkit
from vqkit.clustering import VectorSource, kmeans

pytestmark = pytest.mark.slow

CASES = {
    "lloyd": {"num_clusters": 40, "iterations": 8},
    "rounds": {"num_clusters": 300, "iterations": 3},  # k-means++ in rounds
    "random": {"num_clusters": 40, "iterations": 5, "init": "random"},
    "empty": {"num_clusters": 50, "iterations": 6, "init": "far"},
    "shards": {"num_clusters": 40, "iterations": 4, "block_rows": 50},
    "minibatch": {"num_clusters": 40, "iterations": 30, "algorithm": "minibatch", "init": "far"},
    "groups": {"num_clusters": 7, "iterations": 6, "groups": "fifths"},
    "few": {"num_clusters": 1, "iterations": 3, "vectors": "one"},
    "killed": {"num_clusters": 40, "iterations": 8, "state": "state"},
}
BAD = {
    "nan": ({"num_clusters": 3, "vectors": "nan"}, "row 7 holds a value that is not a finite"),
    "nan group": (
        {"num_clusters": 3, "vectors": "nan", "groups": "fifths"},
        "group 2: vectors: row 7 holds",
    ),
    "foreign": ({"num_clusters": 3, "state": "foreign"}, "is no state of a clustering"),
    # What goes wrong in one process alone.
    "survey": ({"num_clusters": 3, "fail": 1}, "row 900 cannot be read"),
    "iteration": ({"num_clusters": 3, "fail": 2}, "row 900 cannot be read"),
    "repair": ({"num_clusters": 50, "init": "far", "fail": 3}, "row 900 cannot be read"),
    "batch": (
        {"num_clusters": 3, "algorithm": "minibatch", "batch_size": 1001, "fail": 2},
        "row 900 cannot be read",
    ),
    "group": ({"num_clusters": 3, "groups": "fifths", "fail": 1}, "row 900 cannot be read"),
    "resume": ({"num_clusters": 40, "state": "begun", "fail": 1}, "row 900 cannot be read"),
    "parquet": ({"num_clusters": 3, "vectors": "parquet"}, "row 7: has 1 numbers, others 6"),
    "save": ({"num_clusters": 3, "state": "foreign/state"}, "foreign"),
    # Calls that differ.
    "seeds": ({"num_clusters": 3, "seed": "rank"}, "settings.seed: not the same in all 2"),
    "clusters": ({"num_clusters": "rank"}, "settings.num_clusters: not the same"),
    "vectors": ({"num_clusters": 3, "vectors": "rank"}, "data.sample: not the same"),
    "grouped": ({"num_clusters": 3, "groups": "rank"}, "settings.groups: not the same"),
    "stateful": ({"num_clusters": 3, "state": "rank"}, "state: not the same"),
}


class Failing(VectorSource):
    """Row 900 cannot be read when it is asked for the given time."""

    def __init__(self, vectors, fail):
        self.vectors, self.left = vectors, fail
        self.num_vectors, self.dim = vectors.shape
        self.dtype = vectors.dtype

    def read(self, start, stop):
        if start <= 900 < stop:
            self.left -= 1
            if self.left == 0:
                raise ValueError("row 900 cannot be read")
        return self.vectors[start:stop]


def arguments(case, folder, rank=0):
    generator = torch.Generator().manual_seed(5)
    vectors = torch.randn(1001, 6, generator=generator)
    options = dict(case)
    kind = options.pop("vectors", "all")
    if kind == "one":
        vectors = vectors[:1]
    if kind == "nan":
        vectors[7, 0] = vectors[902, 1] = torch.nan
    if kind == "rank":
        vectors = vectors + rank
    if kind == "parquet":
        vectors = folder / f"parquet{rank}"
    if options["num_clusters"] == "rank":
        options["num_clusters"] = 3 + rank
    count = options["num_clusters"]
    if options.get("init") == "far":
        options["init"] = torch.cat([vectors[:3], vectors[3:count] + 40])
    if options.get("groups") == "fifths":
        options["groups"] = torch.arange(len(vectors)) % 5
    if options.get("groups") == "rank":
        options["groups"] = torch.arange(len(vectors)) % 5 if rank else None
    if options.get("seed") == "rank":
        options["seed"] = rank
    if options.get("state") == "rank":
        options["state"] = "new" if rank else None
    if options.get("state"):
        options["state"] = folder / options["state"]
    if "fail" in options:
        vectors = Failing(vectors, options.pop("fail"))
    if "block_rows" in options:
        vectors = folder / "shards"
    return vectors, options


def outcome(case, folder, rank=0):
    vectors, options = arguments(case, folder, rank)
    found = kmeans(vectors, progress=False, **options)
    iterations = [(i.inertia, i.moved, i.repaired) for i in found.report.iterations]
    rest = (found.report.converged, found.report.unused, found.report.num_vectors)
    return found.centres, found.sizes, iterations, rest


def prepare(folder):
    import pyarrow
    import pyarrow.parquet

    vectors, _ = arguments(CASES["lloyd"], folder)
    (folder / "shards").mkdir()
    for number, part in enumerate(vectors.split(300)):
        np.save(folder / "shards" / f"{number}.npy", part.numpy())
    (folder / "foreign").write_bytes(b"spam")
    for rank in (0, 1):  # the second process has a bad row
        rows = vectors.tolist()
        rows[7] = rows[7][: 1 if rank else None]
        (folder / f"parquet{rank}").mkdir()
        table = pyarrow.table({"v": pyarrow.array(rows, pyarrow.list_(pyarrow.float32()))})
        pyarrow.parquet.write_table(table, folder / f"parquet{rank}" / "part.parquet")
    # One process alone began what two continue.
    vectors, options = arguments(CASES["killed"], folder)
    kmeans(vectors, progress=False, **{**options, "iterations": 3})
    (folder / "begun").write_bytes((folder / "state").read_bytes())


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes found, and the folder they worked in."""
    pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("processes")
    prepare(folder)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(vqkit.__file__).parents[1]),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, __file__, str(folder)]
    processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in (0, 1)]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    found = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]
    return found, folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(name, both):
    found, folder = both
    case = dict(CASES[name])
    case.pop("state", None)
    centres, sizes, iterations, rest = outcome(case, folder)
    for rank in found:
        assert rank[name][0].numpy().tobytes() == centres.numpy().tobytes()
        assert torch.equal(rank[name][1], sizes)
        assert rank[name][2:] == (iterations, rest)
    if name in ("empty", "minibatch"):
        assert sum(repaired for _, _, repaired in iterations) > 0


@pytest.mark.parametrize("name", BAD)
def test_both_processes_refuse_alike(name, both):
    for rank in both[0]:
        assert BAD[name][1] in rank[name]


def test_what_two_began_one_continues(both):
    _, folder = both
    vectors, options = arguments(CASES["killed"], folder)
    longer = {**options, "iterations": 11}
    continued = kmeans(vectors, progress=False, **longer)
    whole = kmeans(vectors, progress=False, **{**longer, "state": None})
    assert torch.equal(continued.centres, whole.centres)


def main(folder, rank):
    """Do all cases as one of two processes, and save what comes out."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    found = {name: outcome(case, folder) for name, case in CASES.items()}
    for name, (case, _) in BAD.items():
        try:
            found[name] = outcome(case, folder, rank)
        except (ValueError, OSError) as error:
            found[name] = str(error)
    torch.save(found, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
