"""Building blocks of the networks: those of the small VQ-VAE, and what all networks share.

Shapes: B images, C channels, H and W pixels of the map at hand.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vqkit.config import Skip


class ResidualBlock(nn.Module):
    """`skip(x) + Conv1(relu(Conv3(relu(x))))` on (B, C, H, W), without normalisation.

    The published VQ-VAE codes (Zalando, CVQ-VAE, LooC) run the first ReLU in place, so what their
    skip carries is relu(x). `skip="relu"` reproduces that; `skip="identity"` carries x itself.
    """

    def __init__(self, channels: int, hidden: int, *, skip: Skip = "relu") -> None:
        super().__init__()
        self.skip = skip
        self.spatial = nn.Conv2d(channels, hidden, 3, padding=1)
        self.mix = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of `x`; `x` itself is never written to."""
        active = F.relu(x)
        carried = active if self.skip == "relu" else x
        added: Tensor = self.mix(F.relu(self.spatial(active)))
        return carried + added


def residual_stack(channels: int, hidden: int, num_blocks: int, *, skip: Skip) -> nn.Sequential:
    """Chain `num_blocks` residual blocks and close with one ReLU; (B, C, H, W) keeps its shape."""
    blocks = [ResidualBlock(channels, hidden, skip=skip) for _ in range(num_blocks)]
    return nn.Sequential(*blocks, nn.ReLU())


def call(part: nn.Module, *inputs: Tensor | None, checkpointing: bool) -> Tensor:
    """Return `part(*inputs)`; with `checkpointing`, training keeps none of its activations.

    They are computed again in backward, with the same random numbers, so gradients are the same
    bit for bit. Without gradients, and in evaluation, there is nothing to save.
    """
    out: Tensor
    if checkpointing and part.training and torch.is_grad_enabled():
        out = checkpoint(part, *inputs, use_reentrant=False)
    else:
        out = part(*inputs)
    return out
