"""Where vectors come from: every storage gives the same bits, in little memory."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_clustering import bits, silent

from vqkit.clustering import VectorSource, open_vectors

NUM_VECTORS, DIM = 500, 6
CUTS = (0, 120, 121, 300, 500)


@pytest.fixture
def vectors(generator):
    return torch.randn(NUM_VECTORS, DIM, generator=generator)


def write_npy(folder, vectors, cuts=CUTS):
    folder.mkdir(parents=True)
    for number, (start, stop) in enumerate(pairwise(cuts)):
        np.save(folder / f"part{number}.npy", vectors[start:stop].numpy())
    return folder


def write_parquet(folder, vectors, *, labels=None, lists="fixed", cuts=CUTS, rows=50):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    folder.mkdir(parents=True)
    for number, (start, stop) in enumerate(pairwise(cuts)):
        part = vectors[start:stop].numpy()
        if lists == "fixed":
            column = arrow.FixedSizeListArray.from_arrays(part.ravel(), part.shape[1])
        else:
            offsets = np.arange(0, part.size + 1, part.shape[1], dtype=np.int32)
            column = arrow.ListArray.from_arrays(offsets, part.ravel())
        columns = {"vector": column, "number": np.arange(start, stop)}
        if labels is not None:
            columns["label"] = labels[start:stop].numpy()
        path = folder / f"part{number}.parquet"
        parquet.write_table(arrow.table(columns), path, row_group_size=rows, use_dictionary=False)
    return folder


class Counting(VectorSource):
    """A source of somebody else, which counts what is read."""

    def __init__(self, vectors):
        self.vectors, self.rows_read = vectors, 0
        self.num_vectors, self.dim = vectors.shape
        self.dtype = vectors.dtype

    def read(self, start, stop):
        self.rows_read += stop - start
        return self.vectors[start:stop].clone()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"algorithm": "minibatch", "batch_size": 100}])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_storage_gives_the_same_bits(dtype, options, vectors, tmp_path):
    vectors = vectors.to(dtype)
    expected = bits(silent(vectors, 40, iterations=4, **options))
    np.save(tmp_path / "whole.npy", vectors.numpy())
    storages = [
        vectors.numpy(),
        np.load(tmp_path / "whole.npy", mmap_mode="r"),
        np.asfortranarray(vectors.numpy()),
        vectors.numpy().astype(vectors.numpy().dtype.newbyteorder(">")),
        vectors.flip(0).numpy()[::-1],
        tmp_path / "whole.npy",
        str(write_npy(tmp_path / "npy", vectors)),
        write_parquet(tmp_path / "fixed", vectors),
        write_parquet(tmp_path / "lists", vectors, lists="plain"),
        Counting(vectors),
    ]
    for storage in storages:
        found = silent(storage, 40, iterations=4, block_rows=77, **options)
        assert bits(found) == expected


def test_a_source_that_lacks_something_is_refused(vectors):
    source = Counting(vectors)
    del source.dtype
    with pytest.raises(ValueError, match="vectors: Counting: a VectorSource has dtype too"):
        silent(source, 4)


def test_one_pass_for_each_iteration_and_one_before(vectors):
    source = Counting(vectors)
    found = silent(source, 20, iterations=5)
    assert len(found.report.iterations) == 5
    assert found.report.repaired == 0
    sample = 32
    assert source.rows_read == 6 * NUM_VECTORS + sample


def test_rows_of_shards_are_taken_from_anywhere(vectors, tmp_path):
    rows = torch.tensor([0, 1, 119, 120, 121, 122, 299, 300, 499])
    for folder in (write_npy(tmp_path / "a", vectors), write_parquet(tmp_path / "b", vectors)):
        source = open_vectors(folder)
        assert torch.equal(source.take(rows), vectors[rows])
        assert torch.equal(source.read(100, 310), vectors[100:310])
        assert torch.equal(source.read(50, 60), vectors[50:60])
        assert source.take(rows[:0]).shape == (0, DIM)
        assert source.num_vectors == NUM_VECTORS


def test_groups_by_a_column(vectors, tmp_path):
    labels = torch.arange(NUM_VECTORS) * 7 % 5
    folder = write_parquet(tmp_path / "shards", vectors, labels=labels)
    by_column = silent(folder, 6, groups="label", iterations=5)
    assert bits(by_column) == bits(silent(vectors, 6, groups=labels, iterations=5))
    assert by_column.groups.tolist() == [g for g in range(5) for _ in range(6)]


def test_groups_larger_than_what_is_held(vectors, monkeypatch):
    labels = torch.arange(NUM_VECTORS) * 7 % 5
    expected = bits(silent(vectors, 6, groups=labels, iterations=5))
    monkeypatch.setattr("vqkit.clustering.groups.GROUP_BYTES", 101 * DIM * 4)
    assert bits(silent(vectors, 6, groups=labels, iterations=5)) == expected
    monkeypatch.setattr("vqkit.clustering.groups.GROUP_BYTES", 10)
    assert bits(silent(vectors, 6, groups=labels, iterations=5)) == expected


def test_a_bad_value_is_found_in_its_shard(vectors, tmp_path):
    vectors[130, 3] = torch.nan
    for folder, name in (
        (write_npy(tmp_path / "a", vectors), "part2.npy row 9"),
        (write_parquet(tmp_path / "b", vectors), r"part2\.parquet row 9"),
    ):
        with pytest.raises(ValueError, match=f"{name} holds a value that is not"):
            silent(folder, 4)


def parquet_table(path, **columns):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.table(columns), path)
    return path


def test_gaps_in_parquet_are_found(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    kind = arrow.list_(arrow.float32())
    gap = arrow.array([[1.0, 2.0], None, [3.0, 4.0]], kind)
    with pytest.raises(ValueError, match=r"gap\.parquet row 1: holds no vector"):
        silent(parquet_table(tmp_path / "gap.parquet", v=gap), 1)
    inside = arrow.array([[1.0, 2.0], [3.0, None]], kind)
    with pytest.raises(
        ValueError, match=r"inside\.parquet row 1 holds a value that is not a finite"
    ):
        silent(parquet_table(tmp_path / "inside.parquet", v=inside), 1)
    ragged = arrow.array([[1.0, 2.0], [3.0], [4.0, 5.0]], kind)
    with pytest.raises(ValueError, match=r"ragged\.parquet row 1: has 1 numbers, others 2"):
        silent(parquet_table(tmp_path / "ragged.parquet", v=ragged), 1)
    none = arrow.array([], kind)
    with pytest.raises(ValueError, match="column 'v' begins with no vector"):
        silent(parquet_table(tmp_path / "none.parquet", v=none), 1)
    whole = arrow.array([[1, 2], [3, 4]], arrow.list_(arrow.int32()))
    with pytest.raises(ValueError, match="need float16, float32 or float64"):
        silent(parquet_table(tmp_path / "whole.parquet", v=whole), 1)


def test_wrong_columns_are_named(vectors, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    folder = write_parquet(tmp_path / "shards", vectors)
    with pytest.raises(ValueError, match=r"column='clip': part0\.parquet has only vector, number"):
        silent(folder, 4, column="clip")
    with pytest.raises(ValueError, match="column 'number' is int64"):
        silent(folder, 4, column="number")
    with pytest.raises(ValueError, match=r"groups='class': part0\.parquet has no such column"):
        silent(folder, 4, groups="class")
    assert bits(silent(folder, 4, column="vector")) == bits(silent(vectors, 4))
    two = arrow.array([[1.0, 2.0]], arrow.list_(arrow.float32()))
    path = parquet_table(tmp_path / "two.parquet", a=two, b=two)
    with pytest.raises(ValueError, match=r"2 columns of lists \(a, b\): name the one"):
        silent(path, 1)
    assert silent(path, 1, column="b").centres.tolist() == [[1.0, 2.0]]
    path = parquet_table(tmp_path / "flat.parquet", a=arrow.array([1.0]))
    with pytest.raises(ValueError, match="0 columns of lists"):
        silent(path, 1)


def test_what_is_no_folder_of_shards_is_refused(vectors, tmp_path):
    with pytest.raises(ValueError, match="there is no such file or folder"):
        silent(tmp_path / "missing", 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no .npy or .parquet file"):
        silent(tmp_path / "empty", 4)
    folder = write_npy(tmp_path / "npy", vectors)
    np.save(folder / "part9.npy", np.zeros((3, DIM + 1), np.float32))
    with pytest.raises(ValueError, match=r"part9.npy: 7 dimensions.*part0.npy has 6"):
        silent(folder, 4)
    np.save(folder / "part9.npy", np.zeros((3, DIM), np.float16))
    with pytest.raises(ValueError, match=r"part9.npy: 6 dimensions, torch.float16"):
        silent(folder, 4)
    np.save(folder / "part9.npy", np.asfortranarray(np.zeros((3, DIM), np.float32)))
    with pytest.raises(ValueError, match=r"part9.npy: holds its columns one after the other"):
        silent(folder, 4)
    np.save(folder / "part9.npy", np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"part9.npy=\(3,\): need \(vectors, dimensions\)"):
        silent(folder, 4)
    with pytest.raises(ValueError, match=r"\.npy files have no columns"):
        silent(folder, 4, column="a")
    (folder / "part9.parquet").touch()
    with pytest.raises(ValueError, match=r"holds .npy and .parquet files"):
        silent(folder, 4)


def test_damaged_shards_are_named(vectors, tmp_path):
    folder = write_npy(tmp_path / "npy", vectors)
    content = (folder / "part2.npy").read_bytes()
    for damaged in (b"", content[:40], content[:-5], b"spam" + content[4:]):
        (folder / "part2.npy").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"part2.npy"):
            silent(folder, 4)
    folder = write_parquet(tmp_path / "parquet", vectors)
    content = (folder / "part2.parquet").read_bytes()
    for damaged in (b"", content[:40], content[:-5], content[:200] + content[300:]):
        (folder / "part2.parquet").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"part2.parquet"):
            silent(folder, 4)


MEASURE = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from vqkit.clustering import kmeans, open_vectors
import pyarrow.parquet

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024

options = dict(iterations=2, init='random', block_rows=4096, progress=False)
kmeans(sys.argv[2], 40, **options)  # libraries load outside the measure
before = peak()
found = kmeans(sys.argv[1], 40, **options)
rise = peak() - before
source = open_vectors(sys.argv[1])
held = source.read(0, source.num_vectors)
naive = peak() - before
json.dump({"rise": rise, "naive": naive, "centres": found.centres.tolist()}, sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is measured on Linux")
@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_shards_larger_than_memory(kind, generator, tmp_path):
    """36 MiB of vectors in less than 12 MiB more than a small clustering needs."""
    size, dim = 294_912, 32
    vectors = torch.randn(size, dim, generator=generator)
    assert vectors.nbytes == 36 * 2**20
    # One parquet file of one row group, as pyarrow writes it; arrays come in several files.
    if kind == "npy":
        write, options = write_npy, {"cuts": [n * size // 4 for n in range(5)]}
    else:
        write, options = write_parquet, {"cuts": (0, size), "rows": size}
    folder = write(tmp_path / "shards", vectors, **options)
    small = write(tmp_path / "small", vectors[:40000], cuts=(0, 40000))
    # glibc then returns what is freed, so that one pass does not pay for the holes of another
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    environment["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(small)],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    found = json.loads(done.stdout)
    assert found["rise"] < 12
    assert found["naive"] > 36  # the measure sees what is held
    assert found["centres"] == silent(vectors, 40, iterations=2, init="random").centres.tolist()
