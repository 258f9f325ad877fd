"""Training a diffusion model on the latents of a token set, for `training.fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqkit.config import require
from vqkit.config.diffusion import DiffusionConfig
from vqkit.generation.diffusion.generator import model_settings
from vqkit.generation.diffusion.losses import diffusion_losses
from vqkit.generation.diffusion.model import LatentModel
from vqkit.generation.generator import Card, save_generator
from vqkit.tokens import TokenSet, TokenStream

WATCHED = 256
"""Images of the token set whose loss is measured at every checkpoint."""

Batch = tuple[Tensor, Tensor]
"""Latents (B, C, h, w) of the tokenizer and classes (B,)."""


class DiffusionTask:
    """What `training.fit` needs to train a diffusion model.

    Args:
        tokens: Token set with latents (`vqkit tokenize --latents`).
        held_out: Another one, whose loss is measured; None measures that of the first 256 images
            trained on.
        config: The model.
        card: What the generator writes; without classes where `config` has none.
        batch_size: Images per step, over all processes.
        seed: Of the weights, the order of images and all draws.
        rank: Of this process, of `world_size`.
        world_size: Number of processes.

    Raises:
        ValueError: a token set without latents, labels or one size, or with bad statistics.
    """

    model: nn.Module

    def __init__(
        self,
        tokens: TokenSet,
        config: DiffusionConfig,
        card: Card,
        *,
        batch_size: int,
        seed: int,
        held_out: TokenSet | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_latents(tokens, config)
        if held_out is not None:
            check_latents(held_out, config, name="held_out")
        self.tokens, self.config, self.card, self.seed = tokens, config, card, seed
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.model = LatentModel(
                config,
                channels=tokens.latent_channels,
                grid=card.grid,
                num_classes=card.num_classes,
            )
        self.model.set_statistics(tokens.latent_mean, tokens.latent_std)
        self.stream = TokenStream(tokens, batch_size, seed, rank, world_size)
        self.watched = held_out or tokens
        self.watched_name = "held_out_loss" if held_out else "loss_of_trained"

    def batch(self, step: int) -> Batch:
        """Return latents and classes of this process's share of global batch `step`."""
        drawn = self.stream.batch(step)
        assert drawn.latents is not None  # the set was checked
        return self._checked(drawn.latents, drawn.labels)

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the loss of a part of a batch."""
        return self._losses(self.model, batch, generator)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return the loss of a few images, always with the same noise and times."""
        rows = torch.arange(min(WATCHED, self.watched.num_images))
        batch = self._checked(self.watched.latents(rows), self.watched.labels(rows))
        source = torch.Generator().manual_seed(self.seed)
        return {self.watched_name: float(self._losses(model, batch, source)["loss"])}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the generator that `model` is."""
        assert isinstance(model, LatentModel)
        save_generator(folder, "diffusion", model_settings(model), self.card, model.state_dict())

    def facts(self) -> dict[str, Any]:
        """Return what must be the same when the run is continued."""
        return {
            "tokens": self.tokens.fingerprint,
            "held_out": None if self.watched is self.tokens else self.watched.fingerprint,
        }

    def _losses(
        self, model: nn.Module, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        assert isinstance(model, LatentModel)
        latents, labels = (tensor.to(model.mean.device) for tensor in batch)
        return diffusion_losses(model, model.normalise(latents), labels, generator)

    def _checked(self, latents: Tensor, labels: Tensor) -> Batch:
        if self.card.num_classes == 0:
            return latents, torch.zeros_like(labels)
        low, high = int(labels.min()), int(labels.max())
        require(
            low >= 0 and high < self.card.num_classes,
            f"labels in [{low}, {high}]",
            f"expected [0, {self.card.num_classes}); images without a class (-1) are learnt with "
            "model.conditional=false",
        )
        return latents, labels


def check_latents(tokens: TokenSet, config: DiffusionConfig, *, name: str = "tokens") -> None:
    """Raise `ValueError` unless a diffusion model can be trained, or measured, on this set."""
    require(
        tokens.latent_channels > 0,
        name,
        "this token set holds no latents, which a diffusion model learns; tokenize with --latents",
    )
    require(
        tokens.grid is not None,
        name,
        "its images have grids of several sizes; tokenize with one size",
    )
    require(
        not config.conditional or tokens.num_classes > 0,
        "model.conditional=true",
        "this token set has no labels; set it to false",
    )
