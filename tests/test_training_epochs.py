"""Codes used in every epoch: counted over all training tokens, exact over a kill."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import assert_same_run, run_config, write_images

from vqkit.config import QuantizerConfig, to_dict
from vqkit.quantizers import fsq, pq, ranks, vq_vae
from vqkit.training import read_log, train
from vqkit.training.checkpoint import list_checkpoints, load_checkpoint
from vqkit.training.epochs import EpochUsage
from vqkit.training.window import CodeWindow

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
EPOCH = ("epoch", "epoch_codes_used", "epoch_perplexity", "epoch_tokens", "epoch_uniform_usage")


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """24 pictures: an epoch has 3 steps of 8."""
    return write_images(tmp_path_factory.mktemp("images"))


def naive(ids, num_codes):
    """Usage, perplexity and uniform usage of a list of ids, from their definitions."""
    counts = np.bincount(ids, minlength=num_codes)
    share = counts[counts > 0] / counts.sum()
    perplexity = math.exp(-np.sum(share * np.log(share)))
    return (counts > 0).mean(), perplexity, 1 - (1 - 1 / num_codes) ** len(ids)


def test_an_epoch_is_what_a_naive_count_says(generator):
    epochs = EpochUsage(CodeWindow(vq_vae(50, 2), CPU))
    for number in (1, 2):
        draws = torch.randint(10 * number, (5, 2, 3, 4, 1), generator=generator)
        for ids in draws:
            epochs.count(ids)
        found = epochs.close(number)
        assert tuple(found) == EPOCH
        assert (found["epoch"], found["epoch_tokens"]) == (number, 120)
        used, perplexity, uniform = naive(draws.flatten().numpy(), 50)
        assert found["epoch_codes_used"] == used
        assert found["epoch_perplexity"] == pytest.approx(perplexity)
        assert found["epoch_uniform_usage"] == pytest.approx(uniform)


def test_several_codebooks_are_told_one_by_one(generator):
    epochs = EpochUsage(CodeWindow(pq(16, 1, num_segments=2), CPU))
    ids = torch.randint(16, (3, 4, 4, 2), generator=generator)
    ids[..., 1] //= 4
    epochs.count(ids)
    found = epochs.close(1)
    assert list(found["epoch_books"]) == ["segment0", "segment1"]
    each = []
    for segment, book in enumerate(found["epoch_books"].values()):
        numbers = naive(ids[..., segment].flatten().numpy(), 16)
        assert (book["codes"], book["tokens"]) == (16, 48)
        assert (book["used"], book["perplexity"], book["uniform_usage"]) == pytest.approx(numbers)
        each.append(numbers)
    means = [found[key] for key in EPOCH if key not in ("epoch", "epoch_tokens")]
    assert means == pytest.approx(np.mean(each, axis=0))
    assert found["epoch_tokens"] == 96


def test_the_counts_of_all_processes_are_joined(monkeypatch):
    epochs = EpochUsage(CodeWindow(vq_vae(8, 2), CPU))
    ids = torch.arange(4).reshape(1, 2, 2, 1)
    epochs.count(ids)
    # As if another process had drawn the codes behind these as often.
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "sum_over_ranks", lambda counts: counts + counts.roll(4))
        saved = epochs.state()
        found = epochs.close(1)
    assert (found["epoch_tokens"], found["epoch_codes_used"]) == (8, 1.0)
    assert found["epoch_perplexity"] == pytest.approx(8)
    for main, tokens in ((True, 8), (False, 0)):
        epochs.load(saved, main=main)
        assert epochs.close(1)["epoch_tokens"] == tokens


def test_a_large_lattice_has_no_table_and_no_lines(images, tmp_path):
    epochs = EpochUsage(CodeWindow(fsq((1024,) * 4), CPU))
    epochs.count(torch.zeros(2, 3, 3, 1, dtype=torch.int64))
    assert len(epochs.counts) == 0
    assert epochs.close(1) == {}
    config = run_config(images, log__every=5)
    config = replace(config, quantizer=QuantizerConfig(preset="fsq", args={"levels": (4096, 4096)}))
    log = train(config, out=tmp_path / "run", progress=False).log
    assert [line["step"] for line in log] == [5, 10, 12]
    assert not any("epoch" in line for line in log)


def test_the_last_step_of_an_epoch_has_a_line(images, tmp_path, monkeypatch):
    drawn = []
    count = EpochUsage.count

    def remembered(self, ids):
        drawn.append(ids)
        count(self, ids)

    monkeypatch.setattr(EpochUsage, "count", remembered)
    result = train(run_config(images, log__every=5), out=tmp_path / "run", progress=False)
    assert [line["step"] for line in result.log] == [3, 5, 6, 9, 10, 12]
    ended = [line for line in result.log if "epoch" in line]
    assert [(line["epoch"], line["step"]) for line in ended] == [(1, 3), (2, 6), (3, 9), (4, 12)]
    for number, line in enumerate(ended):
        assert {*EPOCH, "loss", "codes_used", "books", "images_per_second"} <= set(line)
        ids = torch.cat(drawn[3 * number : 3 * number + 3])
        assert line["epoch_tokens"] == ids.numel() == 24 * 4 * 4  # 2 x 2 positions, 4 segments
        used, perplexity, uniform = naive(ids.flatten().numpy(), 8)
        assert line["epoch_codes_used"] == used
        assert line["epoch_perplexity"] == pytest.approx(perplexity)
        assert line["epoch_uniform_usage"] == pytest.approx(uniform)
    # The regular lines are what they are without the others: their window is not cut.
    often = train(run_config(images), out=tmp_path / "often", progress=False).log
    tokens = sum(line["tokens"] for line in often[:5])
    assert result.log[1]["tokens"] == tokens == 5 * 8 * 16
    assert result.log[1]["loss"] == often[4]["loss"]


def test_accumulated_batches_count_as_one(images, tmp_path):
    changes = {"log__every": 3, "optim__num_steps": 6}
    one, four = (
        train(
            run_config(images, optim__accumulate=parts, **changes),
            out=tmp_path / str(parts),
            progress=False,
        ).log
        for parts in (1, 4)
    )
    assert [line["epoch_tokens"] for line in one] == [line["epoch_tokens"] for line in four]


def test_a_killed_epoch_is_counted_as_a_whole(images, tmp_path):
    """Killed after step 5, in the second epoch; the checkpoint has one step of it."""
    config = run_config(images, log__every=5)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(config, out=whole, progress=False)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(to_dict(config)), encoding="utf-8")
    script = Path(__file__).with_name("training_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), str(settings), str(killed), "step", "5"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert load_checkpoint(list_checkpoints(killed)[-1]).step == 4
    train(config, out=killed, progress=False)
    assert_same_run(whole, killed, 12)
    assert [line["epoch"] for line in read_log(killed / "log.jsonl") if "epoch" in line] == [
        *range(1, 5)
    ]


def test_a_checkpoint_of_an_older_version_counts_from_there(images, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(EpochUsage, "state", lambda self: {})
        train(run_config(images, optim__num_steps=4), out=tmp_path / "run", progress=False)
    log = train(run_config(images), out=tmp_path / "run", progress=False).log
    tokens = [line["epoch_tokens"] for line in log if "epoch" in line]
    assert tokens == [384, 256, 384, 384]
