"""Frequencies, t-SNE labels, usage by epoch, and their figures, against naive counts."""

import json
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from analysis_models import SIZES, make_images, make_tokenizer, write_images
from matplotlib.colors import to_hex
from training_runs import run_config
from training_runs import write_images as write_run_images

from vqkit.analysis import (
    code_frequency,
    code_tables,
    frequency_figure,
    map_codes,
    save_analysis,
    save_counts,
    tsne_figure,
    usage_figure,
    usage_of_run,
)
from vqkit.config import DataConfig, OptimConfig, RunConfig
from vqkit.data import load_images
from vqkit.training import train
from vqkit.training.health import fingerprint
from vqkit.training.run_folder import config_to_json, write_result
from vqkit.training.settings_file import write_settings

CODES = {"num_codes": 24, "dim": 4}
PRESETS = {
    "vq_vae": CODES,
    "looc": {**CODES, "num_segments": 3, "beta": 2},
    "pq": {**CODES, "num_segments": 3},
    "rq": {**CODES, "num_levels": 2},
    "dual": {"num_codes": (24, 6), "dim": 4, "refiner": "none"},
    "fsq": {"levels": (3, 5, 4)},
    "lfq": {"dim": 24},  # more codes than are counted in a table
}


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images")


# Frequencies


def naive_counts(tokenizer, images):
    """One counter for every codebook, token by token."""
    counts = [Counter() for _ in tokenizer.quantizer.books]
    for index in range(len(images)):
        for position in tokenizer.encode(images.image(index)[None]).flatten(0, 2).tolist():
            for slot, token in enumerate(position):
                for book, members in enumerate(tokenizer.quantizer.books):
                    if slot in members:
                        counts[book][token] += 1
    return counts


@pytest.mark.parametrize("preset", PRESETS)
def test_frequencies_are_those_of_a_loop(preset, images):
    tokenizer = make_tokenizer(preset, **PRESETS[preset])
    found = code_frequency(tokenizer, images, batch_size=2, name="mine")
    expected = naive_counts(tokenizer, images)
    assert len(found.books) == len(expected)
    for book, counts in zip(found.books, expected, strict=True):
        assert dict(zip(book.ids.tolist(), book.counts.tolist(), strict=True)) == counts
        assert book.ids.tolist() == sorted(counts)
        assert book.statistics.num_used == len(counts) > 1
        assert book.statistics.num_tokens == sum(counts.values())
        num_codes = tokenizer.quantizer.slots[book.statistics.slots[0]].num_codes
        assert sum(codes for _, codes in book.sorted_counts()) == num_codes
        assert sum(draws * codes for draws, codes in book.sorted_counts()) == sum(counts.values())
        assert book.sorted_counts() == sorted(book.sorted_counts(), reverse=True)
    conditions = found.conditions
    assert (conditions.name, conditions.num_images) == ("mine", len(SIZES))
    assert conditions.num_tokens == sum(sum(counts.values()) for counts in expected)
    assert conditions.data_fingerprint == images.fingerprint()
    assert conditions.tokenizer_sha256 == fingerprint(tokenizer).hex()


def test_counts_on_disk_are_those_of_every_code(images, tmp_path):
    tokenizer = make_tokenizer("dual", **PRESETS["dual"])
    paths = save_counts(code_frequency(tokenizer, images), tmp_path / "a.b.npy")
    assert [path.name for path in paths] == ["a.b.global.npy", "a.b.local.npy"]
    for path, counts in zip(paths, naive_counts(tokenizer, images), strict=True):
        stored = np.load(path)
        assert stored.tolist() == [counts[code] for code in range(len(stored))]
        assert stored.dtype == np.int64
    assert [len(np.load(path)) for path in paths] == [24, 6]


def test_counts_of_a_large_lattice_name_the_codes(images, tmp_path):
    found = code_frequency(make_tokenizer("lfq", dim=24), images)
    (path,) = save_counts(found, tmp_path / "a.npy")
    (book,) = found.books
    assert np.load(path).T.tolist() == [book.ids.tolist(), book.counts.tolist()]
    with pytest.raises(ValueError, match=r"num_codes=16777216: .* use ids and counts"):
        book.table()


