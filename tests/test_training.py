"""The loop: what it writes, when it refuses, how it continues, what it computes."""

import json
import math
import shutil
import signal
import threading

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from training_runs import PRESETS, assert_same_run, comparable_log, run_config, write_images

from vqkit.config import from_dict, with_changes
from vqkit.data import BatchStream, load_images
from vqkit.models import ImageTokenizer
from vqkit.quantizers import vq_vae
from vqkit.training import load_run, read_log, train
from vqkit.training.interrupt import Interrupt
from vqkit.training.machine import make_accelerator
from vqkit.training.objective import TokenizerObjective
from vqkit.training.trainer import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def interrupt_after(monkeypatch, step, number=signal.SIGINT):
    """Send this process a signal right after optimizer step number `step`."""
    real = Trainer.step

    def step_then_signal(self, batch):
        report = real(self, batch)
        if self.done == step:
            signal.raise_signal(number)
        return report

    monkeypatch.setattr(Trainer, "step", step_then_signal)


def forbid_steps(monkeypatch):
    def step(self, batch):
        raise AssertionError("no step was due")

    monkeypatch.setattr(Trainer, "step", step)


# ------------------------------------------------------------------- a whole run


def test_a_run_writes_settings_log_checkpoints_tokenizer_and_result(images, tmp_path):
    config = run_config(images, log__keep=2)
    result = train(config, out=tmp_path / "run", progress=False)
    folder = result.folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "log.jsonl",
        "result.json",
        "step_00000008",
        "step_00000012",
        "tokenizer",
    ]
    assert [line["step"] for line in result.log] == list(range(1, 13))
    assert np.mean([x["loss"] for x in result.log[-3:]]) < result.log[0]["loss"]
    facts = json.loads((folder / "result.json").read_text())
    assert facts["steps"] == 12
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["seconds"] == pytest.approx(result.log[-1]["seconds"], abs=5)
    assert from_dict(type(config), facts["config"]) == config
    loaded_config, tokenizer = load_run(folder)
    assert loaded_config == config
    assert not tokenizer.training
    picture = torch.zeros(1, 3, 8, 8)
    assert torch.equal(tokenizer.encode(picture), result.tokenizer.encode(picture))
    assert torch.equal(
        tokenizer.encode(picture),
        ImageTokenizer.from_pretrained(folder / "tokenizer").encode(picture),
    )


def test_a_finished_run_is_returned_without_training(images, tmp_path, monkeypatch):
    config = run_config(images)
    first = train(config, out=tmp_path / "run", progress=False)
    forbid_steps(monkeypatch)
    second = train(config, out=tmp_path / "run", progress=False)
    assert second.log == first.log


def test_a_longer_run_continues_exactly(images, tmp_path):
    config = run_config(images, optim__num_steps=5, log__every=4)
    train(config, out=tmp_path / "run", progress=False)
    longer = with_changes(config, optim__num_steps=12)
    train(longer, out=tmp_path / "run", progress=False)
    train(longer, out=tmp_path / "whole", progress=False)
    # The shorter run wrote a line for its last step too.
    lines = [line for line in comparable_log(tmp_path / "run") if line["step"] != 5]
    assert lines == comparable_log(tmp_path / "whole")
    here, there = (tmp_path / name / "tokenizer/model.safetensors" for name in ("run", "whole"))
    assert here.read_bytes() == there.read_bytes()


