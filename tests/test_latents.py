"""Latents: feature maps before quantization, and the way from them to tokens."""

import pytest
import torch
from quantizer_cases import CASES, feature_map, make, train_steps

from vqkit.config import NetworkConfig, QuantizerConfig
from vqkit.models import ImageTokenizer, TokenizerConfig

every = pytest.mark.parametrize("name", CASES)


@every
def test_quantized_latents_are_the_tokens(name):
    quantizer = make(name)
    train_steps(quantizer, 2)
    quantizer.eval()
    z = feature_map(quantizer) * 3
    latents = quantizer.latents(z)
    assert latents.shape == (3, quantizer.width, 4, 5)
    assert latents.dtype == torch.float32
    expected, found = quantizer(z), quantizer.quantize_latents(latents)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.z_q, expected.z_q)
    assert torch.equal(quantizer.lookup(found.ids), found.z_q)


@every
def test_latents_write_nothing(name):
    quantizer = make(name).eval()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer.quantize_latents(quantizer.latents(feature_map(quantizer)))
    after = quantizer.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_channels", [None, 12])
def test_a_tokenizer_goes_through_its_latents(in_channels, dtype):
    torch.manual_seed(0)
    args = {"num_codes": 32, "dim": 4, "in_channels": in_channels}
    config = TokenizerConfig(
        network=NetworkConfig(image_channels=1, hidden=8, residual_hidden=4),
        quantizer=QuantizerConfig(preset="vqgan_fc", args=args),
    )
    tokenizer = ImageTokenizer(config).to(dtype)
    images = torch.randint(0, 256, (5, 1, 13, 18), dtype=torch.uint8)
    latents = tokenizer.encode_latents(images)
    assert latents.shape == (5, 4, 4, 5)
    assert latents.dtype == torch.float32
    assert torch.equal(tokenizer.quantize_latents(latents), tokenizer.encode(images))
    assert tokenizer.training  # as it was


def test_latents_of_another_width_are_refused():
    quantizer = make("vqgan_fc").eval()
    with pytest.raises(ValueError, match="6 channels"):
        quantizer.quantize_latents(torch.zeros(1, 6, 2, 2))
    with pytest.raises(ValueError, match="expected a map"):
        quantizer.quantize_latents(torch.zeros(1, 4, 2))
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantizer.quantize_latents(torch.full((1, 4, 2, 2), torch.nan))
    with pytest.raises(ValueError, match="only in evaluation"):
        quantizer.train().quantize_latents(torch.zeros(1, 4, 2, 2))
