"""Tokenizers: networks around a quantizer, their files, and what they cost."""

from vqkit.models.blocks import ResidualBlock, residual_stack
from vqkit.models.describe import Description
from vqkit.models.settings import (
    Presets,
    TokenizerConfig,
    build_quantizer,
    config_from_values,
    config_values,
    zero_tensors,
)
from vqkit.models.tokenizer import ImageTokenizer, TokenizerOutput
from vqkit.models.vqvae import STRIDE, Decoder, Encoder

__all__ = [
    "STRIDE",
    "Decoder",
    "Description",
    "Encoder",
    "ImageTokenizer",
    "Presets",
    "ResidualBlock",
    "TokenizerConfig",
    "TokenizerOutput",
    "build_quantizer",
    "config_from_values",
    "config_values",
    "residual_stack",
    "zero_tensors",
]
