"""Validation during training: right numbers, no trace in the run, the best tokenizer, resume."""

import json
import math
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from training_runs import assert_same_run, comparable_log, run_config, write_images

from vqkit.config import DataConfig, ValidationConfig, with_changes
from vqkit.data import iterate_once, load_images, to_float
from vqkit.data.share import Share
from vqkit.metrics import to_bytes
from vqkit.metrics.lpips import LPIPS
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.training import Terminated, list_checkpoints, read_log, train, validation
from vqkit.training.stops import read_stop
from vqkit.training.trainer import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """Ten images, no multiple of the batch, two of another size."""
    folder = write_images(tmp_path_factory.mktemp("held"), count=8, seed=1)
    write_images(folder / "larger", count=2, side=16, seed=2)
    return folder


def validated(images, held, preset="looc", **changes):
    """The tiny run with a validation every 5 steps, and after the last, the 12th."""
    settings = {"every": 5, "batch_size": 3, "pictures": 10}
    settings |= {k.removeprefix("validation__"): v for k, v in changes.items() if "validation" in k}
    rest = {k: v for k, v in changes.items() if "validation" not in k}
    data = DataConfig(source="folder", path=str(held))
    return run_config(images, preset, validation=ValidationConfig(data=data, **settings), **rest)


def validations(folder):
    """Step -> numbers of every validation in the log."""
    return {
        line["step"]: {k: v for k, v in line.items() if k.startswith("validation/")}
        for line in read_log(folder / "log.jsonl")
        if "validation/psnr" in line
    }


def measured(tokenizer, folder):
    """The same numbers, image by image and count by count."""
    found = load_images(DataConfig(source="folder", path=str(folder)))
    psnrs, errors, ids = [], [], []
    for index in range(len(found)):
        original = found.image(index)
        bytes_ = ((tokenizer.reconstruct(original[None])[0] + 1) * 127.5).round().numpy()
        error = bytes_ / 255 - original.numpy() / 255
        psnrs.append(-10 * math.log10(np.mean(error**2)))
        errors.append(np.abs(error).mean())
        ids.append(tokenizer.encode(original[None]).flatten())
    drawn = torch.cat(ids)
    shares = torch.bincount(drawn).double() / len(drawn)
    shares = shares[shares > 0]
    return {
        "validation/psnr": np.mean(psnrs),
        "validation/l1": np.mean(errors),
        "validation/codes_used": len(shares) / 8,
        "validation/perplexity": math.exp(-float((shares * shares.log()).sum())),
    }


