"""What the verbs of `vqkit analyze` have in common: names, options, images, progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqkit.cli.console import say, tell
from vqkit.cli.options import Options, Values, split_names
from vqkit.cli.runs import EVERY_SECONDS, load, test_images
from vqkit.config import DataConfig

if TYPE_CHECKING:
    from vqkit.data import ImageSet
    from vqkit.models import ImageTokenizer


def parse_words(
    verb: str,
    what: str,
    words: Sequence[str],
    description: str | None,
    add: Callable[[Options], None] | None = None,
) -> tuple[list[str], Values, Path]:
    """Return the names, the options and the path of the figure."""
    names, rest = split_names(words)
    options = Options(f"analyze {verb} {what} [{what} ...]", description)
    options.add("out", str, f"file of the figure, .png; default runs/analysis/{verb}.png")
    if add is not None:
        add(options)
    given = options.parse(rest)
    if not names:
        raise ValueError(f"{what.lower()}: none is named; give the folder of at least one")
    from vqkit.analysis.figures import new_figure
    from vqkit.analysis.saving import check_figure_path

    new_figure(1, 1)  # complains about a missing matplotlib before anything is computed
    return names, given, check_figure_path(given.get("out", f"runs/analysis/{verb}.png"))


def add_images(options: Options, *, batch: bool = True) -> None:
    """Add the options of verbs that look at images."""
    if batch:
        options.add("batch_size", int, "images that go through the model together; default 16")
    options.add("device", str, "cpu, or cuda for a GPU; default the GPU if there is one")
    options.add_fields(DataConfig, "data.")


def batch_of(given: Values) -> dict[str, Any]:
    """Return the argument of the batch size, if it was given."""
    return {"batch_size": given["batch_size"]} if "batch_size" in given else {}


def loaded(names: Sequence[str], given: Values) -> list[tuple[str, ImageTokenizer, ImageSet]]:
    """Return (label, tokenizer, images); all see the same images."""
    import torch

    from vqkit.data import load_images

    loaded = [load(name) for name in names]
    config = next((c for _, c in loaded if c is not None and c.test_data is not None), None)
    images = load_images(test_images(config, given.get("data", {})))
    device = given.get("device", "cuda" if torch.cuda.is_available() else "cpu")
    found = []
    for (contestant, _), label in zip(loaded, labels_of(names), strict=True):
        try:
            tokenizer = contestant.tokenizer.to(device)
        except (RuntimeError, AssertionError) as error:  # torch's way to refuse a device
            raise ValueError(f"device={device!r}: {error}") from error
        found.append((label, tokenizer, images))
    tell(f"{len(found)} tokenizers, {len(images):,} images")
    return found


def labels_of(names: Sequence[str]) -> list[str]:
    """The last part of every name, or the whole where two would be called alike."""
    short = [Path(name).name or name for name in names]
    if len(set(names)) < len(names):
        raise ValueError(f"names={' '.join(names)}: one is given twice")
    return short if len(set(short)) == len(short) else list(names)


def file_name(label: str) -> str:
    """Make a label fit to be part of a file's name."""
    return label.replace("/", "_").replace("\\", "_")


def progress_of(label: str) -> Callable[[int, int], None]:
    """Tell on stderr how far the images are, and the time left."""
    from vqkit.clustering.progress import time_left

    began = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < EVERY_SECONDS:
            return
        last = now
        left = (now - began) / done * (total - done)
        tell(f"{label}: {done:,} of {total:,} images, {time_left(left)} left")

    return show


def tell_written(*paths: Path) -> None:
    """Name the files that were written."""
    for path in paths:
        say(f"wrote {path}")
