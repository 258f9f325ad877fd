"""Long runs: what the disk, the data, the machine and the losses may do to them."""

import errno
import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import (
    adversarial_config,
    assert_same_run,
    comparable_log,
    run_config,
    write_images,
)

from vqkit.cli import main
from vqkit.config import DataConfig, LogConfig, ValidationConfig, to_dict, with_changes
from vqkit.training import (
    Terminated,
    TokenizerObjective,
    checkpoint,
    list_checkpoints,
    load_checkpoint,
    log,
    read_log,
    train,
    validation,
)
from vqkit.training.explosion import Explosion
from vqkit.training.feed import Feed
from vqkit.training.interrupt import Interrupt
from vqkit.training.stops import read_stop
from vqkit.training.trainer import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    # On any machine the same few batches are read ahead.
    monkeypatch.setattr("vqkit.data.image_set.count_workers", lambda: 1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """The folder of an undisturbed run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        folder = tmp_path_factory.mktemp("runs") / "whole"
        train(run_config(images), out=folder, progress=False)
    return folder


def names(folder):
    return [path.name for path in list_checkpoints(folder)]


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


# ------------------------------------------------------------------------- full disk


def full_for(monkeypatch, *steps):
    """Fill the disk while the checkpoints of these steps are written, half of a file before."""
    real = checkpoint.write_whole

    def write(path, content):
        if any(path.parent.name.endswith(f"{step:08}") for step in steps):
            path.write_bytes(content[: len(content) // 2])
            no_space()
        real(path, content)

    monkeypatch.setattr(checkpoint, "write_whole", write)


def test_a_full_disk_is_waited_for(images, whole, tmp_path, monkeypatch, caplog):
    full_for(monkeypatch, 4, 8)
    train(run_config(images), out=tmp_path, progress=False)
    assert_same_run(whole, tmp_path, 12)
    assert names(tmp_path) == ["step_00000012"]
    assert not list(tmp_path.glob(".*"))
    assert "step 4: no checkpoint (" in caplog.text
    assert "No space left" in caplog.text
    assert "tries again at the next one" in caplog.text


def test_three_full_disks_on_end_stop_the_run(images, whole, tmp_path, monkeypatch):
    config = run_config(images, log__checkpoint_every=2)
    with monkeypatch.context() as patch:
        full_for(patch, 4, 6, 8)
        with pytest.raises(OSError, match=r"step_00000008; .*step_00000002 is whole") as caught:
            train(config, out=tmp_path, progress=False)
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["step_00000002"]
    assert read_stop(tmp_path)["kind"] == "disk"
    train(config, out=tmp_path, progress=False)
    assert_same_run(whole, tmp_path, 12)
    assert read_stop(tmp_path) is None


def test_the_count_of_failures_begins_again_after_a_success(images, whole, tmp_path, monkeypatch):
    full_for(monkeypatch, 1, 2, 4, 5, 7, 8)
    train(run_config(images, log__checkpoint_every=1), out=tmp_path, progress=False)
    assert_same_run(whole, tmp_path, 12)


def test_the_last_checkpoint_must_be_written(images, tmp_path, monkeypatch):
    full_for(monkeypatch, 12)
    with pytest.raises(OSError, match=r"step_00000012; .*step_00000008 is whole"):
        train(run_config(images), out=tmp_path, progress=False)
    assert names(tmp_path) == ["step_00000004", "step_00000008"]


def test_the_log_waits_for_a_full_disk(images, whole, tmp_path, monkeypatch, caplog):
    """The disk takes half a line, then nothing, until there is room again."""
    real = log.RunLog._append
    tries = []

    def append(self):
        tries.append(1)
        if 3 <= len(tries) <= 6 and self._waiting:
            size = self._path.stat().st_size
            with self._path.open("a") as file:
                file.write(self._waiting[0][:20])
            os.truncate(self._path, size)  # as the real one does
            no_space()
        real(self)

    monkeypatch.setattr(log.RunLog, "_append", append)
    train(run_config(images), out=tmp_path, progress=False)
    assert comparable_log(tmp_path) == comparable_log(whole)
    assert "step 3: the log waits for the disk" in caplog.text


def test_half_a_line_is_taken_back(tmp_path, monkeypatch):
    class Full:
        """A file whose disk takes 10 bytes of what is written."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            self.file.write(text[:10])
            self.file.flush()
            no_space()

    opened = Path.open
    with log.RunLog(tmp_path, start=0, tensorboard=False, main=True) as lines:
        lines.write({"step": 1})
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", lambda *args, **kwargs: Full(opened(*args, **kwargs)))
            lines.write({"step": 2})
            with pytest.raises(OSError, match="No space"):
                lines.flush()
        assert read_log(tmp_path / "log.jsonl") == [{"step": 1}]
        lines.write({"step": 3})
    assert read_log(tmp_path / "log.jsonl") == [{"step": step} for step in (1, 2, 3)]


def test_best_and_pictures_do_not_stop_a_run(images, whole, tmp_path, monkeypatch, caplog):
    held = DataConfig(source="folder", path=str(write_images(tmp_path / "held", count=2)))
    config = run_config(images, validation=ValidationConfig(data=held, every=6))
    monkeypatch.setattr(validation, "write_whole", no_space)
    train(config, out=tmp_path / "run", progress=False)
    assert "the best tokenizer could not be kept" in caplog.text
    assert "no picture of the validation" in caplog.text
    assert not (tmp_path / "run" / "best").exists()
    model = "tokenizer/model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (whole / model).read_bytes()


def test_a_folder_that_was_put_aside_comes_back(images, whole, tmp_path):
    """Killed between the two moves that replace a folder."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "result.json").unlink()
    (run / "tokenizer").rename(run / ".unfinished_old_tokenizer")
    train(run_config(images, optim__num_steps=13), out=run, progress=False)
    assert not list(run.glob(".*"))
    assert (run / "tokenizer").is_dir()


# --------------------------------------------------------------------------- signals


def test_sigterm_has_an_exit_code_of_its_own(images, whole, tmp_path, monkeypatch, capsys):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(to_dict(run_config(images))))
    words = ["train", "--config", str(settings), "--out", str(tmp_path / "run")]
    real = Trainer.step

    def step(self, batch):
        if self.done == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        assert main(words) == 143
    last = capsys.readouterr().err.splitlines()[-1]
    assert "stopped after step 5, saved in" in last
    assert "the same command (less --fresh) goes on from here" in last
    assert read_stop(tmp_path / "run")["name"] == "SIGTERM"
    assert main(words) == 0
    assert_same_run(whole, tmp_path / "run", 12)
    assert read_stop(tmp_path / "run") is None


def test_sigterm_outweighs_ctrl_c():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt() as interrupt:
        assert interrupt.received is None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
            assert interrupt.received is number
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_before_the_first_step_saves_nothing(images, tmp_path, monkeypatch):
    real = Feed.next

    def next_and_signal(self):
        signal.raise_signal(signal.SIGTERM)
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Feed, "next", next_and_signal)
        with pytest.raises(Terminated, match="stopped after step 0, nothing to save"):
            train(run_config(images), out=tmp_path, progress=False)
    assert names(tmp_path) == []
    assert train(run_config(images), out=tmp_path, progress=False).log[-1]["step"] == 12


# ------------------------------------------------------------------------------ data


@pytest.mark.parametrize("on_broken", ["fail", pytest.param("skip", marks=pytest.mark.slow)])
def test_a_vanished_folder_is_survived(on_broken, tmp_path, monkeypatch):
    images = write_images(tmp_path / "images", count=80)
    config = run_config(images, data__on_broken=on_broken, optim__num_steps=10)
    away = tmp_path / "away"
    real = Trainer.step

    def step(self, batch):
        if self.done == 1:
            images.rename(away)
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(OSError, match="the same command goes on") as caught:
            train(config, out=tmp_path / "run", progress=False)
    message = str(caught.value)
    assert "\n" not in message
    done = read_log(tmp_path / "run/log.jsonl")[-1]["step"]
    assert 2 <= done < 9
    assert message.startswith(f"step={done + 1}: data cannot be read (")
    assert f"step {done} is saved in" in message
    assert names(tmp_path / "run")[-1] == f"step_{done:08}"
    assert read_stop(tmp_path / "run")["kind"] == "data"
    away.rename(images)
    train(config, out=tmp_path / "run", progress=False)
    train(config, out=tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run", 10)


def test_files_that_break_in_the_middle_are_named(tmp_path, monkeypatch):
    images = write_images(tmp_path / "images", count=80)
    config = run_config(images, optim__num_steps=10)
    contents = {path: path.read_bytes() for path in images.iterdir()}
    real = Trainer.step

    def step(self, batch):
        if self.done == 1:
            for path, content in contents.items():  # of the same size
                path.write_bytes(bytes(len(content)))
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(OSError, match=r"data cannot be read \(\d\d\.png: unknown or damaged"):
            train(config, out=tmp_path / "run", progress=False)
    for path, content in contents.items():
        path.write_bytes(content)
    train(config, out=tmp_path / "run", progress=False)
    train(config, out=tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run", 10)


@pytest.mark.slow
def test_a_vanished_validation_is_survived_too(images, tmp_path, monkeypatch):
    held = write_images(tmp_path / "held", count=4)
    data = DataConfig(source="folder", path=str(held))
    config = run_config(images, validation=ValidationConfig(data=data, every=6))
    train(config, out=tmp_path / "whole", progress=False)
    gone = tmp_path / "gone"
    real = Trainer.step

    def step(self, batch):
        if self.done == 5:
            held.rename(gone)
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(OSError, match=r"step=6: validation\.data: 00\.png.*saved in"):
            train(config, out=tmp_path / "run", progress=False)
    assert names(tmp_path / "run")[-1] == "step_00000006"
    gone.rename(held)
    train(config, out=tmp_path / "run", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run", 12)


# ---------------------------------------------------------------------------- errors


def fail_at(monkeypatch, step, error, owner=TokenizerObjective, method="__call__", call=1):
    """Raise `error` in the step after `step`: in the middle of it, after a forward pass."""
    real, real_step = getattr(owner, method), Trainer.step
    calls = []

    def counted(self, batch):
        calls.clear()
        if self.done == step:
            calls.append(0)
        return real_step(self, batch)

    def failing(self, *args):
        out = real(self, *args)
        calls[:] = [number + 1 for number in calls]
        if calls == [call]:
            raise error
        return out

    monkeypatch.setattr(Trainer, "step", counted)
    monkeypatch.setattr(owner, method, failing)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["looc", "vq_ema", "cvq", "dual", "sq_vae"])
def test_out_of_memory_loses_no_step(preset, images, tmp_path, monkeypatch):
    parts = 1 if preset == "sq_vae" else 2
    make = run_config if preset == "sq_vae" else adversarial_config
    config = make(images, preset, optim__accumulate=parts)
    train(config, out=tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nX")
        fail_at(patch, 6, error, call=parts)
        with pytest.raises(
            MemoryError, match=r"step=7: out of memory \(CUDA.*GiB.\); step 6 is"
        ) as e:
            train(config, out=tmp_path / "run", progress=False)
    assert f"optim.accumulate={2 * parts}" in str(e.value)
    assert "\n" not in str(e.value)
    assert names(tmp_path / "run")[-1] == "step_00000006"
    train(config, out=tmp_path / "run", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run", 12)


def test_less_memory_may_be_asked_for_at_a_resume(images, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, 6, MemoryError("not enough memory"))
        with pytest.raises(MemoryError):
            train(run_config(images), out=tmp_path, progress=False)
    result = train(run_config(images, optim__accumulate=2), out=tmp_path, progress=False)
    assert result.log[-1]["step"] == 12


def test_half_an_update_is_never_saved(images, whole, tmp_path, monkeypatch):
    from vqkit.quantizers.stepping import Stepping

    with monkeypatch.context() as patch:
        fail_at(patch, 6, RuntimeError("CUDA error: device lost"), Stepping, "step")
        with pytest.raises(RuntimeError, match="device lost") as caught:
            train(run_config(images), out=tmp_path, progress=False)
    assert "step 6 is lost, step 4 is the last saved" in caught.value.__notes__[0]
    assert names(tmp_path) == ["step_00000004"]
    assert read_stop(tmp_path)["kind"] == "error"
    train(run_config(images), out=tmp_path, progress=False)
    assert_same_run(whole, tmp_path, 12)


# ------------------------------------------------------------- losses that are no good


def test_explosion_counts_steps_on_end():
    explosion = Explosion(LogConfig(explode=10, explode_steps=3))
    seen = [explosion.look(error) for error in (1.0, 0.5, 5.1, 5.1, 4.9, 6, 7)]
    assert seen == [False] * 7
    other = Explosion(LogConfig(explode=10, explode_steps=3))
    other.restore(json.loads(json.dumps(explosion.state())))
    assert other.look(8)
    fresh = Explosion(LogConfig())
    fresh.restore({})
    fresh.restore(json.loads(json.dumps(fresh.state())))
    assert math.isinf(fresh.least)
    assert not fresh.look(3.0)
    assert fresh.least == 3.0


def explode_after(monkeypatch, step):
    real = Trainer.step

    def worse(self, batch):
        report = real(self, batch)
        if self.done > step:
            report.losses["mse"] *= 50
        return report

    monkeypatch.setattr(Trainer, "step", worse)


@pytest.mark.parametrize("interrupted", [None, 6, 8])
def test_an_exploding_loss_stops_at_the_same_step(interrupted, images, tmp_path, monkeypatch):
    config = run_config(images, log__explode=10.0, log__explode_steps=4)
    with monkeypatch.context() as patch:
        explode_after(patch, 5)
        if interrupted:
            stepped = Trainer.step

            def step(self, batch):
                report = stepped(self, batch)
                if self.done == interrupted:
                    signal.raise_signal(signal.SIGINT)
                return report

            with monkeypatch.context() as more:
                more.setattr(Trainer, "step", step)
                with pytest.raises(KeyboardInterrupt):
                    train(config, out=tmp_path, progress=False)
        with pytest.raises(ValueError, match=r"step=9: the reconstruction error .* 4 steps on end"):
            train(config, out=tmp_path, progress=False)
    stop = read_stop(tmp_path)
    assert (stop["kind"], stop["step"], stop["explosion"]["above"]) == ("exploded", 9, 4)
    assert len(load_file(tmp_path / "bad_batch.safetensors")["images"]) == 8


def test_a_dump_tells_what_was_known(images, tmp_path, monkeypatch):
    real = torch.optim.Adam.step

    def spoil(self, *args, **kwargs):
        real(self, *args, **kwargs)
        if spoil.steps == 6:  # a weight goes wrong in an update: the next loss shows it
            with torch.no_grad():
                self.param_groups[0]["params"][-1].fill_(math.inf)
        spoil.steps += 1

    spoil.steps = 0
    monkeypatch.setattr(torch.optim.Adam, "step", spoil)
    with pytest.raises(ValueError, match=r"step=8: .* is "):
        train(run_config(images), out=tmp_path, progress=False)
    stop = read_stop(tmp_path)
    assert stop["kind"] == "not_finite"
    assert stop["losses"]["loss"] in ("nan", "inf")
    assert set(stop["weight_norms"]) == {"encoder", "quantizer", "decoder"}
    assert set(stop["gradient_norms"]) <= set(stop["weight_norms"])
    assert len(stop["not_finite"]) == 1
    assert stop["not_finite_gradients"]
    assert [line["step"] for line in stop["last_lines"]] == list(range(1, 8))
    assert stop["config"]["optim"]["lr"] == 3e-3
    assert len(stop["batch"]["keys"]) == 8
    assert 0 <= stop["batch"]["least"] < stop["batch"]["largest"] <= 255
    assert stop["versions"]["torch"] == torch.__version__


# ------------------------------------------------------------------------ checkpoints


def test_a_discriminator_is_saved_beside(images, tmp_path):
    train(adversarial_config(images), out=tmp_path, progress=False)
    newest = list_checkpoints(tmp_path)[-1]
    saved = load_checkpoint(newest)
    assert {"discriminator", "discriminator_optimizer"} <= set(saved.groups())
    content = load_file(newest / "discriminator.safetensors")
    assert saved.discriminator.keys() == content.keys()
    moments = load_file(newest / "discriminator_optimizer.safetensors")
    assert {name.rpartition("/")[0] for name in moments} <= set(content)


def test_checkpoints_of_older_versions_still_load(images, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ("tokenizer", "step_00000012"):
        shutil.rmtree(run / name)
    (run / "result.json").unlink()
    old = run / "step_00000008"
    trainer = load_file(old / "trainer.safetensors")
    kept = {name: trainer[name] for name in ("code_counts", "random.cpu")}
    save_file(kept, old / "trainer.safetensors")
    content = json.loads((old / "trainer.json").read_text())
    for key in ("explosion", "watch", "best", "line"):
        del content["record"][key]
    (old / "trainer.json").unlink()
    files = {path.name: path.read_bytes() for path in old.iterdir()}
    content["files"] = {n: checkpoint.hashlib.sha256(b).hexdigest() for n, b in files.items()}
    content["sha256"] = checkpoint._record_hash(content)
    (old / "trainer.json").write_text(json.dumps(content))
    settings = json.loads((run / "config.json").read_text())
    for section, name in (("optim", "schedule"), ("log", "explode"), ("data", "stretch")):
        del settings[section][name]
    (run / "config.json").write_text(json.dumps(settings))
    train(with_changes(run_config(images)), out=run, progress=False)
    one, other = (load_file(x / "tokenizer" / "model.safetensors") for x in (whole, run))
    assert all(torch.equal(one[name], other[name]) for name in one)
