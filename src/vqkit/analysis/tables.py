"""The codes of a tokenizer, codebook by codebook, as its quantizer compares them with vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from vqkit.config import require
from vqkit.quantizers import GridQuantizer, VectorQuantizer
from vqkit.search import Metric
from vqkit.training.window import book_names


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeTable:
    """One codebook, and the tokens that are drawn from it."""

    name: str
    """What the paths of its slots share: `local`, `level2`; `code` where there is one codebook."""
    slots: tuple[int, ...]
    """Places in `quantizer.slots` whose tokens are ids of this table."""
    codes: Tensor
    """(K, D): projected (VQGAN-LC), refined (Dual) or scaled (unit sphere), as they are used."""
    metric: Metric
    """How near a vector is to a code, for this quantizer: `l2` or `cosine`."""


def code_tables(quantizer: GridQuantizer) -> tuple[CodeTable, ...]:
    """Return the tables of a quantizer in evaluation mode, in the order of `quantizer.books`.

    A lattice (FSQ, LFQ), which has no table, is a `ValueError`.
    """
    names = book_names(quantizer.slots, quantizer.books)
    tables = []
    for name, book, (leaf, group) in zip(
        names, quantizer.books, _leaf_tables(quantizer), strict=True
    ):
        kind = leaf.codebook.summary()
        require(
            leaf.codebook.has_table,
            f"codebook {name!r} ({kind})",
            "is a lattice, which has no table of codes; `frequency` and `usage` work with it",
        )
        codes = leaf.codebook.table(leaf.clock)[group].detach()
        tables.append(CodeTable(name=name, slots=book, codes=codes, metric=leaf.assignment.metric))
    return tuple(tables)


def _leaf_tables(quantizer: GridQuantizer) -> Iterator[tuple[VectorQuantizer, int]]:
    """Yield (quantizer, number of its table) for every codebook, in the order of the books."""
    for leaf in quantizer.quantizer.leaves():
        for group in range(leaf.codebook.groups):
            yield leaf, group
