"""`vqkit rate-distortion`: curves of quality over rate, with everyday codecs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqkit.cli.analyze_parts import labels_of, progress_of, tell_written
from vqkit.cli.console import plain_warnings, say, tell
from vqkit.cli.options import Options, split_names
from vqkit.cli.runs import kind_of, load, place_of, test_images
from vqkit.config import DataConfig, RunConfig

if TYPE_CHECKING:
    from vqkit.data import ImageSet
    from vqkit.evaluation import Evaluation
    from vqkit.evaluation.curves import RatePoint
    from vqkit.models import ImageTokenizer


def run(words: Sequence[str]) -> None:
    """Set tokenizers and codecs on the same images against their rates: figure, table, numbers.

    A NAME is the folder of a run, a tokenizer (folder or hub id), or the JSON file of an
    evaluation. Runs and tokenizers are measured on --data, by default the test images that the
    first run names; an `evaluation.json` of a run is taken as it is if it is of these images, of
    the usual protocol and of the weights that the run has now. Their tokens are written as one
    .vqk file for every image, with the frequencies in their folder, if any. PNG, JPEG, WebP and
    AVIF are measured on the same images, unless there are only evaluation files. Points of one
    method form a curve: the preset, or what stands before = in METHOD=NAME.
    """
    names, rest = split_names(words)
    given = _options().parse(rest)
    if not names:
        raise ValueError("run: none is named; give runs, tokenizers or evaluation files")
    from vqkit.analysis.figures import new_figure
    from vqkit.analysis.saving import check_figure_path
    from vqkit.evaluation.anchors import Anchors, measure_anchors
    from vqkit.evaluation.curves import RATES
    from vqkit.evaluation.rate_distortion import RateDistortion

    new_figure(1, 1)  # complains about a missing matplotlib before anything is computed
    out = check_figure_path(given.get("out", "runs/rate_distortion.png"))
    rate = given.get("rate", "nominal")
    if rate not in RATES:
        raise ValueError(f"rate={rate!r}: expected one of {', '.join(RATES)}")
    entries = _entries(names)
    images = _images(entries, given)
    measured = [_point(one, images, given) for one in entries]
    points, evaluations = [one for one, _ in measured], [one for _, one in measured]
    anchors: Anchors | None = None
    if images is not None and not given["no_codecs"]:
        tell(f"measuring codecs on {len(images):,} images")
        base = replace(points[0].protocol, measures="")
        anchors = measure_anchors(images, protocol=base, progress=progress_of("codecs"))
    found = RateDistortion(
        points=tuple(points),
        png=evaluations[0].value("png_rate") or 0.0,
        raw=evaluations[0].value("raw_rate") or 0.0,
        anchors=anchors,
    )
    reference = given.get("bd_reference")
    metrics = given.get("metrics", "psnr,ssim").split(",")
    paths = found.save(out, metrics=metrics, rate=rate, bd_reference=reference)
    say(found.table(bd_reference=reference))
    tell_written(*paths)


def _options() -> Options:
    options = Options("rate-distortion NAME [NAME ...]", run.__doc__)
    options.add("out", str, "file of the figure, .png; default runs/rate_distortion.png")
    options.add("rate", str, "rate of the figure: nominal (default), entropy or coded")
    options.add("metrics", str, "panels of the figure; default psnr,ssim")
    options.add("bd_reference", str, "method that the others' bits are compared with")
    options.add("batch_size", int, "images that go through the model together; default 16")
    options.add("device", str, "cpu, or cuda for a GPU; default the GPU if there is one")
    options.add_flag("no_codecs", "leave PNG, JPEG, WebP and AVIF files out of the curves")
    options.add_flag("no_files", "write no .vqk files: nominal and entropy rates only")
    options.add_fields(DataConfig, "data.")
    return options


class _Entry:
    """One name of the command line."""

    def __init__(self, name: str, method: str | None, label: str) -> None:
        from vqkit.evaluation import Evaluation

        self.name, self.label = name, label
        self.tokenizer: ImageTokenizer | None = None
        self.config: RunConfig | None = None
        self.evaluation: Evaluation | None = None
        path = Path(name).expanduser()
        if path.is_file():
            self.evaluation = Evaluation.load(path)
            self.label = self.evaluation.name
            self.method = method or self.label
            return
        contestant, self.config = load(name)
        self.tokenizer = contestant.tokenizer
        self.method = method or self.tokenizer.config.quantizer.preset
        if kind_of(name) == "run" and (path / "evaluation.json").is_file():
            self.evaluation = Evaluation.load(path / "evaluation.json")


def _entries(names: Sequence[str]) -> list[_Entry]:
    pairs = [_split(name) for name in names]
    labels = labels_of([name for _, name in pairs])
    return [_Entry(name, m, label) for (m, name), label in zip(pairs, labels, strict=True)]


def _split(name: str) -> tuple[str | None, str]:
    method, equals, place = name.partition("=")
    return (method, place) if equals and not Path(name).expanduser().exists() else (None, name)


def _images(entries: Sequence[_Entry], given: dict[str, Any]) -> ImageSet | None:
    """Open the images of all; None if there are evaluation files alone."""
    from vqkit.data import load_images

    runs = [one for one in entries if one.tokenizer is not None]
    if not runs and "data" not in given:
        return None
    config = next((c for one in runs if (c := one.config) is not None and c.test_data), None)
    data = test_images(config, given.get("data", {}))
    tell(f"images: {place_of(data)}")
    return load_images(data)


def _point(
    entry: _Entry, images: ImageSet | None, given: dict[str, Any]
) -> tuple[RatePoint, Evaluation]:
    """Measure one tokenizer, or take what an evaluation says."""
    import torch

    from vqkit.evaluation import evaluate
    from vqkit.evaluation.curves import point_of
    from vqkit.evaluation.rate_distortion import measure_coded

    found = entry.evaluation
    if entry.tokenizer is None or images is None:
        assert found is not None  # a file that was read
        return point_of(found, method=entry.method), found
    device = given.get("device", "cuda" if torch.cuda.is_available() else "cpu")
    try:
        tokenizer = entry.tokenizer.to(device)
    except (RuntimeError, AssertionError) as error:  # torch's way to refuse a device
        raise ValueError(f"device={device!r}: {error}") from error
    size, show = given.get("batch_size", 16), progress_of(entry.label)
    if found is None or not _is_of(found, tokenizer, images):
        tell(f"measuring {entry.label} on {len(images):,} images")
        with plain_warnings():
            found = evaluate(tokenizer, images, batch_size=size, name=entry.label, progress=show)
    coded = None
    if not given["no_files"]:
        from vqkit.cli.compress import folder_of
        from vqkit.tokens import find_frequencies

        place = Path(entry.name).expanduser()
        table = find_frequencies(folder_of(entry.name), tokenizer) if place.is_dir() else None
        coded = measure_coded(tokenizer, images, frequencies=table, batch_size=size, progress=show)
    named = replace(point_of(found, method=entry.method, coded=coded), name=entry.label)
    return named, found


def _is_of(found: Evaluation, tokenizer: ImageTokenizer, images: ImageSet) -> bool:
    """Whether an evaluation is what measuring this tokenizer on these images would give."""
    from vqkit.metrics import DEFAULT
    from vqkit.tokens import tokenizer_hash

    usual = DEFAULT.on(images.fingerprint(), len(images))
    alike = replace(found.protocol, measures="") == usual
    return alike and found.tokenizer.get("hash") == tokenizer_hash(tokenizer)
