"""Published layouts become tokenizers with the same tokens and the same images.

No published weights are at hand: the files here have the names and shapes of the real ones, with
tiny sizes and random values.
"""

import json

import pytest
import torch
from foreign_models import MULTIPLIERS, WIDTH, Z_CHANNELS, LlamaGen, Taming, TamingGumbel, VqganLC
from safetensors.torch import save_file

from vqkit.cli import BAD_INPUT, OK, main
from vqkit.config import QuantizerConfig, VQGANNetwork
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.models.importers import ImportConfig, import_checkpoint, import_tokenizer
from vqkit.models.importers.assemble import network_of

pytestmark = pytest.mark.slow

MODELS = {
    "taming": Taming,
    "taming, Gumbel": TamingGumbel,
    "llamagen": LlamaGen,
    "vqgan_lc": VqganLC,
    "vqgan_lc, fc": lambda: VqganLC(quantizer="fc"),
    "vqgan_lc, ema": lambda: VqganLC(quantizer="ema"),
}


def pictures(count=3, side=24):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def save(model, path, entry="state_dict", **more):
    torch.save({entry: model.state_dict(), "epoch": 3, **more}, path)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_tokens_and_images_are_those_of_the_original(name, tmp_path):
    model, images = MODELS[name]().eval(), pictures()
    path = save(model, tmp_path / "last.ckpt", optimizer_states=[{"state": {0: torch.zeros(3)}}])
    tokenizer = import_tokenizer(path)
    assert not tokenizer.training
    ids = model.ids(images)
    assert len(ids.unique()) > 3, "the test would not notice wrong codes"
    assert torch.equal(tokenizer.encode(images)[..., 0], ids)
    decoded = tokenizer.decoder(tokenizer.quantizer.lookup(ids[..., None]))
    assert (decoded - model.images(ids)).abs().max() < 1e-4  # float32 sums in other orders

    tokenizer.save_pretrained(tmp_path / "saved")
    again = ImageTokenizer.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.decode(ids[..., None]), tokenizer.decode(ids[..., None]))
    assert torch.equal(again.encode(images), tokenizer.encode(images))


@pytest.mark.parametrize("name", MODELS)
def test_every_setting_is_read_off_the_file(name, tmp_path):
    imported = import_checkpoint(save(MODELS[name](), tmp_path / "last.ckpt"))
    assert imported.kind == name.partition(",")[0]
    assert imported.entry == "state_dict"
    assert imported.tokenizer.config.network == VQGANNetwork(
        width=WIDTH, multipliers=MULTIPLIERS, attention_strides=(4,), z_channels=Z_CHANNELS
    )
    assert imported.tokenizer.quantizer.slots[0].num_codes == 24
    expected = {"taming": "loss.", "llamagen": "quantize.codebook_used"}
    starts = expected.get(imported.kind, ("discriminator.", "perceptual_loss."))
    assert imported.ignored
    assert all(ignored.startswith(starts) for ignored in imported.ignored)


PUBLISHED = [
    pytest.param(VQGANNetwork(), id="f16"),  # taming, LlamaGen VQ-16, VQGAN-LC
    pytest.param(VQGANNetwork(multipliers=(1, 2, 2, 4), attention_strides=(8,)), id="f8"),
    pytest.param(VQGANNetwork(multipliers=(1, 2, 2, 4), attention_strides=()), id="LC f8"),
    pytest.param(VQGANNetwork(multipliers=(1, 1, 2, 2, 4, 4), attention_strides=(32,)), id="f32"),
    pytest.param(
        VQGANNetwork(
            multipliers=(1, 2, 2, 4), attention_strides=(8,), z_channels=4, modulation="codes"
        ),
        id="MoVQ",
    ),
    pytest.param(VQGANNetwork(num_res_blocks=3, quant_conv=False, image_channels=1), id="grey"),
]


@pytest.mark.parametrize("network", PUBLISHED)
def test_networks_of_published_sizes(network):
    quantizer = QuantizerConfig(preset="vq_vae", args={"num_codes": 4, "dim": network.z_channels})
    with torch.device("meta"):
        tokenizer = ImageTokenizer(TokenizerConfig(network=network, quantizer=quantizer))
    shapes = {name: tuple(tensor.shape) for name, tensor in tokenizer.state_dict().items()}
    assert network_of(shapes, 32) == network


