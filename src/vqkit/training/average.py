"""Exponential average of the weights, kept beside them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages every parameter; buffers (statistics, fixed tables) are not averaged but copied.

    After step t the average moves by 1 - min(decay, (1 + t) / (10 + t)) towards the weights: the
    smaller decay at the start forgets the random initialisation.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Include the weights as they are after optimizer step number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            self.weights[name].lerp_(parameter.detach(), 1 - decay)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Continue from saved `weights`."""
        for name, weight in weights.items():
            self.weights[name].copy_(weight)

    def state_for(self, model: nn.Module) -> dict[str, Tensor]:
        """Return a `state_dict` for `model`: averaged parameters, its own buffers."""
        return {**model.state_dict(), **self.weights}
