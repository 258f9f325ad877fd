"""`vqkit analyze`: how a codebook is used, as figures and their numbers."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqkit.cli.console import say, tell
from vqkit.cli.options import Options, Values, split_names
from vqkit.cli.runs import EVERY_SECONDS, kind_of, load, test_images
from vqkit.config import DataConfig

if TYPE_CHECKING:
    from vqkit.data import ImageSet
    from vqkit.models import ImageTokenizer

VERBS = {
    "usage": "usage and perplexity at every epoch of one or several runs",
    "frequency": "how often every code is drawn over a set of images",
    "tsne": "active and inactive codes in the plane",
    "replace": "quality if every token becomes the M-th nearest code",
}

_USAGE = """\
usage: vqkit analyze VERB NAME [NAME ...] [--option value ...]

{verbs}

NAME is the folder of a run or, but for `usage`, of a tokenizer, or its id on the Hugging Face hub.
Every verb writes a figure (--out FILE.png) and its numbers beside it (FILE.json).

  vqkit analyze VERB --help   options of a verb
"""


def run(words: Sequence[str]) -> None:
    """Run one verb."""
    verb, rest = (words[0], list(words[1:])) if words else ("--help", [])
    if verb in ("-h", "--help"):
        say(
            _USAGE.format(verbs="\n".join(f"  {n:<11}{text}" for n, text in VERBS.items())).rstrip()
        )
        return
    runners = {"usage": _usage, "frequency": _frequency, "tsne": _tsne, "replace": _replace}
    if verb not in runners:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(VERBS)}"
        raise ValueError(f"analyze {verb}: unknown verb; {hint}")
    runners[verb](rest)


def _usage(words: Sequence[str]) -> None:
    """Draw usage and perplexity at every epoch of one or several runs, read from their logs.

    VQGAN-LC, Figure 3 left. Usage counts all tokens of an epoch while the weights move.
    """
    names, _, out = _parse("usage", "RUN", words, _usage.__doc__)
    from vqkit.analysis import save_analysis, usage_figure, usage_of_run

    for name in names:
        if kind_of(name) != "run":
            raise ValueError(f"run={name}: is no training run; name its folder, with a log.jsonl")
    labels = _labels(names)
    runs = [usage_of_run(name, name=label) for name, label in zip(names, labels, strict=True)]
    for found in runs:
        last = found.mean[-1]
        say(
            f"{found.conditions.name}: epoch {last.epoch}, {last.usage:.4f} of the codes used "
            f"(uniform draws: {last.uniform_usage:.4f}), perplexity {last.perplexity:,.1f}"
        )
    _tell_written(*save_analysis("usage", runs, usage_figure(runs), out))


def _frequency(words: Sequence[str]) -> None:
    """Count how often every code is drawn over a set of images.

    VQGAN-LC, Figure 3 right. The counts of every code go to FILE.NAME.npy, which `vqkit codebook
    subset --most_used` reads.
    """
    names, given, out = _parse("frequency", "TOKENIZER", words, _frequency.__doc__, _add_images)
    from vqkit.analysis import code_frequency, frequency_figure, save_analysis, save_counts

    results = []
    for label, tokenizer, images in _loaded(names, given):
        results.append(
            code_frequency(
                tokenizer, images, name=label, progress=_progress(label), **_batch(given)
            )
        )
        for book in results[-1].books:
            found = book.statistics
            say(
                f"{label} {book.name}: {found.num_used:,} of {found.num_codes:,} codes used "
                f"({found.usage:.4f}; at most {found.ceiling:.4f}, uniform draws "
                f"{found.uniform_usage:.4f}), perplexity {found.perplexity:,.1f}"
            )
    files = [*save_analysis("frequency", results, frequency_figure(results), out)]
    for one in results:
        name = _file_name(one.conditions.name)
        files += save_counts(one, out.with_name(f"{out.stem}.{name}.npy"))
    _tell_written(*files)


def _tsne(words: Sequence[str]) -> None:
    """Draw the codes in the plane by t-SNE: those that the images draw green, the others blue.

    VQGAN-LC, Figure 4. The codes are those that vectors are compared with (VQGAN-LC: projected).
    """

    def add(options: Options) -> None:
        _add_images(options)
        options.add("max_codes", int, "of a larger codebook so many codes, at random; default 2000")
        options.add("perplexity", float, "of t-SNE; default 30, less where codes are few")
        options.add("seed", int, "of the sample and of t-SNE; default 0")
        options.add("books", int, "codebooks to show, counted from 0; default all", count="+")

    names, given, out = _parse("tsne", "TOKENIZER", words, _tsne.__doc__, add)
    from vqkit.analysis import map_codes, save_analysis, tsne_figure

    keys = ("max_codes", "perplexity", "seed", "books", "batch_size")
    own = {key: given[key] for key in keys if key in given}
    results = []
    for label, tokenizer, images in _loaded(names, given):
        results.append(map_codes(tokenizer, images, name=label, progress=_progress(label), **own))
        for book in results[-1].books:
            say(
                f"{label} {book.name}: {book.num_active:,} of {book.num_codes:,} codes active, "
                f"{len(book.ids):,} shown"
            )
    _tell_written(*save_analysis("tsne", results, tsne_figure(results), out))


def _replace(words: Sequence[str]) -> None:
    """Decode after every token has become the M-th nearest code of its codebook.

    VQGAN-LC, Figure 5. From the code, M = 1 is the closest other code and M = 0 the usual one; from
    the feature, M = 1 is the usual code.
    """

    def add(options: Options) -> None:
        _add_images(options)
        options.add("m", int, "ranks M; default 0 1 2 4 8 16, from feature 1 2 4 8 16", count="+")
        options.add("from", str, "code (default) or feature: what neighbours are measured from")
        options.add("pictures", int, "images to show, the first ones of the set; default 3")

    names, given, out = _parse("replace", "TOKENIZER", words, _replace.__doc__, add)
    from vqkit.analysis import replace_tokens, replacement_figure, save_analysis

    origin = given.get("from", "code")
    ranks = given.get("m", [0, 1, 2, 4, 8, 16] if origin == "code" else [1, 2, 4, 8, 16])
    results = []
    for label, tokenizer, images in _loaded(names, given):
        results.append(
            replace_tokens(
                tokenizer,
                images,
                ranks,
                origin=origin,
                num_pictures=given.get("pictures", 3),
                name=label,
                progress=_progress(label),
                **_batch(given),
            )
        )
        for point in results[-1].points:
            similar = "" if point.ssim is None else f", SSIM {point.ssim:.4f}"
            say(f"{label}: M = {point.m:>5}  PSNR {point.psnr:.2f} dB{similar}")
    _tell_written(*save_analysis("replace", results, replacement_figure(results), out))


def _parse(
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


def _add_images(options: Options) -> None:
    options.add("batch_size", int, "images that go through the model together; default 16")
    options.add("device", str, "cpu, or cuda for a GPU; default the GPU if there is one")
    options.add_fields(DataConfig, "data.")


def _batch(given: Values) -> dict[str, Any]:
    return {"batch_size": given["batch_size"]} if "batch_size" in given else {}


def _loaded(names: Sequence[str], given: Values) -> list[tuple[str, ImageTokenizer, ImageSet]]:
    """Return (label, tokenizer, images); all see the same images."""
    import torch

    from vqkit.data import load_images

    loaded = [load(name) for name in names]
    config = next((c for _, c in loaded if c is not None and c.test_data is not None), None)
    images = load_images(test_images(config, given.get("data", {})))
    device = given.get("device", "cuda" if torch.cuda.is_available() else "cpu")
    found = []
    for (contestant, _), label in zip(loaded, _labels(names), strict=True):
        try:
            tokenizer = contestant.tokenizer.to(device)
        except (RuntimeError, AssertionError) as error:  # torch's way to refuse a device
            raise ValueError(f"device={device!r}: {error}") from error
        found.append((label, tokenizer, images))
    tell(f"{len(found)} tokenizers, {len(images):,} images")
    return found


def _labels(names: Sequence[str]) -> list[str]:
    """The last part of every name, or the whole where two would be called alike."""
    short = [Path(name).name or name for name in names]
    if len(set(names)) < len(names):
        raise ValueError(f"names={' '.join(names)}: one is given twice")
    return short if len(set(short)) == len(short) else list(names)


def _file_name(label: str) -> str:
    return label.replace("/", "_").replace("\\", "_")


def _progress(label: str) -> Callable[[int, int], None]:
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


def _tell_written(*paths: Path) -> None:
    for path in paths:
        say(f"wrote {path}")
