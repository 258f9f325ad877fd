"""`vqkit classify pixels`: a small classifier of real images, to read what generated ones show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vqkit.cli.console import say
from vqkit.cli.options import Options, Values, merged, one_name
from vqkit.cli.runs import remove_run
from vqkit.config import from_dict
from vqkit.config.classification import PixelRun

_OPTIM: Final = {
    "num_steps": 1200,
    "batch_size": 128,
    "lr": 3e-3,
    "schedule": "cosine",
    "weight_decay": 1e-4,
}
_GREY: Final = ("mnist", "fashion_mnist")


def pixels(words: Sequence[str]) -> None:
    """Train a classifier of pixels on real images with labels.

    `vqkit score` asks it what generated images show, and measures distances between its features.
    Images come from --data.source and --data.path; held-out ones, on which its accuracy is
    measured, from the same place with split=test unless --test_data says otherwise. Halve small
    images twice, those of 256 pixels five times (--network.halvings). A run in the folder goes on.
    """
    name, rest = one_name(words, "name of the run", "train one at a time")
    from vqkit.classification.pixels import train_pixel_classifier

    options = Options("classify pixels NAME", pixels.__doc__)
    options.add("out", str, "folder of the run; default runs/NAME")
    options.add_flag("fresh", "delete the run in the folder and train again")
    options.add_fields(PixelRun, base={"optim": _OPTIM}, skip=("name",))
    given = options.parse(rest)
    if "data" not in given:
        raise ValueError("data.source: no images are named; give --data.source and --data.path")
    run: PixelRun = from_dict(PixelRun, _settings(name or "pixels", given))
    out = Path(given.get("out", f"runs/{run.name}")).expanduser()
    main = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun, one cares and tells
    if given["fresh"] and main:
        remove_run(out)
    last = train_pixel_classifier(run, out).log[-1]
    if not main:
        return
    share = last.get("validation/accuracy")
    read = "" if share is None else f", {100 * share:.2f} % of held-out images read right"
    say(f"trained {run.name}, {last['step']:,} steps{read} → {out}")


def _settings(name: str, given: Values) -> Values:
    """Return all settings: what was given over what suits small images."""
    source = given["data"].get("source", "folder")
    grey = {"channels": 1} if source in _GREY else {}
    data = {"source": source, **grey, **given["data"]}
    held = {**data, "split": "test", **given.get("test_data", {})}
    places = ("split", "path", "files", "source")
    same = all(held.get(key) == data.get(key) for key in places)
    base: Values = {
        "name": name,
        "data": data,
        "test_data": None if same else held,
        "network": {"channels": data.get("channels", 3)},
        "optim": _OPTIM,
    }
    own = {k: v for k, v in given.items() if k not in ("out", "fresh", "data", "test_data")}
    settings = merged(base, own)
    if "warmup_steps" not in given.get("optim", {}):
        optim = settings["optim"]
        settings["optim"] = {**optim, "warmup_steps": min(50, optim["num_steps"] // 5)}
    return settings
