"""From a configuration to a quantizer, with errors that name what is wrong."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping

from vqkit.config import QuantizerConfig

from .grid import GridQuantizer
from .presets import PRESETS


def build(
    config: QuantizerConfig, presets: Mapping[str, Callable[..., GridQuantizer]] | None = None
) -> GridQuantizer:
    """Build the quantizer that a configuration names.

    Args:
        config: preset and arguments.
        presets: a user's own presets by name, beside the built-in ones.

    Raises:
        ValueError: unknown preset or argument (the nearest name is suggested), or a bad value.
    """
    known = {**PRESETS, **(presets or {})}
    if config.preset not in known:
        raise ValueError(f"quantizer.preset={config.preset!r}: {_unknown(config.preset, known)}")
    preset = known[config.preset]
    parameters = inspect.signature(preset).parameters
    for name in config.args:
        if name not in parameters:
            raise ValueError(f"quantizer.args.{name}: {_unknown(name, parameters)}")
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in config.args]
    if missing:
        raise ValueError(f"quantizer.args: {config.preset} also needs {', '.join(missing)}")
    return preset(**config.args)


def _unknown(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown{hint} Known are {', '.join(known)}"
