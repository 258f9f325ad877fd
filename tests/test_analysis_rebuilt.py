"""Best and worst images, error maps and crops, against a loop over single images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_models import SIZES, make_images, make_tokenizer, open_images
from matplotlib.patches import Rectangle

from vqkit.analysis import (
    Region,
    crops,
    crops_figure,
    error_maps,
    error_maps_figure,
    extremes,
    extremes_figure,
    rebuild_images,
)
from vqkit.analysis.rebuilt.panels import error_scale
from vqkit.config import DataConfig, NetworkConfig, QuantizerConfig
from vqkit.data import load_images
from vqkit.metrics import psnr, ssim, to_bytes
from vqkit.models import ImageTokenizer, TokenizerConfig


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images")


@pytest.fixture
def tokenizer():
    return make_tokenizer("looc", num_codes=12, dim=4, num_segments=3)


def naive(tokenizer, images, index):
    """Original and reconstruction of one image, alone."""
    original = images.image(index)[None]
    size = tuple(original.shape[-2:])
    return original, to_bytes(tokenizer.decode(tokenizer.encode(original), size=size))


# Best and worst


def test_extremes_are_those_of_a_sorted_loop(tokenizer, images):
    scores = [float(psnr(*naive(tokenizer, images, i)[::-1])[0]) for i in range(len(images))]
    order = sorted(range(len(images)), key=lambda i: scores[i])
    found = extremes(tokenizer, images, count=2, batch_size=2, name="mine")
    assert [one.index for one in found.worst] == order[:2]
    assert [one.index for one in found.best] == order[::-1][:2]
    for one in (*found.best, *found.worst):
        assert one.score == pytest.approx(scores[one.index])
        assert one.image.name == images.name(one.index)
        original, rebuilt = naive(tokenizer, images, one.index)
        assert torch.equal(one.image.original, original[0])
        assert torch.equal(one.image.rebuilt, rebuilt[0])
    assert found.mean == pytest.approx(np.mean(scores))
    assert (found.left_out, found.conditions.num_images) == (0, len(SIZES))
    assert found.conditions.num_tokens == 3 * (3 * 4 * 5 + 4 * 5 + 3 * 3)


def test_extremes_by_ssim_leave_small_images_out(tokenizer, images):
    large = [i for i, size in enumerate(SIZES) if min(size) >= 11]
    scores = {i: float(ssim(*naive(tokenizer, images, i)[::-1])[0]) for i in large}
    found = extremes(tokenizer, images, count=12, by="ssim")
    assert [one.index for one in found.best] == sorted(large, key=lambda i: -scores[i])
    assert [one.index for one in found.worst] == sorted(large, key=lambda i: scores[i])
    assert found.left_out == 1


def test_of_equal_scores_the_earlier_image_stays(tokenizer, tmp_path):
    images = make_images(tmp_path / "equal", [(16, 16)])
    for name in ("b", "c", "d"):
        (tmp_path / "equal" / f"{name}.png").write_bytes(
            (tmp_path / "equal" / "0.png").read_bytes()
        )
    images = make_images(tmp_path / "equal", [(16, 16)])
    assert len(images) == 4
    found = extremes(tokenizer, images, count=2)
    assert [one.index for one in found.best] == [0, 1]
    assert [one.index for one in found.worst] == [0, 1]


@pytest.mark.slow
def test_the_figure_of_extremes(tokenizer, images):
    found = [extremes(tokenizer, images, count=2, name=name) for name in ("a", "b")]
    figure = extremes_figure(found)
    written = [one.to_dict() for one in found]
    assert [one["index"] for one in written[0]["best"]] == [one.index for one in found[0].best]
    assert written[0]["protocol"]["quality"]["id"].startswith("vqkit-default-1:")
    maps = [i for a in figure.axes for i in a.get_images() if i.get_cmap().name == "inferno"]
    assert len(maps) == 8
    assert len({image.get_clim() for image in maps}) == 1, "one scale for all"
    assert "a, K = 12: best of 5 images by PSNR" in figure.subfigs[0].get_suptitle()


# Error maps


def test_error_maps_are_differences_on_one_scale(tokenizer, images):
    found = [error_maps(tokenizer, images, [3, 0], name=name) for name in ("a", "b")]
    figure = error_maps_figure(found)
    original, rebuilt = naive(tokenizer, images, 3)
    expected = np.abs(rebuilt[0].numpy().astype(int) - original[0].numpy()).mean(0)
    image = found[0].rebuilt.images[0]
    np.testing.assert_allclose(image.error().numpy(), expected, rtol=1e-6)
    maps = [i for a in figure.axes for i in a.get_images() if i.get_cmap().name == "inferno"]
    np.testing.assert_allclose(maps[0].get_array(), expected, rtol=1e-6)
    (ends,) = {one.get_clim() for one in maps}
    every = torch.cat([one.error().flatten() for e in found for one in e.rebuilt.images])
    assert ends[0] == 0
    assert float((every < ends[1]).double().mean()) >= 0.995
    assert float((every < ends[1] - 1).double().mean()) < 0.995
    first = found[0].to_dict()
    assert first["protocol"]["settings"] == {"indices": [3, 0]}
    assert first["images"][0]["mean_error"] == pytest.approx(expected.mean())
    assert first["images"][0]["largest_error"] == pytest.approx(expected.max())
    assert first["images"][0]["psnr"] == pytest.approx(float(psnr(rebuilt, original)[0]))
    fixed = error_maps_figure(found, scale=50)
    assert {i.get_clim() for a in fixed.axes for i in a.get_images()} >= {(0, 50)}


def test_maps_without_error_have_a_scale():
    assert error_scale([torch.zeros(4, 4)]) == 1.0
    assert error_scale([torch.full((4, 4), 255.0)]) == 256.0


# Crops


def test_crops_are_cut_out_of_whole_reconstructions(tokenizer, images):
    region = Region(top=2, left=5, height=4, width=7)
    found = [crops(tokenizer, images, [1, 0], region, name=name) for name in ("a", "b")]
    original, rebuilt = naive(tokenizer, images, 1)
    part = (..., slice(2, 6), slice(5, 12))
    inside = float(psnr(rebuilt[part], original[part])[0])
    assert found[0].quality(0) == pytest.approx(inside)
    figure = crops_figure(found)
    shown = np.asarray(
        figure.axes[3 + 1].get_images()[0].get_array()
    )  # second row, first tokenizer
    np.testing.assert_array_equal(shown, rebuilt[part][0].permute(1, 2, 0).numpy())
    (frame,) = [p for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    assert frame.get_bbox().bounds == (4.5, 1.5, 7, 4)
    first = found[0].to_dict()["images"][0]
    assert first["region"] == {"top": 2, "left": 5, "height": 4, "width": 7}
    assert first["region_psnr"] == pytest.approx(inside)


def test_the_middle_is_cut_by_default(tokenizer, images):
    found = crops(tokenizer, images, [0, 4])
    assert found.regions[0] == Region(top=5, left=7, height=5, width=6)
    assert found.regions[1] == Region(top=3, left=4, height=3, width=4)


def test_grey_images_are_drawn(tmp_path):
    make_images(tmp_path / "images")
    images = load_images(DataConfig(source="folder", path=str(tmp_path / "images"), channels=1))
    network = NetworkConfig(hidden=8, residual_hidden=4, num_residual_blocks=1, image_channels=1)
    quantizer = QuantizerConfig(preset="vq_vae", args={"num_codes": 8, "dim": 4})
    grey = ImageTokenizer(TokenizerConfig(network=network, quantizer=quantizer)).eval()
    found = error_maps(grey, images, [0])
    assert found.rebuilt.images[0].original.shape == (1, 16, 20)
    shown = error_maps_figure([found]).axes[0].get_images()[0].get_array()
    np.testing.assert_array_equal(shown, images.image(0)[0].numpy())


# Bad input


def test_pictures_refuse(tokenizer, images):
    with pytest.raises(ValueError, match="images=5: the set has 5 images, counted from 0"):
        rebuild_images(tokenizer, images, [0, 5])
    with pytest.raises(ValueError, match="images=0 of them: one figure shows 1 to 16"):
        rebuild_images(tokenizer, images, [])
    with pytest.raises(ValueError, match="count=13: one row shows 1 to 12"):
        extremes(tokenizer, images, count=13)
    with pytest.raises(ValueError, match="by='l9'"):
        extremes(tokenizer, images, by="l9")
    for region in (
        Region(top=10, left=0, height=8, width=4),
        Region(top=0, left=0, height=0, width=1),
    ):
        with pytest.raises(ValueError, match="give top left height width"):
            crops(tokenizer, images, [0], region)
    found = error_maps(tokenizer, images, [0])
    with pytest.raises(ValueError, match="scale=0: must be above 0"):
        error_maps_figure([found], scale=0)
    small = make_images_of(images, [4])
    with pytest.raises(ValueError, match="by='ssim': no image has 11 pixels a side"):
        extremes(tokenizer, small, by="ssim")


def make_images_of(images, indices):
    """A folder with some of the images."""
    folder = Path(images.config.path)
    for index in range(len(images)):
        if index not in indices:
            (folder / f"{index}.png").unlink()
    return open_images(folder)
