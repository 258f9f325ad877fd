"""Six methods at equal bits: operating points, what is equal, the page's own sentences."""

import functools
import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from report_runs import write_pictures
from torch.nn import functional as F

from vqkit.config import NetworkConfig, to_dict
from vqkit.evaluation.anchors import CODECS
from vqkit.models import Decoder, Encoder, ImageTokenizer, TokenizerConfig, config_values
from vqkit.models.settings import config_from_values
from vqkit.quantizers import build
from vqkit.recipes import recipe
from vqkit.recipes.equal_bits import (
    COMPOSED,
    METHODS,
    RATES,
    WHOLE,
    OperatingPoint,
    equal_bits_mnist,
    equal_bits_photos,
    operating_point,
)

CELLS = [(method, rate) for method in METHODS for rate in sorted({*sum(RATES.values(), ())})]


# --------------------------------------------------------------------- stride 2


def test_stride_2_leaves_out_the_layers_in_between():
    torch.manual_seed(0)
    network = NetworkConfig(
        image_channels=1, hidden=8, residual_hidden=4, num_residual_blocks=0, downsamplings=1
    )
    encoder, decoder = Encoder(network, 6), Decoder(network, 6)
    assert network.stride == 2
    images = torch.rand(2, 1, 12, 8) * 2 - 1
    e, d = dict(encoder.named_parameters()), dict(decoder.named_parameters())
    assert [name.split(".")[0] for name in e] == ["to_half"] * 2 + ["spatial"] * 2 + ["pre_vq"] * 2
    assert [name.split(".")[0] for name in d] == ["spatial"] * 2 + ["from_half"] * 2
    with torch.no_grad():
        x = F.relu(F.conv2d(images, e["to_half.weight"], e["to_half.bias"], 2, 1))
        x = F.relu(F.conv2d(x, e["spatial.weight"], e["spatial.bias"], 1, 1))
        z = F.conv2d(x, e["pre_vq.weight"], e["pre_vq.bias"])
        torch.testing.assert_close(encoder(images), z)
        x = F.relu(F.conv2d(z, d["spatial.weight"], d["spatial.bias"], 1, 1))
        x = F.conv_transpose2d(x, d["from_half.weight"], d["from_half.bias"], 2, 1)
        torch.testing.assert_close(decoder(z), x)
    assert (z.shape, x.shape) == ((2, 6, 6, 4), images.shape)


def test_stride_4_is_what_it_was():
    """Names and order of the layers: files and random numbers of before stay good."""
    network = NetworkConfig(hidden=8, residual_hidden=4, num_residual_blocks=0)
    assert (network.stride, network.downsamplings) == (4, 2)
    layers = [name.split(".")[0] for name, _ in Encoder(network, 4).named_parameters()][::2]
    assert layers == ["to_half", "to_quarter", "spatial", "pre_vq"]
    layers = [name.split(".")[0] for name, _ in Decoder(network, 4).named_parameters()][::2]
    assert layers == ["spatial", "from_quarter", "from_half"]
    torch.manual_seed(3)
    fresh = Encoder(network, 4)
    torch.manual_seed(3)
    first, second = (torch.nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in ((3, 4), (4, 8)))
    assert torch.equal(fresh.to_half.weight, first.weight)
    assert torch.equal(fresh.to_quarter.weight, second.weight)


def test_other_strides_are_refused():
    with pytest.raises(ValueError, match=r"network.downsamplings=3: these networks halve"):
        NetworkConfig(downsamplings=3)


def test_a_tokenizer_of_stride_2_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    config = recipe("equal_bits_mnist")("vq_vae", 2.0)
    network = replace(config.network, hidden=8, residual_hidden=4)
    settings = TokenizerConfig(quantizer=config.quantizer, network=network)
    tokenizer = ImageTokenizer(settings).eval()
    images = torch.rand(1, 1, 14, 10) * 2 - 1
    with torch.no_grad():
        ids = tokenizer.encode(images)
        assert ids.shape == (1, 7, 5, 1)
        tokenizer.save_pretrained(tmp_path / "t")
        back = ImageTokenizer.from_pretrained(tmp_path / "t")
        assert back.stride == 2
        assert torch.equal(back.decode(ids), tokenizer.decode(ids))


