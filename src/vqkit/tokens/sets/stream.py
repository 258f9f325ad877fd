"""Batches of tokens for training: shuffled, and a pure function of (seed, step).

Legend: b images of this process, h w grid, T tokens per position, C channels of a latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqkit.data.stream import Shuffle
from vqkit.tokens.sets.token_set import TokenSet


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Tokens of images that were drawn together."""

    ids: Tensor
    """(b, h, w, T) int64."""
    labels: Tensor
    """(b,) int64; -1 without a class."""
    latents: Tensor | None
    """(b, C, h, w) float32, None where the set holds none or nobody asked."""
    indices: Tensor
    """(b,) int64: which images of the set."""


class TokenStream:
    """Shuffled batches without end, each a pure function of (token set, batch_size, seed, step).

    Epochs are shuffled as those of images are (`vqkit.data.stream.Shuffle`), so the global batch is
    the same for any number of ranks, and nothing has to be saved to resume: ask for the next step.

    Args:
        token_set: from `TokenSet.open`; all images of one grid.
        batch_size: images per step over all ranks together.
        seed: 0 or more.
        rank, world_size: this process and the number of processes.
        latents: whether batches bring the latents; by default if the set holds any.

    Raises `ValueError` for a batch that the ranks cannot share or the set cannot fill.
    """

    def __init__(
        self,
        token_set: TokenSet,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        latents: bool | None = None,
    ) -> None:
        found = len(token_set)
        self.token_set = token_set
        self._latents = token_set.latent_channels > 0 if latents is None else latents
        self._shuffle = Shuffle(
            found,
            batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            too_few=f"the token set has only {found:,} images; lower optim.batch_size, or tokenize "
            "more images",
        )

    @property
    def batches_per_epoch(self) -> int:
        """Full batches in one epoch; `epoch = step // batches_per_epoch`."""
        return len(self.token_set) // self._shuffle.batch_size

    def batch(self, step: int) -> TokenBatch:
        """This rank's share of global batch `step` (0, 1, …)."""
        indices, _ = self._shuffle.batch(step)
        return TokenBatch(
            ids=self.token_set.ids(indices),
            labels=self.token_set.labels(indices),
            latents=self.token_set.latents(indices) if self._latents else None,
            indices=torch.from_numpy(np.array(indices)),
        )
