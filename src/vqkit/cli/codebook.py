"""`vqkit codebook`: codes from pretrained features, one verb for each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vqkit.cli.verbs import run_verb

VERBS: Final = {
    "extract": ("codebook_extract", "run", "features of images, with a vision model or none"),
    "cluster": ("codebook_cluster", "run", "codes out of features: k-means, or random rows"),
    "describe": ("codebook_files", "describe", "what a codebook is made of, and how it lies"),
    "merge": ("codebook_files", "merge", "several codebooks as one, also clustered down"),
    "subset": ("codebook_files", "subset", "some codes of a codebook"),
    "transfer": ("codebook_transfer", "run", "codes at work on other features; adapt them"),
}
"""Verb to its module in this room, its function there, and a summary."""

_USAGE = """\
usage: vqkit codebook VERB [NAME ...] [--option value ...]

{verbs}

  vqkit codebook VERB --help   options of a verb
"""


def run(words: Sequence[str]) -> int | None:
    """Run one verb; without any, list them."""
    return run_verb(words, VERBS, _USAGE)
