"""Numbers outside their range, usage, counts of codes, and rates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from vqkit.ledger.cells import Setting, Table
from vqkit.ledger.lint.findings import DISTANCES, Dossier, Finding, Line, lines_of, natural

BOUNDS: Mapping[str, tuple[float, float]] = {
    "ssim": (-1.0, 1.0),
    "utilization": (0.0, 1.0),
    "usage": (0.0, 1.0),
    "usage_ceiling": (0.0, 1.0),
    "top1": (0.0, 1.0),
    "perplexity": (1.0, math.inf),
    "rate": (0.0, math.inf),
    "entropy_rate": (0.0, math.inf),
    **dict.fromkeys(DISTANCES, (0.0, math.inf)),
}
"""Least and greatest value, fractions where a column is in percent."""

UNEQUAL = 2.0
"""Factor between the rates of two rows from which a table that hides them gets a caution."""
_SPENT = ("num_segments", "tokens", "beta", "num_codebooks")
"""Settings that decide how many indices are spent."""


def count_rules(dossier: Dossier) -> Iterator[Finding]:
    """Yield what counting alone rules out or leaves open."""
    for table in dossier.tables:
        lines = list(lines_of(table))
        for line in lines:
            yield from _range(line)
            yield from _usage(dossier, line)
            yield from _measured(line)
        yield from _rates(dossier, table, lines)
        yield from _missing(dossier, table, lines)


def _range(line: Line) -> Iterator[Finding]:
    for metric, cell in line.cells.items():
        least, most = BOUNDS.get(metric, (-math.inf, math.inf))
        value, step = natural(cell)
        if value + step < least or value - step > most:
            yield Finding(
                level="impossible",
                rule="range",
                place=line.key,
                statement=f"{metric} lies between {least:g} and {most:g}.",
                arithmetic=(f"{cell.key} = {cell.printed} ({cell.unit})",),
                cells=(cell,),
            )


def _number(settings: Mapping[str, Setting], name: str) -> float | None:
    value = settings.get(name)
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if numeric and value is not None else None


def _usage(dossier: Dossier, line: Line) -> Iterator[Finding]:
    """Usage is a whole number of codes, and no more of them than tokens were drawn."""
    cell = line.cells.get("utilization") or line.cells.get("usage")
    settings = dossier.settings(line)
    codes = _number(settings, "codebook_size")
    if cell is None or codes is None or _number(settings, "num_codebooks") not in (None, 1.0):
        return
    value, step = natural(cell)
    nearest = round(value * codes)
    if cell.decimals < 17 and abs(nearest / codes - value) > step * (1 + 1e-9):
        yield Finding(
            level="impossible",
            rule="usage-count",
            place=line.key,
            statement=f"No whole number of {codes:,.0f} codes is that share.",
            arithmetic=(
                f"nearest: {nearest:,} / {codes:,.0f} = {nearest / codes:.6f}, printed "
                f"{cell.printed} ({cell.unit})",
            ),
            cells=(cell,),
        )
    images = line.declared(cell.metric, "num_images")
    tokens = _number(settings, "tokens")
    if not isinstance(images, int | float) or tokens is None:
        return
    ceiling = min(1.0, images * tokens / codes)
    if value - step > ceiling:
        yield Finding(
            level="impossible",
            rule="usage-ceiling",
            place=line.key,
            statement="More codes are said to be used than tokens were drawn.",
            arithmetic=(
                f"{images:,} images of {tokens:,.0f} tokens for {codes:,.0f} codes: at most "
                f"{ceiling:.6f}, printed {cell.printed} ({cell.unit})",
            ),
            cells=(cell,),
        )


def _measured(line: Line) -> Iterator[Finding]:
    """Columns of vqkit's own evaluations, pair by pair: the first is at most the second."""
    for low, high, why in (
        ("usage", "usage_ceiling", "usage is at most min(1, tokens / codes)"),
        ("entropy_rate", "rate", "the entropy of an index is at most log2 of its codes"),
    ):
        if {low, high} <= line.cells.keys():
            (a, a_step), (b, b_step) = natural(line.cells[low]), natural(line.cells[high])
            if a - a_step > (b + b_step) * (1 + 1e-9):
                yield Finding(
                    level="impossible",
                    rule="counts",
                    place=line.key,
                    statement=f"{why[0].upper()}{why[1:]}.",
                    arithmetic=(f"{low} {a:g} > {high} {b:g}",),
                    cells=(line.cells[low], line.cells[high]),
                )


