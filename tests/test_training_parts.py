"""Objective, log, progress: small parts against naive references."""

import io
import json
import math
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from training_runs import run_config, write_images

from vqkit.config import ObjectiveConfig, with_changes
from vqkit.models import TokenizerOutput
from vqkit.quantizers import Quantized
from vqkit.training import TokenizerObjective, read_log, train
from vqkit.training.log import RunLog, cut_log
from vqkit.training.machine import command_line, describe_machine, git_revision, utc_now
from vqkit.training.progress import (
    PlainLines,
    Silent,
    format_seconds,
    open_progress,
    short_health,
)


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


# --------------------------------------------------------------------- objective


@pytest.mark.parametrize("kind", ["mse", "l1", "log_mse"])
def test_objective_is_its_formula(kind, generator):
    images = torch.rand(3, 2, 4, 4, generator=generator) * 2 - 1
    made = (torch.randn(3, 2, 4, 4, generator=generator)).requires_grad_()
    terms = {"global.commitment": torch.tensor(0.5), "codebook": torch.tensor(0.25)}
    quantized = Quantized(
        torch.zeros(3, 1, 1, 1), torch.zeros(3, 1, 1, 1, dtype=torch.int64), terms
    )
    variance = 0.3 if kind == "mse" else 1.0
    objective = TokenizerObjective(ObjectiveConfig(reconstruction=kind, variance=variance))
    losses = objective(images, TokenizerOutput(made, quantized))
    x, y = images.double().numpy(), made.detach().double().numpy()
    expected = {
        "mse": np.mean((x - y) ** 2) / variance,
        "l1": np.mean(np.abs(x - y)),
        "log_mse": 32 / 2 * math.log(np.mean([np.sum((x[i] - y[i]) ** 2) for i in range(3)])),
    }[kind]
    assert losses.weighted["reconstruction"].item() == pytest.approx(expected, rel=1e-5)
    assert losses.total.item() == pytest.approx(expected + 0.75, rel=1e-5)
    assert set(losses.weighted) == {
        "reconstruction",
        "quantizer.global.commitment",
        "quantizer.codebook",
    }
    assert float(losses.raw["mse"]) == pytest.approx(np.mean((x - y) ** 2), rel=1e-5)
    assert float(losses.raw["l1"]) == pytest.approx(np.mean(np.abs(x - y)), rel=1e-5)
    assert not losses.raw["mse"].requires_grad
    (gradient,) = torch.autograd.grad(losses.total, made)
    numeric = {
        "mse": 2 * (y - x) / x.size / variance,
        "l1": np.sign(y - x) / x.size,
        "log_mse": 32 / 2 * 2 * (y - x) / np.sum((x - y) ** 2),
    }[kind]
    np.testing.assert_allclose(gradient.numpy(), numeric, rtol=1e-4, atol=1e-7)


# --------------------------------------------------------------------------- log


def test_log_goes_on_after_the_step_it_was_cut_at(tmp_path):
    with RunLog(tmp_path, start=0, tensorboard=False, main=True) as log:
        for step in range(1, 5):
            log.write({"step": step, "loss": step / 3})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.')  # what a crash leaves
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4]
    with RunLog(tmp_path, start=2, tensorboard=False, main=True) as log:
        log.write({"step": 3, "loss": 0.1})
    assert read_log(tmp_path / "log.jsonl") == [
        {"step": 1, "loss": 1 / 3},
        {"step": 2, "loss": 2 / 3},
        {"step": 3, "loss": 0.1},
    ]


