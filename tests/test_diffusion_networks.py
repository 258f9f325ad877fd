"""The networks of diffusion models: DiT against diffusers, sizes, grids, a first few steps."""

import pytest
import torch
from diffusion_cases import DIT, UNET, count, normal, small, source

from vqkit.config.diffusion import (
    DiffusionConfig,
    DiTNetwork,
    FlowProcess,
    GaussianProcess,
)
from vqkit.generation.diffusion import LatentModel, diffusion_losses
from vqkit.recipes import diffusion as recipes

pytest.importorskip("diffusers")


def test_dit_is_that_of_diffusers():
    """The same weights in diffusers' own network, each block with a copy of the embedding."""
    from diffusers import DiTTransformer2DModel

    model = small(grid=(4, 4), num_classes=5)
    net = model.network
    oracle = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        out_channels=3,
        num_layers=2,
        sample_size=4,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,
    ).eval()
    missing = oracle.load_state_dict(net.transformer.state_dict(), strict=False)
    assert not missing.unexpected_keys
    for block in oracle.transformer_blocks:
        embedding = block.norm1.emb
        embedding.time_proj.downscale_freq_shift = 0  # as in DiT's own code
        embedding.timestep_embedder.load_state_dict(net.time.state_dict())
        embedding.class_embedder.embedding_table.load_state_dict(net.classes.state_dict())
    x, t, y = normal(3, 3, 4, 4), torch.tensor([0.0, 500.0, 999.0]), torch.tensor([0, 4, 5])
    with torch.no_grad():
        torch.testing.assert_close(net(x, t, y), oracle(x, t, y).sample)


@pytest.mark.parametrize("network", [DIT, UNET])
@pytest.mark.parametrize("grid", [(7, 7), (6, 9), (1, 3)])
def test_any_grid_and_any_channels(network, grid):
    model = small(network, GaussianProcess(variance="learned"), channels=5, grid=grid)
    times, labels = torch.tensor([3.0, 900.0]), torch.tensor([0, 5])
    x = normal(2, 5, *grid)
    out = model(x, times, labels)
    assert out.shape == (2, 10, *grid)
    for changed in (
        model(x, times.flip(0), labels),
        model(x, times, labels.flip(0)),
        model(x + normal(2, 5, *grid, seed=1), times, labels),
    ):
        assert (changed != out).any()


def test_positions_of_a_patch_stay_together():
    """With an identity for a body, patches come back where they were taken."""
    model = small(DiTNetwork(layers=1, heads=1, width=16, patch=2), channels=4, grid=(4, 6))
    part = model.network.transformer
    part.transformer_blocks[0] = Skip()
    model.network.frequencies = torch.nn.Identity()
    model.network.time = Zero(16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        part.pos_embed.pos_embed.zero_()
        part.pos_embed.height = part.pos_embed.width = -1
        part.pos_embed.proj.weight.copy_(torch.eye(16).view(16, 4, 2, 2))
        # diffusers' order of a patch's numbers behind the network: row, column, channel
        order = torch.arange(16).view(4, 2, 2).permute(1, 2, 0).flatten()
        part.proj_out_2.weight.copy_(torch.eye(16)[order])
    part.norm_out = torch.nn.Identity()
    part.pos_embed.forward = lambda x: part.pos_embed.proj(x).flatten(2).transpose(1, 2)
    x = normal(2, 4, 4, 6)
    torch.testing.assert_close(model(x, torch.zeros(2), torch.zeros(2).long()), x)


class Skip(torch.nn.Module):
    def forward(self, x, timestep):
        return x


class Zero(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, times):
        return torch.zeros(len(times), self.width)


@pytest.mark.slow
@pytest.mark.parametrize("network", [DIT, UNET])
def test_a_fresh_network_predicts_nothing_and_learns(network):
    config = DiffusionConfig(network=network, process=FlowProcess())
    model = LatentModel(config, channels=3, grid=(4, 6), num_classes=5)
    latents, labels = normal(8, 3, 4, 6), torch.arange(8) % 5
    assert (model(latents, torch.zeros(8), labels) == 0).all()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = diffusion_losses(model, latents, labels, source())["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert not unused


def test_published_sizes():
    """DiT's repository counts 675,129,632 with its 294,912 numbers of fixed positions."""
    with torch.device("meta"):
        learned = DiffusionConfig(process=GaussianProcess(variance="learned"))
        dit = LatentModel(learned, channels=4, grid=(32, 32), num_classes=1000)
        ldm = LatentModel(recipes.lc_ldm().model, channels=8, grid=(16, 16), num_classes=1000)
    assert count(dit) == 675_129_632 - 16 * 16 * 1152
    assert count(ldm) == 270_778_376
