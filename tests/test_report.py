"""The report: what it reads of runs, what it computes, and what stands on its page."""

import base64
import io
import json
import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from report_runs import HOSTILE, make_tokenizer, measure, write_pictures, write_run

from vqkit.analysis import segment_usage
from vqkit.cli import main
from vqkit.data import load_images
from vqkit.evaluation import Evaluation, Rosetta
from vqkit.evaluation.anchors import Anchors
from vqkit.evaluation.curves import RatePoint
from vqkit.evaluation.rate_distortion import RateDistortion
from vqkit.models import ImageTokenizer
from vqkit.report import Run, distinct, gallery, read_run, write_report
from vqkit.report.axes import axis_over
from vqkit.report.counting import count_codes
from vqkit.report.details import cost_table, flat, provenance_section, settings_section
from vqkit.report.headline import headline
from vqkit.report.markup import Markup, joined, tag
from vqkit.report.pictures import data_uri, error_uri, make_gallery, palette
from vqkit.report.plots import MAX_POINTS, front, thinned
from vqkit.report.plots import RatePoint as DrawnPoint
from vqkit.report.quality import protocol_list, quality_table, value_of
from vqkit.report.rosetta import rosetta_section
from vqkit.report.usage import _grouped, _sharing, usage_section

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that were measured, on the same three pictures."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_pictures(folder / "pictures")
    for seed, name in enumerate(("first", "second")):
        write_run(folder / name, data, name=name, seed=seed, num_codes=8 * (seed + 1))
        measure(folder / name, data, name)
    return [read_run(folder / name) for name in ("first", "second")]


@pytest.fixture(scope="module")
def images(runs):
    return load_images(runs[0].config.test_data)


