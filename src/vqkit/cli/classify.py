"""`vqkit classify`: classes read from token maps, and from pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vqkit.cli.verbs import run_verb

VERBS: Final = {
    "train": ("classify_tokens", "train", "a transformer or a linear probe on a token set"),
    "evaluate": ("classify_tokens", "evaluate", "top-1 of classifiers, with bits per pixel"),
    "pixels": ("classify_pixels", "pixels", "a small classifier of images, to score samples"),
}
"""Verb to its module in this room, its function there, and a summary."""

_USAGE = """\
usage: vqkit classify VERB [NAME ...] [--option value ...]

{verbs}

  vqkit classify VERB --help   options of a verb
"""


def run(words: Sequence[str]) -> int | None:
    """Run one verb; without any, list them."""
    return run_verb(words, VERBS, _USAGE)
