"""What a run would take that is not at hand: GPU hours, by arithmetic from its recipe.

Multiplications of the networks, forward and backward, of LPIPS and of the discriminator, at an
assumed rate. No published length of a VQGAN was run here, so that this says whether a row takes
hours or weeks, no more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import Final

from vqkit.config import AdversarialConfig, DataConfig, Network, RunConfig

RATE: Final = 4e13
"""Floating-point operations a second that one GPU is assumed to sustain in these networks."""
LEAST_STEP: Final = 0.005
"""Seconds that a step takes at least, however small: an assumption, too."""
_VGG16: Final = 40.1e9
"""Operations of VGG16's convolutions on 256 x 256 pixels (15.35e9 multiply-adds at 224 x 224)."""
_LPIPS_PASSES: Final = 3
"""Two images forward, one of them backward to its pixels."""
_CHANNELS: Final = 256


def gpu_hours(config: RunConfig) -> float:
    """Estimate the hours that one GPU takes for a run, at the rate above."""
    operations = _image_operations(config)
    seconds = max(operations * config.optim.batch_size / RATE, LEAST_STEP)
    return seconds * config.optim.num_steps / 3600


def hours_in_words(hours: float) -> str:
    """Return hours to one or two digits, as far as they can be trusted: `about 320 GPU hours`."""
    if hours < 0.01:
        return "less than 0.01 GPU hours"
    shown = f"{float(f'{hours:.2g}'):,.0f}" if hours >= 10 else f"{hours:.1g}"
    return f"about {shown} GPU hours"


def _image_operations(config: RunConfig) -> float:
    """Operations that one image costs in one training step."""
    side = side_of(config.data)
    network = 3 * _network_operations(json.dumps(asdict(config.network)), config.network, side)
    lpips = _LPIPS_PASSES * _VGG16 * (side / 256) ** 2
    total = network + (lpips if config.objective.perceptual == "lpips" else 0.0)
    if config.adversarial is not None:
        steps = config.optim.num_steps
        share = max(0.0, 1 - config.adversarial.start / steps)
        once = _discriminator_operations(config.adversarial, config.data.channels, side)
        total += share * once * 8  # generator's turn: forward, back to pixels; own turn: two images
    return total


def side_of(data: DataConfig) -> int:
    """Return the pixels of a side of the training images."""
    if data.source in ("mnist", "fashion_mnist"):
        return 28
    return 32 if data.source == "cifar10" else (data.crop_size or data.resize or 256)


_KNOWN: dict[tuple[str, int], float] = {}


def _network_operations(key: str, network: Network, side: int) -> float:
    """Operations of encoder and decoder, forward, on one image."""
    import torch

    from vqkit.models.networks import build_networks

    if (key, side) not in _KNOWN:
        stride = network.stride
        padded = -(-side // stride) * stride
        with torch.device("meta"):
            encoder, decoder = build_networks(network, _CHANNELS)
            images = torch.zeros(1, network.image_channels, padded, padded)
        _KNOWN[key, side] = _counted(lambda: decoder(encoder(images)))
    return _KNOWN[key, side]


@cache
def _discriminator_operations(config: AdversarialConfig, channels: int, side: int) -> float:
    import torch

    from vqkit.models.discriminator import PatchDiscriminator

    with torch.device("meta"):
        network = PatchDiscriminator(config, channels)
        images = torch.zeros(1, channels, side, side)
    return _counted(lambda: network(images))


def _counted(work: Callable[[], object]) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        work()
    return float(counter.get_total_flops())