class Page(HTMLParser):
    """What a page holds."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], [], []
        self.feed(text)

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        self._open.append(name)

    def handle_endtag(self, name):
        if name in self._open:
            while self._open.pop() != name:
                pass

    def handle_data(self, words):
        if not {"script", "style"} & set(self._open):
            self.text.append(words)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    def all(self, name):
        return [attributes for found, attributes in self.tags if found == name]


# ------------------------------------------------------------------ markup


def test_what_is_no_markup_is_escaped():
    made = tag("p", HOSTILE, tag("b", "a & b"), title=HOSTILE, hidden="", id=None)
    assert "<script>" not in made
    assert "<img" not in made
    assert made.endswith("<b>a &amp; b</b></p>")
    page = Page(made)
    assert page.tags == [("p", {"title": HOSTILE, "hidden": None}), ("b", {})]
    assert page.text == [HOSTILE, "a & b"]
    assert joined("<", Markup("<br/>"), 3, None) == "&lt;<br/>3"


# ------------------------------------------------------------------ runs


def test_a_run_folder_is_read_whole(runs):
    first = runs[0]
    assert (first.name, first.missing) == ("first", ())
    assert first.log[-1]["step"] == 40
    assert first.result["seconds"] == 90
    assert first.evaluation.num_images == 3
    assert first.config.seed == 0
    assert not first.tokenizer.training


def test_what_a_run_lacks_is_said(tmp_path):
    data = write_pictures(tmp_path / "pictures", 1)
    folder = write_run(tmp_path / "run", data)
    (folder / "tokenizer" / "model.safetensors").unlink()
    (folder / "log.jsonl").write_text("{broken\n", encoding="utf-8")
    (folder / "evaluation.json").write_text("{}", encoding="utf-8")
    said = " ".join(read_run(folder).missing)
    for part in ("log.jsonl cannot be read", "tokenizer cannot be loaded", "evaluation.json is"):
        assert part in said
    (folder / "result.json").unlink()
    (folder / "log.jsonl").write_text('{"step": 7}\n', encoding="utf-8")
    assert "not finished; its log ends at step 7" in " ".join(read_run(folder).missing)


def test_tokenizers_and_evaluations_alone(runs, tmp_path):
    place = runs[0].place
    lone = read_run(f"{place}/tokenizer")
    assert lone.name == "first/tokenizer"
    assert lone.tokenizer is not None
    assert lone.settings is None
    measured = read_run(f"{place}/evaluation.json")
    assert measured.evaluation == runs[0].evaluation
    assert "no pictures" in measured.missing[0]
    with pytest.raises(ValueError, match="no folder of a run"):
        read_run(tmp_path)


def test_runs_of_one_name_are_told_apart(runs):
    again = distinct([replace(run, name="same") for run in runs])
    assert [run.name for run in again] == ["/".join(r.place.split("/")[-2:]) for r in runs]
    twice = distinct([runs[0], runs[0]])
    assert len({run.name for run in twice}) == 2
    with pytest.raises(ValueError, match="different names"):
        write_report([runs[0], runs[0]], "unused.html")


# ------------------------------------------------------------------ numbers


def test_the_best_of_those_measured_alike_is_marked(runs):
    table = Page(str(quality_table(runs)))
    cells = [a for name, a in table.tags if name == "td" and a.get("class") == "best"]
    expected = 0
    for name, better in (("psnr", max), ("ssim", max), ("l1", min), ("l2", min)):
        values = [value_of(run.evaluation, name) for run in runs]
        expected += values.count(better(values))
        assert repr(better(values)) in [cell["data-v"] for cell in cells]
    assert len(cells) == expected
    alone = Page(str(quality_table(runs[:1])))
    assert not [a for a in alone.all("td") if a.get("class") == "best"]


def test_other_protocols_have_their_own_best(runs):
    found = runs[1].evaluation
    other = replace(found, protocol=replace(found.protocol, psnr_cap=50.0))
    table = Page(str(quality_table([runs[0], replace(runs[1], evaluation=other)])))
    assert not [a for a in table.all("td") if a.get("class") == "best"]
    assert [w for w in table.text if w in ("[1]", "[2]")][:2] == ["[1]", "[2]"]


def test_remarks_on_numbers_are_said_once(runs):
    noted = []
    for run, value in zip(runs, (3.0, None), strict=True):
        first, *rest = run.evaluation.metrics
        fid = replace(first, name="fid", unit="", value=value, spread=0.25, note="too few.")
        evaluation = replace(run.evaluation, metrics=(first, *rest, fid))
        noted.append(replace(run, evaluation=evaluation))
    words = Page(str(joined(quality_table(noted), protocol_list(noted)))).words
    assert words.count("too few.") == 1
    assert "FID of first, second: too few." in words
    assert "3.00 ± 0.25" in words


def test_other_protocols_stand_side_by_side(runs, tmp_path):
    found = runs[0].evaluation
    moved = [
        replace(m, value=m.value + 1.5) if m.name == "psnr" else m
        for m in found.metrics
        if m.name != "l2"
    ]
    protocol = replace(found.protocol, name="other", psnr_cap=50.0)
    other = replace(found, metrics=tuple(moved), protocol=protocol)
    both = Rosetta(evaluations=(found, other))
    page = Page(str(rosetta_section([replace(runs[0], rosettas=(both.to_dict(),)), runs[1]])))
    psnr = found.value("psnr")
    assert f"{psnr:.2f} {psnr + 1.5:.2f} (+1.50)" in page.words
    assert f"{found.value('l2'):.6f} –" in page.words
    assert protocol.id in page.words
    assert rosetta_section(runs) is None
    folder = tmp_path / "run"
    write_run(folder, runs[0].config.test_data)
    both.save(folder / "rosetta-887cb505.json")
    assert read_run(folder).rosettas == (both.to_dict(),)
    both.save(folder / "rosetta.json")
    assert len(read_run(folder).rosettas) == 2


def test_an_evaluation_of_other_weights_is_passed_over(tmp_path):
    """A run that was trained on keeps the file; an older version wrote no hash to know it by."""
    data = write_pictures(tmp_path / "pictures")
    folder = write_run(tmp_path / "run", data)
    measure(folder, data, "run")
    assert read_run(folder).evaluation is not None
    make_tokenizer(seed=5).save_pretrained(folder / "tokenizer")
    run = read_run(folder)
    assert run.evaluation is None
    (sentence,) = run.missing
    assert "evaluation.json is passed over (it is of other weights" in sentence
    values = json.loads((folder / "evaluation.json").read_text())
    del values["tokenizer"]["hash"]
    (folder / "evaluation.json").write_text(json.dumps(values))
    assert read_run(folder).evaluation is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: {"format": values["format"]}, "'protocols' is not there"),
        (lambda values: values | {"format": "other"}, "format='other'"),
        (lambda values: values | {"rows": [{"metric": "psnr"}]}, "'cells' is not there"),
        (lambda values: values | {"protocols": [{"name": 3}]}, "name=3"),
        (
            lambda values: values | {"rows": [{"metric": "psnr", "cells": {"a": {"value": "x"}}}]},
            "value='x'",
        ),
        (lambda values: [], "format=None"),
    ],
)
def test_a_damaged_translation_is_named(change, said, runs, tmp_path):
    folder = write_run(tmp_path / "run", runs[0].config.test_data)
    values = Rosetta(evaluations=(runs[0].evaluation,)).to_dict()
    (folder / "rosetta.json").write_text(json.dumps(change(values)), encoding="utf-8")
    run = read_run(folder)
    assert run.rosettas == ()
    (sentence,) = run.missing
    assert "rosetta.json is passed over" in sentence
    assert said in sentence
    assert "Other protocols" not in Page(write([run], tmp_path)).words


def points(seed):
    source = torch.Generator().manual_seed(seed)
    values = torch.randint(1, 6, (7, 2), generator=source).tolist()
    return [
        DrawnPoint(number=i, name=str(i), rate=r, entropy_rate=None, quality=q)
        for i, (r, q) in enumerate(values)
    ]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("direction", [1, -1])
def test_front(seed, direction):
    given = points(seed)
    found = {(p.rate, p.quality) for p in front(given, direction)}
    expected = {
        (p.rate, p.quality)
        for p in given
        if not any(
            o.rate <= p.rate
            and direction * o.quality >= direction * p.quality
            and (o.rate, o.quality) != (p.rate, p.quality)
            for o in given
        )
    }
    assert found == expected


def test_codes_are_counted_by_book_and_slot(images):
    tokenizer = make_tokenizer(num_codes=8)
    ids = torch.cat([tokenizer.encode(images.image(i)[None]).flatten(0, -2) for i in range(3)])
    found = count_codes(tokenizer, images, batch_size=2)
    assert (found.num_images, found.of_images) == (3, 3)
    (book,) = found.books
    drawn = [int((ids == code).sum()) for code in range(8)]
    assert book.draws.tolist() == sorted((n for n in drawn if n), reverse=True)
    slots = [sum(code in ids[:, slot] for slot in range(3)) for code in range(8)]
    assert book.shared == tuple(slots.count(n) for n in range(4))


def test_subpixels_of_a_segment_count_as_one(images):
    tokenizer = make_tokenizer(num_codes=8, beta=2)
    (found,) = count_codes(tokenizer, images).books
    (expected,) = segment_usage(tokenizer, images).books
    assert len(tokenizer.quantizer.slots) == 12
    assert len(found.shared) == 1 + len(expected.segments) == 4
    assert found.shared == tuple(expected.sharing().bincount(minlength=4).tolist())
    assert found.draws.tolist() == sorted(
        (n for n in expected.counts.sum(0).tolist() if n), reverse=True
    )
    words = Page(str(_sharing(found))).words
    assert "of 3 segments" in words


@pytest.mark.parametrize("slots", [2, 8, 9, 16, 64])
def test_groups_of_slots_hold_every_code_once(slots):
    numbers = [i + 1 for i in range(slots + 1)]
    groups = _grouped(numbers)
    assert sum(n for _, n in groups) == sum(numbers)
    assert len(groups) <= 9


def test_only_settings_that_differ_are_in_the_table(runs):
    page = Page(str(settings_section(runs)))
    heads = [a for a in page.all("th") if a.get("scope") == "row"]
    differ = {
        name
        for name in flat(runs[0].settings)
        if flat(runs[0].settings)[name] != flat(runs[1].settings).get(name)
    } - {"name"}
    assert differ == {"quantizer.args.num_codes", "optim.lr", "seed"}
    assert len(heads) == len(differ)
    assert all(name in "".join(page.text) for name in differ)


# ------------------------------------------------------------------ drawings


def test_axes():
    even = axis_over([0.0, 10.0], 0, 100, room=0)
    assert [even.place(v) for v in (0, 5, 10)] == [0, 50, 100]
    assert even.ticks(5) == [0, 2, 4, 6, 8, 10]
    wide = axis_over([0.1, 10.0], 100, 0)
    assert wide.log
    assert wide.place(1.0) == pytest.approx(50)
    assert wide.ticks(5) == pytest.approx([0.1, 0.3, 1, 3, 10])
    for same in ([3.0], [0.0], [], [math.inf]):
        axis = axis_over(same, 0, 10, room=0)
        assert axis.low < axis.high
        assert axis.ticks()
    assert axis_over([-1.0, 100.0], 0, 1, log=True).log is False


def test_long_curves_are_thinned_out():
    long = [(float(i), math.nan if i == 5 else 1.0) for i in range(10_000)]
    kept = thinned(long)
    assert len(kept) == MAX_POINTS
    assert kept[0] == long[0]
    assert kept[-1] == long[-1]
    assert all(math.isfinite(value) for _, value in kept)


# ------------------------------------------------------------------ pictures


def decoded(uri):
    kind, _, content = uri.partition(";base64,")
    assert kind in ("data:image/webp", "data:image/png")
    return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_stored_without_loss(channels, generator):
    image = torch.randint(256, (channels, 13, 17), dtype=torch.uint8, generator=generator)
    found = np.asarray(decoded(data_uri(image)).convert("RGB"))
    assert (found == image.expand(3, -1, -1).permute(1, 2, 0).numpy()).all()


def test_error_maps_have_one_scale(runs, images):
    made, told = make_gallery(runs, images)
    assert [run.missing for run in told] == [(), ()]
    errors = [p.error(run.name) for p in made.pictures for run in runs]
    assert made.largest == max(float(e.max()) for e in errors)
    assert made.scale <= made.largest
    picture = made.pictures[0]
    naive = picture.rebuilt["first"][:, 3, 4].float() - picture.original[:, 3, 4].float()
    assert float(picture.error("first")[3, 4]) == pytest.approx(float(naive.abs().mean()))
    flat_map = np.asarray(decoded(error_uri(torch.tensor([[0.0, 5.0, 10.0, 99.0]]), 10.0)))
    colours = palette()
    assert (flat_map[0] == colours[[0, 128, 255, 255]]).all()
    lightness = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) >= -0.5).all(), "the scale reads without colour"


def test_a_page_has_no_more_pictures_than_it_can_carry(runs, images, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "MAX_BYTES", 1)
    page = Page(write(runs, tmp_path, images=images))
    assert "The first 1 of 3 images" in page.words
    assert "3 were asked for" in page.words


def test_tokenizers_of_other_images_have_none(runs, images, tmp_path):
    grey = Run(name="grey", tokenizer=make_tokenizer(channels=1))
    page = Page(write([runs[0], grey], tmp_path, images=images))
    assert "it takes images of 1 channels" in page.words


# ------------------------------------------------------------------ the page


def write(runs, folder, **settings):
    report = write_report(runs, folder / "page.html", now=NOW, **settings)
    content = report.path.read_bytes()
    assert report.num_bytes == len(content)
    return content.decode()


def test_the_page_needs_nothing_else(runs, images, tmp_path):
    text = write(runs, tmp_path, images=images, command="vqkit report first second")
    page = Page(text)
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "@import" not in text
    assert not re.search(r"url\(\s*['\"]?http", text)
    assert "default-src 'none'" in text
    sections = [a["id"] for a in page.all("section")]
    assert [a["href"] for a in page.all("a")] == [f"#{name}" for name in sections]
    assert sections[:3] == ["quality", "rate", "pictures"]
    assert "missing" not in sections
    assert "Written 2026-01-02 03:04 UTC" in page.words
    assert runs[0].evaluation.protocol.id in page.words
    assert runs[0].evaluation.protocol.describe() in page.words
    assert write(runs, tmp_path, images=images, command="vqkit report first second") == text


def test_every_picture_can_be_read_out(runs, images, tmp_path):
    page = Page(write(runs, tmp_path, images=images))
    pictures = [a for a in page.all("img") if a.get("src")]
    assert len(pictures) == 3 + 3 * (1 + 2 * len(runs))  # thumbnails; originals, runs and errors
    assert all(a.get("alt") for a in pictures)
    labels = [a.get("aria-label") for a in page.all("svg") if a.get("aria-hidden") != "true"]
    assert labels
    assert all(labels)


def test_a_hostile_name_is_only_text(runs, images, tmp_path):
    evil = replace(runs[0], name=HOSTILE, place=HOSTILE, settings={"a": HOSTILE, "b": {}})
    evil = evil.lacks(HOSTILE)
    text = write([evil, runs[1]], tmp_path, images=images, title=HOSTILE, note=HOSTILE)
    page = Page(text)
    assert len(page.all("script")) == 1
    assert not any(name.startswith("on") for _, a in page.tags for name in a)
    assert not [a for a in page.all("img") if a.get("src") == "x"]
    assert page.words.count(HOSTILE) > 5


def test_runs_without_anything_make_a_page_that_says_so(tmp_path):
    page = Page(write([Run(name="bare", missing=("there is nothing.",))], tmp_path))
    for said in (
        "not measured",
        "No pictures",
        "no curves",
        "No run has its settings",
        "there is nothing.",
    ):
        assert said in page.words


# ------------------------------------------------------------------ the command


def test_command(runs, tmp_path, capsys):
    out = tmp_path / "deep" / "report.html"
    places = [runs[0].place, f"{runs[1].place}/evaluation.json"]
    assert main(["report", *places, "-o", str(out), "--title", "Mine", "--pictures", "1"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"wrote {out}")
    assert "is an evaluation alone" in shown.err
    page = Page(out.read_text(encoding="utf-8"))
    assert "The first 1 of 3 images" in page.words
    assert "Mine" in page.words
    assert "vqkit report" in page.words


def under(evaluation, name):
    """The same numbers, said to be of another protocol."""
    return replace(evaluation, protocol=replace(evaluation.protocol, name=name))


def test_another_protocol_does_not_stand_for_the_usual_one(runs, tmp_path, capsys):
    data = write_pictures(tmp_path / "pictures", 1)
    folder, out = write_run(tmp_path / "run", data), tmp_path / "report.html"
    odd = under(runs[0].evaluation, "cvq-looc")
    odd.save(folder / "evaluation-887cb505.json")
    read = read_run(folder)
    assert read.evaluation is None
    assert read.others == read.evaluations == (odd,)
    assert "PSNR" not in Page(str(headline([read]))).words
    assert "not known" in str(cost_table([replace(read, tokenizer=None)]))
    assert odd.protocol.id in Page(str(protocol_list([read]))).words
    assert main(["report", str(folder), "-o", str(out)]) == 0
    assert "measuring first on 1 images" in capsys.readouterr().err
    again = read_run(folder)
    assert again.evaluation.protocol.name == "vqkit-default-1"
    assert again.evaluation.num_images == 1
    assert again.others == (odd,)


def test_a_file_of_another_protocol_is_never_replaced(runs, tmp_path, capsys):
    data = write_pictures(tmp_path / "pictures", 1)
    folder, out = write_run(tmp_path / "run", data), tmp_path / "report.html"
    odd = under(runs[0].evaluation, "cvq-looc")
    odd.save(folder / "evaluation.json")
    assert main(["report", str(folder), "-o", str(out)]) == 0
    assert "measuring first" in capsys.readouterr().err
    assert Evaluation.load(folder / "evaluation.json") == odd
    words = Page(out.read_text(encoding="utf-8")).words
    assert "vqkit-default-1:" in words
    assert odd.protocol.id in words


def test_a_model_that_has_diverged_shows_no_pictures(tmp_path):
    data = write_pictures(tmp_path / "pictures", 2)
    folder, out = write_run(tmp_path / "run", data), tmp_path / "report.html"
    broken = ImageTokenizer.from_pretrained(folder / "tokenizer")
    with torch.no_grad():
        for weights in broken.decoder.parameters():
            weights.fill_(math.nan)
    broken.save_pretrained(folder / "tokenizer")
    healthy = write_run(tmp_path / "healthy", data, name="healthy")
    assert main(["report", str(folder), str(healthy), "-o", str(out)]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    assert "it was not measured: images: hold NaN" in page.words
    assert "it makes no pictures (images: hold NaN" in page.words
    assert not [a for a in page.all("img") if " through first," in (a.get("alt") or "")]
    assert len([a for a in page.all("img") if " through healthy," in (a.get("alt") or "")]) == 2


def test_command_measures_what_was_not(tmp_path, capsys):
    data = write_pictures(tmp_path / "pictures", 2)
    folder, out = write_run(tmp_path / "run", data), tmp_path / "report.html"
    assert main(["report", str(folder), "-o", str(out), "--as_is"]) == 0
    assert "not measured" in Page(out.read_text(encoding="utf-8")).words
    assert not (folder / "evaluation.json").exists()
    other = write_pictures(tmp_path / "other", 1)
    words = ["report", str(folder), "-o", str(out), "--images", other.path]
    assert main(words) == 0
    assert "measuring first on 2 images" in capsys.readouterr().err
    kept = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert kept["data"]["num_images"] == 2
    assert "The first 1 of 1 images" in Page(out.read_text(encoding="utf-8")).words


def test_numbers_pictures_and_draws_are_of_the_same_images(tmp_path, capsys):
    """Those that are named; the evaluation of the run's own images is one more row."""
    data, out = write_pictures(tmp_path / "pictures", 2), tmp_path / "report.html"
    folder = write_run(tmp_path / "run", data)
    own = measure(folder, data, "first")
    other = write_pictures(tmp_path / "other", 1, size=(16, 20))
    assert main(["report", str(folder), "-o", str(out), "--data.path", other.path]) == 0
    assert "measuring first on 1 images" in capsys.readouterr().err
    assert Evaluation.load(folder / "evaluation.json") == own
    words = Page(out.read_text(encoding="utf-8")).words
    assert "1 images measured" in words
    assert "counted on the first 1 images" in words
    assert own.protocol.id in words
    assert main(["evaluate", str(folder), "--data.path", other.path]) == 0
    capsys.readouterr()
    assert main(["report", str(folder), "-o", str(out), "--data.path", other.path]) == 0
    assert "measuring" not in capsys.readouterr().err


