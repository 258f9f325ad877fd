"""The networks that read a class from a map: a vision transformer, or one linear layer.

The transformer is ViT (arXiv:2010.11929) as MAE fine-tunes it (2111.06377): a class token that
nobody reads, the mean over positions, one normalisation, one linear layer. For small sets the last
layer may see every position instead. The names are those of MAE's own code, so that its weights fit
(`pretrained.py`).

Shapes: B maps, D channels, h x w positions, N = h w, W width of the transformer, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqkit.config.classification import ProbeClassifier, ViTClassifier
from vqkit.models.vit import grid_positions

EPS = 1e-6
"""Of every layer normalisation, as in MAE's code."""


class Attention(nn.Module):
    """Self-attention of several heads over (B, N, W); one layer for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of `x`."""
        parts = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B, N, 3, heads, W / heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of `x`."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """`x + attention(norm1(x))`, then `x + mlp(norm2(x))`; in training images may skip both."""

    def __init__(self, config: ViTClassifier, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.norm1 = nn.LayerNorm(config.width, eps=EPS)
        self.attn = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=EPS)
        self.mlp = MLP(config.width, config.mlp)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of `x` (B, N, W)."""
        x = x + self._kept(self.attn(self.norm1(x)))
        return x + self._kept(self.mlp(self.norm2(x)))

    def _kept(self, branch: Tensor) -> Tensor:
        """Drop the branch for some images (stochastic depth, arXiv:1603.09382)."""
        if not self.training or not self.drop:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop
        return branch * kept / (1 - self.drop)


class ConvolutionalStem(nn.Sequential):
    """Convolutions of 3 x 3 positions from D to W channels, GELU between them."""

    def __init__(self, channels: int, width: int, count: int) -> None:
        parts: list[nn.Module] = []
        for number in range(count):
            parts += [nn.GELU()] if number else []
            parts += [nn.Conv2d(width if number else channels, width, 3, padding=1)]
        super().__init__(*parts)

    def forward(self, maps: Tensor) -> Tensor:
        """Return features (B, N, W) of maps (B, D, h, w)."""
        out: Tensor = super().forward(maps)
        return out.flatten(2).transpose(1, 2)


class LinearStem(nn.Linear):
    """One linear layer for every position."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return features (B, N, W) of maps (B, D, h, w)."""
        return super().forward(maps.flatten(2).transpose(1, 2))


class TokenViT(nn.Module):
    """Classes of maps (B, D, h, w); a linear layer in place of the embedding of patches."""

    def __init__(
        self, config: ViTClassifier, channels: int, grid: tuple[int, int], num_classes: int
    ) -> None:
        super().__init__()
        width = config.width
        self.patch_embed: LinearStem | ConvolutionalStem
        if config.convolutions:
            self.patch_embed = ConvolutionalStem(channels, width, config.convolutions)
        else:
            self.patch_embed = LinearStem(channels, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        places = grid_positions(*grid, width, torch.device("cpu"))
        self.pos_embed = nn.Parameter(F.pad(places, (0, 0, 1, 0))[None])  # (1, 1 + N, W)
        drops = torch.linspace(0, config.drop_path, config.layers).tolist()
        self.blocks = nn.ModuleList(Block(config, drop) for drop in drops)
        self.fc_norm = nn.LayerNorm(width, eps=EPS)
        self.pooling = config.pooling
        positions = grid[0] * grid[1] if config.pooling == "none" else 1
        self.head = nn.Linear(width * positions, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights as MAE does, but for the layer that reads codes."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # Channels are normalised, so that what comes out is as large as MAE's patches and positions
        # are, however few channels there are.
        if isinstance(self.patch_embed, LinearStem):
            nn.init.normal_(self.patch_embed.weight, std=self.patch_embed.in_features**-0.5)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)  # MAE's: it begins by knowing nothing

    def features(self, maps: Tensor) -> Tensor:
        """Return the normalised mean over positions (B, W), or all positions (B, N W)."""
        x = self.patch_embed(maps)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        pooled = x[:, 1:].mean(1) if self.pooling == "mean" else x[:, 1:]
        out: Tensor = self.fc_norm(pooled)
        return out.flatten(1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits (B, K) of normalised maps (B, D, h, w)."""
        out: Tensor = self.head(self.features(maps))
        return out

    def layer_of(self, name: str) -> int:
        """Return which layer a parameter belongs to: blocks 1 to L, what is before 0, after L + 1.

        `patch_embed` counts as after: unlike the rest it was never trained before.
        """
        first = name.split(".")
        if first[0] == "blocks":
            return int(first[1]) + 1
        return 0 if first[0] in ("cls_token", "pos_embed") else len(self.blocks) + 1


class Probe(nn.Module):
    """One linear layer on features: those of the map itself, or of a frozen transformer."""

    def __init__(
        self,
        config: ProbeClassifier,
        channels: int,
        grid: tuple[int, int],
        num_classes: int,
        backbone: TokenViT | None,
    ) -> None:
        """Build it, with zero weights; `backbone` is frozen and kept in evaluation mode."""
        super().__init__()
        self.config = config
        self.backbone = backbone.requires_grad_(False) if backbone is not None else None
        positions = grid[0] * grid[1] if config.pooling == "none" else 1
        features = channels * positions
        if backbone is not None:
            features = backbone.head.in_features
        self.head = nn.Linear(features, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> Probe:
        """Set the mode; the backbone stays in evaluation mode."""
        super().train(mode)
        if self.backbone is not None:
            self.backbone.eval()
        return self

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits (B, K) of normalised maps (B, D, h, w)."""
        if self.backbone is not None:
            features = self.backbone.features(maps)
        else:
            features = maps.mean((2, 3)) if self.config.pooling == "mean" else maps.flatten(1)
        out: Tensor = self.head(features)
        return out

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter: there is but one."""
        return 0
