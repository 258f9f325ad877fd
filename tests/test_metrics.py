"""Metrics against hand-computed numbers, naive loops and the libraries that people know."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch

from vqkit.metrics import (
    DEFAULT,
    Protocol,
    ReconstructionScores,
    find_protocol,
    mean_absolute_error,
    mean_squared_error,
    psnr,
    ssim,
    to_bytes,
)

CHANGED = {
    "name": "mine",
    "rounding": "truncate",
    "psnr_cap": 60.0,
    "ssim_window": 7,
    "ssim_sigma": 1.0,
    "ssim_range": 2.0,
    "reference": "abc",
    "num_images": 3,
    "tile": 512,
    "colour": "rgb",
    "originals": "torch",
    "jpeg": 75,
    "psnr_colour": "luma",
    "psnr_epsilon": 1e-8,
    "errors": "outputs",
    "ssim_kernel": "uniform",
    "ssim_colour": "grey",
    "ssim_shrink": 256,
    "lpips": "vgg",
    "fid_resize": "clean",
    "measures": "{}",
}
ONLY_ONE_CHOICE = {"pixel_range", "crop", "ssim_region"}
TOGETHER = {
    "halo": {"tile": 512, "halo": 64},
    "average": {"average": "batches", "batch": 64},
    "stretch": {"stretch": "image", "rounding": "half_up"},
    "lpips_input": {"lpips": "vgg", "lpips_input": "clamped"},
    "fid_reference": {"fid_resize": "clean", "fid_reference": "files"},
    "fid_rounding": {"fid_resize": "clean", "fid_rounding": "truncate"},
}


def pictures(*shape, seed=0, noise=12):
    """Smooth uint8 images and a noisy copy, so that SSIM is neither 0 nor 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(*shape[:2], 5, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, shape[2:], mode="bilinear")
    originals = (smooth * 255).round()
    noisy = originals + noise * torch.randn(originals.shape, generator=generator)
    return noisy.clamp(0, 255).to(torch.uint8), originals.to(torch.uint8)


# Protocol


def test_protocol_id_is_stable():
    # Published numbers carry this id: if it changes, the measurement must have changed.
    assert DEFAULT.id == "vqkit-default-1:440551aa"
    assert Protocol().id == DEFAULT.id


def test_every_field_changes_the_protocol_id():
    known = CHANGED.keys() | ONLY_ONE_CHOICE | TOGETHER.keys() | {"batch"}
    assert known == {field.name for field in fields(Protocol)}
    ids = {replace(DEFAULT, **{name: value}).id for name, value in CHANGED.items()}
    ids |= {replace(DEFAULT, **values).id for values in TOGETHER.values()}
    ids.add(replace(DEFAULT, tile=512, halo=0).id)
    ids.add(replace(DEFAULT, average="batches", batch=32).id)
    ids.add(replace(DEFAULT, rounding="half_up").id)
    assert len(ids | {DEFAULT.id}) == len(CHANGED) + len(TOGETHER) + 4
    assert replace(DEFAULT, name="mine").id.startswith("mine:")
    assert DEFAULT.on("abc", 3).id == replace(DEFAULT, reference="abc", num_images=3).id


@pytest.mark.parametrize(
    "change",
    [
        *({name: "other"} for name in sorted(ONLY_ONE_CHOICE)),
        *(
            {name: "other"}
            for name, value in CHANGED.items()
            if isinstance(value, str) and name not in ("name", "reference", "measures")
        ),
        *({name: "other"} for name in ("stretch", "lpips_input", "fid_reference", "fid_rounding")),
        *({"stretch": "image", "rounding": rounding} for rounding in ("round", "truncate", "none")),
        {"stretch": "image", "rounding": "half_up", "fid_resize": "clean", "fid_rounding": "round"},
        {"colour": "rgb", "rounding": "none"},
        {"lpips_input": "clamped"},
        {"fid_reference": "files"},
        {"fid_rounding": "truncate"},
        {"average": "other"},
        {"batch": 64},
        {"batch": 0, "average": "batches"},
        {"jpeg": 96},
        {"jpeg": 75, "rounding": "none"},
        {"psnr_epsilon": -1.0},
        {"ssim_shrink": 0},
        {"rounding": "up"},
        {"name": ""},
        {"ssim_window": 10},
        {"ssim_window": -1},
        {"ssim_sigma": 0},
        {"psnr_cap": -1.0},
        {"tile": 0},
        {"halo": 64},
        {"halo": -1, "tile": 16},
    ],
)
def test_protocol_refuses(change):
    name = next(iter(change))
    with pytest.raises(ValueError, match=rf"protocol\.{name}="):
        Protocol(**change)


