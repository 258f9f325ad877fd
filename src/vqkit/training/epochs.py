"""Which codes an epoch has drawn, over all its training tokens (VQGAN-LC, Figure 3 left)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vqkit.metrics.usage import uniform_usage
from vqkit.quantizers import ranks
from vqkit.training.window import CodeWindow, listed, mean


class EpochUsage:
    """Draws of every code since the epoch began, for the codebooks that `CodeWindow` counts.

    A code is used in an epoch if one of its tokens draws it. Nothing here waits for the device but
    the end of an epoch. The counts are part of a checkpoint: an epoch in which a run was stopped
    and resumed is counted as a whole.
    """

    def __init__(self, window: CodeWindow) -> None:
        self._window = window
        self.counts = torch.zeros_like(window.counts)
        """Draws of every code by this process."""

    def count(self, ids: Tensor) -> None:
        """Add the ids (B, h, w, T) of one micro-batch."""
        places = self._window.places(ids)
        self.counts.index_add_(0, places, torch.ones_like(places))

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold; every process calls this at the same step."""
        return {"epoch_counts": ranks.sum_over_ranks(self.counts)}

    def load(self, state: Mapping[str, Tensor], *, main: bool) -> None:
        """Continue from `state`; it holds all processes' counts, which the main one takes over."""
        self.counts.zero_()
        if main:
            self.counts.copy_(state["epoch_counts"])

    def close(self, epoch: int) -> dict[str, Any]:
        """Return the numbers of epoch number `epoch` (the first is 1), and begin the next.

        Every process calls this at the same step. Several codebooks are averaged, and told one by
        one in `epoch_books`; it is empty if none is counted.
        """
        sizes = self._window.sizes
        if not sizes:
            return {}
        draws = ranks.sum_over_ranks(self.counts).cpu().split(sizes)
        books = [_book(counts) for counts in draws]
        self.counts.zero_()
        numbers = {
            "epoch": epoch,
            "epoch_codes_used": mean(books, "used"),
            "epoch_perplexity": mean(books, "perplexity"),
            "epoch_tokens": sum(book["tokens"] for book in books),
            "epoch_uniform_usage": mean(books, "uniform_usage"),
        }
        if len(books) > 1:
            numbers["epoch_books"] = listed(dict(zip(self._window.names, books, strict=True)))
        return numbers


def _book(draws: Tensor) -> dict[str, Any]:
    """Numbers of one codebook with draws (K,)."""
    codes, tokens = len(draws), int(draws.sum())
    drawn = draws[draws > 0]
    share = drawn.double() / max(tokens, 1)
    return {
        "codes": codes,
        "tokens": tokens,
        "used": len(drawn) / codes,
        "perplexity": float((-(share * share.log()).sum()).exp()),
        "uniform_usage": uniform_usage(codes, tokens),
    }
