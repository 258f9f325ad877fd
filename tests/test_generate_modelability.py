"""Modelability: bits of one fixed GPT on held-out tokens, at equal compute."""

import json
import math

import pytest
import torch
from generation_cases import small_tokenizer
from PIL import Image

from vqkit.cli import main
from vqkit.config import DataConfig, NetworkConfig, QuantizerConfig
from vqkit.data import load_images
from vqkit.evaluation import evaluate
from vqkit.generation.gpt.generator import build_gpt
from vqkit.generation.modelability import fixed_gpt, modelability, training_operations
from vqkit.generation.training import card_of
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.tokens import TokenSet, write_token_set


def two_slots():
    torch.manual_seed(5)
    args = {"num_codes": 4, "dim": 2, "num_segments": 2, "in_channels": 4}
    return ImageTokenizer(
        TokenizerConfig(
            quantizer=QuantizerConfig(preset="looc", args=args),
            network=NetworkConfig(
                image_channels=1, hidden=8, residual_hidden=4, num_residual_blocks=1
            ),
        )
    ).eval()


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Token sets of noise by two tokenizers: 40 images to train on, 12 held out, 8 x 8 pixels."""
    folder = tmp_path_factory.mktemp("sets")
    source = torch.Generator().manual_seed(0)
    for split, count in (("train", 40), ("test", 12)):
        place = folder / "images" / split
        place.mkdir(parents=True)
        for number in range(count):
            pixels = torch.randint(0, 256, (8, 8), generator=source, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(place / f"{number:02}.png")
        data = DataConfig(source="folder", path=str(place), channels=1)
        for name, tokenizer in (("one", small_tokenizer()), ("two", two_slots())):
            out = folder / name / split
            write_token_set(tokenizer, data, out, progress=False)
    return folder


@pytest.mark.slow
def test_operations_are_the_products_of_the_network(sets):
    tokens = TokenSet.open(sets / "one/train")
    card = card_of(tokens, conditional=False)
    config = fixed_gpt(1)
    found = training_operations(config, card, tokens.ids(range(2)))
    network = build_gpt(config, card)
    trunk = sum(p.numel() for name, p in network.named_parameters() if p.ndim == 2)
    positions = card.grid[0] * card.grid[1]
    tables = (16 + 16 + 1) * config.width  # embeddings are looked up, not multiplied
    # forward and backward: 6 operations for each weight of a matrix and each position
    expected = 6 * (trunk - tables) * positions
    assert expected < found < 1.6 * expected  # the last layer, attention
    more = training_operations(config, card, tokens.ids(range(4)))
    assert more == pytest.approx(found, rel=1e-6)


@pytest.mark.slow
def test_compute_is_equal_and_bits_are_those_of_the_model(sets, tmp_path):
    compute = 3e9
    found = {}
    for name in ("one", "two"):
        found[name] = modelability(
            sets / name / "train",
            sets / name / "test",
            tmp_path / name,
            compute=compute,
            batch_size=8,
            progress=False,
        )
    for name, one in found.items():
        step = one.compute / one.steps
        assert compute - step < one.compute <= compute, name
        assert one.num_images == 12
        assert one.pixels == 64
        assert one.epochs == pytest.approx(one.steps * 8 / 40)
    assert found["one"].nominal_bits == 4 * math.log2(16)
    assert found["two"].nominal_bits == 4 * 2 * math.log2(4)
    assert found["one"].num_tokens == 4
    assert found["two"].num_tokens == 8
    assert found["one"].steps > found["two"].steps, "two tokens a position cost more"
    ids = TokenSet.open(sets / "one/test").ids(range(12)).flatten()
    share = ids.bincount().double() / len(ids)
    entropy = -(share * share.log2())[share > 0].sum()
    assert found["one"].entropy_bits == pytest.approx(float(entropy) * 4)
    assert 0 < found["one"].bits_per_image < 2 * found["one"].nominal_bits
    saved = json.loads((tmp_path / "one/modelability.json").read_text())
    assert saved["bits_per_pixel"] == found["one"].bits_per_image / 64
    again = modelability(
        sets / "one/train",
        sets / "one/test",
        tmp_path / "one",
        compute=compute,
        batch_size=8,
        progress=False,
    )
    assert again == found["one"], "a finished run is read"


def test_too_little_compute_says_how_much_is_needed(sets, tmp_path):
    with pytest.raises(ValueError, match=r"compute=1e\+06: pays 0 steps; give at least"):
        modelability(sets / "one/train", sets / "one/test", tmp_path, compute=1e6)


@pytest.mark.slow
def test_the_command_sets_reconstructions_beside(sets, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    data = DataConfig(source="folder", path=str(sets / "images" / "test"), channels=1)
    found = evaluate(small_tokenizer(), load_images(data))
    found.save(run / "evaluation.json")
    names = [str(sets / name / "train") for name in ("one", "two")]
    held_out = [str(sets / name / "test") for name in ("one", "two")]
    words = ["modelability", *names, "--held_out", *held_out, "--compute", "3e9"]
    words += ["--batch_size", "8", "--out", str(tmp_path / "out")]
    assert main([*words, "--runs", str(run), str(tmp_path)]) == 0
    shown = capsys.readouterr()
    first, second = (line for line in shown.out.splitlines() if line.startswith(("| one", "| two")))
    assert f"{found.value('psnr'):.2f}" in first
    assert "n/a" in second
    assert "would write it" in shown.err
    assert len(json.loads((tmp_path / "out/modelability.json").read_text())) == 2


def test_an_evaluation_of_other_weights_is_refused(sets, tmp_path, capsys):
    data = DataConfig(source="folder", path=str(sets / "images" / "test"), channels=1)
    evaluate(two_slots(), load_images(data)).save(tmp_path / "evaluation.json")
    words = ["modelability", str(sets / "one/train"), "--held_out", str(sets / "one/test")]
    words += ["--compute", "3e9", "--batch_size", "8", "--out", str(tmp_path / "out")]
    assert main([*words, "--runs", str(tmp_path)]) == 2
    assert f"runs={tmp_path}: its evaluation.json is of other weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "tokens: none are named"),
        (["a", "b", "--held_out", "c"], "held_out: 1 are named for 2 token sets"),
        (["a", "--held_out", "b", "--runs", "c", "d"], "runs: 2 are named for 1 token sets"),
        (["none", "--held_out", "none"], "is no token set"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["modelability", *words]) == 2
    assert message in capsys.readouterr().err
