"""`vqkit evaluate`: a run or a tokenizer, measured on held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vqkit.cli.console import say, tell
from vqkit.cli.options import Options, one_name
from vqkit.cli.runs import kind_of, load, test_images
from vqkit.config import DataConfig


def run(words: Sequence[str]) -> None:
    """Measure a tokenizer on every image of a set: by default those that its run names for it.

    NAME is the folder of a run, or a tokenizer: a folder or an id on the Hugging Face hub. The
    table is printed, and all numbers go to `evaluation.json` in the folder of the run.
    """
    name, rest = one_name(words, "run or tokenizer", "vqkit compare takes several")
    options = Options("evaluate NAME", run.__doc__)
    options.add("json", str, "file for the numbers; default evaluation.json in the run's folder")
    options.add("batch_size", int, "images that go through the model together; default 16")
    options.add("device", str, "cpu, or cuda for a GPU; default the GPU if there is one")
    options.add("tile", int, "pixels of tiles, for images too large to go through whole")
    options.add("halo", int, "pixels computed around a tile; default the receptive field")
    options.add_fields(DataConfig, "data.")
    given = options.parse(rest)
    if name is None:
        raise ValueError("run: none is named; give the folder of a run or of a tokenizer")
    import torch

    from vqkit.data import load_images
    from vqkit.evaluation import evaluate
    from vqkit.metrics import DEFAULT

    protocol = replace(DEFAULT, tile=given.get("tile"), halo=given.get("halo"))
    contestant, config = load(name)
    images = load_images(test_images(config, given.get("data", {})))
    default = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer = contestant.tokenizer.to(given.get("device", default))
    except (RuntimeError, AssertionError) as error:  # torch's way to refuse a device
        raise ValueError(f"device={given['device']!r}: {error}") from error
    tell(f"measuring {contestant.name} on {len(images):,} images")
    batch_size = given.get("batch_size", 16)
    evaluation = evaluate(
        tokenizer, images, batch_size=batch_size, name=contestant.name, protocol=protocol
    )
    say(evaluation.table())
    beside = Path(name) / "evaluation.json" if kind_of(name) == "run" else None
    path = Path(given["json"]) if "json" in given else beside
    if path is not None:
        evaluation.save(path)
        say(f"wrote {path}")
