"""Decoding of single images and the pixel conversions, against answers known beforehand."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vqkit.data.decoding import BrokenImageError, decode
from vqkit.data.preparing import corner, resize
from vqkit.data.transforms import center_crop, crop_each, to_float, to_uint8, with_channels


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(data: bytes, channels: int = 1) -> np.ndarray:
    return np.asarray(decode(data, "x", channels))


def test_float_and_uint8_are_inverse_on_every_value():
    values = torch.arange(256, dtype=torch.uint8)
    scaled = to_float(values)
    assert scaled.dtype == torch.float32
    assert (scaled[0], scaled[255]) == (-1.0, 1.0)
    assert torch.equal(to_uint8(scaled), values)
    assert torch.equal(
        to_uint8(torch.tensor([-3.0, 7.0])), torch.tensor([0, 255], dtype=torch.uint8)
    )


@pytest.mark.parametrize("convert", [to_float, to_uint8])
def test_conversions_refuse_another_type(convert):
    with pytest.raises(ValueError, match=r"images\.dtype=torch\.int64"):
        convert(torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    # 257·v is v in 16 bits; halves between two values round.
    values = np.array([[0, 257, 257 * 128, 65535, 128, 129]], dtype=np.uint16)
    expected = np.array([[0, 1, 128, 255, 0, 1]])
    assert np.array_equal(pixels(encoded(Image.fromarray(values), kind)), expected)


def test_big_endian_sixteen_bits():
    # TIFF files of microscopes are often big-endian; Pillow opens this one as I;16B.
    values = np.array([[0, 257, 65535]], dtype=">u2")
    image = Image.frombytes("I;16B", (3, 1), values.tobytes())
    assert pixels(encoded(image, "TIFF")).tolist() == [[0, 1, 255]]


def test_wide_integers_and_floats():
    wide = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    assert pixels(encoded(wide, "TIFF")).tolist() == [[0, 255]]
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert pixels(encoded(unit, "TIFF")).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize(
    "value", [np.int32(70000), np.int32(-1), np.float32(1.5), np.float32("nan")]
)
def test_undefined_brightness_is_refused(value):
    data = encoded(Image.fromarray(np.array([[value, value]])), "TIFF")
    with pytest.raises(BrokenImageError, match=r"^scan\.tif: .*outside"):
        decode(data, "scan.tif", 1)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 7, (7, 7, 7)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (10, 255), (10, 10, 10)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
    ],
)
def test_modes_become_rgb_over_white(mode, colour, expected):
    data = encoded(Image.new(mode, (2, 2), colour))
    assert tuple(pixels(data, 3)[0, 0]) == expected


def test_palette_and_its_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image), 3).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    clear = pixels(encoded(image, transparency=1), 3)
    assert clear.tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_cmyk():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert tuple(pixels(encoded(image, "TIFF"), 3)[0, 0]) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_exif_orientation(orientation, kind):
    # Where the stored top left corner belongs in the upright picture, by the EXIF standard:
    # (bottom?, right?, axes swapped?).
    place = {1: (0, 0, 0), 2: (0, 1, 0), 3: (1, 1, 0), 4: (1, 0, 0)}
    place |= {5: (0, 0, 1), 6: (0, 1, 1), 7: (1, 1, 1), 8: (1, 0, 1)}
    bottom, right, swapped = place[orientation]
    stored = np.zeros((16, 32), dtype=np.uint8)
    stored[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = pixels(encoded(Image.fromarray(stored), kind, exif=exif))
    assert upright.shape == ((32, 16) if swapped else (16, 32))
    corners = [[upright[2, 2], upright[2, -3]], [upright[-3, 2], upright[-3, -3]]]
    assert corners[bottom][right] > 200
    assert sum(int(value > 50) for row in corners for value in row) == 1


def test_damage_is_named():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG")
    assert pixels(whole, 3).shape == (64, 64, 3)
    for data in (whole[: len(whole) // 2], b"", b"no image", encoded(Image.fromarray(noise))[:999]):
        with pytest.raises(
            BrokenImageError, match=r"^cat\.jpg: is no readable image \(.+\)"
        ) as caught:
            decode(data, "cat.jpg", 3)
        assert caught.value.name == "cat.jpg"
        assert "0x" not in caught.value.reason


@pytest.mark.parametrize("limit", [99, 40])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_between_and_above_both_of_pillows_limits(monkeypatch, limit):
    data = encoded(Image.new("L", (10, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert pixels(data).shape == (10, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(BrokenImageError, match=r"^big\.png: .*decompression bomb"):
        decode(data, "big.png", 1)


def test_formats_that_start_programs_stay_closed():
    with pytest.raises(BrokenImageError, match="unknown or damaged"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "x.png", 3)


def test_resize_sets_the_shorter_side_and_averages():
    checks = np.indices((40, 80)).sum(0) % 2 * 255
    small = resize(Image.fromarray(checks.astype(np.uint8)), 10)
    assert small.size == (20, 10)
    # Antialiased: a fine chessboard becomes even grey; picking pixels would give 0 or 255.
    assert np.abs(np.asarray(small).astype(int) - 127).max() < 20


def test_resize_refuses_a_strip_that_would_explode(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(ValueError, match="decompression bomb"):
        resize(Image.new("L", (1, 200)), 100)


def test_grey_of_an_array_is_pillows_grey():
    colours = torch.from_numpy(
        np.random.default_rng(1).integers(0, 256, (3, 3, 50, 50), dtype=np.uint8)
    )
    for image, grey in zip(colours, with_channels(colours, 1), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        assert np.array_equal(np.asarray(picture.convert("L")), grey[0])


def test_crops_against_slices():
    images = torch.arange(2 * 3 * 6 * 7, dtype=torch.uint8).reshape(2, 3, 6, 7)
    cut = crop_each(images, torch.tensor([0, 2]), torch.tensor([3, 1]), 4)
    assert torch.equal(cut, torch.stack([images[0, :, :4, 3:], images[1, :, 2:, 1:5]]))
    assert torch.equal(center_crop(images, 4), images[:, :, 1:5, 1:5])


def test_corners_reach_every_place_and_no_further():
    draws = np.array([0.0, 0.33, 0.34, 0.67, np.nextafter(1, 0)])
    assert corner(6, 4, draws).tolist() == [0, 0, 1, 2, 2]
