"""VQGAN's networks against `VQModel` of diffusers, given the same weights."""

import re

import pytest
import torch

from vqkit.config import VQGANNetwork
from vqkit.models import build_networks

diffusers = pytest.importorskip("diffusers")

CHANNELS = 6
"""Of the codes; with modulation diffusers takes as many between its networks."""

RULES = [
    (r"^middle\.first\.", "mid_block.resnets.0."),
    (r"^middle\.second\.", "mid_block.resnets.1."),
    (r"^middle\.attention\.", "mid_block.attentions.0."),
    (r"^levels\.(\d+)\.blocks\.", r"SIDE_blocks.\1.resnets."),
    (r"^levels\.(\d+)\.attentions\.", r"SIDE_blocks.\1.attentions."),
    (r"^levels\.(\d+)\.down\.", r"down_blocks.\1.downsamplers.0."),
    (r"^levels\.(\d+)\.up\.", r"up_blocks.\1.upsamplers.0."),
    (r"^norm_out\.", "conv_norm_out."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.(norm|scale|shift)\.", r"\1.spatial_norm.\2."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.out\.", r"\1.to_out.0."),
    (r"((?:norm\d?|norm_out|spatial_norm)\.)norm\.", r"\1norm_layer."),
    (r"((?:norm\d?|norm_out|spatial_norm)\.)scale\.", r"\1conv_y."),
    (r"((?:norm\d?|norm_out|spatial_norm)\.)shift\.", r"\1conv_b."),
]


def renamed(network, side):
    """Return our tensors under the names of diffusers; its attention is made of linear layers."""
    found = {}
    for name, value in network.state_dict().items():
        for pattern, new in RULES:
            name = re.sub(
                pattern, new.replace("SIDE", {"encoder": "down", "decoder": "up"}[side]), name
            )
        linear = re.search(r"attentions\.\d+\.to_.*weight", name)
        if name.startswith("quant_conv."):
            name = name if side == "encoder" else f"post_{name}"
        else:
            name = f"{side}.{name}"
        found[name] = value[..., 0, 0] if linear else value
    return found


def theirs(network):
    """Build the same model there."""
    strides = [2**level for level in range(len(network.multipliers))]
    attended = ["Attn" if stride in network.attention_strides else "" for stride in strides]
    return diffusers.VQModel(
        down_block_types=tuple(f"{prefix}DownEncoderBlock2D" for prefix in attended),
        up_block_types=tuple(f"{prefix}UpDecoderBlock2D" for prefix in reversed(attended)),
        block_out_channels=tuple(network.width * m for m in network.multipliers),
        layers_per_block=network.num_res_blocks,
        latent_channels=network.z_channels,
        vq_embed_dim=CHANNELS,
        num_vq_embeddings=8,
        norm_num_groups=network.norm_groups,
        norm_type="group" if network.modulation == "none" else "spatial",
    )  # fmt: skip


@pytest.mark.parametrize(("multipliers", "strides", "z_channels", "modulation"), [
    ((1, 1, 2, 2, 4), (16,), 10, "none"),  # f16, as published but narrower
    ((1, 2, 2, 4), (), 10, "none"),  # f8, attention in the middle only
    ((1, 2, 2, 4), (8,), CHANNELS, "codes"),  # Sber's MoVQ
])  # fmt: skip
def test_parity_with_vq_model(multipliers, strides, z_channels, modulation):
    torch.manual_seed(0)
    network = VQGANNetwork(
        width=32, multipliers=multipliers, attention_strides=strides, z_channels=z_channels,
        modulation=modulation,
    )  # fmt: skip
    encoder, decoder = build_networks(network, CHANNELS)
    model = theirs(network).eval()
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *decoder.parameters()):
            parameter.add_(0.02 * torch.randn_like(parameter))  # fresh norms and biases hide much
        weights = {**renamed(encoder, "encoder"), **renamed(decoder, "decoder")}
        result = model.load_state_dict(weights, strict=False)
        assert result.missing_keys == ["quantize.embedding.weight"]
        assert result.unexpected_keys == []
        images = torch.rand(1, 3, 4 * network.stride, 2 * network.stride) * 2 - 1
        z, expected = encoder(images), model.encode(images).latents
        assert z.std() > 0.1
        assert (z - expected).abs().max() < 1e-4  # the bound of the issue; float32 rounding
        made, expected = decoder(z), model.decode(z, force_not_quantize=True).sample
        assert made.std() > 0.1
        assert (made - expected).abs().max() < 1e-4
