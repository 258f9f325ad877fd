"""Building blocks of VQGAN's encoder and decoder (Esser et al., arXiv:2012.09841).

Shapes: B images, C channels, H and W positions of the map at hand. `codes` is the quantized map
(B, code_channels, h, w) that modulates the normalisations of MoVQ; all other norms ignore it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from torch import Tensor, nn
from torch.nn import functional as F

EPSILON: Final = 1e-6
"""Added to the variance by every group normalisation; torch's own default is 1e-5."""


class Norm(nn.GroupNorm):
    """Group normalisation of (B, C, H, W)."""

    def forward(self, input: Tensor, codes: Tensor | None = None) -> Tensor:
        """Return a map of the same shape; `codes` changes nothing here."""
        return super().forward(input)


class ModulatedNorm(nn.Module):
    """`norm(x) * scale(up(codes)) + shift(up(codes))` (MoVQ, arXiv:2209.09002).

    `up` repeats the codes to the size of x (nearest neighbour); `scale` and `shift` are 1 x 1
    convolutions, and `norm` has weights of its own, as in the published code.
    """

    def __init__(self, groups: int, channels: int, code_channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=EPSILON)
        self.scale = nn.Conv2d(code_channels, channels, 1)
        self.shift = nn.Conv2d(code_channels, channels, 1)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """Return a map of the shape of `x` (B, C, H, W)."""
        # A 1 x 1 convolution of repeated codes is the repeated convolution, at a fraction of the
        # cost: 256 times less on the finest level of f16.
        size = x.shape[-2:]
        scale = F.interpolate(self.scale(codes), size)
        shift = F.interpolate(self.shift(codes), size)
        modulated: Tensor = self.norm(x) * scale + shift
        return modulated


Norms = Callable[[int], Norm | ModulatedNorm]
"""Makes the normalisation of a map of so many channels."""


def plain_norms(groups: int) -> Norms:
    """Return the maker of group normalisations."""
    return partial(Norm, groups, eps=EPSILON)


def modulated_norms(groups: int, code_channels: int) -> Norms:
    """Return the maker of normalisations that codes of `code_channels` channels modulate."""
    return partial(ModulatedNorm, groups, code_channels=code_channels)


class ResidualBlock(nn.Module):
    """`shortcut(x) + conv2(dropout(swish(norm2(conv1(swish(norm1(x)))))))`, 3 x 3 convolutions.

    The shortcut is a 1 x 1 convolution where the number of channels changes, else x itself.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norms: Norms, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = norms(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = norms(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        added = self.conv1(F.silu(self.norm1(x, codes)))
        added = self.conv2(self.dropout(F.silu(self.norm2(added, codes))))
        out: Tensor = self.shortcut(x) + added
        return out


class AttentionBlock(nn.Module):
    """`x + out(attention(q, k, v))` over all positions, with one head of all C channels.

    `q`, `k`, `v` and `out` are 1 x 1 convolutions; the scores are divided by sqrt(C).
    """

    def __init__(self, channels: int, norms: Norms) -> None:
        super().__init__()
        self.norm = norms(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        """Return a map of the shape of `x` (B, C, H, W)."""
        active = self.norm(x, codes)
        q, k, v = (_as_sequence(part(active)) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, 1, H W, C)
        added: Tensor = self.out(mixed.squeeze(1).transpose(1, 2).unflatten(2, x.shape[-2:]))
        return x + added


class Downsample(nn.Module):
    """3 x 3 convolution of stride 2 over a map with a row of zeros below and a column at the right.

    VQGAN pads only there, which is what other frameworks' "same" padding does.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, 2h, 2w) to (B, C, h, w)."""
        halved: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return halved


class Upsample(nn.Module):
    """Every position repeated 2 x 2 times, then a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, 2h, 2w)."""
        doubled: Tensor = self.conv(F.interpolate(x, scale_factor=2.0))
        return doubled


def _as_sequence(x: Tensor) -> Tensor:
    """Return (B, C, H, W) as one packed head (B, 1, H W, C); a view where x is channels_last."""
    return x.flatten(2).transpose(1, 2).contiguous().unsqueeze(1)
