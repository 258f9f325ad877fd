"""`vqkit frequencies`: how often a tokenizer draws its codes, counted for the coder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vqkit.cli.compress import folder_of, on_device
from vqkit.cli.console import say
from vqkit.cli.options import Options, one_name
from vqkit.cli.runs import load, place_of, test_images
from vqkit.config import DataConfig


def run(words: Sequence[str]) -> None:
    """Count the codes of a tokenizer on training images, for vqkit compress.

    TOKENIZER is a run or a tokenizer; of a run, the images are those it was trained on, unless
    --data names others. Never count on images that a rate is measured on. The table goes to
    frequencies.safetensors in the folder of the tokenizer; both ends of a transfer need it.
    """
    name, rest = one_name(words, "run or tokenizer", "count one after another")
    options = Options("frequencies TOKENIZER", run.__doc__)
    options.add("out", str, "file; default frequencies.safetensors in the tokenizer's folder")
    options.add("batch_size", int, "images that go through the model together; default 16")
    options.add("device", str, "cpu, or cuda for a GPU; default the GPU if there is one")
    options.add_fields(DataConfig, "data.")
    given = options.parse(rest)
    if name is None:
        raise ValueError("tokenizer: none is named; give the folder of a run or of a tokenizer")
    from vqkit.clustering.progress import open_progress
    from vqkit.data import load_images
    from vqkit.models.files import FREQUENCIES
    from vqkit.tokens import count_frequencies

    contestant, config = load(name)
    trained_on = None if config is None else replace(config, test_data=config.data)
    data = test_images(trained_on, given.get("data", {}))
    images = load_images(data)
    shown = open_progress(True, len(images), "frequencies")
    found = count_frequencies(
        on_device(contestant.tokenizer, given.get("device")),
        images,
        batch_size=given.get("batch_size", 16),
        progress=lambda done, total: shown.tick(done - shown.done),
    )
    default = folder_of(name) / FREQUENCIES
    path = found.save(Path(given["out"]).expanduser() if "out" in given else default)
    drawn = sum(int((counts > 0).sum()) for counts in found.counts)
    total = sum(map(len, found.counts))
    say(
        f"counted {found.num_tokens:,} tokens of {found.num_images:,} images of {place_of(data)}, "
        f"{drawn:,} of {total:,} codes drawn → {path}"
    )
