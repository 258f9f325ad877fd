"""`vqkit reproduce`: rows of published tables, trained and measured, and the ledger of them all."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vqkit.cli.console import plain_warnings, say, tell
from vqkit.cli.options import Options, Values, split_names
from vqkit.cli.runs import Plan, remove_run

if TYPE_CHECKING:
    from vqkit.ledger.cells import Cell
    from vqkit.ledger.jobs import Job

OUT = "runs/ledger"
LEDGER = "docs/results/ledger"


def run(words: Sequence[str]) -> int:
    """Train the rows of published tables, measure them, and write what was observed.

    TABLE is `looc-table5`, `dual-tables1`, `vqgan-lc-figure4`, ...; --list names them all. Every
    row is measured under vqkit's protocol and its paper's. A row that several tables print is run
    once, a finished one is taken as it is, and a killed command goes on; the same command in
    several processes shares the rows out. Without --num_steps rows have their published length.
    """
    names, rest = split_names(words)
    options = Options("reproduce TABLE ...", run.__doc__)
    options.add("data", str, "data set of the rows; default the first of the table; cifar10-jpeg")
    options.add("path", str, "folder of its images; default data/<data set>")
    options.add("test_path", str, "folder of the test images, where it is another one")
    options.add("rows", int, "rows of the table, counted from 1; default all", count="+")
    options.add("num_steps", int, "optimizer steps; default as published, and part of the result")
    options.add("batch_size", int, "images per step; default published; 128 with --num_steps")
    options.add("seed", int, "of the run; default that of the recipe")
    options.add("reference", str, "for the FID of vqgan-lc: statistics, of `vqkit reference`")
    options.add("out", str, f"folder of the runs; default {OUT}")
    options.add("ledger", str, f"folder of the observations; default {LEDGER}")
    options.add("page", str, "write the ledger as a page, and as JSON beside it")
    options.add_flag("list", "all tables, and how many of their cells are observed")
    options.add_flag("networks", "measure FID and LPIPS, too, which need weights")
    options.add_flag("fresh", "delete the runs and observations of these rows, and begin anew")
    given = options.parse(rest)
    ledger = Path(given.get("ledger", LEDGER))
    if given["list"]:
        _list(ledger)
    if names:
        if not _reproduce(names, given, ledger):
            return 2
    elif not given["list"] and "page" not in given:
        raise ValueError("table: none is named; vqkit reproduce --list names them all")
    if "page" in given:
        _page(Path(given["page"]), ledger)
    return 0


def _list(ledger: Path) -> None:
    from vqkit.ledger.entries import STATUSES, entries
    from vqkit.ledger.observed import read_observations
    from vqkit.ledger.targets import cells_of, target_names

    status = {entry.cell.key: entry.status for entry in entries(read_observations(ledger))}
    heads = [*STATUSES]
    say(f"{'table':<20}{'cells':>6}" + "".join(f"{head:>14}" for head in heads))
    for name, caption in target_names().items():
        counts = Counter(status[cell.key] for cell in cells_of(name))
        shown = "".join(f"{counts[head] or '-':>14}" for head in heads)
        say(f"{name:<20}{sum(counts.values()):>6}{shown}   {caption}")
    total = Counter(status.values())
    say(f"{'all':<20}{len(status):>6}" + "".join(f"{total[head]:>14}" for head in heads))
    say(f"observations: {ledger}; a figure counts cells that a table or the text has, too")
    if not ledger.is_dir():
        tell(f"ledger={ledger}: there is no such folder, so that nothing counts as observed")


def _reproduce(names: Sequence[str], given: Values, ledger: Path) -> bool:
    """Run what can be run; False if that is nothing, or not all of it."""
    from vqkit.ledger.jobs import Length, jobs_of

    cells = _cells(names, given.get("rows"))
    length = Length(**{k: given[k] for k in ("num_steps", "batch_size", "seed") if k in given})
    jobs = jobs_of(
        cells,
        given.get("data", cells[0].dataset),
        path=given.get("path"),
        test_path=given.get("test_path"),
        length=length,
    )
    _check_reference(jobs, given)
    _tell_lacking(cells)
    _tell_downstream(cells)
    if not jobs or not _can_run(jobs, given):
        return False
    _run(jobs, given, ledger)
    return True


def _check_reference(jobs: Sequence[Job], given: Values) -> None:
    """Raise `ValueError` for a reference that would be read by nobody."""
    from vqkit.metrics import find_protocol

    files = any(find_protocol(name).fid_reference == "files" for name in _protocols(jobs))
    if "reference" in given and not (files and given["networks"]):
        raise ValueError(
            f"reference={given['reference']}: no row is compared with it; give it with --networks "
            "and rows of vqgan-lc, or leave it out"
        )


def _cells(names: Sequence[str], rows: Sequence[int] | None) -> tuple[Cell, ...]:
    from vqkit.ledger.targets import cells_of

    cells = tuple(cell for name in dict.fromkeys(names) for cell in cells_of(name))
    if rows is None:
        return cells
    chosen = tuple(cell for cell in cells if cell.row in rows)
    unknown = sorted(set(rows) - {cell.row for cell in cells})
    if unknown or not chosen:
        known = sorted({cell.row for cell in cells})
        raise ValueError(f"rows={unknown}: no such row; known are {known[0]} to {known[-1]}")
    return chosen


def _tell_lacking(cells: Sequence[Cell]) -> None:
    """Tell the rows that no run can give."""
    from vqkit.ledger.plans import needs_beside_a_tokenizer, plan_of

    lacking: dict[str, list[str]] = {}
    for cell in cells:
        reason = plan_of(cell).lacking or needs_beside_a_tokenizer(cell)
        if reason and cell.row_key not in lacking.setdefault(reason, []):
            lacking[reason].append(cell.row_key)
    for reason, rows in lacking.items():
        tell(f"not run: {', '.join(rows)}: {reason}")


def _tell_downstream(cells: Sequence[Cell]) -> None:
    """Tell the commands of rows that need more than a tokenizer."""
    from vqkit.ledger.downstream import commands_of

    chains: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        commands = commands_of(cell)
        if commands and cell.row_key not in chains.setdefault(commands, []):
            chains[commands].append(cell.row_key)
    for commands, rows in chains.items():
        tell(f"{', '.join(rows)}, step by step:")
        for command in commands:
            tell(f"  {command}")


def _can_run(jobs: Sequence[Job], given: Values) -> bool:
    """Tell what is missing here, and the command for where it is not."""
    import torch

    from vqkit.ledger.costs import gpu_hours, hours_in_words
    from vqkit.ledger.entries import WEIGHTS_OF
    from vqkit.ledger.jobs import missing_weights, obstacles, train_command
    from vqkit.ledger.runs import network_metrics

    missing: dict[str, list[str]] = {}
    for job in jobs:
        for obstacle in obstacles(job, have_gpu=torch.cuda.is_available()):
            missing.setdefault(obstacle, []).append(job.name)
    metrics = [name for one in _protocols(jobs) for name in network_metrics(one)]
    for metric in dict.fromkeys(metrics) if given["networks"] else ():
        for file in missing_weights(WEIGHTS_OF[metric]):
            missing.setdefault(f"weights {file} for {metric} (docs/weights.md)", [])
    if not missing:
        return True
    for obstacle, names in missing.items():
        rows = f" [{len(names)} of {len(jobs)} rows]" if names else ""
        tell(f"missing: {obstacle}{rows}")
    hours = hours_in_words(sum(gpu_hours(job.config) for job in jobs))
    tell(f"it takes, for {len(jobs)} row(s): {hours} by arithmetic (docs/reproduction.md)")
    tell("where that is at hand, the same command runs the rows; each of them alone:")
    out = Path(given.get("out", OUT))
    for job in jobs:
        tell(f"  {train_command(job)} --out {shlex.quote(str(out / job.name))}")
    return False


def _protocols(jobs: Sequence[Job]) -> list[str]:
    """Names of the protocols: vqkit's own, then those of the papers behind the rows."""
    from vqkit.ledger.plans import protocol_of
    from vqkit.metrics import DEFAULT

    cells = [cell for job in jobs for cell in job.cells]
    names = [protocol_of(cell) for cell in cells] if cells else ["cvq-looc"]
    return list(dict.fromkeys([DEFAULT.name, *filter(None, names)]))


