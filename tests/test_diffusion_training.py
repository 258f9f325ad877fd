"""Diffusion models trained on a token set, finished, opened again and sampled from."""

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from diffusion_cases import DIT, UNET
from safetensors.torch import load_file

from vqkit.config import (
    DataConfig,
    GeneratorRun,
    GPTSampling,
    LogConfig,
    NetworkConfig,
    OptimConfig,
    QuantizerConfig,
)
from vqkit.config.diffusion import (
    DiffusionConfig,
    DiffusionSampling,
    FlowProcess,
    GaussianProcess,
)
from vqkit.data.image_set import ArrayImages, Listing
from vqkit.generation import load_generator, train_generator
from vqkit.generation.diffusion import DiffusionTask, sources
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.tokens import TokenSet, write_token_set

pytestmark = pytest.mark.slow

pytest.importorskip("diffusers")

STEPS = 6


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def images(count=24, classes=3, height=12, width=8):
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, height, width), generator=source).to(torch.uint8)
    labels = torch.arange(count) % classes if classes else None
    listing = Listing(
        count=count, name=str, files=lambda: [("pixels", count)], labels=labels, label_names=None
    )
    config = DataConfig(source="folder", path="nowhere", channels=1)
    return ArrayImages(config, listing, pixels)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(1)
    args = {"num_codes": 12, "dim": 3, "in_channels": 8}
    network = NetworkConfig(image_channels=1, hidden=8, residual_hidden=4, num_residual_blocks=1)
    quantizer = QuantizerConfig(preset="vqgan_fc", args=args)
    return ImageTokenizer(TokenizerConfig(network=network, quantizer=quantizer)).eval()


