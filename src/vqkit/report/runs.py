"""What the report knows of one run, read from whatever there is of it.

A run is the folder of a training (`config.json`, `log.jsonl`, `result.json`, `tokenizer/`), the
folder of a tokenizer, or the JSON file of an evaluation. A part that is not there is named in
`missing`, and the page says so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any, Final

from vqkit.config import RunConfig, from_dict
from vqkit.evaluation import Evaluation
from vqkit.evaluation.rosetta import FORMAT as ROSETTA
from vqkit.metrics import DEFAULT
from vqkit.models import ImageTokenizer
from vqkit.tokens import tokenizer_hash
from vqkit.training import load_run, read_log, run_folder
from vqkit.training.stops import read_stop

EVALUATION: Final = "evaluation.json"
"""File of the usual evaluation in a folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run, as far as it is known."""

    name: str
    """Names the run everywhere on the page; unique among the runs of a report."""
    place: str = ""
    """The folder or file, as it was given."""
    settings: dict[str, Any] | None = None
    """`config.json` of the training."""
    log: tuple[dict[str, Any], ...] = ()
    """Lines of `log.jsonl`."""
    result: dict[str, Any] | None = None
    """`result.json` of a finished training."""
    evaluation: Evaluation | None = None
    """The usual one, of the default protocol on the run's images; None if it was not measured."""
    others: tuple[Evaluation, ...] = ()
    """Measured differently or on other images: rows of the table, and nothing else."""
    rosettas: tuple[dict[str, Any], ...] = ()
    """`rosetta.json` and `rosetta-<id>.json`: the same reconstructions under every known protocol,
    with all their parts."""
    tokenizer: ImageTokenizer | None = None
    """In evaluation mode."""
    written: datetime | None = None
    """When its last part was written, by the file's own date."""
    missing: tuple[str, ...] = field(default=())
    """Sentences: which part is not there, and what to do."""

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """All of them, the usual one first."""
        return self.others if self.evaluation is None else (self.evaluation, *self.others)

    @property
    def config(self) -> RunConfig | None:
        """The settings; None without, or if another version wrote them."""
        try:
            return None if self.settings is None else from_dict(RunConfig, self.settings)
        except ValueError:
            return None

    def lacks(self, *sentences: str) -> Run:
        """Copy the run with more that is missing."""
        return replace(self, missing=(*self.missing, *sentences))


def read_run(place: str | Path, tokenizer: ImageTokenizer | None = None) -> Run:
    """Read what a folder or file holds of a run; a `tokenizer` that is given is not loaded.

    A path that is none of the three is a `ValueError`; a damaged or missing part of a run is not,
    but named in `Run.missing`.
    """
    path = Path(place).expanduser()
    if path.is_file():
        found = Evaluation.load(path)
        missing = f"{path.name} is an evaluation alone: no pictures, curves and settings."
        return Run(
            name=found.name,
            place=str(place),
            evaluation=found,
            written=_date(path),
            missing=(missing,),
        )
    settings = _json(path / "config.json")
    if settings is None and (path / "config.json").is_file():
        raise ValueError(f"run={place}: its config.json is damaged; restore it, or leave it out")
    if settings is None:
        raise ValueError(
            f"run={place}: is no folder of a run or a tokenizer, and no evaluation; name one"
        )
    if settings.get("library") == "vqkit":
        return _tokenizer_folder(place, path, tokenizer)
    if not {"quantizer", "optim"} <= settings.keys():
        raise ValueError(f"run={place}: its config.json is not of vqkit; name a folder of vqkit")
    return _training_folder(place, path, settings, tokenizer)


def of_images(run: Run, fingerprint: str) -> Run:
    """Return a run whose usual evaluation is of these images; None if it has none of them.

    One of the default protocol on other images becomes a row of the table.
    """
    usual = run.evaluation
    if usual is not None and usual.protocol.reference == fingerprint:
        return run
    wanted = replace(DEFAULT, reference=fingerprint)
    alike = (
        one for one in run.others if replace(one.protocol, num_images=None, measures="") == wanted
    )
    found = next(alike, None)
    others = tuple(one for one in run.evaluations if one is not found)
    return replace(run, evaluation=found, others=others)


def distinct(runs: Sequence[Run]) -> list[Run]:
    """Give runs of one name the last parts of their places instead, or a number."""
    often = Counter(run.name for run in runs)
    named = [
        run if often[run.name] == 1 else replace(run, name=_short(run.place) or run.name)
        for run in runs
    ]
    again, seen = Counter(run.name for run in named), Counter[str]()
    result = []
    for run in named:
        seen[run.name] += 1
        many = again[run.name] > 1
        result.append(replace(run, name=f"{run.name} ({seen[run.name]})") if many else run)
    return result