def test_other_processes_write_no_log(tmp_path):
    with RunLog(tmp_path, start=0, tensorboard=True, main=False) as log:
        log.write({"step": 1})
    assert not list(tmp_path.iterdir())
    assert read_log(tmp_path / "log.jsonl") == []
    cut_log(tmp_path / "log.jsonl", 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_tensorboard_gets_the_same_numbers(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunLog(tmp_path, start=0, tensorboard=True, main=True) as log:
        for step in (1, 2):
            books = {"local": {"codes": 8, "perplexity": 2.0 * step}}
            words = [{"name": "codebook_dead"}]
            log.write({"step": step, "loss": 0.5 / step, "books": books, "warnings": words})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = ["loss", "books/local/codes", "books/local/perplexity"]
    assert sorted(events.Tags()["scalars"]) == sorted(tags)
    assert [e.value for e in events.Scalars("books/local/perplexity")] == [2, 4]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


# ---------------------------------------------------------------------- progress


def test_plain_lines_tell_steps_loss_and_time_left():
    seconds = iter([100.0, 104.0, 110.0, 112.0, 120.0])
    stream = io.StringIO()
    lines = PlainLines("run", 50, 100, stream, every=10, clock=lambda: next(seconds))
    lines.update(52, 3.0)  # too early
    lines.update(60, 2.5)  # 10 steps in 10 seconds, 40 are left
    lines.note({"step": 60, "codes_used": 0.875, "memory_bytes": 3 << 30})
    lines.update(61, 2.4)
    lines.update(100, 1.0)
    lines.close()
    assert stream.getvalue() == (
        "run: step 60 of 100, loss 2.5, 0:40 left\n"
        "run: step 100 of 100, loss 1, 0:00 left; codes 87.5%, 3.00 GiB\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05")]
)
def test_seconds_are_written_as_hours_minutes_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_progress_goes_to_stderr_and_can_be_silenced(tmp_path, capsys, monkeypatch):
    images = write_images(tmp_path / "images")
    config = run_config(images, optim__num_steps=2)
    train(config, out=tmp_path / "shown")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "tiny_looc: step 2 of 2, loss " in shown.err
    train(config, out=tmp_path / "silent", progress=False)
    silent = capsys.readouterr()
    assert (silent.out, silent.err) == ("", "")
    assert isinstance(open_progress(False, "x", 0, 1), Silent)


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar = open_progress(True, "run", 0, 4)
    bar.update(4, 0.125)
    bar.note({"step": 4, "codes_used": 0.5})
    bar.close()
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "codes 50.0%" in shown


def test_the_short_form_of_health_names_what_a_line_has():
    line = {
        "codes_used": 0.9731,
        "perplexity": 1234.56,
        "norm_ratio": 1.0612,
        "accuracy_real": 0.81,
        "accuracy_fake": 0.7749,
        "adaptive_weight": 0.4321,
        "images_per_second": 1203.44,
        "memory_bytes": 5 << 29,
        "loss": 3.0,
    }
    assert short_health(line) == (
        "codes 97.3%, perplexity 1,234.6, norms 1.06, D 0.81/0.77, λ 0.432, "
        "1,203.4 images/s, 2.50 GiB"
    )
    assert short_health({"loss": 3.0}) == ""


# ----------------------------------------------------------------------- machine


def test_the_record_of_the_machine_is_plain_values():
    record = describe_machine(torch.device("cpu"), 3)
    assert record["hardware"]["num_processes"] == 3
    assert record["versions"]["torch"] == torch.__version__
    assert record["git_revision"] == git_revision()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["/usr/bin/vqkit", "train", "looc_mnist"], ["vqkit", "train", "looc_mnist"]),
        (["/a/vqkit/__main__.py", "demo"], ["vqkit", "demo"]),
        (["my/train.py", "--out", "/x/y"], ["train.py", "--out", "/x/y"]),
    ],
)
def test_the_command_is_what_was_typed(typed, said, monkeypatch):
    monkeypatch.setattr("sys.argv", typed)
    assert command_line() == said


def test_the_result_names_command_and_dates(tmp_path, monkeypatch):
    config = run_config(write_images(tmp_path / "images"), optim__num_steps=1)
    times = iter(["2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"])
    longer = with_changes(config, optim__num_steps=2)
    for words, settings in ((["vqkit", "begin"], config), (["vqkit", "go", "on"], longer)):
        monkeypatch.setattr("sys.argv", words)
        now = next(times)
        monkeypatch.setattr("vqkit.training.base_run.utc_now", lambda now=now: now)
        train(settings, out=tmp_path / "run", progress=False)
        result = json.loads((tmp_path / "run" / "result.json").read_text())
        assert (result["command"], result["ended"]) == (words, now)
        assert result["started"] == "2026-01-01T00:00:00+00:00"
    assert datetime.fromisoformat(utc_now()).tzinfo == UTC