@pytest.mark.slow
def test_the_curve_of_frequencies_is_drawn_from_the_numbers(images, tmp_path):
    results = [
        code_frequency(make_tokenizer(name, **PRESETS[name]), images, name=name)
        for name in ("vq_vae", "dual", "lfq")
    ]
    figure = frequency_figure(results)
    png, numbers = save_analysis("frequency", results, figure, tmp_path / "a.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    written = json.loads(numbers.read_text(encoding="utf-8"))
    assert (written["format"], written["kind"]) == ("vqkit-analysis-1", "frequency")
    books = [book for result in written["results"] for book in result["books"]]
    lines = figure.axes[0].get_lines()
    assert [line.get_label().partition(":")[0] for line in lines] == [
        "vq_vae",
        "dual global",
        "dual local",
        "lfq",
    ]
    for line, book in zip(lines, books, strict=True):
        each = [draws for draws, codes in book["draws_and_codes"] if draws for _ in range(codes)]
        ranks, shares = line.get_data()
        assert [each[int(rank) - 1] / book["num_tokens"] for rank in ranks] == list(shares)
        assert ranks[0] == 1
        assert ranks[-1] == book["num_used"] == len(each)
    pixels = figure.axes[1].get_images()[0].get_array()  # of the vq_vae
    table = results[0].books[0].table()
    drawn = np.asarray(pixels).flatten()[: len(table)] > 0.001
    assert drawn.tolist() == (table > 0).tolist()
    footer = figure.subfigs[-1].get_supxlabel()
    assert "no map of 1 of 4 codebooks" in footer


@pytest.mark.slow
def test_the_figure_of_frequencies_says_which_maps_it_leaves_out(images):
    ten = code_frequency(make_tokenizer("pq", num_codes=8, dim=1, num_segments=10), images)
    figure = frequency_figure([ten])
    assert sum(bool(axes.get_images()) for axes in figure.axes) == 8
    footer = figure.subfigs[-1].get_supxlabel()
    assert "no map of 2 of 10 codebooks: the first 8 of at most 1,048,576 codes" in footer
    eight = replace(ten, books=ten.books[:8])
    assert "no map" not in frequency_figure([eight]).subfigs[-1].get_supxlabel()


# t-SNE


@pytest.mark.parametrize("preset", ["vq_vae", "dual", "looc"])
def test_tsne_tells_active_from_inactive_codes(preset, images):
    tokenizer = make_tokenizer(preset, **PRESETS[preset])
    found = map_codes(tokenizer, images, max_codes=16, seed=3)
    for book, counts in zip(found.books, naive_counts(tokenizer, images), strict=True):
        assert len(book.ids) == min(16, book.num_codes)
        assert book.ids.tolist() == sorted(set(book.ids.tolist()))
        assert book.active.tolist() == [code in counts for code in book.ids.tolist()]
        assert book.num_active == len(counts)
        assert book.points.shape == (len(book.ids), 2)
    if preset == "vq_vae":
        assert 0 < int(found.books[0].active.sum()) < 16, (
            "both kinds must be there to be told apart"
        )


def test_tsne_draws_every_point_in_the_colour_of_its_kind(images, tmp_path):
    found = map_codes(make_tokenizer("vq_vae", **CODES), images)
    figure = tsne_figure([found])
    _, numbers = save_analysis("tsne", [found], figure, tmp_path / "a.png")
    book = json.loads(numbers.read_text(encoding="utf-8"))["results"][0]["books"][0]
    colours = {"#009e73": True, "#0072b2": False}
    drawn = {
        (float(x), float(y)): colours[to_hex(group.get_facecolor()[0])]
        for group in figure.axes[0].collections
        for x, y in group.get_offsets()
    }
    points = [tuple(point) for point in book["points"]]
    assert drawn == dict(zip(points, book["active"], strict=True))
    assert figure.axes[0].get_title() == "tokenizer: {:.1f} % of 24 active".format(
        100 * book["num_active"] / 24
    )


def test_tsne_keeps_clusters_together(images):
    tokenizer = make_tokenizer("vq_vae", num_codes=40, dim=4)
    with torch.no_grad():  # two clusters far apart
        codes = next(tokenizer.quantizer.quantizer.leaves()).codebook.codes
        codes.normal_().mul_(0.1)[:, 20:] += 10
    points = map_codes(tokenizer, images, perplexity=5).books[0].points
    centres = points[:20].mean(0), points[20:].mean(0)
    nearer = torch.stack([(points - centre).norm(dim=1) for centre in centres]).argmin(0)
    assert nearer.tolist() == [0] * 20 + [1] * 20


def test_codes_of_one_dimension_have_a_map(images):
    tokenizer = make_tokenizer("looc", num_codes=12, dim=1, num_segments=3, metric="l2")
    assert map_codes(tokenizer, images).books[0].points.isfinite().all()


def test_tables_are_those_that_vectors_are_compared_with():
    features = torch.randn(12, 20)
    lc = make_tokenizer("vqgan_lc", features=features, dim=4, in_channels=6)
    (table,) = code_tables(lc.quantizer)
    projector = lc.quantizer.quantizer.codebook.projector
    torch.testing.assert_close(table.codes, features @ projector.weight.T + projector.bias)
    sphere = make_tokenizer("vit_vqgan", num_codes=12, dim=4, in_channels=6)
    torch.testing.assert_close(code_tables(sphere.quantizer)[0].codes.norm(dim=1), torch.ones(12))
    pq = make_tokenizer("pq", **PRESETS["pq"])
    names = [(table.name, table.slots) for table in code_tables(pq.quantizer)]
    assert names == [("segment0", (0,)), ("segment1", (1,)), ("segment2", (2,))]


# Usage by epoch


def write_run(folder, lines, preset="vq_vae", **args):
    """A finished run without its training."""
    tokenizer = make_tokenizer(preset, **(args or CODES))
    config = RunConfig(
        name="tiny",
        quantizer=tokenizer.config.quantizer,
        network=tokenizer.config.network,
        data=DataConfig(source="photos"),
        optim=OptimConfig(num_steps=8, batch_size=4),
    )
    write_settings(folder, config_to_json(config))
    result = {"steps": 8, "seconds": 1.0, "data": {"fingerprint": "f" * 64, "images": 9}}
    write_result(folder, "tokenizer", tokenizer.save_pretrained, result)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text, encoding="utf-8")
    return tokenizer


