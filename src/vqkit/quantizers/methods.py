"""Every preset with the arguments of its paper, and README's table of methods made from them.

`python -m vqkit.quantizers.methods README.md` writes the table between the marks in a file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .presets import PRESETS

EXAMPLES: dict[str, dict[str, Any]] = {
    "vq_vae": {"num_codes": 1024, "dim": 128},
    "vq_ema": {"num_codes": 1024, "dim": 128},
    "gumbel": {"num_codes": 1024, "dim": 256},
    "vqgan_fc": {"num_codes": 16384, "dim": 8},
    "vit_vqgan": {"num_codes": 8192, "dim": 32},
    "cvq": {"num_codes": 1024, "dim": 128},
    "sq_vae": {"num_codes": 1024, "dim": 128},
    "pq": {"num_codes": 256, "dim": 4, "num_segments": 32},
    "rq": {"num_codes": 16384, "dim": 256, "num_levels": 4},
    "simvq": {"num_codes": 8192, "dim": 128},
    "vqgan_lc": {"dim": 8},
    "dual": {"num_codes": 512, "dim": 128},
    "looc": {"num_codes": 256, "dim": 4, "num_segments": 32},
    "movq_codes": {"num_codes": 1024, "dim": 64, "num_segments": 4},
    "fsq": {"levels": (8, 5, 5, 5)},
    "lfq": {"dim": 10},
    "rotation": {"num_codes": 1024, "dim": 128},
}
"""Arguments of every preset; `vqgan_lc` also needs features, which `example` draws at random."""

BEGIN, END = "<!-- methods -->", "<!-- /methods -->"
_COLUMNS = ("codebook", "assignment", "update", "terms", "composition", "grid")


def example(name: str) -> dict[str, Any]:
    """Return arguments that build preset `name`: those of `EXAMPLES` and, for `vqgan_lc`, random
    features (1000, 768) in place of a vision encoder's."""
    args = dict(EXAMPLES[name])
    if name == "vqgan_lc":
        args["features"] = torch.randn(1000, 768, generator=torch.Generator().manual_seed(0))
    return args


def methods_table() -> str:
    """Return the Markdown table "method × part", read off quantizers that were built for it."""
    lines = [
        f"| preset | {' | '.join(_COLUMNS)} | bits |",
        f"|{'---|' * (len(_COLUMNS) + 1)}---:|",
    ]
    for name in PRESETS:
        quantizer = PRESETS[name](**example(name))
        summary = quantizer.summary()
        cells = [summary[column].replace("|", "\\|") for column in _COLUMNS]
        bits = f"{quantizer.bits_per_position:.4g}"
        lines.append(f"| `{name}` | {' | '.join(cells)} | {bits} |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """Return a page with the table of methods between its marks, which it must have."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"page: has no {BEGIN} ... {END}; put the two marks where the table goes")
    return f"{before}{BEGIN}\n{methods_table()}\n{END}{after}"


def main(files: Sequence[str]) -> None:
    """Rewrite the table of methods in every file."""
    for name in files:
        path = Path(name)
        path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
