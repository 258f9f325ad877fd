"""`vqkit describe`: what a quantizer is made of and what it costs. Trains and writes nothing."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vqkit.cli.console import say
from vqkit.cli.options import Options, Values, one_name
from vqkit.cli.runs import kind_of

_DEFAULTS: Values = {"image_size": (256, 256), "stride": 16, "batch_size": 1}


def run(words: Sequence[str]) -> None:
    """Describe a preset, or the tokenizer in a folder; without a name, list the presets.

    The arguments of a preset are options; what is not given is as in its paper.
    """
    name, rest = one_name(words, "preset or folder", "vqkit describe lists the presets")
    from vqkit.quantizers import PRESETS

    folder = name is not None and name not in PRESETS and Path(name).expanduser().is_dir()
    preset = name if name is not None and not folder else None
    options = Options("describe NAME", run.__doc__)
    _declare(options, preset)
    given = options.parse(rest)
    as_json = given.pop("json")
    if name is None:
        say(_list())
        return
    costs = {key: given.pop(key, value) for key, value in _DEFAULTS.items() if key != "stride"}
    values, text = (
        _of_folder(name, given, costs) if preset is None else _of_preset(preset, given, costs)
    )
    say(json.dumps(values, indent=2) if as_json else text)


def _declare(options: Options, preset: str | None) -> None:
    options.add_flag("json", "write JSON instead")
    options.add("image_size", int, "height and width in pixels; default 256 256", count=2)
    options.add("stride", int, "pixels per position of the feature map; default 16 (folder: its)")
    options.add("batch_size", int, "images that the score memory counts for; default 1")
    if preset is None:
        return
    from vqkit.quantizers import PRESETS
    from vqkit.quantizers.methods import EXAMPLES

    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(PRESETS)}"
        raise ValueError(f"preset={preset!r}: no preset and no folder; {hint}")
    options.add_parameters(PRESETS[preset], EXAMPLES[preset], skip=("features",))


def _of_preset(name: str, given: Values, costs: Values) -> tuple[Values, str]:
    from vqkit.config import QuantizerConfig
    from vqkit.quantizers import PRESETS, build
    from vqkit.quantizers.methods import example

    stride = given.pop("stride", _DEFAULTS["stride"])
    height, width = costs["image_size"]
    if min(height, width, stride) < 1:
        raise ValueError(f"image_size={height, width}, stride={stride}: must be at least 1")
    args = {**example(name), **given}
    quantizer = build(QuantizerConfig(preset=name, args=args))
    grid = (-(-height // stride), -(-width // stride))
    cost = quantizer.describe(*grid, batch_size=costs["batch_size"])
    bits = cost.bits_per_image / (height * width)
    shown = {key: _plain(value) for key, value in args.items()}
    summary = quantizer.summary()
    values = {
        "preset": name,
        "args": shown,
        "parts": summary,
        "image_size": [height, width],
        "stride": stride,
        "bits_per_pixel": bits,
        **cost.to_dict(),
    }
    head = [
        f"{name}({', '.join(f'{key}={value}' for key, value in shown.items())})",
        " ".join((inspect.getdoc(PRESETS[name]) or "").split()),
        "",
        *(f"{key:<18}{value}" for key, value in summary.items()),
        "",
        f"{'image':<18}{height}×{width} pixels, stride {stride}",
        f"{'bits per pixel':<18}{bits:.6g}",
    ]
    return values, "\n".join([*head, cost.text()])


def _of_folder(name: str, given: Values, costs: Values) -> tuple[Values, str]:
    from vqkit.models import ImageTokenizer

    if "stride" in given:
        raise ValueError(f"stride={given['stride']}: a tokenizer has its own; leave it out")
    folder = Path(name).expanduser()
    if kind_of(folder) == "run":
        folder /= "tokenizer"
        if not folder.is_dir():
            raise ValueError(f"run={name}: is not finished, and has no tokenizer yet")
    tokenizer = ImageTokenizer.from_pretrained(folder)
    cost = tokenizer.describe(costs["image_size"], batch_size=costs["batch_size"])
    summary = tokenizer.quantizer.summary()
    lines = [f"{key:<18}{value}" for key, value in summary.items()]
    preset = tokenizer.config.quantizer.preset
    values = {"preset": preset, "parts": summary, **cost.to_dict()}
    return values, "\n".join([f"{name}: {preset}", "", *lines, "", cost.text()])


def _plain(value: Any) -> Any:
    """A tensor as its shape, other values as they are."""
    shape = getattr(value, "shape", None)
    return value if shape is None else f"({', '.join(map(str, shape))}) tensor"


def _list() -> str:
    from vqkit.quantizers import PRESETS

    lines = []
    for name, preset in PRESETS.items():
        first = (inspect.getdoc(preset) or "").partition("\n\n")[0]
        lines.append(f"{name:<12}{' '.join(first.split())}")
    return "\n".join(lines)
