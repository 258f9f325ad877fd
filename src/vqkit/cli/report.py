"""`vqkit report`: one page about any number of runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqkit.cli.analyze_parts import progress_of
from vqkit.cli.console import plain_warnings, say, tell
from vqkit.cli.options import Options, split_names
from vqkit.cli.runs import place_of, test_images
from vqkit.config import DataConfig

if TYPE_CHECKING:
    from vqkit.data import ImageSet
    from vqkit.evaluation import Evaluation
    from vqkit.evaluation.comparison import Contestant
    from vqkit.report import Run
    from vqkit.report.curves import Result


def run(words: Sequence[str]) -> None:
    """Write one self-contained HTML page about any number of runs, to be opened in a browser.

    A NAME is the folder of a run, the folder of a tokenizer, or the JSON file of an evaluation or
    of `vqkit rate-distortion`; one that lies beside the runs is found. The page has a sortable
    table, quality over rate, the same pictures through every run, use of the codes, training
    curves, cost, settings that differ, and provenance; what a run lacks is said. A run without an
    evaluation by the default protocol of its own test images, or of those of --data.*, is measured
    first; where these are its own, the numbers are kept in its folder, unless it holds an
    `evaluation.json`. Its other evaluations are more rows of the table.
    """
    names, rest = split_names(words)
    options = Options("report NAME [NAME ...]", run.__doc__)
    options.add("out", str, "file of the page, also -o; default report.html")
    options.add("images", str, "folder of images to show; default the measured ones")
    options.add("pictures", int, "images to show at most, the first ones; default 6, 0 for none")
    options.add("title", str, "title of the page")
    options.add("device", str, "cpu, or cuda for a GPU; default the GPU if there is one")
    options.add_flag("as_is", "measure and compute nothing: only what the folders hold")
    options.add_fields(DataConfig, "data.")
    given = options.parse(["--out" if word == "-o" else word for word in rest])
    if not names:
        raise ValueError("run: none is named; give the folder of at least one run")
    if given.get("pictures", 0) < 0:
        raise ValueError(f"pictures={given['pictures']}: must be at least 0")
    from vqkit.report import distinct, write_report
    from vqkit.report.curves import is_rate_distortion

    curves = [name for name in names if is_rate_distortion(Path(name).expanduser())]
    found, left_out = _read([name for name in names if name not in curves])
    runs = distinct(found)
    images = None
    if not given["as_is"]:
        _to_device(runs, given.get("device"))
        sets = _Sets(given.get("data", {}))
        runs = [_measured(one, sets) for one in runs]
        images, runs = _common_images(runs, sets)
    report = write_report(
        runs,
        given.get("out", "report.html"),
        images=images,
        pictures=_pictures(given["images"], runs) if "images" in given else None,
        curves=_curves(curves, runs),
        note=f"Left out: {'; '.join(left_out)}." if left_out else "",
        command=shlex.join(["vqkit", "report", *words]),
        progress=tell,
        **({"title": given["title"]} if "title" in given else {}),
        **({"num_pictures": given["pictures"]} if "pictures" in given else {}),
    )
    for one in report.runs:
        for sentence in one.missing:
            tell(f"{one.name}: {sentence}")
    say(f"wrote {report.path}, {report.num_bytes / 1e6:.1f} MB: {len(report.runs)} runs")


def write_comparison_report(
    contestants: Sequence[Contestant],
    places: Sequence[str],
    evaluations: Sequence[Evaluation],
    images: ImageSet,
    out: Path,
    *,
    command: str,
    note: str = "",
) -> Path:
    """Write the page of runs that were just compared, from their folders where they have one."""
    from vqkit.report import Run, read_run, write_report

    runs = []
    for one, place, found in zip(contestants, places, evaluations, strict=True):
        if Path(place).expanduser().is_dir():
            read = read_run(place, one.tokenizer)
        else:
            lacks = "a tokenizer from the hub: no curves and settings of the training."
            read = Run(name=one.name, place=place, tokenizer=one.tokenizer, missing=(lacks,))
        runs.append(replace(read, name=one.name, evaluation=found, others=()))
    report = write_report(runs, out, images=images, note=note, command=command, progress=tell)
    return report.path


def _read(names: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Read the runs, and say which are damaged; a name of nothing, or no run, is an error."""
    from vqkit.report import read_run

    runs: list[Run] = []
    left_out: list[str] = []
    first = ValueError("run: none is named; give the folder of at least one run")
    for name in names:
        path = Path(name).expanduser()
        try:
            runs.append(read_run(name))
        except ValueError as error:
            if not path.is_file() and not (path / "config.json").is_file():
                raise
            tell(f"left out: {error}")
            first = error if not left_out else first
            left_out.append(str(error))
    if not runs:
        raise first
    return runs, left_out


