"""What was measured: the table of quality beside rate, its protocols, and the figures of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vqkit.evaluation import Evaluation
from vqkit.metrics.wording import percent
from vqkit.report.axes import named
from vqkit.report.markup import Content, Markup, heading, joined, tag
from vqkit.report.plots import RatePoint, rate_distortion
from vqkit.report.runs import Run


@dataclass(frozen=True, slots=True)
class Column:
    """A metric as a column."""

    name: str
    """Of the metric in an evaluation."""
    label: str
    unit: str
    digits: int
    direction: int
    """1: more is better, -1: less is, 0: neither; only then a best one is marked."""


COLUMNS: Final = (
    Column("rate", "nominal", "bits/pixel", 3, 0),
    Column("entropy_rate", "entropy", "bits/pixel", 3, 0),
    Column("psnr", "PSNR", "dB", 2, 1),
    Column("ssim", "SSIM", "", 4, 1),
    Column("l1", "l1", "", 5, -1),
    Column("l2", "l2", "", 6, -1),
    Column("lpips_vgg", "LPIPS VGG", "", 4, -1),
    Column("lpips_alex", "LPIPS Alex", "", 4, -1),
    Column("fid", "FID", "", 2, -1),
    Column("kid", "KID", "", 5, -1),
    Column("inception_score", "Inception Score", "", 2, 1),
    Column("usage", "codes used", "%", 1, 0),
    Column("perplexity", "perplexity", "codes", 1, 0),
)
"""Metrics that are known; others follow behind, with no best one marked."""
_APART: Final = ("usage_ceiling", "usage_uniform", "png_rate", "raw_rate")
"""Metrics of the images and of the number of tokens, which stand elsewhere."""
PLOTTED: Final = ("psnr", "ssim", "lpips_vgg", "lpips_alex", "fid")

Row = tuple[int, Run, Evaluation]
"""Number of the run, the run, and one of its evaluations."""


def measured(runs: Sequence[Run]) -> list[Row]:
    """Return every evaluation of every run; usual ones of all runs come before others."""
    rows = [(i, run, found) for i, run in enumerate(runs) for found in run.evaluations]
    return sorted(rows, key=lambda row: row[2] is not row[1].evaluation)


def value_of(found: Evaluation, name: str) -> float | None:
    """Return a metric, None where it was not measured or not defined."""
    return next((metric.value for metric in found.metrics if metric.name == name), None)


def protocols(rows: Sequence[Row]) -> list[Evaluation]:
    """Return one evaluation of every protocol, in the order of the marks [1], [2], ..."""
    return list({found.protocol.id: found for _, _, found in reversed(rows)}.values())[::-1]


def quality_table(runs: Sequence[Run]) -> Markup:
    """Draw the sortable table; runs without an evaluation have an empty row."""
    rows = measured(runs)
    columns = _columns(rows)
    marks = [found.protocol.id for found in protocols(rows)]
    body = [_row(row, rows, columns, marks) for row in rows]
    empty = [(i, run) for i, run in enumerate(runs) if not run.evaluations]
    body += [
        tag(
            "tr",
            _name(i, run),
            tag("td", "not measured", colspan=len(columns) + 1, class_="none text"),
        )
        for i, run in empty
    ]
    heads = [heading("run", "", "text"), *(heading(c.label, _unit(c)) for c in columns)]
    heads.append(heading("protocol", "", "text"))
    return tag(
        "div",
        tag(
            "table",
            tag("thead", tag("tr", *heads)),
            tag("tbody", *body),
            tag("tfoot", *_lossless_rows(rows, len(columns), marks)),
            class_="sortable",
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label="Quality and rate of every run",
    )


def protocol_list(runs: Sequence[Run]) -> Markup:
    """Say under which conditions the numbers of the table were measured."""
    items = [
        tag(
            "li",
            tag("b", f"[{number}] "),
            tag("code", found.protocol.id),
            f" {found.protocol.describe()}. Image set ",
            tag("code", found.protocol.reference[:12] or "unnamed"),
            f": {found.num_images:,} images, {found.num_pixels:,} pixels.",
        )
        for number, found in enumerate(protocols(measured(runs)), start=1)
    ]
    warning = "Rows with different marks were measured differently and cannot be compared."
    best = (
        "The best value of a column is marked, among runs that were measured alike. At different "
        "rates it ranks nothing: the figures below set quality against rate."
    )
    return joined(
        tag("p", warning, class_="warning") if len(items) > 1 else None,
        tag("p", best, class_="note") if len(runs) > 1 else None,
        tag("ul", *items, *_remarks(measured(runs)), class_="protocols"),
    )


def _remarks(rows: Sequence[Row]) -> list[Markup]:
    """Say what evaluations remark on their numbers, or why there is none; equal words once."""
    remarks: dict[tuple[str, str], list[str]] = {}
    for _, run, found in rows:
        for metric in found.metrics:
            if metric.note:
                remarks.setdefault((metric.name, metric.note), []).append(run.name)
    labels = {column.name: column.label for column in COLUMNS}
    return [
        tag("li", tag("b", labels.get(name, name)), f" of {', '.join(names)}: {note}")
        for (name, note), names in remarks.items()
    ]


def rate_figures(runs: Sequence[Run]) -> Markup:
    """Draw quality over rate, a figure for every protocol and metric that two evaluations share."""
    rows = measured(runs)
    figures = []
    for number, example in enumerate(protocols(rows), start=1):
        alike = [row for row in rows if row[2].protocol.id == example.protocol.id]
        for name in PLOTTED:
            column = next(c for c in COLUMNS if c.name == name)
            points = rate_points(alike, name)
            if points:
                drawn = rate_distortion(
                    points,
                    _references(alike[0][2]),
                    quality=column.label,
                    unit=column.unit,
                    direction=column.direction,
                )
                caption = f"{column.label} over rate, protocol [{number}]"
                figures.append(tag("figure", drawn, tag("figcaption", caption)))
    if not figures:
        return tag("p", "No run was measured, so there is nothing to draw.", class_="none")
    return tag("div", *figures, class_="figures")


def rate_points(rows: Sequence[Row], name: str) -> list[RatePoint]:
    """Return the rows that have a metric as points over their rate."""
    points = []
    for number, run, found in rows:
        quality, rate = value_of(found, name), value_of(found, "rate")
        if quality is not None and rate is not None:
            points.append(
                RatePoint(
                    number=number,
                    name=run.name,
                    rate=rate,
                    entropy_rate=value_of(found, "entropy_rate"),
                    quality=quality,
                )
            )
    return points


def _references(found: Evaluation) -> list[tuple[str, float]]:
    named = (("PNG", "png_rate"), ("raw", "raw_rate"))
    values = [(label, value_of(found, name)) for label, name in named]
    return [(label, value) for label, value in values if value is not None]


def _columns(rows: Sequence[Row]) -> list[Column]:
    """Known metrics that any evaluation has, then the others by name."""
    metrics = {metric.name: metric for _, _, found in rows for metric in found.metrics}
    known = {column.name for column in COLUMNS} | set(_APART)
    others = [
        Column(metric.name, metric.name.replace("_", " "), metric.unit, 4, 0)
        for metric in metrics.values()
        if metric.name not in known
    ]
    return [*(column for column in COLUMNS if column.name in metrics), *others]


def _unit(column: Column) -> str:
    arrow = {1: "↑", -1: "↓", 0: ""}[column.direction]
    return f"{column.unit} {arrow}".strip()


def _name(number: int, run: Run) -> Markup:
    return tag("th", named(number, run.name), scope="row", data_v=run.name)


def _row(row: Row, rows: Sequence[Row], columns: Sequence[Column], marks: list[str]) -> Markup:
    number, run, found = row
    alike = [other for _, _, other in rows if other.protocol.id == found.protocol.id]
    cells = [_cell(found, column, alike) for column in columns]
    mark = marks.index(found.protocol.id) + 1
    cells.append(tag("td", f"[{mark}]", class_="text", data_v=mark, title=found.protocol.id))
    return tag("tr", _name(number, run), *cells)


def _cell(found: Evaluation, column: Column, alike: Sequence[Evaluation]) -> Markup:
    value = value_of(found, column.name)
    if value is None:
        why = next((m.note for m in found.metrics if m.name == column.name), "")
        return tag("td", "–", class_="none", title=why or "not measured")
    others = [v for one in alike if (v := value_of(one, column.name)) is not None]
    best = column.direction and len(others) > 1
    best = best and value == (max(others) if column.direction > 0 else min(others))
    words: Content = f"{value:,.{column.digits}f}"
    note = None
    spread = next((m.spread for m in found.metrics if m.name == column.name), None)
    if spread:
        words = joined(words, tag("small", f" ± {spread:,.{column.digits}f}"))
    if column.name == "usage":
        words, note = percent(value, unit=""), _usage_note(found)
    elif column.name == "perplexity":
        words, note = _perplexity(found, value)
    look = {"class_": "best"} if best else {}
    return tag("td", words, tag("span", " best", class_="unseen") if best else None,
               data_v=repr(value), title=note, **look)  # fmt: skip


def _perplexity(found: Evaluation, value: float) -> tuple[Markup, str | None]:
    sizes = {book.num_codes for book in found.books}
    of = f" of {sizes.pop():,}" if len(sizes) == 1 else ""
    several = f"mean over {len(found.books)} codebooks" if len(found.books) > 1 else None
    return joined(f"{value:,.1f}", tag("small", of)), several


def _usage_note(found: Evaluation) -> str:
    ceiling, uniform = value_of(found, "usage_ceiling"), value_of(found, "usage_uniform")
    if ceiling is None or uniform is None:
        return f"{found.num_tokens:,} tokens"
    return (
        f"{found.num_tokens:,} tokens can show at most {percent(ceiling)}; "
        f"as many uniform draws show {percent(uniform)}"
    )


def _lossless_rows(rows: Sequence[Row], num_columns: int, marks: list[str]) -> list[Markup]:
    """Rows of what is lossless, one for every set of images."""
    found = []
    for mark, example in enumerate(protocols(rows), start=1):
        for label, rate in _references(example):
            words = {"PNG": "PNG, lossless", "raw": "raw pixels"}[label]
            cells = [
                tag("td", f"{rate:,.3f}"),
                tag("td", "exact", colspan=num_columns - 1, class_="text"),
            ]
            end = tag("td", f"[{mark}]" if len(marks) > 1 else "", class_="text")
            found.append(tag("tr", tag("th", words, scope="row"), *cells, end))
    return found
