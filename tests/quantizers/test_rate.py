"""The table of honest rates (`methods` 1.6): every row whose method is a preset."""

import pytest
import torch

from vqkit.quantizers import (
    dual,
    fsq,
    lfq,
    looc,
    movq_codes,
    pq,
    rq,
    vq_vae,
    vqgan_lc,
)

# name, quantizer, side of the feature map, side of the image, bits per image, bits per pixel
ROWS = [
    ("CIFAR VQ 1024×128", lambda: vq_vae(1024, 128), 8, 32, 640, 0.625),
    ("MNIST VQ 1024×128", lambda: vq_vae(1024, 128), 7, 28, 490, 0.625),
    *[
        (f"CIFAR LooC 256×{d}", lambda d=d: looc(256, d, num_segments=128 // d), 8, 32, b * 1024, b)
        for d, b in ((128, 0.5), (64, 1), (32, 2), (16, 4), (8, 8), (4, 16))
    ],
    *[
        (f"CIFAR LooC {k}×4", lambda k=k: looc(k, 4, num_segments=32), 8, 32, b * 1024, b)
        for k, b in ((8, 6), (32, 10), (1024, 20), (8192, 26))
    ],
    ("MNIST LooC 32×4", lambda: looc(32, 4, num_segments=32), 7, 28, 7840, 10),
    ("VQGAN 1024", lambda: vq_vae(1024, 256), 16, 256, 2560, 0.039),
    ("VQGAN 16384", lambda: vq_vae(16384, 256), 16, 256, 3584, 0.055),
    ("VQGAN-LC 100k", lambda: vqgan_lc(torch.zeros(100_000, 2)), 16, 256, 4252, 0.065),
    ("Dual 2×512", lambda: dual(512, 128, num_layers=1), 16, 256, 4608, 0.070),
    ("Dual 2×1024", lambda: dual(1024, 128, num_layers=1), 16, 256, 5120, 0.078),
    ("MoVQ 16×16×4", movq_codes, 16, 256, 10240, 0.156),
    ("RQ 8×8×4", lambda: rq(16384, 256, num_levels=4), 8, 256, 3584, 0.055),
    ("LooC 256×4", lambda: looc(256, 4, num_segments=64), 16, 256, 131072, 2.0),
    ("LooC 256×4 β=2", lambda: looc(256, 4, num_segments=64, beta=2), 16, 256, 524288, 8.0),
    ("LooC 1024×4", lambda: looc(1024, 4, num_segments=64), 16, 256, 163840, 2.5),
    (
        "LooC 1024×4 β=2 official",
        lambda: looc(1024, 4, num_segments=64, beta=2, layout="official"),
        16, 256, 655360, 10.0,
    ),
    ("PQ 16×4×#64", lambda: pq(16, 4, num_segments=64), 16, 256, 65536, 1.0),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_table_of_rates(row):
    _, make, side, image_side, bits, bits_per_pixel = row
    found = make().describe(side, side).bits_per_image
    assert found == pytest.approx(bits, rel=1e-4)
    assert found / image_side**2 == pytest.approx(bits_per_pixel, rel=0.015)


def test_looc_beta_two_makes_65536_tokens():
    found = looc(1024, 4, num_segments=64, beta=2).describe(16, 16)
    assert found.tokens_per_image == 65_536


def test_codebook_and_multiplications_of_looc():
    """LooC, supplement 1: 32 × 4 floats; h·w·m·K·d* multiplications, 1/32 of a VQ with K = 1024."""
    small, large = looc(32, 4, num_segments=32).describe(8, 8), vq_vae(1024, 128).describe(8, 8)
    assert (small.codebook_floats, small.codebook_bytes) == (128, 512)
    assert large.codebook_floats == 1024 * small.codebook_floats
    assert small.multiplications == 8 * 8 * 32 * 32 * 4
    assert large.multiplications == 32 * small.multiplications
    assert large.bits_per_image * 16 == small.bits_per_image


def test_interpolation_multiplies_the_search():
    plain = looc(16, 4, num_segments=2).describe(4, 4).multiplications
    for layout in ("paper", "official"):
        enlarged = looc(16, 4, num_segments=2, beta=2, layout=layout).describe(4, 4)
        assert enlarged.multiplications == 4 * plain


def test_unequal_slots_are_listed():
    text = dual((512, 1024), 8, refiner="none").describe(16, 16).bits_per_token
    assert text == "1×9 + 1×10"


def test_lattices_store_nothing():
    for quantizer in (fsq((8, 5, 5, 5)), lfq(10)):
        found = quantizer.describe(8, 8)
        assert (found.codebook_floats, found.multiplications, found.block_bytes) == (0, 0, 0)
    assert fsq((8, 5, 5, 5)).bits_per_position == pytest.approx(9.9658, abs=1e-4)
