"""Settings and cards that lack a value, or have another kind of value, are refused in one line."""

import json

import pytest
import torch
from diffusion_cases import small
from feature_folders import blobs, write_features
from gpt_cases import tiny_card, tiny_gpt
from json_damage import damages

from vqkit.classification import TokenClassifier
from vqkit.classification.classifier import Card
from vqkit.classification.pixels import PixelClassifier
from vqkit.codebooks.features import FeatureSet
from vqkit.config import OptimConfig, from_dict
from vqkit.config.classification import PixelNetwork, ProbeClassifier, ViTClassifier
from vqkit.config.forms import check_form
from vqkit.generation import load_generator
from vqkit.generation.diffusion import DiffusionGenerator
from vqkit.generation.provenance import FILE, Line, Origin, Provenance

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
CARD = Card(
    source="codes",
    channels=4,
    grid=(2, 3),
    label_names=("cat", "dog"),
    tokenizer="t" * 64,
    tokens="s" * 64,
)


def gpt(folder):
    tiny_gpt(slots="depth").save(folder)
    return folder / "config.json", lambda: read(load_generator(folder).card)


def diffusion(folder):
    DiffusionGenerator(tiny_card((11,), grid=(4, 6), num_classes=5), small()).save(folder)
    return folder / "config.json", lambda: read(load_generator(folder).card)


def read(card):
    assert all(slot.num_codes > 0 and slot.name for slot in card.slots)
    assert all(len(name) > 0 for name in card.label_names)


def vit(folder):
    model = ViTClassifier(layers=1, heads=2, width=8, mlp=8, drop_path=0.0)
    made = TokenClassifier(model, CARD)
    made.save(folder)
    return folder / "config.json", lambda: TokenClassifier.load(folder)


def probe(folder):
    model = ViTClassifier(layers=1, heads=2, width=8, mlp=8, drop_path=0.0)
    TokenClassifier(ProbeClassifier(), CARD, backbone=TokenClassifier(model, CARD)).save(folder)
    return folder / "config.json", lambda: TokenClassifier.load(folder)


def pixels(folder):
    PixelClassifier(PixelNetwork(width=2, features=3), 2).save(folder)
    return folder / "config.json", lambda: PixelClassifier.load(folder)


def features(folder):
    rows = blobs(6)
    write_features(folder, rows, labels=torch.arange(6) % 2, names=["cat", "dog"])

    def use():
        found = FeatureSet(folder)
        groups = found.groups()
        assert groups is None or len(groups) == 6
        found.verify()
        found.provenance()

    return folder / "manifest.json", use


def provenance(folder):
    origin = Origin(generator="g", kind="gpt", tokenizer="t", seed=1, sampling={"top_k": 3})
    line = Line(file="0.png", number=0, label=1, label_name="cat", sha256="s", origin=origin)
    folder.mkdir()
    path = folder / "line.json"
    path.write_text(line.to_json())

    def use():
        (folder / FILE).write_text(path.read_text() + "\n")
        Provenance(folder, origin)

    return path, use


CASES = {gpt: 29, diffusion: 41, vit: 3, probe: 3, pixels: 1, features: 1, provenance: 2}
"""Every how many of all damages is tried: networks take their time to build."""


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_nothing_but_a_value_error_comes_of_it(case, tmp_path):
    path, use = case(tmp_path / "it")
    use()
    said = {}
    for name, values in list(damages(json.loads(path.read_text())))[:: CASES[case]]:
        path.write_text(json.dumps(values))
        said[name] = ""
        try:
            use()
        except ValueError as error:
            said[name] = str(error)
    refused = [text for text in said.values() if text]
    assert len(refused) > len(said) / 2
    assert not any("\n" in text for text in refused)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_steps": "many"}, r"^optim\.num_steps='many': expected a whole number$"),
        ({"num_steps": True}, r"^optim\.num_steps=True: expected a whole number$"),
        ({"lr": None}, r"^optim\.lr=None: expected a number$"),
        ({"weight_ema": "0.9"}, r"^optim\.weight_ema='0\.9': expected a number or null$"),
        ({"betas": [0.9]}, r"^optim\.betas=\(0\.9,\): expected a list of 2$"),
        ({"betas": [0.9, "x"]}, r"^optim\.betas\[1\]='x': expected a number$"),
        ({"deterministic": 1}, r"^optim\.deterministic=1: expected true or false$"),
    ],
)
def test_settings_of_another_kind_are_named(values, said):
    with pytest.raises(ValueError, match=said):
        from_dict(OptimConfig, {"num_steps": 1, "batch_size": 1, **values}, "optim.")


def test_whole_numbers_are_numbers():
    assert from_dict(OptimConfig, {"num_steps": 1, "batch_size": 1, "lr": 1}).lr == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], r"^f: the whole=\[\]: expected an object; again$"),
        ({}, r"^f: count: is missing; again$"),
        ({"count": 1.0}, r"^f: count=1\.0: expected a whole number; again$"),
        ({"count": 1, "rows": [{"share": 1}, {"share": "x"}]}, r"rows\[1\]\.share='x': expected a"),
        ({"count": 1, "rows": [{"share": float("nan")}]}, r"rows\[0\]\.share=nan: expected a fini"),
        ({"count": 1, "rows": {}}, r"^f: rows=\{\}: expected a list; again$"),
    ],
)
def test_the_form_of_json_values(values, said):
    form = {"count": int, "rows": (None, [{"share": float}])}
    check_form({"count": 1, "rows": None, "more": 3}, form, "f", "again")
    with pytest.raises(ValueError, match=said):
        check_form(values, form, "f", "again")
