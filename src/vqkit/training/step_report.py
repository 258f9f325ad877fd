"""What one optimizer step gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step of this process gave."""

    losses: dict[str, float]
    """`loss` and its parts, of this process's share of the batch. Of a tokenizer: the total without
    the discriminator's part, weighted parts and raw errors; with a discriminator also its losses,
    logits and accuracies."""
    norm: float
    """Length of the gradient of all processes before clipping."""
    problem: str
    """What is not finite; empty if all is. The weights were not touched then."""
    gradients: dict[str, Any] = field(default_factory=dict)
    """With a problem, `describe_gradients`."""
