"""The record of an evaluation: JSON and back, and the tables, from numbers written by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from vqkit.evaluation import Evaluation, Metric, compare_table
from vqkit.metrics import DEFAULT, CodeStatistics

VALUES = {
    "psnr": 31.257,
    "ssim": 0.91234,
    "l1": 0.0123456,
    "l2": 0.00075,
    "perplexity": 12.34,
    "usage": 0.9375,
    "usage_ceiling": 1.0,
    "usage_uniform": 0.99996,
    "rate": 0.5,
    "entropy_rate": 0.4567,
    "png_rate": 2.0,
    "raw_rate": 8.0,
}


def make(name="mine", *, num_ssim=5, num_exact=0, protocol=DEFAULT, num_books=1, **values):
    stamped = protocol.on("f" * 64, 5)
    rows = [
        Metric(
            name=metric,
            value=value,
            unit="",
            protocol=stamped.id,
            num_images=num_ssim if metric == "ssim" else 5,
            num_tokens=1780,
        )
        for metric, value in (VALUES | values).items()
    ]
    book = CodeStatistics(slots=(0,), num_codes=16, num_tokens=890, num_used=15, entropy=3.625)
    books = tuple(replace(book, slots=(slot,)) for slot in range(num_books))
    return Evaluation(
        name=name,
        metrics=tuple(rows),
        protocol=stamped,
        books=books,
        slots=books,
        slot_names=tuple(f"segment{slot}" for slot in range(num_books)),
        num_pixels=1280,
        num_exact=num_exact,
        codebook_floats=1234,
        tokenizer={"bits_per_pixel": 0.5},
        tokenizer_seconds=1.26,
        seconds=2.5,
        machine={"versions": {"torch": "2.13.0"}},
    )


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


# Files


def test_json_and_back(tmp_path):
    found = make(num_books=2, ssim=None)
    path = tmp_path / "results" / "evaluation.json"
    found.save(path)
    found.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["evaluation.json"]
    again = Evaluation.load(path)
    assert again == found
    assert again.table() == found.table()
    values = json.loads(path.read_text())
    assert values == found.to_dict()
    assert values["protocol"]["id"] == found.protocol.id
    assert values["data"]["fingerprint"] == "f" * 64
    assert values["metrics"][0] == {
        "name": "psnr",
        "value": 31.257,
        "unit": "",
        "protocol": found.protocol.id,
        "num_images": 5,
        "num_tokens": 1780,
    }
    assert values["metrics"][1]["value"] is None
    assert values["slots"][1]["name"] == "segment1"
    assert values["codebooks"][0]["perplexity"] == pytest.approx(2**3.625)
    assert values["codebooks"][0]["usage"] == 15 / 16


def test_a_failed_save_keeps_the_old_file(tmp_path):
    found = make()
    path = tmp_path / "evaluation.json"
    found.save(path)
    with pytest.raises(ValueError, match="Out of range"):
        replace(found, seconds=math.nan).save(path)
    assert Evaluation.load(path) == found
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "x.json"
    values = make().to_dict()
    del values["metrics"]
    for text, problem in (
        ("{}", "format=None"),
        ("[]", "x.json"),
        ("[", "x.json"),
        (json.dumps(values), "metrics"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=problem):
            Evaluation.load(path)
    with pytest.raises(ValueError, match=r"none\.json"):
        Evaluation.load(tmp_path / "none.json")


def test_unknown_metric():
    assert make().value("psnr") == 31.257
    with pytest.raises(ValueError, match=r"metric='fid'.*psnr"):
        make().value("fid")


# Tables


def test_table_has_the_rate_beside_every_quality():
    found = make(num_ssim=4, num_exact=2)
    lines = found.table().splitlines()
    assert cells(lines[0]) == ["", "mine", "bits/pixel", "entropy", "PNG", "protocol"]
    assert [cells(line) for line in lines[2:8]] == [
        [name, value, "0.500", "0.457", "2.000", "[1]"]
        for name, value in (
            ("PSNR, dB", "31.26"),
            ("SSIM", "0.9123"),
            ("l1", "0.01235"),
            ("l2", "0.000750"),
            ("perplexity", "12.3 of 16"),
            ("codes used", "93.8 % (at most 100 %)"),
        )
    ]
    assert len({len(line) for line in lines[:8]}) == 1
    notes = "\n".join(lines[8:])
    assert "0.25 times the bits of the lossless PNG; raw pixels take 8 bits/pixel" in notes
    assert "one codebook, 890 tokens" in notes
    assert "uniform draws show 99.9 %" in notes  # not quite all, so never 100 %
    assert f"[1] {found.protocol.id}: " in notes
    assert "5 images, 1,280 pixels" in notes
    assert "SSIM leaves out 1 images below 11x11" in notes
    assert "2 exact images count as 100 dB" in notes


def test_table_of_several_codebooks_and_no_ssim():
    text = make(num_books=2, ssim=None, rate=10.0, png_rate=2.5).table()
    assert "the mean over 2 codebooks, 1,780 tokens" in text
    assert "take 4 times the bits of the lossless PNG" in text
    assert cells(text.splitlines()[3])[:2] == ["SSIM", "n/a"]


def test_compare_table():
    text = compare_table([make("LooC"), make("CVQ", psnr=20.0, rate=0.625, usage=1.0)])
    header, _, *rows = (cells(line) for line in text.splitlines()[:4])
    looc, cvq = (dict(zip(header, row, strict=True)) for row in rows)
    assert looc == {
        "run": "LooC",
        "bits/pixel": "0.500",
        "entropy": "0.457",
        "PNG": "2.000",
        "PSNR, dB": "31.26",
        "SSIM": "0.9123",
        "l1": "0.01235",
        "perplexity": "12.3 of 16",
        "codes used": "93.8 % (at most 100 %)",
        "codebook floats": "1,234",
        "seconds": "1.3",
        "protocol": "[1]",
    }
    changed = (cvq["run"], cvq["PSNR, dB"], cvq["bits/pixel"], cvq["codes used"])
    assert changed == ("CVQ", "20.00", "0.625", "100 % (at most 100 %)")
    assert "not comparable" not in text


def test_compare_table_tells_protocols_apart():
    other = make("cut", protocol=replace(DEFAULT, rounding="truncate"), num_exact=1)
    text = compare_table([make("LooC"), other])
    rows = [cells(line) for line in text.splitlines()[2:4]]
    assert [row[-1] for row in rows] == ["[1]", "[2]"]
    assert "Rows with different protocol marks are not comparable" in text
    assert f"[2] {other.protocol.id}: clamp and truncate" in text
    assert "cut: 1 exact images" in text
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_table([])
