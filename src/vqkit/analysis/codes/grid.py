"""The codebook as a grid of codevectors, those untouched since initialisation marked
(Dual Codebook VQ, Figure 3, first row)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqkit.analysis.codes.untouched import Start, initial_tables, never_drawn, unmoved
from vqkit.analysis.conditions import Conditions
from vqkit.analysis.tables import CodeTable, code_tables
from vqkit.analysis.usage import training_data
from vqkit.config import require
from vqkit.models.tokenizer import evaluation_mode
from vqkit.training import load_run
from vqkit.training.checkpoint import newest_checkpoint
from vqkit.training.health import fingerprint
from vqkit.training.run_folder import read_result

LARGEST = 1 << 22
"""Numbers of the codes that one codebook shows at most."""
MOST_BOOKS = 6
"""Codebooks of one run in a figure."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BookGrid:
    """Codes of one codebook, and what is known of their past."""

    name: str
    num_codes: int
    ids: Tensor
    """(n,) int64, the codes that are shown, rising: all, or a seeded sample."""
    codes: Tensor
    """(n, D) float32, as vectors are compared with them."""
    untouched: Tensor | None
    """(K,) bool: bit for bit as before the first step; None where that is unknown."""
    undrawn: Tensor | None
    """(K,) bool: no training token has drawn it; None where that is unknown."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values, the codes left out."""
        return {
            "name": self.name,
            "num_codes": self.num_codes,
            "dim": self.codes.shape[1],
            "num_shown": len(self.ids),
            "num_untouched": _count(self.untouched),
            "num_never_drawn": _count(self.undrawn),
            "untouched": _places(self.untouched),
            "never_drawn": _places(self.undrawn),
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CodeGrid:
    """The codebooks of a run."""

    conditions: Conditions
    """The images are those of training; the tokens, of a part of a run, are not known and 0."""
    steps: int
    """Optimizer steps done."""
    unknown: str
    """Why the initial codes are not known; empty where they are."""
    books: tuple[BookGrid, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        return {
            "protocol": self.conditions.to_dict(),
            "steps": self.steps,
            "untouched": "bit for bit the code that the run's settings and seed give before the "
            "first step",
            "never_drawn": "no token of any training step, as counted by the trainer",
            "initial_codes_unknown": self.unknown,
            "books": [book.to_dict() for book in self.books],
        }


def codes_of_run(
    folder: Path | str, *, max_codes: int = 1024, seed: int = 0, name: str | None = None
) -> CodeGrid:
    """Read the codes of a run, finished or not, and find those that its training left alone.

    Args:
        folder: of a training run.
        max_codes: of a larger codebook a sample of so many codes is shown; all are counted.
        seed: of the sample.
        name: for the figure; default the name in the settings of the run.

    Raises:
        ValueError: no run, a run without a whole checkpoint, a lattice, or more than 6 codebooks.
    """
    require(max_codes >= 1, f"max_codes={max_codes}", "must be at least 1")
    folder = Path(folder).expanduser()
    config, tokenizer = load_run(folder)
    with evaluation_mode(tokenizer):
        tables = code_tables(tokenizer.quantizer)
    require(
        len(tables) <= MOST_BOOKS,
        f"codebooks={len(tables)}",
        f"one figure shows at most {MOST_BOOKS}; `segments` shows the use of many",
    )
    record, steps = _record(folder)
    start = initial_tables(config, record)
    undrawn = never_drawn(folder, tokenizer)
    books = [
        _book(table, start, number, silent, max_codes, seed)
        for number, (table, silent) in enumerate(zip(tables, undrawn, strict=True))
    ]
    data = training_data(folder)
    conditions = Conditions(
        name=name or config.name,
        tokenizer_sha256=fingerprint(tokenizer).hex(),
        data_fingerprint=data["fingerprint"],
        num_images=data["images"],
        num_tokens=0,
        settings={"max_codes": max_codes, "seed": seed},
    )
    return CodeGrid(conditions=conditions, steps=steps, unknown=start.reason, books=tuple(books))


def _record(folder: Path) -> tuple[dict[str, Any], int]:
    """Return the record of a run's machine, and the steps done."""
    result = read_result(folder)
    if result is not None:
        return result, result["steps"]
    snapshot, _ = newest_checkpoint(folder)
    assert snapshot is not None  # else `load_run` has complained
    return snapshot.record, snapshot.step


def _book(
    table: CodeTable, start: Start, number: int, silent: Tensor | None, max_codes: int, seed: int
) -> BookGrid:
    codes = table.codes.float().cpu()
    room = max(1, min(max_codes, LARGEST // codes.shape[1]))
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))
    ids = order[:room].sort().values
    return BookGrid(
        name=table.name,
        num_codes=len(codes),
        ids=ids,
        codes=codes[ids],
        untouched=None if start.tables is None else unmoved(table, start.tables[number]),
        undrawn=silent,
    )


def _count(marks: Tensor | None) -> int | None:
    return None if marks is None else int(marks.sum())


def _places(marks: Tensor | None) -> Sequence[int] | None:
    return None if marks is None else marks.nonzero()[:, 0].tolist()
