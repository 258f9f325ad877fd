"""What the rules read and what they find."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vqkit.ledger.cells import Cell, Row, Setting, Table

Level = Literal["impossible", "contradiction", "suspicion", "caution"]
LEVELS: dict[Level, str] = {
    "impossible": "no measurement can give these numbers",
    "contradiction": "two statements of the source cannot both be true",
    "suspicion": "the numbers alone speak against it; another explanation remains",
    "caution": "it may be right, but it cannot be compared or checked as printed",
}
"""Levels, gravest first."""

LABELS = frozenset({"config", "axis"})
"""Settings that name a row and change nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that cannot be, or is hard to believe, with its arithmetic."""

    level: Level
    rule: str
    place: str
    """Table or row: `looc/9/16/imagenet`."""
    statement: str
    """One sentence."""
    arithmetic: tuple[str, ...]
    cells: tuple[Cell, ...] = ()
    """The cells that were read."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; cells as key and printed number."""
        return {
            "level": self.level,
            "rule": self.rule,
            "place": self.place,
            "statement": self.statement,
            "arithmetic": list(self.arithmetic),
            "cells": {cell.key: cell.printed for cell in self.cells},
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A sentence of a source about its own cells, in our words, as data.

    Kinds and what they need: `value` (cells: one; says), `difference` (cells: two, the first less
    the second; says), `at_least` (cells; says), `better` (rows: the first better than each other;
    metrics, datasets), `monotone` (rows: each better than the one before; metrics, datasets),
    `setting` (rows: one; setting; says), `at_most` (rows: two; setting; says: largest ratio),
    `same_rate` (rows), `same_index_bits` (rows: two; the first has K' = K^(1/m) codes).
    """

    paper: str
    where: str
    text: str
    kind: str
    cells: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    setting: str = ""
    says: float = 0.0
    decimals: int = 0
    """Digits that `says` was printed with after the point."""
    reading: bool = False
    """The sentence is vaguer than this record; what speaks against it is only a suspicion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """The numbers of one row on one data set; dashes are left out."""

    table: Table
    row: Row
    dataset: str
    cells: Mapping[str, Cell]

    @property
    def key(self) -> str:
        """`looc/9/16/imagenet`."""
        return f"{self.row_key}/{self.dataset}"

    @property
    def row_key(self) -> str:
        """`looc/9/16`."""
        return f"{self.table.key}/{self.row.number}"

    def declared(self, metric: str, name: str) -> Setting:
        """Return what the source says on how a column was measured; None: nothing."""
        return self.table.column(metric).settings.get(name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dossier:
    """Everything that is checked together."""

    tables: tuple[Table, ...]
    claims: tuple[Claim, ...] = ()
    defaults: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)
    """`paper/system` -> settings that hold where a row states nothing else; the value `=dataset`
    stands for the data set of the cell."""

    def lines(self) -> Iterator[Line]:
        """Yield every row and data set that has a number, in printed order."""
        for table in self.tables:
            yield from lines_of(table)

    def settings(self, line: Line) -> dict[str, Setting]:
        """Return the settings that hold for a row: its own, else the defaults of its source."""
        stated = {k: v for k, v in line.row.settings.items() if k not in LABELS}
        for name, value in self.defaults.get(f"{line.table.paper}/{line.row.system}", {}).items():
            if stated.get(name) is None:
                stated[name] = line.dataset if value == "=dataset" else value
        return stated


def lines_of(table: Table) -> Iterator[Line]:
    """Yield every row and data set of a table that has a number."""
    for row in table.rows:
        for dataset in dict.fromkeys(cell.dataset for cell in row.cells):
            cells = {
                cell.metric: cell
                for cell in row.cells
                if cell.dataset == dataset and cell.value is not None
            }
            if cells:
                yield Line(table=table, row=row, dataset=dataset, cells=cells)


def natural(cell: Cell) -> tuple[float, float]:
    """Return a number and how far rounding may have moved it; percent become fractions."""
    assert cell.value is not None, "dashes are left out of lines"
    scale = 0.01 if cell.unit == "percent" else 1.0
    return cell.value * scale, cell.half_step * scale


def apart(a: Cell, b: Cell) -> bool:
    """Return whether two cells differ by more than their rounding explains."""
    (x, x_step), (y, y_step) = natural(a), natural(b)
    return abs(x - y) > (x_step + y_step) * (1 + 1e-9)


def better(a: Cell, b: Cell) -> float:
    """Return by how much `a` is better than `b` as printed; negative: worse."""
    x, y = natural(a)[0], natural(b)[0]
    lower = a.better == "lower" or (a.better is None and a.metric in LOWER)
    return y - x if lower else x - y


DISTANCES = frozenset({"l1", "l2", "lpips", "lpips_vgg", "lpips_alex", "fid", "rfid", "gfid"})
"""Metrics that are never negative and better when lower."""
LOWER = DISTANCES | {"kid"}
"""Metrics that are better when lower, where a table does not say. KID is estimated without bias and
may come out below 0."""


def digits(cell: Cell) -> int:
    """Return the printed digits that carry information: 0.7160 has four, 100 has one."""
    text = cell.printed.lstrip("-")
    text = text.replace(".", "") if "." in text else text.rstrip("0")
    return len(text.lstrip("0"))


def shown(cells: Iterable[Cell]) -> str:
    """Return `key = number` of several cells in one line."""
    return "; ".join(f"{cell.key} = {cell.printed}" for cell in cells)
