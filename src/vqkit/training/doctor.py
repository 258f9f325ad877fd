"""What is wrong with a run, told from its folder alone: `diagnose(folder)`.

Read are the settings, the log, the checkpoints (every byte, against its SHA-256), and the record of
why the run stopped. Every finding has a cause, what was seen, and a remedy.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqkit.config import LogConfig, OptimConfig, RunConfig, from_dict
from vqkit.training import run_folder
from vqkit.training.causes import CAUSES, Finding, overfitted, stopped, watched
from vqkit.training.checkpoint import list_checkpoints, verify_checkpoint
from vqkit.training.settings_file import read_settings
from vqkit.training.stops import read_stop
from vqkit.training.validation import BEST, RECORD
from vqkit.training.watch import Watch


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a look at the folder of a run has given."""

    name: str
    state: str
    """`finished`, `unfinished`, `stopped`, or `not begun`, with steps."""
    facts: tuple[str, ...]
    findings: tuple[Finding, ...]
    """Most telling first; empty if the run is healthy."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the settings of a run say, whether it trains a tokenizer or what learns from tokens."""

    name: str
    product: str
    """Folder of the finished thing."""
    optim: OptimConfig
    log: LogConfig
    watch: Watch


def _plan(saved: dict[str, Any]) -> _Plan:
    if "product" not in saved:
        config: RunConfig = from_dict(RunConfig, saved)
        watch = Watch.for_run(config)
        return _Plan(config.name, run_folder.TOKENIZER, config.optim, config.log, watch)
    optim: OptimConfig = from_dict(OptimConfig, saved["optim"], "optim.")
    log: LogConfig = from_dict(LogConfig, saved["log"], "log.")
    watch = Watch(optim.num_steps, every=log.every)
    return _Plan(saved["name"], saved["product"], optim, log, watch)


def diagnose(folder: Path | str) -> Diagnosis:
    """Look at a run; a folder that holds none, or settings of another version, is a `ValueError`.

    A run that waits to go on (Ctrl-C, SIGTERM, a lost machine) is healthy.
    """
    folder = Path(folder)
    saved = read_settings(folder)
    if saved is None or "optim" not in saved:
        raise ValueError(f"run={folder}: holds no run; name the folder of a training run")
    plan = _plan(saved)
    lines, findings = _read_lines(folder)
    stop, unreadable = _read_stop(folder)
    findings += unreadable
    whole, reasons = _checkpoints(folder)
    findings += [*_damaged(folder, plan, whole, reasons), *_result(folder, plan, whole)]
    findings += [*_missing(folder, plan, stop, lines), *_models(folder, plan, whole)]
    findings += _disk(folder, plan, stop)
    sick = list(watched(plan.watch, lines)) + list(overfitted(lines))
    if stop is not None:
        findings = list(stopped(plan.optim, stop, lines, sick)) + findings
    findings += [finding for finding in sick if finding not in findings]
    facts = (_of_log(folder, lines), _of_checkpoints(whole), *_of_best(folder))
    return Diagnosis(plan.name, _state(folder, plan, stop, lines, whole), facts, tuple(findings))


# --------------------------------------------------------------------- what is there


