"""Codebook files: what is in them, written whole, and what is refused."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch
from damage import damaged
from safetensors import safe_open
from safetensors.torch import save_file

from vqkit import __version__
from vqkit.codebooks import CodebookFile, read_codebook, write_codebook
from vqkit.config import NetworkConfig, QuantizerConfig
from vqkit.models import ImageTokenizer, TokenizerConfig

PROVENANCE = {
    "method": "kmeans",
    "settings": {"num_codes": 6, "seed": 0},
    "features": {"encoder": {"kind": "pixels", "sha256": "a" * 64}},
    "groups": [["cat", 4], ["dog", 2]],
    "report": {"inertia": 1 / 3},
}


def codes_of(dtype=torch.float16, seed=0):
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def file(tmp_path):
    """A codebook file of 6 codes with 4 numbers."""
    write_codebook(tmp_path / "codes.safetensors", CodebookFile(codes_of(), PROVENANCE))
    return tmp_path / "codes.safetensors"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_file_holds_codes_and_record(dtype, tmp_path):
    codes = codes_of(dtype)
    path = tmp_path / "new" / "codes.safetensors"
    write_codebook(path, CodebookFile(codes, PROVENANCE))
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["codes"]
        assert torch.equal(file.get_tensor("codes"), codes)
        metadata = file.metadata()
    assert list(metadata) == ["vqkit_codebook"]
    record = json.loads(metadata["vqkit_codebook"])
    assert record.items() >= PROVENANCE.items()
    assert (record["format"], record["num_codes"], record["dim"]) == (1, 6, 4)
    assert record["dtype"] == str(dtype).removeprefix("torch.")
    assert record["sha256"] == hashlib.sha256(codes.numpy().tobytes()).hexdigest()
    assert record["made"] == __version__
    found = read_codebook(path)
    assert torch.equal(found.codes, codes)
    assert found.codes.dtype == dtype
    assert found.provenance == record
    assert found.groups == [("cat", 4), ("dog", 2)]
    assert found.sha256 == record["sha256"]


def test_the_same_codebook_gives_the_same_bytes(file, tmp_path):
    again = tmp_path / "again.safetensors"
    write_codebook(again, read_codebook(file))
    assert again.read_bytes() == file.read_bytes()


def test_a_codebook_of_bare_codes_can_be_written(tmp_path):
    write_codebook(tmp_path / "bare", CodebookFile(codes_of()))
    found = read_codebook(tmp_path / "bare").provenance
    assert (found["method"], found["features"], found["groups"]) == (None, None, None)


def test_damage_is_noticed_or_does_no_harm(file):
    content, expected = file.read_bytes(), read_codebook(file)
    source, refused = np.random.default_rng(0), 0
    for _ in range(300):
        file.write_bytes(damaged(content, source))
        try:
            found = read_codebook(file)
        except ValueError:
            refused += 1
            continue
        assert torch.equal(found.codes, expected.codes)  # spaces in the header, say
        assert found.provenance == expected.provenance
    assert refused > 280


@pytest.mark.parametrize("cut", [9, 200, -1])
def test_a_torn_file_says_so(cut, file):
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"is damaged.*; copy it again|is no codebook file"):
        read_codebook(file)


def test_an_altered_record_is_refused(file):
    file.write_bytes(file.read_bytes().replace(b'"cat', b'"cow'))
    with pytest.raises(ValueError, match="is damaged; copy it again, or make it anew"):
        read_codebook(file)


@pytest.mark.parametrize("content", [None, b"", b"# Notes\n", "safetensors"])
def test_foreign_files_are_refused(content, tmp_path):
    path = tmp_path / "mine"
    if content == "safetensors":
        save_file({"codes": codes_of()}, path)
    elif content is not None:
        path.write_bytes(content)
    wanted = "is no file; name a codebook file" if content is None else "is no codebook file"
    with pytest.raises(ValueError, match=wanted):
        read_codebook(path)


def test_a_newer_format_names_its_version(file, monkeypatch):
    from vqkit.codebooks import files

    monkeypatch.setattr(files, "FORMAT", 7)
    write_codebook(file, CodebookFile(codes_of()))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"has format 7, this version reads 1; load it with vqkit"):
        read_codebook(file)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(3, 4, dtype=torch.int64), r"codes=\(3, 4\) of torch.int64: need"),
        (torch.zeros(3, 4, dtype=torch.bfloat16), r"need \(num_codes, dim\) of float16"),
        (torch.zeros(4), r"codes=\(4,\) of torch.float32: need"),
        (torch.zeros(0, 4), r"codes=\(0, 4\)"),
        (torch.tensor([[1.0, torch.inf]]), "codes: some are not finite"),
    ],
)
def test_what_are_no_codes_is_not_written(codes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_codebook(tmp_path / "codes", CodebookFile(codes))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_older_file_whole(file, monkeypatch):
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device, while writing"):
        write_codebook(file, CodebookFile(codes_of(seed=1)))
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


# ------------------------------------------------------ given to preset vqgan_lc


def tokenizer_with(path, **args):
    network = NetworkConfig(hidden=8, residual_hidden=4, num_residual_blocks=1)
    args = {"features": {"file": str(path)}, "in_channels": None, **args}
    quantizer = QuantizerConfig(preset="vqgan_lc", args=args)
    return ImageTokenizer(TokenizerConfig(quantizer=quantizer, network=network))


def test_preset_vqgan_lc_takes_a_codebook_file(file):
    (leaf,) = tokenizer_with(file, dim=3).quantizer.quantizer.leaves()
    assert torch.equal(leaf.codebook.features, codes_of().float())
    (leaf,) = tokenizer_with(file, projector=False).quantizer.quantizer.leaves()
    assert torch.equal(leaf.codebook.table(leaf.clock)[0], codes_of().float())


def test_preset_vqgan_lc_says_what_is_wrong_with_a_codebook_file(file):
    with pytest.raises(ValueError, match="dim=8 with projector=False: features have 4; leave dim"):
        tokenizer_with(file, dim=8, projector=False)
    with pytest.raises(ValueError, match="is a folder; name a safetensors file of features"):
        tokenizer_with(file.parent)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"features\.file=.* was altered since it was written"):
        tokenizer_with(file)
    file.write_bytes(content[:-7])
    with pytest.raises(ValueError, match="is no safetensors file, or a torn one"):
        tokenizer_with(file)
