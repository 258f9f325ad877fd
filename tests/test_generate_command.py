"""`vqkit generate` as a command: classes by name, settings by kind, one line for bad input."""

import json

import pytest
import torch
from generation_cases import card_of, small_tokenizer

from vqkit.cli import main
from vqkit.config.generation import GPTConfig
from vqkit.generation.gpt.generator import GPTGenerator, build_gpt


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A GPT with random weights in the folder of a run, and its tokenizer."""
    folder = tmp_path_factory.mktemp("gpt")
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    card = card_of(tokenizer, names=("cliff", "goldfish, Carassius auratus", "two"))
    config = GPTConfig(layers=1, heads=1, width=8)
    torch.manual_seed(0)
    GPTGenerator(card, config, build_gpt(config, card)).save(folder / "run/generator")
    return str(folder / "run"), str(folder / "tokenizer")


def lines(folder):
    return [json.loads(text) for text in (folder / "provenance.jsonl").read_text().splitlines()]


def test_classes_are_named_as_people_do(folders, tmp_path, capsys):
    run, tokenizer = folders
    words = ["generate", run, "--tokenizer", tokenizer, "--out", str(tmp_path), "--count", "2"]
    chosen = ["--classes", "2", "carassius AURATUS", "--top_k", "0.5", "--seed", "3"]
    assert main([*words, *chosen, "--device", "cpu"]) == 0
    assert "drew 4 images, 0 were there" in capsys.readouterr().out
    found = lines(tmp_path)
    assert [line["label"] for line in found] == [1, 1, 2, 2]
    assert found[0]["label_name"] == "goldfish, Carassius auratus"
    assert found[0]["sampling"]["top_k"] == 0.5
    assert (tmp_path / "grid.png").is_file()
    assert main([*words, *chosen, "--device", "cpu"]) == 0
    assert "drew 0 images, 4 were there" in capsys.readouterr().out


def test_without_a_place_samples_lie_in_the_run(folders, tmp_path, monkeypatch):
    run, tokenizer = folders
    monkeypatch.chdir(tmp_path)
    words = ["generate", run, "--tokenizer", tokenizer, "--count", "1", "--seed", "9"]
    assert main([*words, "--device", "cpu"]) == 0
    assert sorted(p.name for p in (tmp_path / run / "samples-9/images").iterdir()) == list("012")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokenizer", "TOKENIZER", "--classes", "clif"], "did you mean cliff?"),
        (["--tokenizer", "TOKENIZER", "--classes", "3"], "classes='3': unknown to this generator"),
        (["--tokenizer", "TOKENIZER", "--steps", "3"], "--steps: unknown option"),
        (["--tokenizer", "TOKENIZER", "--top_p", "2"], "top_p=2.0: is a probability"),
        (["--tokenizer", "TOKENIZER", "--count", "0"], "count=0: must be 1"),
        (["--tokenizer", "none"], "none"),
        ([], "tokenizer: none is named"),
    ],
)
def test_bad_input_is_one_line(folders, tmp_path, capsys, words, message):
    run, tokenizer = folders
    words = [tokenizer if word == "TOKENIZER" else word for word in words]
    assert main(["generate", run, *words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert not (tmp_path / "out").exists()


def test_what_is_no_generator_is_told(folders, capsys):
    _, tokenizer = folders
    assert main(["generate"]) == 2
    assert "run: none is named" in capsys.readouterr().err
    assert main(["generate", tokenizer, "--tokenizer", tokenizer]) == 2
    assert "holds no generator" in capsys.readouterr().err
