"""Bars, segments and the grid of codevectors, against naive counts and the run's own past."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from analysis_models import SIZES, make_images, make_tokenizer
from training_runs import run_config
from training_runs import write_images as write_run_images

from vqkit.analysis import (
    bars_figure,
    code_frequency,
    codes_of_run,
    grid_figure,
    segment_usage,
    segments_figure,
)
from vqkit.analysis.codes.bars import means_of_runs
from vqkit.analysis.codes.grid_figure import kinds_of, tiles, tiles_shape
from vqkit.analysis.codes.untouched import initial_tables
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.training import train
from vqkit.training.run_folder import read_result

CODES = {"num_codes": 24, "dim": 4}
SEGMENTED = {
    "looc": {**CODES, "num_segments": 3, "beta": 2},
    "pq": {**CODES, "num_segments": 3},
    "rq": {**CODES, "num_levels": 2},
    "dual": {"num_codes": (24, 6), "dim": 4, "refiner": "none"},
}


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images")


# Bars


def test_bars_are_the_draws_over_their_mean(images):
    found = [
        code_frequency(make_tokenizer(name, **args), images, name=name)
        for name, args in (("vq_vae", CODES), ("dual", SEGMENTED["dual"]))
    ]
    figure = bars_figure(found)
    books = [book for one in found for book in one.books]
    drawn = [axes for axes in figure.axes if axes.get_ylabel() == "draws / mean draws"]
    assert len(drawn) == len(books) == 3
    for axes, book in zip(drawn, books, strict=True):
        table = book.table().double()
        (steps,) = axes.patches
        np.testing.assert_allclose(steps.get_data().values, (table / table.mean()).numpy())
        assert f"K = {len(table)}," in axes.get_title()


def test_a_code_drawn_least_is_not_black(images):
    (book,) = code_frequency(make_tokenizer("vq_vae", **CODES), images).books
    book.counts[0] = 1
    book.counts[1] = 1_000_000
    statistics = replace(book.statistics, num_tokens=int(book.counts.sum()))
    one = code_frequency(make_tokenizer("vq_vae", **CODES), images)
    shown = replace(one, books=(replace(book, statistics=statistics),))
    figure = bars_figure([shown])
    pixels = next(axes for axes in figure.axes if axes.get_images()).get_images()[0]
    low, _ = pixels.get_clim()
    values = np.asarray(pixels.get_array()).flatten()[:24]
    assert (values[book.ids] >= low).all()
    assert (np.delete(values, book.ids) < low).all()


def test_means_of_runs_of_a_vector():
    values = torch.arange(10)
    assert means_of_runs(values, 10)[0].tolist() == list(range(10))
    short, size = means_of_runs(values, 4)
    assert (short.tolist(), size) == ([1, 4, 7, 9], 3)


def test_bars_of_too_many_codebooks_are_refused(images):
    many = make_tokenizer("pq", num_codes=8, dim=1, num_segments=13)
    with pytest.raises(ValueError, match=r"codebooks=13: one figure has room for 12"):
        bars_figure([code_frequency(many, images)])


# Segments


def naive_counts(tokenizer, images):
    """(book, segment) -> draws by code, token by token."""
    counts = {}
    for index in range(len(images)):
        for position in tokenizer.encode(images.image(index)[None]).flatten(0, 2).tolist():
            for slot, token in enumerate(position):
                name = tokenizer.quantizer.slots[slot].name
                segment = ".".join(w for w in name.split(".") if not w.startswith("row"))
                book = next(b for b, m in enumerate(tokenizer.quantizer.books) if slot in m)
                row = counts.setdefault((book, segment), {})
                row[token] = row.get(token, 0) + 1
    return counts


@pytest.mark.parametrize("preset", SEGMENTED)
def test_segments_use_what_a_loop_counts(preset, images):
    tokenizer = make_tokenizer(preset, **SEGMENTED[preset])
    found = segment_usage(tokenizer, images, batch_size=2, name="mine")
    expected = naive_counts(tokenizer, images)
    assert sum(len(book.segments) for book in found.books) == len(expected)
    for number, book in enumerate(found.books):
        rows = [expected[number, segment] for segment in book.segments]
        for counts, row in zip(book.counts.tolist(), rows, strict=True):
            assert {code: n for code, n in enumerate(counts) if n} == row
        assert book.num_used().tolist() == [len(row) for row in rows]
        shared = [sum(code in row for row in rows) for code in range(book.num_codes)]
        assert book.sharing().tolist() == shared
        for i, left in enumerate(rows):
            for j, right in enumerate(rows):
                both, either = set(left) & set(right), set(left) | set(right)
                assert float(book.common()[i, j]) == pytest.approx(len(both) / len(either))
                n, m = sum(left.values()), sum(right.values())
                least = sum(min(left[code] / n, right[code] / m) for code in both)
                assert float(book.overlap()[i, j]) == pytest.approx(least)
        for value, row in zip(book.perplexity().tolist(), rows, strict=True):
            shares = np.array(list(row.values())) / sum(row.values())
            assert value == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert found.conditions.num_images == len(SIZES)
    assert found.conditions.num_tokens == sum(sum(row.values()) for row in expected.values())


def test_subpixels_of_a_segment_are_pooled(images):
    (book,) = segment_usage(make_tokenizer("looc", **SEGMENTED["looc"]), images).books
    assert book.segments == ("segment0", "segment1", "segment2")


@pytest.mark.parametrize("preset", ["looc", "pq"])
def test_the_figure_of_segments_shows_the_numbers(preset, images):
    found = segment_usage(make_tokenizer(preset, **SEGMENTED[preset]), images, name=preset)
    figure = segments_figure([found])
    books = found.to_dict()["books"]
    bars = next(a for a in figure.axes if a.get_ylabel() == "share of the codebook")
    heights = [bar.get_height() for bar in bars.containers[0]]
    assert heights == pytest.approx([s["usage"] for book in books for s in book["segments"]])
    titles = " ".join(axes.get_title() for axes in figure.axes)
    if len(books) > 1:  # codebooks of their own share nothing
        assert "sharing" not in titles
        assert "overlap" not in books[0]
        return
    curve = next(a for a in figure.axes if a.get_ylabel() == "segments that use the code")
    by_number = books[0]["codes_by_num_segments"]
    expected = [n for n in reversed(range(len(by_number))) for _ in range(by_number[n])]
    assert curve.patches[0].get_data().values.tolist() == expected
    assert f"at least {books[0]['least_sharing']}," in titles


def test_a_quantizer_of_whole_vectors_has_no_segments(images):
    with pytest.raises(ValueError, match=r"slots=1: its vectors are quantized whole"):
        segment_usage(make_tokenizer("vq_vae", **CODES), images)


# The codebook as a grid


def train_tiny(folder, preset, **changes):
    images = write_run_images(folder / "images")
    config = run_config(images, preset, **changes)
    train(config, out=folder / "run", progress=False)
    return config, folder / "run"


def initial_codes(config):
    torch.manual_seed(config.seed)
    settings = TokenizerConfig(network=config.network, quantizer=config.quantizer)
    return next(ImageTokenizer(settings).quantizer.quantizer.leaves()).codebook.codes[0].detach()


def test_untouched_codes_are_those_that_training_never_drew(tmp_path):
    config, folder = train_tiny(tmp_path, "vq_vae")
    (book,) = codes_of_run(folder).books
    final = ImageTokenizer.from_pretrained(folder / "tokenizer")
    codes = next(final.quantizer.quantizer.leaves()).codebook.codes[0]
    same = (codes == initial_codes(config)).all(1)
    assert book.untouched.tolist() == same.tolist()
    assert 0 < int(same.sum()) < len(same), "both kinds must be there to be told apart"
    # Adam without weight decay: what was never drawn has had no gradient.
    assert book.undrawn.tolist() == same.tolist()
    assert set(kinds_of(book)) == {"moved", "untouched"}


def test_codes_that_a_rule_moves_are_not_untouched_though_never_drawn(tmp_path):
    _, folder = train_tiny(tmp_path, "vq_vae", optim__weight_decay=0.1)
    (book,) = codes_of_run(folder).books
    assert int(book.untouched.sum()) == 0
    assert int(book.undrawn.sum()) > 0
    assert set(kinds_of(book)) == {"moved", "never drawn"}


@pytest.mark.slow
def test_every_codebook_of_a_run_has_its_marks(tmp_path):
    _, folder = train_tiny(tmp_path, "dual")
    found = codes_of_run(folder)
    assert [book.name for book in found.books] == ["global", "local"]
    assert int(found.books[0].untouched.sum()) == 0, "the refiner moves all codes"
    assert found.books[1].untouched.tolist() == found.books[1].undrawn.tolist()
    figure = grid_figure([found])
    assert "untouched: 0, never drawn" in figure.axes[0].get_title()


def test_the_generators_of_gpus_stay_as_they_are(tmp_path, monkeypatch):
    config, folder = train_tiny(tmp_path, "vq_vae")
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    record = read_result(folder)
    assert initial_tables(config, record).tables is not None
    assert seeded == []


def test_initial_codes_of_another_version_are_unknown(tmp_path):
    config, folder = train_tiny(tmp_path, "vq_vae")
    record = read_result(folder)
    assert initial_tables(config, record).reason == ""
    state = torch.get_rng_state()
    other = record | {"versions": record["versions"] | {"torch": "1.0"}}
    start = initial_tables(config, other)
    assert start.tables is None
    assert "trained with torch 1.0" in start.reason
    assert torch.equal(torch.get_rng_state(), state)
    (folder / "result.json").write_text(json.dumps(other), encoding="utf-8")
    found = codes_of_run(folder)
    assert found.books[0].untouched is None
    assert found.to_dict()["initial_codes_unknown"] == start.reason
    assert "untouched: unknown" in grid_figure([found]).axes[0].get_title()


def test_a_stopped_run_and_one_without_checkpoints(tmp_path):
    _, folder = train_tiny(tmp_path, "vq_vae")
    finished = codes_of_run(folder)
    (folder / "result.json").rename(tmp_path / "aside")
    stopped = codes_of_run(folder, max_codes=3, seed=1)
    assert stopped.steps == finished.steps == 12
    assert stopped.books[0].to_dict()["untouched"] == finished.books[0].to_dict()["untouched"]
    assert len(stopped.books[0].ids) == len(stopped.books[0].codes) == 3
    (tmp_path / "aside").rename(folder / "result.json")
    for checkpoint in folder.glob("step_*"):
        checkpoint.rename(tmp_path / checkpoint.name)
    assert codes_of_run(folder).books[0].undrawn is None


def test_tiles_hold_the_numbers_of_their_code():
    colours = torch.arange(256).view(1, 256, 1).expand(3, 256, 3) / 255
    values = torch.tensor([[0.0, 0.2, 0.4], [0.6, 0.8, 0.0], [0.2, 0.4, 0.6]])
    sheet = tiles(values, colours)
    assert tuple(sheet.shape[:2]) == tiles_shape(3, 3) == (7, 7)
    assert sheet[1:3, 1:3, 0].flatten()[:3].tolist() == pytest.approx([0.0, 0.2, 0.4])
    assert sheet[1:3, 4:6, 0].flatten()[:3].tolist() == pytest.approx([0.6, 0.8, 0.0])
    assert sheet[4:6, 1:3, 0].flatten()[:3].tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert float(sheet[2, 2, 0]) == 1.0, "a place without a number is white"


def test_grids_refuse(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config.json; name the folder of a training"):
        codes_of_run(tmp_path)
    with pytest.raises(ValueError, match="max_codes=0: must be at least 1"):
        codes_of_run(tmp_path, max_codes=0)
