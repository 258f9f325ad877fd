"""Parameters and shapes of VQGAN's networks against published ones; each says where it is from."""

import pytest
import torch

from vqkit.config import VQGANNetwork
from vqkit.models import build_networks

F8 = {"multipliers": (1, 2, 2, 4), "attention_strides": (8,)}
F32 = {"multipliers": (1, 1, 2, 2, 4, 4), "attention_strides": (32,)}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def networks(channels, **settings):
    """Build without memory: only shapes are looked at."""
    with torch.device("meta"):
        return build_networks(VQGANNetwork(**settings), channels)


@pytest.mark.parametrize(("settings", "channels", "num_codes", "millions"), [
    ({}, 8, 16384, 72),
    (F8, 8, 16384, 70),
])  # fmt: skip
def test_parameters_of_llamagen(settings, channels, num_codes, millions):
    """README of LlamaGen: `vq_ds16_c2i` has 72M parameters, `vq_ds8_c2i` 70M (with the codes)."""
    encoder, decoder = networks(channels, **settings)
    total = parameters(encoder) + parameters(decoder) + num_codes * channels
    assert round(total / 1e6) == millions


@pytest.mark.parametrize(("settings", "channels", "num_codes", "megabytes"), [
    # flax_model.msgpack of valhalla/vqgan-imagenet-f16-1024, taming's f16 with 1,024 codes
    ({}, 256, 1024, 289),
    # flax_model.msgpack of dalle-mini/vqgan_imagenet_f16_16384, taming's f16 with 16,384 codes
    ({}, 256, 16384, 304),
    # model.safetensors of ktrk115/ldm-vq-f16, latent-diffusion's f16 with 8 channels
    ({"z_channels": 8}, 8, 16384, 278),
    # movq_final.safetensors of dreamlike-art/kandinsky-2.1, Sber's MoVQ: f8, 4 channels, modulated
    ({**F8, "z_channels": 4, "modulation": "codes"}, 4, 16384, 271),
])  # fmt: skip
def test_parameters_of_published_files(settings, channels, num_codes, megabytes):
    """Files on the Hugging Face hub, as listed there in megabytes of 4-byte numbers."""
    encoder, decoder = networks(channels, **settings)
    total = parameters(encoder) + parameters(decoder) + num_codes * channels
    assert round(4 * total / 1e6) == megabytes


def test_parameters_of_latent_diffusion_f4():
    """Lightning's summary of latent-diffusion's f4 model: encoder 22.3 M, decoder 33.0 M."""
    encoder, decoder = networks(3, multipliers=(1, 2, 4), attention_strides=(), z_channels=3)
    quant = 3 * 3 + 3  # the two convolutions around the quantizer stand alone there, 12 each
    assert parameters(encoder.quant_conv) == parameters(decoder.quant_conv) == quant
    assert round((parameters(encoder) - quant) / 1e5) == 223
    assert round((parameters(decoder) - quant) / 1e5) == 330


def convolution(before, after, side=3):
    return before * after * side * side + after


def residual(before, after):
    """GroupNorms, two 3 x 3 convolutions, and the shortcut where the width changes."""
    shortcut = 0 if before == after else convolution(before, after, 1)
    return (
        2 * before + convolution(before, after) + 2 * after + convolution(after, after) + shortcut
    )


def attention(width):
    return 2 * width + 4 * convolution(width, width, 1)


def counted(widths, attended, z, channels):
    """Count by hand, by `methods` 1.2: 2 blocks a level, 3 in the decoder, levels fine to coarse.

    `attended` names the levels with attention.
    """
    first, last = widths[0], widths[-1]
    middle = 2 * residual(last, last) + attention(last)
    encoder = convolution(3, first) + middle + 2 * last + convolution(last, z)
    decoder = convolution(z, last) + middle + 2 * first + convolution(first, 3)
    before = first
    for level, width in enumerate(widths):
        encoder += residual(before, width) + residual(width, width)
        encoder += 2 * attention(width) if level in attended else 0
        encoder += convolution(width, width) if level < len(widths) - 1 else 0
        before = width
    before = last
    for level, width in reversed(list(enumerate(widths))):
        decoder += residual(before, width) + 2 * residual(width, width)
        decoder += 3 * attention(width) if level in attended else 0
        decoder += convolution(width, width) if level > 0 else 0
        before = width
    return encoder + convolution(z, channels, 1), decoder + convolution(channels, z, 1)


@pytest.mark.parametrize(("settings", "widths", "attended"), [
    ({}, (128, 128, 256, 256, 512), {4}),
    ({**F8, "attention_strides": ()}, (128, 256, 256, 512), set()),
    (F32, (128, 128, 256, 256, 512, 512), {5}),  # RQ-VAE: attention at 8 x 8 of 256 x 256
    ({"multipliers": (1, 1, 2, 2), "attention_strides": (8,)}, (128, 128, 256, 256), {3}),  # MQ-VAE
])  # fmt: skip
def test_parameters_counted_layer_by_layer(settings, widths, attended):
    encoder, decoder = networks(256, **settings)
    assert (parameters(encoder), parameters(decoder)) == counted(widths, attended, 256, 256)


def test_f16_has_the_published_shapes():
    """The checkpoint keys of taming-transformers, f16 ImageNet: shapes of the telling layers."""
    encoder, decoder = networks(256)
    assert encoder.conv_in.weight.shape == (128, 3, 3, 3)
    assert [len(level.blocks) for level in encoder.levels] == [2] * 5
    assert [len(level.attentions) for level in encoder.levels] == [0, 0, 0, 0, 2]
    assert encoder.levels[2].blocks[0].shortcut.weight.shape == (256, 128, 1, 1)
    assert encoder.levels[3].down.conv.weight.shape == (256, 256, 3, 3)
    assert encoder.conv_out.weight.shape == (256, 512, 3, 3)
    assert encoder.quant_conv.weight.shape == (256, 256, 1, 1)
    assert decoder.conv_in.weight.shape == (512, 256, 3, 3)
    assert [len(level.blocks) for level in decoder.levels] == [3] * 5
    assert [len(level.attentions) for level in decoder.levels] == [3, 0, 0, 0, 0]
    assert decoder.levels[1].blocks[0].shortcut.weight.shape == (256, 512, 1, 1)
    assert decoder.levels[0].up.conv.weight.shape == (512, 512, 3, 3)
    assert decoder.last_weight.shape == (3, 128, 3, 3)
