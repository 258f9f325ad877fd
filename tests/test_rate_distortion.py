"""Rate-distortion curves: codecs against plain loops, distances against scipy, figure and table."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from report_runs import make_tokenizer, measure, write_pictures, write_run

from vqkit.cli import main
from vqkit.data import iterate_once, load_images
from vqkit.evaluation import evaluate
from vqkit.evaluation.anchors import CODECS, Anchors, Codec, measure_anchors, through
from vqkit.evaluation.curves import (
    Curve,
    RatePoint,
    bd_rate,
    check_alike,
    curves_of,
    point_of,
    rising_cubic,
)
from vqkit.evaluation.rate_distortion import RateDistortion, measure_coded
from vqkit.metrics import DEFAULT
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.tokens import TokenCoder

SMALL_CODECS = tuple(c for c in CODECS if c.quality in (None, 50, 55))
HERE = DEFAULT.on("ab" * 32, 10)


def codec_point(name, rate, psnr, **more):
    return RatePoint(
        name=f"{name} {rate}",
        method=name,
        rates={"coded": rate},
        metrics={"psnr": psnr, "ssim": 0.9},
        protocol=HERE,
        num_images=10,
        codec=True,
        **more,
    )


def token_point(name, rate, psnr, protocol=HERE):
    return RatePoint(
        name=f"{name} {rate}",
        method=name,
        rates={"nominal": rate, "entropy": 0.5 * rate},
        metrics={"psnr": psnr, "ssim": None},
        protocol=protocol,
        num_images=10,
    )


def curve(method, rates, values):
    return Curve(method=method, rates=tuple(rates), values=tuple(values), codec=False)


# --------------------------------------------------------------------- codecs


@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_files_are_exact_and_lossy_ones_near(channels):
    rows, columns = torch.arange(24)[:, None], torch.arange(33)[None, :]
    image = ((rows * 5 + columns * 3) % 256).to(torch.uint8).expand(channels, -1, -1)
    for codec in SMALL_CODECS:
        back, size = through(codec, image)
        assert (back.shape, back.dtype) == (image.shape, torch.uint8)
        error = (back.double() - image.double()).abs().mean()
        assert error == 0 if codec.quality is None else 0 < error < 12
        assert 0 < size < 2000


def test_codecs_are_measured_as_a_plain_loop_does(tmp_path):
    skimage = pytest.importorskip("skimage.metrics")
    images = load_images(write_pictures(tmp_path / "a"))
    jpeg = next(c for c in SMALL_CODECS if c.name == "JPEG")
    found = measure_anchors(images, codecs=(jpeg,), batch_size=2)
    size, scores = 0, []
    for batch in iterate_once(images, 1):
        original = batch.images[0].permute(1, 2, 0).numpy()
        content = io.BytesIO()
        Image.fromarray(original).save(content, "JPEG", quality=50, optimize=True)
        size += len(content.getvalue())
        back = np.array(Image.open(content))
        scores.append(skimage.peak_signal_noise_ratio(original, back, data_range=255))
    (point,) = found.points
    assert point.rates["coded"] == pytest.approx(8 * size / (3 * 32 * 40))
    assert point.metrics["psnr"] == pytest.approx(np.mean(scores), abs=1e-9)
    assert (point.method, point.codec, point.lossless) == ("JPEG", True, False)
    assert point.protocol == DEFAULT.on(images.fingerprint(), 3)
    assert Anchors.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_codecs_that_are_not_there_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.features.get_supported", lambda: ["zlib", "jpg"])
    images = load_images(write_pictures(tmp_path / "a"))
    found = measure_anchors(images, codecs=SMALL_CODECS)
    assert [point.method for point in found.points] == ["PNG", "JPEG"]
    assert [name for name, _ in found.missing] == ["WebP lossless", "WebP", "AVIF"]
    assert all("built without" in why for _, why in found.missing)


def test_codecs_that_refuse_an_image_are_said(tmp_path):
    Image.new("L", (16_384, 11)).save(tmp_path / "wide.png")  # WebP ends at 16,383
    data = replace(write_pictures(tmp_path), channels=1)
    webp = Codec(name="WebP", format="WEBP", feature="webp", quality=1)
    found = measure_anchors(load_images(data), codecs=(SMALL_CODECS[0], webp))
    assert [point.name for point in found.points] == ["PNG"]
    ((name, why),) = found.missing
    assert name == "WebP 1"
    assert why.startswith("refuses an image")


def test_damaged_numbers_of_codecs_are_refused():
    for values in ({}, [], {"format": "vqkit-anchors-1"}):
        with pytest.raises(ValueError, match=r"measure again"):
            Anchors.from_dict(values)


# --------------------------------------------------------------------- curves and distances


def test_curves_join_methods_by_rising_rate():
    points = [
        token_point("looc", 2.0, 30.0),
        codec_point("JPEG", 1.0, 25.0),
        token_point("looc", 0.5, 22.0),
        codec_point("PNG", 3.0, 100.0, lossless=True),
        replace(token_point("looc", 1.0, 0.0), metrics={"psnr": None}),
    ]
    looc, jpeg = curves_of(points, "psnr", "nominal")
    assert (looc.method, looc.rates, looc.values) == ("looc", (0.5, 2.0), (22.0, 30.0))
    assert (jpeg.method, jpeg.rates, jpeg.codec) == ("JPEG", (1.0,), True)
    assert curves_of(points, "psnr", "entropy")[0].rates == (0.25, 1.0)
    (only,) = curves_of(points, "psnr", "coded")  # no tokens were coded
    assert only.method == "JPEG"


def test_points_of_other_images_are_refused():
    other = token_point("rq", 1.0, 20.0, DEFAULT.on("cd" * 32, 10))
    with pytest.raises(ValueError, match=r"rq 1.0: protocol=.*same images and protocol"):
        check_alike([token_point("looc", 1.0, 20.0), other])
    with pytest.raises(ValueError, match=r"points=\[\]"):
        check_alike([])
    networks = token_point("rq", 1.0, 20.0, HERE.with_measures({"network": "inception"}))
    assert check_alike([networks, token_point("looc", 1.0, 20.0)]) == HERE


def test_rising_cubic_is_that_of_scipy():
    interpolate = pytest.importorskip("scipy.interpolate")
    numbers = np.random.default_rng(0)
    for _ in range(5):
        x, y = (np.cumsum(numbers.uniform(0.05, 2, 6)) for _ in range(2))
        at = np.linspace(x[0], x[-1], 200)
        expected = interpolate.PchipInterpolator(x, y)(at)
        np.testing.assert_allclose(rising_cubic(x, y)(at), expected, rtol=1e-10)


def test_distance_of_curves_is_their_mean_ratio_of_bits():
    rates, values = [0.5, 1.0, 2.0, 4.0], [25.0, 30.0, 34.0, 37.0]
    reference = curve("a", rates, values)
    assert bd_rate(reference, reference, "psnr").percent == pytest.approx(0.0)
    fewer = bd_rate(curve("b", [0.8 * r for r in rates], values), reference, "psnr")
    assert fewer.percent == pytest.approx(-20.0)
    assert fewer.why == "mean over psnr from 25 to 37"
    # The same curves of a metric that falls.
    low = [[40 - v for v in values]] * 2
    falling = bd_rate(
        curve("b", [1.5 * r for r in rates], low[0]), curve("a", rates, low[1]), "fid"
    )
    assert falling.percent == pytest.approx(50.0)


def test_distance_is_the_integral_of_scipy():
    interpolate = pytest.importorskip("scipy.interpolate")
    a = curve("a", [0.5, 1.0, 2.0, 4.0, 6.0], [25.0, 30.0, 34.0, 37.0, 38.0])
    b = curve("b", [0.4, 1.1, 2.3, 4.4], [26.0, 29.5, 35.0, 40.0])
    lines = [interpolate.PchipInterpolator(c.values, np.log10(c.rates)) for c in (a, b)]
    of_a, of_b = (line.integrate(26.0, 38.0) / 12 for line in lines)
    expected = 100 * (10 ** (of_b - of_a) - 1)
    assert bd_rate(b, a, "psnr").percent == pytest.approx(expected, abs=1e-3)  # 2,001 places


@pytest.mark.parametrize(
    ("rates", "values", "why"),
    [
        ([1, 2, 3], [20, 25, 30], "b has 3 of 4 points needed"),
        ([1, 2, 3, 4], [20, 25, 24, 30], "does not rise with its rate"),
        ([1, 1, 3, 4], [20, 25, 28, 30], "does not rise with its rate"),
        ([0, 1, 3, 4], [20, 25, 28, 30], "a rate of zero"),
        ([1, 2, 3, 4], [36, 40, 44, 50], "less than half of the shorter range"),
        ([1, 2, 3, 4], [40, 41, 42, 43], "the two share 0 of psnr"),
    ],
)
def test_distances_that_mean_nothing_are_refused(rates, values, why):
    reference = curve("a", [0.5, 1.0, 2.0, 4.0], [25.0, 30.0, 34.0, 37.0])
    found = bd_rate(curve("b", rates, values), reference, "psnr")
    assert found.percent is None
    assert why in found.why


# --------------------------------------------------------------------- figure, table, files


@pytest.fixture
def curves():
    tokens = [token_point("looc", 2.0**i, 20.0 + 4 * i) for i in range(-1, 3)]
    codecs = [codec_point("JPEG", 0.5 * 2**i, 22.0 + 5 * i) for i in range(4)]
    png = codec_point("PNG", 3.0, 100.0, lossless=True)
    anchors = Anchors(points=(png, *codecs), missing=(("AVIF", "not built"),), versions={})
    return RateDistortion(points=tuple(tokens), png=3.0, raw=8.0, anchors=anchors)


def test_lossy_rates_above_png_are_marked(curves):
    assert curves.lossless == {"PNG": 3.0, "raw": 8.0}
    marked = [line.split()[1] for line in curves.table().splitlines() if "[above" in line]
    assert marked[:2] == ["looc", "JPEG"]
    assert [curves.is_above_lossless(p) for p in curves.points] == [False, False, False, True]
    text = curves.table(bd_reference="JPEG")
    assert "AVIF was not measured: not built." in text
    assert "- looc: +" in text
    with pytest.raises(ValueError, match=r"bd_reference='rq': has no curve"):
        curves.bd_rates("rq")


def test_every_panel_has_the_lines_of_png_and_raw(curves, tmp_path):
    pytest.importorskip("matplotlib", reason="figures come with the extra `plots`")
    figure = curves.figure(("psnr", "ssim"))
    for axes in figure.axes:
        words = [text.get_text() for text in axes.texts]
        assert words == ["PNG 3", "raw 8"]
        assert axes.get_xscale() == "log"
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels[:2] == ["looc", "JPEG"]
    with pytest.raises(ValueError, match=r"metric='fid': was not measured"):
        curves.figure(("fid",))
    paths = curves.save(tmp_path / "x.png", bd_reference="JPEG")
    assert [path.name for path in paths] == ["x.png", "x.json", "x.md"]
    numbers = json.loads(paths[1].read_text())
    assert [p["above_lossless"] for p in numbers["points"]] == [False, False, False, True]
    assert numbers["bd_rate"]["of"]["looc"]["percent"] > 0
    with pytest.raises(ValueError, match=r"figures are PNG files"):
        curves.save(tmp_path / "x.jpg")


def test_files_are_counted_as_written(tmp_path):
    images = load_images(write_pictures(tmp_path / "a"))
    tokenizer = make_tokenizer()
    coder = TokenCoder.of(tokenizer)
    size = 0
    with torch.no_grad():
        for batch in iterate_once(images, 1):
            size += len(coder.encode([tokenizer.encode(batch.images)[0]], [(32, 40)]))
    found = measure_coded(tokenizer, images, batch_size=2)
    assert found == pytest.approx(8 * size / (3 * 32 * 40))


def test_points_of_evaluations_keep_rates_and_quality(tmp_path):
    images = load_images(write_pictures(tmp_path / "a"))
    found = evaluate(make_tokenizer(), images, name="first")
    point = point_of(found, method="looc", coded=1.25)
    assert point.rates["nominal"] == pytest.approx(3 * 3 / 16)  # three tokens of 8 codes, stride 4
    assert (point.rates["entropy"], point.rates["coded"]) == (found.value("entropy_rate"), 1.25)
    assert point.metrics["psnr"] == found.value("psnr")
    assert "png_rate" not in point.metrics
    assert point_of(found, method="looc").rate("coded") is None


# --------------------------------------------------------------------- the command


@pytest.mark.slow
def test_command_draws_runs_and_codecs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="figures come with the extra `plots`")
    monkeypatch.setattr("vqkit.evaluation.anchors.measure_anchors.__kwdefaults__", {
        **measure_anchors.__kwdefaults__, "codecs": SMALL_CODECS
    })  # fmt: skip
    data = write_pictures(tmp_path / "pictures")
    first = write_run(tmp_path / "one", data, name="one")
    second = write_run(tmp_path / "two", data, name="two", seed=1, num_codes=16)
    out = tmp_path / "rd.png"
    assert main(["rate-distortion", str(first), f"mine={second}", "--out", str(out)]) == 0
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert [(p["name"], p["method"]) for p in numbers["points"]] == [
        ("one", "looc"),
        ("two", "mine"),
    ]
    assert all(set(p["rates"]) == {"nominal", "entropy", "coded"} for p in numbers["points"])
    assert {p["method"] for p in numbers["anchors"]["points"]} >= {"PNG", "JPEG"}
    assert "| two" in capsys.readouterr().out
    assert out.stat().st_size > 10_000


@pytest.mark.slow
def test_command_measures_again_what_was_trained_since(tmp_path, capsys):
    """An evaluation is taken as it is for its own weights, images and protocol alone."""
    pytest.importorskip("matplotlib", reason="figures come with the extra `plots`")
    data = write_pictures(tmp_path / "pictures")
    folder, out = write_run(tmp_path / "one", data, name="one"), tmp_path / "rd.png"
    before = measure(folder, data, "one")
    command = ["rate-distortion", str(folder), "--out", str(out), "--no_codecs", "--no_files"]

    def shown():
        assert main(command) == 0
        (point,) = json.loads(out.with_suffix(".json").read_text())["points"]
        return point["metrics"]["psnr"], "measuring one" in capsys.readouterr().err

    assert shown() == (before.value("psnr"), False)
    make_tokenizer(seed=5).save_pretrained(folder / "tokenizer")
    images = load_images(data)
    expected = evaluate(make_tokenizer(seed=5), images).value("psnr")
    assert expected != before.value("psnr")
    assert shown() == (pytest.approx(expected), True)
    evaluate(make_tokenizer(seed=5), load_images(replace(data, limit=2))).save(
        folder / "evaluation.json"
    )
    assert shown() == (pytest.approx(expected), True)
    tiled = replace(DEFAULT, tile=16)
    evaluate(make_tokenizer(seed=5), images, protocol=tiled).save(folder / "evaluation.json")
    assert shown() == (pytest.approx(expected), True)


@pytest.mark.slow
def test_command_takes_evaluations_alone(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="figures come with the extra `plots`")
    images = load_images(write_pictures(tmp_path / "a"))
    file = tmp_path / "e.json"
    evaluate(make_tokenizer(), images, name="measured").save(file)
    out = tmp_path / "rd.png"
    assert main(["rate-distortion", str(file), "--out", str(out), "--rate", "entropy"]) == 0
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert numbers["anchors"] is None
    assert set(numbers["lossless"]) == {"PNG", "raw"}
    assert "| measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "run: none is named"),
        (["x", "--rate", "real"], "rate='real': expected one of nominal"),
        (["x", "--out", "a.jpg"], "figures are PNG files"),
    ],
)
def test_bad_words_are_one_line(words, said, capsys):
    assert main(["rate-distortion", *words]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == 1


def test_a_tokenizer_alone_needs_images(tmp_path, capsys):
    make_tokenizer().save_pretrained(tmp_path / "t")
    assert isinstance(ImageTokenizer.from_pretrained(tmp_path / "t").config, TokenizerConfig)
    assert main(["rate-distortion", str(tmp_path / "t")]) == 2
    assert "no images to measure on are known" in capsys.readouterr().err