def _run(jobs: Sequence[Job], given: Values, ledger: Path) -> None:
    import torch

    from vqkit.ledger.runs import Bench, reproduce

    out = Path(given.get("out", OUT))
    folders = [out / job.name for job in jobs]
    if given["fresh"]:
        for job, folder in zip(jobs, folders, strict=True):
            remove_run(folder)
            (ledger / f"{job.observation}.json").unlink(missing_ok=True)
    plan = Plan([job.config for job in jobs], folders)
    bench = Bench(
        out=out,
        ledger=ledger,
        protocols=_protocols(jobs),
        networks=given["networks"],
        reference=given.get("reference"),
        device="cuda" if torch.cuda.is_available() else "cpu",
        tell=tell,
        watch=plan.watching,
    )
    with plain_warnings():
        found = reproduce(jobs, bench)
    for one in found:
        shown = [f"{one.name} ({one.length}): {one.bits_per_pixel:.4g} bits per pixel"]
        for measured in one.measurements:
            values = {name: measured.values.get(name) for name in ("psnr", "ssim", "l1")}
            numbers = ", ".join(f"{k} {x:.4f}" for k, x in values.items() if x is not None)
            shown.append(f"{measured.protocol_id} {numbers}")
        say("; ".join(shown))
    say(f"{len(found)} row(s) of {len(jobs)}; observations in {ledger}")


def _page(path: Path, ledger: Path) -> None:
    from vqkit.ledger.observed import read_observations
    from vqkit.ledger.page import write_page

    for written in write_page(path, read_observations(ledger)):
        say(f"wrote {written}")