@pytest.fixture(scope="module")
def whole(images, held, tmp_path_factory):
    """The folder of an undisturbed run whose checkpoints are all kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        folder = tmp_path_factory.mktemp("runs") / "whole"
        train(validated(images, held, log__checkpoint_every=5, log__keep=9), out=folder)
    return folder


def test_numbers_are_those_of_the_tokenizer_at_that_step(whole, held):
    found = validations(whole)
    assert list(found) == [5, 10, 12]
    for step, numbers in found.items():
        tokenizer = ImageTokenizer.from_pretrained(whole / f"step_{step:08}")
        expected = measured(tokenizer, held)
        assert set(numbers) == set(expected)
        for name, value in expected.items():
            assert numbers[name] == pytest.approx(value, rel=1e-6), name


def test_the_picture_shows_originals_above_reconstructions(whole, held):
    names = sorted(path.name for path in (whole / "validation").iterdir())
    assert names == ["step_00000005.png", "step_00000010.png", "step_00000012.png"]
    sheet = np.asarray(Image.open(whole / "validation" / "step_00000012.png"))
    # Rows of 8 cells as large as the largest image, 2 pixels apart; 10 images: 4 rows.
    assert sheet.shape == (4 * 18 - 2, 8 * 18 - 2, 3)
    found = load_images(DataConfig(source="folder", path=str(held)))
    tokenizer = ImageTokenizer.from_pretrained(whole / "tokenizer")
    for index in range(10):
        original = found.image(index)
        rebuilt = ((tokenizer.reconstruct(original[None])[0] + 1) * 127.5).round()
        band, column = divmod(index, 8)
        size = original.shape[-1]
        for row, picture in enumerate((original, rebuilt)):
            top, left = (2 * band + row) * 18, column * 18
            cell = sheet[top : top + size, left : left + size]
            assert np.array_equal(cell, picture.permute(1, 2, 0).numpy())


def test_the_best_tokenizer_is_kept(whole):
    scores = {step: numbers["validation/psnr"] for step, numbers in validations(whole).items()}
    step = max(scores, key=scores.get)
    record = json.loads((whole / "best" / "best.json").read_text())
    assert (record["step"], record["metric"]) == (step, "psnr")
    assert record["score"] == scores[step]
    assert record["images"] == 10
    best, then = (whole / name / "model.safetensors" for name in ("best", f"step_{step:08}"))
    assert best.read_bytes() == then.read_bytes()


@pytest.mark.parametrize(("metric", "best"), [("psnr", 2), ("l1", 3), ("none", None)])
def test_best_is_chosen_by_the_named_metric(metric, best, images, held, tmp_path, monkeypatch):
    scores = iter([(20.0, 0.3), (22.0, 0.2), (21.0, 0.1), (22.0, 0.1)])

    def scored(self):
        psnr, l1 = next(scores)
        return {"psnr": psnr, "l1": l1}

    monkeypatch.setattr(validation._Sums, "join", scored)
    config = validated(
        images, held, validation__every=1, validation__keep_best=metric, optim__num_steps=4
    )
    train(with_changes(config, log__checkpoint_every=1, log__keep=9), out=tmp_path, progress=False)
    if best is None:
        assert not (tmp_path / "best").exists()
        return
    assert json.loads((tmp_path / "best/best.json").read_text())["step"] == best  # the first of two
    model, then = (tmp_path / name / "model.safetensors" for name in ("best", f"step_{best:08}"))
    assert model.read_bytes() == then.read_bytes()


def test_averaged_weights_are_looked_at(images, held, tmp_path):
    config = validated(images, held, optim__weight_ema=0.9, validation__every=12)
    train(config, out=tmp_path, progress=False)
    expected = measured(ImageTokenizer.from_pretrained(tmp_path / "tokenizer"), held)
    assert validations(tmp_path)[12]["validation/psnr"] == pytest.approx(
        expected["validation/psnr"], rel=1e-6
    )
    state = load_file(tmp_path / "best" / "model.safetensors")
    average = load_file(tmp_path / "step_00000012" / "ema.safetensors")
    assert all(torch.equal(state[name], tensor) for name, tensor in average.items())


# Dropout, and random draws over the vectors of a step.
@pytest.mark.slow
@pytest.mark.parametrize("preset", ["dual", "cvq"])
def test_a_validation_leaves_no_trace_in_the_run(preset, images, held, tmp_path):
    train(validated(images, held, preset), out=tmp_path / "with", progress=False)
    train(run_config(images, preset), out=tmp_path / "without", progress=False)
    with_it = [
        {k: v for k, v in line.items() if not k.startswith("validation/")}
        for line in comparable_log(tmp_path / "with")
    ]
    assert with_it == comparable_log(tmp_path / "without")
    one, other = (tmp_path / x / "step_00000012" for x in ("with", "without"))
    for path in one.glob("*.safetensors"):
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_lines_for_a_validation_do_not_disturb_the_others(images, held, tmp_path):
    config = validated(images, held, log__every=4, validation__every=3)
    train(config, out=tmp_path / "with", progress=False)
    train(with_changes(config, validation=None), out=tmp_path / "without", progress=False)
    lines = comparable_log(tmp_path / "with")
    assert [line["step"] for line in lines] == [3, 4, 6, 8, 9, 12]
    regular = [line for line in lines if line["step"] in (4, 8)]
    assert regular == [x for x in comparable_log(tmp_path / "without") if x["step"] in (4, 8)]
    assert all("loss" in line for line in lines)


def test_lpips_is_measured_where_the_run_trains_with_it(images, tmp_path):
    held = write_images(tmp_path / "held", count=3, side=16, seed=4)
    config = validated(images, held)
    torch.manual_seed(5)
    settings = TokenizerConfig(network=config.network, quantizer=config.quantizer)
    tokenizer, lpips = ImageTokenizer(settings).eval(), LPIPS.random()
    found = validation.Validator(config, tmp_path, lpips).look(tokenizer, 1, lambda: False)
    originals = torch.stack([load_images(config.validation.data).image(n) for n in range(3)])
    rebuilt = to_bytes(tokenizer.reconstruct(originals))
    expected = lpips(to_float(rebuilt), to_float(originals)).mean()
    assert found["validation/lpips"] == pytest.approx(float(expected), rel=1e-5)


# ---------------------------------------------------------------------------- resume


def same_validations(one, other):
    """Numbers, pictures and best tokenizer are the same, byte for byte."""
    assert validations(one) == validations(other)
    for folder in ("validation", "best"):
        names = sorted(path.name for path in (one / folder).iterdir())
        assert names == sorted(path.name for path in (other / folder).iterdir())
        for name in names:
            assert (one / folder / name).read_bytes() == (other / folder / name).read_bytes(), name


def signal_at(monkeypatch, step, number=signal.SIGTERM):
    real = Trainer.step

    def step_then_signal(self, batch):
        report = real(self, batch)
        if self.done == step:
            signal.raise_signal(number)
        return report

    monkeypatch.setattr(Trainer, "step", step_then_signal)


@pytest.mark.parametrize("step", [pytest.param(4, marks=pytest.mark.slow), 6, 11])
def test_stopped_and_resumed_across_a_validation(step, images, held, whole, tmp_path, monkeypatch):
    config = validated(images, held, log__checkpoint_every=5, log__keep=9)
    with monkeypatch.context() as patch:
        signal_at(patch, step)
        with pytest.raises(Terminated, match=f"stopped after step {step}"):
            train(config, out=tmp_path, progress=False)
    train(config, out=tmp_path, progress=False)
    assert_same_run(whole, tmp_path, 12)
    same_validations(whole, tmp_path)


def test_a_crash_after_a_validation_repeats_it(images, held, whole, tmp_path):
    """The best tokenizer may be of a later step than the checkpoint that is left."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ("tokenizer", "step_00000010", "step_00000012"):
        shutil.rmtree(run / name)
    (run / "result.json").unlink()
    config = validated(images, held, log__checkpoint_every=5, log__keep=9)
    train(config, out=run, progress=False)
    assert_same_run(whole, run, 12)
    same_validations(whole, run)


