"""The networks of diffusion models, built of diffusers' parts.

Each is called with noisy latents (B, C, h, w), times (B,) from 0 (latents) to 1000 (noise), and
classes (B,), of which `num_classes` means none; it returns (B, outputs, h, w).
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.config import require
from vqkit.config.diffusion import DiTNetwork, UNetNetwork


def build_network(
    config: DiTNetwork | UNetNetwork,
    *,
    channels: int,
    outputs: int,
    grid: tuple[int, int],
    num_classes: int,
) -> nn.Module:
    """Build a network with fresh weights, drawn from torch's global generator.

    Raises:
        ValueError: diffusers is not installed.
    """
    require(
        find_spec("diffusers") is not None,
        "model",
        "diffusion models need diffusers; pip install 'vqkit[generation]'",
    )
    if isinstance(config, DiTNetwork):
        return DiT(config, channels, outputs, grid, num_classes)
    return UNet(config, channels, outputs, num_classes)


class DiT(nn.Module):
    """DiT with AdaLN-Zero (arXiv:2212.09748) for a grid of any height and width.

    Blocks and patches are those of `diffusers.DiTTransformer2DModel`. Three things are as in the
    paper and not as there: one embedding of time and class for all blocks instead of one for each,
    gates that start at zero, and grids that are no square.
    """

    def __init__(
        self,
        config: DiTNetwork,
        channels: int,
        outputs: int,
        grid: tuple[int, int],
        num_classes: int,
    ) -> None:
        super().__init__()
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

        self.patch = config.patch
        self.transformer = DiTTransformer2DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.width // config.heads,
            in_channels=channels,
            out_channels=outputs,
            num_layers=config.layers,
            sample_size=-(-grid[0] // config.patch) * config.patch,
            patch_size=config.patch,
            num_embeds_ada_norm=1,
            norm_eps=1e-6,
        )
        for block in self.transformer.transformer_blocks:
            block.norm1.emb = _Given()
        self.frequencies = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(in_channels=256, time_embed_dim=config.width)
        self.classes = nn.Embedding(num_classes + 1, config.width)
        self._initialise()

    def _initialise(self) -> None:
        """Draw the weights as section 3.2 says: every block begins as the identity."""
        part = self.transformer
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        patches = part.pos_embed.proj
        nn.init.xavier_uniform_(patches.weight.view(len(patches.weight), -1))
        nn.init.zeros_(patches.bias)
        for table in (self.classes.weight, self.time.linear_1.weight, self.time.linear_2.weight):
            nn.init.normal_(table, std=0.02)
        gates = [block.norm1.linear for block in part.transformer_blocks]
        for layer in (*gates, part.proj_out_1, part.proj_out_2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Return what the network predicts of noisy latents."""
        part, patch = self.transformer, self.patch
        height, width = latents.shape[-2:]
        padded = F.pad(latents, (0, -width % patch, 0, -height % patch))
        rows, columns = padded.shape[-2] // patch, padded.shape[-1] // patch
        frequencies = self.frequencies(times).to(latents.dtype)
        condition = self.time(frequencies) + self.classes(labels)
        hidden = part.pos_embed(padded)
        for block in part.transformer_blocks:
            hidden = block(hidden, timestep=condition)
        shift, scale = part.proj_out_1(F.silu(condition)).chunk(2, dim=1)
        hidden = part.proj_out_2(part.norm_out(hidden) * (1 + scale[:, None]) + shift[:, None])
        cells = hidden.unflatten(-1, (patch, patch, -1)).unflatten(1, (rows, columns))
        out = cells.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return out[..., :height, :width]


class _Given(nn.Module):
    """In place of a block's own embedding: hands on the one that all blocks share."""

    def forward(
        self,
        timestep: Tensor,
        class_labels: Tensor | None,
        hidden_dtype: torch.dtype | None = None,
    ) -> Tensor:
        return timestep


class UNet(nn.Module):
    """The U-Net of latent diffusion (arXiv:2112.10752): `diffusers.UNet2DConditionModel`.

    Blocks attend to the class as to a text of one word (cross-attention).
    """

    def __init__(self, config: UNetNetwork, channels: int, outputs: int, num_classes: int) -> None:
        super().__init__()
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention]
        up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in config.attention[::-1]]
        self.unet = UNet2DConditionModel(
            in_channels=channels,
            out_channels=outputs,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            block_out_channels=config.channels,
            layers_per_block=config.blocks,
            cross_attention_dim=config.context,
            # diffusers takes the number of heads under this name.
            attention_head_dim=tuple(width // config.head_width for width in config.channels),
            norm_num_groups=config.groups,
        )
        self.classes = nn.Embedding(num_classes + 1, config.context)
        nn.init.zeros_(self.unet.conv_out.weight)  # begins with the prediction 0, as LDM's does
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Return what the network predicts of noisy latents."""
        words = self.classes(labels)[:, None]
        out: Tensor = self.unet(latents, times, encoder_hidden_states=words).sample
        return out
