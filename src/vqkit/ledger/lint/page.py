"""Findings in words: lines for the terminal, and a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from vqkit.ledger.cells import Cell
from vqkit.ledger.lint.findings import LEVELS, Dossier, Finding
from vqkit.ledger.published import OTHERS, PAPERS


def lines(findings: Sequence[Finding]) -> str:
    """Return every finding with its arithmetic and the cells it read, for the terminal."""
    blocks = []
    for finding in findings:
        told = [f"{finding.level}: {finding.place} [{finding.rule}]", f"  {finding.statement}"]
        told += [f"    {line}" for line in finding.arithmetic]
        if finding.cells:
            told.append(f"    read: {'; '.join(read(finding.cells))}")
        blocks.append("\n".join(told))
    return "\n\n".join(blocks)


def summary(dossier: Dossier, findings: Sequence[Finding]) -> str:
    """Return one line of counts."""
    numbers = sum(cell.value is not None for table in dossier.tables for cell in table.cells)
    counts = Counter(finding.level for finding in findings)
    found = ", ".join(f"{counts[level]} {level}" for level in LEVELS if counts[level])
    return (
        f"{len(dossier.tables)} tables, {numbers:,} numbers, {len(dossier.claims)} claims: "
        f"{found or 'nothing found'}"
    )


def read(cells: Iterable[Cell]) -> list[str]:
    """Return the cells of each row and data set together: `dual/1/6/ade20k psnr 20.88, l2 0.01`."""
    groups: dict[str, dict[str, str]] = {}
    for cell in cells:
        groups.setdefault(f"{cell.row_key}/{cell.dataset}", {})[cell.metric] = cell.printed
    return [
        f"{where} {', '.join(f'{metric} {number}' for metric, number in numbers.items())}"
        for where, numbers in groups.items()
    ]


def page(dossier: Dossier, findings: Sequence[Finding], command: str) -> str:
    """Return the findings as a Markdown page, source by source, gravest first."""
    papers = list(dict.fromkeys(table.paper for table in dossier.tables))
    told = [
        "# What the linter finds in published tables",
        "",
        f"Written by `{command}`; do not edit.",
        "Rules, format and the reading of the levels: [linter.md](../linter.md).",
        "A cell is named paper/table/row/data set/metric. Every number",
        "below is as printed by its source, sentences are in our words. The sources may have",
        "explanations that they do not print; a suspicion is no more than that.",
        "",
        f"{summary(dossier, findings)}.",
        "",
        f"| source | {' | '.join(LEVELS)} |",
        f"|---|{'---:|' * len(LEVELS)}",
    ]
    for paper in papers:
        counts = Counter(f.level for f in findings if _paper(f, papers) == paper)
        told.append(f"| {_title(paper)} | {' | '.join(str(counts[one]) for one in LEVELS)} |")
    told += ["", *(f"- **{level}**: {meaning}." for level, meaning in LEVELS.items())]
    for paper in papers:
        mine = [finding for finding in findings if _paper(finding, papers) == paper]
        told += ["", f"## {_title(paper)}"]
        told += ["", *(_overview(mine) if mine else ["Nothing was found."])]
        for number, finding in enumerate(mine, start=1):
            told += _section(number, finding)
    return "\n".join(told) + "\n"


def _overview(findings: Sequence[Finding]) -> list[str]:
    """One line a finding; statements hold no bars."""
    told = ["| | level | where | what |", "|---:|---|---|---|"]
    return told + [
        f"| {number} | {one.level} | {one.place} | {one.statement} |"
        for number, one in enumerate(findings, start=1)
    ]


def _title(paper: str) -> str:
    return {**PAPERS, **OTHERS}.get(paper, paper)


def _paper(finding: Finding, papers: Sequence[str]) -> str:
    """The source that a finding is listed under: that of its place."""
    fits = [paper for paper in papers if finding.place.startswith((f"{paper}/", f"{paper},"))]
    return max(fits, key=len, default=papers[0])


def _section(number: int, finding: Finding) -> list[str]:
    told = ["", f"### {number}. {finding.level}: {finding.place} (`{finding.rule}`)", ""]
    told += [finding.statement, ""]
    told += [f"- {line}" for line in finding.arithmetic]
    if finding.cells:
        rows = read(finding.cells)
        told += ["", f"<details><summary>cells read ({len(finding.cells)})</summary>", ""]
        told += [*(f"- {row}" for row in rows), "", "</details>"]
    return told
