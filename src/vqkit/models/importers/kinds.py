"""What every kind of published checkpoint says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from vqkit.config import QuantizerConfig

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by their names in the file, without a prefix."""

CODEBOOK = "quantizer.quantizer.codebook"
"""Where an `ImageTokenizer` keeps the codebook of a preset that quantizes whole vectors."""

MIDDLE_ATTENTION = ("encoder.middle.attention.", "decoder.middle.attention.")
"""Parts that an `ImageTokenizer` always has; with zeros for weights, x + 0 = x."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """What a file does not say, or says twice. Nothing has to be set for published files."""

    weights: str | None = None
    """Entry of the file that holds the tensors; by default the first of `ema`, `state_dict`,
    `model` and the file itself."""
    prefix: str | None = None
    """What the names of the tokenizer's tensors begin with, such as "first_stage_model."; by
    default that, `module.`, `_orig_mod.` or nothing, whichever fits."""
    norm_groups: int | None = None
    """Groups of the group normalisations; by default what config.json says, or else 32."""
    unit_codes: bool | None = None
    """llamagen: whether vectors and codes are scaled to unit length (default true)."""
    legacy_beta: bool | None = None
    """taming and diffusers, for further training: true (the default) keeps the loss that these
    files were trained with, 1 · commitment + 0.25 · codebook; false is VQ-VAE's own order."""


class Quantizer(NamedTuple):
    """The quantizer of a checkpoint."""

    config: QuantizerConfig
    """Preset and arguments with the same mathematics."""
    tensors: dict[str, str]
    """Names in the `ImageTokenizer` -> names in the file, for every tensor of the quantizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One layout of checkpoints."""

    name: str
    marks: tuple[str, ...]
    """Every file of this kind has tensors whose names begin so."""
    renames: tuple[tuple[str, str], ...]
    """Patterns and replacements (`re.sub`), one after another: from names in the file to those of
    an `ImageTokenizer`."""
    ignored: tuple[str, ...]
    """Names that begin so are no part of the tokenizer: losses, discriminators, statistics."""
    quantizer: Callable[[Shapes, ImportConfig], Quantizer]
    """Chooses the preset; missing tensors and sizes that do not fit are a `ValueError`."""
    decoder_from_fine: bool = False
    """Whether the decoder's levels are counted from the finest."""
    options: tuple[str, ...] = ()
    """Fields of `ImportConfig` that mean something here, beside those that always do."""
    optional: tuple[str, ...] = ()
    """Parts of an `ImageTokenizer` that some files lack; zeros in them change nothing."""
    check: Callable[[dict[str, Any]], None] = lambda settings: None
    """Refuses a `config.json` that asks for something else."""


def size(shapes: Shapes, name: str, axis: int) -> int:
    """Return one side of a tensor; a missing tensor or side is a `ValueError`."""
    shape = shapes.get(name)
    if shape is None or len(shape) <= axis:
        found = "is missing" if shape is None else f"has the shape {shape}"
        raise ValueError(f"{name}: {found}; this is another kind of file, or a part of one")
    return shape[axis]
