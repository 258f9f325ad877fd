"""ViT-VQGAN's networks against published sizes and a plain reading of their description."""

import math

import pytest
import torch

from vqkit.config import ViTNetwork
from vqkit.models import build_networks
from vqkit.models.vit import grid_positions

BASE = {"width": 768, "depth": 12, "heads": 12, "mlp": 3072}
LARGE = {"width": 1280, "depth": 32, "heads": 16, "mlp": 5120}
SMALL = ViTNetwork(patch=4, width=16, depth=2, heads=2, mlp=24)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def filled(network, channels):
    torch.manual_seed(0)
    parts = build_networks(network, channels)
    with torch.no_grad():
        for part in parts:
            for parameter in part.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return parts


@pytest.mark.parametrize(("settings", "blocks", "heads", "dim", "hidden"), [
    ({}, 8, 8, 512, 2048),
    (BASE, 12, 12, 768, 3072),
    (LARGE, 32, 16, 1280, 5120),
])  # fmt: skip
def test_layers_have_the_published_sizes(settings, blocks, heads, dim, hidden):
    """Blocks, heads, model and hidden dimension of S, B and L: the ViT-VQGAN paper, Table 1.

    Its totals (32M, 91M, 599M) are not those of such blocks alone (25M, 85M, 629M) and it does not
    list what else they count, so they cannot be reproduced. Every count below follows from the
    layers of `enhancing-transformers`: qkv without bias, all other layers with it.
    """
    with torch.device("meta"):
        encoder, decoder = build_networks(ViTNetwork(**settings), 32)
    for part in (encoder, decoder):
        assert len(part.transformer.blocks) == blocks
        for block in part.transformer.blocks:
            assert block.attention.heads == heads
            assert block.attention.qkv.weight.shape == (3 * dim, dim)
            assert block.attention.qkv.bias is None
            assert block.attention.out.weight.shape == (dim, dim)
            assert [tuple(layer.weight.shape) for layer in block.mlp[::2]] == [
                (hidden, dim),
                (dim, hidden),
            ]
    assert encoder.patches.weight.shape == (dim, 3, 8, 8)
    assert decoder.pixels.weight.shape == (dim, 3, 8, 8)
    block = 4 * dim * dim + dim + 2 * dim * hidden + hidden + dim + 4 * dim
    shared = blocks * block + 2 * dim
    assert parameters(encoder) == shared + 3 * 64 * dim + dim + (dim * 32 + 32)
    assert parameters(decoder) == shared + 3 * 64 * dim + 3 + (32 * dim + dim)


def test_the_preset_of_the_paper_brings_its_projection():
    """`vit_vqgan(in_channels=width)` maps width to code dimension itself; nothing is added."""
    encoder, decoder = build_networks(SMALL, 16)
    assert parameters(encoder.project) == parameters(decoder.project) == 0
    encoder, decoder = build_networks(SMALL, 5)
    assert encoder.project.weight.shape == (5, 16, 1, 1)
    assert decoder.project.weight.shape == (16, 5, 1, 1)


def test_positions_follow_their_formula():
    """`enhancing-transformers`: columns first; sines, then cosines of pos / 10000^(4k / D)."""
    height, width, dim = 3, 4, 8
    found = grid_positions(height, width, dim, torch.device("cpu"))
    assert found.shape == (12, 8)
    assert found.dtype == torch.float32
    for row in range(height):
        for column in range(width):
            expected = []
            for place in (column, row):
                angles = [place / 10_000 ** (k / 2) for k in range(2)]
                expected += [*map(math.sin, angles), *map(math.cos, angles)]
            got = found[row * width + column]
            torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_positions_of_a_grid_begin_those_of_a_larger_one():
    small = grid_positions(2, 3, 16, torch.device("cpu")).view(2, 3, 16)
    large = grid_positions(5, 7, 16, torch.device("cpu")).view(5, 7, 16)
    assert torch.equal(small, large[:2, :3])


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    )


def transform(rows, transformer, heads):
    """Run one sequence (N, D) through the blocks, head by head."""
    for block in transformer.blocks:
        h = layer_norm(rows, block.norm1)
        q, k, v = (h @ block.attention.qkv.weight.T).chunk(3, -1)
        size = q.shape[-1] // heads
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ k[:, part].T / size**0.5
            mixed.append(torch.softmax(scores, -1) @ v[:, part])
        out = block.attention.out
        rows = rows + torch.cat(mixed, -1) @ out.weight.T + out.bias
        first, last = block.mlp[0], block.mlp[2]
        h = torch.tanh(layer_norm(rows, block.norm2) @ first.weight.T + first.bias)
        rows = rows + h @ last.weight.T + last.bias
    return layer_norm(rows, transformer.norm)


def test_encoder_is_the_published_chain_of_layers():
    encoder, _ = filled(SMALL, 5)
    images = torch.rand(2, 3, 12, 8) * 2 - 1
    with torch.no_grad():
        z = encoder(images)
        assert z.shape == (2, 5, 3, 2)
        for image, found in zip(images, z, strict=True):
            patches = image.unfold(1, 4, 4).unfold(2, 4, 4)  # (C, 3, 2, 4, 4)
            rows = patches.permute(1, 2, 0, 3, 4).reshape(6, -1)
            rows = rows @ encoder.patches.weight.flatten(1).T + encoder.patches.bias
            rows = rows + grid_positions(3, 2, 16, images.device)
            rows = transform(rows, encoder.transformer, heads=2)
            rows = rows @ encoder.project.weight[..., 0, 0].T + encoder.project.bias
            torch.testing.assert_close(found, rows.T.reshape(5, 3, 2), rtol=1e-4, atol=1e-5)


def test_decoder_is_the_published_chain_of_layers():
    _, decoder = filled(SMALL, 5)
    z_q = torch.randn(2, 5, 2, 3)
    with torch.no_grad():
        images = decoder(z_q)
        assert images.shape == (2, 3, 8, 12)
        for code, found in zip(z_q, images, strict=True):
            rows = code.flatten(1).T @ decoder.project.weight[..., 0, 0].T + decoder.project.bias
            rows = rows + grid_positions(2, 3, 16, z_q.device)
            rows = transform(rows, decoder.transformer, heads=2)
            patches = rows @ decoder.pixels.weight.flatten(1)  # (6, 3 * 4 * 4)
            picture = patches.view(2, 3, 3, 4, 4).permute(2, 0, 3, 1, 4).reshape(3, 8, 12)
            picture = picture + decoder.pixels.bias[:, None, None]
            torch.testing.assert_close(found, picture, rtol=1e-4, atol=1e-5)


def test_any_grid_will_do_and_positions_matter():
    encoder, decoder = filled(SMALL, 5)
    with torch.no_grad():
        for height, width in ((4, 4), (4, 40), (28, 12)):
            z = encoder(torch.rand(1, 3, height, width))
            assert z.shape == (1, 5, height // 4, width // 4)
            assert decoder(z).shape == (1, 3, height, width)
        even = encoder(torch.zeros(1, 3, 8, 8))  # equal patches differ by their places only
        assert even.flatten(2).std(-1).min() > 1e-4


def test_dropout_acts_in_training_only():
    encoder, _ = build_networks(ViTNetwork(patch=4, width=16, depth=1, heads=2, dropout=0.5), 5)
    images = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert not torch.equal(encoder(images), encoder(images))
        encoder.eval()
        assert torch.equal(encoder(images), encoder(images))
