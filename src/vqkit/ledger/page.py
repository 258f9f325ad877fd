"""The ledger as a page for people, and as JSON beside it; both are made, never edited."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from vqkit.ledger.cells import Cell, Table
from vqkit.ledger.entries import (
    DATA_NAMES,
    OTHER_PIXELS,
    STATUSES,
    TRAINING_IMAGES,
    Entry,
    Seen,
    entries,
)
from vqkit.ledger.observed import Observation
from vqkit.ledger.plans import protocol_of
from vqkit.ledger.published import PAPERS, tables
from vqkit.ledger.targets import target_of
from vqkit.metrics.protocol import DEFAULT
from vqkit.metrics.wording import percent
from vqkit.weights import KNOWN

FORMAT: Final = "vqkit-ledger-1"
_DECIMALS: Final = {"psnr": 2, "ssim": 4, "l1": 4, "l2": 4, "lpips": 4, "rfid": 2, "gfid": 2}
_UNITS: Final = {"dB": "dB", "percent": "%"}
_HEADS: Final = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "rfid": "rFID",
    "gfid": "gFID",
    "utilization": "usage",
    "segments_below_90pct": "segments ≤ 90 %",
    "sharing_segments_min": "shared by at least",
    "sharing_segments_most": "most shared by",
    "top1": "top-1",
    "top1_margin": "margin",
}


def write_page(path: Path, observations: Sequence[Observation]) -> list[Path]:
    """Write the page, and `<its name>.json` with every entry; return both paths."""
    from vqkit.models.files import write_beside

    found = entries(observations)
    values = {
        "format": FORMAT,
        "runs": {one.name: _run_facts(one) for one in observations},
        "entries": [entry.to_dict() for entry in found],
    }
    head, _, rest = json.dumps(values, allow_nan=False).partition('"entries": [')
    lines = rest.replace('}, {"cell"', '},\n{"cell"')
    content = f'{head}"entries": [\n{lines}\n'
    return [
        write_beside(path, page(found, observations).encode()),
        write_beside(path.with_suffix(".json"), content.encode()),
    ]


def page(found: Sequence[Entry], observations: Sequence[Observation]) -> str:
    """Return the ledger as Markdown: counts, runs, then every table of the three papers."""
    by_key = {entry.cell.key: entry for entry in found}
    blocks = [_introduction(), _counts(found), _runs(observations), *_segments(observations)]
    for paper, title in PAPERS.items():
        blocks += [f"## {title}", *_NOTES.get(paper, ())]
        blocks += [_table(table, by_key) for table in tables() if table.paper == paper]
    return "\n\n".join(blocks) + "\n"


def _run_facts(one: Observation) -> dict[str, Any]:
    """Return what the entries say of a run only by its name."""
    names = "recipe options data_set test_set num_steps published_steps batch_size"
    names += " published_batch_size seed train_seconds bits_per_pixel"
    return {name: getattr(one, name) for name in names.split()}


_INTRODUCTION: Final = """\
# Reproduction ledger

Made by `vqkit reproduce --page`; do not edit. Every number that the three papers print stands here,
with what was observed instead, or what it takes to observe it. How to read and fill it:
[reproduction.md](../reproduction.md). As data, one entry per cell: the JSON file beside this page.

A cell reads *printed → observed under the paper's protocol (difference) · under
`vqkit-default-1`*; **bold** is observed. LooC's rows of 256 × 256 pixels have only the latter and
no difference, because the paper's protocol is not known. The length of the run is part of the
number and stands in the row: below the published length it says how far training got, not that a
paper is wrong. *q*: the paper quotes the row. What a row needs, in short: *images*, its data set
([datasets.md](../datasets.md)); *codebook*, made by [vqkit codebook](../codebooks.md); GPU hours by
arithmetic from the recipe; and weights ([weights.md](../weights.md)):

