"""From a state dict under foreign names to an `ImageTokenizer`.

Every setting of the networks is read off names and shapes. Nothing is built before each tensor is
known to fit, so that no file makes a model that is larger than itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch

from vqkit.config import VQGANNetwork, require
from vqkit.models.importers.kinds import ImportConfig, Kind, Quantizer, Shapes, size
from vqkit.models.importers.sources import Source, check_sizes, listed, read_tensors
from vqkit.models.importers.stored import StoredTensor
from vqkit.models.settings import TokenizerConfig
from vqkit.models.tokenizer import ImageTokenizer

NORM_GROUPS: Final = 32
"""Groups of the group normalisations of every published network."""

_MOST_LEVELS: Final = 16
_MOST_BLOCKS: Final = 64

# Counters of a quantizer in training; those of a fresh one are right.
_BOOKKEEPING: Final = re.compile(
    r"quantizer\.(pending|quantizer\.clock\..*|quantizer\.rules\.\d+\.new_.*)"
)


def assemble(
    kind: Kind, source: Source, tensors: Mapping[str, StoredTensor], config: ImportConfig
) -> ImageTokenizer:
    """Build the tokenizer that is made of exactly these tensors, by their names in the file.

    What is missing, left over, of another shape or not finite is a `ValueError` naming it.
    """
    shapes = {name: stored.shape for name, stored in tensors.items()}
    named = _renamed(kind, shapes)
    groups = _norm_groups(source.settings) if config.norm_groups is None else config.norm_groups
    quantizer = kind.quantizer(shapes, config)
    settings = TokenizerConfig(
        network=network_of({ours: shapes[name] for ours, name in named.items()}, groups),
        quantizer=quantizer.config,
    )
    places = _places(named, quantizer, shapes)
    needed = {name: tensors[name] for name in places.values()}
    check_sizes(source, needed)
    # On the meta device a model has shapes and takes no memory.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = ImageTokenizer(settings)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    absent = _check_fit(kind, expected, places, shapes)
    found = read_tensors(source, needed)
    for name, tensor in found.items():
        require(tensor.is_floating_point(), f"{name}", f"has the type {tensor.dtype}")
        require(bool(tensor.isfinite().all()), f"{name}", "has values that are not finite")
    with torch.random.fork_rng(devices=[]):  # importing draws nothing from the caller's numbers
        tokenizer = ImageTokenizer(settings)
    state = tokenizer.state_dict()
    state.update({ours: found[name].view(expected[ours]) for ours, name in places.items()})
    state.update({ours: torch.zeros(expected[ours]) for ours in absent})
    tokenizer.load_state_dict(state)
    return tokenizer.eval()


def network_of(shapes: Shapes, norm_groups: int) -> VQGANNetwork:
    """Read the settings of the networks off the shapes of their tensors, under vqkit's names."""
    first = "encoder.levels.{}.blocks.0.conv1.weight"
    levels = range(_count(shapes, first, _MOST_LEVELS))
    require(len(levels) > 0, "encoder", "has no levels; this is a part of a file, or another kind")
    width = size(shapes, "encoder.conv_in.weight", 0)
    channels = [size(shapes, first.format(level), 0) for level in levels]
    require(
        width > 0 and all(out > 0 and out % width == 0 for out in channels),
        f"channels of the levels={channels}",
        f"must be multiples of those of the first convolution, {width}",
    )
    attention = [f"encoder.levels.{level}.attentions.0.q.weight" in shapes for level in levels]
    return VQGANNetwork(
        image_channels=size(shapes, "encoder.conv_in.weight", 1),
        width=width,
        multipliers=tuple(out // width for out in channels),
        num_res_blocks=_count(shapes, "encoder.levels.0.blocks.{}.conv1.weight", _MOST_BLOCKS),
        attention_strides=tuple(2**level for level in levels if attention[level]),
        z_channels=size(shapes, "encoder.conv_out.weight", 0),
        quant_conv="encoder.quant_conv.weight" in shapes,
        norm_groups=norm_groups,
        modulation="codes" if "decoder.norm_out.scale.weight" in shapes else "none",
    )


def _count(shapes: Shapes, template: str, most: int) -> int:
    """Count the tensors of a series, numbered from 0."""
    count = 0
    while template.format(count) in shapes:
        count += 1
        require(count <= most, template.format("N"), f"there are more than {most}")
    return count


def _norm_groups(settings: Mapping[str, Any]) -> int:
    groups = settings.get("norm_num_groups", NORM_GROUPS)
    require(type(groups) is int, f"config.json: norm_num_groups={str(groups)[:80]!r}", "no number")
    return int(groups)


def _renamed(kind: Kind, shapes: Shapes) -> dict[str, str]:
    """Map names in an `ImageTokenizer` to those in the file; unknown ones stay as they are."""
    levels = {name.split(".")[2] for name in shapes if name.startswith("decoder.up.")}

    def from_coarse(match: re.Match[str]) -> str:
        return f"decoder.levels.{len(levels) - 1 - int(match[1])}."

    named: dict[str, str] = {}
    for name in shapes:
        ours = name
        for pattern, replacement in kind.renames:
            ours = re.sub(pattern, replacement, ours)
        if kind.decoder_from_fine:
            ours = re.sub(r"^decoder\.levels\.(\d{1,3})\.", from_coarse, ours)
        require(ours not in named, listed([name]), "stands in the file twice, under two names")
        named[ours] = name
    return named


def _places(named: Mapping[str, str], quantizer: Quantizer, shapes: Shapes) -> dict[str, str]:
    """Map every name in the tokenizer to one in the file, as far as there is one."""
    own = {ours: name for ours, name in quantizer.tensors.items() if name in shapes}
    return {ours: name for ours, name in named.items() if name not in own.values()} | own


def _check_fit(
    kind: Kind, expected: Shapes, places: Mapping[str, str], shapes: Shapes
) -> list[str]:
    """Raise `ValueError` unless the tensors are those that are expected.

    Returns those that are absent and may be. Sides of length 1 do not count: a linear map is a
    1 x 1 convolution.
    """
    extra = [name for ours, name in places.items() if ours not in expected]
    missing = [name for name in expected if name not in places and not _BOOKKEEPING.fullmatch(name)]
    lacking = tuple(
        part for part in kind.optional if not any(ours.startswith(part) for ours in places)
    )
    absent = [name for name in missing if name.startswith(lacking)] if lacking else []
    missing = [name for name in missing if name not in absent]
    problems = []
    if missing:
        problems.append(f"tensors are missing (named as in vqkit): {listed(missing)}")
    if extra:
        problems.append(f"tensors that have no place in a tokenizer: {listed(extra)}")
    require(not problems, f"kind={kind.name!r}", "; ".join(problems))
    for ours, name in places.items():
        here, there = expected[ours], shapes[name]
        fits = [side for side in here if side != 1] == [side for side in there if side != 1]
        require(fits, f"{name}", f"has the shape {there}; the other tensors ask for {here}")
    return absent