def test_a_picture_has_its_own_rate(runs, tmp_path):
    """Not that of the images that the evaluation was of."""
    pictures = load_images(write_pictures(tmp_path / "other", 1, size=(13, 16)))
    made, _ = make_gallery(runs, pictures)
    rate = runs[0].tokenizer.bits_per_image(13, 16) / (13 * 16)
    assert made.pictures[0].rates["first"] == rate
    assert rate != pytest.approx(value_of(runs[0].evaluation, "rate"), rel=1e-3)
    assert f"at {rate:.3g} bits/pixel" in Page(str(gallery.gallery_section(runs, made))).words


def test_draws_of_other_images_than_the_bars_say_so(runs, images, tmp_path):
    said = "Bars and curves are of different images."
    other = load_images(write_pictures(tmp_path / "other", 1))
    for shown, expected in ((images, 0), (other, 1)):
        counts = {"first": count_codes(runs[0].tokenizer, shown)}
        assert Page(str(usage_section(runs[:1], counts))).words.count(said) == expected


def test_to_repeat_a_run_is_what_was_typed(runs, tmp_path):
    first = runs[0]
    plain = Page(str(provenance_section([first]))).words
    assert f"vqkit train --config {first.place}/config.json --out runs/again" in plain
    assert f"vqkit evaluate {first.place}" in plain
    typed = ["vqkit", "train", "looc_mnist", "--optim.lr", "1e-3"]
    dates = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T01:00:00+00:00"}
    measured = ["vqkit", "evaluate", "runs/first", "--data.path", "my pictures"]
    evaluation = replace(first.evaluation, machine={"command": measured})
    known = replace(first, result=first.result | dates | {"command": typed}, evaluation=evaluation)
    words = Page(str(provenance_section([known]))).words
    for said in (*dates.values(), "train looc_mnist --optim.lr 1e-3", "--data.path 'my pictures'"):
        assert said in words
    assert f"vqkit evaluate {first.place}" not in words


