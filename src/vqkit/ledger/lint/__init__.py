"""Checks of printed numbers: what cannot be, what contradicts itself, what is hard to believe.

Rules run over data only: tables of cells with their settings, and claims about cells. None of them
knows a paper. docs/linter.md lists them, and says what the levels mean.
"""

from __future__ import annotations

from vqkit.ledger.lint.claims import claim_rules
from vqkit.ledger.lint.counts import count_rules
from vqkit.ledger.lint.files import KNOWN, gather
from vqkit.ledger.lint.findings import LEVELS, Claim, Dossier, Finding, Level
from vqkit.ledger.lint.pixels import pixel_rules
from vqkit.ledger.lint.quality import quality_rules
from vqkit.ledger.lint.repeats import repeat_rules

__all__ = ["KNOWN", "LEVELS", "Claim", "Dossier", "Finding", "Level", "gather", "lint"]

_RULES = (pixel_rules, quality_rules, count_rules, repeat_rules, claim_rules)


def lint(dossier: Dossier) -> tuple[Finding, ...]:
    """Return what all rules find, gravest first; a claim about an unknown cell is a ValueError."""
    found = [finding for rule in _RULES for finding in rule(dossier)]
    order = list(LEVELS)
    return tuple(sorted(found, key=lambda finding: order.index(finding.level)))