def _read_lines(folder: Path) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Return the lines of the log that can be read, and what is wrong with the others."""
    path = folder / "log.jsonl"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines: list[dict[str, Any]] = []
    bad: list[int] = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):  # the last one may be cut off
        try:
            values = json.loads(line)
            lines.append({"step": int(values["step"]), **values})
        except (ValueError, KeyError, TypeError):
            bad.append(number)
    if not bad:
        return lines, []
    seen = f"{path}: line {bad[0]}" + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
    remedy = "remove these lines; the run cannot go on with them"
    return lines, [Finding("log damaged", f"{seen} cannot be read", remedy)]


def _read_stop(folder: Path) -> tuple[dict[str, Any] | None, list[Finding]]:
    try:
        return read_stop(folder), []
    except ValueError as error:
        return None, [Finding("record damaged", str(error), "look at the last lines of the log")]


def _checkpoints(folder: Path) -> tuple[list[int], list[str]]:
    """Return the steps of whole checkpoints, and what is wrong with the damaged ones."""
    whole: list[int] = []
    reasons: list[str] = []
    for path in list_checkpoints(folder):
        try:
            verify_checkpoint(path)
            whole.append(int(path.name.removeprefix("step_")))
        except ValueError as error:
            if path.exists():  # a run that goes on at this moment removes old ones
                reasons.append(str(error))
    return whole, reasons


def _damaged(folder: Path, plan: _Plan, whole: list[int], reasons: list[str]) -> Iterator[Finding]:
    """What damaged checkpoints mean: little for a finished run whose tokenizer is whole."""
    if not reasons:
        return
    finished = run_folder.read_result(folder, plan.product) is not None
    if finished and not run_folder.damage_of(folder / plan.product):
        remedy = f"nothing is to be done: the run is finished, and {plan.product}/ is whole; "
        remedy += (
            f"a longer run would go on from step {whole[-1]:,}"
            if whole
            else "only a longer run needs a checkpoint, from a backup"
        )
    elif whole:
        remedy = f"nothing is to be done: the run goes on from step {whole[-1]:,}, the newest "
        remedy += "whole one"
    else:
        remedy = "none is whole: copy one from a backup, or train again in another folder"
    yield Finding("checkpoint damaged", "; ".join(reasons), remedy)


def _result(folder: Path, plan: _Plan, whole: list[int]) -> Iterator[Finding]:
    path = folder / run_folder.RESULT
    try:
        if path.exists():
            run_folder.parse_result(path)
    except ValueError as error:
        seen = str(error).rpartition("; ")[0]
        yield Finding("result damaged", seen, _again(whole, f"{plan.product}/ can still be loaded"))


def _missing(
    folder: Path,
    plan: _Plan,
    stop: dict[str, Any] | None,
    lines: list[dict[str, Any]],
) -> Iterator[Finding]:
    """Steps were done, and neither a checkpoint nor a tokenizer holds them."""
    if list_checkpoints(folder) or (folder / plan.product).is_dir():
        return
    if stop is not None and stop["kind"] != "signal":
        return  # it tells why there is none
    done = max(line["step"] for line in lines) if lines else 0
    finished = (folder / run_folder.RESULT).exists()
    saved = stop is not None and stop["step"] > 0  # before it stopped
    if finished or saved or done >= plan.log.checkpoint_every:
        best = " (best/ is there, the tokenizer of the best validation)"
        yield Finding(
            "weights missing",
            f"{folder}: {done:,} steps are logged, but no checkpoint step_... and no "
            f"{plan.product}/ "
            f"is there{best if (folder / BEST).is_dir() else ''}",
            "copy them from a backup; without one the same train command begins at step 0",
        )


def _again(whole: list[int], otherwise: str) -> str:
    """Remedy for what the end of a run writes."""
    if whole:
        return f"the same train command writes it again, from the checkpoint of step {whole[-1]:,}"
    return f"copy it from a backup; {otherwise}"


def _models(folder: Path, plan: _Plan, whole: list[int]) -> Iterator[Finding]:
    for name in (plan.product, BEST):
        path = folder / name
        damage = run_folder.damage_of(path) if path.is_dir() else ""
        if damage:
            remedy = _again(whole if name != BEST else [], f"a checkpoint is a {plan.product} too")
            yield Finding(f"{plan.product} damaged", damage, remedy)


def _disk(folder: Path, plan: _Plan, stop: dict[str, Any] | None) -> Iterator[Finding]:
    """Whether one more checkpoint would fit; after a full disk that was told already."""
    newest = list_checkpoints(folder)[-1:]
    size = sum(file.stat().st_size for path in newest for file in path.iterdir())
    free = shutil.disk_usage(folder).free
    full = stop is not None and stop["kind"] == "disk"
    if free < size and not full and run_folder.read_result(folder, plan.product) is None:
        seen = f"{free / 1e9:.2f} GB are free, and a checkpoint takes {size / 1e9:.2f} GB"
        yield Finding("disk almost full", seen, CAUSES["disk"][1])


# --------------------------------------------------------------------- what is told


def _state(
    folder: Path,
    plan: _Plan,
    stop: dict[str, Any] | None,
    lines: list[dict[str, Any]],
    whole: list[int],
) -> str:
    steps = plan.optim.num_steps
    done = max([*(line["step"] for line in lines[-1:]), *whole[-1:], 0])
    if run_folder.read_result(folder, plan.product) is not None:
        return f"finished, {steps:,} steps"
    if stop is None:
        word = "unfinished" if done else "not begun"
        return f"{word}, at step {done:,} of {steps:,}"
    by = f" by {stop['name']}" if "name" in stop else ""
    return f"stopped{by} at step {stop['step']:,} of {steps:,}"


def _of_log(folder: Path, lines: list[dict[str, Any]]) -> str:
    if not lines:
        return "log: empty"
    last = lines[-1]
    minutes = (time.time() - (folder / "log.jsonl").stat().st_mtime) / 60
    age = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"
    loss = f", loss {last['loss']:.4g}" if "loss" in last else ""
    return f"log: {len(lines):,} lines to step {last['step']:,}{loss}, {age} ago"


def _of_checkpoints(whole: list[int]) -> str:
    listed = ", ".join(f"{step:,}" for step in whole[-3:])
    return f"checkpoints: {len(whole)} whole (step {listed})" if whole else "checkpoints: none"


def _of_best(folder: Path) -> list[str]:
    try:
        best = json.loads((folder / BEST / RECORD).read_text(encoding="utf-8"))
        return [f"best: step {best['step']:,}, {best['metric']} {best['score']:.4g}"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
