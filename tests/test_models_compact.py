"""Tokenizers whose computed codes are stored as plain ones: same bits, fewer bytes."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import assert_same_run, run_config, write_images

from vqkit.cli import main
from vqkit.config import NetworkConfig, QuantizerConfig
from vqkit.models import ImageTokenizer, TokenizerConfig, compacted, hub
from vqkit.training import list_checkpoints, run_folder, train
from vqkit.weights import sha256_of

NETWORK = NetworkConfig(hidden=8, residual_hidden=4, num_residual_blocks=1)
FEATURES = torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
COMPUTED = {
    "vqgan_lc": ("vqgan_lc", {"features": FEATURES, "dim": 3, "in_channels": 6}),
    "vqgan_lc, trained features": (
        "vqgan_lc",
        {"features": FEATURES, "frozen": False, "metric": "cosine", "in_channels": None},
    ),
    "vqgan_lc, reselected": (
        "vqgan_lc",
        {"features": FEATURES[:12], "pool": FEATURES, "patience": 0.5, "projector": False}
        | {"in_channels": None},
    ),
    "simvq": ("simvq", {"num_codes": 12, "dim": 4, "commitment": 0.5}),
    "simvq, projected": ("simvq", {"num_codes": 12, "dim": 4, "bias": False, "in_channels": 6}),
    "dual": (
        "dual",
        {"num_codes": (6, 9), "dim": (4, 2), "num_layers": 1, "num_heads": 2, "reduction": "mean"},
    ),
    "dual, linear": (
        "dual",
        {"num_codes": 8, "dim": 4, "refiner": "linear", "local_update": "cvq"},
    ),
}
PLAIN = {
    "vq_vae": ("vq_vae", {"num_codes": 8, "dim": 4}),
    "vit_vqgan": ("vit_vqgan", {"num_codes": 8, "dim": 4, "in_channels": 6}),
    "fsq": ("fsq", {"levels": (3, 3)}),
    "vqgan_lc": ("vqgan_lc", {"features": FEATURES, "projector": False, "in_channels": None}),
    "dual": ("dual", {"num_codes": 8, "dim": 4, "refiner": "none"}),
}
IMAGES = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(2)) * 2 - 1


def made(preset, args):
    """A tokenizer after one training forward and update, so that nothing is as it began."""
    torch.manual_seed(0)
    settings = TokenizerConfig(quantizer=QuantizerConfig(preset=preset, args=args), network=NETWORK)
    tokenizer = ImageTokenizer(settings)
    output = tokenizer(IMAGES)
    (output.quantized.loss + output.images.square().mean()).backward()
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.1)
    tokenizer.quantizer.step()
    return tokenizer.eval()


def stored(tokenizer):
    return sum(tensor.numel() for tensor in tokenizer.state_dict().values())


def assert_same_answers(one, other):
    ids = one.encode(IMAGES)
    assert torch.equal(other.encode(IMAGES), ids)
    assert torch.equal(other.quantizer.lookup(ids), one.quantizer.lookup(ids))
    assert torch.equal(other.reconstruct(IMAGES), one.reconstruct(IMAGES))
    assert other.quantizer.slots == one.quantizer.slots
    assert other.bits_per_image(12, 20) == one.bits_per_image(12, 20)
    output, expected = (t.quantizer(t.encoder(IMAGES)) for t in (other, one))
    assert set(output.terms) == set(expected.terms)
    for name, term in output.terms.items():
        assert torch.equal(term, expected.terms[name])


@pytest.mark.parametrize("name", COMPUTED)
def test_a_compact_tokenizer_answers_the_same_bit_for_bit(name, tmp_path):
    tokenizer = made(*COMPUTED[name])
    compact = compacted(tokenizer)
    assert not compact.training
    assert_same_answers(tokenizer, compact)
    assert stored(compact) < stored(tokenizer) or name == "simvq"  # as wide as its features
    gone = ("codebook", "rules")  # how codes move is of training
    kept = {part for part in compact.state_dict() if not any(word in part for word in gone)}
    assert kept == {p for p in tokenizer.state_dict() if not any(word in p for word in gone)}
    preset, _ = COMPUTED[name]
    assert compact.compacted_from["preset"] == preset
    compact.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["compacted_from"]["preset"] == preset
    assert "compacted_from" not in config["tokenizer"]
    loaded = ImageTokenizer.from_pretrained(tmp_path)
    assert_same_answers(tokenizer, loaded)
    assert loaded.compacted_from == config["compacted_from"]
    assert compacted(loaded) is loaded


@pytest.mark.parametrize("name", PLAIN)
def test_plain_codes_are_left_as_they_are(name):
    tokenizer = made(*PLAIN[name])
    assert compacted(tokenizer) is tokenizer
    assert tokenizer.compacted_from is None


def test_an_own_preset_is_left_as_it_is():
    from vqkit.quantizers import vqgan_lc

    def mine(num_codes):
        return vqgan_lc(FEATURES[:num_codes], 3, in_channels=None)

    settings = TokenizerConfig(quantizer=QuantizerConfig(preset="mine", args={"num_codes": 8}))
    tokenizer = ImageTokenizer(replace(settings, network=NETWORK), presets={"mine": mine})
    assert compacted(tokenizer) is tokenizer


def test_the_tokenizer_itself_stays_as_it_is():
    tokenizer = made(*COMPUTED["dual"]).train()
    before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    drawn = torch.get_rng_state()
    compact = compacted(tokenizer)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(part.training for part in tokenizer.modules())
    with torch.no_grad():
        for parameter in compact.parameters():
            parameter.zero_()
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(tensor, before[name]), "it shares no memory with the compact one"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_precision_and_order_in_memory_stay(dtype):
    tokenizer = made(*COMPUTED["vqgan_lc"]).to(dtype).to(memory_format=torch.channels_last)
    compact = compacted(tokenizer)
    kinds = {t.dtype for t in compact.state_dict().values() if t.is_floating_point()}
    assert kinds == {dtype}
    assert_same_answers_in(dtype, tokenizer, compact)


def assert_same_answers_in(dtype, one, other):
    images = IMAGES.to(dtype)
    assert torch.equal(other.encode(images), one.encode(images))
    assert torch.equal(other.reconstruct(images), one.reconstruct(images))


def test_a_file_of_an_unknown_origin_still_loads(tmp_path):
    made(*PLAIN["vq_vae"]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "compacted_from": 3, "later": True}), encoding="utf-8")
    assert ImageTokenizer.from_pretrained(tmp_path).compacted_from is None


@pytest.mark.parametrize(("options", "names_features"), [({}, False), ({"compact": False}, True)])
def test_the_hub_gets_plain_codes_unless_asked_otherwise(options, names_features, monkeypatch):
    seen = {}

    def upload(folder, repo_id, **rest):
        seen["tensors"] = load_file(folder / "model.safetensors")
        seen["card"] = (folder / "README.md").read_text("utf-8")
        return "there"

    monkeypatch.setattr(hub, "upload", upload)
    tokenizer = made(*COMPUTED["vqgan_lc"])
    assert tokenizer.push_to_hub("me/model", license="mit", **options) == "there"
    shapes = {tuple(tensor.shape) for tensor in seen["tensors"].values()}
    assert ((40, 24) in shapes) == names_features
    assert ((40, 3) in shapes) != names_features
    assert ("whose computed codes are stored here" in seen["card"]) != names_features


# ------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with a codebook from a file."""
    folder = tmp_path_factory.mktemp("export")
    save_file({"codes": FEATURES}, folder / "codes.safetensors")
    args = {"features": {"file": str(folder / "codes.safetensors")}, "dim": 3, "in_channels": None}
    config = run_config(write_images(folder / "images"), optim__num_steps=4, log__keep=1)
    config = replace(config, quantizer=QuantizerConfig(preset="vqgan_lc", args=args))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        train(config, out=folder / "run", progress=False)
    return folder / "run"