def _curves(named: Sequence[str], runs: Sequence[Run]) -> list[Result]:
    """Read results of `vqkit rate-distortion`: those named, or else one of these runs beside them.

    What lies beside runs counts only if a point is of one of them, on the images it is measured on.
    """
    from vqkit.report.curves import FILE, is_rate_distortion, read_rate_distortion

    if named:
        return [read_rate_distortion(Path(name).expanduser()) for name in named]
    measured = {
        (Path(run.place).name, one.protocol.reference) for run in runs for one in run.evaluations
    }
    places = dict.fromkeys(Path(run.place).expanduser().parent / FILE for run in runs if run.place)
    found = []
    for path in filter(is_rate_distortion, places):
        try:
            result = read_rate_distortion(path)
        except ValueError as error:
            tell(f"passed over: {error}")
            continue
        if measured & {(one.name, one.protocol.reference) for one in result[0].points}:
            found.append(result)
    return found


class _Sets:
    """Image sets, each opened once."""

    def __init__(self, changes: dict[str, Any]) -> None:
        self.changes = changes
        self._opened: dict[DataConfig, ImageSet] = {}

    def of(self, run: Run) -> tuple[DataConfig, ImageSet] | None:
        """Return the images that a run is measured on; None if nothing names any."""
        from vqkit.data import load_images

        config = run.config
        if not self.changes and (config is None or config.test_data is None):
            return None
        data = test_images(config, self.changes)
        if data not in self._opened:
            self._opened[data] = load_images(data)
        return data, self._opened[data]


def _measured(run: Run, sets: _Sets) -> Run:
    """Return a run with the usual evaluation, measured now if it has none and there are images."""
    from vqkit.evaluation import evaluate
    from vqkit.report.runs import EVALUATION, of_images

    tokenizer, known = run.tokenizer, run.evaluation is not None
    if tokenizer is None:
        return run
    try:
        found = sets.of(run)
    except (ValueError, OSError, ImportError) as error:
        if sets.changes:
            raise
        return run if known else run.lacks(f"it was not measured: {error}.")
    if found is None:
        hint = "it was not measured: it names no test images; give --data.path."
        return run if known else run.lacks(hint)
    data, images = found
    run = of_images(run, images.fingerprint())
    if run.evaluation is not None:
        return run
    taken = tokenizer.config.network.image_channels
    if taken != images.channels:
        return run.lacks(f"it was not measured: it takes images of {taken} channels.")
    tell(f"measuring {run.name} on {len(images):,} images of {place_of(data)}")
    try:
        with plain_warnings():
            evaluation = evaluate(
                tokenizer, images, batch_size=16, name=run.name, progress=progress_of(run.name)
            )
    except ValueError as error:  # a model that has diverged, a broken image
        return run.lacks(f"it was not measured: {error}.")
    file = Path(run.place).expanduser() / EVALUATION
    if run.config is not None and data == run.config.test_data and not file.exists():
        evaluation.save(file)
    return replace(run, evaluation=evaluation)


def _common_images(runs: list[Run], sets: _Sets) -> tuple[ImageSet | None, list[Run]]:
    """Return the images that all runs are shown on: those of the first run that names some."""
    for one in runs:
        try:
            found = sets.of(one)
        except (ValueError, OSError, ImportError) as error:
            if sets.changes:
                raise
            runs = [
                run.lacks(f"its test images cannot be shown: {error}.") if run is one else run
                for run in runs
            ]
            continue
        if found is not None:
            return found[1], runs
    return None, runs


def _pictures(path: str, runs: Sequence[Run]) -> ImageSet:
    """Open a folder of images, in the colours that the first tokenizer takes."""
    from vqkit.data import load_images

    taken = [run.tokenizer.config.network.image_channels for run in runs if run.tokenizer]
    channels: Any = taken[0] if taken else 3
    return load_images(DataConfig(source="folder", path=path, channels=channels))


def _to_device(runs: Sequence[Run], device: str | None) -> None:
    import torch

    usual = "cuda" if torch.cuda.is_available() else "cpu"
    for run in runs:
        if run.tokenizer is not None:
            try:
                run.tokenizer.to(device or usual)
            except (RuntimeError, AssertionError) as error:  # torch's way to refuse a device
                raise ValueError(f"device={device!r}: {error}") from error
