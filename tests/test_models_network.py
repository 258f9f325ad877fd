"""The small VQ-VAE network against naive references and hand-made parameter counts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vqkit.config import NetworkConfig
from vqkit.models import Decoder, Encoder, ResidualBlock


def convolve(x, convolution):
    """Same-size convolution of one (C, H, W) picture, written as the sum of the definition."""
    weight, bias = convolution.weight.double(), convolution.bias.double()
    reach = weight.shape[-1] // 2
    channels, height, width = x.shape
    out = torch.zeros(weight.shape[0], height, width, dtype=torch.float64)
    for k in range(weight.shape[0]):
        for i in range(height):
            for j in range(width):
                total = bias[k].clone()
                for c in range(channels):
                    for u in range(-reach, reach + 1):
                        for v in range(-reach, reach + 1):
                            if 0 <= i + u < height and 0 <= j + v < width:
                                factor = weight[k, c, u + reach, v + reach]
                                total += factor * x[c, i + u, j + v]
                out[k, i, j] = total
    return out


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("skip", ["relu", "identity"])
def test_residual_block_follows_its_formula(skip):
    torch.manual_seed(0)
    block = ResidualBlock(3, 2, skip=skip)
    x = torch.randn(1, 3, 3, 4)
    kept = x.clone()
    with torch.no_grad():
        active = x[0].double().clamp(min=0)
        added = convolve(convolve(active, block.spatial).clamp(min=0), block.mix)
        expected = added + (active if skip == "relu" else x[0].double())
        out = block(x)
    torch.testing.assert_close(out[0].double(), expected, rtol=1e-5, atol=1e-6)  # float32 rounding
    assert torch.equal(x, kept)


def test_relu_skip_is_what_an_in_place_relu_does():
    """Zalando, CVQ-VAE, LooC: `x + Sequential(ReLU(True), Conv3, ReLU(True), Conv1)(x)`."""
    torch.manual_seed(0)
    block = ResidualBlock(8, 4, skip="relu")
    x = torch.randn(2, 8, 5, 5)
    published = nn.Sequential(nn.ReLU(True), block.spatial, nn.ReLU(True), block.mix)
    with torch.no_grad():
        branch = published(changed := x.clone())
        assert torch.equal(block(x), changed + branch)
        other = ResidualBlock(8, 4, skip="identity")
        other.load_state_dict(block.state_dict())
        assert not torch.allclose(other(x), changed + branch)


@pytest.mark.parametrize("skip", ["relu", "identity"])
def test_networks_are_the_published_chain_of_layers(skip):
    torch.manual_seed(0)
    network = NetworkConfig(
        image_channels=1, hidden=8, residual_hidden=4, num_residual_blocks=2, skip=skip
    )
    encoder, decoder = Encoder(network, 6), Decoder(network, 6)
    images = torch.rand(2, 1, 12, 8) * 2 - 1

    def residuals(x, blocks):
        for block in blocks:
            carried = F.relu(x) if skip == "relu" else x
            hidden = F.relu(
                F.conv2d(F.relu(x), block.spatial.weight, block.spatial.bias, padding=1)
            )
            x = carried + F.conv2d(hidden, block.mix.weight, block.mix.bias)
        return F.relu(x)

    with torch.no_grad():
        e, d = dict(encoder.named_parameters()), dict(decoder.named_parameters())
        x = F.relu(F.conv2d(images, e["to_half.weight"], e["to_half.bias"], 2, 1))
        x = F.relu(F.conv2d(x, e["to_quarter.weight"], e["to_quarter.bias"], 2, 1))
        x = F.conv2d(x, e["spatial.weight"], e["spatial.bias"], padding=1)
        z = F.conv2d(residuals(x, encoder.residuals[:2]), e["pre_vq.weight"], e["pre_vq.bias"])
        assert z.shape == (2, 6, 3, 2)
        torch.testing.assert_close(encoder(images), z)
        x = F.conv2d(z, d["spatial.weight"], d["spatial.bias"], padding=1)
        x = residuals(x, decoder.residuals[:2])
        x = F.relu(F.conv_transpose2d(x, d["from_quarter.weight"], d["from_quarter.bias"], 2, 1))
        x = F.conv_transpose2d(x, d["from_half.weight"], d["from_half.bias"], 2, 1)
        assert x.shape == images.shape
        torch.testing.assert_close(decoder(z), x)


def test_default_networks_have_the_counted_parameters():
    block = (128 * 32 * 9 + 32) + (32 * 128 + 128)
    spatial = 128 * 128 * 9 + 128
    encoder = (3 * 64 * 16 + 64) + (64 * 128 * 16 + 128) + spatial + 2 * block + (128 * 128 + 128)
    decoder = spatial + 2 * block + (128 * 64 * 16 + 64) + (64 * 3 * 16 + 3)
    assert (encoder, decoder) == (380_672, 364_035)
    assert parameters(Encoder(NetworkConfig(), 128)) == encoder
    assert parameters(Decoder(NetworkConfig(), 128)) == decoder


@pytest.mark.parametrize(("image_channels", "hidden", "inner", "blocks", "dim"), [
    (1, 16, 8, 0, 4),
    (3, 32, 8, 3, 12),
])  # fmt: skip
def test_every_size_has_the_counted_parameters(image_channels, hidden, inner, blocks, dim):
    network = NetworkConfig(
        image_channels=image_channels,
        hidden=hidden,
        residual_hidden=inner,
        num_residual_blocks=blocks,
    )
    half = hidden // 2
    stack = blocks * ((hidden * inner * 9 + inner) + (inner * hidden + hidden))
    strided = image_channels * half * 16 + half * hidden * 16
    encoder = strided + half + hidden + (hidden * hidden * 9 + hidden) + stack + dim * (hidden + 1)
    decoder = (dim * hidden * 9 + hidden) + stack + strided + half + image_channels
    assert parameters(Encoder(network, dim)) == encoder
    assert parameters(Decoder(network, dim)) == decoder


def test_decoder_has_no_output_activation():
    torch.manual_seed(0)
    decoder = Decoder(NetworkConfig(hidden=8, residual_hidden=4), 4)
    with torch.no_grad():
        decoder.from_half.bias.fill_(5.0)
        images = decoder(torch.randn(1, 4, 2, 2))
    assert images.min() > 1