def test_find_protocol_names_the_nearest():
    assert find_protocol("vqkit-default-1") is DEFAULT
    with pytest.raises(ValueError, match="did you mean 'vqkit-default-1'"):
        find_protocol("vqkit-defualt")


# Pixels


def test_to_bytes_rounds_or_truncates_and_clamps():
    # (x + 1) * 127.5: 0 -> 127.5 (half to even), 0.5 -> 191.25, 0.99 -> 253.725
    images = torch.tensor([-3.0, -1.0, 0.0, 0.5, 0.99, 1.0, 3.0])
    assert to_bytes(images).tolist() == [0, 0, 128, 191, 254, 255, 255]
    assert to_bytes(images, "truncate").tolist() == [0, 0, 127, 191, 253, 255, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(every), every)
    assert torch.equal(to_bytes(every.float() / 127.5 - 1), every)
    with pytest.raises(ValueError, match="dtype"):
        to_bytes(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="diverged"):
        to_bytes(torch.tensor([0.5, math.nan]))


# Quality of one image


def test_errors_by_hand():
    originals = torch.zeros(2, 1, 1, 4, dtype=torch.uint8)
    images = originals.clone()
    images[0, 0, 0, 0] = 51  # 51/255 = 0.2 in one of four pixels
    images[1] = 255
    assert mean_absolute_error(images, originals).tolist() == pytest.approx([0.05, 1.0])
    assert mean_squared_error(images, originals).tolist() == pytest.approx([0.01, 1.0])
    assert psnr(images, originals).tolist() == pytest.approx([20.0, 0.0])
    assert psnr(originals, originals).tolist() == [math.inf, math.inf]


