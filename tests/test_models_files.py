"""Saved models: round trips, and every file that must be refused, with its reason."""

import hashlib
import json
import os

import pytest
import safetensors.torch
import torch
from torch import nn

from vqkit.config import NetworkConfig, QuantizerConfig
from vqkit.models import ImageTokenizer, TokenizerConfig, files
from vqkit.quantizers import GridQuantizer, vq_vae

SMALL = NetworkConfig(hidden=8, residual_hidden=4, num_residual_blocks=1, skip="identity")
PRESETS = {
    "vq_vae": {"num_codes": 8, "dim": 4},
    "vq_ema": {"num_codes": 8, "dim": 4, "in_channels": 6},
    "cvq": {"num_codes": 8, "dim": 4},
    "looc": {"num_codes": 4, "dim": 2, "num_segments": 3, "beta": 2},
    "dual": {"num_codes": (4, 6), "dim": 4, "num_layers": 1, "num_heads": 2},
    "fsq": {"levels": (4, 3)},
    "sq_vae": {"num_codes": 8, "dim": 4},
    "vqgan_lc": {"features": torch.arange(20.0).reshape(5, 4).sin(), "dim": 3, "in_channels": 6},
}


def tokenizer_of(preset="vq_vae", args=None, *, presets=None, seed=0):
    torch.manual_seed(seed)
    args = PRESETS[preset] if args is None else args
    config = TokenizerConfig(quantizer=QuantizerConfig(preset=preset, args=args), network=SMALL)
    return ImageTokenizer(config, presets=presets)


