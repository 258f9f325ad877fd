"""PSNR against squared and absolute error: which pixel range can the errors have?

Per image, PSNR is -10·log10(m) for a mean squared error m on [0, 1]. The printed PSNR is a mean
over images, and -log10 is convex, so by Jensen's inequality

    mean PSNR  >=  -10·log10(mean m)  =  -10·log10(l2 / R²),

where R is the width of the pixel range that l2 was measured on: 1 for [0, 1], 2 for [-1, 1], 255
for bytes. Equality holds where all images have the same error, and for a PSNR of the pooled error.
Below that bound a PSNR is impossible. Above it the gap is 0.115·s² dB for images whose PSNR is
spread normally with standard deviation s: 0.7 dB at s = 2.5, 2.9 dB at s = 5, 7 dB at s = 7.8.
Absolute errors obey l1² <= l2 (Jensen) and, as no error exceeds R, l2 <= R·l1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from vqkit.ledger.cells import Table
from vqkit.ledger.lint.findings import Dossier, Finding, Level, Line, better, lines_of

RANGES = {1.0: "[0, 1]", 2.0: "[-1, 1]", 255.0: "[0, 255]"}
USUAL_GAP = 3.0
"""Largest gap in dB that is taken for ordinary: a spread of 5 dB from image to image."""
EXACT = 60.0
"""From this PSNR on, exact images and their cap decide the mean, and no bound is drawn."""


def pixel_rules(dossier: Dossier) -> Iterator[Finding]:
    """Yield what PSNR, l1 and l2 of the same pixels cannot be."""
    for table in dossier.tables:
        lines = list(lines_of(table))
        yield from _errors(lines)
        yield from _single(lines)
        yield from _mixed(table, lines)


def least_psnr(squared: float, width: float) -> float:
    """Return the least mean PSNR in dB for a mean squared error on a range of that width."""
    return -10.0 * math.log10(squared / width**2)


def spread(gap: float) -> float:
    """Return the spread of PSNR in dB over images that explains a gap in dB."""
    return math.sqrt(max(gap, 0.0) * 20.0 / math.log(10.0))


def _name(width: float) -> str:
    return RANGES.get(width, f"a range of width {width:g}")


def _value(line: Line, metric: str) -> tuple[float, float]:
    cell = line.cells[metric]
    assert cell.value is not None, "dashes are left out of lines"
    return cell.value, cell.half_step


def _errors(lines: Sequence[Line]) -> Iterator[Finding]:
    """l1 against l2."""
    for line in lines:
        if not {"l1", "l2"} <= line.cells.keys():
            continue
        (l1, l1_step), (l2, l2_step) = _value(line, "l1"), _value(line, "l2")
        cells = (line.cells["l1"], line.cells["l2"])
        if l1 > l1_step and (l1 - l1_step) ** 2 > l2 + l2_step:
            yield Finding(
                level="impossible",
                rule="l1-l2",
                place=line.key,
                statement="A mean absolute error is never above the root of the mean squared one.",
                arithmetic=(f"l1² = {l1:g}² = {l1**2:.6f} > l2 = {l2:g}",),
                cells=cells,
            )
        width = _declared(line, "l2") or max(RANGES)
        if l2 - l2_step > width * (l1 + l1_step):
            yield Finding(
                level="impossible",
                rule="l1-l2",
                place=line.key,
                statement=f"On {_name(width)} a squared error is at most {width:g} times the "
                "absolute one.",
                arithmetic=(f"l2 = {l2:g} > {width:g} · l1 = {width * l1:g}",),
                cells=cells,
            )


def _declared(line: Line, metric: str) -> float | None:
    value = line.declared(metric, "pixel_range")
    return float(value) if isinstance(value, int | float) else None


def _bounds(line: Line, width: float) -> tuple[float, float]:
    """Return the least PSNR as printed, and how far rounding may have moved the comparison."""
    l2, step = _value(line, "l2")
    least = least_psnr(l2, width)
    return least, least - least_psnr(l2 + step, width) + line.cells["psnr"].half_step


def _possible(line: Line, width: float) -> bool:
    least, slack = _bounds(line, width)
    return _value(line, "psnr")[0] + slack >= least


def _usual(line: Line, width: float) -> bool:
    least, slack = _bounds(line, width)
    psnr = _value(line, "psnr")[0]
    pooled = line.declared("psnr", "mean") == "set"
    return _possible(line, width) and psnr - least <= slack + (0.0 if pooled else USUAL_GAP)


def _comparable(line: Line) -> bool:
    return (
        {"psnr", "l2"} <= line.cells.keys()
        and _value(line, "l2")[0] > 0
        and _value(line, "psnr")[0] < EXACT
        and line.declared("psnr", "colour") is None
    )


def _sum(line: Line, widths: Iterable[float]) -> str:
    """The arithmetic of one row, range by range."""
    psnr = line.cells["psnr"]
    parts = []
    for width in widths:
        least, _ = _bounds(line, width)
        gap = _value(line, "psnr")[0] - least
        verdict = (
            f"{gap:.2f} above, spread {spread(gap):.1f} dB"
            if _possible(line, width)
            else f"{-gap:.2f} below, impossible"
        )
        parts.append(f"least PSNR on {_name(width)} {least:.2f} dB ({verdict})")
    return f"{line.key}: PSNR {psnr.printed}, l2 {line.cells['l2'].printed}; {'; '.join(parts)}"


def _single(lines: Sequence[Line]) -> Iterator[Finding]:
    """PSNR against l2 for every row by itself, then against l1 alone."""
    for line in lines:
        if not _comparable(line):
            yield from _absolute(line)
            continue
        declared = _declared(line, "l2")
        ranges = list(RANGES) if declared is None else [declared]
        level: Level
        if not any(_possible(line, width) for width in ranges):
            level, said = "impossible", "is below what its l2 allows"
        elif any(_usual(line, width) for width in ranges):
            continue
        elif line.declared("psnr", "mean") == "set":
            level, said = "impossible", "is not that of its l2, though it is of the pooled error"
        else:
            level, said = "suspicion", "lies further above the least one than images usually spread"
        where = "any known pixel range" if declared is None else _name(declared)
        yield Finding(
            level=level,
            rule="psnr-l2",
            place=line.key,
            statement=f"With errors on {where} the PSNR {said}.",
            arithmetic=(_sum(line, ranges),),
            cells=(line.cells["psnr"], line.cells["l2"]),
        )


def _absolute(line: Line) -> Iterator[Finding]:
    """Without l2: m <= l1 on [0, 1], so PSNR is at least -10·log10(l1 / R)."""
    if not {"psnr", "l1"} <= line.cells.keys() or line.declared("psnr", "colour") is not None:
        return
    (psnr, step), (l1, l1_step) = _value(line, "psnr"), _value(line, "l1")
    if l1 <= 0 or psnr >= EXACT:
        return
    width = _declared(line, "l1") or 1.0
    least = -10.0 * math.log10((l1 + l1_step) / width)
    most = -20.0 * math.log10(l1 / width)
    cells = (line.cells["psnr"], line.cells["l1"])
    if psnr + step < least:
        yield Finding(
            level="impossible",
            rule="psnr-l1",
            place=line.key,
            statement=f"No error exceeds the range, so on {_name(width)} the PSNR is too low.",
            arithmetic=(f"PSNR {psnr:g} < -10·log10({l1:g} / {width:g}) = {least:.2f} dB",),
            cells=cells,
        )
    if psnr - step > most + USUAL_GAP:
        yield Finding(
            level="suspicion",
            rule="psnr-l1",
            place=line.key,
            statement=f"On {_name(width)} the PSNR of the pooled error cannot exceed "
            "-20·log10(l1); the mean lies too far above.",
            arithmetic=(f"PSNR {psnr:g} > -20·log10({l1:g} / {width:g}) = {most:.2f} dB",),
            cells=cells,
        )


def _mixed(table: Table, lines: Sequence[Line]) -> Iterator[Finding]:
    """Rows of one table whose errors fit different pixel ranges."""
    groups: dict[float, list[Line]] = {}
    for line in lines:
        if _comparable(line) and _declared(line, "l2") is None:
            usual = [width for width in RANGES if _usual(line, width)]
            if len(usual) == 1:
                groups.setdefault(usual[0], []).append(line)
    if len(groups) < 2:
        return
    widths = sorted(groups)
    arithmetic = [_sum(line, widths) for width in widths for line in groups[width]]
    arithmetic.extend(_converted(lines, groups, widths[0], widths[-1]))
    members = " and ".join(f"{_name(width)} ({_rows(groups[width])})" for width in widths)
    proven = [
        w for w in widths if not any(_possible(x, w) for o in widths if o != w for x in groups[o])
    ]
    statement = f"l1 and l2 of this table seem to mix pixel ranges: {members}"
    if proven:
        named = " and ".join(_name(width) for width in proven)
        statement += f"; that all rows are on {named} is impossible"
    yield Finding(
        level="suspicion",
        rule="pixel-range",
        place=table.key,
        statement=f"{statement}.",
        arithmetic=tuple(arithmetic),
        cells=tuple(
            line.cells[metric]
            for width in widths
            for line in groups[width]
            for metric in ("psnr", "l1", "l2")
            if metric in line.cells
        ),
    )


def _rows(lines: Sequence[Line]) -> str:
    numbers = sorted({line.row.number for line in lines})
    return f"row{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _converted(
    lines: Sequence[Line], groups: dict[float, list[Line]], small: float, large: float
) -> Iterator[str]:
    """What the errors of the smaller range become on the larger one, and their new rank."""
    widths = {line.key: width for width, members in groups.items() for line in members}
    for line in groups[small]:
        rivals = [x for x in lines if x.dataset == line.dataset and x.key in widths]
        for metric, power in (("l1", 1), ("l2", 2)):
            if metric not in line.cells or not all(metric in x.cells for x in rivals):
                continue
            values = [_value(x, metric)[0] * (large / widths[x.key]) ** power for x in rivals]
            own = values[rivals.index(line)]
            cell = line.cells[metric]
            before = 1 + sum(better(x.cells[metric], cell) > 0 for x in rivals)
            after = 1 + sum(value < own for value in values)
            yield (
                f"{cell.key}: {cell.printed} is {own:.4g} on {_name(large)}; "
                f"rank {before} of {len(rivals)} as printed, {after} on one range"
            )
