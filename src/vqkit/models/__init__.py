"""Tokenizers: networks around a quantizer, their files, and what they cost.

The networks come in three kinds, by the settings that `build_networks` is given: `NetworkConfig`
(small VQ-VAE, module `vqvae`), `VQGANNetwork` (`vqgan`, with MoVQ's modulated decoder) and
`ViTNetwork` (`vit`). `ImageTokenizer` works the same around each of them.
"""

from vqkit.models.blocks import ResidualBlock, residual_stack
from vqkit.models.compact import compacted
from vqkit.models.describe import Description
from vqkit.models.networks import build_networks
from vqkit.models.reach import Halo, exact_halo
from vqkit.models.settings import (
    Presets,
    TokenizerConfig,
    build_quantizer,
    config_from_values,
    config_values,
    zero_tensors,
)
from vqkit.models.tiling import decode_tiled, encode_tiled, reconstruct_tiled
from vqkit.models.tokenizer import ImageTokenizer, TokenizerOutput
from vqkit.models.vit import ViTDecoder, ViTEncoder
from vqkit.models.vqgan import VQGANDecoder, VQGANEncoder
from vqkit.models.vqvae import Decoder, Encoder

__all__ = [
    "Decoder",
    "Description",
    "Encoder",
    "Halo",
    "ImageTokenizer",
    "Presets",
    "ResidualBlock",
    "TokenizerConfig",
    "TokenizerOutput",
    "VQGANDecoder",
    "VQGANEncoder",
    "ViTDecoder",
    "ViTEncoder",
    "build_networks",
    "build_quantizer",
    "compacted",
    "config_from_values",
    "config_values",
    "decode_tiled",
    "encode_tiled",
    "exact_halo",
    "reconstruct_tiled",
    "residual_stack",
    "zero_tensors",
]
