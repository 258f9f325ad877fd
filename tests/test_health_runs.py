"""Real runs: those that are made to collapse are told so, healthy ones are left in peace."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_training import interrupt_after
from training_runs import assert_same_run, run_config, write_images

from vqkit.config import AdversarialConfig, with_changes
from vqkit.recipes import RECIPES, tiny
from vqkit.training import CLOCK_KEYS, load_checkpoint, train
from vqkit.training.health import memory


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def ill_config(images, preset="vq_vae", steps=130, **changes):
    """A longer run, a line every 10 steps, a checkpoint at the end."""
    return run_config(
        images,
        preset,
        **{"optim__num_steps": steps, "log__every": 10, "log__checkpoint_every": 1000} | changes,
    )


def said(log):
    return [(line["step"], w["name"]) for line in log for w in line.get("warnings", [])]


# ------------------------------------------------------------------- made to collapse


@pytest.mark.slow
def test_images_that_are_all_alike_leave_one_code(tmp_path, caplog):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(folder / f"{number}.png")
    log = train(ill_config(folder), out=tmp_path / "run", progress=False).log
    assert [name for _, name in said(log)] == ["codebook_dead"]
    step, _ = said(log)[0]
    assert step >= 100
    words = f"step {step}: codebook_dead: code: 320 tokens used 1 of 8 codes; every vector gets"
    assert words in caplog.text
    assert log[-1]["dead_codes"] == 7 / 8
    assert log[-1]["longest_idle"] == 130
    assert log[-1]["norm_ratio"] == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_a_large_learning_rate_collapses_and_is_told_the_same_after_a_resume(
    images, tmp_path, monkeypatch
):
    config = ill_config(
        images,
        optim__lr=0.1,
        quantizer__args={"num_codes": 64, "dim": 4},
        log__checkpoint_every=65,
        log__keep=9,
    )
    log = train(config, out=tmp_path / "whole", progress=False).log
    assert {name for _, name in said(log)} <= {"codebook_dead", "codebook_collapse"}
    assert said(log)
    for step in (47, 115):  # before the warning and after it, within windows of the log
        with monkeypatch.context() as patch:
            interrupt_after(patch, step)
            with pytest.raises(KeyboardInterrupt):
                train(config, out=tmp_path / "parts", progress=False)
    train(config, out=tmp_path / "parts", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 130)


@pytest.mark.slow
def test_vectors_without_commitment_outgrow_their_codes(images, tmp_path):
    config = ill_config(
        images,
        steps=140,
        optim__lr=0.01,
        objective__variance=0.05,
        quantizer__args={"num_codes": 64, "dim": 4, "commitment": 0.0},
    )
    log = train(config, out=tmp_path / "run", progress=False).log
    assert "latents_outgrow_codes" in {name for _, name in said(log)}
    assert log[-1]["norm_ratio"] > 1000


@pytest.mark.slow
def test_a_discriminator_that_must_win_is_told_to(images, tmp_path):
    adversarial = AdversarialConfig(
        start=0, width=8, num_layers=1, norm="none", lr=3e-2, adaptive_max=2e-4
    )
    # A generator that hardly learns, and whose judge weighs next to nothing.
    config = ill_config(images, steps=220, optim__lr=1e-6, adversarial=adversarial)
    log = train(config, out=tmp_path / "run", progress=False).log
    names = {name: step for step, name in said(log)}
    assert names["discriminator_wins"] >= 200
    assert names["adaptive_weight_clamped"] >= 100
    assert "discriminator_blind" not in names
    check_documented(log)


def check_documented(log):
    """Every key of these lines has a row in docs/health.md."""
    page = (Path(__file__).parent.parent / "docs" / "health.md").read_text("utf-8")
    rows = [row.split("|")[1:3] for row in page.splitlines() if row.startswith("| `")]
    named = {key for cells in rows for cell in cells for key in re.findall(r"`(\w+)`", cell)}
    keys = {key for line in log for key in line if not key.startswith("quantizer.")}
    assert not keys - named
    assert not {key for line in log for book in line["books"].values() for key in book} - named


@pytest.mark.slow
def test_a_discriminator_that_does_not_learn_is_blind(images, tmp_path):
    adversarial = AdversarialConfig(start=0, width=8, num_layers=1, norm="none", lr=1e-9)
    config = ill_config(images, steps=230, adversarial=adversarial)
    log = train(config, out=tmp_path / "run", progress=False).log
    assert [name for _, name in said(log)] == ["discriminator_blind"]


# ------------------------------------------------------------------- in good health

# VQGAN-LC as published leaves most codes behind in so few steps, and is told so.
HEALTHY = [
    name
    for name in RECIPES
    if name.startswith("photos_") and "vqgan" not in name and name != "photos_lc"
]


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_recipes_for_photographs_are_told_nothing(name, tmp_path):
    config = tiny(RECIPES[name]())
    config = with_changes(config, optim__num_steps=300, log__every=5, log__checkpoint_every=1000)
    log = train(config, out=tmp_path / "run", progress=False).log
    assert said(log) == []
    assert not any("machine_warnings" in line for line in log)


@pytest.mark.slow
def test_a_healthy_vqgan_is_told_nothing(tmp_path):
    config = tiny(RECIPES["photos_vqgan_looc4"]())
    config = with_changes(config, optim__num_steps=260, log__every=5, log__checkpoint_every=1000)
    log = train(config, out=tmp_path / "run", progress=False).log
    assert "accuracy_real" in log[-1]
    assert said(log) == []


# ------------------------------------------------------------------- what a line holds


def test_a_line_holds_health_and_a_checkpoint_its_state(images, tmp_path):
    config = run_config(images, "dual", log__every=3)
    log = train(config, out=tmp_path / "run", progress=False).log
    line = log[-1]
    assert set(line["books"]) == {"local", "global"}
    for key in ("latent_norm", "latent_norm_max", "code_norm", "code_norm_max", "norm_ratio"):
        assert line[key] > 0
        assert all(book[key] > 0 for book in line["books"].values())
    assert line["latent_norm"] <= line["latent_norm_max"]
    assert line["norm_ratio"] == max(book["norm_ratio"] for book in line["books"].values())
    assert line["learning_rate"] == config.optim.lr
    assert line["gradient_norm"] > 0
    assert "memory_bytes" in CLOCK_KEYS
    snapshot = load_checkpoint(tmp_path / "run" / "step_00000012")
    assert {"code_counts", "code_drawn_at", "code_window_began"} <= set(snapshot.trainer)
    assert json.dumps(snapshot.record["watch"])


def test_memory_is_that_of_the_process():
    before = memory(torch.device("cpu"))["memory_bytes"]
    held = torch.ones(64 << 20, dtype=torch.uint8)
    assert memory(torch.device("cpu"))["memory_bytes"] - before > len(held) * 0.9
