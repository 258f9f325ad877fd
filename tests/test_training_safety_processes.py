"""What goes wrong for one of two processes stops or spares both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_faults import FAULTS
from training_runs import assert_same_run, run_config, write_images

import vqkit
from vqkit.config import DataConfig, ValidationConfig, to_dict
from vqkit.training import read_log, train

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("training_faults.py")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Nine validation images for two processes, looked at after steps 5, 10 and 12."""
    images = write_images(tmp_path_factory.mktemp("images"))
    data = DataConfig(source="folder", path=str(images), limit=9)
    held = ValidationConfig(data=data, every=5, batch_size=2)
    return run_config(images, validation=held, log__keep=9)


@pytest.fixture(scope="module")
def folder(settings, tmp_path_factory):
    """The folder of all runs; starting two processes takes longer than training them."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "settings.json").write_text(json.dumps(to_dict(settings)))
    path = os.pathsep.join([str(Path(vqkit.__file__).parents[1]), str(SCRIPT.parent)])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nproc_per_node=2", "--standalone", str(SCRIPT), str(folder)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path, "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr
    return folder


def outcomes(folder, name):
    """What both processes met with the fault; then they have gone on to the same end."""
    both = [json.loads((folder / f"{name}_{rank}.json").read_text()) for rank in (0, 1)]
    assert [after["code"] for _, after in both] == [0, 0]
    if name != "none":
        assert_same_run(folder / "none", folder / name, 12)
        for file in ("best/best.json", "best/model.safetensors", "validation/step_00000010.png"):
            assert (folder / name / file).read_bytes() == (folder / "none" / file).read_bytes()
    first = [found for found, _ in both]
    assert first[0]["steps"] == first[1]["steps"]
    return first


def test_a_validation_is_shared(folder, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    outcomes(folder, "none")
    train(settings, out=tmp_path, progress=False)
    one, two = (read_log(run / "log.jsonl") for run in (tmp_path, folder / "none"))
    looked = 0
    for here, there in zip(one, two, strict=True):
        for name in (name for name in here if name.startswith("validation/")):
            assert there[name] == pytest.approx(here[name], rel=1e-4), name
            looked += 1
    assert looked == 3 * 4
    best = [json.loads((x / "best/best.json").read_text()) for x in (tmp_path, folder / "none")]
    assert best[0]["step"] == best[1]["step"]


@pytest.mark.parametrize(
    ("name", "code"), [("sigterm", 143), ("sigint", 130), ("sigterm_in_validation", 143)]
)
def test_a_signal_to_one_stops_both(name, code, folder):
    for found in outcomes(folder, name):
        assert found["code"] == code
        assert "stopped after step 5" in found["said"]
        assert found["steps"] == ["step_00000004", "step_00000005"]
        assert found["kind"] == "signal"


@pytest.mark.parametrize("name", ["unreadable", "unreadable_validation"])
def test_images_that_one_cannot_read_stop_both(name, folder):
    zero, one = outcomes(folder, name)
    assert (zero["code"], one["code"]) == (2, 2)
    assert "another process cannot read its images" in zero["said"]
    assert "the disk is away" in one["said"]
    assert one["steps"] == ["step_00000004", "step_00000005"]
    assert zero["kind"] == "data"


def test_a_full_disk_is_waited_for_by_both(folder):
    for found in outcomes(folder, "full_once"):
        assert found["code"] == 0
        assert found["steps"] == ["step_00000004", "step_00000012"]


def test_a_full_disk_stops_both_in_the_end(folder):
    for found in outcomes(folder, "full_for_good"):
        assert found["code"] == 2
        assert found["steps"] == []
        assert found["kind"] == "disk"


def test_every_fault_is_looked_at(folder):
    assert {path.name.rpartition("_")[0] for path in folder.glob("*_0.json")} == set(FAULTS)