def test_the_new_setting_changes_no_tokenizer_of_before():
    """What a tokenizer is known by, in .vqk files, has no word of a setting it does not use."""
    quantizer = recipe("equal_bits_mnist")("looc", 0.6).quantizer
    known = [
        config_values(TokenizerConfig(quantizer=quantizer, network=NetworkConfig(downsamplings=n)))
        for n in (1, 2)
    ]
    assert [values["network"].get("downsamplings") for values in known] == [1, None]
    assert [config_from_values(v).network.downsamplings for v in known] == [1, 2]


# --------------------------------------------------------------------- operating points


@pytest.mark.parametrize(
    ("method", "rate", "expected"),
    [
        ("vq_vae", 0.3, (4, 1, 28)),  # 2^4.8 = 27.9
        ("cvq", 0.6, (4, 1, 776)),  # 2^9.6 = 776.05
        ("vq_ema", 1.0, (4, 1, 65_536)),
        ("vq_vae", 2.0, (2, 1, 256)),
        ("vq_vae", 4.0, (2, 1, 65_536)),
        ("looc", 0.3, (4, 3, 3)),  # two tokens of 5 codes would miss by 3 %
        ("pq", 0.6, (4, 2, 28)),
        ("rq", 1.0, (4, 2, 256)),
        ("looc", 2.0, (4, 4, 256)),
        ("pq", 4.0, (4, 8, 256)),
        ("rq", 8.0, (4, 16, 256)),
    ],
)
def test_rates_are_reached_so(method, rate, expected):
    stride, num_tokens, num_codes = expected
    point = OperatingPoint(stride=stride, num_tokens=num_tokens, num_codes=num_codes)
    assert operating_point(method, rate) == point


@pytest.mark.parametrize(("method", "rate"), CELLS)
def test_every_cell_is_within_two_percent_or_out_of_reach(method, rate):
    if method in WHOLE and rate == 8:
        with pytest.raises(ValueError, match=r"rate=8 with .*out of reach.*needs 2\^32 codes"):
            operating_point(method, rate)
        return
    make = equal_bits_mnist if rate in RATES["mnist"] else equal_bits_photos
    config = make(method, rate)
    args = {**config.quantizer.args, "num_codes": min(16, config.quantizer.args["num_codes"])}
    quantizer = build(replace(config.quantizer, args=args))  # few codes: the slots are the same
    point = operating_point(method, rate)
    bits = len(quantizer.slots) * math.log2(config.quantizer.args["num_codes"])
    assert bits / config.network.stride**2 == pytest.approx(point.bits_per_pixel)
    assert bits / config.network.stride**2 == pytest.approx(rate, rel=0.02)
    assert quantizer.channels in (63, 64)
    shared = method in ("looc", "rq", *WHOLE)
    assert len(set(quantizer.books)) == (1 if shared else point.num_tokens)


@pytest.mark.parametrize(
    ("method", "rate", "why"),
    [
        ("sq_vae", 1.0, "expected one of vq_vae"),
        ("looc", 0.0, "above 0"),
        ("looc", 0.05, "no 2 to 16 tokens"),
        ("looc", 9.0, "no 2 to 16 tokens"),
        ("cvq", 6.0, "needs 2\\^24 codes at stride 2"),
    ],
)
def test_what_is_out_of_reach_says_why(method, rate, why):
    with pytest.raises(ValueError, match=why):
        operating_point(method, rate)


@pytest.mark.parametrize("make", [equal_bits_mnist, equal_bits_photos])
def test_all_is_equal_but_the_quantizer(make):
    found = [to_dict(make(method, 1.0, num_steps=7)) for method in METHODS]
    for values in found:
        del values["quantizer"], values["name"]
    assert all(values == found[0] for values in found)
    assert (found[0]["optim"]["num_steps"], found[0]["test_data"]["split"]) == (7, "test")
    finer = to_dict(make("vq_vae", 2.0, num_steps=7))
    assert finer["network"]["downsamplings"] == 1
    assert {k for k in finer["network"] if finer["network"][k] != found[0]["network"][k]} == {
        "downsamplings"
    }


