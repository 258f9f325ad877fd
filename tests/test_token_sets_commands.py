"""The commands around token sets: tokenize, detokenize, tokens describe, verify and merge."""

from pathlib import Path

import numpy as np
import pytest
import torch
from feature_images import image_folder
from PIL import Image
from token_cases import tokenizer
from training_runs import run_config, write_images

from vqkit import cli
from vqkit.data import load_images
from vqkit.models import ImageTokenizer
from vqkit.tokens import TokenSet
from vqkit.training import train

pytest.importorskip("pyarrow")

SIZES = [(12, 16), (12, 16), (9, 20), (12, 16), (16, 12)]


@pytest.fixture
def folder(tmp_path):
    """A tokenizer and images in two classes."""
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    image_folder(tmp_path / "images", SIZES, ["cat", "dog"])
    return tmp_path


def tokenize(folder, *words, out="set"):
    command = ["tokenize", str(folder / "tokenizer"), "-o", str(folder / out), "--device", "cpu"]
    data = ["--data.source", "folder", "--data.path", str(folder / "images")]
    return cli.main([*command, *data, *words])


def test_tokenize_and_back(folder, capsys):
    assert tokenize(folder, "--shard_images", "2", "--latents") == 0
    assert capsys.readouterr().out.startswith("wrote 5 images x different grids x 4 tokens, 2 cl")
    found = TokenSet.open(folder / "set")
    assert found.label_names == ("cat", "dog")
    assert found.latent_channels > 0
    command = ["detokenize", str(folder / "set"), "--tokenizer", str(folder / "tokenizer")]
    assert cli.main([*command, "--out", str(folder / "back"), "--device", "cpu"]) == 0
    assert "wrote 5 images" in capsys.readouterr().out
    model = ImageTokenizer.from_pretrained(folder / "tokenizer")
    for key in found.keys(range(5)):
        pixels = np.array(Image.open(folder / "images" / key))
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        again = ((model.reconstruct(image)[0] + 1) * 127.5).round().to(torch.uint8)
        back = np.array(Image.open(folder / "back" / key)).transpose(2, 0, 1)
        # Rows of a batch and of one image alone may differ by rounding.
        assert np.abs(back.astype(int) - again.numpy().astype(int)).max() <= 1
    some = [*command, "--out", str(folder / "some"), "--device", "cpu", "--first", "3"]
    assert cli.main([*some, "--count", "1"]) == 0
    assert [path.name for path in (folder / "some").rglob("*.png")] == ["01.png"]


def test_another_tokenizer_is_refused(folder, capsys):
    assert tokenize(folder) == 0
    tokenizer(seed=1).save_pretrained(folder / "other")
    command = ["detokenize", str(folder / "set"), "--tokenizer", str(folder / "other")]
    assert cli.main([*command, "--out", str(folder / "back"), "--device", "cpu"]) == 2
    assert "are those of tokenizer" in capsys.readouterr().err
    assert not (folder / "back").exists()


def test_verify_names_the_shard_with_a_flipped_bit(folder, capsys):
    assert tokenize(folder, "--shard_images", "2") == 0
    assert cli.main(["tokens", "verify", str(folder / "set")]) == 0
    assert "all 3 shards are as the manifest says" in capsys.readouterr().out
    path = folder / "set" / "00002.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 8
    path.write_bytes(content)
    assert cli.main(["tokens", "verify", str(folder / "set")]) == 2
    error = capsys.readouterr().err
    assert "1 of 3 shards" in error
    assert "00002.parquet" in error
    assert "00001.parquet" not in error


def test_describe_says_what_there_is(folder, capsys):
    assert tokenize(folder, "--data.limit", "1") == 0
    capsys.readouterr()
    assert cli.main(["tokens", "describe", str(folder / "set")]) == 0
    text = capsys.readouterr().out
    assert "3 x 4 positions, 48 tokens, 144.0 bits" in text
    assert "4 tokens, codes 4 x 8" in text
    assert "threads 1" in text
    assert TokenSet.open(folder / "set").tokenizer in text


def test_merge(folder, capsys):
    assert tokenize(folder, out="one") == 0
    assert tokenize(folder, out="two") == 0
    sets = [str(folder / name) for name in ("one", "two")]
    assert cli.main(["tokens", "merge", *sets, "--out", str(folder / "both")]) == 0
    assert "wrote 10 images of 2 token sets" in capsys.readouterr().out
    assert TokenSet.open(folder / "both").num_images == 10
    assert cli.main(["tokens", "merge", sets[0], "--out", str(folder / "no")]) == 2


@pytest.mark.slow
def test_tokens_of_a_run_are_those_of_its_centre_crops(tmp_path, capsys):
    images = write_images(tmp_path / "images", count=8, side=12)
    config = run_config(images, "vq_ema")
    train(config, out=tmp_path / "run", progress=False)
    command = ["tokenize", str(tmp_path / "run"), "--out", str(tmp_path / "set")]
    assert cli.main([*command, "--device", "cpu"]) == 0
    found = TokenSet.open(tmp_path / "set")
    prepared = found.manifest["preprocessing"]
    assert prepared["crop"] == ("none" if config.data.crop == "none" else "center")
    assert prepared["crop_size"] == config.data.crop_size
    assert found.num_images == len(load_images(config.data))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tokenize"], "tokenizer: none is named"),
        (["tokenize", "x"], "out: nothing is named"),
        (
            ["tokenize", "x", "--out", "y", "--engine", "torchrun"],
            "start the command with torchrun",
        ),
        (["detokenize"], "tokens: none are named"),
        (["detokenize", "x", "--out", "y"], "tokenizer: none is named"),
        (["detokenize", "x", "--out", "y", "--tokenizer", "z"], "is no token set"),
        (["tokens", "verify"], "tokens: none are named"),
        (["tokens", "describe", "nowhere"], "is no token set; make one with vqkit tokenize"),
        (["tokens", "verfy", "x"], "did you mean 'verify'"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(words, message, capsys):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_keys_cannot_name_files_elsewhere():
    from vqkit.cli.detokenize import _target

    for key in ("../x", "/etc/x", "a/../../x", ""):
        with pytest.raises(ValueError, match="the token set is damaged"):
            _target(key, Path("out"))
