"""`ImageTokenizer` around the deep networks: any size, any preset, files."""

import pytest
import torch

from vqkit.config import QuantizerConfig, ViTNetwork, VQGANNetwork, from_dict
from vqkit.models import ImageTokenizer, TokenizerConfig, config_from_values, config_values
from vqkit.quantizers import PRESETS

pytestmark = pytest.mark.slow

VQGAN = VQGANNetwork(
    width=8, multipliers=(1, 1, 2), num_res_blocks=1, attention_strides=(4,), z_channels=6,
    norm_groups=4,
)  # fmt: skip
NETWORKS = {
    "vqgan": VQGAN,
    "f16": VQGANNetwork(
        width=4, multipliers=(1, 1, 1, 2, 2), num_res_blocks=1, z_channels=6, norm_groups=2
    ),
    "movq": VQGANNetwork(
        width=8, multipliers=(1, 2), num_res_blocks=1, attention_strides=(), z_channels=6,
        norm_groups=4, modulation="codes", dropout=0.5, checkpointing=True,
    ),
    "vit": ViTNetwork(patch=8, width=16, depth=2, heads=2, mlp=24, dropout=0.5),
}  # fmt: skip
SIZES = [(1, 1), (7, 5), (16, 32), (30, 41)]
ARGS = {
    "vqgan_fc": {"num_codes": 8, "dim": 4, "in_channels": 6},
    "vit_vqgan": {"num_codes": 8, "dim": 4, "in_channels": 6},
    "pq": {"num_codes": 8, "dim": 4, "num_segments": 2},
    "rq": {"num_codes": 8, "dim": 4, "num_levels": 2},
    "vqgan_lc": {"features": torch.arange(60.0).reshape(12, 5), "dim": 4, "in_channels": 6},
    "dual": {"num_codes": 4, "dim": 4, "num_layers": 1, "num_heads": 2},
    "looc": {"num_codes": 4, "dim": 2, "num_segments": 3, "beta": 2},
    "fsq": {"levels": (4, 3)},
    "lfq": {"dim": 4},
}


def tokenizer_of(network, preset="vq_vae", seed=0):
    torch.manual_seed(seed)
    args = ARGS.get(preset, {"num_codes": 8, "dim": 4})
    quantizer = QuantizerConfig(preset=preset, args=args)
    return ImageTokenizer(TokenizerConfig(quantizer=quantizer, network=network))


def pictures(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_any_size_goes_to_tokens_and_back(name, height, width):
    network = NETWORKS[name]
    tokenizer = tokenizer_of(network).train()  # encode and decode are as in evaluation anyhow
    images = pictures(2, 3, height, width)
    ids = tokenizer.encode(images)
    h, w = -(-height // network.stride), -(-width // network.stride)
    assert tokenizer.stride == network.stride
    assert ids.shape == (2, h, w, 1)
    assert tokenizer.decode(ids).shape == (2, 3, network.stride * h, network.stride * w)
    restored = tokenizer.reconstruct(images)
    assert restored.shape == images.shape
    assert torch.equal(restored, tokenizer.decode(ids, size=(height, width)))
    assert restored.abs().max() <= 1


@pytest.mark.parametrize("name", NETWORKS)
def test_reconstruct_is_the_forward_of_evaluation(name):
    tokenizer = tokenizer_of(NETWORKS[name]).eval()
    images = pictures(2, 3, 32, 16).float() / 127.5 - 1
    with torch.no_grad():
        out = tokenizer(images)
    assert torch.equal(tokenizer.encode(images), out.quantized.ids)
    torch.testing.assert_close(tokenizer.reconstruct(images), out.images.clamp(-1, 1))


@pytest.mark.parametrize("name", NETWORKS)
def test_saved_and_loaded_it_is_the_same(name, tmp_path):
    network = NETWORKS[name]
    tokenizer = tokenizer_of(network)
    tokenizer.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path)
    assert loaded.config == tokenizer.config
    assert type(loaded.encoder) is type(tokenizer.encoder)
    images = pictures(1, 3, 20, 17)
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    assert torch.equal(loaded.reconstruct(images), tokenizer.reconstruct(images))


def test_models_saved_before_there_were_kinds_are_the_small_vq_vae():
    values = {"network": {"hidden": 8}, "quantizer": {"preset": "vq_vae", "args": {}}}
    assert config_from_values(values).network.kind == "vqvae"


@pytest.mark.parametrize("name", NETWORKS)
def test_configurations_survive_json(name):
    config = tokenizer_of(NETWORKS[name]).config
    assert from_dict(TokenizerConfig, config_values(config)) == config


def test_a_network_of_another_kind_is_refused_by_its_keys(tmp_path):
    with pytest.raises(ValueError, match="patch: unknown key"):
        config_from_values({
            "network": {"kind": "vqgan", "patch": 8},
            "quantizer": {"preset": "vq_vae", "args": {}},
        })  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_within_a_vqgan(preset):
    tokenizer = tokenizer_of(VQGAN, preset).train()
    images = pictures(2, 3, 16, 16).float() / 127.5 - 1
    out = tokenizer(images)
    (out.quantized.loss + out.images.square().mean()).backward()
    for part in (tokenizer.encoder, tokenizer.decoder):
        assert all(p.grad.isfinite().all() for p in part.parameters())
    assert tokenizer.encoder.conv_in.weight.grad.abs().max() > 0
    assert tokenizer.decoder.last_weight.grad.abs().max() > 0
    ids = tokenizer.encode(images)
    assert ids.shape == (2, 4, 4, len(tokenizer.quantizer.slots))
    assert torch.equal(tokenizer.reconstruct(images), tokenizer.decode(ids))


def test_a_preset_with_projections_needs_no_quant_conv():
    network = VQGANNetwork(
        width=8, multipliers=(1, 2), num_res_blocks=1, attention_strides=(), z_channels=6,
        norm_groups=4, quant_conv=False,
    )  # fmt: skip
    tokenizer = tokenizer_of(network, "vqgan_fc")
    assert tokenizer.quantizer.channels == 6
    assert tokenizer.reconstruct(pictures(1, 3, 5, 6)).shape == (1, 3, 5, 6)
    with pytest.raises(ValueError, match=r"network\.quant_conv=False"):
        tokenizer_of(network, "vq_vae")


def test_f16_costs_what_its_grid_says():
    costs = tokenizer_of(NETWORKS["f16"]).describe((256, 256))
    assert (costs.quantizer.height, costs.quantizer.width) == (16, 16)
    assert costs.bits_per_image == 256 * 3
    assert costs.padded == (256, 256)
    encoder = tokenizer_of(NETWORKS["f16"]).encoder
    assert costs.encoder_parameters == sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_precision_of_the_weights_is_that_of_the_images(name):
    tokenizer = tokenizer_of(NETWORKS[name]).to(torch.bfloat16)
    images = pictures(1, 3, 16, 16)
    assert tokenizer.encode(images).dtype == torch.int64
    assert tokenizer.reconstruct(images).dtype == torch.bfloat16


@pytest.mark.parametrize("name", NETWORKS)
def test_other_devices_are_named(name):
    tokenizer = tokenizer_of(NETWORKS[name])
    with pytest.raises(ValueError, match="the model is on cpu"):
        tokenizer.encode(torch.zeros(1, 3, 8, 8, device="meta"))
