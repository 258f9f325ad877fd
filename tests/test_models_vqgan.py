"""VQGAN's networks against a plain reading of their description."""

import pytest
import torch
from torch.nn import functional as F

from vqkit.config import VQGANNetwork
from vqkit.models import build_networks
from vqkit.models.vqgan_blocks import (
    AttentionBlock,
    Downsample,
    ModulatedNorm,
    ResidualBlock,
    Upsample,
    plain_norms,
)

SMALL = {"width": 8, "num_res_blocks": 1, "z_channels": 6, "norm_groups": 4}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def filled(network, channels, seed=0):
    """Build with every number random: fresh biases and norms would hide what they do."""
    torch.manual_seed(seed)
    parts = build_networks(network, channels)
    with torch.no_grad():
        for part in parts:
            for parameter in part.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return parts


def group_norm(x, groups):
    """Normalise (B, C, H, W) by the definition, in double precision, without weights."""
    parts = x.double().reshape(len(x), groups, -1)
    mean = parts.mean(-1, keepdim=True)
    variance = (parts - mean).square().mean(-1, keepdim=True)
    return ((parts - mean) / (variance + 1e-6).sqrt()).reshape(x.shape)


def test_modulated_norm_follows_its_formula():
    """MoVQ: `GroupNorm(f) * conv_gamma(z) + conv_beta(z)` of codes repeated to the size of f."""
    torch.manual_seed(0)
    norm = ModulatedNorm(2, 6, 3)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn_like(parameter))
        x, codes = torch.randn(2, 6, 4, 8), torch.randn(2, 3, 2, 2)
        out = norm(x, codes)
        plain = group_norm(x, 2)
        for b in range(2):
            for i in range(4):
                for j in range(8):
                    code = codes[b, :, i // 2, j // 4].double()
                    scale = norm.scale.weight[..., 0, 0].double() @ code + norm.scale.bias
                    shift = norm.shift.weight[..., 0, 0].double() @ code + norm.shift.bias
                    value = plain[b, :, i, j] * norm.norm.weight + norm.norm.bias
                    torch.testing.assert_close(
                        out[b, :, i, j].double(), value * scale + shift, rtol=1e-5, atol=1e-5
                    )  # float32 rounding


def test_attention_block_follows_its_formula():
    torch.manual_seed(0)
    block = AttentionBlock(6, plain_norms(3))
    x = torch.randn(2, 6, 3, 4)
    with torch.no_grad():
        h = group_norm(x, 3) * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
        rows = h.flatten(2).transpose(1, 2)  # (B, N, C)

        def project(rows, layer):
            return rows @ layer.weight[..., 0, 0].double().T + layer.bias

        q, k, v = (project(rows, layer) for layer in (block.q, block.k, block.v))
        mixed = torch.zeros_like(v)
        for b in range(2):
            for i in range(12):
                scores = torch.stack([q[b, i] @ k[b, j] / 6**0.5 for j in range(12)])
                mixed[b, i] = scores.exp() @ v[b] / scores.exp().sum()
        added = project(mixed, block.out).transpose(1, 2).reshape(x.shape)
        torch.testing.assert_close(block(x).double(), x + added, rtol=1e-5, atol=1e-5)


def test_sizes_change_as_published():
    """Down: a zero row below and a zero column at the right; up: every position four times."""
    torch.manual_seed(0)
    down, up = Downsample(2), Upsample(2)
    x = torch.randn(1, 2, 4, 6)
    with torch.no_grad():
        padded = torch.zeros(1, 2, 5, 7)
        padded[:, :, :4, :6] = x
        expected = F.conv2d(padded, down.conv.weight, down.conv.bias, stride=2)
        assert down(x).shape == (1, 2, 2, 3)
        torch.testing.assert_close(down(x), expected)
        repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(
            up(x), F.conv2d(repeated, up.conv.weight, up.conv.bias, padding=1)
        )


class Published:
    """A plain chain of layers after `methods` 1.2 and 2.12, reading weights by name."""

    def __init__(self, weights, network, codes=None):
        self.weights, self.network, self.codes = weights, network, codes

    def conv(self, x, name, **options):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        side = weight.shape[-1]
        return F.conv2d(x, weight, bias, **{"padding": side // 2, **options})

    def norm(self, x, name):
        inner = f"{name}.norm" if f"{name}.norm.weight" in self.weights else name
        x = group_norm(x, self.network.norm_groups).float()
        x = x * self.weights[f"{inner}.weight"].view(1, -1, 1, 1)
        x = x + self.weights[f"{inner}.bias"].view(1, -1, 1, 1)
        if inner == name:
            return x
        times = x.shape[-1] // self.codes.shape[-1]
        up = self.codes.repeat_interleave(times, 2).repeat_interleave(times, 3)
        return x * self.conv(up, f"{name}.scale") + self.conv(up, f"{name}.shift")

    def swish(self, x):
        return x * torch.sigmoid(x)

    def block(self, x, name):
        h = self.conv(self.swish(self.norm(x, f"{name}.norm1")), f"{name}.conv1")
        h = self.conv(self.swish(self.norm(h, f"{name}.norm2")), f"{name}.conv2")
        same = f"{name}.shortcut.weight" not in self.weights
        return h + (x if same else self.conv(x, f"{name}.shortcut"))

    def attend(self, x, name):
        h = self.norm(x, f"{name}.norm")
        q, k, v = (self.conv(h, f"{name}.{part}").flatten(2) for part in "qkv")
        weights = torch.softmax(q.transpose(1, 2) @ k / x.shape[1] ** 0.5, -1)
        return x + self.conv((v @ weights.transpose(1, 2)).reshape(x.shape), f"{name}.out")

    def middle(self, x):
        x = self.attend(self.block(x, "middle.first"), "middle.attention")
        return self.block(x, "middle.second")

    def level(self, x, index, num_blocks, stride):
        for block in range(num_blocks):
            x = self.block(x, f"levels.{index}.blocks.{block}")
            if stride in self.network.attention_strides:
                x = self.attend(x, f"levels.{index}.attentions.{block}")
        return x

    def encode(self, x):
        x = self.conv(x, "conv_in")
        for index in range(len(self.network.multipliers)):
            if index:
                x = self.conv(F.pad(x, (0, 1, 0, 1)), f"levels.{index - 1}.down.conv", stride=2,
                              padding=0)  # fmt: skip
            x = self.level(x, index, self.network.num_res_blocks, 2**index)
        x = self.conv(self.swish(self.norm(self.middle(x), "norm_out")), "conv_out")
        return self.conv(x, "quant_conv")

    def decode(self, z):
        x = self.middle(self.conv(self.conv(z, "quant_conv"), "conv_in"))
        for index in range(len(self.network.multipliers)):
            if index:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(x, f"levels.{index - 1}.up.conv")
            stride = self.network.stride // 2**index
            x = self.level(x, index, self.network.num_res_blocks + 1, stride)
        return self.conv(self.swish(self.norm(x, "norm_out")), "conv_out")


@pytest.mark.parametrize("modulation", ["none", "codes"])
def test_networks_are_the_published_chain_of_layers(modulation):
    network = VQGANNetwork(
        width=8, multipliers=(1, 2, 3), num_res_blocks=2, attention_strides=(2, 4),
        z_channels=6, norm_groups=4, modulation=modulation,
    )  # fmt: skip
    encoder, decoder = filled(network, 5)
    images = torch.rand(2, 3, 12, 8) * 2 - 1
    with torch.no_grad():
        z = encoder(images)
        assert z.shape == (2, 5, 3, 2)
        expected = Published(encoder.state_dict(), network).encode(images)
        torch.testing.assert_close(z, expected, rtol=1e-4, atol=1e-4)  # float32, 20 layers
        expected = Published(decoder.state_dict(), network, codes=z).decode(z)
        torch.testing.assert_close(decoder(z), expected, rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    block = ResidualBlock(4, 4, plain_norms(2), dropout=0.5)
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert not torch.equal(block(x), block(x))
        block.eval()
        assert torch.equal(block(x), block(x))


def test_decoder_has_no_output_activation():
    _, decoder = filled(VQGANNetwork(**SMALL), 6)
    with torch.no_grad():
        decoder.conv_out.bias.fill_(5.0)
        assert decoder(torch.randn(1, 6, 2, 2)).max() > 1


@pytest.mark.parametrize(("settings", "stride"), [
    ({"multipliers": (3,), "attention_strides": ()}, 1),
    ({"multipliers": (1, 2, 2, 1), "attention_strides": (1, 8)}, 8),
    ({"multipliers": (1, 1, 2, 2, 3), "attention_strides": (16,)}, 16),
    ({"multipliers": (1, 1, 1, 2, 2, 3), "attention_strides": ()}, 32),
])  # fmt: skip
def test_any_multipliers_and_any_grid(settings, stride):
    network = VQGANNetwork(**{**SMALL, **settings}, image_channels=1)
    encoder, decoder = filled(network, 5)
    images = torch.rand(2, 1, 2 * stride, 3 * stride)
    with torch.no_grad():
        z = encoder(images)
        assert z.shape == (2, 5, 2, 3)
        assert decoder(z).shape == images.shape


def test_without_quant_conv_the_channels_must_agree():
    encoder, decoder = filled(VQGANNetwork(**SMALL, quant_conv=False), 6)
    assert parameters(encoder.quant_conv) == parameters(decoder.quant_conv) == 0
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, 16, 16)).shape == (1, 6, 1, 1)
    with pytest.raises(
        ValueError, match=r"network.quant_conv=False: .* 6 channels and the other 4"
    ):
        build_networks(VQGANNetwork(**SMALL, quant_conv=False), 4)
