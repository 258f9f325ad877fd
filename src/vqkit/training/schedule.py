"""The learning rate as a function of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math

import torch

from vqkit.config import OptimConfig


def learning_rate_factor(config: OptimConfig, step: int) -> float:
    """Return the share of the learning rate that optimizer step `step` (0, 1, ...) uses.

    It grows in a straight line over `warmup_steps` (step s uses (s + 1) / warmup_steps), then stays
    (`constant`), or falls to `final_lr` at the last step: half a cosine, or a straight line.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    rest = config.num_steps - config.warmup_steps
    way = min(1.0, (step + 1 - config.warmup_steps) / rest)
    left = (1 + math.cos(math.pi * way)) / 2 if config.schedule == "cosine" else 1 - way
    return config.final_lr + (1 - config.final_lr) * left


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let the next step of the optimizer use `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
