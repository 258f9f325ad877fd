"""`vqkit doctor`: the right words and exit code for every way in which a run can fare."""

import errno
import json
import math
import shutil
import signal

import pytest
import torch
from training_runs import run_config, write_images

from vqkit.cli import main
from vqkit.config import DataConfig, ValidationConfig, with_changes
from vqkit.training import checkpoint, diagnose, health, list_checkpoints, read_log, train
from vqkit.training.objective import TokenizerObjective
from vqkit.training.stops import KINDS, read_stop, write_stop
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
def finished(images, tmp_path_factory):
    """The folder of a finished run with a validation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        folder = tmp_path_factory.mktemp("runs") / "finished"
        data = DataConfig(source="folder", path=str(images), limit=4)
        held = ValidationConfig(data=data, every=6)
        train(run_config(images, validation=held), out=folder, progress=False)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to be spoilt."""
    return shutil.copytree(finished, tmp_path / "run")


def unfinished(folder):
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "tokenizer")


def asked(capsys, folder):
    """Exit code and words of the command."""
    capsys.readouterr()
    code = main(["doctor", str(folder)])
    shown = capsys.readouterr()
    assert shown.err == ""
    assert len(shown.out.splitlines()) <= 30
    assert (code == 0) == ("healthy" in shown.out) == ("problem:" not in shown.out)
    return code, shown.out


def causes(folder):
    return [finding.cause for finding in diagnose(folder).findings]


def failing(monkeypatch, step, spoil, error=ValueError):
    """Train until `spoil(trainer, report)`, called after step `step`, has stopped the run."""
    real = Trainer.step

    def spoilt(self, batch):
        report = real(self, batch)
        if self.done == step:
            spoil(self, report)
        return report

    monkeypatch.setattr(Trainer, "step", spoilt)
    return pytest.raises(error)


# ---------------------------------------------------------------------- nothing is wrong


def test_a_finished_run_is_healthy(finished, capsys):
    code, text = asked(capsys, finished)
    assert code == 0
    assert "tiny_looc, finished, 12 steps" in text
    assert "checkpoints: 2 whole (step 8, 12)" in text
    assert "log: 12 lines to step 12, loss " in text
    assert "best: step " in text


def test_an_interrupted_run_is_healthy(images, tmp_path, capsys, monkeypatch):
    def spoil(trainer, report):
        signal.raise_signal(signal.SIGTERM)

    with failing(monkeypatch, 6, spoil, KeyboardInterrupt):
        train(run_config(images), out=tmp_path, progress=False)
    code, text = asked(capsys, tmp_path)
    assert code == 0
    assert "stopped by SIGTERM at step 6 of 12" in text


def test_a_killed_run_is_healthy(run, capsys):
    unfinished(run)
    shutil.rmtree(run / "step_00000012")
    (run / "log.jsonl").write_text((run / "log.jsonl").read_text() + '{"step": 13, "lo')
    code, text = asked(capsys, run)
    assert code == 0
    assert "unfinished, at step 12 of 12" in text