def test_a_damaged_run_is_left_out(runs, tmp_path, capsys):
    data, out = write_pictures(tmp_path / "pictures", 1), tmp_path / "report.html"
    folder = write_run(tmp_path / "run", data)
    measure(folder, data, "first")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{", encoding="utf-8")
    bad = str(tmp_path / "bad")
    assert main(["report", str(folder), bad, "-o", str(out)]) == 0
    said = f"run={bad}: its config.json is damaged"
    assert f"left out: {said}" in capsys.readouterr().err
    assert said in Page(out.read_text(encoding="utf-8")).words
    assert main(["report", bad, "-o", str(out)]) == 2
    assert main(["report", str(folder), str(tmp_path / "typo"), "-o", str(out)]) == 2


def rate_distortion_of(evaluation, name):
    """Five points of tokens and five of a codec, and two codecs that lose nothing."""
    protocol, count = replace(evaluation.protocol, measures=""), evaluation.num_images
    tokens = tuple(
        RatePoint(
            name=name if i == 0 else f"{name} {i}",
            method="looc",
            rates={"nominal": 0.5 + i, "entropy": 0.4 + i, "coded": 0.45 + i},
            metrics={"psnr": 20.0 + 2 * i, "ssim": 0.5 + 0.1 * i},
            protocol=protocol,
            num_images=count,
        )
        for i in range(5)
    )
    codec = tuple(
        replace(one, name=f"JPEG {i}", method="JPEG", codec=True, rates={"coded": 1.0 + 2 * i})
        for i, one in enumerate(tokens)
    )
    anchors = Anchors(points=codec, missing=(("AVIF", "not built in"),), versions={})
    return RateDistortion(points=tokens, png=4.0, raw=24.0, anchors=anchors)


@pytest.mark.slow
def test_curves_beside_the_runs_are_shown(tmp_path, capsys):
    data, out = write_pictures(tmp_path / "pictures", 1), tmp_path / "report.html"
    folder = write_run(tmp_path / "runs" / "first", data)
    found = rate_distortion_of(measure(folder, data, "first"), "first")
    _, file, _ = found.save(tmp_path / "runs" / "rate_distortion.png", bd_reference="JPEG")
    assert main(["report", str(folder), "-o", str(out)]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    for said in ("0.450", "JPEG 4", "above lossless", "AVIF was not measured: not built in"):
        assert said in page.words
    assert f"looc : {found.bd_rates('JPEG')['looc'].percent:+.1f} %" in page.words
    # One of other images counts only if it is named.
    other = write_pictures(tmp_path / "other", 2)
    strange = write_run(tmp_path / "runs" / "other", other)
    measure(strange, other, "other")
    assert main(["report", str(strange), "-o", str(out)]) == 0
    assert "JPEG" not in Page(out.read_text(encoding="utf-8")).words
    assert main(["report", str(strange), str(file), "-o", str(out)]) == 0
    assert "JPEG" in Page(out.read_text(encoding="utf-8")).words
    file.write_text(json.dumps(json.loads(file.read_text()) | {"points": 3}), encoding="utf-8")
    assert main(["report", str(folder), "-o", str(out)]) == 0
    assert "passed over" in capsys.readouterr().err
    assert main(["report", str(folder), str(file), "-o", str(out)]) == 2


def test_vanished_images_are_said(tmp_path, capsys):
    data = write_pictures(tmp_path / "pictures", 1)
    folder, out = write_run(tmp_path / "run", data), tmp_path / "report.html"
    (tmp_path / "pictures").rename(tmp_path / "gone")
    assert main(["report", str(folder), "-o", str(out)]) == 0
    assert "it was not measured: data.path" in capsys.readouterr().err
    assert "No pictures" in Page(out.read_text(encoding="utf-8")).words


def test_command_refuses(tmp_path, capsys):
    assert main(["report"]) == 2
    assert main(["report", str(tmp_path)]) == 2
    assert main(["report", str(tmp_path), "--pictures", "-1"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert "no folder of a run" in said[1]
    assert "pictures=-1" in said[2]