{weights}"""
_NOTES: Final = {
    "looc": (
        "Figures 1 and 6 print no numbers: they draw the runs of Tables 3 to 5. Those of Figures "
        "5, 7 and 8 stand in the text, and those of all runs here in the table of segments above.",
    )
}
"""What a paper's tables leave out."""
_WORDS: Final[Mapping[str, str]] = {
    "inception": "Inception",
    "vgg16": "VGG",
    "lpips_vgg": "VGG",
    "alexnet": "Alex",
    "lpips_alex": "Alex",
}
"""Weights in a word; of one word, all files are needed."""


def _introduction() -> str:
    uses = {"Inception": "for rFID", "VGG": "to train with LPIPS, and for LPIPS"}
    lines = []
    for word in dict.fromkeys(_WORDS.values()):
        files = " and ".join(f"`{KNOWN[name].file}`" for name in _WORDS if _WORDS[name] == word)
        lines.append(f"- *{word}*: {files}, {uses.get(word, 'for the LPIPS of VQGAN-LC')}")
    return _INTRODUCTION.format(weights="\n".join(lines))


def _counts(found: Sequence[Entry]) -> str:
    lines = ["| entries | cells | meaning |", "|:--|--:|:--|"]
    counts = Counter(entry.status for entry in found)
    lines += [f"| {name} | {counts[name]:,} | {meaning} |" for name, meaning in STATUSES.items()]
    return "\n".join([*lines, f"| all | {len(found):,} | |"])


def _runs(observations: Sequence[Observation]) -> str:
    if not observations:
        return "## Runs\n\nNone yet."
    lines = [
        "## Runs",
        "",
        "| run | images | steps, batch, seed | hardware | seconds | bits per pixel "
        "| codebook floats | protocols |",
        "|:--|:--|:--|:--|--:|--:|--:|:--|",
    ]
    for one in observations:
        names = ", ".join(f"`{measured.protocol_id}`" for measured in one.measurements)
        images = DATA_NAMES[one.test_set] + (" (other pixels)" if one.other_pixels else "")
        lines.append(
            f"| `{one.name}` | {images} | {one.length} | {one.hardware} | {one.train_seconds:,.0f} "
            f"| {one.bits_per_pixel:.4g} | {one.codebook_floats:,} | {names} |"
        )
    return "\n".join(lines)


def _segments(observations: Sequence[Observation]) -> list[str]:
    """Return usage and sharing of every run whose segments share a codebook (Figures 7 and 8)."""
    rows = [one for one in observations if one.segments is not None]
    if not rows:
        return []
    lines = [
        "### Segments that share a codebook (LooC, Figures 5, 7 and 8)",
        "",
        "Over all test images. A segment uses a code that it draws at least once. *Most codes by*: "
        "more than half of the codes are shared by at least so many segments.",
        "",
        "| run | usage, all segments | usage of a segment, least to most | segments with not above "
        "90 % | codes shared by at least | most codes by |",
        "|:--|--:|:--|--:|--:|--:|",
    ]
    for one in rows:
        counts = one.segments or {}
        shares, segments = counts["usage"], counts["num_segments"]
        usage = one.measurements[0].values["usage"]
        lines.append(
            f"| `{one.name}` | {'–' if usage is None else percent(usage)} | "
            f"{percent(min(shares))} to {percent(max(shares))} "
            f"| {counts['segments_below_90pct']} of {segments} "
            f"| {counts['sharing_segments_min']} of {segments} "
            f"| {counts['sharing_segments_most']} of {segments} |"
        )
    return ["\n".join(lines)]


