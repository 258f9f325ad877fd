"""When a finite loss is hopeless all the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vqkit.config import LogConfig


class Explosion:
    """Compares the reconstruction error with the least of the run (`log.explode`).

    The error is the mean squared one on images in [-1, 1], whatever the run minimises: unlike some
    losses it cannot be negative. A few large ones are forgiven: a discriminator that begins, codes
    that restart.
    """

    def __init__(self, config: LogConfig) -> None:
        self.factor, self.limit = config.explode, config.explode_steps
        self.least = math.inf
        self.above = 0
        """Steps on end with an error above `factor` times the least."""

    def look(self, error: float) -> bool:
        """Count the error of one more step; return whether it is to be the last."""
        self.above = self.above + 1 if error > self.factor * self.least else 0
        self.least = min(self.least, error)
        return self.above >= self.limit

    def state(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {"least": self.least if math.isfinite(self.least) else None, "above": self.above}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`; an empty one, of an older checkpoint, begins afresh."""
        least = state.get("least")
        self.least = math.inf if least is None else float(least)
        self.above = int(state.get("above", 0))
