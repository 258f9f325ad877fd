"""SSIM's data range, and metrics of one row that contradict each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from vqkit.ledger.cells import Cell, Table
from vqkit.ledger.lint.findings import (
    Dossier,
    Finding,
    Line,
    apart,
    better,
    digits,
    lines_of,
    natural,
)

HALVED = 3.0
"""Difference of PSNR in dB that halves the squared error."""
CLEAR = 1.0
"""Difference of PSNR in dB from which one row counts as better."""
WORSE_FID = 1.1
"""Factor by which an FID must be worse to count."""
_AGREE = ("psnr", "ssim", "lpips")
_QUALITIES = frozenset(
    {"psnr", "ssim", "l1", "l2", "lpips", "lpips_vgg", "lpips_alex", "rfid", "gfid", "fid", "kid"}
)
"""Metrics that measure different things; counts (usage and its ceiling) may well be equal."""
SAME_DIGITS = 4
"""Printed digits from which two equal numbers in one row are hardly chance."""


def quality_rules(dossier: Dossier) -> Iterator[Finding]:
    """Yield what stands against the definitions, and rows that disagree with their table."""
    for table in dossier.tables:
        lines = list(lines_of(table))
        yield from _data_range(table, lines)
        for line in lines:
            yield from _copied(line)
        for dataset in dict.fromkeys(line.dataset for line in lines):
            here = [line for line in lines if line.dataset == dataset]
            yield from _order(here)
        yield from _lone_fid(table, lines)


def _data_range(table: Table, lines: Sequence[Line]) -> Iterator[Finding]:
    """A declared data range that is not the width of the declared pixel range."""
    for column in table.columns:
        told = [column.settings.get(name) for name in ("data_range", "pixel_range")]
        given, width = (float(x) if isinstance(x, int | float) else None for x in told)
        if given is None or width is None or given == width:
            continue
        if column.metric == "ssim":
            effect = "high" if given > width else "low"
            factor = (given / width) ** 2
            arithmetic = (
                f"constants (0.01·L)² and (0.03·L)² with L = {given:g} on pixels of width "
                f"{width:g} are {factor:g} times those of the definition, and wherever the local "
                f"covariance is not negative both factors of SSIM come out too {effect}"
            )
        else:
            shift = 20 * math.log10(given / width)
            arithmetic = f"20·log10({given:g} / {width:g}) = {shift:+.2f} dB in every cell"
        cells = [line.cells[column.metric] for line in lines if column.metric in line.cells]
        yield Finding(
            level="contradiction",
            rule="data-range",
            place=f"{table.key}/{column.metric}",
            statement=f"{column.metric} was given a data range that its pixels do not have, by "
            "the settings that the source declares.",
            arithmetic=(arithmetic,),
            cells=tuple(cells),
        )


def _copied(line: Line) -> Iterator[Finding]:
    """Two metrics of one row with the same printed digits."""
    cells = [
        cell
        for metric, cell in line.cells.items()
        if metric in _QUALITIES and digits(cell) >= SAME_DIGITS and cell.value not in (0.0, 1.0)
    ]
    for i, a in enumerate(cells):
        for b in cells[i + 1 :]:
            if a.printed == b.printed:
                chance = 10.0 ** -digits(a)
                yield Finding(
                    level="suspicion",
                    rule="copied-cell",
                    place=line.key,
                    statement=f"{a.metric} and {b.metric} show the same digits: one may be a copy "
                    "of the other.",
                    arithmetic=(f"{a.printed} twice; by chance about {chance:g}",),
                    cells=(a, b),
                )


def _order(lines: Sequence[Line]) -> Iterator[Finding]:
    """SSIM or LPIPS turn round where the squared error at least halves."""
    for line in lines:
        for metric in ("ssim", "lpips"):
            worse = [other for other in lines if _turned(line, other, metric)]
            if not worse:
                continue
            cell, psnr = line.cells[metric], line.cells["psnr"]
            yield Finding(
                level="suspicion",
                rule="order",
                place=line.key,
                statement=f"{metric} is worse than in rows whose PSNR is at least {HALVED:g} dB "
                "lower.",
                arithmetic=tuple(
                    f"PSNR {psnr.printed} is {better(psnr, other.cells['psnr']):.2f} dB above row "
                    f"{other.row.number} ({other.cells['psnr'].printed}), yet {metric} is "
                    f"{cell.printed} against {other.cells[metric].printed}"
                    for other in worse
                ),
                cells=(psnr, cell, *(x.cells[m] for x in worse for m in ("psnr", metric))),
            )


def _turned(line: Line, other: Line, metric: str) -> bool:
    if not all({"psnr", metric} <= one.cells.keys() for one in (line, other)):
        return False
    a, b = line.cells[metric], other.cells[metric]
    if better(line.cells["psnr"], other.cells["psnr"]) < HALVED or better(a, b) >= 0:
        return False
    # LPIPS and PSNR do part company, with an adversarial loss for one; by a factor they do not.
    return apart(a, b) and (metric == "ssim" or natural(a)[0] > 2 * natural(b)[0])


def _lone_fid(table: Table, lines: Sequence[Line]) -> Iterator[Finding]:
    """FID alone against PSNR, SSIM and LPIPS, between copied rows and the source's own."""
    arithmetic: list[str] = []
    cells: dict[str, Cell] = {}
    for own in lines:
        for copied in lines:
            if own.dataset != copied.dataset or not _fid_turned(own, copied):
                continue
            (fid, their), (psnr, lower) = (
                (own.cells[metric], copied.cells[metric]) for metric in ("rfid", "psnr")
            )
            arithmetic.append(
                f"{own.dataset}: row {own.row.number} beats row {copied.row.number} in PSNR "
                f"({psnr.printed} against {lower.printed}), SSIM and LPIPS; rFID {fid.printed} "
                f"against {their.printed}"
            )
            used = [line.cells[m] for line in (own, copied) for m in (*_AGREE, "rfid")]
            cells |= {cell.key: cell for cell in used}
    if arithmetic:
        yield Finding(
            level="suspicion",
            rule="lone-fid",
            place=table.key,
            statement="rFID turns against PSNR, SSIM and LPIPS between copied rows and the "
            "source's own: it may have been measured otherwise.",
            arithmetic=tuple(arithmetic),
            cells=tuple(cells.values()),
        )


def _fid_turned(own: Line, copied: Line) -> bool:
    complete = all({*_AGREE, "rfid"} <= one.cells.keys() for one in (own, copied))
    if own.row.quoted or not copied.row.quoted or not complete:
        return False
    ahead = all(better(own.cells[m], copied.cells[m]) > 0 for m in _AGREE)
    clear = better(own.cells["psnr"], copied.cells["psnr"]) >= CLEAR
    return (
        clear
        and ahead
        and natural(own.cells["rfid"])[0] > WORSE_FID * natural(copied.cells["rfid"])[0]
    )