def _training_folder(
    place: str | Path, path: Path, settings: dict[str, Any], tokenizer: ImageTokenizer | None
) -> Run:
    missing: list[str] = []
    result = None
    if (path / run_folder.RESULT).is_file():
        try:
            result = run_folder.parse_result(path / run_folder.RESULT)
        except ValueError as error:
            missing.append(f"{error}.")
    try:
        log = tuple(read_log(path / "log.jsonl"))
    except ValueError as error:
        log = ()
        missing.append(f"log.jsonl cannot be read ({error}): no curves.")
    else:
        if not log:
            missing.append("log.jsonl is not there or empty: no curves.")
    if not (path / run_folder.RESULT).is_file():
        missing.append(_unfinished(path, log))
    if tokenizer is None:
        try:
            _, tokenizer = load_run(path)
        except (ValueError, OSError) as error:
            missing.append(f"its tokenizer cannot be loaded ({error}): no pictures.")
    usual, others, damaged = _evaluations(path, tokenizer)
    translated, broken = _rosettas(path)
    return Run(
        name=str(settings.get("name") or path.name),
        place=str(place),
        settings=settings,
        log=log,
        result=result,
        evaluation=usual,
        others=others,
        rosettas=translated,
        tokenizer=None if tokenizer is None else tokenizer.eval(),
        written=_date(path / "result.json") or _date(path / "log.jsonl"),
        missing=(*missing, *damaged, *broken),
    )


def _tokenizer_folder(place: str | Path, path: Path, tokenizer: ImageTokenizer | None) -> Run:
    missing = ["a tokenizer alone: no curves, training time and settings of the training."]
    if tokenizer is None:
        try:
            tokenizer = ImageTokenizer.from_pretrained(path).eval()
        except (ValueError, OSError) as error:
            missing.append(f"it cannot be loaded ({error}): no pictures.")
    usual, others, damaged = _evaluations(path, tokenizer)
    return Run(
        name=_short(place) if path.name == run_folder.TOKENIZER else path.resolve().name,
        place=str(place),
        evaluation=usual,
        others=others,
        tokenizer=tokenizer,
        written=_date(path / "config.json"),
        missing=(*missing, *damaged),
    )


def _evaluations(
    path: Path, tokenizer: ImageTokenizer | None
) -> tuple[Evaluation | None, tuple[Evaluation, ...], list[str]]:
    """Read `evaluation.json`, the usual one if it is of the default protocol, and the others.

    Those of other weights than the tokenizer has are passed over, as far as they say so.
    """
    usual: Evaluation | None = None
    others, damaged = [], []
    hashes = (None,) if tokenizer is None else (None, tokenizer_hash(tokenizer))
    for file in [path / EVALUATION, *sorted(path.glob("evaluation-*.json"))]:
        if not file.is_file():
            continue
        try:
            found = Evaluation.load(file)
        except ValueError as error:
            damaged.append(f"{file.name} is passed over ({error}).")
            continue
        if tokenizer is not None and found.tokenizer.get("hash") not in hashes:
            why = "it is of other weights than the run has now; vqkit evaluate measures again"
            damaged.append(f"{file.name} is passed over ({why}).")
            continue
        if file.name == EVALUATION and found.protocol.name == DEFAULT.name:
            usual = found
        else:
            others.append(found)
    return usual, tuple(others), damaged


def _rosettas(path: Path) -> tuple[tuple[dict[str, Any], ...], list[str]]:
    """Read the files of `vqkit evaluate --rosetta`, and say which are damaged."""
    found, damaged = [], []
    for file in [path / "rosetta.json", *sorted(path.glob("rosetta-*.json"))]:
        if file.is_file():
            values = _json(file) or {}
            damage = _damage(values)
            if damage:
                again = "run `vqkit evaluate --rosetta` again"
                damaged.append(f"{file.name} is passed over ({damage}); {again}.")
            else:
                found.append(values)
    return tuple(found), damaged


def _damage(values: dict[str, Any]) -> str:
    """Look through the parts of a `rosetta.json` that the page shows; "" if they are there."""
    try:
        if values.get("format") != ROSETTA:
            raise ValueError(f"format={values.get('format')!r}: expected {ROSETTA!r}")
        for one in values["protocols"]:
            _check_types(one, name=str, id=str, measures=str)
        for row in values["rows"]:
            _check_types(row, metric=str, cells=dict)
            for cell in filter(None, row["cells"].values()):
                _check_types(cell, value=(int, float, NoneType), deviation=(int, float, NoneType))
    except (KeyError, TypeError, ValueError) as error:
        return f"{error} is not there" if isinstance(error, KeyError) else str(error)
    return ""


def _check_types(values: dict[str, Any], **kinds: type | tuple[type, ...]) -> None:
    """Raise `KeyError` or `TypeError` unless there are values of these kinds."""
    for name, kind in kinds.items():
        if not isinstance(values[name], kind):
            raise TypeError(f"{name}={values[name]!r}")


def _unfinished(path: Path, log: Sequence[dict[str, Any]]) -> str:
    try:
        stop = read_stop(path)
    except ValueError:
        stop = None
    reached = f"; its log ends at step {log[-1]['step']:,}" if log else ""
    why = f" ({stop['kind']}: {stop['message']})" if stop else ""
    return f"the training is not finished{reached}{why}; the newest checkpoint is shown."


def _short(place: str | Path) -> str:
    """The last two parts of a path: `runs/looc`."""
    return "/".join(Path(place).expanduser().resolve().parts[-2:]).lstrip("/")


def _date(path: Path) -> datetime | None:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC) if path.is_file() else None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
