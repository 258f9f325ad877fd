"""Classifiers of token maps: trained, saved, measured, and refused where they do not fit."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from vqkit.classification import (
    Maps,
    TokenClassifier,
    evaluate_run,
    measure,
    table,
    train_classifier,
)
from vqkit.classification.task import ClassifierTask
from vqkit.cli import main
from vqkit.config import (
    DataConfig,
    LogConfig,
    NetworkConfig,
    OptimConfig,
    QuantizerConfig,
)
from vqkit.config.classification import (
    Augmentation,
    ClassifierRun,
    ProbeClassifier,
    ViTClassifier,
)
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.recipes.classification import CLASSIFIERS, lc_classifier
from vqkit.tokens import TokenSet, write_token_set

SMALL = ViTClassifier(layers=1, heads=2, width=16, mlp=32, drop_path=0.0)
NETWORK = NetworkConfig(image_channels=1, hidden=8, residual_hidden=4, num_residual_blocks=1)


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def tokenizer_of(seed, preset="rq"):
    args = {"num_codes": 16, "dim": 4} | ({"num_levels": 2} if preset == "rq" else {})
    torch.manual_seed(seed)
    quantizer = QuantizerConfig(preset=preset, args=args)
    tokenizer = ImageTokenizer(TokenizerConfig(quantizer=quantizer, network=NETWORK)).eval()
    # Untrained codes are too far from all features; these are features of grey patches.
    greys = torch.linspace(-1, 1, 16)[:, None, None, None].expand(-1, 1, 4, 4)
    (leaf,) = {leaf.codebook for leaf in tokenizer.quantizer.quantizer.leaves()}
    leaf.write(tokenizer.encode_latents(greys)[None, :, :, 0, 0])
    return tokenizer


def write_pictures(folder, seed, count=12):
    """Two classes: bright above and dark below, or the other way round; noise over it."""
    source = np.random.default_rng(seed)
    for name, above in (("down", 200), ("up", 50)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = source.integers(-40, 40, (8, 8)) + np.array(
                [[above]] * 4 + [[250 - above]] * 4
            )
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            picture.save(folder / name / f"{number}.png")
    return DataConfig(source="folder", path=str(folder), channels=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tokenizer, tokens to train on and others, and tokens of another tokenizer."""
    root = tmp_path_factory.mktemp("sets")
    train, test = write_pictures(root / "a", 0), write_pictures(root / "b", 1)
    tokenizer, other = tokenizer_of(3), tokenizer_of(4)
    tokenizer.save_pretrained(root / "tokenizer")
    other.save_pretrained(root / "other")
    for name, maker, images in (
        ("train", tokenizer, train),
        ("test", tokenizer, test),
        ("foreign", other, test),
    ):
        write_token_set(maker, images, root / name, latents=True, progress=False)
    return root


def run_of(place, model=SMALL, *, steps=60, lr=1e-2, **settings):
    return ClassifierRun(
        **{"name": "tiny", "tokens": str(place / "train"), "tokenizer": str(place / "tokenizer")}
        | settings,
        model=model,
        optim=OptimConfig(num_steps=steps, batch_size=8, lr=lr),
        log=LogConfig(every=10, checkpoint_every=20),
    )


def trained(place, out, **settings):
    return train_classifier(run_of(place, **settings), out, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "source"),
    [
        (SMALL, "codes"),
        (SMALL, "latents"),
        (ProbeClassifier(pooling="none"), "codes"),
        (ProbeClassifier(pooling="none"), "latents"),
    ],
)
def test_it_learns_what_the_tokens_tell(place, tmp_path, model, source):
    held = str(place / "test")
    result = trained(place, tmp_path / "run", model=model, source=source, held_out=held)
    assert result.log[-1]["validation/top1"] >= 0.9
    row = evaluate_run(tmp_path / "run", TokenSet.open(place / "test"))
    assert row.found.top1 == result.log[-1]["validation/top1"]
    assert row.found.images == 24
    assert row.bits_per_pixel == 4 * 2 * 4 / 64  # four positions of two tokens of 16 codes
    assert row.tokens == 8


def test_the_mean_of_a_map_cannot_tell_above_from_below(place, tmp_path):
    """What the pooled probe must not know: both classes have the same codes on average."""
    trained(place, tmp_path / "run", model=ProbeClassifier(pooling="mean"))
    assert evaluate_run(tmp_path / "run", TokenSet.open(place / "test")).found.top1 < 0.9


