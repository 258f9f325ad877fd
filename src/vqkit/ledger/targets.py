"""Names of tables on the command line, `looc-table5`, and the printed cells behind them."""

from __future__ import annotations

import difflib
from functools import cache

from vqkit.ledger.cells import Cell
from vqkit.ledger.published import cells, tables


@cache
def target_names() -> dict[str, str]:
    """Return what can be reproduced: its name and a few words on it, paper by paper.

    Tables go by their printed number. Figures 5, 7 and 8 of LooC have numbers in its text; its
    Figures 1 and 6 draw runs of Tables 3 to 5 and print none.
    """
    named = {target_of(table.paper, table.table): table.caption for table in tables()}
    return named | {
        "looc-figure1": "Codebook size against quality: the runs of Tables 3 to 5.",
        "looc-figure5": "Usage of the codebook on CIFAR-10 (numbers in the text).",
        "looc-figure6": "Quality against the number of codevectors: the runs of Tables 3 to 5.",
        "looc-figure7": "Usage of the codevectors in each segment (numbers in the text).",
        "looc-figure8": "Sharing of codevectors by segments (numbers in the text).",
    }


def cells_of(target: str) -> tuple[Cell, ...]:
    """Return the cells of a table or figure; an unknown name is a `ValueError` with the nearest."""
    if target not in target_names():
        near = difflib.get_close_matches(target, target_names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "vqkit reproduce --list names them"
        raise ValueError(f"table={target!r}: unknown; {hint}")
    if target in _FIGURES_OF_TABLES:
        return tuple(c for c in cells() if c.paper == "looc" and c.table in ("3", "4", "5"))
    rows = _FIGURES_IN_THE_TEXT.get(target)
    if rows is not None:
        return tuple(c for c in cells() if c.row_key in {f"looc/text/{row}" for row in rows})
    return next(t.cells for t in tables() if target_of(t.paper, t.table) == target)


_FIGURES_OF_TABLES = ("looc-figure1", "looc-figure6")
_FIGURES_IN_THE_TEXT = {
    "looc-figure5": (1, 2, 3),
    "looc-figure7": (4,),
    "looc-figure8": (4, 5),
}
"""Rows of the numbers that LooC prints in its text."""


def target_of(paper: str, table: str) -> str:
    """Return the name of a table: `looc-table5`, `dual-tables1`, `looc-text`."""
    if table.startswith("Fig"):
        return f"{paper}-figure{table.removeprefix('Fig')}"
    return f"{paper}-{'' if table == 'text' else 'table'}{table.lower()}"
