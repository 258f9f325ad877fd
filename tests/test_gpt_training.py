"""Training a GPT on a token set, its folder, and `vqkit train` with a generator's recipe."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gpt_cases import tiny_card
from PIL import Image
from safetensors.torch import load_file

from vqkit.cli import main
from vqkit.config import (
    DataConfig,
    GeneratorRun,
    GPTConfig,
    GPTSampling,
    LogConfig,
    NetworkConfig,
    OptimConfig,
    QuantizerConfig,
    from_dict,
    to_dict,
)
from vqkit.config.diffusion import DiffusionConfig
from vqkit.generation import load_generator, train_generator
from vqkit.generation.gpt.generator import GPTGenerator, build_gpt
from vqkit.generation.gpt.task import GPTTask, measure_bits
from vqkit.generation.training import card_of
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.recipes import GENERATORS, generator_recipe, recipe
from vqkit.tokens import write_token_set
from vqkit.training.average import WeightAverage
from vqkit.training.fit_folder import read_product

pytestmark = pytest.mark.slow

CODES = 16


def tiny_tokenizer(preset="vq_vae", **args):
    network = NetworkConfig(image_channels=1, hidden=8, residual_hidden=4, num_residual_blocks=1)
    args = {"num_codes": CODES, "dim": 4} | args
    torch.manual_seed(0)
    config = TokenizerConfig(network=network, quantizer=QuantizerConfig(preset=preset, args=args))
    return ImageTokenizer(config).eval()


def write_bands(folder, *, count=24, shift=0):
    """Grey pictures of 12 x 12 pixels in folders of three classes: a bright band each."""
    source = np.random.default_rng(shift)
    for number in range(count):
        label = number % 3
        pixels = source.integers(0, 60, (12, 12), dtype=np.uint8)
        pixels[4 * label : 4 * label + 4] += 180
        place = folder / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:03}.png")
    return DataConfig(source="folder", path=str(folder), channels=1)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Token sets of 3 x 3 positions: labelled, held out, of two slots, and the tokenizers."""
    base = tmp_path_factory.mktemp("sets")
    data, held = write_bands(base / "train"), write_bands(base / "held", count=9, shift=1)
    one, two = tiny_tokenizer(), tiny_tokenizer("rq", num_levels=2)
    write_token_set(one, data, base / "one", progress=False)
    write_token_set(one, held, base / "one_held", progress=False)
    write_token_set(two, data, base / "two", progress=False)
    other, plain = write_bands(base / "other", count=9, shift=2), base / "plain"
    (base / "other" / "class0").rename(base / "other" / "class9")
    write_token_set(one, other, base / "one_other", progress=False)
    write_bands(plain / "parts", count=9, shift=3)
    for place in sorted(plain.glob("parts/*/*.png")):
        place.rename(plain / place.name)
    shutil.rmtree(plain / "parts")
    flat = DataConfig(source="folder", path=str(plain), channels=1)
    write_token_set(one, flat, base / "one_plain", progress=False)
    return {"base": base, "one": one, "two": two}


def tiny_run(sets, tokens="one", *, num_steps=8, slots=None, **changes):
    model = GPTConfig(layers=1, heads=2, width=16, slots=slots, depth_layers=1, token_noise=0.1)
    run = GeneratorRun(
        name="tiny",
        tokens=str(sets["base"] / tokens),
        model=model,
        optim=OptimConfig(num_steps=num_steps, batch_size=8, lr=1e-2),
        log=LogConfig(every=1, checkpoint_every=4),
    )
    return replace(run, **changes)


@pytest.mark.parametrize(("tokens", "slots"), [("one", None), ("two", "depth")])
def test_a_run_learns_and_its_folder_samples(sets, tmp_path, tokens, slots):
    tokenizer = sets[tokens]
    held = str(sets["base"] / "one_held") if tokens == "one" else None
    run = tiny_run(sets, tokens, slots=slots, num_steps=24, held_out=held)
    result = train_generator(run, tmp_path / "run", progress=False)
    first, last = result.log[0], result.log[-1]
    assert last["bits_per_image"] < 0.8 * first["bits_per_image"]
    assert last["bits_per_token"] == pytest.approx(last["loss"] / 0.6931472, rel=1e-5)
    assert last["bits_per_image"] == pytest.approx(
        last["bits_per_token"] * 9 * len(tokenizer.quantizer.slots), rel=1e-5
    )
    assert ("validation/bits_per_image" in last) == (held is not None)

    made = load_generator(tmp_path / "run")
    assert (made.kind, made.grid, made.num_classes) == ("gpt", (3, 3), 3)
    assert made.label_names == ("class0", "class1", "class2")
    assert made.slots == tokenizer.quantizer.slots
    labels = torch.tensor([0, 1, 2])
    ids = made.sample(tokenizer, labels, seed=0)
    assert tokenizer.decode(ids).shape == (3, 1, 12, 12)
    again = load_generator(tmp_path / "run" / "generator")
    assert torch.equal(again.sample(tokenizer, labels, seed=0), ids)
    assert made.sample(tokenizer, seed=0, count=2).shape == (2, 3, 3, len(made.slots))


