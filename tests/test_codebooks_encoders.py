"""Encoders without transformers: patches of pixels, modules, tokenizers; grids and pooling."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from feature_images import array_set, random_pixels
from torch import nn

from vqkit.codebooks.encoders import grid_of_tokens, hash_state, pool_grid
from vqkit.codebooks.encoders_modules import ModuleEncoder, TokenizerEncoder
from vqkit.codebooks.pixels import PixelPatches
from vqkit.config import NetworkConfig, QuantizerConfig
from vqkit.data import to_float
from vqkit.models import ImageTokenizer, TokenizerConfig


def whitened(pixels, folder, **options):
    encoder = PixelPatches(**{"sample": 400, **options})
    return encoder.prepared(array_set(pixels), folder / "whitening.safetensors")


@pytest.mark.parametrize("kind", ["zca", "pca"])
def test_whitened_patches_have_the_identity_as_covariance(kind, tmp_path):
    """Images of one patch each: the sample that whitening is fitted on is all there is."""
    pixels = random_pixels(900, 1, 6, 6)
    encoder = whitened(pixels, tmp_path, patch=6, epsilon=0.0, whiten=kind, sample=900)
    features = encoder(pixels).flatten(1)
    torch.testing.assert_close(features.mean(0), torch.zeros(36), atol=1e-3, rtol=0)
    covariance = features.T.double() @ features.double() / len(features)
    torch.testing.assert_close(covariance, torch.eye(36).double(), atol=2e-3, rtol=0)


def test_pca_keeps_the_strongest_directions_and_epsilon_damps_the_weak(tmp_path):
    pixels = random_pixels(500, 1, 6, 6)
    encoder = whitened(pixels, tmp_path, patch=6, whiten="pca", dim=5, epsilon=0.3, sample=500)
    rows = to_float(pixels).flatten(1).double().numpy()
    variances = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1]
    expected = variances[:5] / (variances[:5] + 0.3 * variances.mean())
    found = encoder(pixels).flatten(1).double().var(0, correction=0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3)
    assert encoder.describe()["dim"] == 5


def test_zca_is_the_closest_whitening_to_the_pixels(tmp_path):
    """Its matrix is symmetric: no rotation (up to rounding of float32)."""
    pixels = random_pixels(400, 1, 5, 5)
    encoder = whitened(pixels, tmp_path, patch=5, sample=400)
    matrix = encoder._whitening.matrix
    torch.testing.assert_close(matrix, matrix.T, atol=1e-4, rtol=1e-4)


def test_patches_against_a_loop(tmp_path):
    pixels = random_pixels(3, 3, 19, 26)
    encoder = whitened(pixels, tmp_path, patch=5, stride=3, sample=300)
    found = encoder(pixels)
    assert found.shape == (3, 75, 5, 8)
    mean, matrix = encoder._whitening.mean, encoder._whitening.matrix
    for i in range(5):
        for j in range(8):
            patch = pixels[:, :, 3 * i : 3 * i + 5, 3 * j : 3 * j + 5]
            expected = (to_float(patch).flatten(1) - mean) @ matrix
            torch.testing.assert_close(found[:, :, i, j], expected, atol=1e-4, rtol=1e-4)


def test_pixels_that_never_vary_are_left_out(tmp_path):
    """Without it, epsilon=0 would divide by a variance that is only rounding."""
    pixels = random_pixels(200, 1, 4, 4)
    pixels[:, :, 0] = 17
    encoder = whitened(pixels, tmp_path, patch=4, epsilon=0.0, sample=200)
    features = encoder(pixels).flatten(1)
    assert features.abs().max() < 20
    assert features[:, :4].abs().max() < 1e-3


def test_whitening_is_the_same_every_time_and_kept(tmp_path):
    pixels = random_pixels(30)
    one = whitened(pixels, tmp_path / "a", sample=500)
    two = whitened(pixels, tmp_path / "b", sample=500)
    assert one.describe() == two.describe()
    other = whitened(pixels, tmp_path / "c", sample=500, seed=1)
    assert other.describe()["sha256"] != one.describe()["sha256"]
    kept = PixelPatches(sample=500).whitened_by(tmp_path / "a")
    assert torch.equal(kept(pixels), one(pixels))
    again = kept.prepared(array_set(random_pixels(30, seed=5)), tmp_path / "d" / "w.safetensors")
    assert again.describe()["sha256"] == one.describe()["sha256"]


def test_whitening_is_fitted_on_one_thread(tmp_path, monkeypatch):
    """Several give sums and eigenvectors other bits."""
    solve, threads = torch.linalg.eigh, []

    def watched(matrix):
        threads.append(torch.get_num_threads())
        return solve(matrix)

    before = torch.get_num_threads()
    monkeypatch.setattr(torch.linalg, "eigh", watched)
    try:
        torch.set_num_threads(3)
        whitened(random_pixels(4), tmp_path)
        assert (threads, torch.get_num_threads()) == ([1], 3)
        with pytest.raises(ValueError, match="take smaller patches"):
            whitened(random_pixels(4), tmp_path, patch=40)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 0}, r"^patch=0: must be at least 1"),
        ({"whiten": "both"}, r"^whiten='both': expected 'zca' or 'pca'"),
        ({"dim": 3}, r"^dim=3: only whiten='pca'"),
        ({"epsilon": -1.0}, r"^epsilon=-1.0: must not be negative"),
        ({"patch": 40}, r"^patch=40: image0 has only 24 x 32 pixels; take smaller"),
        ({"whiten": "pca", "dim": 500}, r"^dim=500: a patch has only 192 numbers"),
    ],
)
def test_bad_settings_of_pixels(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        whitened(random_pixels(4), tmp_path, **options)


def test_bad_images_of_pixels(tmp_path):
    with pytest.raises(ValueError, match="patches of it are all the same; whitening needs"):
        whitened(torch.full((3, 3, 20, 20), 9, dtype=torch.uint8), tmp_path)
    with pytest.raises(ValueError, match="not whitened yet"):
        PixelPatches()(random_pixels(2))
    encoder = whitened(random_pixels(4), tmp_path)
    with pytest.raises(ValueError, match=r"^data.channels=1: the whitening was fitted to images"):
        encoder(random_pixels(2, 1))
    with pytest.raises(ValueError, match=r"^patch=8: an image has only 7 x 9 pixels"):
        encoder(random_pixels(2, 3, 7, 9))
    file = tmp_path / "whitening.safetensors"
    with pytest.raises(ValueError, match="whitens patches of 192 numbers to 192, which are not"):
        PixelPatches(patch=5).restored(file)
    file.write_bytes(b"torn")
    with pytest.raises(ValueError, match="is no whitening"):
        PixelPatches().restored(file)


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_tokens_become_a_grid_without_those_in_front(extra):
    tokens = torch.randn(2, extra + 9, 4)
    grid = grid_of_tokens(tokens, "model")
    assert grid.shape == (2, 4, 3, 3)
    assert torch.equal(grid[:, :, 1, 2], tokens[:, extra + 5])


def test_tokens_of_a_grid_that_is_no_square():
    tokens = torch.randn(2, 6 + 5, 4)
    grid = grid_of_tokens(tokens, "model", (2, 3), extras=(0, 1, 5))
    assert torch.equal(grid[:, :, 1, 0], tokens[:, 5 + 3])
    with pytest.raises(ValueError, match=r"^model: gives 11 tokens for an image, which are not a"):
        grid_of_tokens(tokens, "model", extras=(0, 1))


@pytest.mark.parametrize(("side", "pool"), [(16, 4), (8, 4), (6, 3), (4, 4)])
def test_pooling_is_average_pooling_where_it_divides(side, pool):
    grid = torch.randn(2, 5, side, side)
    expected = F.avg_pool2d(grid, side // pool)
    torch.testing.assert_close(pool_grid(grid, pool), expected, atol=1e-6, rtol=1e-6)


def test_pooling_of_seven_to_four_overlaps():
    """ResNet's grid: window i covers rows floor(7i/4) to ceil(7(i+1)/4)."""
    grid = torch.randn(1, 2, 7, 7)
    spans = [(0, 2), (1, 4), (3, 6), (5, 7)]
    for i, (top, bottom) in enumerate(spans):
        for j, (left, right) in enumerate(spans):
            mean = grid[:, :, top:bottom, left:right].mean((-1, -2))
            torch.testing.assert_close(pool_grid(grid, 4)[:, :, i, j], mean)


