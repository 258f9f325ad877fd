"""Curves over evaluations: what is read, joined and refused."""

from dataclasses import replace

import pytest
from analysis_models import make_images, make_tokenizer

from vqkit.analysis import scaling_figure, size_point, sizes_figure
from vqkit.analysis.curves import lines
from vqkit.evaluation import Evaluation, Metric, evaluate


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    images = make_images(tmp_path_factory.mktemp("images"))
    tokenizers = {
        "a": make_tokenizer("looc", num_codes=12, dim=4, num_segments=3),
        "b": make_tokenizer("looc", num_codes=24, dim=4, num_segments=3),
        "c": make_tokenizer("looc", num_codes=12, dim=2, num_segments=6),
        "two": make_tokenizer("dual", num_codes=(16, 6), dim=4, refiner="none"),
        "lattice": make_tokenizer("fsq", levels=(3, 5)),
    }
    return {name: evaluate(one, images, name=name) for name, one in tokenizers.items()}


def points_of(evaluations, **methods):
    return [size_point(evaluations[name], method=method) for name, method in methods.items()]


def with_fid(evaluation: Evaluation, value):
    fid = Metric(
        name="fid",
        value=value,
        unit="",
        protocol=evaluation.protocol.id,
        num_images=5,
        num_tokens=9,
    )
    return replace(evaluation, metrics=(*evaluation.metrics, fid))


def test_points_know_the_sizes_of_codebooks(evaluations):
    shapes = {name: size_point(one) for name, one in evaluations.items()}
    assert {n: (p.num_codes, p.dim, p.num_books) for n, p in shapes.items()} == {
        "a": (12, 4, 1),
        "b": (24, 4, 1),
        "c": (12, 2, 1),
        "two": (16, None, 2),
        "lattice": (15, None, 1),
    }
    for name, point in shapes.items():
        assert point.metrics["psnr"] == evaluations[name].value("psnr")
        uniform = evaluations[name].value("usage_uniform")
        assert point.uniform_usage == pytest.approx(uniform)


def test_no_length_is_made_up_for_several_codebooks(evaluations):
    books = evaluations["two"].books
    unequal = replace(evaluations["two"], codebook_floats=16 * 1 + 6 * 9)
    assert sum(book.num_codes for book in books) == 22
    assert size_point(replace(unequal, codebook_floats=3 * 22)).dim is None
    assert size_point(unequal).dim is None
    longer = size_point(replace(unequal, codebook_floats=3 * 22))
    apart = lines([size_point(unequal), longer], "num_codes", "psnr")
    assert [len(row) for row in apart.values()] == [1, 1], "they differ in more than K"


def test_lines_join_what_differs_in_one_size_alone(evaluations):
    points = points_of(evaluations, b="looc", a="looc", c="looc", two="dual", lattice="fsq")
    by_codes = lines(points, "num_codes", "psnr")
    assert {key: [place for place, _, _ in row] for key, row in by_codes.items()} == {
        ("looc", 4, 4): [12, 24],
        ("looc", 2, 2): [12],
        ("dual", None, 4): [16],
        ("fsq", None, 0): [15],
    }
    by_dim = lines(points, "dim", "psnr")
    assert {key: [place for place, _, _ in row] for key, row in by_dim.items()} == {
        ("looc", 24, 0): [4],
        ("looc", 12, 0): [2, 4],
    }
    assert lines(points, "dim", "fid") == {}


def test_the_figure_of_sizes_shows_the_numbers(evaluations):
    points = points_of(evaluations, a="looc", b="looc", c="looc", lattice="fsq")
    figure = sizes_figure(points)
    written = [one.to_dict() for one in points]
    assert [one["protocol"]["id"] for one in written] == [points[0].protocol.id] * 4
    values = {one["name"]: one["metrics"]["psnr"] for one in written}
    by_codes = next(a for a in figure.axes if "against K" in a.get_title())
    line = by_codes.get_lines()[0]
    assert line.get_xdata().tolist() == [12, 24]
    assert line.get_ydata().tolist() == [values["a"], values["b"]]
    plane = figure.axes[0]
    drawn = {
        tuple(offset) for group in plane.collections for offset in group.get_offsets().tolist()
    }
    assert drawn == {(12, 4), (24, 4), (12, 2)}
    assert "3 of 4 of known length" in plane.get_title()


@pytest.mark.slow
def test_the_figure_of_scaling_says_that_fid_is_missing(evaluations):
    points = points_of(evaluations, a="looc", b="looc")
    figure = scaling_figure(points)
    usage, perplexity, fid = figure.axes
    assert usage.get_lines()[0].get_ydata().tolist() == [p.metrics["usage"] for p in points]
    assert perplexity.get_lines()[0].get_ydata().tolist() == [
        p.metrics["perplexity"] for p in points
    ]
    assert "FID was not measured" in fid.texts[0].get_text()
    known = [with_fid(evaluations["a"], 7.0), with_fid(evaluations["b"], 5.0), evaluations["c"]]
    drawn = scaling_figure([size_point(one, method="looc") for one in known]).axes[2]
    assert drawn.get_lines()[0].get_ydata().tolist() == [7.0, 5.0]
    star = next(line for line in drawn.get_lines() if line.get_marker() == "*")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (24, 5.0)
    assert "1 not measured" in drawn.get_title()


def test_curves_refuse(evaluations, tmp_path):
    points = points_of(evaluations, a="looc", b="looc")
    with pytest.raises(ValueError, match=r"metric='fid': was not measured; known are .*psnr"):
        sizes_figure(points, metric="fid")
    with pytest.raises(ValueError, match="evaluations: none is given"):
        scaling_figure([])
    images = make_images(tmp_path, [(16, 16)])
    tokenizer = make_tokenizer("looc", num_codes=12, dim=4, num_segments=3)
    other = size_point(evaluate(tokenizer, images, name="other"))
    with pytest.raises(ValueError, match=r"other: protocol=.*cannot stand in one curve"):
        sizes_figure([*points, other])
