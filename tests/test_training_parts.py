"""Objective, health numbers, log, progress: small parts against naive references."""

import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training_runs import run_config, write_images

from vqkit.config import ObjectiveConfig
from vqkit.models import TokenizerOutput
from vqkit.quantizers import Quantized, Slot, fsq
from vqkit.training import TokenizerObjective, read_log, train
from vqkit.training.health import CodeWindow
from vqkit.training.log import RunLog, cut_log
from vqkit.training.machine import describe_machine, git_revision
from vqkit.training.progress import PlainLines, Silent, format_seconds, open_progress


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


# ------------------------------------------------------------------------ health


def window(sizes, books):
    slots = tuple(Slot(f"segment{t}", size) for t, size in enumerate(sizes))
    return CodeWindow(SimpleNamespace(slots=slots, books=books), torch.device("cpu"))


def test_code_window_pools_slots_that_share_a_book():
    codes = window((4, 4, 2), ((0, 1), (2,)))
    ids = torch.tensor([[0, 1, 0], [0, 3, 0], [0, 1, 0]]).reshape(1, 1, 3, 3)
    codes.count(ids)
    # Book 0 drew 0 three times, 1 twice, 3 once; book 1 only 0.
    shares = np.array([3, 2, 1]) / 6
    first = math.exp(-np.sum(shares * np.log(shares)))
    summary = codes.summary()
    assert summary["codes_used"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert summary["perplexity"] == pytest.approx((first + 1) / 2)
    assert summary["tokens"] == 9
    assert "warning" not in summary
    codes.count(ids)
    assert codes.summary()["tokens"] == 18
    codes.clear()
    assert codes.summary()["tokens"] == 0


@pytest.mark.parametrize(
    ("num_codes", "distinct", "draws", "collapsed"),
    [
        (1000, 4, 100, True),  # of 100 codes within reach
        (1000, 5, 100, False),
        (20, 1, 1000, False),  # 5 % of the codes
        (21, 1, 1000, True),
    ],
)
def test_collapse_is_judged_by_the_codes_within_reach(num_codes, distinct, draws, collapsed):
    codes = window((num_codes,), ((0,),))
    codes.count((torch.arange(draws) % distinct).reshape(1, 1, -1, 1))
    assert ("warning" in codes.summary()) is collapsed


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


def test_tensorboard_gets_the_same_numbers(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunLog(tmp_path, start=0, tensorboard=True, main=True) as log:
        for step in (1, 2):
            log.write({"step": step, "loss": 0.5 / step, "warning": "words are left out"})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


# ---------------------------------------------------------------------- progress


def test_plain_lines_tell_steps_loss_and_time_left():
    seconds = iter([100.0, 104.0, 110.0, 112.0, 120.0])
    stream = io.StringIO()
    lines = PlainLines("run", 50, 100, stream, every=10, clock=lambda: next(seconds))
    lines.update(52, 3.0)  # too early
    lines.update(60, 2.5)  # 10 steps in 10 seconds, 40 are left
    lines.update(61, 2.4)
    lines.update(100, 1.0)
    lines.close()
    assert stream.getvalue() == (
        "run: step 60 of 100, loss 2.5, 0:40 left\nrun: step 100 of 100, loss 1, 0:00 left\n"
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
    bar.close()
    assert "4/4" in capsys.readouterr().err


# ----------------------------------------------------------------------- machine


def test_the_record_of_the_machine_is_plain_values():
    record = describe_machine(torch.device("cpu"), 3)
    assert record["hardware"]["num_processes"] == 3
    assert record["versions"]["torch"] == torch.__version__
    assert record["git_revision"] == git_revision()


def test_a_large_lattice_is_not_counted_code_by_code():
    window = CodeWindow(fsq((1024,) * 4), torch.device("cpu"))
    window.count(torch.zeros(2, 3, 3, 1, dtype=torch.int64))
    assert len(window.counts) == 0
    assert window.summary() == {}
