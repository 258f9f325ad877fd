"""Sentences of a source against its own cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from vqkit.config.core import require
from vqkit.ledger.cells import Cell
from vqkit.ledger.lint.counts import bits_told, index_bits
from vqkit.ledger.lint.findings import (
    Claim,
    Dossier,
    Finding,
    Level,
    Line,
    apart,
    better,
    shown,
)

EQUAL_RATE = 1.05
"""Factor up to which two rates count as the same."""


@dataclass(frozen=True, slots=True)
class _Against:
    """What speaks against a claim; nothing, if `arithmetic` is empty."""

    arithmetic: tuple[str, ...] = ()
    cells: tuple[Cell, ...] = ()
    level: Level = "contradiction"


class _Records:
    """Cells and rows by key, for claims that point at them."""

    def __init__(self, dossier: Dossier) -> None:
        self.dossier = dossier
        self.lines = list(dossier.lines())
        self.cells = {cell.key: cell for line in self.lines for cell in line.cells.values()}

    def cell(self, key: str) -> Cell:
        require(key in self.cells, f"claim: cell={key}", "no such number in the tables given")
        return self.cells[key]

    def rows(self, key: str, claim: Claim) -> dict[str, Line]:
        """Lines of a row by data set, those that the claim is about."""
        found = {x.dataset: x for x in self.lines if x.row_key == key}
        require(bool(found), f"claim: row={key}", "no such row in the tables given")
        return {k: v for k, v in found.items() if not claim.datasets or k in claim.datasets}


def claim_rules(dossier: Dossier) -> Iterator[Finding]:
    """Yield the claims that the cells do not bear out."""
    records = _Records(dossier)
    for claim in dossier.claims:
        _check(claim)
        against = _KINDS[claim.kind](records, claim)
        if against.arithmetic:
            level: Level = "suspicion" if claim.reading else against.level
            yield Finding(
                level=level,
                rule=f"claim-{claim.kind}",
                place=f"{claim.paper}, {claim.where}",
                statement=f"The text says: {claim.text} Its cells do not bear this out.",
                arithmetic=against.arithmetic,
                cells=against.cells,
            )


def _check(claim: Claim) -> None:
    require(claim.kind in _KINDS, f"claim: kind={claim.kind!r}", f"known: {', '.join(_KINDS)}")
    what, least, most = _NEEDS[claim.kind]
    given = len(getattr(claim, what))
    needed = f"exactly {least}" if least == most else f"at least {least}"
    require(least <= given <= most, f"claim: {claim.kind}: {what}={given}", f"needs {needed}")


def _step(claim: Claim) -> float:
    return 0.5 * 10.0**-claim.decimals


def _value(records: _Records, claim: Claim) -> _Against:
    cell = records.cell(claim.cells[0])
    assert cell.value is not None, "dashes are left out of lines"
    if abs(cell.value - claim.says) <= (cell.half_step + _step(claim)) * (1 + 1e-9):
        return _Against()
    twins = [
        x
        for x in records.cells.values()
        if (x.paper, x.table, x.metric) == (cell.paper, cell.table, cell.metric)
        and x.value is not None
        and abs(x.value - claim.says) <= _step(claim) + x.half_step
    ]
    hint = (f"{claim.says:g} is the number of another row: {shown(twins)}",) if twins else ()
    return _Against((f"{shown((cell,))}, not {claim.says:g}", *hint), (cell, *twins))


def _difference(records: _Records, claim: Claim) -> _Against:
    """Contradicted outside the rounding of both cells; doubtful where only its edge allows it."""
    one, two = (records.cell(key) for key in claim.cells)
    assert one.value is not None, "dashes are left out of lines"
    assert two.value is not None, "dashes are left out of lines"
    gap, slack = abs(one.value - two.value), one.half_step + two.half_step
    text = f"{one.key} - {two.key} = {one.printed} - {two.printed} = {one.value - two.value:.4g}"
    off = abs(gap - abs(claim.says))
    if off > (slack + _step(claim)) * (1 + 1e-9):
        least, most = max(gap - slack, 0.0), gap + slack
        return _Against(
            (f"{text}; with rounding {least:.4g} to {most:.4g}, not {claim.says:g}",), (one, two)
        )
    if off > 0.8 * slack + _step(claim):
        edge = f"{text}; {claim.says:g} only if both numbers lie at the edge of rounding"
        return _Against((edge,), (one, two), "suspicion")
    return _Against()


def _at_least(records: _Records, claim: Claim) -> _Against:
    cells = [records.cell(key) for key in claim.cells]
    low = [x for x in cells if x.value is not None and x.value + x.half_step < claim.says]
    return _Against(tuple(f"{shown((x,))} < {claim.says:g}" for x in low), tuple(low))


def _better(records: _Records, claim: Claim) -> _Against:
    own, *others = (records.rows(key, claim) for key in claim.rows)
    found = [pair for other in others for pair in _lost(own, other, claim)]
    return _not_better(found)


def _monotone(records: _Records, claim: Claim) -> _Against:
    rows = [records.rows(key, claim) for key in claim.rows]
    found = [pair for before, after in pairwise(rows) for pair in _lost(after, before, claim)]
    return _not_better(found)


def _lost(
    own: dict[str, Line], other: dict[str, Line], claim: Claim
) -> Iterator[tuple[Cell, Cell]]:
    """Yield the pairs of cells in which the row that should be better is worse."""
    for dataset, line in own.items():
        for metric in claim.metrics:
            a = line.cells.get(metric)
            b = other[dataset].cells.get(metric) if dataset in other else None
            if a and b and apart(a, b) and better(a, b) < 0:
                yield a, b


def _not_better(found: list[tuple[Cell, Cell]]) -> _Against:
    return _Against(
        tuple(f"{a.key} = {a.printed} is worse than {b.key} = {b.printed}" for a, b in found),
        tuple(cell for pair in found for cell in pair),
    )


def _setting(records: _Records, claim: Claim) -> _Against:
    line = next(iter(records.rows(claim.rows[0], claim).values()))
    printed = records.dossier.settings(line).get(claim.setting)
    if printed is None or printed == claim.says:
        return _Against()
    return _Against(
        (f"{claim.rows[0]} prints {claim.setting} {printed}, the text {claim.says:g}",),
        tuple(line.cells.values()),
    )


def _size(records: _Records, claim: Claim, row: str) -> tuple[float, str]:
    """Entries of all codebooks (`codebook_size`), or the numbers in them (`numbers`)."""
    settings = records.dossier.settings(next(iter(records.rows(row, claim).values())))
    names = ["codebook_size", "num_codebooks"]
    names += ["codevector_dim"] if claim.setting == "numbers" else []
    factors = [float(settings.get(name) or 1) for name in names]
    size = factors[0] * factors[1] * (factors[2] if len(factors) > 2 else 1)
    return size, " · ".join(f"{x:g}" for x in factors if x != 1)


def _at_most(records: _Records, claim: Claim) -> _Against:
    (own, told), (other, theirs) = (_size(records, claim, row) for row in claim.rows)
    if own / other <= claim.says * (1 + 1e-9):
        return _Against()
    return _Against((f"({told}) / ({theirs}) = {own / other:.4g} > {claim.says:g}",))


def _same_rate(records: _Records, claim: Claim) -> _Against:
    settings = {
        row: records.dossier.settings(next(iter(records.rows(row, claim).values())))
        for row in claim.rows
    }
    bits = {row: index_bits(stated) for row, stated in settings.items()}
    known = [value for value in bits.values() if value]
    if not known or max(known) <= EQUAL_RATE * min(known):
        return _Against()
    return _Against(tuple(f"{row}: {bits_told(settings[row])}" for row in claim.rows if bits[row]))


def _same_index_bits(records: _Records, claim: Claim) -> _Against:
    """K' = K^(1/m) codes for m segments; a codebook has at least two entries."""
    own, other = (
        records.dossier.settings(next(iter(records.rows(row, claim).values())))
        for row in claim.rows
    )
    segments, codes = float(own.get("num_segments") or 1), float(other.get("codebook_size") or 1)
    needed = codes ** (1 / segments)
    if needed >= 2:
        return _Against()
    return _Against(
        (
            f"K = {codes:g} ({claim.rows[1]}) and m = {segments:g} ({claim.rows[0]}) give K' = "
            f"{codes:g}^(1/{segments:g}) = {needed:.3f} codes; with the least possible 2 the "
            f"indices take {segments:g} bits a position against log2 {codes:g} = "
            f"{index_bits({'codebook_size': codes}):.4g}",
            f"as printed: {claim.rows[0]} takes {bits_told(own)}",
        ),
        level="impossible",
    )


_MANY = 10_000
_NEEDS = {
    "value": ("cells", 1, 1),
    "difference": ("cells", 2, 2),
    "at_least": ("cells", 1, _MANY),
    "better": ("rows", 2, _MANY),
    "monotone": ("rows", 2, _MANY),
    "setting": ("rows", 1, 1),
    "at_most": ("rows", 2, 2),
    "same_rate": ("rows", 2, _MANY),
    "same_index_bits": ("rows", 2, 2),
}
"""What a claim of each kind points at: cells or rows, how many at least and at most."""

_KINDS: dict[str, Callable[[_Records, Claim], _Against]] = {
    "value": _value,
    "difference": _difference,
    "at_least": _at_least,
    "better": _better,
    "monotone": _monotone,
    "setting": _setting,
    "at_most": _at_most,
    "same_rate": _same_rate,
    "same_index_bits": _same_index_bits,
}
