"""After an error in the middle of a step: is the state of the step before still there?"""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import Tensor

from vqkit.training.trainer import Trainer


class Rescue:
    """Brings a trainer back to the end of its last finished step, if nothing was updated since.

    A forward leaves traces besides gradients: statistics of the codebook and of batch
    normalisation, counted codes, random generators. They are put back, so that a run resumed from
    here is the undisturbed one.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._touched = False
        adversary = trainer.adversary
        self._optimizers = [trainer.optimizer, *([adversary.optimizer] if adversary else [])]
        for optimizer in self._optimizers:
            optimizer.register_step_pre_hook(self._touch)
        # Few and small: not the codebook, whose statistics can be forgotten.
        counts = [trainer.window.counts, trainer.epochs.counts]
        self._buffers = [*counts, *(adversary.buffers() if adversary else [])]
        self._copies: list[Tensor] = []
        self._random: list[Tensor] = []

    def mark(self) -> None:
        """Remember the state between two steps."""
        self._touched = False
        self._copies = [buffer.clone() for buffer in self._buffers]
        device = self._trainer.accelerator.device
        self._random = [torch.get_rng_state()]
        if device.type == "cuda":
            self._random.append(torch.cuda.get_rng_state(device))

    def undo(self, error: BaseException) -> bool:
        """Return to `mark` and free what the step held; False if weights were already updated."""
        traceback.clear_frames(error.__traceback__)  # they hold the step's activations
        if self._touched:
            return False
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._trainer.tokenizer.quantizer.forget()
        for buffer, copy in zip(self._buffers, self._copies, strict=True):
            buffer.copy_(copy)
        torch.set_rng_state(self._random[0])
        device = self._trainer.accelerator.device
        if device.type == "cuda":
            torch.cuda.set_rng_state(self._random[1], device)
            torch.cuda.empty_cache()
        return True

    def _touch(self, *_: Any) -> None:
        self._touched = True
