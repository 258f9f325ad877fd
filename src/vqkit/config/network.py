"""What a tokenizer is made of: its networks and its quantizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from vqkit.config.core import check_at_least, check_choice, require

Skip = Literal["relu", "identity"]
Modulation = Literal["none", "codes"]
Kind = Literal["vqvae", "vqgan", "vit"]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig:
    """A preset and its arguments: `QuantizerConfig(preset="vq_vae", args={"num_codes": 64})`."""

    preset: str
    """Name in `vqkit.quantizers.PRESETS`."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the preset; plain JSON values, or tensors (then not from a file)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """The small convolutional encoder and decoder of VQ-VAE (stride 4 or 2; `methods` 1.1)."""

    kind: Kind = "vqvae"
    """Which networks: `vqvae` (these), `vqgan` or `vit`; each kind has settings of its own."""
    image_channels: int = 3
    """1 for grey, 3 for colour."""
    hidden: int = 128
    """Channels of the feature maps."""
    residual_hidden: int = 32
    """Channels inside a residual block."""
    num_residual_blocks: int = 2
    """Residual blocks in the encoder and in the decoder."""
    skip: Skip = "relu"
    """What the residual skip carries: `relu` of the input, as the published code (an in-place ReLU)
    does, or the `identity`."""
    downsamplings: int = 2
    """How often the encoder halves the sides: 2, as published, is stride 4; 1 is stride 2, a grid
    of four times as many positions."""

    def __post_init__(self) -> None:
        check_choice("network.kind", self.kind, Literal["vqvae"])
        _check_channels(self.image_channels)
        check_at_least("network", self, ("hidden", "residual_hidden"), 1)
        require(self.hidden % 2 == 0, f"network.hidden={self.hidden}", "must be even")
        check_at_least("network", self, ("num_residual_blocks",), 0)
        check_choice("network.skip", self.skip, Skip)
        require(
            self.downsamplings in (1, 2),
            f"network.downsamplings={self.downsamplings}",
            "these networks halve the sides once (stride 2) or twice (stride 4)",
        )

    @property
    def stride(self) -> int:
        """Pixels of the image per position of the grid, along each side."""
        return 4 if self.downsamplings == 2 else 2


@dataclass(frozen=True, kw_only=True, slots=True)
class VQGANNetwork:
    """Encoder and decoder of VQGAN (arXiv:2012.09841); the default is f16 (`methods` 1.2)."""

    kind: Kind = "vqgan"
    image_channels: int = 3
    """1 for grey, 3 for colour."""
    width: int = 128
    """Channels of the first level."""
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channels of each level, in multiples of `width`; each level but the last halves the sides."""
    num_res_blocks: int = 2
    """Residual blocks of a level of the encoder; the decoder has one more."""
    attention_strides: tuple[int, ...] = (16,)
    """Strides (pixels per position) of the levels whose blocks are followed by self-attention; the
    middle always has one. At 256 x 256 pixels, 16 is what others call resolution 16."""
    z_channels: int = 256
    """Channels between the networks and the 1 x 1 convolutions around the quantizer."""
    quant_conv: bool = True
    """1 x 1 convolutions between `z_channels` and the channels of the quantizer, on both sides;
    False where the preset has its own (`in_channels`)."""
    dropout: float = 0.0
    norm_groups: int = 32
    """Groups of every group normalisation; must divide all channels."""
    modulation: Modulation = "none"
    """`codes`: the decoder's normalisations are modulated by the quantized map (MoVQ,
    arXiv:2209.09002)."""
    checkpointing: bool = False
    """Recompute activations in backward instead of keeping them: less memory, more time."""

    def __post_init__(self) -> None:
        check_choice("network.kind", self.kind, Literal["vqgan"])
        _check_channels(self.image_channels)
        check_at_least("network", self, ("width", "num_res_blocks", "z_channels", "norm_groups"), 1)
        require(
            len(self.multipliers) >= 1 and min(self.multipliers) >= 1,
            f"network.multipliers={self.multipliers}",
            "needs one number of at least 1 for every level",
        )
        require(
            self.width % self.norm_groups == 0,
            f"network.norm_groups={self.norm_groups}",
            f"must divide network.width={self.width}",
        )
        levels = tuple(2**level for level in range(len(self.multipliers)))
        unknown = sorted(set(self.attention_strides) - set(levels))
        require(
            not unknown,
            f"network.attention_strides={self.attention_strides}",
            f"these networks have levels of strides {levels}",
        )
        require(0 <= self.dropout < 1, f"network.dropout={self.dropout}", "must lie in [0, 1)")
        check_choice("network.modulation", self.modulation, Modulation)

    @property
    def stride(self) -> int:
        """Pixels of the image per position of the grid, along each side."""
        return prod([2] * (len(self.multipliers) - 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTNetwork:
    """Transformer encoder and decoder of ViT-VQGAN (arXiv:2110.04627); the default is size S."""

    kind: Kind = "vit"
    image_channels: int = 3
    """1 for grey, 3 for colour."""
    patch: int = 8
    """Side of the patch of one position, in pixels."""
    width: int = 512
    """Features of a position; S 512, B 768, L 1280."""
    depth: int = 8
    """Blocks of the encoder and of the decoder; S 8, B 12, L 32."""
    heads: int = 8
    """Heads of attention; S 8, B 12, L 16."""
    mlp: int = 2048
    """Hidden features of a block; S 2048, B 3072, L 5120."""
    dropout: float = 0.0
    checkpointing: bool = False
    """Recompute activations in backward instead of keeping them: less memory, more time."""

    def __post_init__(self) -> None:
        check_choice("network.kind", self.kind, Literal["vit"])
        _check_channels(self.image_channels)
        check_at_least("network", self, ("patch", "width", "depth", "heads", "mlp"), 1)
        require(
            self.width % (4 * self.heads) == 0,
            f"network.width={self.width}",
            f"must be a multiple of 4 times network.heads={self.heads}",
        )
        require(0 <= self.dropout < 1, f"network.dropout={self.dropout}", "must lie in [0, 1)")

    @property
    def stride(self) -> int:
        """Pixels of the image per position of the grid, along each side."""
        return self.patch


Network = NetworkConfig | VQGANNetwork | ViTNetwork
"""Settings of the networks, told apart by `kind`."""


def _check_channels(image_channels: int) -> None:
    require(
        image_channels in (1, 3),
        f"network.image_channels={image_channels}",
        "images are grey (1) or colour (3)",
    )
