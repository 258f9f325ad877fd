"""When the update rules of a quantizer run: never between a forward and its backward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import ranks
from .checks import check_finite, is_finite
from .codebooks import Codebook, check_count
from .quantizer import Quantizer, check_quantizer
from .records import Quantized

_IDLE, _COLLECTED, _REDUCED = 0, 1, 2  # what the update rules' statistics hold


class Stepping(nn.Module):
    """Base of `GridQuantizer`: collects in training forwards, writes the codes in `step`."""

    pending: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        check_quantizer(quantizer)
        self.quantizer = quantizer
        self.auto_step = True
        self.check_values = True
        """Whether a training forward on a CPU refuses z that is not finite. A loop that stops for a
        loss that is not finite sets it to False: z_q and all terms are NaN then, nothing is
        collected, and several processes stop together. Elsewhere nobody waits to look at z."""
        self.register_buffer("pending", torch.zeros((), dtype=torch.int64))
        self._stage = _IDLE  # mirrors `pending`, so that no forward waits for a GPU to read it
        self._open = False  # whether a training forward still waits for its backward

    def step(self) -> None:
        """Write what the update rules have gathered, on all processes together.

        Call it once after every optimizer step when `auto_step` is False. Without a training
        forward since the last call it does nothing.
        """
        self._open = False
        if self._stage == _IDLE:
            return
        if self._stage == _COLLECTED:
            self._reduce()
        for leaf in self.quantizer.leaves():
            if leaf.clock.has_rows:  # a part that was switched to evaluation has seen nothing
                leaf.apply_rules()
        self.drop_cache()
        self._set_stage(_IDLE)

    @torch.no_grad()
    def forget(self) -> None:
        """Drop what training forwards have gathered since the last `step`: it was given up."""
        self._open = False
        for leaf in self.quantizer.leaves():
            leaf.forget()
        self._set_stage(_IDLE)

    def set_micro_batches(self, count: int) -> None:
        """Tell how many training forwards make one step (gradient accumulation).

        Random draws then number the vectors as one large batch would.
        """
        check_count("micro_batches", count)
        for leaf in self.quantizer.leaves():
            leaf.clock.micro_batches = count

    def drop_cache(self) -> None:
        """Forget computed tables: call it after writing weights through `.data` in evaluation.

        Every other way to change weights is noticed.
        """
        for book in self._codebooks():
            book.drop_cache()

    @contextmanager
    def _forwarding(self, device: torch.device) -> Iterator[None]:
        """Surround one forward: full precision, tables computed once, updates in their place."""
        training = self.training
        if training:
            self._begin()
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(device.type, enabled=False))
            for book in self._codebooks():
                stack.enter_context(book.held())
            yield
        if training:
            for leaf in self.quantizer.leaves():
                leaf.clock.end_forward()
            self._set_stage(_COLLECTED)
            if self.auto_step and ranks.world_size() > 1:
                # Joined at once: a foreign DDP copies rank 0's buffers before its next forward.
                self._reduce()

    def _begin(self) -> None:
        if torch._C._current_graph_task_id() != -1:
            raise ValueError(
                "quantizer: a training forward inside a backward pass (activation checkpointing) "
                "would count its vectors twice; leave the quantizer out of the checkpointed part"
            )
        if self._stage == _REDUCED and self.auto_step and self._open:
            raise ValueError(
                "quantizer: a second training forward before the first one's backward, on several "
                "processes; set auto_step=False and call step() after every optimizer step"
            )
        if self._stage == _REDUCED or (self.auto_step and not self._open):
            self.step()
        for leaf in self.quantizer.leaves():
            leaf.clock.begin_forward()

    def _checked(self, z: Tensor, vectors: Tensor) -> tuple[Tensor, bool]:
        """Return the vectors that z became without bad values, and whether they had none."""
        if self.check_values or not self.training:
            check_finite(z, vectors)
            sound = True
        else:
            sound = is_finite(vectors)
        for leaf in self.quantizer.leaves():
            leaf.collects = sound
        return vectors if sound else vectors.nan_to_num(0.0, 0.0, 0.0), sound

    def _watched(self, out: Quantized, sound: bool) -> Quantized:
        """Notice the backward of a training forward: only then may the codes move by themselves."""
        if not sound:
            terms = {name: term * math.nan for name, term in out.terms.items()}
            out = Quantized(out.z_q * math.nan, out.ids, terms)
        if self.training and self.auto_step:
            for tensor in (out.z_q, *out.terms.values()):
                if tensor.requires_grad:
                    self._open = True
                    tensor.register_hook(self._close)
        return out

    def _close(self, gradient: Tensor) -> None:
        self._open = False

    def _reduce(self) -> None:
        for leaf in self.quantizer.leaves():
            if leaf.clock.has_rows:
                leaf.reduce()
        self._set_stage(_REDUCED)

    def _set_stage(self, stage: int) -> None:
        self._stage = stage
        self.pending.fill_(stage)

    def _codebooks(self) -> Iterator[Codebook]:
        return (module for module in self.modules() if isinstance(module, Codebook))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state, prefix, *args)
        self._stage, self._open = int(self.pending), False
