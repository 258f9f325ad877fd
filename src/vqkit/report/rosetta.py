"""What the protocol alone does to the numbers: the same reconstructions, measured in other ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vqkit.report.axes import named
from vqkit.report.markup import Markup, joined, tag
from vqkit.report.quality import COLUMNS
from vqkit.report.runs import Run


def rosetta_section(runs: Sequence[Run]) -> Markup | None:
    """Draw a table for every `rosetta.json` of every run; None if there is none."""
    tables = [_table(i, run, one) for i, run in enumerate(runs) for one in run.rosettas]
    if not tables:
        return None
    listed: dict[str, str] = {}
    for found in (one for run in runs for one in run.rosettas):
        listed |= {one["id"]: one["measures"] for one in found["protocols"]}
    meanings = [tag("li", tag("code", name), f" {words}.") for name, words in listed.items()]
    lead = (
        "Each table measures one and the same set of reconstructions as several papers do. In "
        "brackets: the difference from the first column, which is due to the protocol alone."
    )
    return joined(tag("p", lead, class_="note"), *tables, tag("ul", *meanings, class_="protocols"))


def _table(number: int, run: Run, found: dict[str, Any]) -> Markup:
    names = [one["name"] for one in found["protocols"]]
    digits = {column.name: (column.label, column.digits) for column in COLUMNS}
    rows = []
    for row in found["rows"]:
        label, places = digits.get(row["metric"], (row["metric"].replace("_", " "), 4))
        cells = [_cell(row["cells"].get(name), i, places) for i, name in enumerate(names)]
        rows.append(tag("tr", tag("th", label, scope="row"), *cells))
    heads = [tag("th", named(number, run.name), class_="text", scope="col")]
    heads += [tag("th", name, scope="col") for name in names]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows))
    label = f"{run.name} under {len(names)} protocols"
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def _cell(found: dict[str, Any] | None, column: int, places: int) -> Markup:
    if found is None or found["value"] is None:
        why = (found or {}).get("note") or "not measured"
        return tag("td", "–", class_="none", title=why)
    moved = found.get("deviation")
    beside = None if not column or moved is None else tag("small", f" ({moved:+.{places}f})")
    return tag("td", f"{found['value']:,.{places}f}", beside)
