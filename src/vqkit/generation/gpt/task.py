"""Training a GPT on a token set, for `training.fit`, and its bits on any token set."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from vqkit.config import GPTConfig, require, to_dict
from vqkit.generation.generator import Card, save_generator
from vqkit.generation.gpt.generator import build_gpt
from vqkit.generation.gpt.network import GPT
from vqkit.tokens import TokenSet, TokenStream

WATCHED: Final = 1000
"""Held-out images whose bits are measured at every checkpoint."""

Batch = tuple[Tensor, Tensor]
"""Ids (B, h, w, T) and classes (B,), int64."""


class GPTTask:
    """What `training.fit` needs to train a GPT.

    Args:
        tokens: The token set to train on.
        config: The model.
        card: What the generator writes; without classes where `config` has none.
        batch_size: Images per step, over all processes.
        seed: Of the weights, the order of images and all draws.
        held_out: Another token set, whose bits are measured at every checkpoint.
        rank: Of this process, of `world_size`.
        world_size: Number of processes.
    """

    model: nn.Module

    def __init__(
        self,
        tokens: TokenSet,
        config: GPTConfig,
        card: Card,
        *,
        batch_size: int,
        seed: int,
        held_out: TokenSet | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.tokens, self.held_out = tokens, held_out
        self.config, self.card = config, card
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = build_gpt(config, card)
        self.stream = TokenStream(tokens, batch_size, seed, rank, world_size, latents=False)

    def batch(self, step: int) -> Batch:
        """Return ids and classes of this process's share of global batch `step`."""
        drawn = self.stream.batch(step)
        return drawn.ids, classes_of(drawn.labels, self.card.num_classes)

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the mean loss of a token in nats, and the same in bits per token and per image."""
        ids, labels = batch
        inputs = replaced(ids, self.card, self.config.token_noise, generator)
        hidden = torch.rand(len(labels), generator=generator) < self.config.label_dropout
        labels = labels.masked_fill(hidden, self.card.num_classes)
        device = next(self.model.parameters()).device
        nats_T = self.model(
            ids.to(device), labels.to(device), None if inputs is None else inputs.to(device)
        )
        return {"loss": nats_T.mean(), **bits_of(nats_T.detach(), self.card.grid)}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return the bits of the first 1,000 held-out images, if there are any."""
        if self.held_out is None:
            return {}
        assert isinstance(model, GPT)
        return measure_bits(model, self.held_out, limit=WATCHED)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the generator that `model` is."""
        save_generator(folder, "gpt", to_dict(self.config), self.card, model.state_dict())

    def facts(self) -> dict[str, Any]:
        """Return what must be the same when the run is continued."""
        held_out = self.held_out
        return {
            "tokens": self.tokens.fingerprint,
            "held_out": held_out.fingerprint if held_out is not None else None,
        }


def replaced(ids: Tensor, card: Card, share: float, generator: torch.Generator) -> Tensor | None:
    """Return ids of which a share is drawn anew, each from the codes of its slot; None for none.

    VQGAN-LC's code replaces a fifth (`pkeep` 0.8), by any id of the whole vocabulary, that of the
    classes included.
    """
    if share == 0:
        return None
    uniform = torch.rand(ids.shape, generator=generator, dtype=torch.float64)
    others = (uniform * torch.tensor([slot.num_codes for slot in card.slots])).long()
    return torch.where(torch.rand(ids.shape, generator=generator) < share, others, ids)


@torch.no_grad()
def measure_bits(
    network: GPT, tokens: TokenSet, *, batch_size: int = 64, limit: int | None = None
) -> dict[str, float]:
    """Return `bits_per_token` and `bits_per_image` of the first `limit` images of a token set.

    A conditional network is told their classes. It must be in evaluation mode.
    """
    device = next(network.parameters()).device
    total = torch.zeros(network.num_slots)
    count = tokens.num_images if limit is None else min(limit, tokens.num_images)
    for first in range(0, count, batch_size):
        rows = torch.arange(first, min(first + batch_size, count))
        labels = classes_of(tokens.labels(rows), network.num_classes)
        nats_T = network(tokens.ids(rows).to(device), labels.to(device))
        total += nats_T.cpu() * (len(rows) / count)
    return {name: float(value) for name, value in bits_of(total, network.grid).items()}


def bits_of(nats_T: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Turn the mean loss of each slot into bits per token and per image."""
    per_token = nats_T.mean() / math.log(2)
    return {
        "bits_per_token": per_token,
        "bits_per_image": per_token * (len(nats_T) * grid[0] * grid[1]),
    }


def classes_of(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels as the network takes them: all "no class" where it knows none.

    Raises:
        ValueError: labels that are no classes.
    """
    if num_classes == 0:
        return torch.zeros_like(labels)
    low, high = int(labels.min()), int(labels.max())
    require(
        low >= 0 and high < num_classes,
        f"labels in [{low}, {high}]",
        f"expected [0, {num_classes}); images without a class (-1) are learnt with "
        "model.conditional=false",
    )
    return labels
