"""Sampling from a GPT: the loop over units, its cache, guidance and compilation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqkit.config import GPTSampling
from vqkit.generation.gpt.drawing import draw
from vqkit.generation.gpt.network import GPT

if TYPE_CHECKING:
    from vqkit.generation.gpt.cache import KeyValues

# B = images, R = rows that the network sees (2 B with guidance: asked, then free),
# U = units, S = tokens of a unit, L = inputs of one call, D = width


class Writer:
    """Writes batches of token maps with one network and one way of sampling.

    Its cache, and what `torch.compile` made, serve all batches of one size.
    """

    def __init__(self, network: GPT, sampling: GPTSampling) -> None:
        self.network, self.sampling = network, sampling
        self.guided = sampling.guidance != 1 and network.num_classes > 0
        self._cache: KeyValues | None = None
        if sampling.cache != "none":
            self._cache = network.trunk.new_cache(static=sampling.cache == "static")
        self._advance: Any = self._next
        if sampling.compile:
            self._advance = torch.compile(self._next, mode="reduce-overhead", dynamic=False)

    @torch.no_grad()
    def write(self, labels_B: Tensor, uniforms_BUS: Tensor, prompt_BUS: Tensor) -> Tensor:
        """Return units (B, U, S) that begin with those of `prompt_BUS`, (B, 0, S) for none.

        Args:
            labels_B: int64; `num_classes` means no class, which guidance leaves as it is.
            uniforms_BUS: float64 in [0, 1), one number per token.
            prompt_BUS: The first units of each image.
        """
        network, cache = self.network, self._cache
        if cache is not None:
            cache.clear()
        # Each in memory of its own: a compiled step copies inputs that are not aligned.
        numbers = [
            row.clone() for row in torch.arange(network.units, device=labels_B.device).split(1)
        ]
        draws = [row.clone() for row in uniforms_BUS.unbind(dim=1)]
        units = list(prompt_BUS.unbind(dim=1))
        for unit in range(len(units), network.units):
            phase = network.slot_of(unit, 0)
            if cache is None or unit == prompt_BUS.shape[1]:
                hidden = network.trunk(self._inputs(labels_B, units), cache)[:, -1]
                written = self._write(hidden, draws[unit], phase)
            else:
                # cloned: the memory of a CUDA graph's result is used again by the next step
                written = self._advance(units[-1], draws[unit], numbers[unit], phase).clone()
            units.append(written)
        return torch.stack(units, dim=1)

    def _inputs(self, labels_B: Tensor, units: list[Tensor]) -> Tensor:
        """The first inputs (R, L, D): the class, then what is written, units (B, S)."""
        network = self.network
        labels_R = self._rows(labels_B)
        if self.guided:
            labels_R[len(labels_B) :] = network.num_classes
        x = network.begin(labels_R)
        if not units:
            return x
        return torch.cat((x, network.embed(self._rows(torch.stack(units, dim=1)))), dim=1)

    def _next(self, latest_BS: Tensor, uniforms_BS: Tensor, number: Tensor, phase: int) -> Tensor:
        """Write unit `number`, an int64 (1,), after `latest`; the step that is compiled."""
        x = self.network.embed(self._rows(latest_BS[:, None]), number - 1)
        return self._write(self.network.trunk(x, self._cache, number)[:, -1], uniforms_BS, phase)

    def _write(self, hidden_RD: Tensor, uniforms_BS: Tensor, phase: int) -> Tensor:
        """Draw the tokens (B, S) of one unit, whose first is of slot `phase`."""
        network, depth = self.network, self.network.depth
        if depth is None:
            return self._draw(hidden_RD, phase, uniforms_BS[:, 0])[:, None]
        cache, x_RD, written = depth.new_cache(static=False), hidden_RD, []
        earlier = torch.zeros_like(hidden_RD)
        for slot in range(network.unit_tokens):
            hidden = depth(x_RD[:, None], cache)[:, -1]
            written.append(self._draw(hidden, slot, uniforms_BS[:, slot]))
            earlier = x_RD = earlier + network.embed_token(self._rows(written[-1]), slot)
        return torch.stack(written, dim=1)

    def _draw(self, hidden_RD: Tensor, slot: int, uniform_B: Tensor) -> Tensor:
        logits = self.network.logits(hidden_RD, slot).float()
        if self.guided:
            asked, free = logits.chunk(2)
            logits = free + self.sampling.guidance * (asked - free)
        return draw(logits, uniform_B, self.sampling)

    def _rows(self, batch: Tensor) -> Tensor:
        """The batch as the network sees it: twice with guidance."""
        return torch.cat((batch, batch)) if self.guided else batch.clone()
