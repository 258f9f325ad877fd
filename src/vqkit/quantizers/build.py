"""From a configuration to a quantizer, with errors that name what is wrong."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping

from vqkit.config import QuantizerConfig

from .grid import GridQuantizer
from .presets import PRESETS

_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


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
    own = presets or {}
    taken = sorted(PRESETS.keys() & own.keys())
    if taken:
        raise ValueError(f"presets={taken}: these names are vqkit's own; choose others")
    known = {**PRESETS, **own}
    if config.preset not in known:
        raise ValueError(f"quantizer.preset={config.preset!r}: {_unknown(config.preset, known)}")
    preset = known[config.preset]
    parameters = inspect.signature(preset).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in config.args:
        if name not in parameters and not takes_any:
            raise ValueError(f"quantizer.args.{name}: {_unknown(name, parameters)}")
    required = [
        n for n, p in parameters.items() if p.default is p.empty and p.kind not in _VARIADIC
    ]
    missing = [name for name in required if name not in config.args]
    if missing:
        raise ValueError(f"quantizer.args: {config.preset} also needs {', '.join(missing)}")
    return preset(**config.args)


def _unknown(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown; {hint}Known are {', '.join(known)}"
