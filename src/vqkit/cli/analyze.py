"""`vqkit analyze`: how a codebook is used and what it makes of images, as figures and numbers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Final

from vqkit.cli.verbs import choose

GROUPS: Final = {
    "analyze_codes": {
        "usage": "usage and perplexity at every epoch of one or several runs",
        "frequency": "how often every code is drawn over a set of images, sorted and as a map",
        "bars": "the same as bars in the order of the codes, with the map beside them",
        "segments": "codes that each segment uses, and how segments share them",
        "codebook": "a run's codevectors, those untouched since initialisation marked",
        "tsne": "active and inactive codes in the plane",
    },
    "analyze_pictures": {
        "replace": "quality if every token becomes the M-th nearest code",
        "extremes": "the images that are rebuilt best and worst",
        "errors": "maps of errors on one scale",
        "crops": "a region enlarged beside the reconstructions of several tokenizers",
    },
    "analyze_curves": {
        "sizes": "quality against number and length of codes, from evaluations",
        "scaling": "usage, perplexity and FID against codebook size, from evaluations",
    },
}
"""Verbs by the module that runs them, in the order of the help."""
VERBS: Final = {verb: text for group in GROUPS.values() for verb, text in group.items()}

_USAGE = """\
usage: vqkit analyze VERB NAME [NAME ...] [--option value ...]

{verbs}

NAME is the folder of a run or, but for `usage` and `codebook`, of a tokenizer, or its id on the
Hugging Face hub; for `sizes` and `scaling` a file that `vqkit evaluate` wrote, or the folder of the
run. Every verb writes a figure (--out FILE.png) and its numbers beside it (FILE.json).

  vqkit analyze VERB --help   options of a verb
"""


def run(words: Sequence[str]) -> None:
    """Run one verb; without any, list them."""
    chosen = choose(words, VERBS, _USAGE)
    if chosen is None:
        return
    verb, rest = chosen
    home = next(module for module, group in GROUPS.items() if verb in group)
    getattr(importlib.import_module(f"vqkit.cli.{home}"), verb)(rest)
