"""Inception Score from sums, without keeping one probability.

Salimans, Goodfellow, Zaremba, Cheung, Radford, Chen 2016 (arXiv:1606.03498), section 4.
"""

from __future__ import annotations

from copy import copy
from typing import Final

import torch
from torch import Tensor

from vqkit.config import require
from vqkit.metrics.reduction import sum_over_processes

NUM_SPLITS: Final = 10
"""Parts that the score is computed of, then averaged (the paper)."""


class InceptionScore:
    """exp of the mean of KL(p(y|x) ‖ p(y)) in each of several splits of the images.

    Σ_x KL is Σ_x Σ_y p(y|x) log p(y|x), which is summed up, less n Σ_y p̄(y) log p̄(y), which the
    sum of the p(y|x) gives. An image's key says which split it belongs to, so that neither the
    order of images nor the number of processes matters; splits are equally large only about.
    """

    def __init__(
        self,
        num_classes: int,
        num_splits: int = NUM_SPLITS,
        device: str | torch.device = "cpu",
    ) -> None:
        require(num_splits >= 1, f"num_splits={num_splits}", "must be at least 1")
        self.num_splits = num_splits
        # Of each split: the sum of probabilities, of p log p over classes, and the count.
        self._sums = torch.zeros(num_splits, num_classes + 2, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, keys: Tensor) -> None:
        """Take logits (n, classes), floating point, and one key (n,) int64 of each image."""
        logs = logits.to(self._sums).log_softmax(1)
        shares = logs.exp()
        inner = (shares * logs).sum(1, keepdim=True)
        rows = torch.cat([shares, inner, torch.ones_like(inner)], 1)
        self._sums.index_add_(0, keys.to(rows.device) % self.num_splits, rows)

    def reduce(self) -> InceptionScore:
        """Return the sums of all processes together; this object keeps its own share."""
        total = copy(self)
        total._sums = sum_over_processes(self._sums)
        return total

    @property
    def num_images(self) -> int:
        """Images seen."""
        return int(self._sums[:, -1].sum())

    def value(self) -> tuple[float, float | None] | None:
        """Return mean and standard deviation (of the population) over splits; None without images.

        Splits without an image are left out; a single split has no deviation.
        """
        sums = self._sums[self._sums[:, -1] > 0]
        if not len(sums):
            return None
        counts = sums[:, -1]
        mean = sums[:, :-2] / counts[:, None]
        scores = (sums[:, -2] / counts - torch.xlogy(mean, mean).sum(1)).exp()
        spread = float(scores.std(correction=0)) if len(scores) > 1 else None
        return float(scores.mean()), spread
