"""Tokens as vectors and back: one table over the codes of all slots, and the loss by chunks."""

from __future__ import annotations

from itertools import accumulate
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE: Final = 2**24
"""Logits that the loss holds at a time: 64 MiB in float32."""

# N = tokens, D = width, K = codes of one slot


class SlotTable(nn.Module):
    """One row for each code of each slot, (sum of codes, D); normal with deviation 0.02."""

    def __init__(self, slot_codes: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.slot_codes = slot_codes
        self.offsets = (0, *accumulate(slot_codes))[:-1]
        self.weight = nn.Parameter(torch.empty(sum(slot_codes), width).normal_(std=0.02))

    def rows(self, slot: int) -> Tensor:
        """Return the rows of one slot, (K, D)."""
        first = self.offsets[slot]
        return self.weight[first : first + self.slot_codes[slot]]


def token_losses(
    hidden_ND: Tensor, rows_KD: Tensor, ids_N: Tensor, *, at_once: int = LOGITS_AT_ONCE
) -> Tensor:
    """Return the mean of -log p(id) in nats, where p = softmax(hidden · rows).

    The N × K logits never exist together: chunks of at most `at_once` are computed, and computed
    again in the backward pass. The loss is float32 under autocast too.
    """
    size = max(1, at_once // len(rows_KD))
    if len(ids_N) <= size:
        return _loss_sum(hidden_ND, rows_KD, ids_N) / len(ids_N)
    total = hidden_ND.new_zeros((), dtype=torch.float32)
    for hidden, ids in zip(hidden_ND.split(size), ids_N.split(size), strict=True):
        part = checkpoint(
            _loss_sum, hidden, rows_KD, ids, use_reentrant=False, preserve_rng_state=False
        )
        assert isinstance(part, Tensor)  # for the type checker
        total = total + part
    return total / len(ids_N)


def _loss_sum(hidden_ND: Tensor, rows_KD: Tensor, ids_N: Tensor) -> Tensor:
    logits_NK = F.linear(hidden_ND, rows_KD)
    return F.cross_entropy(logits_NK.float(), ids_N, reduction="sum")
