"""The M-th nearest code: of a code, or of the vector that has chosen it. Never K × K."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from vqkit.analysis.tables import CodeTable
from vqkit.config import require
from vqkit.quantizers import Assigned, Assignment, Codebook, GridQuantizer, GumbelLogits
from vqkit.quantizers.clock import Clock
from vqkit.search import Metric, nearest_k

BLOCK = 1 << 22
"""Neighbours that are held at once (48 MiB of ids and scores)."""


def other_codes(
    vectors: Tensor, chosen: Tensor, codes: Tensor, ranks: Sequence[int], metric: Metric = "l2"
) -> Tensor:
    """Find the codes of given ranks among all codes but the chosen one, nearest first.

    Args:
        vectors: (N, D) to measure from.
        chosen: (N,) int64, the code of each vector; rank 0 is this code itself.
        codes: (K, D).
        ranks: 0 <= rank < K; rank 1 is the nearest of the other codes.
        metric: `l2` or `cosine`.

    Returns:
        ids (N, len(ranks)), int64; of equally near codes the lowest id comes first.
    """
    most = max(ranks)
    if most == 0:
        return chosen[:, None].expand(-1, len(ranks))
    rows = max(1, BLOCK // (most + 1))
    parts = []
    for z, own in zip(vectors.split(rows), chosen.split(rows), strict=True):
        found, _ = nearest_k(z, codes, most + 1, metric)
        # The chosen code moves behind the others; it may not be among them, if many are equal.
        others = found.gather(1, (found == own[:, None]).long().argsort(dim=1, stable=True))
        parts.append(torch.cat([own[:, None], others[:, :most]], 1)[:, list(ranks)])
    return torch.cat(parts) if parts else chosen.new_empty(0, len(ranks))


class CodeNeighbours:
    """Neighbours of the codes of one table, searched when a code occurs for the first time.

    Memory: K × ranks ids.
    """

    def __init__(self, table: CodeTable, ranks: Sequence[int]) -> None:
        self._table, self._ranks = table, tuple(ranks)
        codes = table.codes
        size = (len(codes), len(self._ranks))
        self._found = torch.full(size, -1, dtype=torch.int64, device=codes.device)

    def of(self, ids: Tensor) -> Tensor:
        """Return (..., ranks) for ids (...) of the table."""
        occurring = ids.unique()
        new = occurring[self._found[occurring, 0] < 0]
        if len(new):
            codes = self._table.codes
            self._found[new] = other_codes(codes[new], new, codes, self._ranks, self._table.metric)
        return self._found[ids]


@contextmanager
def choosing_nth(quantizer: GridQuantizer, rank: int) -> Iterator[None]:
    """Within this block a forward gives the `rank`-th nearest codes' ids, 1 the usual ones.

    Only the ids are others: a residual leaves over what it does with the usual ids, so that every
    token is replaced on its own. Raises `ValueError` where codes are not chosen by distance.
    """
    leaves = list(quantizer.quantizer.leaves())
    usual = [leaf.assignment for leaf in leaves]
    for assignment in usual:
        require(
            not isinstance(assignment, GumbelLogits) and assignment.tokens_per_vector == 1,
            "from='feature'",
            f"{assignment.summary()} takes more or other than the code nearest to a feature; "
            "use from='code'",
        )
    try:
        for leaf, assignment in zip(leaves, usual, strict=True):
            leaf.assignment = _NthNearest(assignment, rank).train(assignment.training)
        yield
    finally:
        for leaf, assignment in zip(leaves, usual, strict=True):
            leaf.assignment = assignment


class _NthNearest(Assignment):
    """Finds as another assignment does, then names the code that is `rank`-th nearest instead."""

    def __init__(self, usual: Assignment, rank: int) -> None:
        super().__init__()
        self.usual, self.rank, self.metric = usual, rank, usual.metric

    def forward(self, z: Tensor, codebook: Codebook, clock: Clock, batch: int) -> Assigned:
        """Pick for every vector (G, N, D)."""
        found: Assigned = self.usual(z, codebook, clock, batch)
        parts = zip(z, found.ids, codebook.table(clock), strict=True)
        others = [
            other_codes(vectors, ids, codes, [self.rank - 1], self.metric)[:, 0]
            for vectors, ids, codes in parts
        ]
        return replace(found, ids=torch.stack(others))

    def summary(self) -> str:
        """Name the assignment."""
        return f"{self.rank}-th nearest of {self.usual.summary()}"