@pytest.mark.slow
def test_a_probe_looks_through_a_frozen_transformer(place, tmp_path):
    trained(place, tmp_path / "vit")
    before = TokenClassifier.load(tmp_path / "vit").net.state_dict()
    model = ProbeClassifier(backbone=str(tmp_path / "vit"))
    trained(place, tmp_path / "probe", model=model, lr=0.1)
    probe = TokenClassifier.load(tmp_path / "probe")
    for name, tensor in before.items():
        assert torch.equal(probe.state_dict()[f"net.backbone.{name}"], tensor)
    row = evaluate_run(tmp_path / "probe", TokenSet.open(place / "test"))
    assert row.found.top1 >= 0.9
    assert row.parameters == 2 * 16 + 2
    assert row.model == "probe on vit"


def test_top1_is_counted_image_by_image(place, tmp_path):
    """Against one image at a time: a network of float64 logits, argmax, and the lookup of ids."""
    trained(place, tmp_path / "run", steps=5)
    model, tokens = TokenClassifier.load(tmp_path / "run"), TokenSet.open(place / "test")
    tokenizer = ImageTokenizer.from_pretrained(place / "tokenizer").eval()
    right = loss = 0
    with torch.no_grad():
        for number in range(tokens.num_images):
            one = tokens[number]
            z_q = tokenizer.quantizer.lookup(one["ids"][None])
            maps = (z_q - model.mean[:, None, None]) / model.std[:, None, None]
            logits = model.net(maps)[0]
            right += int(logits.argmax() == one["label"])
            loss -= float(logits.log_softmax(0)[one["label"]])
    found = measure(model, Maps(tokenizer, "codes"), tokens, batch_size=5)
    assert found.top1 == right / 24
    assert found.loss == pytest.approx(loss / 24, rel=1e-5)
    assert found.top5 == 1.0