def test_default_folder_is_runs_and_the_name(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = train(run_config(images, optim__num_steps=1), progress=False)
    assert (tmp_path / "runs" / "tiny_looc" / "result.json").exists()
    assert str(result.folder) == "runs/tiny_looc"


def test_own_presets_are_trained_and_loaded(images, tmp_path):
    presets = {"mine": lambda size: vq_vae(size, 4)}
    config = run_config(images, quantizer__preset="mine", quantizer__args={"size": 6})
    result = train(config, out=tmp_path / "run", progress=False, presets=presets)
    assert result.tokenizer.quantizer.slots[0].num_codes == 6
    assert load_run(tmp_path / "run", presets=presets)[1].quantizer.slots[0].num_codes == 6


# ---------------------------------------------------------------------- refusals


def test_another_configuration_is_refused_by_name(images, tmp_path):
    config = run_config(images)
    train(config, out=tmp_path / "run", progress=False)
    other = with_changes(
        config, optim__lr=1e-2, quantizer__args={**PRESETS["looc"], "num_codes": 9}
    )
    with pytest.raises(ValueError) as caught:
        train(other, out=tmp_path / "run", progress=False)
    assert "optim.lr: 0.003 there, 0.01 here" in str(caught.value)
    assert "quantizer.args.num_codes: 8 there, 9 here" in str(caught.value)
    with pytest.raises(ValueError, match=r"optim.num_steps: 12 there, 11 here"):
        train(with_changes(config, optim__num_steps=11), out=tmp_path / "run", progress=False)


def test_a_schedule_is_not_made_longer(images, tmp_path):
    config = run_config(images, optim__num_steps=2, optim__schedule="cosine")
    train(config, out=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"optim.num_steps: 2 there, 3 here"):
        train(with_changes(config, optim__num_steps=3), out=tmp_path / "run", progress=False)


def test_where_images_lie_may_change(images, tmp_path):
    config = run_config(images, optim__num_steps=2)
    train(config, out=tmp_path / "run", progress=False)
    moved = shutil.copytree(images, tmp_path / "moved")
    longer = run_config(moved, optim__num_steps=4, data__workers=0, optim__accumulate=2)
    assert train(longer, out=tmp_path / "run", progress=False).log[-1]["step"] == 4


def test_resume_can_be_refused(images, tmp_path):
    config = run_config(images, optim__num_steps=1)
    train(config, out=tmp_path / "run", resume=False, progress=False)
    with pytest.raises(ValueError, match=r"resume=False.*already holds a run"):
        train(config, out=tmp_path / "run", resume=False, progress=False)


def test_a_foreign_folder_is_refused(images, tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(ValueError, match=r"holds thesis\.tex but no run"):
        train(run_config(images), out=tmp_path, progress=False)


def test_changed_images_are_refused(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "images")
    interrupt_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(run_config(folder), out=tmp_path / "run", progress=False)
    write_images(folder, count=25)
    with pytest.raises(ValueError, match=r"not those of the checkpoint \(25 now, 24 then"):
        train(run_config(folder), out=tmp_path / "run", progress=False)


def test_accumulate_must_divide_the_share(images, tmp_path):
    with pytest.raises(ValueError, match=r"optim\.accumulate=3"):
        run_config(images, optim__accumulate=3)
    with pytest.raises(ValueError, match="accumulate=2 with reconstruction='log_mse'"):
        run_config(images, "sq_vae", optim__accumulate=2)


def test_a_folder_without_run_cannot_be_loaded(images, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"holds no config.json"):
        load_run(tmp_path)
    interrupt_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(run_config(images), out=tmp_path / "run", progress=False)
    (tmp_path / "run/step_00000002/model.safetensors").unlink()
    with pytest.raises(ValueError, match="no whole checkpoint"):
        load_run(tmp_path / "run")


# ---------------------------------------------------------------------- stopping


@pytest.mark.parametrize("preset", PRESETS)
def test_interrupted_and_resumed_is_uninterrupted(preset, images, tmp_path, monkeypatch):
    config = run_config(images, preset, optim__weight_ema=0.9, log__every=3, log__keep=9)
    train(config, out=tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)  # between two checkpoints and two lines of the log
        with pytest.raises(KeyboardInterrupt, match="stopped after step 5"):
            train(config, out=tmp_path / "parts", progress=False)
    torch.manual_seed(99)  # whatever the caller drew meanwhile
    train(config, out=tmp_path / "parts", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 12)


def test_an_unfinished_run_can_be_loaded(images, tmp_path, monkeypatch):
    config = run_config(images, optim__weight_ema=0.9)
    interrupt_after(monkeypatch, 5, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(config, out=tmp_path / "run", progress=False)
    loaded, tokenizer = load_run(tmp_path / "run")
    assert loaded == config
    average = load_file(tmp_path / "run/step_00000005/ema.safetensors")
    weight = tokenizer.decoder.state_dict()
    assert all(
        torch.equal(weight[k.removeprefix("decoder.")], v)
        for k, v in average.items()
        if "decoder" in k
    )


def test_a_second_interrupt_acts_at_once():
    before = signal.getsignal(signal.SIGINT)  # ignored in a job in the background
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_may_train(images, tmp_path):
    done = []
    config = run_config(images, optim__num_steps=2)
    thread = threading.Thread(
        target=lambda: done.append(train(config, out=tmp_path / "run", progress=False))
    )
    thread.start()
    thread.join()
    assert len(done[0].log) == 2


# ------------------------------------------------------------------ what is wrong


class Poison(torch.autograd.Function):
    """The identity, whose gradient is not a number."""

    @staticmethod
    def forward(ctx, z):
        return z.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


def poisoned(kind, step):
    """A preset that goes wrong in the forward pass number `step`."""

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = vq_vae(8, 4)
            self.forwards = 0

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.inner, name)

        def forward(self, z):
            self.forwards += 1
            self.inner.check_values = self.check_values  # as the trainer has set it
            out = self.inner(z * math.nan if kind == "features" and self.forwards >= step else z)
            if self.forwards < step:
                return out
            if kind == "features":
                return out
            if kind == "term":
                terms = {**out.terms, "commitment": out.terms["commitment"] * math.nan}
                return type(out)(out.z_q, out.ids, terms)
            return type(out)(Poison.apply(out.z_q), out.ids, out.terms)

    return lambda: Wrapped()


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("features", "reconstruction is nan"),
        ("term", "quantizer.commitment is nan"),
        ("gradient", "the gradient of encoder."),
    ],
)
def test_what_is_not_finite_stops_the_run_and_is_kept(kind, named, images, tmp_path):
    config = run_config(images, quantizer__preset="bad", quantizer__args={})
    presets = {"bad": poisoned(kind, step=7)}
    with pytest.raises(ValueError) as caught:
        train(config, out=tmp_path / "run", progress=False, presets=presets)
    message = str(caught.value)
    assert message.startswith("step=7: ")
    assert named in message
    with safe_open(tmp_path / "run/bad_batch.safetensors", "pt") as file:
        keys = json.loads(file.metadata()["keys"])
        assert file.get_tensor("images").shape == (8, 3, 8, 8)
        assert file.get_tensor("images").dtype == torch.uint8
    assert len(keys) == 8
    assert all(key in message for key in keys)
    # The step before is what remains, and the run can go on from the checkpoint.
    assert read_log(tmp_path / "run/log.jsonl")[-1]["step"] == 6
    assert (tmp_path / "run/step_00000004").exists()
    healthy = {"bad": poisoned(kind, step=10**9)}
    result = train(config, out=tmp_path / "run", progress=False, presets=healthy)
    assert result.log[-1]["step"] == 12


