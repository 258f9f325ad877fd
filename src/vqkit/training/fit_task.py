"""What `fit` is told: the model, its batches and its losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Groups = Callable[[nn.Module], list[dict[str, Any]]]
"""Parameter groups of a model: `params`, and `lr_scale` and `weight_decay` where they differ."""


class Task(Protocol):
    """A model and what it learns from. Every process builds the same one, with the same weights."""

    model: nn.Module
    """Trained in place; `fit` moves it to its device and puts it into training mode. Parameters
    that ask for no gradient stay as they are."""

    def batch(self, step: int) -> Any:
        """Return this process's share of global batch `step` (0, 1, ...), on the CPU.

        A pure function of (seed, step), so that a run may be continued anywhere: nothing is to be
        saved. An `OSError` or `ValueError` ends the run after a checkpoint.
        """

    def losses(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Return `loss`, the mean over this part of a batch, and more scalars to be logged.

        `loss` stands first and is differentiable; several parts and processes are averaged. What is
        needed of the batch is moved here to the model's device. Every draw is from `generator`, on
        the CPU; dropout draws from torch's global generator, which was seeded likewise. Called
        under autocast with `optim.precision=bf16`: losses are computed in float32.
        """

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return numbers of `model` in evaluation mode (averaged weights if the run keeps them).

        Every process calls it at the same step, without gradients; the main one's numbers are
        logged. Empty if there are none.
        """

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder` (`models.files.write_model`).

        `model.safetensors` must hold the whole `model.state_dict()`: checkpoints, which are saved
        by this too, continue from it.
        """

    def facts(self) -> dict[str, Any]:
        """Return the data's fingerprint and the like as JSON values, the same at every resume."""


def equal_parts(batch: Any, count: int) -> Sequence[Any]:
    """Cut a batch into `count` equal parts along the first dimension of all its tensors.

    The batch may be a tensor, or tuples, lists, dicts and data classes of them; other values are
    in every part as they are.
    """
    return [batch] if count == 1 else [_part(batch, n, count) for n in range(count)]


def _part(value: Any, number: int, count: int) -> Any:
    if isinstance(value, Tensor):
        if len(value) % count:
            raise ValueError(
                f"optim.accumulate={count}: does not divide a process's share of the batch, "
                f"{len(value)}; choose a divisor"
            )
        size = len(value) // count
        return value[number * size : (number + 1) * size]
    if isinstance(value, dict):
        return {key: _part(item, number, count) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_part(item, number, count) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        cut = {f.name: _part(getattr(value, f.name), number, count) for f in fields(value)}
        return replace(value, **cut)
    return value