def test_what_holds_no_run_is_bad_input(finished, tmp_path, capsys):
    for words in (["doctor"], ["doctor", str(tmp_path)], ["doctor", str(finished / "tokenizer")]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("vqkit: run")
        assert error.count("\n") == 1


# ------------------------------------------------------------------------ stopped by itself


def stopped_with_nan(folder, config, monkeypatch, **gradients):
    """A run whose losses are not finite at step 7, after gradients of the given norms."""
    real = Trainer.step

    def step(self, batch):
        report = real(self, batch)
        norm = gradients["norms"][self.done - 1]
        problem = "loss is nan" if self.done == 7 else ""
        losses = report.losses | {"loss": math.nan if problem else 1.0}
        return type(report)(losses, norm, problem, report.gradients)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(ValueError, match="loss is nan"):
            train(config, out=folder, progress=False)


def test_rising_gradients_mean_a_high_learning_rate(images, tmp_path, capsys, monkeypatch):
    norms = [1.0, 1.1, 0.9, 1.0, 6.0, 300.0, math.inf]
    config = run_config(images, optim__precision="bf16")
    stopped_with_nan(tmp_path, config, monkeypatch, norms=norms)
    code, text = asked(capsys, tmp_path)
    assert code == 1
    assert "stopped at step 8 of 12" in text
    assert "problem: learning rate too high" in text
    assert "loss is nan" in text
    assert "went from 1 to 300, with optim.lr=0.003" in text
    assert "optim.clip_norm=1" in text
    assert "bf16" not in text


def test_a_stop_names_no_checkpoint_that_is_not_there(images, tmp_path, monkeypatch):
    norms = [1.0] * 6 + [math.nan]
    for every, said in ((4, "and the last checkpoint is good"), (50, "no checkpoint exists yet")):
        config = run_config(images, log__checkpoint_every=every)
        stopped_with_nan(tmp_path / str(every), config, monkeypatch, norms=norms)
        assert said in read_stop(tmp_path / str(every))["message"]


@pytest.mark.parametrize(
    ("precision", "cause"), [("bf16", "bf16 overflow"), ("fp32", "learning rate too high")]
)
def test_calm_gradients_point_at_the_precision(precision, cause, images, tmp_path, monkeypatch):
    config = run_config(images, optim__precision=precision)
    stopped_with_nan(tmp_path, config, monkeypatch, norms=[1.0] * 6 + [math.nan])
    assert causes(tmp_path) == [cause]


def test_images_of_one_colour_are_blamed(tmp_path, capsys, monkeypatch):
    from PIL import Image

    for number in range(24):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), "black").save(tmp_path / "images" / f"{number:02}.png")
    config = run_config(tmp_path / "images")
    stopped_with_nan(tmp_path / "run", config, monkeypatch, norms=[1.0] * 6 + [math.nan])
    _, text = asked(capsys, tmp_path / "run")
    assert "problem: broken images" in text
    assert "8 of the 8 images of the batch are of one colour: " in text


def test_an_exploded_loss(images, tmp_path, capsys, monkeypatch):
    """For real: a learning rate at which the error grows and grows."""
    config = run_config(
        images, optim__lr=0.3, log__explode=2.0, log__explode_steps=3, optim__num_steps=40
    )
    with pytest.raises(ValueError, match="the reconstruction error"):
        train(config, out=tmp_path, progress=False)
    code, text = asked(capsys, tmp_path)
    assert code == 1
    assert "problem: learning rate too high" in text
    assert "with optim.lr=0.3" in text


