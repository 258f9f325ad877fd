"""A tokenizer without what only training needs: codes that it computes become plain codes."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vqkit.config import QuantizerConfig
from vqkit.models.settings import without_tensors
from vqkit.models.tokenizer import ImageTokenizer, evaluation_mode
from vqkit.quantizers import PRESETS, VectorQuantizer

_SHARED = ("metric", "commitment", "codebook", "in_channels")
"""Arguments of `vqgan_lc` and `simvq` that do not say where the codes come from."""
_REFINER = ("num_layers", "num_heads", "dropout")
"""Arguments of `dual` that describe its network over the codes."""


def compacted(tokenizer: ImageTokenizer) -> ImageTokenizer:
    """Return an equal tokenizer in evaluation mode whose codes are stored as they are used.

    With the presets `vqgan_lc` and `simvq` the projected table (K, dim) takes the place of features
    (K, F) and projector: 100,000 codes of 8 numbers are 3.2 MB, their features of 768 numbers 307.
    With `dual` the refined book takes the place of the free one and its network. Encoder, decoder,
    ids and images are the same, bit for bit; `compacted_from` names the former quantizer. What is
    gone is what moved the codes as a whole: to train on, keep the tokenizer itself.

    A tokenizer of another preset, or one whose codes are plain already, is returned as it is.
    """
    config = tokenizer.config.quantizer
    if not _is_computed(config):
        return tokenizer
    place, leaf = _computed_part(tokenizer)
    with evaluation_mode(tokenizer), torch.no_grad():
        table = leaf.codebook.table(leaf.clock).clone()
    is_dual = config.preset == "dual"
    plain = _refined_away(config) if is_dual else _projected_away(config, table[0])
    settings = replace(tokenizer.config, quantizer=plain)
    with torch.random.fork_rng(devices=[]):  # it draws nothing from the caller's generator
        compact = ImageTokenizer(settings)
    codes = {"codes": table} if is_dual else {"features": table[0]}
    state = tokenizer.state_dict() | {f"{place}.codebook.{name}": t for name, t in codes.items()}
    # Assigned, not copied: type, device and order in memory stay, and with them every bit.
    compact.load_state_dict(
        {name: state[name].clone() for name in compact.state_dict()}, assign=True
    )
    compact.compacted_from = {"preset": config.preset, "args": without_tensors(config.args)}
    return compact.eval()


def _is_computed(config: QuantizerConfig) -> bool:
    """Whether this preset stores more than codes: what they are computed or chosen from."""
    if config.preset == "simvq":
        return True
    if config.preset == "vqgan_lc":
        arguments = _arguments(config)
        return bool(arguments["projector"]) or arguments["pool"] is not None
    return config.preset == "dual" and _arguments(config)["refiner"] != "none"


def _computed_part(tokenizer: ImageTokenizer) -> tuple[str, VectorQuantizer]:
    """Return the part whose codebook is computed, and its place; these presets have one."""
    for place, module in tokenizer.named_modules():
        if isinstance(module, VectorQuantizer) and module.codebook.computed:
            return place, module
    raise AssertionError("these presets have a computed codebook")


def _projected_away(config: QuantizerConfig, table: Tensor) -> QuantizerConfig:
    """Describe VQGAN-LC whose features are the codes `table` (K, dim) themselves."""
    arguments = _arguments(config)
    kept = {name: arguments[name] for name in _SHARED}
    return QuantizerConfig(preset="vqgan_lc", args={"features": table, "projector": False, **kept})


def _refined_away(config: QuantizerConfig) -> QuantizerConfig:
    """Describe Dual without its network over the codes."""
    kept = {name: value for name, value in config.args.items() if name not in _REFINER}
    return replace(config, args={**kept, "refiner": "none"})


def _arguments(config: QuantizerConfig) -> dict[str, Any]:
    """Return all arguments of a preset, its defaults included."""
    parameters = inspect.signature(PRESETS[config.preset]).parameters
    return {name: config.args.get(name, item.default) for name, item in parameters.items()}
