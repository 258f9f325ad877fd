"""Tiny tokenizers and image sets for the tests of token sets."""

import torch
from feature_images import array_set, random_pixels

from vqkit.config import NetworkConfig, QuantizerConfig
from vqkit.models import ImageTokenizer, TokenizerConfig

PRESETS = {
    "looc": {"num_codes": 8, "dim": 2, "num_segments": 4},
    "vq_vae": {"num_codes": 300, "dim": 4},
    "rq": {"num_codes": 8, "dim": 4, "num_levels": 2},
}


def tokenizer(preset="looc", seed=0, channels=3):
    """A tokenizer of stride 4 with fresh weights."""
    torch.manual_seed(seed)
    quantizer = QuantizerConfig(preset=preset, args=PRESETS[preset])
    network = NetworkConfig(
        image_channels=channels, hidden=16, residual_hidden=4, num_residual_blocks=1
    )
    return ImageTokenizer(TokenizerConfig(network=network, quantizer=quantizer)).eval()


def pictures(count=11, height=12, width=16, *, classes=3):
    """An image set in memory with labels, the last image without one."""
    labels = torch.arange(count) % classes
    labels[-1] = -1
    return array_set(random_pixels(count, 3, height, width), labels, ("a", "b", "c")[:classes])
