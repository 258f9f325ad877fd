"""How often every code of a codebook was drawn, by each of the slots that draw from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from vqkit.metrics.reduction import concatenate_over_processes, sum_over_processes

DENSE_LIMIT = 2**22
"""Largest slots × codes that is counted in one table (32 MiB of int64)."""


class Counts(ABC):
    """Counters of one codebook with `num_codes` codes that serves `num_slots` slots."""

    @abstractmethod
    def add(self, ids: Tensor) -> None:
        """Count ids (N, num_slots), int64 in [0, num_codes)."""

    @abstractmethod
    def reduce(self) -> Self:
        """Return the counts of all processes together."""

    @abstractmethod
    def of_slot(self, slot: int) -> Tensor:
        """Return the counts above zero of one slot, (codes used,) int64."""

    @abstractmethod
    def pooled(self) -> Tensor:
        """Return the counts above zero over all slots together, (codes used,) int64."""


def make_counts(num_slots: int, num_codes: int) -> Counts:
    """Return a table, or for huge lattices a sorted list of the codes seen so far."""
    dense = num_slots * num_codes <= DENSE_LIMIT
    return TableCounts(num_slots, num_codes) if dense else SeenCounts(num_slots, num_codes)


class TableCounts(Counts):
    """One counter per slot and code; memory num_slots × num_codes."""

    def __init__(self, num_slots: int, num_codes: int) -> None:
        self.table = torch.zeros(num_slots, num_codes, dtype=torch.int64)

    def add(self, ids: Tensor) -> None:
        """Count ids (N, num_slots)."""
        num_slots, num_codes = self.table.shape
        places = ids + torch.arange(num_slots, device=ids.device) * num_codes
        counted = torch.bincount(places.flatten(), minlength=self.table.numel())
        self.table = self.table.to(ids.device) + counted.view_as(self.table)

    def reduce(self) -> Self:
        """Return the counts of all processes together."""
        total = type(self)(*self.table.shape)
        total.table = sum_over_processes(self.table)
        return total

    def of_slot(self, slot: int) -> Tensor:
        """Return the counts above zero of one slot."""
        return _positive(self.table[slot])

    def pooled(self) -> Tensor:
        """Return the counts above zero over all slots together."""
        return _positive(self.table.sum(0))


class SeenCounts(Counts):
    """Counters only for codes that occurred; memory grows with their number, not with num_codes."""

    def __init__(self, num_slots: int, num_codes: int) -> None:
        if num_slots * num_codes >= 2**63:
            raise ValueError(
                f"num_codes={num_codes} for {num_slots} slots: usage stops at 2**63 slots × codes"
            )
        self.num_slots = num_slots
        self.num_codes = num_codes
        # Rows (slot · num_codes + code, count), sorted.
        self.seen = torch.zeros(0, 2, dtype=torch.int64)

    def add(self, ids: Tensor) -> None:
        """Count ids (N, num_slots)."""
        keys = ids + torch.arange(self.num_slots, device=ids.device) * self.num_codes
        rows = torch.stack([keys, torch.ones_like(keys)], dim=-1).flatten(0, 1)
        self.seen = _merge(torch.cat([self.seen.to(ids.device), rows]))

    def reduce(self) -> Self:
        """Return the counts of all processes together."""
        total = type(self)(self.num_slots, self.num_codes)
        total.seen = _merge(concatenate_over_processes(self.seen))
        return total

    def of_slot(self, slot: int) -> Tensor:
        """Return the counts above zero of one slot."""
        return self.seen[self.seen[:, 0] // self.num_codes == slot, 1]

    def pooled(self) -> Tensor:
        """Return the counts above zero over all slots together."""
        codes = self.seen[:, 0] % self.num_codes
        return _merge(torch.stack([codes, self.seen[:, 1]], dim=1))[:, 1]


def _positive(counts: Tensor) -> Tensor:
    return counts[counts > 0]


def _merge(rows: Tensor) -> Tensor:
    keys, place = torch.unique(rows[:, 0], return_inverse=True)
    counts = torch.zeros_like(keys).index_add_(0, place, rows[:, 1])
    return torch.stack([keys, counts], dim=1)