def log_lines(names=()):
    """Two epochs of four steps, and lines that end none."""
    lines = []
    for step in range(1, 9):
        line = {"step": step, "loss": 1.0, "codes_used": 0.5}
        if step % 4 == 0:
            usage = 0.25 * (step // 4)
            line |= {
                "epoch": step // 4,
                "epoch_codes_used": usage,
                "epoch_perplexity": 3.5 + step,
                "epoch_tokens": 100,
                "epoch_uniform_usage": 0.98,
            }
            if names:
                line["epoch_books"] = {
                    name: {
                        "codes": 24,
                        "tokens": 50,
                        "used": usage + number / 8,
                        "perplexity": 2.0 + number,
                        "uniform_usage": 0.9,
                    }
                    for number, name in enumerate(names)
                }
        lines.append(line)
    return lines


def test_usage_is_read_epoch_by_epoch(tmp_path):
    tokenizer = write_run(tmp_path / "run", log_lines())
    found = usage_of_run(tmp_path / "run")
    (book,) = found.books
    assert (book.name, book.num_codes) == ("code", 24)
    assert book.epochs == found.mean
    assert [(e.epoch, e.step, e.usage, e.perplexity) for e in book.epochs] == [
        (1, 4, 0.25, 7.5),
        (2, 8, 0.5, 11.5),
    ]
    assert {(e.num_tokens, e.uniform_usage) for e in book.epochs} == {(100, 0.98)}
    conditions = found.conditions
    assert (conditions.name, conditions.num_images, conditions.num_tokens) == ("tiny", 9, 200)
    assert conditions.data_fingerprint == "f" * 64
    assert conditions.tokenizer_sha256 == fingerprint(tokenizer).hex()


def test_usage_of_several_codebooks_and_its_figure(tmp_path):
    write_run(tmp_path / "two", log_lines(["global", "local"]), "dual", **PRESETS["dual"])
    segments = [f"segment{number}" for number in range(6)]
    write_run(tmp_path / "six", log_lines(segments), "pq", num_codes=24, dim=2, num_segments=6)
    write_run(tmp_path / "one", log_lines())
    runs = [usage_of_run(tmp_path / name, name=name) for name in ("two", "six", "one")]
    figure = usage_figure(runs)
    _, numbers = save_analysis("usage", runs, figure, tmp_path / "a.png")
    two, six, one = json.loads(numbers.read_text(encoding="utf-8"))["results"]
    assert [book["name"] for book in two["books"]] == ["global", "local"]
    assert [book["name"] for book in six["books"]] == segments
    series = [*(book["epochs"] for book in two["books"]), six["mean"], one["mean"]]
    left, right = figure.axes
    usage, uniform = left.get_lines()[::2], left.get_lines()[1::2]
    assert [line.get_label() for line in usage] == [
        "two global",
        "two local",
        "six, mean over codebooks",
        "one",
    ]
    for key, lines in (
        ("usage", usage),
        ("uniform_usage", uniform),
        ("perplexity", right.get_lines()),
    ):
        for line, epochs in zip(lines, series, strict=True):
            assert list(line.get_xdata()) == [epoch["epoch"] for epoch in epochs] == [1, 2]
            assert list(line.get_ydata()) == [epoch[key] for epoch in epochs]
    assert list(usage[1].get_ydata()) == [0.375, 0.625]


def test_usage_of_a_run_as_training_writes_it(tmp_path):
    """Finished or stopped: 12 steps of 8 of 24 images are 4 epochs."""
    config = run_config(write_run_images(tmp_path / "images"), "dual")
    train(config, out=tmp_path / "run", progress=False)
    finished = usage_of_run(tmp_path / "run")
    assert [epoch.epoch for epoch in finished.mean] == [1, 2, 3, 4]
    assert [book.name for book in finished.books] == ["global", "local"]
    for number, epoch in enumerate(finished.mean):
        parts = [book.epochs[number] for book in finished.books]
        assert epoch.num_tokens == sum(part.num_tokens for part in parts)
        assert epoch.usage == pytest.approx(sum(part.usage for part in parts) / 2)
    assert finished.conditions.data_fingerprint == load_images(config.data).fingerprint()
    assert finished.conditions.num_images == 24
    (tmp_path / "run" / "result.json").unlink()
    assert usage_of_run(tmp_path / "run") == finished


def test_books_that_some_epochs_leave_out_have_no_line(tmp_path):
    lines = log_lines(["global", "local"])
    del lines[3]["epoch_books"]["local"]
    write_run(tmp_path / "run", lines, "dual", **PRESETS["dual"])
    assert [book.name for book in usage_of_run(tmp_path / "run").books] == ["global"]


def test_usage_refuses_logs_without_epochs(tmp_path):
    write_run(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    with pytest.raises(ValueError, match=r"its log tells of no epoch .*; train it for an epoch"):
        usage_of_run(tmp_path / "run")
    lines = log_lines()
    del lines[7]["epoch_tokens"]
    write_run(tmp_path / "altered", lines)
    with pytest.raises(ValueError, match=r"log.jsonl, step 8: 'epoch_tokens' is missing"):
        usage_of_run(tmp_path / "altered")
    with pytest.raises(ValueError, match=r"holds no config.json; name the folder of a training"):
        usage_of_run(tmp_path)


# The tokenizer


def test_a_tokenizer_in_training_is_analysed_in_evaluation_and_left_as_it_was(images):
    tokenizer = make_tokenizer("dual", num_codes=24, dim=8, num_layers=1)  # with dropout
    before = fingerprint(tokenizer)
    expected = [book.points for book in map_codes(tokenizer, images).books]
    tokenizer.train()
    tokenizer.decoder.eval()
    found = [book.points for book in map_codes(tokenizer, images).books]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert tokenizer.encoder.training
    assert not tokenizer.decoder.training
    assert fingerprint(tokenizer) == before


# Bad input


def test_analyses_refuse(images, tmp_path, monkeypatch):
    tokenizer = make_tokenizer("vq_vae", **CODES)
    with pytest.raises(ValueError, match=r"codebook 'code' \(lattice 3×5×4\): is a lattice"):
        map_codes(make_tokenizer("fsq", **PRESETS["fsq"]), images)
    with pytest.raises(ValueError, match=r"codebook 'code' of 4 codes: t-SNE needs at least 5"):
        map_codes(make_tokenizer("vq_vae", num_codes=4, dim=4), images)
    with pytest.raises(ValueError, match=r"books=1: the quantizer has 1 codebooks, counted from 0"):
        map_codes(tokenizer, images, books=[1])
    many = make_tokenizer("pq", num_codes=8, dim=1, num_segments=13)
    with pytest.raises(ValueError, match=r"13 codebooks: one figure shows 1 to 12; choose some"):
        map_codes(many, images)
    assert [book.name for book in map_codes(many, images, books=[2, 12]).books] == [
        "segment2",
        "segment12",
    ]
    for name, value in (("max_codes", 4), ("perplexity", 0), ("seed", -1)):
        with pytest.raises(ValueError, match=f"{name}={value}: must"):
            map_codes(tokenizer, images, **{name: value})
    found = code_frequency(tokenizer, images)
    with pytest.raises(ValueError, match=r"out=a.svg: figures are PNG files"):
        save_analysis("frequency", [found], frequency_figure([found]), "a.svg")
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ValueError, match=r"scikit-learn is not installed; pip install"):
        map_codes(tokenizer, images)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"matplotlib is not installed; pip install 'vqkit\[plot"):
        frequency_figure([found])


def test_a_table_that_is_not_finite_is_named(images):
    tokenizer = make_tokenizer("gumbel", **CODES)  # logits choose, so that NaN goes unseen
    with torch.no_grad():
        next(tokenizer.quantizer.quantizer.leaves()).codebook.codes[0, 3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"codebook 'code': holds NaN or infinity"):
        map_codes(tokenizer, images)


def test_images_of_other_channels_are_refused(tmp_path):
    write_images(tmp_path)
    images = load_images(DataConfig(source="folder", path=str(tmp_path), channels=1))
    with pytest.raises(ValueError, match=r"data.channels=1: the tokenizer takes images of 3"):
        code_frequency(make_tokenizer("vq_vae", **CODES), images)
