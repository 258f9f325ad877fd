"""`vqkit evaluate`: a run or a tokenizer, measured on held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vqkit.cli.console import plain_warnings, say, tell
from vqkit.cli.options import Options, one_name
from vqkit.cli.runs import load, place_of, test_images
from vqkit.config import DataConfig


def run(words: Sequence[str]) -> None:
    """Measure a tokenizer on every image of a set: by default those that its run names for it.

    NAME is the folder of a run, or a tokenizer: a folder or an id on the Hugging Face hub. The
    table is printed, and all numbers go to a file in the folder of the run: `evaluation.json`, or
    `evaluation-<id>.json` for other images than the run names, and for tiles.
    """
    name, rest = one_name(words, "run or tokenizer", "vqkit compare takes several")
    options = Options("evaluate NAME", run.__doc__)
    options.add("json", str, "file for the numbers; default in the run's folder")
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
    data = test_images(config, given.get("data", {}))
    images = load_images(data)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer = contestant.tokenizer.to(given.get("device", default))
    except (RuntimeError, AssertionError) as error:  # torch's way to refuse a device
        raise ValueError(f"device={given['device']!r}: {error}") from error
    tell(f"measuring {contestant.name} on {len(images):,} images of {place_of(data)}")
    batch_size = given.get("batch_size", 16)
    with plain_warnings():
        evaluation = evaluate(
            tokenizer, images, batch_size=batch_size, name=contestant.name, protocol=protocol
        )
    say(evaluation.table())
    if "json" in given:
        path = Path(given["json"])
    elif config is not None:
        usual = protocol == DEFAULT and data == config.test_data
        mark = "" if usual else f"-{evaluation.protocol.id.rpartition(':')[2]}"
        path = Path(name).expanduser() / f"evaluation{mark}.json"
    else:
        return
    evaluation.save(path)
    say(f"wrote {path}")
