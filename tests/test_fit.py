"""The loop that trains what learns from tokens: safe, exact, and equal however it is cut."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from fit_tasks import STEPS, TinyTask, run_tiny
from safetensors.torch import load_file
from torch import nn
from training_runs import comparable_log

import vqkit
from vqkit.cli import main
from vqkit.config import LogConfig, OptimConfig
from vqkit.training import Terminated, diagnose, list_checkpoints, read_log, run_folder
from vqkit.training.fit_folder import read_product
from vqkit.training.fit_task import equal_parts
from vqkit.training.fit_trainer import decaying_groups
from vqkit.training.settings_file import with_defaults
from vqkit.training.stops import read_stop

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("fit_tasks.py")


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("PYTHONPATH", str(Path(vqkit.__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def assert_same(one, other):
    """Losses, weights, optimizer, average and result of two runs agree, bit for bit."""
    assert comparable_log(one) == comparable_log(other)
    last = f"step_{STEPS:08}"
    for name in ("model", "optimizer", "ema", "trainer"):
        here, there = (folder / last / f"{name}.safetensors" for folder in (one, other))
        assert here.read_bytes() == there.read_bytes(), name
    for name in ("model.safetensors", "config.json"):
        here, there = (folder / "classifier" / name for folder in (one, other))
        assert here.read_bytes() == there.read_bytes()


class Stopped(TinyTask):
    """Sends a signal, or fails, while batch `at` is drawn."""

    def __init__(self, at, act, **settings):
        super().__init__(**settings)
        self.at, self.act = at, act

    def batch(self, step):
        if step == self.at:
            self.act()
        return super().batch(step)


def test_it_learns_and_leaves_a_folder_that_can_be_read(tmp_path):
    result = run_tiny(tmp_path / "run")
    assert [line["step"] for line in result.log] == list(range(1, STEPS + 1))
    assert {"loss", "accuracy", "gradient_norm", "learning_rate"} <= result.log[0].keys()
    validated = [line["step"] for line in result.log if "validation/top1" in line]
    assert validated == [4, 8, 12]
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["product"] == "classifier"
    assert saved["task"] == "tiny"
    assert saved["optim"]["num_steps"] == STEPS
    folder, average = read_product(result.folder, "classifier")
    assert (folder.name, average) == ("classifier", None)


def test_a_finished_run_is_returned_as_it_is(tmp_path):
    run_tiny(tmp_path / "run")
    before = (tmp_path / "run" / "result.json").read_bytes()
    run_tiny(tmp_path / "run")
    assert (tmp_path / "run" / "result.json").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_call_goes_on_bit_for_bit(tmp_path, number):
    run_tiny(tmp_path / "whole")
    kind = KeyboardInterrupt if number == signal.SIGINT else Terminated
    with pytest.raises(kind, match="stopped after step 6, saved"):
        run_tiny(tmp_path / "cut", Stopped(6, lambda: os.kill(os.getpid(), number)))
    assert list_checkpoints(tmp_path / "cut")[-1].name == "step_00000006"
    assert not diagnose(tmp_path / "cut").findings
    run_tiny(tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_signal_in_the_last_step_leaves_its_validation_to_the_resume(tmp_path):
    run_tiny(tmp_path / "whole")
    with pytest.raises(Terminated):
        run_tiny(tmp_path / "cut", Stopped(11, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    run_tiny(tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_killed_process_is_made_good(tmp_path):
    run_tiny(tmp_path / "whole")
    for place in (3, 6, 12):
        command = [sys.executable, str(SCRIPT), str(tmp_path / "cut"), str(place)]
        done = subprocess.run(command, capture_output=True, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    run_tiny(tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_two_processes_are_one(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command = [sys.executable, *launcher, str(SCRIPT), str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    run_tiny(tmp_path / "one", TinyTask(dropout=0.0, noise=0.0), eps=1e-3)
    # Sums in another order; eps keeps Adam from making steps of rounding noise.
    for one, two in zip(
        read_log(tmp_path / "one" / "log.jsonl"),
        read_log(tmp_path / "two" / "log.jsonl"),
        strict=True,
    ):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert_close(tmp_path / "one", tmp_path / "two")


def assert_close(one, other):
    here, there = (load_file(f / "classifier" / "model.safetensors") for f in (one, other))
    for name, tensor in here.items():
        torch.testing.assert_close(there[name], tensor, rtol=1e-4, atol=1e-6)


def test_parts_add_up_to_the_whole_batch(tmp_path):
    tasks = [TinyTask(dropout=0.0, noise=0.0) for _ in range(2)]
    run_tiny(tmp_path / "one", tasks[0], eps=1e-3)
    run_tiny(tmp_path / "four", tasks[1], eps=1e-3, accumulate=4)
    assert_close(tmp_path / "one", tmp_path / "four")


def test_parts_draw_for_themselves(tmp_path):
    """A part that repeated the draws of the one before would halve the noise."""
    drawn = []

    class Watching(TinyTask):
        def losses(self, batch, generator):
            drawn.append((torch.rand(1, generator=generator).item(), torch.rand(1).item()))
            return super().losses(batch, generator)

    run_tiny(tmp_path / "run", Watching(), accumulate=2)
    assert len({value for pair in drawn for value in pair}) == 2 * len(drawn) == 4 * STEPS


def test_the_average_is_that_of_the_weights(tmp_path):
    """Against the recursion written out, from the weights of a checkpoint after every step."""
    run = tmp_path / "run"
    run_tiny(run, log=LogConfig(checkpoint_every=1, keep=100))
    average = TinyTask().model.state_dict()
    for step in range(1, STEPS + 1):
        weights = load_file(run / f"step_{step:08}" / "model.safetensors")
        decay = min(0.9, (1 + step) / (10 + step))
        average = {n: decay * average[n] + (1 - decay) * weights[n] for n in weights}
    found = load_file(run / "classifier" / "model.safetensors")
    for name, tensor in average.items():
        torch.testing.assert_close(found[name], tensor)
    (run / "result.json").unlink()
    folder, newest = read_product(run, "classifier")
    assert folder.name == f"step_{STEPS:08}"
    torch.testing.assert_close(newest["0.weight"], average["0.weight"])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    class Bad(TinyTask):
        def losses(self, batch, generator):
            found = super().losses(batch, generator)
            return found | {"loss": found["loss"] * (float("nan") if self.bad(batch) else 1.0)}

        def bad(self, batch):
            return torch.equal(batch["ids"], self.batch(6)["ids"])

    with pytest.raises(ValueError, match=r"step=7: loss is nan.*last checkpoint is good"):
        run_tiny(tmp_path / "run", Bad())
    assert read_stop(tmp_path / "run")["kind"] == "not_finite"
    assert main(["doctor", str(tmp_path / "run")]) == 1
    assert "learning rate too high" in capsys.readouterr().out


def test_a_batch_that_cannot_be_read_ends_it_after_a_checkpoint(tmp_path):
    def fail():
        raise OSError("the shard is gone")

    with pytest.raises(OSError, match=r"step=7: data cannot be read \(the shard is gone\)"):
        run_tiny(tmp_path / "cut", Stopped(6, fail))
    run_tiny(tmp_path / "whole")
    run_tiny(tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_an_error_within_a_step_saves_the_step_before(tmp_path):
    class Failing(TinyTask):
        def losses(self, batch, generator):
            if torch.equal(batch["ids"], self.batch(6)["ids"]):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().losses(batch, generator)

    with pytest.raises(MemoryError, match=r"step=7: out of memory.*step 6 is saved.*accumulate=2"):
        run_tiny(tmp_path / "cut", Failing())
    run_tiny(tmp_path / "whole")
    run_tiny(tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lr": 1.0}, r"optim.lr: 0.01 there, 1.0 here"),
        ({"settings": {"task": "other"}}, "task: 'tiny' there, 'other' here"),
        ({"task": TinyTask(fingerprint="others")}, "not those of the checkpoint.*fingerprint"),
    ],
)
def test_the_folder_of_another_run_is_refused(tmp_path, changes, said):
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path / "run", Stopped(6, lambda: os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(ValueError, match=said):
        run_tiny(tmp_path / "run", **changes)


def test_the_place_of_the_data_and_the_log_may_change(tmp_path):
    run_tiny(tmp_path / "run", settings={"place": "here"})
    other = LogConfig(every=2, checkpoint_every=4)
    run_tiny(tmp_path / "run", settings={"place": "there"}, log=other, num_steps=16)
    assert read_log(tmp_path / "run" / "log.jsonl")[-1]["step"] == 16


def forget(run, *names):
    """Take settings out of the saved ones, as if they had not existed when the run was begun."""
    path = run / "config.json"
    values = json.loads(path.read_text())
    for name in names:
        *sections, last = name.split(".")
        here = values
        for section in sections:
            here = here[section]
        del here[last]
    path.write_text(json.dumps(values))


def test_a_run_of_an_older_version_goes_on(tmp_path):
    """What it did not save has the defaults of today; another value of today is refused."""

    @dataclass(frozen=True, kw_only=True)
    class Model:
        width: int
        added: int = 3

    def completed(saved):
        return with_defaults(saved, Model)

    settings = {"width": 2, "added": 3}
    run_tiny(tmp_path / "run", settings=settings, num_steps=8)
    forget(tmp_path / "run", "added", "optim.precision", "log.tensorboard")
    with pytest.raises(ValueError, match=r"added: 3 there, 4 here"):
        run_tiny(tmp_path / "run", settings={**settings, "added": 4}, completed=completed)
    result = run_tiny(tmp_path / "run", settings=settings, completed=completed)
    assert result.log[-1]["step"] == STEPS
    assert json.loads((tmp_path / "run" / "config.json").read_text())["added"] == 3


def test_settings_that_no_class_reads_stay_as_they_are():
    assert with_defaults({"num_steps": 1, "batch_size": "x"}, OptimConfig)["batch_size"] == "x"


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    TinyTask().save(TinyTask().model, tmp_path / "model")
    before = (tmp_path / "model" / "config.json").read_bytes()
    with pytest.raises(ValueError, match="but no run"):
        run_tiny(tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_bytes() == before


def test_a_batch_that_cannot_be_cut_is_refused(tmp_path):
    """One process takes any batch; a share that its parts cannot divide is named."""
    task = TinyTask(size=6)  # a task that does not keep to the size of its batch
    with pytest.raises(ValueError, match=r"optim.accumulate=4: does not divide"):
        run_tiny(tmp_path / "run", task, accumulate=4)


def test_the_doctor_knows_its_folders(tmp_path, capsys):
    run = tmp_path / "run"
    run_tiny(run)
    assert main(["doctor", str(run)]) == 0
    assert "tiny, finished, 12 steps" in capsys.readouterr().out
    weights = run / "classifier" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["doctor", str(run)]) == 1
    said = capsys.readouterr().out
    assert "classifier damaged" in said
    assert "the same train command writes it again" in said


def test_fresh_deletes_such_a_run(tmp_path):
    from vqkit.cli.runs import kind_of, remove_run

    run_tiny(tmp_path / "run")
    assert kind_of(tmp_path / "run") == "token run"
    assert run_folder.read_result(tmp_path / "run", "classifier")["steps"] == STEPS
    remove_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_groups_have_rates_and_decays_of_their_own(tmp_path):
    """Plain steps without decay move by the rate; a rate of 0 moves nothing."""
    from vqkit.training.fit import fit

    task = TinyTask()
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}

    def groups(model):
        embedding, *others = model.parameters()
        return [{"params": [embedding], "lr_scale": 0.0}, {"params": others}]

    log = LogConfig(every=1)
    fit(
        task,
        name="tiny",
        folder=tmp_path / "run",
        product="classifier",
        settings={},
        optim=OptimConfig(num_steps=2, batch_size=8),
        log=log,
        seed=0,
        groups=groups,
        progress=False,
    )
    after = dict(task.model.named_parameters())
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after["3.weight"], before["3.weight"])


def test_matrices_decay_and_vectors_do_not():
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2), nn.LayerNorm(2))
    model[0].requires_grad_(False)
    decayed, others = decaying_groups(model)
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 2)]
    assert others["weight_decay"] == 0
    assert len(others["params"]) == 3


def test_equal_parts_cut_every_tensor():
    @dataclass(frozen=True)
    class Pair:
        ids: torch.Tensor
        name: str

    batch = {"pair": Pair(torch.arange(6), "a"), "list": [torch.arange(12).view(6, 2), None]}
    parts = equal_parts(batch, 3)
    assert torch.cat([part["pair"].ids for part in parts]).tolist() == list(range(6))
    assert parts[1]["list"][0].tolist() == [[4, 5], [6, 7]]
    assert parts[1]["pair"].name == "a"
    assert equal_parts(batch, 1)[0] is batch
    with pytest.raises(ValueError, match=r"optim.accumulate=4: does not divide"):
        equal_parts(batch, 4)
