"""How far the layers of a tokenizer look, and which of them look at the whole picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import torch
from torch import nn

from vqkit.config import Network, ViTNetwork, VQGANNetwork, require
from vqkit.models.networks import build_networks
from vqkit.models.tokenizer import ImageTokenizer
from vqkit.models.vit import Transformer
from vqkit.models.vqgan_blocks import AttentionBlock
from vqkit.quantizers import GridQuantizer

_GLOBAL: Final[dict[type[nn.Module], str]] = {
    nn.GroupNorm: "group normalisation",
    AttentionBlock: "attention",
    Transformer: "a transformer that counts positions from the corner",
}
"""Layers that look at the whole picture; everything else in the networks is local."""
_LONGEST: Final = 4096
"""Positions of the longest row in which a reach is looked for."""


@dataclass(frozen=True, slots=True)
class Halo:
    """Pixels around a tile that its inside depends on, whole positions of the grid."""

    encoder: int
    """Of encoder and quantizer together."""
    decoder: int


def exact_halo(tokenizer: ImageTokenizer) -> Halo:
    """Return the halo that holds the receptive fields of a tokenizer's local layers.

    It is measured: NaN in one position of a row spreads through the layers to all that it reaches;
    layers that look at the whole picture are stepped around. For that the networks are built with
    few channels, which changes no reach, and in float64, where convolutions are plain sums. A
    quantizer that interpolates (`beta` above 1) looks one position further. Networks of the same
    layers are measured once. A quantizer of your own class is a `ValueError`.
    """
    found = _reach(_thin(tokenizer.config.network))
    further = _check_quantizer(tokenizer.quantizer)
    stride = tokenizer.stride
    return Halo(encoder=found.encoder + further * stride, decoder=found.decoder)


def _check_quantizer(quantizer: GridQuantizer) -> int:
    """Return how many positions further than itself a token looks; quantizing is local."""
    require(
        type(quantizer) is GridQuantizer,
        f"quantizer={type(quantizer).__name__}",
        "only GridQuantizer itself is known to quantize position by position; encode and decode "
        "whole images",
    )
    return int(quantizer.beta > 1)  # bilinear: the next position at most


def global_kinds(network: nn.Module) -> list[str]:
    """Return the kind of every layer that looks at the whole picture."""
    kinds = tuple(_GLOBAL)
    return [
        next(name for kind, name in _GLOBAL.items() if isinstance(layer, kind))
        for layer in network.modules()
        if isinstance(layer, kinds)
    ]


def _thin(network: Network) -> Network:
    """Return settings of the same layers with as few channels as they can have."""
    if isinstance(network, VQGANNetwork):
        levels = (1,) * len(network.multipliers)
        return replace(
            network, image_channels=1, width=1, multipliers=levels, attention_strides=(),
            z_channels=1, norm_groups=1,
        )  # fmt: skip
    if isinstance(network, ViTNetwork):
        return replace(network, image_channels=1, width=4, depth=1, heads=1, mlp=1)
    return replace(network, image_channels=1, hidden=2, residual_hidden=1)


@cache
def _reach(thin: Network) -> Halo:
    """Measure both networks of a thin tokenizer, without its quantizer."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        encoder, decoder = build_networks(thin, 1)
        stride = thin.stride
        return Halo(
            encoder=stride * _spread(encoder, taken=stride, given=1),
            decoder=stride * _spread(decoder, taken=1, given=stride),
        )


def _spread(network: nn.Module, *, taken: int, given: int) -> int:
    """Return how many positions away the output still depends on a position of the input.

    `taken` and `given` are the sides of a position in the input and in the output.
    """
    network.double().eval()
    for layer in network.modules():
        if isinstance(layer, tuple(_GLOBAL)):
            layer.register_forward_hook(lambda _, inputs, output: inputs[0])
    length = 64
    while length <= _LONGEST:
        row = torch.zeros(1, 1, taken, length * taken, dtype=torch.float64)
        middle = length // 2
        row[..., middle * taken : (middle + 1) * taken] = torch.nan
        reached = network(row).isnan().reshape(given, length, given).any(2).any(0).nonzero()
        first, last = int(reached.min()), int(reached.max())
        if first > 0 and last < length - 1:
            return max(middle - first, last - middle)
        length *= 2
    raise AssertionError(f"{type(network).__name__} has a layer without bounds; name it in _GLOBAL")
