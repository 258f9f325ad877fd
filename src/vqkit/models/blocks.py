"""Building blocks of the convolutional networks.

Shapes: B images, C channels, H and W pixels of the map at hand.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

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