def _table(table: Table, by_key: Mapping[str, Entry]) -> str:
    cells = table.cells
    metrics = [c.metric for c in table.columns if any(x.metric == c.metric for x in cells)]
    heads = []
    for metric in metrics:
        unit = _UNITS.get(table.column(metric).unit)
        heads.append(_HEADS.get(metric, metric) + (f", {unit}" if unit else ""))
    title = {"figure": "Figure ", "text": "Numbers in the text"}.get(table.kind, "Table ")
    number = "" if table.kind == "text" else table.table.removeprefix("Fig")
    lines = [f"### {PAPERS[table.paper]}, {title}{number}", "", table.caption, ""]
    lines.append(f"Command: `vqkit reproduce {target_of(table.paper, table.table)}`.")
    lines += ["", "| row | method | images | " + " | ".join(heads) + " | run, or what is missing |"]
    lines.append("|--:|:--|:--|" + "--:|" * len(metrics) + ":--|")
    for row in table.rows:
        for dataset in dict.fromkeys(cell.dataset for cell in row.cells):
            found = {c.metric: by_key[c.key] for c in row.cells if c.dataset == dataset}
            shown = [_cell(found[metric]) if metric in found else "" for metric in metrics]
            method = f"{row.method}{_size(row.cells[0])}{' *q*' if row.quoted else ''}"
            lines.append(
                f"| {row.number} | {method} | {DATA_NAMES[dataset]} | {' | '.join(shown)} "
                f"| {_remarks(list(found.values()))} |"
            )
    return "\n".join(lines)


def _size(cell: Cell) -> str:
    codes, dim = cell.settings.get("codebook_size"), cell.settings.get("codevector_dim")
    if codes is None or str(codes) in cell.method:
        return ""
    return f", {codes:,}×{dim}" if dim is not None else f", {codes:,}"


def _cell(entry: Entry) -> str:
    """Return a cell of the page: printed, and the longest run's values if there are any."""
    cell = entry.cell
    if not entry.seen:
        return cell.printed
    shown = (protocol_of(cell), DEFAULT.name)
    first = [
        one
        for one in entry.seen
        if one.run == _chosen(entry).run and one.protocol.partition(":")[0] in shown
    ]
    values = " · ".join(_value(cell, one) for one in first)
    return f"{cell.printed} → {values}" if values else cell.printed


def _value(cell: Cell, one: Seen) -> str:
    digits = _DECIMALS.get(cell.metric, cell.decimals)
    digits = digits - 2 if cell.unit == "percent" and cell.metric == "ssim" else digits
    shown = f"**{one.value:.{digits}f}**"
    if one.difference is None:
        return shown
    return f"{shown} ({one.difference:+.{digits}f})"


def _chosen(entry: Entry) -> Seen:
    """Return the value that the page shows: of the printed pixels if there are any."""
    comparable = [one for one in entry.seen if one.difference is not None]
    real = [one for one in entry.seen if one.note != OTHER_PIXELS]
    return (comparable or real or list(entry.seen))[0]


def _remarks(found: Sequence[Entry]) -> str:
    """Return the run behind a row's numbers, and what the other cells are missing."""
    remarks = []
    for entry in found:
        for one in entry.seen:
            if one.run == _chosen(entry).run:
                pixels = f" on {DATA_NAMES[one.data_set]}" if one.note == OTHER_PIXELS else ""
                bits = f"{one.bits_per_pixel:.4g} bits per pixel"
                remarks.append(f"`{one.run}`{pixels}: {bits}, {one.length}")
                if one.note == TRAINING_IMAGES:
                    remarks.append(one.note)
    needs = [_short(need, entry.cell) for entry in found for need in entry.missing]
    if needs:
        lead = "" if needs[0].endswith(_COMPLETE) else "needs "
        remarks.append(lead + ", ".join(dict.fromkeys(needs)))
    return "; ".join(dict.fromkeys(remarks)) or "–"


_COMPLETE: Final = ("is not in vqkit", "is not among the recipes", "and protocol")
"""How reasons end that are sentences of their own."""


def _short(need: str, cell: Cell) -> str:
    """Return a need in the words that the introduction explains."""
    if need == f"data set {DATA_NAMES[cell.dataset]}":
        return "images"
    if need.startswith("codebook "):
        return f"codebook `{Path(need.removeprefix('codebook ')).stem}`"
    files = {KNOWN[name].file: word for name, word in _WORDS.items()}
    return next((word for file, word in files.items() if file in need), need)
