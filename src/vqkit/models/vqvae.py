"""The small convolutional encoder and decoder of VQ-VAE (van den Oord et al., arXiv:1711.00937).

The layers are those of the CVQ-VAE and LooC codes: every convolution has a bias, nothing is
normalised, and the decoder ends without an activation. Both networks are fully convolutional. With
one downsampling instead of two (stride 2) the layers between half and quarter size are left out.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from vqkit.config import NetworkConfig
from vqkit.models.blocks import residual_stack


class Encoder(nn.Module):
    """Images (B, image_channels, s·h, s·w) to features (B, out_channels, h, w), s the stride."""

    def __init__(self, network: NetworkConfig, out_channels: int) -> None:
        super().__init__()
        half, hidden = _widths(network)
        self.to_half = nn.Conv2d(network.image_channels, half, 4, stride=2, padding=1)
        self.to_quarter: nn.Conv2d | None = None
        if network.downsamplings == 2:
            self.to_quarter = nn.Conv2d(half, hidden, 4, stride=2, padding=1)
        self.spatial = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.residuals = residual_stack(
            hidden, network.residual_hidden, network.num_residual_blocks, skip=network.skip
        )
        self.pre_vq = nn.Conv2d(hidden, out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return z; sides must be multiples of the stride, or the last pixels are lost."""
        x = F.relu(self.to_half(images))
        if self.to_quarter is not None:
            x = F.relu(self.to_quarter(x))
        z: Tensor = self.pre_vq(self.residuals(self.spatial(x)))
        return z


class Decoder(nn.Module):
    """Quantized features (B, in_channels, h, w) to images (B, image_channels, s·h, s·w)."""

    def __init__(self, network: NetworkConfig, in_channels: int) -> None:
        super().__init__()
        half, hidden = _widths(network)
        self.spatial = nn.Conv2d(in_channels, hidden, 3, padding=1)
        self.residuals = residual_stack(
            hidden, network.residual_hidden, network.num_residual_blocks, skip=network.skip
        )
        self.from_quarter: nn.ConvTranspose2d | None = None
        if network.downsamplings == 2:
            self.from_quarter = nn.ConvTranspose2d(hidden, half, 4, stride=2, padding=1)
        self.from_half = nn.ConvTranspose2d(half, network.image_channels, 4, stride=2, padding=1)

    @property
    def last_weight(self) -> Tensor:
        """Weight of the last layer, whose gradients balance the losses of VQGAN."""
        return self.from_half.weight

    def forward(self, z_q: Tensor) -> Tensor:
        """Return images around [-1, 1], not clamped."""
        # codes may have another precision than a model that was moved to bfloat16
        x = self.residuals(self.spatial(z_q.to(self.spatial.weight.dtype)))
        if self.from_quarter is not None:
            x = F.relu(self.from_quarter(x))
        images: Tensor = self.from_half(x)
        return images


def _widths(network: NetworkConfig) -> tuple[int, int]:
    """Return the channels at half the size of the images, and at the size of the grid."""
    half = network.hidden // 2 if network.downsamplings == 2 else network.hidden
    return half, network.hidden