def test_pooling_that_is_off_or_too_much():
    grid = torch.randn(1, 2, 3, 5)
    assert pool_grid(grid, None) is grid
    assert pool_grid(grid, 0) is grid
    with pytest.raises(ValueError, match=r"^pool=4: the encoder gives 3 x 5 positions"):
        pool_grid(grid, 4)


def test_a_module_gets_floats_of_the_stated_range():
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    found = ModuleEncoder(nn.Identity(), value_range=(0.0, 1.0))(images)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 1.0, 0.2]))
    found = ModuleEncoder(nn.Identity())(images)
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.0, 1.0, -0.6]))


class Tokens(nn.Module):
    """Cells of 8 x 8 pixels as tokens (B, n, D), row by row."""

    def forward(self, images):
        return F.avg_pool2d(images, 8).flatten(2).transpose(1, 2)


def test_a_module_may_return_tokens():
    pixels = random_pixels(2, 3, 16, 24)
    encoder = ModuleEncoder(Tokens(), stride=8)
    expected = F.avg_pool2d(to_float(pixels), 8)
    torch.testing.assert_close(encoder(pixels), expected)
    assert encoder.describe()["stride"] == 8
    with pytest.raises(ValueError, match="module Tokens: gives 6 tokens for an image"):
        ModuleEncoder(Tokens())(pixels)


