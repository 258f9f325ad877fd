"""The quantitative tables of the three papers, cell by cell, as printed.

Dual Codebook VQ (`dual`), VQGAN-LC (`vqgan-lc`) and LooC (`looc`). No number is corrected: a cell
holds what the paper prints, also where it cannot be.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from vqkit.ledger.cells import Cell, Table, read_json, tables_of

PAPERS = {
    "dual": "Dual Codebook VQ",
    "vqgan-lc": "VQGAN-LC",
    "looc": "LooC",
}
"""Names of the papers in keys of cells, and in sentences."""

OTHERS = {"llamagen": "LlamaGen"}
"""Further systems with a table for the linter; their numbers are not among the cells."""

_FILE = Path(__file__).with_name("published.json")


@cache
def tables() -> tuple[Table, ...]:
    """Return the 30 tables, figures and passages with numbers, paper by paper."""
    return tables_of(read_json(_FILE.read_text(encoding="utf-8")))


@cache
def cells() -> tuple[Cell, ...]:
    """Return all 1,213 cells in printed order, dashes and blanks included."""
    return tuple(cell for table in tables() for cell in table.cells)


def cell(key: str) -> Cell:
    """Return a cell by its key (`looc/5/3/mnist/psnr`); an unknown one is a `ValueError`."""
    found = _by_key().get(key)
    if found is None:
        raise ValueError(f"cell={key!r}: no such cell; keys read looc/5/3/mnist/psnr")
    return found


@cache
def _by_key() -> dict[str, Cell]:
    return {cell.key: cell for cell in cells()}