@pytest.mark.parametrize("at", [5, 12])
def test_a_signal_breaks_a_validation_off_and_it_is_made_good(
    at, images, held, whole, tmp_path, monkeypatch
):
    real, calls = validation._Sums.add, []

    def add_and_signal(self, *args):
        calls.append(1)
        if len(calls) == {5: 2, 12: 10}[at]:  # four batches each
            signal.raise_signal(signal.SIGINT)
        real(self, *args)

    config = validated(images, held, log__checkpoint_every=5, log__keep=9)
    with monkeypatch.context() as patch:
        patch.setattr(validation._Sums, "add", add_and_signal)
        with pytest.raises(KeyboardInterrupt, match=f"stopped after step {at}"):
            train(config, out=tmp_path, progress=False)
    assert len(calls) in (2, 10), "it is broken off at once"
    assert not (tmp_path / "result.json").exists()
    assert at not in validations(tmp_path)
    train(config, out=tmp_path, progress=False)
    assert_same_run(whole, tmp_path, 12)
    same_validations(whole, tmp_path)
    train(with_changes(config, optim__num_steps=13), out=tmp_path, progress=False)
    steps = [line["step"] for line in read_log(tmp_path / "log.jsonl")]
    assert steps == list(range(1, 14)), "what was made good is not made again"


# ------------------------------------------------------------------------- refusals


def test_the_test_set_chooses_nothing(images, held):
    test = DataConfig(source="folder", path=str(held), limit=3)
    with pytest.raises(ValueError, match=r"validation\.data: is the test set"):
        validated(images, held, test_data=test)
    with pytest.raises(ValueError, match=r"keep_best='lpips': is measured only with"):
        validated(images, held, validation__keep_best="lpips")


def test_other_validation_images_are_refused_at_a_resume(images, tmp_path, monkeypatch):
    held = write_images(tmp_path / "held", count=4)
    with monkeypatch.context() as patch:
        signal_at(patch, 6)
        with pytest.raises(Terminated):
            train(validated(images, held), out=tmp_path / "run", progress=False)
    write_images(held, count=5)
    with pytest.raises(ValueError, match=r"validation_data: .* \(5 now, 4 then"):
        train(validated(images, held), out=tmp_path / "run", progress=False)


def test_a_reconstruction_that_is_not_finite_stops_the_run(images, held, tmp_path, monkeypatch):
    monkeypatch.setattr(
        ImageTokenizer, "decode", lambda self, ids, size: torch.full((1, 3, 8, 8), math.nan)
    )
    with pytest.raises(ValueError, match=r"step=5: .*NaN"):
        train(validated(images, held), out=tmp_path, progress=False)
    assert json.loads((tmp_path / "stopped.json").read_text())["kind"] == "not_finite"


def test_images_that_do_not_fit_lose_no_step(images, held, tmp_path):
    """They are found out at the first validation only."""
    config = validated(images, held)
    held_out = with_changes(config.validation.data, crop="center", crop_size=12)
    config = with_changes(config, validation=with_changes(config.validation, data=held_out))
    with pytest.raises(OSError, match=r"step(=| )5"):
        train(config, out=tmp_path / "run", progress=False)
    stop = read_stop(tmp_path / "run")
    assert stop["kind"] == "data"
    assert list_checkpoints(tmp_path / "run")[-1].name == "step_00000005"


def test_a_part_without_readable_images_is_left_to_the_others(held, tmp_path):
    folder = tmp_path / "some"
    shutil.copytree(held, folder)
    (folder / "zz.png").write_bytes(b"no image")
    data = load_images(DataConfig(source="folder", path=str(folder), on_broken="skip"))
    with pytest.warns(UserWarning, match="on_broken"):
        assert list(iterate_once(Share(data, len(data) - 1, len(data)), 4)) == []
