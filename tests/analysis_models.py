"""Tiny tokenizers and images for the tests of the analyses."""

import torch
from PIL import Image

from vqkit.config import DataConfig, NetworkConfig, QuantizerConfig
from vqkit.data import load_images
from vqkit.models import ImageTokenizer, TokenizerConfig

SIZES = [(16, 20), (16, 20), (13, 17), (16, 20), (9, 12)]


def make_tokenizer(preset="looc", *, seed=0, presets=None, **args):
    """Fresh weights whose features lie around zero, far enough apart to use several codes."""
    torch.manual_seed(seed)
    network = NetworkConfig(hidden=8, residual_hidden=4, num_residual_blocks=1)
    quantizer = QuantizerConfig(preset=preset, args=args)
    config = TokenizerConfig(network=network, quantizer=quantizer)
    tokenizer = ImageTokenizer(config, presets=presets).eval()
    with torch.no_grad():
        last = tokenizer.encoder.pre_vq
        last.bias.zero_()
        coarse = torch.rand(8, 3, 4, 4) * 2 - 1
        smooth = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")
        features = tokenizer.encoder(smooth)
        centre = features.mean((0, 2, 3))
        scale = 2 / (features - centre[:, None, None]).std()
        last.weight.mul_(scale)
        last.bias.copy_(-centre * scale)
        for name, codes in tokenizer.quantizer.named_parameters():
            if name.endswith("codes"):
                codes.normal_()
    return tokenizer


def write_images(folder, sizes=SIZES):
    """Smooth pictures as files."""
    folder.mkdir(parents=True, exist_ok=True)
    source = torch.Generator().manual_seed(7)
    for index, (height, width) in enumerate(sizes):
        coarse = torch.rand(1, 3, 4, 4, generator=source)
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
        pixels = (smooth * 255).round().to(torch.uint8).permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    return folder


def open_images(folder):
    return load_images(DataConfig(source="folder", path=str(folder)))


def make_images(folder, sizes=SIZES):
    return open_images(write_images(folder, sizes))