def features_in(folder):
    return [t for t in load_file(folder / "model.safetensors").values() if t.shape == (40, 24)]


def test_export_of_a_run(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "small")]) == 0
    line = capsys.readouterr().out
    assert line.startswith("wrote vqgan_lc with 40 codes, ")
    assert line.rstrip().endswith(f"→ {tmp_path / 'small'}")
    assert not features_in(tmp_path / "small")
    whole = ImageTokenizer.from_pretrained(run / "tokenizer")
    assert_same_answers(whole, ImageTokenizer.from_pretrained(tmp_path / "small"))
    assert main(["export", str(run), str(tmp_path / "whole"), "--keep_features"]) == 0
    assert len(features_in(tmp_path / "whole")) == 1
    # A tokenizer in a folder, over what was exported before.
    assert main(["export", str(tmp_path / "whole"), str(tmp_path / "small")]) == 0
    assert not features_in(tmp_path / "small")


def test_a_run_keeps_what_its_codes_are_computed_from(run):
    for folder in (run / "tokenizer", list_checkpoints(run)[-1]):
        assert torch.equal(features_in(folder)[0], FEATURES)


def test_a_run_goes_on_without_its_codebook_file(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    file = tmp_path / "codes.safetensors"
    args = {"features": {"file": str(file)}, "dim": 3, "in_channels": None}
    config = run_config(write_images(tmp_path / "images"), optim__num_steps=6)
    config = replace(config, quantizer=QuantizerConfig(preset="vqgan_lc", args=args))
    save_file({"codes": FEATURES}, file)
    train(config, out=tmp_path / "whole", progress=False)
    shorter = replace(config, optim=replace(config.optim, num_steps=4))
    train(shorter, out=tmp_path / "parts", progress=False)
    described = {"file": str(file), "sha256": sha256_of(file)}
    file.unlink()
    train(config, out=tmp_path / "parts", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 6)
    # Everything that tells the settings still tells which file it was.
    for folder in (tmp_path / "whole", tmp_path / "parts"):
        record = json.loads((list_checkpoints(folder)[-1] / "trainer.json").read_text("utf-8"))
        result = json.loads((folder / "result.json").read_text("utf-8"))
        for settings in (
            run_folder.read_settings(folder),
            record["record"]["config"],
            result["config"],
        ):
            assert settings["quantizer"]["args"]["features"] == described


def test_a_codebook_file_is_hashed_once_for_a_run_that_checkpoints_often(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    hashed = []

    def count(path):
        hashed.append(path)
        return sha256_of(path)

    monkeypatch.setattr(run_folder, "sha256_of", count)
    file = tmp_path / "codes.safetensors"
    save_file({"codes": FEATURES}, file)
    args = {"features": {"file": str(file)}, "dim": 3, "in_channels": None}
    images = write_images(tmp_path / "images")
    for steps in (2, 4):  # begun, and continued after it was checked
        config = run_config(images, optim__num_steps=steps, log__checkpoint_every=1)
        config = replace(config, quantizer=QuantizerConfig(preset="vqgan_lc", args=args))
        train(config, out=tmp_path / "run", progress=False)
    assert hashed == [file]
    save_file({"codes": 2 * FEATURES}, file)
    with pytest.raises(ValueError, match="other settings"):
        train(config, out=tmp_path / "run", progress=False)
    assert hashed == [file, file]


def test_export_refuses_what_it_would_spoil(run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}", encoding="utf-8")
    for names, message in {
        (str(run),): "expected two, a run or tokenizer and the folder to write",
        (str(run), str(run)): "name another folder",
        (str(run), str(run / "tokenizer")): "belongs to what is exported or to a run",
        (str(run), str(tmp_path / "mine")): "has the config.json of something else",
        (str(tmp_path / "nothing"), str(tmp_path / "out")): "no such folder",
    }.items():
        assert main(["export", *names]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert features_in(run / "tokenizer")
