"""Rates and costs, against numbers counted by hand."""

import json

import pytest

from vqkit.config import NetworkConfig, QuantizerConfig
from vqkit.models import ImageTokenizer, TokenizerConfig


def tokenizer_of(preset, args, **network):
    quantizer = QuantizerConfig(preset=preset, args=args)
    return ImageTokenizer(TokenizerConfig(quantizer=quantizer, network=NetworkConfig(**network)))


def test_looc_on_cifar_costs_ten_bits_per_pixel():
    """`methods` 1.6: 32 codes of 4 numbers, 32 segments, 8 x 8 positions."""
    tokenizer = tokenizer_of("looc", {"num_codes": 32, "dim": 4, "num_segments": 32})
    costs = tokenizer.describe((32, 32))
    assert costs.tokens_per_image == 8 * 8 * 32
    assert costs.bits_per_image == tokenizer.bits_per_image(32, 32) == 8 * 8 * 32 * 5
    assert costs.bits_per_pixel == tokenizer.bits_per_pixel(32, 32) == 10
    assert costs.raw_bits_per_pixel == 24
    assert costs.quantizer.codebook_floats == costs.quantizer_parameters == 32 * 4
    assert costs.quantizer.codebook_bytes == 4 * 32 * 4
    assert costs.quantizer.multiplications == 8 * 8 * 32 * 32 * 4
    assert (costs.encoder_parameters, costs.decoder_parameters) == (380_672, 364_035)


def test_vq_vae_on_cifar():
    costs = tokenizer_of("vq_vae", {"num_codes": 1024, "dim": 128}).describe((32, 32))
    assert (costs.bits_per_image, costs.bits_per_pixel) == (640, 0.625)
    assert costs.quantizer.multiplications == 64 * 1024 * 128


def test_padding_is_paid_for():
    tokenizer = tokenizer_of("vq_vae", {"num_codes": 16, "dim": 4}, hidden=8)
    assert tokenizer.bits_per_image(30, 41) == 8 * 11 * 4
    assert tokenizer.bits_per_pixel(30, 41) == 8 * 11 * 4 / (30 * 41)
    assert tokenizer.bits_per_pixel(1, 1) == 4
    costs = tokenizer.describe((30, 41))
    assert costs.padded == (32, 44)
    assert costs.bits_per_pixel == 8 * 11 * 4 / (30 * 41)


def test_scores_are_counted_for_a_batch():
    tokenizer = tokenizer_of("gumbel", {"num_codes": 16, "dim": 4}, hidden=8)
    one = tokenizer.describe((8, 8)).quantizer.score_bytes
    assert one >= 4 * 4 * 16
    assert tokenizer.describe((8, 8), batch_size=32).quantizer.score_bytes == 32 * one


def test_description_is_printable_and_plain():
    costs = tokenizer_of("vq_vae", {"num_codes": 16, "dim": 4}, hidden=8).describe((30, 41))
    values = json.loads(json.dumps(costs.to_dict()))
    assert (values["height"], values["width"]) == (30, 41)
    assert (values["grid_height"], values["grid_width"]) == (8, 11)
    assert values["padded"] == [32, 44]
    assert values["bits_per_image"] == 352
    text = costs.text()
    assert "30×41 pixels (padded to 32×44)" in text
    assert "0.286179 (raw: 24)" in text
    assert "88 per image" in text


@pytest.mark.parametrize("size", [(0, 8), (8, -1)])
def test_sizes_without_pixels_are_refused(size):
    tokenizer = tokenizer_of("vq_vae", {"num_codes": 16, "dim": 4}, hidden=8)
    for count in (tokenizer.bits_per_image, tokenizer.bits_per_pixel, tokenizer.grid_size):
        with pytest.raises(ValueError, match="at least 1 pixel"):
            count(*size)
    with pytest.raises(ValueError, match="at least 1 pixel"):
        tokenizer.describe(size)
