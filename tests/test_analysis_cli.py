"""`vqkit analyze` from end to end: files, equal bytes in a second run, and bad input."""

import json
import shutil
import sys

import numpy as np
import pytest
from analysis_models import make_tokenizer, open_images, write_images
from PIL import Image
from test_analysis import log_lines, write_run

from vqkit.analysis import code_frequency
from vqkit.cli import main
from vqkit.cli.analyze import VERBS
from vqkit.models import ImageTokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Images and three tokenizers."""
    folder = tmp_path_factory.mktemp("models")
    write_images(folder / "images")
    tokenizers = {
        "looc": make_tokenizer("looc", num_codes=12, dim=4, num_segments=3),
        "plain": make_tokenizer("vq_vae", num_codes=24, dim=4),
        "lattice": make_tokenizer("fsq", levels=(3, 5)),
    }
    for name, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def place(models, tmp_path, monkeypatch):
    """A folder with the models and nothing else, and work in it."""
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


DATA = ["--data.path", "images", "--device", "cpu"]


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("frequency", []),
        pytest.param("tsne", ["--max_codes", "10", "--perplexity", "3"], marks=pytest.mark.slow),
        pytest.param("replace", ["--m", "0", "1", "3", "--pictures", "1"], marks=pytest.mark.slow),
        ("replace", ["--from", "feature", "--m", "2", "--pictures", "0"]),
        pytest.param("bars", ["--batch_size", "2"], marks=pytest.mark.slow),
        pytest.param("extremes", ["--count", "1", "--by", "ssim"], marks=pytest.mark.slow),
    ],
)
def test_a_verb_writes_a_figure_and_its_numbers(place, verb, options, capsys):
    words = ["analyze", verb, "looc", "plain", *DATA, *options]
    assert main([*words, "--out", "a/first.png"]) == 0
    said = capsys.readouterr().out
    assert "wrote a/first.png" in said
    assert "wrote a/first.json" in said
    assert Image.open("a/first.png").width > 600
    first = (place / "a/first.json").read_bytes()
    assert main([*words, "--out", "second.png"]) == 0
    assert (place / "second.json").read_bytes() == first
    written = json.loads(first)
    assert written["kind"] == verb
    tokenizers = [result["protocol"]["tokenizer"] for result in written["results"]]
    assert [one["name"] for one in tokenizers] == ["looc", "plain"]
    assert len({one["sha256"] for one in tokenizers}) == 2
    expected = open_images(place / "images").fingerprint()
    for result in written["results"]:
        data = result["protocol"]["data"]
        assert (data["fingerprint"], data["num_images"]) == (expected, 5)
        tokens = {"looc": 3, "plain": 1}[result["protocol"]["tokenizer"]["name"]]
        assert data["num_tokens"] == tokens * (3 * 4 * 5 + 4 * 5 + 3 * 3)


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        pytest.param("errors", ["--scale", "60"], marks=pytest.mark.slow),
        ("crops", ["--region", "1", "2", "4", "5"]),
    ],
)
def test_verbs_of_chosen_images(place, verb, options, capsys):
    words = ["analyze", verb, "looc", "plain", *DATA, *options, "--images", "2", "0"]
    assert main([*words, "--out", "a.png"]) == 0
    assert capsys.readouterr().out.count("PSNR") == 4
    assert Image.open("a.png").width > 600
    for result in json.loads((place / "a.json").read_text(encoding="utf-8"))["results"]:
        assert [image["name"] for image in result["images"]] == ["2.png", "0.png"]
        assert result["protocol"]["settings"]["indices"] == [2, 0]
        assert result["protocol"]["quality"]["id"].startswith("vqkit-default-1:")


def test_segments_of_those_that_have_some(place, capsys):
    assert main(["analyze", "segments", "looc", *DATA, "--out", "a.png"]) == 0
    assert "3 segments use" in capsys.readouterr().out
    (result,) = json.loads((place / "a.json").read_text(encoding="utf-8"))["results"]
    assert [one["name"] for one in result["books"][0]["segments"]] == [
        "segment0",
        "segment1",
        "segment2",
    ]


def test_the_codebook_of_a_run(place, capsys):
    write_run(place / "run", log_lines())
    assert main(["analyze", "codebook", "run", "--max_codes", "5", "--out", "a.png"]) == 0
    said = capsys.readouterr().out
    assert "run code: of 24 codes after 8 steps" in said
    assert "an unknown number never drawn" in said
    (book,) = json.loads((place / "a.json").read_text(encoding="utf-8"))["results"][0]["books"]
    assert (book["num_codes"], book["num_shown"], book["dim"]) == (24, 5, 4)


def test_curves_of_evaluations(place, capsys):
    write_run(place / "run", log_lines())
    for name, where in (("looc", "looc.json"), ("plain", "run/evaluation.json")):
        assert main(["evaluate", name, "--json", where, *DATA]) == 0
    capsys.readouterr()
    assert main(["analyze", "sizes", "looc.json", "run", "--out", "a.png"]) == 0
    assert "run: 24×4, psnr" in capsys.readouterr().out
    assert main(["analyze", "scaling", "looc.json", "run", "--out", "b.png"]) == 0
    assert "FID not measured" in capsys.readouterr().out
    written = json.loads((place / "b.json").read_text(encoding="utf-8"))["results"]
    assert [(one["name"], one["method"]) for one in written] == [
        ("looc", "looc"),
        ("run", "vq_vae"),
    ]
    one = (place / "run" / "evaluation.json").rename(place / "run" / "evaluation-0a.json")
    assert main(["analyze", "sizes", "run", "--out", "a.png"]) == 0
    assert "run: 24×4, psnr" in capsys.readouterr().out
    (place / "run" / "evaluation-1b.json").write_bytes(one.read_bytes())
    assert main(["analyze", "sizes", "run", "--out", "a.png"]) == 2
    assert "holds evaluation-0a.json, evaluation-1b.json; name one" in capsys.readouterr().err
    (place / "run" / "evaluation.json").write_bytes((place / "looc.json").read_bytes())
    assert main(["analyze", "sizes", "run", "--out", "a.png"]) == 2
    assert "run=run: evaluation.json is of other weights" in capsys.readouterr().err
    assert main(["analyze", "sizes", "run/evaluation.json", "--out", "a.png"]) == 0


def test_counts_are_written_for_every_tokenizer(place, capsys):
    assert main(["analyze", "frequency", "looc", "plain", *DATA, "--out", "all.png"]) == 0
    for name in ("looc", "plain"):
        tokenizer = ImageTokenizer.from_pretrained(name)
        found = code_frequency(tokenizer, open_images(place / "images"))
        assert np.load(f"all.{name}.npy").tolist() == found.books[0].table().tolist()
    assert "codes used" in capsys.readouterr().out


def test_usage_of_runs(place, capsys):
    write_run(place / "run", log_lines())
    assert main(["analyze", "usage", "run"]) == 0
    said = capsys.readouterr().out
    assert "run: epoch 2, 0.5000 of the codes used (uniform draws: 0.9800), perplexity 11.5" in said
    assert "wrote runs/analysis/usage.png" in said
    written = json.loads((place / "runs/analysis/usage.json").read_text(encoding="utf-8"))
    epochs = written["results"][0]["books"][0]["epochs"]
    assert [epoch["usage"] for epoch in epochs] == [0.25, 0.5]


def test_help_lists_the_verbs_and_their_options(capsys):
    for words in (["analyze"], ["analyze", "--help"]):
        assert main(words) == 0
        said = capsys.readouterr().out
        for verb in VERBS:
            assert f"\n  {verb} " in said
    assert main(["analyze", "replace", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--from" in said
    assert "--data.path" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frequenzy", "looc"], "verb='frequenzy': unknown; did you mean 'frequency'?"),
        (["xx"], "known are usage, frequency, bars, segments"),
        (["frequency", *DATA], "tokenizer: none is named"),
        (["usage"], "run: none is named"),
        (["usage", "looc"], "run=looc: is no training run; name its folder"),
        (["frequency", "looc", "--out", "a.pdf", *DATA], "figures are PNG files"),
        (["frequency", "looc", "looc", *DATA], "one is given twice"),
        (["frequency", "looc"], "--data.path"),
        (["tsne", "lattice", *DATA], "is a lattice, which has no table"),
        (["replace", "lattice", *DATA], "is a lattice, which has no table"),
        (["replace", "looc", "--m", "x", *DATA], "m"),
        (["replace", "looc", "--m", "12", *DATA], "codebook 'code' of 12 codes has 0..11"),
        (["replace", "looc", "--ms", "1", *DATA], "--ms: unknown option; did you mean --m?"),
        (["replace", "looc", "--from", "token", *DATA], "expected one of 'code', 'feature'"),
        (["segments", "plain", *DATA], "its vectors are quantized whole"),
        (["codebook", "looc"], "run=looc: is no training run; name its folder"),
        (["extremes", "looc", *DATA, "--by", "size"], "by='size'"),
        (["errors", "looc", *DATA, "--images", "5"], "images=5: the set has 5 images"),
        (["crops", "looc", *DATA, "--region", "0", "0", "99", "1"], "is no part of 0.png"),
        (["sizes"], "evaluation: none is named"),
        (["sizes", "nowhere.json"], "evaluation=nowhere.json: is no file"),
        (["sizes", "looc"], "evaluation=looc: is no file"),
        (["tsne", "looc", *DATA, "--device", "tpu9"], "device='tpu9'"),
    ],
)
def test_bad_input_is_one_line(place, words, message, capsys):
    assert main(["analyze", *words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1]
    assert not (place / "runs").exists()


def test_a_missing_matplotlib_is_told_before_any_work(place, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["analyze", "frequency", "looc", *DATA]) == 2
    assert "pip install 'vqkit[plots]'" in capsys.readouterr().err
