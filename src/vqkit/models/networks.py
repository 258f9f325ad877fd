"""The networks of a tokenizer, from their settings."""

from __future__ import annotations

from torch import nn

from vqkit.config import Network, ViTNetwork, VQGANNetwork
from vqkit.models.vit import ViTDecoder, ViTEncoder
from vqkit.models.vqgan import VQGANDecoder, VQGANEncoder
from vqkit.models.vqvae import Decoder, Encoder


def build_networks(network: Network, channels: int) -> tuple[nn.Module, nn.Module]:
    """Return an encoder and a decoder with fresh weights around a quantizer of `channels` channels.

    The encoder maps images (B, C, H, W), whose sides are multiples of `network.stride`, to
    (B, channels, h, w); the decoder maps that shape back to images, not clamped, in the precision
    of its own weights. `decoder.last_weight` is the weight of its last layer.
    """
    if isinstance(network, VQGANNetwork):
        return VQGANEncoder(network, channels), VQGANDecoder(network, channels)
    if isinstance(network, ViTNetwork):
        return ViTEncoder(network, channels), ViTDecoder(network, channels)
    return Encoder(network, channels), Decoder(network, channels)
