"""Keys and values of the tokens written so far, in the form that transformers' models take.

Imported only when tokens are sampled, since it imports transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class KeyValues(Cache):
    """Room for `length` positions in every layer, filled from the first on.

    `static=False` shows the layers only what is filled: little work, another shape every time.
    `static=True` shows them all, with a mask: the same shapes and addresses every time, as a
    compiled step and CUDA graphs need.
    """

    def __init__(self, layers: int, length: int, *, static: bool) -> None:
        self.length, self.static = length, static
        self.number: Tensor | None = None
        """int64 (L,): where the inputs of the present call stand."""
        self.own = [_Layer(self) for _ in range(layers)]
        super().__init__(layers=list(self.own))

    def place(
        self, count: int, device: torch.device, number: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Make place for `count` inputs; return their positions (1, L) and a mask, if one is due.

        A static cache is told where they stand by `number`, if not at the beginning.
        """
        if not self.static:
            filled = self.own[0].filled
            return torch.arange(filled, filled + count, device=device)[None], None
        self.number = torch.arange(count, device=device) if number is None else number
        everywhere = torch.arange(self.length, device=device)
        return self.number[None], (everywhere <= self.number[:, None])[None, None]

    def clear(self) -> None:
        """Begin the next batch; the memory is kept."""
        self.number = None
        for layer in self.own:
            layer.filled = 0


class _Layer(DynamicLayer):
    """One layer's part, in one piece of memory that is allocated at its first use."""

    def __init__(self, owner: KeyValues) -> None:
        super().__init__()
        self.owner = owner
        self.room: tuple[Tensor, Tensor] | None = None
        self.filled = 0

    def get_seq_length(self) -> int:
        """Return how many positions are filled, of a growing cache."""
        return self.filled

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store (B, heads, L, head width) and return what the queries may look at."""
        room = self.room
        if room is None or room[0].shape[0] != key_states.shape[0]:
            room = self.room = (self._allocate(key_states), self._allocate(value_states))
        self.is_initialized = True
        number = self.owner.number
        for part, states in zip(room, (key_states, value_states), strict=True):
            if number is not None:
                part.index_copy_(2, number, states)
            else:
                part[:, :, self.filled : self.filled + states.shape[2]] = states
        if number is not None:
            self.keys, self.values = room
        else:
            self.filled += key_states.shape[2]
            self.keys, self.values = (part[:, :, : self.filled] for part in room)
        return self.keys, self.values

    def _allocate(self, states: Tensor) -> Tensor:
        batch, heads, _, width = states.shape
        part = states.new_zeros(batch, heads, self.owner.length, width)
        if self.owner.static and not torch.compiler.is_compiling():
            torch._dynamo.mark_static_address(part)  # else CUDA graphs copy it at every step
        return part