@pytest.mark.parametrize(
    ("step", "left"), [(8, "the checkpoint of step 4 is good"), (4, "no checkpoint exists yet")]
)
def test_weights_that_are_not_finite_are_never_saved(step, left, images, tmp_path, monkeypatch):
    real = Trainer.step

    def spoil(self, batch):
        report = real(self, batch)
        if self.done == step:
            with torch.no_grad():
                next(self.tokenizer.decoder.parameters())[0] = math.inf
        return report

    monkeypatch.setattr(Trainer, "step", spoil)
    with pytest.raises(ValueError, match=rf"step={step}: .* not finite; {left}; train in another"):
        train(run_config(images), out=tmp_path / "run", progress=False)
    assert not (tmp_path / f"run/step_{step:08}").exists()


# ------------------------------------------------------------------- what it computes


def trainer(config):
    return Trainer(config, make_accelerator(), TokenizerObjective(config.objective))


def stream(config):
    return BatchStream(load_images(config.data), config.optim.batch_size, seed=config.seed)


@pytest.mark.parametrize("preset", ["looc", "cvq", "vq_ema", "rq", "dual", "vq_vae", "gumbel"])
def test_accumulated_parts_equal_one_batch(preset, images):
    reports = {}
    for parts in (1, 4):
        config = run_config(images, preset, optim__accumulate=parts)
        one = trainer(config)
        batches = stream(config)
        reports[parts] = [one.step(batches.batch(step)) for step in range(4)]
    for whole, summed in zip(reports[1], reports[4], strict=True):
        assert summed.norm == pytest.approx(whole.norm, rel=1e-3)
        for name, value in whole.losses.items():
            # Adam's first steps divide by tiny second moments and enlarge rounding.
            assert summed.losses[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_codes_move_once_per_optimizer_step(images, monkeypatch):
    config = run_config(images, optim__accumulate=2)
    one = trainer(config)
    calls = []
    quantizer = one.tokenizer.quantizer
    assert quantizer.auto_step is False
    order = [(one.optimizer, "optimizer"), (quantizer, "quantizer")]
    for owner, name in order:
        real = owner.step
        monkeypatch.setattr(
            owner, "step", lambda real=real, name=name: (calls.append(name), real())
        )
    one.step(stream(config).batch(0))
    assert calls == ["optimizer", "quantizer"]


def test_gradients_are_clipped_to_the_norm(images, monkeypatch):
    config = run_config(images, optim__clip_norm=1e-3)
    one = trainer(config)
    seen = []

    def capture():
        gradients = [p.grad.flatten() for p in one.tokenizer.parameters() if p.grad is not None]
        seen.append(torch.cat(gradients).norm())

    monkeypatch.setattr(one.optimizer, "step", capture)
    report = one.step(stream(config).batch(0))
    assert report.norm > 0.01
    assert float(seen[0]) == pytest.approx(1e-3, rel=1e-3)


def test_weight_average_follows_its_formula(images):
    config = run_config(images, "cvq", optim__weight_ema=0.5)
    one = trainer(config)
    batches = stream(config)
    name = next(n for n, _ in one.tokenizer.named_parameters() if n.startswith("encoder"))
    expected = dict(one.tokenizer.named_parameters())[name].detach().double().clone()
    for step in range(1, 7):
        one.step(batches.batch(step - 1))
        decay = min(0.5, (1 + step) / (10 + step))
        now = dict(one.tokenizer.named_parameters())[name].detach().double()
        expected = decay * expected + (1 - decay) * now
    final = one.result().state_dict()
    torch.testing.assert_close(final[name].double(), expected, rtol=1e-5, atol=1e-7)
    own = one.tokenizer.state_dict()
    assert not torch.equal(final[name], own[name])
    for buffer, _ in one.tokenizer.named_buffers():
        assert torch.equal(final[buffer], own[buffer])


def test_the_finished_tokenizer_has_the_averaged_weights(images, tmp_path):
    result = train(run_config(images, optim__weight_ema=0.9), out=tmp_path, progress=False)
    average = load_file(tmp_path / "step_00000012/ema.safetensors")
    state = result.tokenizer.state_dict()
    assert set(average) == {name for name, _ in result.tokenizer.named_parameters()}
    assert all(torch.equal(state[name], tensor) for name, tensor in average.items())


def test_bf16_keeps_weights_and_quantizer_in_float32(images, tmp_path):
    runs = {
        precision: train(
            run_config(images, optim__precision=precision, optim__num_steps=6),
            out=tmp_path / precision,
            progress=False,
        )
        for precision in ("fp32", "bf16")
    }
    assert {t.dtype for t in runs["bf16"].tokenizer.parameters()} == {torch.float32}
    losses = [[line["loss"] for line in runs[p].log] for p in ("fp32", "bf16")]
    assert losses[0] != losses[1]
    # bf16 keeps 8 bits: the first loss, before any update, agrees to about 1 %.
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.02)
    config = run_config(images, optim__precision="bf16")
    one = trainer(config)
    seen = []
    one.tokenizer.quantizer.register_forward_hook(lambda m, z, out: seen.append(out.z_q.dtype))
    one.step(stream(config).batch(0))
    assert seen == [torch.float32]


def test_training_does_not_depend_on_the_callers_random_state(images, tmp_path):
    for seed, name in ((1, "one"), (2, "two")):
        torch.manual_seed(seed)
        train(run_config(images, "dual"), out=tmp_path / name, progress=False)
    assert_same_run(tmp_path / "one", tmp_path / "two", 12)