def floats(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def edit_config(folder, change):
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


def edit_weights(folder, change):
    """Write other tensors, with the size and hash that belong to them: a well-made foreign file."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    content = safetensors.torch.save(tensors)
    (folder / "model.safetensors").write_bytes(content)
    stated = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_config(folder, lambda values: values["weights"].update(stated))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def saved(tmp_path):
    tokenizer_of().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, preset):
    tokenizer = tokenizer_of(preset).train()
    tokenizer(floats(2, 3, 8, 8))  # state that a training step leaves behind is saved too
    tokenizer.save_pretrained(tmp_path / "new" / "folder")
    loaded = ImageTokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert loaded.config == tokenizer.config
    assert not loaded.training
    expected = tokenizer.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name
        assert value.dtype == expected[name].dtype
    images = floats(2, 3, 7, 9)
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    assert torch.equal(loaded.reconstruct(images), tokenizer.reconstruct(images))
    assert sorted(contents(tmp_path / "new" / "folder")) == ["config.json", "model.safetensors"]


def test_folders_are_named_by_text_too(saved):
    loaded = ImageTokenizer.from_pretrained(str(saved))
    assert torch.equal(loaded.encoder.pre_vq.weight, tokenizer_of().encoder.pre_vq.weight)


def test_loading_leaves_the_random_generator_alone(saved):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ImageTokenizer.from_pretrained(saved)
    assert torch.equal(torch.rand(3), expected)


def test_channels_last_and_views_are_saved(tmp_path):
    """Safetensors takes neither other memory orders nor tensors that share memory."""
    tokenizer = tokenizer_of().to(memory_format=torch.channels_last)
    tokenizer.encoder.residuals[0].mix.bias = tokenizer.decoder.residuals[0].mix.bias
    wide = torch.randn(8, 8)
    tokenizer.decoder.residuals[0].mix.weight = nn.Parameter(wide.t()[:, :4, None, None])
    tokenizer.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path).state_dict()
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, loaded[name]), name


def test_a_bfloat16_model_returns_in_float32(tmp_path):
    tokenizer = tokenizer_of().to(torch.bfloat16)
    tokenizer.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path)
    assert loaded.encoder.pre_vq.weight.dtype == torch.float32
    assert torch.equal(loaded.encoder.pre_vq.weight, tokenizer.encoder.pre_vq.weight.float())


def test_config_is_plain_and_holds_the_settings(saved):
    values = json.loads((saved / "config.json").read_text())
    assert values["format"] == files.FORMAT
    assert values["tokenizer"]["quantizer"] == {"preset": "vq_vae", "args": PRESETS["vq_vae"]}
    assert values["tokenizer"]["network"]["skip"] == "identity"
    content = (saved / "model.safetensors").read_bytes()
    assert values["weights"] == {
        "file": "model.safetensors",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


# Refusals


@pytest.mark.parametrize(("change", "reason"), [
    (lambda v: v.update(format=2), "format=2: this is vqkit .* reads format 1"),
    (lambda v: v.update(format="1"), "format='1'"),
    (lambda v: v.pop("format"), "not written by vqkit"),
    (lambda v: v.update(library="diffusers"), "not written by vqkit"),
    (lambda v: v.pop("weights"), "weights=None"),
    (lambda v: v.update(weights=3), "weights=3"),
    (lambda v: v["weights"].update(bytes="9"), "weights="),
    (lambda v: v.pop("tokenizer"), "tokenizer=None"),
    (lambda v: v["tokenizer"].update(colour=1), r"tokenizer\.colour: unknown key"),
    (lambda v: v["tokenizer"].pop("quantizer"), "quantizer"),
    (lambda v: v["tokenizer"]["network"].update(skip="none"), "network.skip='none'"),
    (lambda v: v["tokenizer"]["network"].update(hidden="8"), "network"),
    (lambda v: v["tokenizer"]["quantizer"].update(args=[1]), "args"),
    (lambda v: v["tokenizer"]["quantizer"].update(preset="vq_vea"), "vq_vea"),
    (lambda v: v["tokenizer"]["quantizer"].update(preset={}), "preset="),
    (lambda v: v["tokenizer"]["quantizer"]["args"].update(codes=8), "codes"),
    (lambda v: v["tokenizer"]["quantizer"]["args"].update(num_codes="8"), "num_codes"),
    (lambda v: v["tokenizer"]["quantizer"]["args"].update(num_codes=9), "has shape"),
    (lambda v: v["tokenizer"]["network"].update(hidden=10), "has shape"),
    (lambda v: v["tokenizer"]["network"].update(num_residual_blocks=2), "tensors are missing"),
    (lambda v: v["tokenizer"]["network"].update(num_residual_blocks=0), "does not have"),
])  # fmt: skip
def test_other_settings_are_refused(saved, change, reason):
    edit_config(saved, change)
    with pytest.raises(ValueError, match=reason):
        ImageTokenizer.from_pretrained(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\x01", '{"a": 1}'])
def test_unreadable_settings_are_refused(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        ImageTokenizer.from_pretrained(saved)


def test_settings_that_are_no_text_are_refused(saved):
    (saved / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="cannot be read"):
        ImageTokenizer.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_refused(saved, name):
    (saved / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: is missing"):
        ImageTokenizer.from_pretrained(saved)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_weights_are_refused(saved, keep):
    content = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(content[:keep])
    with pytest.raises(ValueError, match="is truncated"):
        ImageTokenizer.from_pretrained(saved)


def test_altered_weights_are_refused(saved):
    content = bytearray((saved / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"does not belong to the config\.json"):
        ImageTokenizer.from_pretrained(saved)


def test_weights_of_another_model_are_refused(saved, tmp_path):
    tokenizer_of(seed=1).save_pretrained(tmp_path / "other")
    os.replace(tmp_path / "other" / "model.safetensors", saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not belong to the config\.json"):
        ImageTokenizer.from_pretrained(saved)


@pytest.mark.parametrize(("change", "reason"), [
    (lambda t: t.pop("encoder.pre_vq.bias"), "tensors are missing: encoder.pre_vq.bias"),
    (lambda t: t.update(more=torch.zeros(1)), "does not have: more"),
    (lambda t: t.update({"encoder.pre_vq.bias": torch.zeros(5)}),
     r"pre_vq.bias: has shape \(5,\), the settings say \(4,\)"),
    (lambda t: t.update({"encoder.pre_vq.bias": torch.zeros(4, dtype=torch.int64)}),
     "pre_vq.bias: has type torch.int64"),
])  # fmt: skip
def test_other_tensors_are_refused(saved, change, reason):
    edit_weights(saved, change)
    with pytest.raises(ValueError, match=reason):
        ImageTokenizer.from_pretrained(saved)


def test_weights_that_are_no_safetensors_are_refused(saved):
    content = b"\x80\x04pickle" * 10
    (saved / "model.safetensors").write_bytes(content)
    stated = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_config(saved, lambda values: values["weights"].update(stated))
    with pytest.raises(ValueError, match="is no safetensors file"):
        ImageTokenizer.from_pretrained(saved)


def test_names_that_are_neither_folder_nor_hub_id_are_refused(tmp_path):
    for name in (tmp_path / "none", str(tmp_path / "none"), "./none", "none", "a/b/c"):
        with pytest.raises(ValueError, match="no such folder"):
            ImageTokenizer.from_pretrained(name)


def test_a_folder_has_no_revision(saved):
    with pytest.raises(ValueError, match="revision='main'"):
        ImageTokenizer.from_pretrained(saved, revision="main")


# Saving


def test_saving_replaces_an_older_model(saved):
    other = tokenizer_of(seed=1)
    other.save_pretrained(saved)
    loaded = ImageTokenizer.from_pretrained(saved)
    assert torch.equal(loaded.encoder.pre_vq.weight, other.encoder.pre_vq.weight)
    assert sorted(contents(saved)) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_full_disk_leaves_the_older_model(saved, monkeypatch, failing):
    before = contents(saved)
    calls = []
    write_whole = files.write_whole

    def full(path, content):
        calls.append(path)
        if len(calls) > failing:
            path.write_bytes(content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        write_whole(path, content)

    monkeypatch.setattr(files, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        tokenizer_of(seed=1).save_pretrained(saved)
    assert contents(saved) == before
    ImageTokenizer.from_pretrained(saved)


def test_a_crash_between_the_renames_is_noticed(saved, monkeypatch):
    replace = os.replace
    done = []

    def once(source, target):
        if done:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        tokenizer_of(seed=1).save_pretrained(saved)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        ImageTokenizer.from_pretrained(saved)


def test_saving_onto_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        tokenizer_of().save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# Quantizers of the user, and tensors among the arguments


class Frozen(GridQuantizer):
    """Keeps a given table beside its codes, as a preset with features does."""

    def __init__(self, features):
        super().__init__(vq_vae(*features.shape).quantizer)
        self.register_buffer("features", features)


def frozen(*, features, levels=(1, 2), note=None):
    assert isinstance(levels, tuple)
    return Frozen(features["table"])


def test_a_preset_of_the_user_is_given_by_name(tmp_path):
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    args = {"features": {"table": features}, "levels": (3, 4), "note": None}
    tokenizer = tokenizer_of("frozen", args, presets={"frozen": frozen})
    tokenizer.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["tokenizer"]["quantizer"]["args"]
    assert stored == {
        "features": {"table": {"tensor": {"shape": [6, 4], "dtype": "float32"}}},
        "levels": [3, 4],
        "note": None,
    }
    with pytest.raises(ValueError, match="frozen"):
        ImageTokenizer.from_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path, presets={"frozen": frozen})
    assert torch.equal(loaded.quantizer.features, features)
    images = floats(1, 3, 8, 8)
    assert torch.equal(loaded.reconstruct(images), tokenizer.reconstruct(images))
    loaded.save_pretrained(tmp_path / "again")
    again = ImageTokenizer.from_pretrained(tmp_path / "again", presets={"frozen": frozen})
    assert torch.equal(again.quantizer.features, features)


def test_a_tensor_is_not_replaced_by_silent_zeros():
    args = {"features": {"table": torch.ones(6, 4)}}
    tokenizer = tokenizer_of("frozen", args, presets={"frozen": frozen})
    with pytest.raises(ValueError, match=r"args.features: only the shape of a tensor is known"):
        ImageTokenizer(tokenizer.config, presets={"frozen": frozen})


@pytest.mark.parametrize("tensor", [
    {"shape": [6, 4]},
    {"shape": [6, 4], "dtype": "Tensor"},
    {"shape": [6, -4], "dtype": "float32"},
    {"shape": "6", "dtype": "float32"},
])  # fmt: skip
def test_shapes_that_make_no_sense_are_refused(tmp_path, tensor):
    args = {"features": {"table": torch.ones(6, 4)}}
    tokenizer_of("frozen", args, presets={"frozen": frozen}).save_pretrained(tmp_path)

    def change(values):
        values["tokenizer"]["quantizer"]["args"]["features"]["table"] = {"tensor": tensor}

    edit_config(tmp_path, change)
    with pytest.raises(ValueError, match="expected a shape and a dtype"):
        ImageTokenizer.from_pretrained(tmp_path, presets={"frozen": frozen})


def test_names_of_vqkit_are_taken():
    with pytest.raises(ValueError, match=r"presets=\['vq_vae'\]"):
        tokenizer_of("frozen", {}, presets={"vq_vae": frozen})


def test_arguments_that_the_users_preset_does_not_know_are_refused():
    with pytest.raises(ValueError, match=r"args\.colour: unknown"):
        tokenizer_of("frozen", {"colour": 1}, presets={"frozen": frozen})


@pytest.mark.parametrize("note", [object(), {1, 2}, float("nan"), frozen])
def test_arguments_that_no_file_can_hold_are_refused(tmp_path, note):
    args = {"features": {"table": torch.ones(6, 4)}, "note": note}
    tokenizer = tokenizer_of("frozen", args, presets={"frozen": frozen})
    with pytest.raises(ValueError):
        tokenizer.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
