"""The verbs of `vqkit analyze` that set evaluations against the size of their codebooks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqkit.cli.analyze_parts import labels_of, parse_words, tell_written
from vqkit.cli.console import say
from vqkit.cli.options import Options
from vqkit.cli.runs import kind_of

if TYPE_CHECKING:
    from vqkit.analysis import SizePoint
    from vqkit.evaluation import Evaluation

_WHAT = "EVALUATION"


def sizes(words: Sequence[str]) -> None:
    """Draw quality against the number and the length of codes, from several evaluations.

    LooC, Figures 1 and 6. A name is a file that `vqkit evaluate` wrote, or the folder of a run with
    its evaluation.json, measured on the weights that it has now. All must be of the same protocol
    and images.
    """

    def add(options: Options) -> None:
        options.add("metric", str, "psnr (default), ssim, fid, or another of the evaluations")

    names, given, out = parse_words("sizes", _WHAT, words, sizes.__doc__, add)
    from vqkit.analysis import save_analysis, sizes_figure

    points = _points(names)
    metric = given.get("metric", "psnr")
    figure = sizes_figure(points, metric=metric)
    for point in points:
        value = point.metrics.get(metric)
        shown = "not measured" if value is None else f"{value:.4g} {point.units[metric]}"
        say(f"{point.name}: {point.num_codes:,}×{point.dim or '-'}, {metric} {shown}")
    tell_written(*save_analysis("sizes", points, figure, out))


def scaling(words: Sequence[str]) -> None:
    """Draw usage, perplexity and FID against the size of the codebook, from several evaluations.

    VQGAN-LC, Figure 1a. Names as in `sizes`. Without FID its panel says so.
    """
    names, _, out = parse_words("scaling", _WHAT, words, scaling.__doc__)
    from vqkit.analysis import save_analysis, scaling_figure

    points = _points(names)
    figure = scaling_figure(points)
    for point in points:
        fid = point.metrics.get("fid")
        shown = "not measured" if fid is None else f"{fid:.4g}"
        usage, perplexity = point.metrics["usage"] or 0.0, point.metrics["perplexity"] or 0.0
        say(
            f"{point.name}: K = {point.num_codes:,}, usage {usage:.4f}, "
            f"perplexity {perplexity:,.1f}, FID {shown}"
        )
    tell_written(*save_analysis("scaling", points, figure, out))


def _points(names: Sequence[str]) -> list[SizePoint]:
    """Read the evaluations, each named as it was called."""
    from dataclasses import replace

    from vqkit.analysis import size_point
    from vqkit.evaluation import Evaluation

    points = []
    for name, label in zip(names, labels_of(names), strict=True):
        path = Path(name).expanduser()
        of_run = kind_of(path) == "run"
        if of_run:
            path = _evaluation_in(path)
        elif not path.is_file():
            raise ValueError(f"evaluation={name}: is no file, and no folder of a run")
        evaluation = Evaluation.load(path)
        if of_run:
            _check_weights(evaluation, path)
        shown = label if path.parent == Path(name) else evaluation.name
        point = size_point(evaluation, method=_method(path.parent, evaluation.name))
        points.append(replace(point, name=shown))
    return points


def _evaluation_in(folder: Path) -> Path:
    """Return `evaluation.json` of a run, or the one of other images or of another protocol."""
    if (folder / "evaluation.json").is_file():
        return folder / "evaluation.json"
    others = sorted(folder.glob("evaluation-*.json"))
    if not others:
        raise ValueError(f"run={folder}: holds no evaluation.json; run `vqkit evaluate` on it")
    if len(others) > 1:
        listed = ", ".join(one.name for one in others)
        raise ValueError(f"run={folder}: holds {listed}; name one of these files")
    return others[0]


def _check_weights(found: Evaluation, path: Path) -> None:
    """Raise `ValueError` if the run of an evaluation was trained further after it."""
    from vqkit.models import ImageTokenizer
    from vqkit.tokens import tokenizer_hash
    from vqkit.training import run_folder

    known, folder = found.tokenizer.get("hash"), path.parent / run_folder.TOKENIZER
    if known is None or not folder.is_dir():  # older versions wrote none; a run may not be finished
        return
    if known != tokenizer_hash(ImageTokenizer.from_pretrained(folder)):
        raise ValueError(
            f"run={path.parent}: {path.name} is of other weights than the run has now; run "
            f"`vqkit evaluate {path.parent}` again, or name the file to take its old numbers"
        )


def _method(folder: Path, otherwise: str) -> str:
    """Return the preset of the run that an evaluation lies in, else the tokenizer's name."""
    if kind_of(folder) != "run":
        return otherwise
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(settings["quantizer"]["preset"])
