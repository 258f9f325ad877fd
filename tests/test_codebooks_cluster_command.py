"""`vqkit codebook`: verbs, files, one line for what is wrong, and commands that are killed.

Run as a script it is the command that gets killed: see `main`.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_folders import blobs, write_features

import vqkit
from vqkit import cli
from vqkit.codebooks import TokenizerEncoder, read_codebook
from vqkit.codebooks.outputs import state_beside
from vqkit.config import NetworkConfig, QuantizerConfig
from vqkit.models import ImageTokenizer, TokenizerConfig


def run(*words):
    assert cli.main(["codebook", *map(str, words)]) == 0


def refused(capsys, *words):
    """The one line on stderr of a command that must end with exit code 2."""
    capsys.readouterr()
    assert cli.main(["codebook", *map(str, words)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err


@pytest.fixture
def folder(tmp_path):
    labels = torch.arange(240) % 3
    names = ["ant", "bee", "cat"]
    return write_features(tmp_path / "features", blobs(240), labels=labels, names=names)


@pytest.fixture
def codes(folder, tmp_path, capsys):
    """A codebook file of 12 codes."""
    run("cluster", folder, "--num_codes", 12, "--out", tmp_path / "codes")
    capsys.readouterr()
    return tmp_path / "codes"


def test_help_lists_the_verbs_and_misspelt_ones_get_a_suggestion(capsys):
    for words in ([], ["--help"]):
        run(*words)
        shown = capsys.readouterr().out
        assert all(verb in shown for verb in ("extract", "cluster", "describe", "merge"))
        assert all(verb in shown for verb in ("subset", "transfer"))
    assert "verb='clutser': unknown; did you mean 'cluster'?" in refused(capsys, "clutser")
    assert "known are extract, cluster" in refused(capsys, "xyz")
    assert "num_codez: unknown option; did you mean --num_codes?" in refused(
        capsys, "cluster", "features", "--num_codez", 8
    )
    for verb in ("cluster", "describe", "merge", "subset", "transfer"):
        assert cli.main(["codebook", verb, "--help"]) == 0
        assert "usage: vqkit codebook" in capsys.readouterr().out


# -------------------------------------------------------------------- cluster


def test_cluster_writes_a_codebook_and_says_what_it_is(folder, tmp_path, capsys):
    out = tmp_path / "new" / "codes"
    settings = ("--num_codes", 12, "--iterations", 2, "--per_group", "--dtype", "float32")
    run("cluster", folder, *settings, "--out", out)
    shown = capsys.readouterr()
    assert shown.out.startswith("wrote 12 codes of 5 numbers, 2 iterations over 240 vectors: mean ")
    assert shown.out.endswith(f" → {out}\n")
    book = read_codebook(out)
    assert book.groups == [("ant", 4), ("bee", 4), ("cat", 4)]
    assert book.codes.dtype == torch.float32
    assert [path.name for path in out.parent.iterdir()] == ["codes"]


def test_select_and_several_folders(folder, tmp_path, capsys):
    other = write_features(tmp_path / "other", blobs(60, seed=1))
    settings = ("--method", "select", "--seed", 4, "--num_codes", 290)
    run("cluster", folder, other, *settings, "--out", tmp_path / "codes")
    assert "wrote 290 codes of 5 numbers, random ones of 300 features" in capsys.readouterr().out


def test_what_is_there_is_not_made_again(folder, codes, capsys, monkeypatch):
    from vqkit.codebooks import cluster

    before = codes.stat()
    job = cluster.plan_codebook([folder], 12, "kmeans", False, None, {})
    left = state_beside(codes, job.plan)  # the command was killed right behind its last step
    left.touch()
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "kmeans", None)
        run("cluster", folder, "--num_codes", 12, "--out", codes)
    assert capsys.readouterr().out.startswith("is there already: 12 codes")
    assert codes.stat().st_mtime_ns == before.st_mtime_ns
    assert not left.exists()


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_plain_features_are_known_by_all_their_values(kind, tmp_path, capsys):
    rows, out = blobs(500, dtype=torch.float32), tmp_path / "codes"

    def write():
        if kind == "npy":
            np.save(tmp_path / "rows.npy", rows.numpy())
            return
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pytest.importorskip("pyarrow").table({"rows": list(rows.numpy())})
        parquet.write_table(table, tmp_path / "rows.parquet", compression="none")

    write()
    command = ("cluster", tmp_path / f"rows.{kind}", "--num_codes", 4, "--out", out)
    run(*command)
    run(*command)
    assert "is there already: 4 codes" in capsys.readouterr().out
    rows[261] += 1  # none of those that are drawn to recognise data
    write()
    assert "made with another features.sha256 (" in refused(capsys, *command)


def test_another_codebook_is_only_overwritten_when_asked(folder, codes, tmp_path, capsys):
    before = codes.read_bytes()
    command = ("cluster", folder, "--num_codes", 8, "--seed", 1, "--out", codes)
    line = refused(capsys, *command)
    assert "made with another settings.num_codes (12 there, 8 here), settings.seed (0" in line
    assert "give --overwrite, or name another file" in line
    other = write_features(tmp_path / "other", blobs(240, seed=1))
    line = refused(capsys, "cluster", other, "--num_codes", 12, "--out", codes)
    assert "made with another features.groups" in line
    assert codes.read_bytes() == before
    run(*command, "--overwrite")
    assert len(read_codebook(codes).codes) == 8


def test_a_damaged_one_is_replaced_and_other_files_never(folder, codes, capsys):
    whole = codes.read_bytes()
    codes.write_bytes(whole[:-3])
    command = ("cluster", folder, "--num_codes", 12, "--out", codes)
    line = refused(capsys, *command)
    assert "is damaged (" in line
    assert "); copy it again, or make it anew; --overwrite replaces it" in line
    run(*command, "--overwrite")
    assert codes.read_bytes() == whole
    codes.write_bytes(b"my notes")
    line = refused(capsys, *command, "--overwrite")
    assert "is there and no codebook file; name another file" in line
    assert codes.read_bytes() == b"my notes"
    assert "is there and no codebook file" in refused(capsys, *command[:-1], folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_codes", 8], "out: no file is named; give --out FILE"),
        (["--out", "x"], "num_codes: how many codes is not said; give --num_codes"),
        (["--out", "x", "--num_codes", 241], "num_codes=241: there are only 240 features"),
        (["--out", "x", "--num_codes", "many"], "num_codes=many: expected a whole number"),
        (["--out", "x", "--num_codes", 8, "--method", "mean"], "method=mean: expected one of"),
        (["--out", "x", "--num_codes", 8, "--init", "given"], "init='given': give the name"),
        (["--out", "x", "--num_codes", 8, "--num_clusters", 8], "did you mean"),
    ],
)
def test_bad_options_are_one_line(words, message, folder, capsys):
    assert message in refused(capsys, "cluster", folder, *words)


def test_bad_features_are_one_line(folder, tmp_path, capsys):
    rest = ("--num_codes", 8, "--out", tmp_path / "x")
    assert "features: none are named" in refused(capsys, "cluster", *rest)
    assert "there is no such folder" in refused(capsys, "cluster", tmp_path / "nowhere", *rest)
    shard = folder / "00001.npy"
    shard.write_bytes(shard.read_bytes()[:-2] + b"xy")
    assert "00001.npy: was altered or damaged" in refused(capsys, "cluster", folder, *rest)
    assert not (tmp_path / "x").exists()


# -------------------------------------------------- describe, merge, subset, transfer


def test_describe(codes, tmp_path, capsys):
    run("describe", codes)
    shown = capsys.readouterr().out
    assert "12 of 5 numbers, float16" in shown
    assert "effective rank" in shown
    run("describe", codes, "--json")
    assert json.loads(capsys.readouterr().out)["num_codes"] == 12
    assert "codebook: none is named" in refused(capsys, "describe")
    assert "is no file; name a codebook file" in refused(capsys, "describe", tmp_path / "none")


def test_merge(folder, codes, tmp_path, capsys):
    run("cluster", folder, "--num_codes", 9, "--method", "select", "--out", tmp_path / "b")
    out = tmp_path / "merged"
    run("merge", codes, tmp_path / "b", codes, "--remove_equal", "--out", out)
    assert f"wrote 21 codes of 5 numbers, 12 equal ones removed → {out}" in capsys.readouterr().out
    before = out.read_bytes()
    run("merge", codes, tmp_path / "b", codes, "--remove_equal", "--out", out)
    assert out.read_bytes() == before
    assert "made with another settings" in refused(
        capsys, "merge", out, "--num_codes", 5, "--iterations", 3, "--out", out
    )
    run("merge", out, "--num_codes", 5, "--iterations", 3, "--out", out, "--overwrite")
    assert len(read_codebook(out).codes) == 5
    assert "codebooks: none are named" in refused(capsys, "merge", "--out", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "codes", "features", "merged"]


def test_subset(folder, codes, tmp_path, capsys):
    out = tmp_path / "part"
    run("subset", codes, "--random", 4, "--seed", 2, "--out", out)
    assert f"wrote 4 codes of 5 numbers, of 12 → {out}" in capsys.readouterr().out
    whole = read_codebook(codes).codes
    run("subset", codes, "--ids", "7,3", "--out", out, "--overwrite")
    assert torch.equal(read_codebook(out).codes, whole[[7, 3]])
    np.save(tmp_path / "uses.npy", np.arange(12))
    words = ("--most_used", 2, "--usage", tmp_path / "uses.npy")
    run("subset", codes, *words, "--out", out, "--overwrite")
    assert torch.equal(read_codebook(out).codes, whole[[10, 11]])
    run("cluster", folder, "--per_group", "--num_codes", 6, "--out", tmp_path / "g")
    run("subset", tmp_path / "g", "--groups", "1:3", "--out", out, "--overwrite")
    assert read_codebook(out).groups == [("bee", 2), ("cat", 2)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "codes: none given; give one of random, most_used, ids and groups"),
        (["--random", 2, "--ids", "1"], "codes: random and ids given"),
        (["--most_used", 2], "usage: no file of uses is named"),
        (["--random", 2, "--usage", "x"], "usage='x' without most_used: has no effect"),
        (["--groups", "3"], "groups='3': expected FIRST:LAST+1"),
        (["--ids", "1,50"], "ids: 50: the codebook has 12 codes"),
        (["--ids", "nowhere.txt"], "file='nowhere.txt': there is no such file"),
    ],
)
def test_bad_subsets_are_one_line(words, message, codes, tmp_path, capsys):
    assert message in refused(capsys, "subset", codes, "--out", tmp_path / "x", *words)


def test_transfer(folder, codes, tmp_path, capsys):
    other = write_features(tmp_path / "other", blobs(100, seed=9))
    run("transfer", codes, other)
    shown = capsys.readouterr().out
    assert "mean squared distance" in shown
    assert "of 12: " in shown
    out = tmp_path / "adapted"
    run("transfer", codes, other, "--iterations", 2, "--out", out)
    shown = capsys.readouterr().out
    assert shown.startswith("before\n")
    assert f"wrote 12 codes of 5 numbers → {out}" in shown
    run("transfer", codes, other, "--iterations", 2, "--out", out, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["after"]["mean_squared_distance"] < found["before"]["mean_squared_distance"]
    assert read_codebook(out).provenance["method"] == "adapt"
    wide = write_features(tmp_path / "wide", blobs(100, dim=7))
    line = refused(capsys, "transfer", codes, wide)
    assert "features of 7 dimensions: the codes have 5; give features of the encoder" in line
    assert "out: the codes stay as they are" in refused(
        capsys, "transfer", codes, other, "--out", out
    )
    assert "out: no file is named" in refused(capsys, "transfer", codes, other, "--iterations", 1)
    assert "device='abc': cannot be used" in refused(
        capsys, "transfer", codes, other, "--device", "abc"
    )
    assert "give a codebook (file, tokenizer or run) and" in refused(capsys, "transfer", codes)


def test_transfer_of_a_tokenizers_codes(tmp_path, capsys):
    network = NetworkConfig(hidden=8, residual_hidden=4, num_residual_blocks=1)
    quantizer = QuantizerConfig(preset="vq_vae", args={"num_codes": 7, "dim": 5})
    model = ImageTokenizer(TokenizerConfig(quantizer=quantizer, network=network))
    model.save_pretrained(tmp_path / "model")
    own = {**TokenizerEncoder(model).describe(), "pooling": None}
    folder = write_features(tmp_path / "own", blobs(50), encoder=own)
    run("transfer", tmp_path / "model", folder, "--out", tmp_path / "codes")
    assert "wrote 7 codes of 5 numbers" in capsys.readouterr().out
    assert read_codebook(tmp_path / "codes").provenance["method"] == "tokenizer"


# --------------------------------------------------------------- kills and memory

KILLED = ("--num_codes", "60", "--iterations", "40", "--save_seconds", "0")


def start(folder, out, *words, saves=0):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(vqkit.__file__).parents[1]),
    }
    command = [sys.executable, __file__, str(saves), "cluster", str(folder), "--out", str(out)]
    return subprocess.Popen(
        [*command, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_command_goes_on_and_gives_the_same_bytes(folder, tmp_path, capsys, monkeypatch):
    """SIGKILL within the save of an iteration; the same command then begins behind the former."""
    run("cluster", folder, *KILLED, "--out", tmp_path / "expected")
    process = start(folder, tmp_path / "codes", *KILLED, saves=5)
    assert process.wait(60) == -signal.SIGKILL, process.stderr.read()
    process.communicate()
    states = [path.name for path in tmp_path.glob("codes.*.state")]
    assert len(states) == 1
    assert not (tmp_path / "codes").exists()
    from vqkit.clustering import run as runs

    begun = []
    monkeypatch.setattr(runs, "begin", lambda *arguments: begun.append(arguments))
    run("cluster", folder, *KILLED, "--out", tmp_path / "codes")
    assert not begun
    assert (tmp_path / "codes").read_bytes() == (tmp_path / "expected").read_bytes()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["codes", "expected", "features"]


@pytest.mark.slow
def test_two_processes_write_what_one_writes(folder, tmp_path):
    words = ["cluster", str(folder), "--num_codes", "30", "--per_group"]
    run(*words, "--out", tmp_path / "expected")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "-m", "vqkit", "codebook", *words, "--out", str(tmp_path / "codes")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote 30 codes") == 1
    assert (tmp_path / "codes").read_bytes() == (tmp_path / "expected").read_bytes()


def test_ctrl_c_says_that_it_goes_on(folder, tmp_path, capsys, monkeypatch):
    from vqkit.clustering import keeper

    write = keeper.write_state

    def stopped(path, state):
        write(path, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(keeper, "write_state", stopped)
        words = ["codebook", "cluster", str(folder), *KILLED, "--out", str(tmp_path / "codes")]
        assert cli.main(words) == 130
    assert "interrupted; the same command goes on from here" in capsys.readouterr().err
    assert list(tmp_path.glob("codes.*.state"))
    # Other settings have a state of their own; both go once the codebook is there.
    run("cluster", folder, "--num_codes", 5, "--out", tmp_path / "codes")
    assert not list(tmp_path.glob("*.state"))


def test_a_codebook_of_outliers_is_told(tmp_path, capsys):
    few = write_features(tmp_path / "few", blobs(30, dim=8))
    run("cluster", few, "--num_codes", 25, "--out", tmp_path / "many.safetensors")
    assert "half of the codes hold one vector at most" in capsys.readouterr().out
    run("cluster", few, "--num_codes", 3, "--out", tmp_path / "less.safetensors")
    assert "half of the codes" not in capsys.readouterr().out


@pytest.mark.soak
@pytest.mark.parametrize("grouped", [False, True])
def test_killed_twenty_times(grouped, tmp_path):
    """Kills from outside, wherever they hit: seeding, iterating, saving, writing."""
    rows, labels = blobs(40_000, dim=8), torch.arange(40_000) % 50
    names = [str(number) for number in range(50)]
    folder = write_features(tmp_path / "features", rows, labels=labels, names=names)
    words = ["--num_codes", "2000", "--iterations", "60", "--save_seconds", "0"]
    words += ["--per_group"] if grouped else []
    run("cluster", folder, *words, "--out", tmp_path / "expected")
    source, kills = np.random.default_rng(0), 0
    while kills < 20:
        process = start(folder, tmp_path / "codes", *words)
        time.sleep(source.uniform(1.0, 5.0))
        if process.poll() is None:
            kills += 1
        process.kill()
        process.communicate()
        if (tmp_path / "codes").exists():
            assert (tmp_path / "codes").read_bytes() == (tmp_path / "expected").read_bytes()
            (tmp_path / "codes").unlink()
    run("cluster", folder, *words, "--out", tmp_path / "codes")
    assert (tmp_path / "codes").read_bytes() == (tmp_path / "expected").read_bytes()


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_ten_million_rows_to_a_hundred_thousand_codes_inside_4_gib(tmp_path):
    """Five iterations; about 10^12 distances each, so minutes to an hour by the machine."""
    folder, source = tmp_path / "shards", np.random.default_rng(0)
    folder.mkdir()
    for number in range(20):
        rows = source.standard_normal((500_000, 8), dtype=np.float32)
        np.save(folder / f"{number:02}.npy", rows)
    words = ("--num_codes", "100000", "--iterations", "5")
    began = time.monotonic()
    process = start(folder, tmp_path / "codes", *words)
    _, errors = process.communicate()
    seconds = time.monotonic() - began
    assert process.returncode == 0, errors
    peak = json.loads(errors.splitlines()[-1])["peak_bytes"]
    assert read_codebook(tmp_path / "codes").codes.shape == (100_000, 8)
    assert peak < 4 * 2**30, f"{peak / 2**30:.2f} GiB, {seconds:.0f} s"


def main(saves, *words):
    """Run the command; kill this process within save number `saves`, or never for 0."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if saves > 0:
        replace, count = os.replace, [0]

        def deadly(part, path):
            count[0] += 1
            if count[0] == saves:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(part, path)

        os.replace = deadly
    code = cli.main(["codebook", *words])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sys.stderr.write(json.dumps({"peak_bytes": peak}) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