def naive_ssim(x, y, window=11, sigma=1.5):
    """One grey image, straight from the definition, window by window."""
    grid = torch.arange(window, dtype=torch.float64) - window // 2
    weights = torch.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    values = []
    for top in range(x.shape[0] - window + 1):
        for left in range(x.shape[1] - window + 1):
            a, b = (z[top : top + window, left : left + window] for z in (x, y))
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
            cov = (weights * (a - ma) * (b - mb)).sum()
            top_part = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
            values.append(top_part / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    return float(torch.stack(values).mean())


def test_ssim_is_its_definition():
    images, originals = pictures(2, 3, 13, 15)
    expected = [
        sum(naive_ssim(a / 255, b / 255) for a, b in zip(x, y, strict=True)) / 3
        for x, y in zip(images.double(), originals.double(), strict=True)
    ]
    found = ssim(images, originals)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert 0.1 < found.min() < found.max() < 0.99


def test_ssim_by_hand():
    # Two constant images: no structure, so only luminance (2ab + c) / (a² + b² + c), c = 1e-4.
    white = torch.full((1, 1, 11, 11), 255, dtype=torch.uint8)
    assert ssim(white, 0 * white).item() == pytest.approx(1e-4 / (1 + 1e-4), rel=1e-9)
    assert ssim(white, white).item() == pytest.approx(1.0)


@pytest.mark.parametrize("channels", [1, 3])
def test_quality_agrees_with_scikit_image(channels):
    metrics = pytest.importorskip("skimage.metrics")
    images, originals = pictures(4, channels, 32, 37)
    for index, (x, y) in enumerate(zip(images.numpy() / 255, originals.numpy() / 255, strict=True)):
        _, full = metrics.structural_similarity(
            x, y, data_range=1, channel_axis=0, gaussian_weights=True, sigma=1.5, full=True,
            use_sample_covariance=False,
        )  # fmt: skip
        valid = full[:, 5:-5, 5:-5].mean()
        assert ssim(images, originals)[index].item() == pytest.approx(valid, abs=1e-9)
        expected = metrics.peak_signal_noise_ratio(y, x, data_range=1)
        assert psnr(images, originals)[index].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_agrees_with_torchmetrics(channels):
    image = pytest.importorskip("torchmetrics.functional.image")
    images, originals = pictures(3, channels, 30, 41)
    found = ssim(images, originals)
    for index in range(3):
        x, y = (side[index : index + 1].double() / 255 for side in (images, originals))
        _, full = image.structural_similarity_index_measure(
            x, y, data_range=1.0, gaussian_kernel=True, sigma=1.5, return_full_image=True
        )
        # Its mean also takes windows over a reflected border; the full map is cut to the inside.
        assert found[index].item() == pytest.approx(full[..., 5:-5, 5:-5].mean().item(), abs=1e-6)
        decibels = image.peak_signal_noise_ratio(x, y, data_range=1.0).item()
        assert psnr(images, originals)[index].item() == pytest.approx(decibels, abs=1e-5)


def test_quality_refuses():
    images = torch.zeros(1, 1, 12, 12)
    with pytest.raises(ValueError, match=r"\[0, 1\].*to_bytes"):
        psnr(images - 1, images)
    with pytest.raises(ValueError, match="shape"):
        psnr(images, images[:, :, 1:])
    with pytest.raises(ValueError, match="dtype"):
        psnr(images.long(), images)
    with pytest.raises(ValueError, match="at least 11"):
        ssim(images[..., :10], images[..., :10])


# Means over a set


def test_mean_is_per_image_not_pooled():
    originals = torch.zeros(2, 1, 12, 12, dtype=torch.uint8)
    images = originals.clone()
    images[0] += 51  # 0.2² = 0.04 -> 13.979 dB
    images[1] += 255  # 1 -> 0 dB
    scores = ReconstructionScores()
    scores.update(images, originals)
    assert scores.mean("psnr") == pytest.approx(-10 * math.log10(0.04) / 2)
    assert scores.mean("psnr") != pytest.approx(-10 * math.log10((0.04 + 1) / 2), abs=1)
    assert scores.mean("l1") == pytest.approx(0.6)
    assert scores.mean("l2") == pytest.approx(0.52)


def test_an_image_weighs_the_same_whatever_its_size_and_batch():
    big, big_originals = pictures(3, 3, 24, 24)
    small, small_originals = pictures(2, 3, 12, 16, seed=1)
    together, alone = ReconstructionScores(), ReconstructionScores()
    together.update(big, big_originals)
    together.update(small, small_originals)
    for x, y in (*zip(big, big_originals, strict=True), *zip(small, small_originals, strict=True)):
        alone.update(x[None], y[None])
    for name, function in (("psnr", psnr), ("ssim", ssim), ("l2", mean_squared_error)):
        values = torch.cat([function(big, big_originals), function(small, small_originals)])
        assert together.mean(name) == pytest.approx(values.mean().item(), rel=1e-12)
        assert alone.mean(name) == pytest.approx(together.mean(name), rel=1e-12)
    assert together.num_images == 5
    assert together.num_pixels == 3 * 24 * 24 + 2 * 12 * 16


def test_exact_images_are_capped_and_counted():
    images, originals = pictures(3, 1, 16, 16)
    images[0] = originals[0]
    scores = ReconstructionScores()
    scores.update(images, originals)
    rest = psnr(images, originals)[1:].sum().item()
    assert scores.mean("psnr") == pytest.approx((100 + rest) / 3)
    assert scores.num_exact == 1


def test_images_below_the_window_are_left_out_of_ssim_only():
    images, originals = pictures(2, 1, 16, 16)
    scores = ReconstructionScores()
    scores.update(images[..., :10, :], originals[..., :10, :])
    assert scores.mean("ssim") is None
    scores.update(images, originals)
    assert scores.count("ssim") == 2
    assert scores.count("psnr") == 4
    assert scores.mean("ssim") == pytest.approx(ssim(images, originals).mean().item())


def test_scores_follow_their_protocol():
    originals = torch.full((1, 1, 12, 12), 127, dtype=torch.uint8)
    floats = torch.zeros(1, 1, 12, 12)  # 127.5: rounds to 128, truncates to 127
    for rounding, exact in (("round", 0), ("truncate", 1)):
        scores = ReconstructionScores(replace(DEFAULT, rounding=rounding, psnr_cap=50.0))
        scores.update(floats, originals)
        assert scores.num_exact == exact
    assert scores.mean("psnr") == 50.0
    with pytest.raises(ValueError, match="uint8"):
        scores.update(floats, floats)