class Wrong(nn.Module):
    def forward(self, images):
        return images.mean((1, 2, 3))


def test_bad_modules():
    with pytest.raises(ValueError, match=r"^module=function: expected a torch.nn.Module"):
        ModuleEncoder(test_bad_modules)
    with pytest.raises(ValueError, match=r"^module Wrong: returns shape \(2,\)"):
        ModuleEncoder(Wrong())(random_pixels(2))
    with pytest.raises(ValueError, match=r"^resize=8: is the shorter side before the crop"):
        ModuleEncoder(nn.Identity(), size=16, resize=8)
    with pytest.raises(ValueError, match=r"^value_range=\(1.0, 0.0\)"):
        ModuleEncoder(nn.Identity(), value_range=(1.0, 0.0))
    with pytest.raises(ValueError, match=r"^images of 24 x 32 pixels: this encoder takes 16 x 16"):
        ModuleEncoder(nn.Identity(), size=16)(random_pixels(2))


def test_the_hash_sees_every_tensor():
    module = nn.BatchNorm2d(3)
    before = hash_state(module.state_dict())
    assert before == hash_state(nn.BatchNorm2d(3).state_dict())
    module.running_mean[1] = 0.5
    assert hash_state(module.state_dict()) != before
    half = nn.BatchNorm2d(3).to(torch.bfloat16)
    assert hash_state(half.state_dict()) != before


@pytest.fixture
def tokenizer():
    network = NetworkConfig(hidden=8, residual_hidden=4, num_residual_blocks=1)
    args = {"num_codes": 16, "dim": 8, "in_channels": 12}
    quantizer = QuantizerConfig(preset="vqgan_fc", args=args)
    return ImageTokenizer(TokenizerConfig(network=network, quantizer=quantizer)).eval()


def test_a_tokenizer_gives_what_its_quantizer_gets(tokenizer, tmp_path):
    pixels = random_pixels(2, 3, 22, 33)  # no multiples of the stride
    encoder = TokenizerEncoder(tokenizer)
    with torch.no_grad():
        features = encoder(pixels)
        ids = tokenizer.quantizer(features).ids
    assert features.shape == (2, 12, 6, 9)
    assert torch.equal(ids, tokenizer.encode(pixels))
    tokenizer.save_pretrained(tmp_path / "mine")
    loaded = TokenizerEncoder(tmp_path / "mine")
    with torch.no_grad():
        assert torch.equal(loaded(pixels), features)
    assert loaded.describe() == {**encoder.describe(), "name": "mine"}


def test_projected_features_of_a_tokenizer_are_as_wide_as_its_codes(tokenizer):
    pixels = random_pixels(2, 3, 16, 16)
    encoder = TokenizerEncoder(tokenizer, layer="projected")
    with torch.no_grad():
        plain = TokenizerEncoder(tokenizer)(pixels)
        expected = tokenizer.quantizer.project_in(plain.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(encoder(pixels), expected)
    assert encoder.describe()["sha256"] != TokenizerEncoder(tokenizer).describe()["sha256"]


def test_bad_tokenizers(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"^layer='codes': a tokenizer has 'encoder' and"):
        TokenizerEncoder(tokenizer, layer="codes")
    with pytest.raises(
        ValueError, match=r"holds no config.json; name the folder of a training run"
    ):
        TokenizerEncoder(tmp_path)
    with pytest.raises(ValueError, match=r"^data.channels=2: the encoder takes images of 3"):
        TokenizerEncoder(tokenizer)(random_pixels(1, 2))
    with torch.no_grad():
        grey = TokenizerEncoder(tokenizer)(random_pixels(1, 1))
    assert grey.shape == (1, 12, 6, 8)