def test_maps_are_normalised_by_the_training_set(place):
    task = ClassifierTask(
        run_of(place),
        tokens := TokenSet.open(place / "train"),
        maps := Maps(ImageTokenizer.from_pretrained(place / "tokenizer"), "codes"),
    )
    raw = maps.of_images(tokens, torch.arange(24), torch.device("cpu"))
    made = task.classifier.normalised(raw)
    torch.testing.assert_close(made.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
    moving = raw.std((0, 2, 3)) > 1e-6
    assert bool(moving.any())
    deviation = made.std((0, 2, 3), correction=0)
    torch.testing.assert_close(deviation[moving], torch.ones(4)[moving], rtol=1e-4, atol=0)


@pytest.mark.slow
def test_a_run_goes_on_exactly(place, tmp_path):
    every = Augmentation(mixup=0.8, cutmix=1.0, erase=0.25, smoothing=0.1, shift=1)
    model = ViTClassifier(layers=2, heads=2, width=16, mlp=32, drop_path=0.3)
    settings = {"model": model, "augment": every, "layer_decay": 0.65}
    trained(place, tmp_path / "whole", **settings)
    trained(place, tmp_path / "cut", **settings)
    for gone in ("result.json", "classifier/config.json", "step_00000060/trainer.json"):
        (tmp_path / "cut" / gone).unlink()
    trained(place, tmp_path / "cut", **settings)
    weights = [tmp_path / name / "classifier" / "model.safetensors" for name in ("whole", "cut")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_layers_learn_at_rates_of_their_own(place):
    """MAE's layer decay: the last block 0.65, the one before 0.65², positions least."""
    model = ViTClassifier(layers=2, heads=2, width=16, mlp=32)
    run = run_of(place, model=model, layer_decay=0.65)
    maps = Maps(ImageTokenizer.from_pretrained(place / "tokenizer"), "codes")
    task = ClassifierTask(run, TokenSet.open(place / "train"), maps)
    names = {p: name for name, p in task.classifier.net.named_parameters()}
    found = {}
    for group in task.groups(task.model):
        for parameter in group["params"]:
            found[names[parameter]] = (group["lr_scale"], group.get("weight_decay"))
    assert set(found) == set(names.values())
    assert found["head.weight"] == (1.0, None)
    assert found["head.bias"] == (1.0, 0.0)
    assert found["patch_embed.weight"] == (1.0, None)
    assert found["blocks.1.mlp.fc1.weight"] == (pytest.approx(0.65), None)
    assert found["blocks.0.norm1.weight"] == (pytest.approx(0.65**2), 0.0)
    assert found["pos_embed"] == (pytest.approx(0.65**3), 0.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": None}, "tokens: names no token set"),
        ({"tokenizer": None}, "tokenizer: names no tokenizer"),
        ({"tokenizer": "other"}, "those of tokenizer"),
        ({"held_out": "foreign"}, "those of tokenizer"),
        ({"held_out": "train"}, "held_out: is the token set of the training"),
        ({"model": ProbeClassifier(backbone="tokenizer")}, "is no classifier of tokens"),
        ({"model": ViTClassifier(pretrained="none")}, "model.pretrained='.*none': is no folder"),
    ],
)
def test_what_does_not_fit_is_refused(place, tmp_path, changes, said):
    for name in ("tokenizer", "held_out"):
        if changes.get(name):
            changes = changes | {name: str(place / changes[name])}
    model = changes.get("model")
    if isinstance(model, ProbeClassifier):
        changes = {"model": ProbeClassifier(backbone=str(place / model.backbone))}
    with pytest.raises(ValueError, match=said):
        trained(place, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_images_without_labels_are_refused(place, tmp_path):
    write_pictures(tmp_path / "pictures", 2, count=3)
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted((tmp_path / "pictures").rglob("*.png"))):
        path.rename(flat / f"{number}.png")
    tokenizer = ImageTokenizer.from_pretrained(place / "tokenizer")
    images = DataConfig(source="folder", path=str(flat), channels=1)
    write_token_set(tokenizer, images, tmp_path / "tokens", progress=False)
    with pytest.raises(ValueError, match="tokens: have no labels to learn"):
        trained(place, tmp_path / "run", tokens=str(tmp_path / "tokens"))


@pytest.mark.slow
def test_the_commands_train_and_compare(place, tmp_path, capsys, monkeypatch):
    recipe = ["classify", "train", "small_probe", "--tokens", str(place / "train")]
    recipe += ["--tokenizer", str(place / "tokenizer"), "--batch_size", "8", "--num_steps", "60"]
    recipe += ["--optim.lr", "0.01"]
    for name, source in (("one", "codes"), ("two", "latents")):
        out = ["--out", str(tmp_path / name), "--name", name, "--source", source]
        assert main([*recipe, *out]) == 0
    capsys.readouterr()
    tokens = ["--tokens", str(place / "test"), str(place / "test")]
    numbers = tmp_path / "numbers.json"
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert main(["classify", "evaluate", *runs, *tokens, "--json", str(numbers)]) == 0
    said = capsys.readouterr().out
    assert "bits/pixel" in said
    saved = json.loads(numbers.read_text())
    assert [row["name"] for row in saved] == ["one", "two"]
    assert saved[0]["found"]["top1"] >= 0.9
    assert f"{100 * saved[0]['found']['top1']:.2f}" in said
    assert main(["classify", "evaluate", runs[0]]) == 2  # it held nothing out
    assert main(["classify", "evaluate", runs[0], "--tokens", str(place / "foreign")]) == 2
    assert main(["classify", "evaluate", str(place / "train")]) == 2
    assert main(["classify", "evaluate", *runs, *tokens, "--device", "nonsense"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setattr("vqkit.cli.classify_tokens.processes", lambda: nullcontext(False))
    numbers.unlink()
    assert main(["classify", "evaluate", *runs, *tokens, "--json", str(numbers)]) == 0
    assert not numbers.exists()  # it is not the first process of several
    assert not capsys.readouterr().out


def test_a_classifier_of_an_older_version_goes_on(place, tmp_path):
    trained(place, tmp_path, steps=1)
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["model"]["pooling"], saved["augment"]["mixup"], saved["source"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    trained(place, tmp_path, steps=1)
    with pytest.raises(ValueError, match="source: 'codes' there, 'latents' here"):
        trained(place, tmp_path, steps=1, source="latents")


def test_fewer_images_than_processes(place, monkeypatch):
    """The last of a hundred processes has no image, and adds nothing."""
    maps = Maps(ImageTokenizer.from_pretrained(place / "tokenizer"), "codes")
    task = ClassifierTask(run_of(place), TokenSet.open(place / "train"), maps)
    monkeypatch.setattr("vqkit.quantizers.ranks.rank", lambda: 99)
    monkeypatch.setattr("vqkit.quantizers.ranks.world_size", lambda: 100)
    found = measure(task.classifier.eval(), maps, TokenSet.open(place / "test"))
    assert (found.top1, found.loss, found.images) == (0, 0, 24)


def test_a_table_hides_the_rate_of_what_is_not_coded(place, tmp_path):
    trained(place, tmp_path / "run", steps=2, source="latents")
    row = evaluate_run(tmp_path / "run", TokenSet.open(place / "test"))
    assert "n/a" in table([row])


def test_the_papers_recipe_is_maes():
    run = lc_classifier()
    assert run.optim.lr == 5e-4 * 1024 / 256
    assert run.optim.num_steps == 125_100
    assert run.optim.warmup_steps == 6_255
    assert run.optim.lr * run.optim.final_lr == pytest.approx(1e-6)
    assert (run.augment.mixup, run.augment.cutmix) == (0.8, 1.0)
    assert (run.model.layers, run.model.heads, run.model.width) == (12, 12, 768)
    assert lc_classifier(batch_size=256).optim.lr == 5e-4


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_recipe_survives_json(name, capsys):
    assert main(["classify", "train", name, "--print_config"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == name