def vq_model(**settings):
    """A VQModel of diffusers with weights drawn anew, so that no two tensors are alike."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(3)
    defaults = {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        "layers_per_block": 2,
        "latent_channels": 4,
        "num_vq_embeddings": 16,
        "vq_embed_dim": 3,
    }
    model = diffusers.VQModel(**{**defaults, **settings}).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            scale = 1.0 if "embedding" in name else 0.3 if tensor.ndim == 1 else 0.1
            tensor.add_(scale * torch.randn_like(tensor))
    return model


@torch.no_grad()
def assert_same_as_diffusers(model, tokenizer):
    images = pictures()
    z = model.encode(images).latents
    _, _, (_, _, ids) = model.quantize(z)
    assert len(ids.unique()) > 3, "the test would not notice wrong codes"
    assert (tokenizer.encoder(images) - z).abs().max() < 1e-4
    found = tokenizer.encode(images)
    assert torch.equal(found.flatten(), ids.flatten())
    assert (
        tokenizer.decoder(tokenizer.quantizer.lookup(found)) - model.decode(z).sample
    ).abs().max() < 1e-4
    assert (tokenizer.reconstruct(images) - model(images).sample.clamp(-1, 1)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="f4"),
        pytest.param({"norm_num_groups": 8}, id="8 groups"),
        pytest.param({"norm_type": "spatial", "vq_embed_dim": 4}, id="MoVQ"),
        pytest.param({"mid_block_add_attention": False}, id="no attention in the middle"),
    ],
)
@pytest.mark.parametrize("safe", [True, False])
def test_folders_of_diffusers(settings, safe, tmp_path):
    model = vq_model(**settings)
    model.save_pretrained(tmp_path, safe_serialization=safe)
    tokenizer = import_tokenizer(tmp_path)
    assert_same_as_diffusers(model, tokenizer)
    assert tokenizer.config.network.attention_strides == (4,)
    assert tokenizer.config.network.norm_groups == settings.get("norm_num_groups", 32)


def test_files_of_diffusers_and_their_former_names(tmp_path):
    model = vq_model()
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in model.state_dict().items():
        for now, then in former.items():
            name = name.replace(f".{now}.", f".{then}.")
        state[name] = tensor.contiguous()
    save_file(state, tmp_path / "weights.safetensors")
    assert_same_as_diffusers(model, import_tokenizer(tmp_path / "weights.safetensors"))


def test_networks_without_attention_in_the_middle(tmp_path):
    model = Taming()
    for part in (model.encoder, model.decoder):
        part.mid.attn_1 = part.middle[1] = torch.nn.Identity()
    tokenizer = import_tokenizer(save(model, tmp_path / "noattn.ckpt"))
    ids = model.ids(pictures())
    assert torch.equal(tokenizer.encode(pictures())[..., 0], ids)
    decoded = tokenizer.decoder(tokenizer.quantizer.lookup(ids[..., None]))
    assert (decoded - model.images(ids)).abs().max() < 1e-4


def test_half_precision_weights_are_widened(tmp_path):
    save(Taming().half(), tmp_path / "half.pt")
    tokenizer = import_tokenizer(tmp_path / "half.pt")
    assert {p.dtype for p in tokenizer.parameters()} == {torch.float32}
    expected = Taming().half().decoder.conv_out.weight.float()
    assert torch.equal(tokenizer.decoder.conv_out.weight, expected)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "first_stage_model.", "mine."])
def test_tokenizers_inside_of_other_models(prefix, tmp_path):
    model = Taming()
    state = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": {**state, "transformer.tok_emb": torch.ones(2)}}, tmp_path / "a.ckpt")
    config = ImportConfig(prefix=prefix) if prefix == "mine." else None
    imported = import_checkpoint(tmp_path / "a.ckpt", config=config)
    assert torch.equal(imported.tokenizer.encode(pictures())[..., 0], model.ids(pictures()))
    assert "transformer.tok_emb" in imported.ignored


def test_the_moving_average_is_taken_unless_another_entry_is_named(tmp_path):
    model, average = LlamaGen(), LlamaGen()
    with torch.no_grad():
        average.encoder.conv_in.bias += 1
    path = save(model, tmp_path / "vq.pt", "model", ema=average.state_dict())
    found = {
        weights: import_tokenizer(path, config=ImportConfig(weights=weights)).encoder.conv_in.bias
        for weights in (None, "ema", "model")
    }
    assert torch.equal(found[None], average.encoder.conv_in.bias)
    assert torch.equal(found["ema"], average.encoder.conv_in.bias)
    assert torch.equal(found["model"], model.encoder.conv_in.bias)
    with pytest.raises(ValueError, match=r"weights='state_dict'.*tensors in model, ema"):
        import_tokenizer(path, config=ImportConfig(weights="state_dict"))


def test_folders_of_the_hub(tmp_path):
    model = LlamaGen()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"config": {"codebook_size": 24}}')
    tokenizer = import_tokenizer(tmp_path)
    assert torch.equal(tokenizer.encode(pictures())[..., 0], model.ids(pictures()))


def test_codes_of_llamagen_may_be_left_as_they_are(tmp_path):
    model = LlamaGen()
    model.unit_codes = False
    path = save(model, tmp_path / "vq.pt", "model")
    tokenizer = import_tokenizer(path, config=ImportConfig(unit_codes=False))
    assert torch.equal(tokenizer.encode(pictures())[..., 0], model.ids(pictures()))
    assert not torch.equal(import_tokenizer(path).encode(pictures())[..., 0], model.ids(pictures()))


@pytest.mark.parametrize(("legacy", "weights"), [(None, (1.0, 0.25)), (False, (0.25, 1.0))])
def test_training_goes_on_with_the_loss_of_the_file(legacy, weights, tmp_path):
    path = save(Taming(), tmp_path / "last.ckpt")
    tokenizer = import_tokenizer(path, config=ImportConfig(legacy_beta=legacy)).train()
    terms = tokenizer(pictures()).quantized.terms
    sum(terms.values()).backward()
    # Both terms are the mean squared distance, each with its weight.
    commitment, codebook = (terms[name].item() for name in ("commitment", "codebook"))
    assert commitment / weights[0] == pytest.approx(codebook / weights[1])
    assert tokenizer.encoder.conv_in.weight.grad.abs().sum() > 0


def test_statistics_of_moving_averages_are_imported(tmp_path):
    model = VqganLC(quantizer="ema")
    rule = import_tokenizer(save(model, tmp_path / "a.pth")).quantizer.quantizer.rules[0]
    assert torch.equal(rule.counts[0], model.cluster_size)
    assert torch.equal(rule.sums[0], model.embed_avg)


def changed(model, drop=(), add=(), values=()):
    state = {n: t for n, t in model.state_dict().items() if not n.startswith(tuple(drop) or "\0")}
    return {**state, **dict(add), **dict(values)}


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        pytest.param(
            lambda: changed(Taming(), drop=["decoder.mid.block_2.norm1"]),
            r"missing.*: decoder.middle.second.norm1.weight, decoder.middle.second.norm1.bias",
            id="a tensor is missing",
        ),
        pytest.param(
            lambda: changed(LlamaGen(), add={"encoder.conv_blocks.0.res.2.gain": torch.ones(3)}),
            "no place in a tokenizer: encoder.conv_blocks.0.res.2.gain",
            id="a tensor is left over",
        ),
        pytest.param(
            lambda: changed(Taming(), values={"decoder.conv_out.bias": torch.ones(4)}),
            r"decoder.conv_out.bias: has the shape \(4,\); the other tensors ask for \(3,\)",
            id="shape",
        ),
        pytest.param(
            lambda: changed(
                Taming(), values={"quant_conv.bias": torch.tensor([1.0, float("nan"), 0, 0])}
            ),
            "quant_conv.bias: has values that are not finite",
            id="nan",
        ),
        pytest.param(
            lambda: changed(Taming(), values={"quant_conv.bias": torch.ones(4, dtype=torch.int64)}),
            "quant_conv.bias: has the type torch.int64",
            id="integers",
        ),
        pytest.param(
            lambda: changed(Taming(), drop=["quantize"]), "without a codebook", id="no codebook"
        ),
        pytest.param(
            lambda: changed(Taming(), drop=["encoder.conv_in"]), "names begin with", id="prefix"
        ),
        pytest.param(
            lambda: changed(Taming(), add={"encoder.conv_in.weight": torch.ones(33, 3, 3, 3)}),
            "must be multiples of those of the first convolution, 33",
            id="widths",
        ),
        pytest.param(
            lambda: changed(
                VqganLC(), values={"quant_conv.weight": torch.ones(768, Z_CHANNELS, 1, 1)}
            ),
            "codes of 768 numbers",
            id="features of unit length",
        ),
        pytest.param(
            lambda: changed(VqganLC(), add={"codebook_projection.2.weight": torch.ones(2, 2)}),
            "only the linear projector",
            id="projector of two layers",
        ),
        pytest.param(dict, "holds no tensors", id="nothing"),
        pytest.param(lambda: {"a": torch.ones(2)}, "names begin with a", id="another model"),
    ],
)
def test_files_that_hold_more_or_less_than_a_tokenizer(state, reason, tmp_path):
    torch.save({"state_dict": state()}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=reason) as error:
        import_tokenizer(tmp_path / "a.ckpt")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "a.ckpt") in str(error.value)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("llamagen", "looks like taming"), ("tamming", "did you mean 'taming'"), ("x", "known are")],
)
def test_wrong_kinds(kind, reason, tmp_path):
    with pytest.raises(ValueError, match=rf"kind='{kind}': .*{reason}"):
        import_tokenizer(save(Taming(), tmp_path / "a.ckpt"), kind)


@pytest.mark.parametrize("setting", [{"unit_codes": True}, {"legacy_beta": True}])
def test_settings_without_an_effect_are_refused(setting, tmp_path):
    model = {"unit_codes": Taming, "legacy_beta": LlamaGen}[next(iter(setting))]()
    with pytest.raises(ValueError, match=f"{next(iter(setting))}=True: means nothing"):
        import_tokenizer(save(model, tmp_path / "a.ckpt"), config=ImportConfig(**setting))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"_class_name": "AutoencoderKL"}, "_class_name='AutoencoderKL'"),
        ({"act_fn": "relu"}, "act_fn='relu'"),
        ({"norm_num_groups": "32"}, "norm_num_groups='32'"),
        ({"norm_type": "spatial", "norm_num_groups": 8}, "norm_num_groups=8"),
    ],
)
def test_settings_of_diffusers_that_change_the_networks(settings, reason, tmp_path):
    vq_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(ValueError, match=reason):
        import_tokenizer(tmp_path)


def test_folders_without_weights_name_what_is_there(tmp_path):
    (tmp_path / "movq").mkdir()
    (tmp_path / "movq" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has folders of models: movq; name one"):
        import_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        import_tokenizer(tmp_path / "nothing")


def test_the_command(tmp_path, capsys):
    model = Taming()
    path, out = save(model, tmp_path / "last.ckpt"), tmp_path / "out"
    assert main(["import", str(path), "--out", str(out)]) == OK
    said = capsys.readouterr()
    assert "wrote taming with 24 codes, stride 4" in said.out
    assert "left out: loss.* (7)" in said.err
    with pytest.raises(ValueError, match="a tokenizer of vqkit already"):
        import_tokenizer(out)
    tokenizer = ImageTokenizer.from_pretrained(out)
    assert torch.equal(tokenizer.encode(pictures())[..., 0], model.ids(pictures()))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--out", "x"], "file: none is named"),
        (["last.ckpt"], "give --out FOLDER"),
        (["last.ckpt", "--out", "taken"], "config.json of something else"),
        (["last.ckpt", "--out", "x", "--kind", "llamagen"], "looks like taming"),
        (["last.ckpt", "--out", "x", "--norm_groups", "5"], "must divide"),
        (["nothing", "--out", "x"], "no such file"),
    ],
)
def test_the_command_refuses(words, reason, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Taming(), tmp_path / "last.ckpt")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text("{}")
    assert main(["import", *words]) == BAD_INPUT
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
