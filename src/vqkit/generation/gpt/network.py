"""A GPT over token maps: a class, then the positions of the grid in raster order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqkit.config import GPTConfig, require
from vqkit.generation.gpt.tables import SlotTable, token_losses
from vqkit.generation.gpt.trunk import Trunk
from vqkit.quantizers import Slot

# B = images, U = units of an image in the order of writing, S = tokens of a unit, T = slots,
# D = width, K = codes of one slot


class GPT(nn.Module):
    """Writes unit after unit; a unit is one position, or one token where slots are interleaved.

    The inputs are the class and all units but the last; the output at each says what comes next.
    A unit of several tokens enters as the sum of their embeddings, and is written token by token by
    a second, small transformer, which is given the trunk's output and the running sums of the
    tokens already written (RQ-Transformer, arXiv:2203.01941, section 3.2).

    Args:
        config: The settings.
        grid: Rows and columns of positions.
        slots: Tokens of a position.
        num_classes: Classes to learn; 0 for none. One more row of the table means "no class".

    Raises:
        ValueError: several slots and no way given to write them, or one slot and a way.
    """

    offsets: Tensor

    def __init__(
        self, config: GPTConfig, *, grid: tuple[int, int], slots: tuple[Slot, ...], num_classes: int
    ) -> None:
        super().__init__()
        check_slots(config, len(slots))
        self.grid, self.num_slots, self.num_classes = grid, len(slots), num_classes
        self.token_noise = config.token_noise
        interleaved = config.slots == "interleave"
        positions = grid[0] * grid[1]
        self.units, self.unit_tokens = (
            (positions * len(slots), 1) if interleaved else (positions, len(slots))
        )
        slot_codes = tuple(slot.num_codes for slot in slots)
        self.labels = nn.Embedding(num_classes + 1, config.width)
        nn.init.normal_(self.labels.weight, std=0.02)
        self.tokens = SlotTable(slot_codes, config.width)
        self.head = self.tokens if config.tie_embeddings else SlotTable(slot_codes, config.width)
        self.trunk = Trunk(config, layers=config.layers, length=self.units)
        self.depth = (
            Trunk(config, layers=config.depth_layers, length=len(slots))
            if config.slots == "depth"
            else None
        )
        offsets = torch.tensor(self.tokens.offsets).repeat(positions)
        self.register_buffer("offsets", offsets.view(self.units, self.unit_tokens), False)

    @property
    def slot_codes(self) -> tuple[int, ...]:
        """Codes of each slot."""
        return self.tokens.slot_codes

    def slot_of(self, unit: int, token: int) -> int:
        """Return the slot of a token of a unit."""
        return (unit * self.unit_tokens + token) % self.num_slots

    def begin(self, labels_B: Tensor) -> Tensor:
        """Return the first input (B, 1, D); label `num_classes` means no class."""
        return self.labels(labels_B)[:, None]

    def embed(self, units_BUS: Tensor, first: int | Tensor = 0) -> Tensor:
        """Return the inputs (B, U, D) that consecutive units make, the first of number `first`."""
        steps = torch.arange(units_BUS.shape[1], device=units_BUS.device) + first
        return self._rows(units_BUS + self.offsets[steps]).sum(dim=2)

    def embed_token(self, ids_B: Tensor, slot: int) -> Tensor:
        """Return the embeddings (B, D) of tokens of one slot."""
        return self._rows(ids_B + self.tokens.offsets[slot])

    def logits(self, hidden_BD: Tensor, slot: int) -> Tensor:
        """Return the logits (B, K) of one token of a slot."""
        return nn.functional.linear(hidden_BD, self.head.rows(slot))

    def forward(self, ids: Tensor, labels_B: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Return the mean of -log p of each slot's tokens, (T,) float32 nats.

        Args:
            ids: (B, h, w, T) int64, what is to be written.
            labels_B: (B,) int64; `num_classes` means no class.
            inputs: what is read instead of `ids`, where some of them are replaced in training.
        """
        units_BUS = self.as_units(ids)
        seen_BUS = units_BUS if inputs is None else self.as_units(inputs)
        x_BUD = torch.cat((self.begin(labels_B), self.embed(seen_BUS[:, :-1])), dim=1)
        hidden_BUSD = self.within(self.trunk(x_BUD), seen_BUS)
        hidden = hidden_BUSD.flatten(1, 2).unflatten(1, (-1, self.num_slots))
        tokens = ids.flatten(1, 2)
        return torch.stack(
            [
                token_losses(
                    hidden[:, :, slot].flatten(0, 1),
                    self.head.rows(slot),
                    tokens[..., slot].flatten(),
                )
                for slot in range(self.num_slots)
            ]
        )

    def within(self, hidden_BUD: Tensor, units_BUS: Tensor) -> Tensor:
        """Return the vectors (B, U, S, D) from which each token of each unit is read."""
        if self.depth is None:
            return hidden_BUD[:, :, None]
        earlier = self._rows(units_BUS + self.offsets)[:, :, :-1].cumsum(dim=2)
        x = torch.cat((hidden_BUD[:, :, None], earlier), dim=2)
        return self.depth(x.flatten(0, 1)).unflatten(0, hidden_BUD.shape[:2])

    def as_units(self, ids: Tensor) -> Tensor:
        """Return ids (B, h, w, T) as units (B, U, S)."""
        return ids.reshape(len(ids), -1, self.unit_tokens)

    def _rows(self, rows: Tensor) -> Tensor:
        return nn.functional.embedding(rows, self.tokens.weight)


def check_slots(config: GPTConfig, count: int) -> None:
    """Raise `ValueError` unless the settings say how several slots are written, and only then."""
    require(
        count == 1 or config.slots is not None,
        f"model.slots=None with {count} tokens per position",
        "choose 'depth' (a second transformer) or 'interleave' (one long row)",
    )
    require(
        count > 1 or config.slots is None,
        f"model.slots={config.slots!r}",
        "these tokens are one per position; leave it out",
    )