def test_weights_that_are_not_finite(images, tmp_path, monkeypatch, capsys):
    def spoil(trainer, report):
        with torch.no_grad():
            next(trainer.tokenizer.decoder.parameters()).fill_(math.inf)

    with failing(monkeypatch, 8, spoil):
        train(run_config(images), out=tmp_path, progress=False)
    _, text = asked(capsys, tmp_path)
    assert "problem: learning rate too high" in text
    assert "hold values that are not finite" in text


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(images, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_whole", no_space)
        with pytest.raises(OSError, match="No space"):
            train(run_config(images), out=tmp_path, progress=False)
    code, text = asked(capsys, tmp_path)
    assert code == 1
    assert "problem: disk full" in text
    assert "log.keep=1" in text
    assert "checkpoints: none" in text


def test_a_disk_that_will_be_full(run, monkeypatch):
    assert causes(run) == []
    unfinished(run)
    usage = shutil.disk_usage(run)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    assert causes(run) == ["disk almost full"]


def test_vanished_images(tmp_path, monkeypatch, capsys):
    images = write_images(tmp_path / "images", count=80)

    def spoil(trainer, report):
        images.rename(tmp_path / "away")

    with failing(monkeypatch, 2, spoil, OSError):
        train(run_config(images), out=tmp_path / "run", progress=False)
    code, text = asked(capsys, tmp_path / "run")
    assert code == 1
    assert "problem: images vanished or broken" in text
    assert ".png: No such file or directory" in text
    assert "data.path" in text


def test_too_little_memory_and_other_errors(images, tmp_path, monkeypatch, capsys):
    for error, caught, cause, words in (
        (torch.OutOfMemoryError("no"), MemoryError, "out of memory", "optim.accumulate"),
        (RuntimeError("odd"), RuntimeError, "error in the code", "RuntimeError: odd"),
    ):
        with monkeypatch.context() as patch:

            def raises(self, *args, error=error):
                raise error

            patch.setattr(TokenizerObjective, "__call__", raises)
            with pytest.raises(caught):
                train(run_config(images), out=tmp_path / cause, progress=False)
        code, text = asked(capsys, tmp_path / cause)
        assert code == 1
        assert f"problem: {cause}" in text
        assert words in text


def test_processes_apart(images, tmp_path, monkeypatch, capsys):
    def apart(model, device, step):
        raise RuntimeError(f"step={step}: processes [1] hold other weights than process 0")

    monkeypatch.setattr(health, "check_ranks_agree", apart)
    with pytest.raises(RuntimeError, match="hold other weights"):
        train(run_config(images), out=tmp_path, progress=False)
    _, text = asked(capsys, tmp_path)
    assert "problem: processes apart" in text


def test_every_kind_of_stop_is_explained(run):
    unfinished(run)
    for kind in KINDS:
        write_stop(run, kind, 7, "what was said")
        found = diagnose(run)
        assert "step 7" in found.state
        assert all(f.cause and f.seen and f.remedy for f in found.findings)
        assert bool(found.findings) == (kind != "signal")


# ------------------------------------------------------------------------- what the log says


def rewrite_log(folder, change, *, steps=400):
    """Put a log of `steps` lines in place, each the last real one changed by `change(step)`."""
    last = read_log(folder / "log.jsonl")[-1]
    lines = [{**last, **change(step), "step": step} for step in range(1, steps + 1)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = json.loads((folder / "config.json").read_text())
    settings["optim"]["num_steps"] = steps
    (folder / "config.json").write_text(json.dumps(settings))


def test_a_collapsed_codebook(run, capsys):
    book = {"codes": 1024, "tokens": 4096, "used": 0.002, "perplexity": 1.4, "dead": 0, "idle": 3}
    rewrite_log(run, lambda step: {"books": {"code": book}})
    code, text = asked(capsys, run)
    assert code == 1
    assert "problem: codebook collapse" in text
    assert "used 2 of 1,024" in text
    assert "cvq, looc" in text


def test_a_discriminator_that_wins(run, capsys):
    def change(step):
        sure = 0.99 if step > 50 else 0.6
        return {
            "accuracy_real": sure,
            "accuracy_fake": sure,
            "logits_real": 4.0,
            "logits_fake": -4.0,
            "generator": 0.1 + step / 100,
            "adaptive_weight": 1.0,
            "discriminator": 0.01,
        }

    rewrite_log(run, change)
    assert "discriminator wins" in causes(run)
    unfinished(run)
    write_stop(run, "not_finite", 400, "loss is nan", losses={"loss": math.nan})
    _, text = asked(capsys, run)
    assert text.index("discriminator wins") < text.index("adversarial.lr")


def test_a_run_that_learns_by_heart(run, capsys):
    def change(step):
        held = 25.0 - abs(step - 40) / 30
        validation = {"validation/psnr": held} if step % 20 == 0 else {"validation/psnr": None}
        found = {k: v for k, v in validation.items() if v is not None}
        return {"mse": 1.0 / step, **found}

    last = read_log(run / "log.jsonl")[-1]
    assert "validation/psnr" in last
    lines = [
        {**{k: v for k, v in last.items() if "validation" not in k}, **change(step), "step": step}
        for step in range(1, 121)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, text = asked(capsys, run)
    assert "problem: data too few" in text
    assert "from 25 (step 40) to 22.33 (step 120)" in text


def test_a_damaged_log(run, capsys):
    text = (run / "log.jsonl").read_text().splitlines(keepends=True)
    text[3] = "{}\n"
    text[5] = '{"step": 6, "lo\n'
    (run / "log.jsonl").write_text("".join(text))
    code, said = asked(capsys, run)
    assert code == 1
    assert "problem: log damaged" in said
    assert "line 4 and 1 more cannot be read" in said


# ------------------------------------------------------------------------------- damage


def test_damaged_checkpoints(run, capsys):
    newest = list_checkpoints(run)[-1] / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(bytes(content))
    code, text = asked(capsys, run)
    assert code == 1
    assert "problem: checkpoint damaged" in text
    assert "step_00000012/optimizer.safetensors" in text
    assert "finished, and tokenizer/ is whole; a longer run would go on from step 8" in text
    (run / "step_00000008" / "trainer.json").unlink()
    assert "only a longer run needs a checkpoint" in asked(capsys, run)[1]
    unfinished(run)
    assert "none is whole" in asked(capsys, run)[1]


def test_damaged_checkpoints_of_an_unfinished_run(run, capsys):
    unfinished(run)
    (run / "step_00000012" / "trainer.json").unlink()
    assert "goes on from step 8, the newest whole one" in asked(capsys, run)[1]


def test_steps_without_weights(run, capsys):
    checkpoints = list_checkpoints(run)
    for folder in (*checkpoints, run / "tokenizer"):
        shutil.rmtree(folder)
    code, text = asked(capsys, run)
    assert code == 1
    assert "problem: weights missing" in text
    assert "12 steps are logged" in text
    assert "best/ is there" in text
    (run / "result.json").unlink()
    log = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text(log[:-20])  # cut in the last line
    assert causes(run) == ["weights missing"]
    lines = log.splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(lines[:3]))  # killed before the first checkpoint
    assert causes(run) == []


def test_a_damaged_result(run, capsys):
    result = run / "result.json"
    result.write_text(result.read_text()[:-30])
    code, text = asked(capsys, run)
    assert code == 1
    assert f"problem: result damaged\n  seen: {result}: cannot be read" in text
    assert "the same train command writes it again, from the checkpoint of step 12" in text
    for content in (result.read_text(), "{}", "[]"):
        result.write_text(content)
        assert main(["evaluate", str(run)]) == 2
        assert f"vqkit: {result}: " in capsys.readouterr().err


def test_train_writes_a_damaged_tokenizer_again(run, capsys):
    """As the doctor says; the newest whole checkpoint may be an older one."""
    weights = run / "tokenizer" / "model.safetensors"
    content = weights.read_bytes()
    for newest in ("whole", "damaged"):
        weights.write_bytes(content[:-100])
        if newest == "damaged":
            (run / "step_00000012" / "trainer.json").unlink()
        step = {"whole": 12, "damaged": 8}[newest]
        remedy = f"the same train command writes it again, from the checkpoint of step {step}"
        assert remedy in asked(capsys, run)[1]
        assert main(["train", "--config", str(run / "config.json"), "--out", str(run)]) == 0
        assert f"{weights}: " in capsys.readouterr().err
        assert weights.read_bytes() == content
        assert causes(run) == []


@pytest.mark.parametrize("name", ["tokenizer", "best"])
def test_a_damaged_tokenizer(name, run, capsys):
    weights = run / name / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, text = asked(capsys, run)
    assert code == 1
    assert "problem: tokenizer damaged" in text
    assert f"{name}/model.safetensors" in text


def test_a_damaged_record(run, capsys):
    (run / "stopped.json").write_text('{"kind": ')
    assert "problem: record damaged" in asked(capsys, run)[1]
    (run / "stopped.json").write_text('{"kind": "struck by lightning"}')
    assert "another version" in asked(capsys, run)[1]
    assert with_changes(run_config(run)) is not None
