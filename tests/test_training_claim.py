"""Two trainings never share a folder, and processes without a launcher leave."""

import os
import signal
import subprocess
import sys

import pytest
from training_runs import assert_same_run, run_config, write_images

from vqkit.config import DataConfig
from vqkit.training import claim, train
from vqkit.training.claim import claimed
from vqkit.training.interrupt import Interrupt

HOLDER = """
import sys
from pathlib import Path
from vqkit.training.claim import claimed
with claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(claim, "WAIT", 0.0)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def holder(tmp_path):
    """Another process that has claimed `run`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def test_a_claimed_folder_is_refused(tmp_path):
    pytest.importorskip("fcntl")
    refused = pytest.raises(ValueError, match="another process trains here")
    with claimed(tmp_path / "run"), refused, claimed(tmp_path / "run"):
        pass
    with claimed(tmp_path / "run"):  # it is free again
        pass


@pytest.mark.slow
def test_a_second_training_is_refused_until_the_first_is_gone(holder, images, tmp_path):
    pytest.importorskip("fcntl")
    config = run_config(images, optim__num_steps=2)
    with pytest.raises(ValueError, match="another process trains here"):
        train(config, out=tmp_path / "run", progress=False)
    assert not any((tmp_path / "run").iterdir())
    holder.kill()
    holder.wait()
    assert train(config, out=tmp_path / "run", progress=False).log[-1]["step"] == 2


def test_others_of_several_processes_do_not_claim(tmp_path, monkeypatch):
    with claimed(tmp_path / "run"):
        monkeypatch.setenv("RANK", "1")
        with claimed(tmp_path / "run"):
            pass
        monkeypatch.setenv("RANK", "0")


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path):
    with claimed(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    with claimed(tmp_path / "none" / "of" / "these"):
        pass
    assert not (tmp_path / "none").exists()
    assert tmp_path.exists()
    (tmp_path / "old").mkdir()
    with claimed(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()


def test_a_process_whose_launcher_is_gone_is_asked_to_stop(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(os, "getppid", lambda: 3)
    with Interrupt() as interrupt:
        assert interrupt.received is None
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert interrupt.received is signal.SIGTERM
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    with Interrupt() as interrupt:  # a shell that ends leaves its jobs alone
        monkeypatch.setattr(os, "getppid", lambda: 2)
        assert not interrupt.requested


def test_another_test_set_stops_no_resume(images, tmp_path):
    short = run_config(images, optim__num_steps=4, log__checkpoint_every=4)
    train(short, out=tmp_path / "run", progress=False)
    whole = run_config(images, optim__num_steps=8, log__checkpoint_every=4)
    moved = run_config(
        images,
        optim__num_steps=8,
        log__checkpoint_every=4,
        test_data=DataConfig(source="folder", path="elsewhere"),
    )
    train(moved, out=tmp_path / "run", progress=False)
    train(whole, out=tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run", 8)


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_is_no_folder(below, tmp_path):
    (tmp_path / "file").write_text("kept")
    refused = pytest.raises(ValueError, match=r"^out=.*a file; name a folder")
    with refused, claimed(tmp_path / "file" / below):
        pass
    assert (tmp_path / "file").read_text() == "kept"
