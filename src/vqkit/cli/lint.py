"""`vqkit lint`: printed numbers, checked for what cannot be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from vqkit.cli.console import say
from vqkit.cli.options import Options

WRONG = 1
"""Exit code where something is impossible or contradicts itself."""


def run(words: Sequence[str]) -> int:
    """Check tables of published or own numbers, and show the arithmetic of what cannot be.

    TABLE is a paper (dual, vqgan-lc, looc; papers: all three; llamagen), a JSON or CSV file, an
    evaluation of vqkit, or the folder of a run that was evaluated; docs/linter.md describes the
    files. Exit code 0: nothing impossible and no contradiction; 1: there is, unless a page was
    asked for.
    """
    from vqkit.ledger.lint import LEVELS, Level, gather, lint
    from vqkit.ledger.lint.page import lines, page, summary

    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    options = Options("lint TABLE ...", run.__doc__)
    options.add("level", Level, "show this level and graver ones; default all")
    options.add("json", str, "file for the findings as JSON")
    options.add("page", str, "file for the findings as a Markdown page")
    given = options.parse(words[first:])
    names = words[:first]
    dossier = gather(names)
    shown = get_args(Level)[: get_args(Level).index(given.get("level", "caution")) + 1]
    findings = [finding for finding in lint(dossier) if finding.level in shown]
    assert tuple(LEVELS) == get_args(Level), "both list the levels, gravest first"
    if "json" in given:
        content = [finding.to_dict() for finding in findings]
        _write(given["json"], json.dumps(content, indent=2) + "\n")
        say(f"wrote {given['json']}")
    if "page" in given:
        command = f"vqkit lint {' '.join(names)} --page {given['page']}"
        _write(given["page"], page(dossier, findings, command))
        say(f"{summary(dossier, findings)}\nwrote {given['page']}")
        return 0
    if findings:
        say(f"{lines(findings)}\n")
    say(summary(dossier, findings))
    return WRONG if {"impossible", "contradiction"} & {f.level for f in findings} else 0


def _write(path: str, text: str) -> None:
    from vqkit.models.files import write_beside  # brings torch, which reading does not need

    write_beside(Path(path).expanduser(), text.encode())
