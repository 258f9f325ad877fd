"""Checkpoints: full disks, cut files, leftovers; what is in them and what is verified."""

import errno
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from training_runs import assert_same_run, run_config, write_images

from vqkit.models import ImageTokenizer
from vqkit.models import files as model_files
from vqkit.training import checkpoint, list_checkpoints, load_checkpoint, train
from vqkit.training.checkpoint import load_optimizer_tensors, optimizer_tensors

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def whole(images, tmp_path):
    """The folder of an uninterrupted run."""
    folder = tmp_path / "whole"
    train(run_config(images), out=folder, progress=False)
    return folder


def names(folder):
    return [path.name for path in list_checkpoints(folder)]


def without_result(folder, *, steps):
    """Make a finished run look as if it had been killed after `steps` steps."""
    for path in (folder / "tokenizer", folder / "result.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in list_checkpoints(folder):
        if path.name > f"step_{steps:08}":
            shutil.rmtree(path)


def test_a_checkpoint_holds_no_pickle_and_says_what_it_is(whole):
    newest = list_checkpoints(whole)[-1]
    assert sorted(path.name for path in newest.iterdir()) == [
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "trainer.json",
        "trainer.safetensors",
    ]
    content = json.loads((newest / "trainer.json").read_text())
    assert content["step"] == 12
    assert set(content["files"]) == {path.name for path in newest.iterdir()} - {"trainer.json"}
    record = content["record"]
    assert record["hardware"]["device"] == "cpu"
    assert record["config"]["optim"]["num_steps"] == 12
    assert record["data"]["images"] == 24
    assert {"torch", "vqkit", "python"} <= set(record["versions"])
    model = load_file(newest / "model.safetensors")
    moments = load_file(newest / "optimizer.safetensors")
    assert {name.rpartition("/")[2] for name in moments} == {"exp_avg", "exp_avg_sq", "step"}
    assert {name.rpartition("/")[0] for name in moments} <= set(model)


def test_a_checkpoint_is_a_tokenizer(whole):
    newest = list_checkpoints(whole)[-1]
    there = ImageTokenizer.from_pretrained(newest).state_dict()
    here = ImageTokenizer.from_pretrained(whole / "tokenizer").state_dict()
    assert all(torch.equal(there[name], here[name]) for name in here)


def test_the_oldest_checkpoints_go_first(images, tmp_path):
    train(run_config(images, log__keep=1), out=tmp_path / "one", progress=False)
    assert names(tmp_path / "one") == ["step_00000012"]
    train(run_config(images, log__keep=9), out=tmp_path / "all", progress=False)
    assert names(tmp_path / "all") == ["step_00000004", "step_00000008", "step_00000012"]


def full_disk(real, folder_name, file_name):
    def write(path, content):
        if folder_name in path.parent.name and path.name.startswith(file_name):
            path.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    return write


@pytest.mark.parametrize(
    ("module", "file_name"),
    [
        (model_files, "model.safetensors"),
        pytest.param(checkpoint, "optimizer.safetensors", marks=pytest.mark.slow),
        pytest.param(checkpoint, "trainer.json", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_leaves_the_previous_checkpoint(
    module, file_name, images, whole, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_whole", full_disk(module.write_whole, "00000012", file_name))
        with pytest.raises(OSError, match=r"step_00000012; .*step_00000008 is whole") as caught:
            train(run_config(images), out=run, progress=False)
    assert caught.value.errno == errno.ENOSPC
    assert names(run) == ["step_00000004", "step_00000008"]
    assert load_checkpoint(run / "step_00000008").step == 8
    assert not list(run.glob(".*")), "the unfinished checkpoint is removed"
    train(run_config(images), out=run, progress=False)
    assert_same_run(whole, run, 12)


def test_a_full_disk_before_any_checkpoint_says_so(images, tmp_path, monkeypatch):
    monkeypatch.setattr(
        checkpoint, "write_whole", full_disk(checkpoint.write_whole, "00000012", "trainer.json")
    )
    with pytest.raises(OSError, match="no checkpoint exists yet"):
        train(run_config(images, log__checkpoint_every=12), out=tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        pytest.param("trainer.json", marks=pytest.mark.slow),
        pytest.param("optimizer.safetensors", marks=pytest.mark.slow),
        pytest.param("trainer.safetensors", marks=pytest.mark.slow),
        pytest.param("config.json", marks=pytest.mark.slow),
    ],
)
def test_a_cut_checkpoint_is_refused_and_the_previous_one_used(
    name, images, whole, tmp_path, caplog
):
    run = tmp_path / "run"
    train(run_config(images, log__keep=3), out=run, progress=False)
    without_result(run, steps=8)
    newest = list_checkpoints(run)[-1]
    assert newest.name == "step_00000008"
    file = newest / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{name}: .*use an older checkpoint"):
        load_checkpoint(newest)
    train(run_config(images, log__keep=3), out=run, progress=False)
    assert f"checkpoint passed over: {file}" in caplog.text
    assert (run / "broken_step_00000008" / name).exists()
    assert names(run) == ["step_00000004", "step_00000008", "step_00000012"]
    shutil.rmtree(run / "broken_step_00000008")
    assert_same_run(whole, run, 12)


def test_a_missing_file_is_refused(whole):
    newest = list_checkpoints(whole)[-1]
    (newest / "trainer.safetensors").unlink()
    with pytest.raises(ValueError, match=r"trainer.safetensors: cannot be read"):
        load_checkpoint(newest)


def test_a_run_without_a_whole_checkpoint_is_not_begun_again(images, whole):
    without_result(whole, steps=12)
    for path in list_checkpoints(whole):
        (path / "trainer.json").write_text("{")
    with pytest.raises(ValueError, match="no checkpoint of this run is whole"):
        train(run_config(images), out=whole, progress=False)
    assert (whole / "log.jsonl").read_text().count("\n") == 12


def test_leftovers_and_a_torn_log_are_cleaned(images, whole, tmp_path):
    run = tmp_path / "run"
    train(run_config(images), out=run, progress=False)
    without_result(run, steps=8)
    (run / ".unfinished_step_00000012").mkdir()
    (run / ".unfinished_step_00000012" / "model.safetensors").write_bytes(b"half")
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 13, "lo')
    train(run_config(images), out=run, progress=False)
    assert not list(run.glob(".*"))
    assert_same_run(whole, run, 12)


def test_optimizer_state_returns_by_name():
    source = torch.Generator().manual_seed(3)
    made = []
    for _ in range(2):
        model = torch.nn.Linear(3, 2)
        unused = torch.nn.Parameter(torch.zeros(2))
        parameters = [*model.parameters(), unused]
        names_of = dict(zip(parameters, ("weight", "bias", "unused"), strict=True))
        made.append((model, torch.optim.Adam(parameters, lr=0.1), names_of))
    (model, optimizer, names_of), (other, fresh, other_names) = made
    for _ in range(3):
        model(torch.randn(5, 3, generator=source)).square().mean().backward()
        optimizer.step()
    tensors = optimizer_tensors(optimizer, names_of)
    assert set(tensors) == {
        f"{name}/{what}"
        for name in ("weight", "bias")
        for what in ("exp_avg", "exp_avg_sq", "step")
    }
    other.load_state_dict(model.state_dict())
    load_optimizer_tensors(fresh, other_names, tensors)
    inputs = torch.randn(5, 3, generator=source)
    for one, steps in ((model, optimizer), (other, fresh)):
        one.zero_grad()
        one(inputs).square().mean().backward()
        steps.step()
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


def test_a_run_stopped_after_its_last_checkpoint_makes_no_further_step(images, whole, tmp_path):
    train(run_config(images), out=tmp_path / "stopped", progress=False)
    without_result(tmp_path / "stopped", steps=12)
    train(run_config(images), out=tmp_path / "stopped", progress=False)
    assert names(tmp_path / "stopped")[-1] == "step_00000012"
    assert_same_run(whole, tmp_path / "stopped", 12)
