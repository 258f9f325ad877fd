"""Encoder and decoder of ViT-VQGAN (Yu et al., arXiv:2110.04627).

The authors' code is not public. The sizes (blocks, heads, widths) are the paper's; the layers are
those of the unofficial code `enhancing-transformers`, whose author asked the paper's for details:
every MLP has a tanh in the middle (the paper speaks of one only in its output projection, which is
one linear layer here), `qkv` has no bias, and positions are fixed sines and cosines. These are
computed for the grid at hand, so any height and width that are multiples of the patch will do.

Shapes: B images, h x w patches, N = h w, D = `network.width`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqkit.config import ViTNetwork
from vqkit.models.blocks import call

_LONGEST = 10_000.0
"""The slowest sine of a position has about this wavelength, over 2 pi."""


def grid_positions(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Return the positions (height * width, dim) of a grid, row by row, in float32.

    The first half encodes the column and the second the row: `dim / 4` sines and as many cosines
    of the coordinate times 10000^(-4 k / dim), k = 0, 1, ...
    """
    quarter = dim // 4
    frequencies = _LONGEST ** -(torch.arange(quarter, device=device) / quarter)
    rows = torch.arange(height, device=device)[:, None] * frequencies  # (h, D / 4)
    columns = torch.arange(width, device=device)[:, None] * frequencies  # (w, D / 4)
    of_column = torch.cat([columns.sin(), columns.cos()], dim=-1).expand(height, -1, -1)
    of_row = torch.cat([rows.sin(), rows.cos()], dim=-1)[:, None].expand(-1, width, -1)
    return torch.cat([of_column, of_row], dim=-1).flatten(0, 1)


class Attention(nn.Module):
    """Self-attention of several heads over (B, N, D); scores are divided by sqrt(D / heads)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of `x` (B, N, D)."""
        parts = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B, N, 3, heads, D / heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, D / heads)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """`x = x + attention(norm1(x))`, then `x + mlp(norm2(x))`, on (B, N, D)."""

    def __init__(self, network: ViTNetwork) -> None:
        super().__init__()
        width = network.width
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, network.heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, network.mlp), nn.Tanh(), nn.Linear(network.mlp, width)
        )
        self.dropout = nn.Dropout(network.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of `x`."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        out: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return out


class Transformer(nn.Module):
    """Positions, blocks and a last normalisation, on maps (B, D, h, w)."""

    def __init__(self, network: ViTNetwork) -> None:
        super().__init__()
        self.checkpointing = network.checkpointing
        self.blocks = nn.ModuleList(Block(network) for _ in range(network.depth))
        self.norm = nn.LayerNorm(network.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of `x`, in the memory layout channels_last."""
        _, dim, h, w = x.shape
        # packed once, for every block to work on; a channels_last map is packed already
        x = x.flatten(2).transpose(1, 2).contiguous()
        x = x + grid_positions(h, w, dim, x.device).to(x.dtype)
        for block in self.blocks:
            x = call(block, x, checkpointing=self.checkpointing)
        out: Tensor = self.norm(x).transpose(1, 2).unflatten(2, (h, w))
        return out


class ViTEncoder(nn.Module):
    """Images (B, image_channels, H, W) to features (B, out_channels, H / patch, W / patch).

    A quantizer of `network.width` channels (`in_channels` of the preset `vit_vqgan`) has the
    projection to the codes in itself; before any other one there is a linear layer.
    """

    def __init__(self, network: ViTNetwork, out_channels: int) -> None:
        super().__init__()
        patch, width = network.patch, network.width
        self.patches = nn.Conv2d(network.image_channels, width, patch, stride=patch)
        self.transformer = Transformer(network)
        self.project = _projection(width, out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Return z; height and width must be multiples of the patch, or pixels are lost."""
        z: Tensor = self.project(self.transformer(self.patches(images)))
        return z


class ViTDecoder(nn.Module):
    """Quantized features (B, in_channels, h, w) to images (B, image_channels, H, W).

    Projections: see `ViTEncoder`.
    """

    def __init__(self, network: ViTNetwork, in_channels: int) -> None:
        super().__init__()
        patch, width = network.patch, network.width
        self.project = _projection(in_channels, width)
        self.transformer = Transformer(network)
        self.pixels = nn.ConvTranspose2d(width, network.image_channels, patch, stride=patch)

    @property
    def last_weight(self) -> Tensor:
        """Weight of the last layer, whose gradients balance the losses of VQGAN."""
        return self.pixels.weight

    def forward(self, z_q: Tensor) -> Tensor:
        """Return images around [-1, 1], not clamped."""
        # codes may have another precision than a model that was moved to bfloat16
        x = self.project(z_q.to(self.pixels.weight.dtype))
        images: Tensor = self.pixels(self.transformer(x))
        return images


def _projection(before: int, after: int) -> nn.Module:
    return nn.Identity() if before == after else nn.Conv2d(before, after, 1)