def test_photographs_to_measure_on_need_no_padding():
    config = equal_bits_photos("pq", 8.0, path="mine", test_path="theirs")
    assert (config.data.path, config.test_data.path) == ("mine", "theirs")
    assert (config.test_data.crop, config.test_data.crop_size) == ("center", 256)


# --------------------------------------------------------------------- the page


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    yield importlib.import_module("equal_bits")
    for name in ("equal_bits", "side_by_side"):
        sys.modules.pop(name, None)


def finished(page, data_set, rate, psnrs):
    """Cells of one rate with made-up numbers, by method."""
    from vqkit.evaluation.curves import RatePoint
    from vqkit.metrics import DEFAULT

    rows = []
    for method, psnr in psnrs.items():
        point = RatePoint(
            name=method,
            method=method,
            rates={"nominal": rate},
            metrics={"psnr": psnr},
            protocol=DEFAULT,
            num_images=1,
        )
        rows.append(page.Finished(page.Cell(data_set, rate, method), point, None, 600, 90.0))
    return rows


def test_the_answer_is_made_of_the_numbers(page):
    from vqkit.evaluation.anchors import Anchors
    from vqkit.evaluation.rate_distortion import RateDistortion

    whole, composed = dict.fromkeys(WHOLE, 20.0), dict.fromkeys(COMPOSED, 21.0)
    rows = finished(page, "photos", 1.0, whole | composed | {"rq": 23.5})
    rows += finished(page, "photos", 8.0, composed | {"looc": 21.25})
    rows += finished(page, "photos", 2.0, whole)  # not complete: says nothing
    point = rows[0].point
    codecs = [
        replace(point, name=n, method="J", rates={"coded": r}, metrics={"psnr": v}, codec=True)
        for n, r, v in (("J 5", 0.5, 22.0), ("J 9", 1.5, 30.0))
    ]
    anchors = Anchors(points=tuple(codecs), missing=(), versions={})
    curves = RateDistortion(
        points=tuple(r.point for r in rows), png=12.0, raw=24.0, anchors=anchors
    )
    said = page.answer({"photos": rows}, {"photos": curves})
    assert "rq at 1 of 2 rates, looc at 1 of 2 rates, by 0.25 to 2.50 dB" in said
    assert "(photographs: 1 rq by 2.50 dB, 8 looc by 0.25 dB)" in said
    assert "photographs at 1 J 5 has 1.50 dB less" in said
    assert "photographs at 8 J 9 has 8.75 dB more" in said
    assert page.answer({"photos": rows[:3]}, {"photos": curves}).startswith("No rate is measured")


@pytest.mark.slow
def test_cells_are_trained_measured_and_taken_as_they_are(page, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    few = functools.partial(page.measure_anchors, codecs=CODECS[:3])
    monkeypatch.setattr(page, "measure_anchors", few)
    photos = tmp_path / "photos"
    write_pictures(photos, count=16, size=(256, 260))
    words = ["equal_bits.py", "--photos", str(photos), "--test-photos", str(photos)]
    words += ["--work", str(tmp_path / "work"), "--page", str(tmp_path / "page" / "p.md")]
    words += ["--photo-images", "2", "--steps", "2", "--methods", "looc", "--rates", "0.6"]
    monkeypatch.setattr(sys, "argv", words)
    page.main()
    record = json.loads((tmp_path / "work/equal_bits_photos_looc_0.6/cell.json").read_text())
    assert record["steps"] == 2
    text = (tmp_path / "page" / "p.md").read_text()
    assert "| 0.6 | looc | 2 tokens of 28 codes at stride 4 | 0.6009 |" in text
    assert "| 8 | cvq | out of reach: one token a position needs 2^32 codes at stride 2 |" in text
    assert (tmp_path / "page" / "equal_bits_photos.png").stat().st_size > 10_000
    capsys.readouterr()
    page.main()  # takes the finished run
    assert "dB, " not in capsys.readouterr().out.partition("#")[0]
