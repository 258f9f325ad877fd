"""Whole processes: one killed outright, two of them together under torchrun."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from training_runs import (
    PRESETS,
    adversarial_config,
    assert_same_run,
    comparable_log,
    run_config,
    write_images,
)

import vqkit
from vqkit.config import to_dict
from vqkit.training import list_checkpoints, train

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("training_runs.py")
KILLS, KILLED_STEPS = 20, 3000
"""Ends of a run in the campaign, and its steps: more than those that fit between the ends."""


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("PYTHONPATH", str(Path(vqkit.__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def start(config, out, place="none", step=0, processes=1, timeout=300):
    command = command_of(config, out, place, step, processes)
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=os.environ)


def command_of(config, out, place="none", step=0, processes=1):
    settings = out.with_suffix(".json")
    settings.write_text(json.dumps(to_dict(config)))
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(processes),
        "--standalone",
    ]
    command = [sys.executable, *(launcher if processes > 1 else [])]
    return [*command, str(SCRIPT), str(settings), str(out), place, str(step)]


def flat(line, prefix=""):
    """A line of the log with the numbers of codebooks under names of their own."""
    found = {}
    for name, value in line.items():
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


@pytest.mark.parametrize(
    ("preset", "place", "step", "left"),
    [
        ("looc", "step", 7, 4),
        ("sq_vae", "step", 11, 8),
        ("vq_ema", "save", 8, 4),
        ("dual", "step", 2, None),
    ],
)
def test_killed_and_resumed_is_bit_for_bit_the_same(preset, place, step, left, images, tmp_path):
    config = run_config(images, preset, optim__weight_ema=0.9, log__every=2)
    if place == "step":  # every step has a line after which the process kills itself
        config = run_config(images, preset, optim__weight_ema=0.9)
    died = start(config, tmp_path / "killed", place, step)
    assert died.returncode == -signal.SIGKILL, died.stderr
    newest = [path.name for path in list_checkpoints(tmp_path / "killed")][-1:]
    assert newest == ([f"step_{left:08}"] if left is not None else [])
    train(config, out=tmp_path / "killed", progress=False)
    train(config, out=tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "killed", 12)
    picture = (torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 255).byte()
    ids = [train(config, out=tmp_path / x).tokenizer.encode(picture) for x in ("killed", "whole")]
    assert torch.equal(*ids)


@pytest.mark.parametrize(("preset", "accumulate"), [("looc", 2), ("gumbel", 2), ("sq_vae", 1)])
def test_two_processes_are_one_on_the_whole_batch(preset, accumulate, images, tmp_path):
    config = run_config(
        images, preset, optim__accumulate=accumulate, optim__num_steps=4, optim__weight_ema=0.9
    )
    done = start(config, tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr
    ranks = [load_file(tmp_path / f"two_rank{rank}_4.safetensors") for rank in (0, 1)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    train(config, out=tmp_path / "one", progress=False)
    for one, two in zip(*(comparable_log(tmp_path / x) for x in ("one", "two")), strict=True):
        assert one["tokens"] == two["tokens"]
        here, there = flat(one), flat(two)
        for name, value in here.items():
            # latents are looked at in the last micro-batch, which holds other images
            if "latent" not in name and "norm_ratio" not in name:
                assert there[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    one, two = (load_file(tmp_path / x / "tokenizer/model.safetensors") for x in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def assert_two_are_one(config, tmp_path):
    """Two processes end with the same bits, and within 1e-5 of one on the whole batch."""
    done = start(config, tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr
    last = config.optim.num_steps
    ranks = [load_file(tmp_path / f"two_rank{rank}_{last}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    train(config, out=tmp_path / "one", progress=False)
    for one, two in zip(*(comparable_log(tmp_path / x) for x in ("one", "two")), strict=True):
        assert one["tokens"] == two["tokens"]
        here, there = flat(one), flat(two)
        assert here.keys() == there.keys()
        for name, value in here.items():
            assert there[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    step = f"step_{last:08}"
    for file in ("tokenizer/model.safetensors", f"{step}/discriminator.safetensors"):
        one, two = (load_file(tmp_path / x / file) for x in ("one", "two"))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("preset", "accumulate"),
    [
        ("dual", 1),
        ("looc", 1),
        ("vq_ema", 1),
    ],
)
def test_two_processes_with_a_discriminator_are_one(preset, accumulate, images, tmp_path):
    config = adversarial_config(images, preset, optim__num_steps=6, optim__accumulate=accumulate)
    assert_two_are_one(config, tmp_path)


@pytest.mark.parametrize(("place", "step"), [("one", 7), ("term", 6)])
def test_two_processes_that_are_ended_go_on_bit_for_bit(place, step, images, tmp_path):
    """One of the two is killed outright; or both are told to end, save, and leave."""
    config = adversarial_config(images)
    ended = start(config, tmp_path / "ended", place, step, processes=2)
    assert ended.returncode != 0
    newest = list_checkpoints(tmp_path / "ended")[-1].name
    assert newest == "step_00000004" if place == "one" else newest > "step_00000004"
    for name in ("ended", "whole"):
        done = start(config, tmp_path / name, processes=2)
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "ended", 12)


@pytest.mark.soak
def test_two_processes_ended_twenty_times_at_random(images, tmp_path):
    """SIGKILL and SIGTERM in turn, whenever they hit, to a run with a discriminator."""
    seed = int(os.environ.get("VQKIT_SOAK_SEED", "0"))
    config = adversarial_config(images, optim__num_steps=KILLED_STEPS, log__checkpoint_every=25)
    done = start(config, tmp_path / "whole", processes=2, timeout=1800)
    assert done.returncode == 0, done.stderr
    source, ends = np.random.default_rng(seed), []
    while len(ends) < KILLS:
        process = subprocess.Popen(
            command_of(config, tmp_path / "ended", processes=2),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ,
            start_new_session=True,
        )
        kind = (signal.SIGKILL, signal.SIGTERM)[len(ends) % 2]
        try:
            process.wait(timeout=source.uniform(8.0, 20.0))
            break
        except subprocess.TimeoutExpired:
            if kind == signal.SIGKILL:
                workers = psutil.Process(process.pid).children(recursive=True)
                for one in (*workers, psutil.Process(process.pid)):  # as a power failure
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
            else:
                process.send_signal(kind)
            process.wait(timeout=120)
            ends.append(kind.name)
    done = start(config, tmp_path / "ended", processes=2, timeout=1800)
    assert done.returncode == 0, done.stderr
    sys.stdout.write(f"ended {len(ends)} times: {' '.join(ends)}\n")
    assert len(ends) == KILLS, "the run was over before; make it longer"
    assert_same_run(tmp_path / "whole", tmp_path / "ended", KILLED_STEPS)


def test_two_processes_resume_what_one_began(images, tmp_path):
    config = run_config(images, optim__num_steps=4, log__checkpoint_every=2, log__every=4)
    shorter = run_config(images, optim__num_steps=2, log__checkpoint_every=2, log__every=4)
    train(shorter, out=tmp_path / "run", progress=False)
    done = start(config, tmp_path / "run", processes=2)
    assert done.returncode == 0, done.stderr
    train(config, out=tmp_path / "one", progress=False)
    resumed, whole = (comparable_log(tmp_path / x)[-1] for x in ("run", "one"))
    assert resumed["tokens"] == whole["tokens"]
    assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-5)


@pytest.mark.soak
@pytest.mark.parametrize("preset", PRESETS)
def test_killed_at_any_moment_again_and_again(preset, images, tmp_path):
    """Kills from outside, wherever they hit: while loading, training, saving or finishing."""
    config = run_config(images, preset, optim__num_steps=800, log__checkpoint_every=31)
    train(config, out=tmp_path / "whole", progress=False)
    settings = tmp_path / "killed.json"
    settings.write_text(json.dumps(to_dict(config)))
    command = [sys.executable, str(SCRIPT), str(settings), str(tmp_path / "killed"), "none", "0"]
    source, kills = np.random.default_rng(0), 0
    for _ in range(60):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ)
        try:
            process.wait(timeout=source.uniform(2.0, 5.0))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    train(config, out=tmp_path / "killed", progress=False)
    assert kills > 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed", 800)
