"""Encoder and decoder of VQGAN (Esser et al., arXiv:2012.09841), and MoVQ's modulated decoder.

The layers are those of the published code: f16 is `VQGANNetwork()`, f8 has multipliers
(1, 2, 2, 4) and f32 has (1, 1, 2, 2, 4, 4). Both networks are convolutional: any height and width
that are multiples of the stride will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, zip_longest

from torch import Tensor, nn
from torch.nn import functional as F

from vqkit.config import VQGANNetwork, require
from vqkit.models.blocks import call
from vqkit.models.vqgan_blocks import (
    AttentionBlock,
    Downsample,
    Norms,
    ResidualBlock,
    Upsample,
    modulated_norms,
    plain_norms,
)


@dataclass(frozen=True, slots=True)
class Parts:
    """What all blocks of one network have in common."""

    norms: Norms
    dropout: float
    checkpointing: bool


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by self-attention where `attention` says."""

    def __init__(
        self, channels: tuple[int, int], num_blocks: int, parts: Parts, *, attention: bool
    ) -> None:
        """Map the first of `channels` to the second, in the first block."""
        super().__init__()
        self.checkpointing = parts.checkpointing
        before, after = channels
        widths = [before, *[after] * (num_blocks - 1)]
        self.blocks = nn.ModuleList(
            ResidualBlock(width, after, parts.norms, dropout=parts.dropout) for width in widths
        )
        self.attentions = nn.ModuleList(
            AttentionBlock(after, parts.norms) for _ in range(num_blocks if attention else 0)
        )

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        """Map (B, before, H, W) to (B, after, H, W)."""
        for block, attention in zip_longest(self.blocks, self.attentions):
            x = call(block, x, codes, checkpointing=self.checkpointing)
            if attention is not None:
                x = call(attention, x, codes, checkpointing=self.checkpointing)
        return x


class EncoderLevel(Level):
    """A level, then `down`: the coarser resolution of the next one, if there is one."""

    def __init__(
        self,
        channels: tuple[int, int],
        num_blocks: int,
        parts: Parts,
        *,
        attention: bool,
        is_last: bool,
    ) -> None:
        super().__init__(channels, num_blocks, parts, attention=attention)
        self.down = nn.Identity() if is_last else Downsample(channels[1])

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        """Map (B, before, H, W) to (B, after, H / 2, W / 2), or H and W after the last level."""
        out: Tensor = self.down(super().forward(x, codes))
        return out


class DecoderLevel(Level):
    """A level, then `up`: the finer resolution of the next one, if there is one."""

    def __init__(
        self,
        channels: tuple[int, int],
        num_blocks: int,
        parts: Parts,
        *,
        attention: bool,
        is_last: bool,
    ) -> None:
        super().__init__(channels, num_blocks, parts, attention=attention)
        self.up = nn.Identity() if is_last else Upsample(channels[1])

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        """Map (B, before, h, w) to (B, after, 2h, 2w), or h and w after the last level."""
        out: Tensor = self.up(super().forward(x, codes))
        return out


class Middle(nn.Module):
    """Residual block, self-attention, residual block at the coarsest resolution."""

    def __init__(self, channels: int, parts: Parts) -> None:
        super().__init__()
        self.checkpointing = parts.checkpointing
        self.first = ResidualBlock(channels, channels, parts.norms, dropout=parts.dropout)
        self.attention = AttentionBlock(channels, parts.norms)
        self.second = ResidualBlock(channels, channels, parts.norms, dropout=parts.dropout)

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        """Return a map of the shape of `x` (B, C, H, W)."""
        for part in (self.first, self.attention, self.second):
            x = call(part, x, codes, checkpointing=self.checkpointing)
        return x


class VQGANEncoder(nn.Module):
    """Images (B, image_channels, H, W) to features (B, out_channels, H / stride, W / stride)."""

    def __init__(self, network: VQGANNetwork, out_channels: int) -> None:
        super().__init__()
        norms = plain_norms(network.norm_groups)
        parts = Parts(norms, network.dropout, network.checkpointing)
        widths = [network.width * multiplier for multiplier in network.multipliers]
        self.conv_in = nn.Conv2d(network.image_channels, network.width, 3, padding=1)
        self.levels = nn.ModuleList()
        for index, channels in enumerate(pairwise([network.width, *widths])):
            stride = 2**index
            level = EncoderLevel(
                channels,
                network.num_res_blocks,
                parts,
                attention=stride in network.attention_strides,
                is_last=stride == network.stride,
            )
            self.levels.append(level)
        self.middle = Middle(widths[-1], parts)
        self.norm_out = norms(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], network.z_channels, 3, padding=1)
        self.quant_conv = _quant_conv(network, network.z_channels, out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Return z; height and width must be multiples of the stride, or pixels are lost."""
        x = self.conv_in(images)
        for level in self.levels:
            x = level(x)
        x = self.middle(x)
        z: Tensor = self.quant_conv(self.conv_out(F.silu(self.norm_out(x))))
        return z


class VQGANDecoder(nn.Module):
    """Quantized features (B, in_channels, h, w) to images (B, image_channels, H, W).

    With `modulation="codes"` every normalisation is modulated by the quantized features, as they
    are before `quant_conv` (which other code calls post_quant_conv).
    """

    def __init__(self, network: VQGANNetwork, in_channels: int) -> None:
        super().__init__()
        norms = plain_norms(network.norm_groups)
        if network.modulation == "codes":
            norms = modulated_norms(network.norm_groups, in_channels)
        parts = Parts(norms, network.dropout, network.checkpointing)
        widths = [network.width * multiplier for multiplier in reversed(network.multipliers)]
        self.quant_conv = _quant_conv(network, in_channels, network.z_channels)
        self.conv_in = nn.Conv2d(network.z_channels, widths[0], 3, padding=1)
        self.middle = Middle(widths[0], parts)
        self.levels = nn.ModuleList()
        for index, channels in enumerate(pairwise([widths[0], *widths])):
            stride = network.stride // 2**index
            level = DecoderLevel(
                channels,
                network.num_res_blocks + 1,
                parts,
                attention=stride in network.attention_strides,
                is_last=stride == 1,
            )
            self.levels.append(level)
        self.norm_out = norms(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], network.image_channels, 3, padding=1)

    @property
    def last_weight(self) -> Tensor:
        """Weight of the last layer, whose gradients balance the losses of VQGAN."""
        return self.conv_out.weight

    def forward(self, z_q: Tensor) -> Tensor:
        """Return images around [-1, 1], not clamped."""
        # codes may have another precision than a model that was moved to bfloat16
        codes = z_q.to(self.conv_in.weight.dtype)
        x = self.middle(self.conv_in(self.quant_conv(codes)), codes)
        for level in self.levels:
            x = level(x, codes)
        images: Tensor = self.conv_out(F.silu(self.norm_out(x, codes)))
        return images


def _quant_conv(network: VQGANNetwork, before: int, after: int) -> nn.Module:
    if network.quant_conv:
        return nn.Conv2d(before, after, 1)
    require(
        before == after,
        "network.quant_conv=False",
        f"one side of the quantizer has {before} channels and the other {after}; set "
        "network.z_channels to the channels of the quantizer, or keep quant_conv",
    )
    return nn.Identity()
