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
        """Continue from saved `weights`, with or without all names of those that are tied."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])

    def by_name(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the averages by the names of `state_dict`: tied parameters have several."""
        first = {parameter: name for name, parameter in model.named_parameters()}
        every = model.named_parameters(remove_duplicate=False)
        return {name: self.weights[first[parameter]] for name, parameter in every}

    def state_for(self, model: nn.Module) -> dict[str, Tensor]:
        """Return a `state_dict` for `model`: averaged parameters, its own buffers."""
        return {**model.state_dict(), **self.by_name(model)}