@pytest.fixture(scope="module")
def tokens(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "set"
    write_token_set(tokenizer, images(), folder, latents=True, progress=False)
    return folder


def run_of(tokens, network=DIT, process=None, *, steps=STEPS, **model):
    return GeneratorRun(
        name="tiny",
        tokens=str(tokens),
        model=DiffusionConfig(network=network, process=process or FlowProcess(), **model),
        optim=OptimConfig(num_steps=steps, batch_size=8, lr=1e-2, weight_ema=0.5, accumulate=2),
        log=LogConfig(every=1, checkpoint_every=2),
    )


def train(run, folder, **settings):
    return train_generator(run, folder, progress=False, **settings)


@pytest.mark.parametrize(
    ("network", "process"),
    [
        (DIT, FlowProcess()),
        (DIT, GaussianProcess(steps=50, variance="learned")),
        (UNET, GaussianProcess(steps=50)),
    ],
    ids=["sit", "dit", "ldm"],
)
def test_from_a_token_set_to_tokens(network, process, tokens, tokenizer, tmp_path):
    result = train(run_of(tokens, network, process), tmp_path / "run")
    assert [line["step"] for line in result.log] == list(range(1, STEPS + 1))
    assert "validation/loss_of_trained" in result.log[-1]
    made = load_generator(tmp_path / "run")
    held = TokenSet.open(tokens)
    assert (made.kind, made.grid, made.num_classes) == ("diffusion", (3, 2), 3)
    assert made.slots == held.slots
    assert torch.equal(made.network.mean, held.latent_mean)
    assert not made.network.training
    # What is finished is the average: weights that stand in no checkpoint as the model's own.
    last = load_file(tmp_path / "run" / f"step_{STEPS:08}" / "model.safetensors")
    weights = made.network.state_dict()
    assert weights.keys() == last.keys()
    assert any(not torch.equal(last[key], weights[key]) for key in last)
    sampling = DiffusionSampling(steps=5, guidance=2.0, batch_size=2)
    labels = torch.tensor([2, 0, 1])
    ids = made.sample(tokenizer, labels, seed=0, sampling=sampling)
    assert ids.shape == (3, 3, 2, 1)
    assert ids.dtype == torch.int64
    latents = made.sample_latents(labels, seed=0, sampling=sampling)
    assert torch.equal(ids, tokenizer.quantize_latents(latents))
    tail = made.sample_latents(labels[1:], seed=0, start=1, sampling=sampling)
    torch.testing.assert_close(tail, latents[1:], atol=1e-4, rtol=1e-4)
    assert tokenizer.decode(ids, size=(12, 8)).shape == (3, 1, 12, 8)


def test_a_stopped_run_continues_bit_for_bit(tokens, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(run_of(tokens), whole)
    draw = DiffusionTask.batch

    def interrupted(task, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(task, step)

    monkeypatch.setattr(DiffusionTask, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(run_of(tokens), cut)
    monkeypatch.undo()
    assert not (cut / "generator").exists()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    train(run_of(tokens), cut)
    last = f"step_{STEPS:08}"
    for name in ("generator/model", f"{last}/model", f"{last}/ema", f"{last}/optimizer"):
        here, there = (folder / f"{name}.safetensors" for folder in (whole, cut))
        assert here.read_bytes() == there.read_bytes(), name


def test_the_tokens_may_move_but_not_change(tokens, tokenizer, tmp_path):
    train(run_of(tokens), tmp_path / "run")
    moved = shutil.copytree(tokens, tmp_path / "moved")
    train(run_of(moved), tmp_path / "run")  # finished: nothing to do
    others = tmp_path / "others"
    write_token_set(tokenizer, images(count=16), others, latents=True, progress=False)
    shutil.rmtree(tmp_path / "run" / "generator")
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(ValueError, match="tokens"):
        train(run_of(others), tmp_path / "run")


def test_without_classes(tokens, tokenizer, tmp_path):
    train(run_of(tokens, conditional=False, steps=2), tmp_path / "run")
    made = load_generator(tmp_path / "run")
    assert made.num_classes == 0
    assert made.sample(tokenizer, count=2, seed=0).shape == (2, 3, 2, 1)
    with pytest.raises(ValueError, match="trained without classes"):
        made.sample(tokenizer, torch.tensor([0]), seed=0)


def test_bad_requests(tokens, tokenizer, tmp_path):
    train(run_of(tokens, steps=2), tmp_path / "run")
    made = load_generator(tmp_path / "run")
    with pytest.raises(ValueError, match="classes are 0 to 2"):
        made.sample(tokenizer, torch.tensor([3]), seed=0)
    other = ImageTokenizer(tokenizer.config).eval()
    with pytest.raises(ValueError, match="tokens of tokenizer"):
        made.sample(other, torch.tensor([0]), seed=0)
    with pytest.raises(ValueError, match="start=-1"):
        made.sample(tokenizer, torch.tensor([0]), seed=0, start=-1)
    with pytest.raises(ValueError, match="sampling=GPTSampling: this generator is a diffusion"):
        made.sample(tokenizer, torch.tensor([0]), seed=0, sampling=GPTSampling())
    made.network.config = replace(made.network.config, label_dropout=0.0)
    with pytest.raises(ValueError, match="labels=None: this generator never saw a hidden class"):
        made.sample(tokenizer, seed=0, count=1)


def test_a_damaged_generator_is_refused(tokens, tmp_path):
    train(run_of(tokens, steps=2), tmp_path / "run")
    path = tmp_path / "run" / "generator" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model": {**config["model"], "channels": 4}}))
    with pytest.raises(ValueError, match="has shape"):
        load_generator(tmp_path / "run")
    path.write_text(json.dumps({**config, "model": {**config["model"], "label_droput": 0.1}}))
    with pytest.raises(ValueError, match=r"model\.label_droput: unknown key"):
        load_generator(tmp_path / "run")
    path.write_text(json.dumps({**config, "model": None}))
    with pytest.raises(ValueError, match=r"config\.json: model=None: expected an object"):
        load_generator(tmp_path / "run")


def test_token_sets_that_do_not_fit(tokenizer, tmp_path):
    write_token_set(tokenizer, images(), tmp_path / "ids", progress=False)
    with pytest.raises(ValueError, match="holds no latents"):
        train(run_of(tmp_path / "ids"), tmp_path / "run")
    write_token_set(tokenizer, images(), tmp_path / "all", latents=True, progress=False)
    with pytest.raises(ValueError, match="held_out: this token set holds no latents"):
        train(replace(run_of(tmp_path / "all"), held_out=str(tmp_path / "ids")), tmp_path / "run")
    write_token_set(tokenizer, images(classes=0), tmp_path / "plain", latents=True, progress=False)
    with pytest.raises(ValueError, match="has no labels"):
        train(run_of(tmp_path / "plain"), tmp_path / "run")


def test_the_samples_of_a_seed_are_numbered():
    assert len(sources(5, 0, 3)) == 3
    with pytest.raises(ValueError, match="seed=-1"):
        sources(-1, 0, 1)