def index_bits(settings: Mapping[str, Setting]) -> float | None:
    """Return the bits of indices at one position, at least; None where the codes are unknown.

    `num_segments` indices of log2 K bits on a grid that β refines; one index where nothing is
    said, so that the number is a lower bound.
    """
    codes = _number(settings, "codebook_size")
    if codes is None or codes < 1:
        return None
    segments = _number(settings, "num_segments") or _number(settings, "num_codebooks") or 1.0
    beta = _number(settings, "beta") or 1.0
    return segments * beta**2 * math.log2(codes)


def bits_told(settings: Mapping[str, Setting]) -> str:
    """Return the arithmetic of `index_bits` in words."""
    codes = _number(settings, "codebook_size") or 0.0
    segments = _number(settings, "num_segments") or _number(settings, "num_codebooks") or 1.0
    beta = _number(settings, "beta") or 1.0
    square = f" · {beta:g}²" if beta != 1 else ""
    bits = index_bits(settings) or 0.0
    least = "" if settings.get("num_segments") else "at least "
    return f"{least}{segments:g}{square} · log2 {codes:g} = {bits:.4g} bits a position"


def _rates(dossier: Dossier, table: Table, lines: Sequence[Line]) -> Iterator[Finding]:
    """Rows that spend very different numbers of bits, in a table that does not show it."""
    rows = {line.row.number: line for line in lines}
    bits = {n: index_bits(dossier.settings(line)) for n, line in rows.items()}
    known = {n: value for n, value in bits.items() if value}
    hidden = any(set(_SPENT) & set(line.row.not_printed) for line in rows.values())
    if (
        table.kind == "text"
        or not hidden
        or len(known) < 2
        or max(known.values()) < UNEQUAL * min(known.values())
    ):
        return
    ends = [min(known, key=known.__getitem__), max(known, key=known.__getitem__)]
    yield Finding(
        level="caution",
        rule="rate",
        place=table.key,
        statement="Rows of very different rate stand side by side, and the table does not show "
        "how many indices they spend.",
        arithmetic=(
            *(
                f"{rows[n].row_key} ({rows[n].row.method}): {bits_told(dossier.settings(rows[n]))}"
                for n in ends
            ),
            f"factor {max(known.values()) / min(known.values()):.3g}",
        ),
    )


def _missing(dossier: Dossier, table: Table, lines: Sequence[Line]) -> Iterator[Finding]:
    """What a reader would have to know of each row: its codes, its indices, how FID was taken."""
    gaps: dict[str, dict[int, str]] = {}
    for line in lines:
        row, settings = line.row, dossier.settings(line)
        codes = settings.get("codebook_size")
        if codes is None or "codebook_size" in row.not_printed:
            taken = "unknown" if codes is None else f"taken as {codes}"
            gaps.setdefault("codebook size", {})[row.number] = f"{row.method}, {taken}"
        if all(settings.get(name) is None for name in ("num_segments", "tokens")):
            gaps.setdefault("number of indices (tokens or segments)", {})[row.number] = row.method
    if table.kind != "table":
        return
    for what, rows in gaps.items():
        yield Finding(
            level="caution",
            rule="missing",
            place=table.key,
            statement=f"The {what} does not stand in these rows; without it their rate is open.",
            arithmetic=(f"rows {'; '.join(f'{n} ({told})' for n, told in rows.items())}",),
        )
    modes = {line.row.number: line.row.settings.get("fid_mode") for line in lines}
    if len(set(modes.values())) > 1:
        yield Finding(
            level="caution",
            rule="fid-mode",
            place=table.key,
            statement="Rows of one column took their FID in different ways.",
            arithmetic=tuple(f"row {n}: {mode or 'not stated'}" for n, mode in modes.items()),
        )
