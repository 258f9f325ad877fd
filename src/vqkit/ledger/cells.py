"""Tables of printed numbers: cells with their settings, read from one JSON form.

The form holds the published tables (`published.json`), and people's own tables for the linter;
docs/linter.md describes it. A number keeps the digits it was written with, because how far it may
be off by rounding depends on them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from vqkit.config.core import require

FORMAT = "vqkit-tables-1"

Setting = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """What a column of a table measures."""

    metric: str
    """`psnr`, `ssim`, `l1`, `l2`, `lpips`, `rfid`, `gfid`, `utilization`, `top1`, ..."""
    unit: str = "none"
    """`dB`, `percent`, `fraction`, `none`, ..."""
    better: str | None = None
    """`lower` or `higher`."""
    task: str | None = None
    printed: str | None = None
    """Heading in the source; None where it is lost."""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    """How this column was measured, where the source says so: `pixel_range` (highest less lowest
    pixel value), `data_range` (the constant that SSIM or PSNR was given), `mean` (`images` or
    `set`), `num_images`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One printed number and everything needed to read it."""

    paper: str
    table: str
    row: int
    """From 1, in printed order."""
    dataset: str
    metric: str
    value: float | None
    """None where the source has a dash or a blank."""
    decimals: int
    """Digits printed after the point."""
    unit: str
    better: str | None
    method: str
    """As printed."""
    system: str
    """The same method under one name over all tables."""
    quoted: bool
    """The source copied the number; it did not train this system."""
    settings: Mapping[str, Setting]
    """`codebook_size` (of one codebook), `codevector_dim`, `num_segments` (indices a position),
    `num_codebooks` (absent: 1), `tokens`, `beta`, ...; None: unknown; absent: not stated."""

    @property
    def key(self) -> str:
        """Name of the cell in every table of vqkit: `looc/5/3/mnist/psnr`."""
        return f"{self.row_key}/{self.dataset}/{self.metric}"

    @property
    def row_key(self) -> str:
        """Name of the row: `looc/5/3`."""
        return f"{self.paper}/{self.table}/{self.row}"

    @property
    def printed(self) -> str:
        """The number with its printed digits; a dash where there is none."""
        return "–" if self.value is None else f"{self.value:.{self.decimals}f}"

    @property
    def half_step(self) -> float:
        """How far rounding may have moved the number."""
        return 0.5 * 10.0**-self.decimals


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a table: a system under some settings."""

    number: int
    method: str
    system: str
    quoted: bool
    settings: Mapping[str, Setting]
    not_printed: tuple[str, ...]
    """Settings that do not stand in the row itself: stated elsewhere, derived, or unknown."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One table, or the numbers of one figure or of running text."""

    paper: str
    table: str
    """The printed number, as text: `5`, `S1`, `Fig1`, `text`."""
    kind: str = "table"
    """`table`, `figure` or `text`."""
    caption: str = ""
    task: str | None = None
    protocol: str | None = None
    """What the source says on how it measured."""
    remarks: tuple[str, ...] = ()
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def key(self) -> str:
        """`looc/5`."""
        return f"{self.paper}/{self.table}"

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, row by row."""
        return tuple(cell for row in self.rows for cell in row.cells)

    def column(self, metric: str) -> Column:
        """Return a column by the name of its metric; an unknown one is a `ValueError`."""
        for column in self.columns:
            if column.metric == metric:
                return column
        known = ", ".join(column.metric for column in self.columns)
        raise ValueError(f"metric={metric!r}: not in table {self.key}; known are {known}")


def read_json(text: str) -> dict[str, Any]:
    """Parse JSON and keep the printed digits: numbers with a point become `Decimal`."""
    content = json.loads(text, parse_float=Decimal)
    require(isinstance(content, dict), "tables", "expected a JSON object; see docs/linter.md")
    return dict(content)


def tables_of(content: dict[str, Any]) -> tuple[Table, ...]:
    """Build the tables of a parsed file (`read_json`); what does not fit is a `ValueError`."""
    written = content.get("format")
    require(written == FORMAT, f"format={written!r}", f"expected {FORMAT!r}; see docs/linter.md")
    tables = []
    for number, values in enumerate(content.get("tables", ()), start=1):
        try:
            tables.append(_table(values))
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"{type(error).__name__} {error}; see docs/linter.md for the form"
            raise ValueError(f"tables[{number}]: {problem}") from error
    keys = [table.key for table in tables]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    require(not twice, f"tables={', '.join(twice)}", "named twice; number them apart")
    return tuple(tables)


def _table(values: dict[str, Any]) -> Table:
    columns = tuple(
        Column(**{**column, "settings": _plain(column.get("settings", {}))})
        for column in values["columns"]
    )
    where = (str(values["paper"]), str(values["table"]))
    rows = tuple(
        _row(*where, number, row, columns) for number, row in enumerate(values["rows"], start=1)
    )
    return Table(
        paper=where[0],
        table=where[1],
        kind=values.get("kind", "table"),
        caption=values.get("caption", ""),
        task=values.get("task"),
        protocol=values.get("protocol"),
        remarks=tuple(values.get("remarks", ())),
        columns=columns,
        rows=rows,
    )


def _row(
    paper: str, table: str, number: int, values: dict[str, Any], columns: tuple[Column, ...]
) -> Row:
    method = values["method"]
    system, quoted = values.get("system", method), bool(values.get("quoted", False))
    settings = _plain(values.get("settings", {}))
    known = {column.metric: column for column in columns}
    cells = []
    for dataset, metrics in values["values"].items():
        for metric, value in metrics.items():
            place = f"{paper}/{table}/{number}/{dataset}/{metric}"
            require(metric in known, place, f"no such column; known are {', '.join(known)}")
            cell = Cell(
                paper=paper,
                table=table,
                row=number,
                dataset=dataset,
                metric=metric,
                value=_number(place, value),
                decimals=_decimals(value),
                unit=known[metric].unit,
                better=known[metric].better,
                method=method,
                system=system,
                quoted=quoted,
                settings=settings,
            )
            cells.append(cell)
    return Row(
        number=number,
        method=method,
        system=system,
        quoted=quoted,
        settings=settings,
        not_printed=tuple(values.get("not_printed", ())),
        cells=tuple(cells),
    )


def _number(place: str, value: Any) -> float | None:
    numeric = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    require(value is None or numeric, f"{place}={value!r}", "expected a number or null")
    return None if value is None else float(value)


def _decimals(value: Any) -> int:
    """Return the digits written after the point; a float was never written, so it has all."""
    if isinstance(value, float):
        return 17
    exponent = Decimal(value or 0).as_tuple().exponent
    return max(0, -int(exponent))


def _plain(values: dict[str, Any]) -> dict[str, Setting]:
    return {k: float(v) if isinstance(v, Decimal) else v for k, v in values.items()}