def test_a_run_goes_on_bit_for_bit(sets, tmp_path):
    whole = tiny_run(sets)
    train_generator(whole, tmp_path / "whole", progress=False)

    real, calls = GPTTask.batch, []

    def broken(self, step):
        calls.append(step)
        if step == 6:
            raise OSError("gone")
        return real(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTTask, "batch", broken)
        with pytest.raises(OSError, match="gone"):
            train_generator(whole, tmp_path / "parts", progress=False)
    train_generator(whole, tmp_path / "parts", progress=False)
    one, other = (
        load_generator(tmp_path / name).network.state_dict() for name in ("whole", "parts")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_unfinished_run_with_tied_tables_has_its_average_in_both(sets, tmp_path, monkeypatch):
    """Loading a state puts one table in place after the other: a raw one would win."""

    def stop(self, step):
        if step == 2:
            raise OSError("gone")
        return batch(self, step)

    batch = GPTTask.batch
    monkeypatch.setattr(GPTTask, "batch", stop)
    run = tiny_run(sets)
    run = replace(run, model=replace(run.model, tie_embeddings=True))
    run = replace(run, optim=replace(run.optim, weight_ema=0.9))
    with pytest.raises(OSError, match="gone"):
        train_generator(run, tmp_path, progress=False)
    folder, average = read_product(tmp_path, "generator")
    network = load_generator(folder).network
    assert not torch.equal(network.tokens.weight, average["tokens.weight"])
    network.load_state_dict({**load_file(folder / "model.safetensors"), **average})
    assert torch.equal(network.tokens.weight, average["tokens.weight"])
    assert network.head is network.tokens


def test_a_generator_of_an_older_version_goes_on(sets, tmp_path):
    """Settings that its version did not know have their defaults."""
    run = tiny_run(sets, num_steps=1)
    train_generator(run, tmp_path, progress=False)
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["model"]["dropout"], saved["held_out"], saved["optim"]["precision"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    train_generator(run, tmp_path, progress=False)
    other = replace(run, model=replace(run.model, dropout=0.5))
    with pytest.raises(ValueError, match=r"model\.dropout: 0\.0 there, 0\.5 here"):
        train_generator(other, tmp_path, progress=False)


def test_the_average_of_a_tied_table_goes_by_both_names():
    config = GPTConfig(layers=1, heads=2, width=16, tie_embeddings=True)
    network = build_gpt(config, tiny_card((5,)))
    average = WeightAverage(network, 0.9)
    average.weights["tokens.weight"].fill_(1)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict({**state, **average.by_name(network)})
    assert bool((network.head.weight == 1).all())
    again = WeightAverage(network, 0.9)
    again.load(average.by_name(network))
    assert again.weights.keys() == average.weights.keys()


def test_requests_are_checked(sets, tmp_path):
    train_generator(tiny_run(sets, num_steps=1), tmp_path, progress=False)
    made = load_generator(tmp_path)
    one, other = sets["one"], tiny_tokenizer(dim=8)
    labels = torch.tensor([0])
    with pytest.raises(ValueError, match=r"tokenizer \w{16}: this generator writes tokens of"):
        made.sample(other, labels, seed=0)
    with pytest.raises(ValueError, match="labels: 3: classes are 0 to 2"):
        made.sample(one, torch.tensor([0, 3]), seed=0)
    with pytest.raises(ValueError, match="labels: -1: classes are 0 to 2"):
        made.sample(one, torch.tensor([-1, 1]), seed=0)
    with pytest.raises(ValueError, match=r"labels of shape \(1,\) and type torch.float32"):
        made.sample(one, torch.tensor([0.0]), seed=0)
    with pytest.raises(ValueError, match="labels=None: say how many images"):
        made.sample(one, seed=0)
    with pytest.raises(ValueError, match="count=2: there are 1"):
        made.sample(one, labels, seed=0, count=2)
    with pytest.raises(ValueError, match="seed=-1: must not be negative"):
        made.sample(one, labels, seed=-1)
    with pytest.raises(ValueError, match="sampling=str: this generator is a GPT"):
        made.sample(one, labels, seed=0, sampling="greedy")
    assert made.sample(one, seed=0, count=1).shape == (1, 3, 3, 1)
    made.config = replace(made.config, label_dropout=0.0)
    with pytest.raises(ValueError, match="labels=None: this generator never saw a hidden class"):
        made.sample(one, seed=0, count=1)
    (tmp_path / "generator" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is truncated"):
        load_generator(tmp_path)
    one.save_pretrained(tmp_path / "tokenizer_folder")
    with pytest.raises(ValueError, match="holds no generator"):
        load_generator(tmp_path / "tokenizer_folder")


def test_token_sets_are_checked(sets, tmp_path):
    def refused(message, **changes):
        with pytest.raises(ValueError, match=message):
            train_generator(tiny_run(sets, **changes), tmp_path / "out", progress=False)

    base = sets["base"]
    with pytest.raises(ValueError, match="tokens: names no token set; make one with vqkit"):
        train_generator(replace(tiny_run(sets), tokens=None), tmp_path / "out", progress=False)
    refused("model.slots=None with 2 tokens per position: choose", tokens="two")
    refused("is a token set of another tokenizer than tokens", held_out=str(base / "two"))
    refused("held_out: is the token set that is trained on", held_out=str(base / "one"))
    refused("held_out: numbers its classes otherwise", held_out=str(base / "one_other"))
    refused("held_out: has images without a class", held_out=str(base / "one_plain"))
    refused("model.conditional=true: this token set has no labels", tokens="one_plain")
    some = SimpleNamespace(grid=(3, 3), num_classes=2, all_labels=np.array([1, -1]))
    with pytest.raises(ValueError, match=r"true: some images of this token set have no class"):
        card_of(some, conditional=True)
    with pytest.raises(ValueError, match=r"model.conditional=true: this token set has no labels"):
        card_of(SimpleNamespace(grid=(3, 3), num_classes=0), conditional=True)
    with pytest.raises(ValueError, match="its images have grids of several sizes"):
        card_of(SimpleNamespace(grid=None), conditional=False)


def test_runs_survive_json():
    for make in GENERATORS.values():
        run = make(tokens="folder")
        assert from_dict(GeneratorRun, json.loads(json.dumps(to_dict(run)))) == run
    assert {type(make().model) for make in GENERATORS.values()} == {GPTConfig, DiffusionConfig}
    with pytest.raises(ValueError, match="recipe='gpt_mnist': is a generator's; vqkit train"):
        recipe("gpt_mnist")


def test_the_small_recipes_are_small():
    card = tiny_card((1024,), num_classes=10, grid=(7, 7))
    with torch.device("meta"):
        network = build_gpt(generator_recipe("gpt_mnist")().model, card)
    assert 2e6 < sum(p.numel() for p in network.parameters()) < 3.5e6
    assert generator_recipe("gpt_photos")().model.conditional is False


def test_the_command_trains_a_generator(sets, tmp_path, capsys):
    words = ["--tokens", str(sets["base"] / "one"), "--out", str(tmp_path / "run")]
    words += ["--num_steps", "2", "--batch_size", "4", "--log.every", "1"]
    words += ["--model.layers", "1", "--model.width", "24"]
    assert main(["train", "gpt_mnist", *words]) == 0
    assert "trained gpt_mnist, 2 steps, loss" in capsys.readouterr().out
    assert load_generator(tmp_path / "run").config.width == 24
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    settings.pop("product")
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(settings))
    assert main(["train", "--config", str(file), "--print_config"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["width"] == 24
    assert main(["train", "gpt_mnist", "--out", str(tmp_path / "other")]) == 2
    assert "tokens: names no token set" in capsys.readouterr().err


def test_the_command_chooses_among_kinds(capsys):
    assert main(["train", "gpt_mnist", "--model.kind", "diffusion", "--print_config"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["network"]["kind"] == "dit"
    assert main(["train", "gpt_mnist", "--model.kind", "lstm", "--print_config"]) == 2
    assert "model.kind" in capsys.readouterr().err


class Tokens:
    """Ids in memory: of class c the codes 3 c, 3 c + 1 and 3 c + 2, by chance."""

    num_images, latent_channels, fingerprint, grid = 64, 0, "f", (3, 3)

    def __init__(self):
        source = torch.Generator().manual_seed(0)
        self._labels = torch.arange(64) % 3
        self._ids = torch.randint(3, (64, 3, 3, 1), generator=source)
        self._ids += 3 * self._labels.view(-1, 1, 1, 1)

    def __len__(self):
        return self.num_images

    def ids(self, rows):
        return self._ids[rows]

    def labels(self, rows):
        return self._labels[rows]


def test_classes_are_learnt_and_their_absence_too():
    config = GPTConfig(layers=1, heads=2, width=16, label_dropout=0.3)
    card = tiny_card((11,), grid=(3, 3))
    task = GPTTask(Tokens(), config, card, batch_size=32, seed=0)
    optimizer = torch.optim.Adam(task.model.parameters(), 1e-2)
    for step in range(60):
        losses = task.losses(task.batch(step), torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    made = GPTGenerator(card, config, task.model)
    asked = torch.arange(3).repeat(20)
    found = made.write(asked, seed=0, sampling=GPTSampling(guidance=1.5)).flatten(1) // 3
    assert (found == asked[:, None]).float().mean() > 0.98
    free = made.write(torch.full((60,), 3), seed=0, sampling=GPTSampling()).flatten(1) // 3
    counts = free[:, 0].bincount(minlength=3)
    # a third each: 20 of 60, with a standard error of 3.7
    assert counts[:3].min() > 5
    assert (free == free[:, :1]).float().mean() > 0.9, "an image without a class is of one class"
    with torch.no_grad():
        bits = measure_bits(task.model.eval(), Tokens())["bits_per_token"]
    assert bits == pytest.approx(math.log2(3), abs=0.1), "three codes by chance, if one is told"
