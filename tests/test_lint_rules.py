"""Each rule on tables made here, files of all forms, and the command."""

from __future__ import annotations

import json
import math
import re
import textwrap
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from vqkit.cli import main
from vqkit.ledger.cells import tables_of
from vqkit.ledger.lint import Dossier, gather, lint
from vqkit.ledger.lint.counts import index_bits
from vqkit.ledger.lint.findings import Claim
from vqkit.ledger.lint.pixels import least_psnr, spread

CLEAN = {  # what a correct measurement gives: checked by the tests of the bounds below
    "format": "vqkit-tables-1",
    "tables": [
        {
            "paper": "own",
            "table": "1",
            "columns": [
                {"metric": "psnr", "unit": "dB", "settings": {"pixel_range": 1, "mean": "images"}},
                {"metric": "ssim", "unit": "fraction",
                 "settings": {"pixel_range": 1, "data_range": 1}},
                {"metric": "lpips"},
                {"metric": "l1", "settings": {"pixel_range": 1}},
                {"metric": "l2", "settings": {"pixel_range": 1}},
                {"metric": "utilization", "unit": "percent", "settings": {"num_images": 100}},
            ],
            "rows": [
                {"method": "A", "settings": {"codebook_size": 1024, "tokens": 256},
                 "values": {"set": {"psnr": 24.31, "ssim": 0.7312, "lpips": 0.1521,
                                    "l1": 0.0412, "l2": 0.00441, "utilization": 98.4}}},
                {"method": "B", "settings": {"codebook_size": 4096, "tokens": 256},
                 "values": {"set": {"psnr": 26.02, "ssim": 0.7923, "lpips": 0.1203,
                                    "l1": 0.0344, "l2": 0.00301, "utilization": 88.7}}},
            ],
        }
    ],
}  # fmt: skip


def table(**changes):
    """CLEAN as parsed JSON with decimals kept; `row0_psnr=...`, `column1_data_range=...`."""
    content = json.loads(json.dumps(CLEAN), parse_float=Decimal)
    (one,) = content["tables"]
    for name, value in changes.items():
        place, _, key = name.partition("_")
        if place.startswith("row"):
            one["rows"][int(place[3:])]["values"]["set"][key] = value
        else:
            one["columns"][int(place[6:])].setdefault("settings", {})[key] = value
    return content


def found(content):
    return [(one.rule, one.level) for one in lint(Dossier(tables=tables_of(content)))]


def test_a_clean_table_gives_nothing():
    assert found(table()) == []


@pytest.mark.parametrize(
    ("changes", "rule", "level"),
    [
        ({"row0_psnr": Decimal("20.00")}, "psnr-l2", "impossible"),
        ({"row0_psnr": Decimal("29.90")}, "psnr-l2", "suspicion"),
        ({"column0_mean": "set"}, "psnr-l2", "impossible"),  # then it must be that of l2
        ({"row0_l1": Decimal("0.0700")}, "l1-l2", "impossible"),
        ({"row0_l1": Decimal("0.0040")}, "l1-l2", "impossible"),
        ({"column1_data_range": 2}, "data-range", "contradiction"),
        ({"column0_data_range": 2}, "data-range", "contradiction"),
        ({"row0_lpips": Decimal("0.7312")}, "copied-cell", "suspicion"),
        ({"row0_utilization": Decimal("101.0")}, "range", "impossible"),
        ({"row0_ssim": Decimal("1.02")}, "range", "impossible"),
        ({"row0_lpips": Decimal("-0.1")}, "range", "impossible"),
        ({"column5_num_images": 2}, "usage-ceiling", "impossible"),  # 512 draws for 1024 codes
    ],
)
def test_a_single_change_is_seen(changes, rule, level):
    assert (rule, level) in found(table(**changes))


@pytest.mark.parametrize("metric", ["fid", "lpips_vgg", "lpips_alex"])
def test_distances_of_networks_are_at_least_0_and_better_when_lower(metric):
    text = json.dumps(CLEAN).replace('"lpips"', f'"{metric}"')
    claim = Claim(**{**CLAIM, "kind": "better"}, rows=("own/1/2", "own/1/1"), metrics=(metric,))
    for text_now, expected in (
        (text, []),
        (text.replace("0.1203", "-0.1203"), [("range", "impossible")]),
    ):
        tables = tables_of(json.loads(text_now, parse_float=Decimal))
        findings = lint(Dossier(tables=tables, claims=(claim,)))
        assert [(one.rule, one.level) for one in findings] == expected


def test_usage_is_a_whole_number_of_codes():
    content = table(row0_utilization=Decimal("24.12"))
    assert found(content) == []  # 247 of 1024
    content = table(row0_utilization=Decimal("24.15"))
    assert found(content) == [("usage-count", "impossible")]


def test_order_needs_half_the_error():
    content = table(row1_psnr=Decimal("27.40"), row1_l2=Decimal("0.00221"))
    content["tables"][0]["rows"][1]["values"]["set"]["ssim"] = Decimal("0.7201")
    assert found(content) == [("order", "suspicion")]
    content["tables"][0]["rows"][1]["values"]["set"]["psnr"] = Decimal("27.20")
    assert found(content) == []


def test_absolute_errors_bound_psnr_without_squared_ones():
    content = table(row0_l2=None)
    assert found(content) == []
    content = table(row0_l2=None, row0_psnr=Decimal("13.0"))  # -10 log10(0.0412) = 13.85
    assert found(content) == [("psnr-l1", "impossible"), ("order", "suspicion")][:1]
    content = table(row0_l2=None, row0_psnr=Decimal("31.0"))  # -20 log10(0.0412) = 27.70
    assert ("psnr-l1", "suspicion") in found(content)


@pytest.mark.parametrize("width", [1.0, 2.0, 255.0])
def test_jensen_holds_for_images_of_any_error(width):
    generator = np.random.default_rng(1)
    for _ in range(50):
        errors = generator.uniform(-1, 1, (7, 30)) * generator.uniform(0.01, 1, (7, 1))
        mean_psnr = np.mean(-10 * np.log10(np.mean(errors**2, 1)))
        squared, absolute = np.mean((errors * width) ** 2), np.mean(np.abs(errors * width))
        assert mean_psnr >= least_psnr(squared, width)
        assert absolute**2 <= squared <= width * absolute
        assert mean_psnr >= -10 * math.log10(absolute / width)


def test_the_gap_is_what_a_normal_spread_gives():
    decibels = np.random.default_rng(2).normal(24.0, 3.0, 400_000)
    gap = decibels.mean() - least_psnr(np.mean(10 ** (-decibels / 10)), 1.0)
    assert gap == pytest.approx(math.log(10) / 20 * 9, abs=0.02)
    assert spread(gap) == pytest.approx(3.0, abs=0.03)
    assert spread(0.0) == 0.0


def test_bits_of_indices():
    assert index_bits({"codebook_size": 1024}) == 10
    assert index_bits({"codebook_size": 256, "num_segments": 64, "beta": 2}) == 2048
    assert index_bits({"codebook_size": 512, "num_codebooks": 2}) == 18
    assert index_bits({"codebook_size": None}) is None


def rows_of(content):
    return content["tables"][0]["rows"]


def test_repeated_rows():
    content = table()
    rows_of(content).append({**rows_of(content)[0], "settings": {"codebook_size": 512}})
    assert found(content) == [("same-numbers", "suspicion"), ("missing", "caution")]
    rows_of(content)[-1]["settings"] = rows_of(content)[0]["settings"]
    assert found(content) == []
    rows_of(content)[-1] = json.loads(json.dumps(rows_of(content)[0], default=float))
    rows_of(content)[-1]["values"]["set"]["lpips"] = 0.16
    assert found(content) == [("same-settings", "contradiction")]


CLAIM = {"paper": "own", "where": "here", "text": "…", "kind": "value"}


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({**CLAIM, "cells": ["own/1/1/set/fid"]}, "claim: cell=own/1/1/set/fid: no such number"),
        ({**CLAIM, "kind": "better", "rows": ["own/2/1"] * 2}, "claim: row=own/2/1: no such row"),
        ({**CLAIM, "kind": "hope"}, "claim: kind='hope': known: value, difference"),
        ({**CLAIM, "kind": "difference", "cells": ["a"]}, "difference: cells=1: needs exactly 2"),
        ({**CLAIM, "kind": "better", "rows": []}, "better: rows=0: needs at least 2"),
        ({**CLAIM, "wish": 1}, r"claims\[1\].wish: known"),
    ],
)
def test_claims_about_nothing_are_refused(claim, message, tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({**CLEAN, "claims": [claim]}))
    with pytest.raises(ValueError, match=message):
        lint(gather([str(path)]))


def test_own_claims_are_read_with_their_digits(tmp_path):
    text = json.dumps({**CLEAN, "claims": [{**CLAIM, "cells": ["own/1/1/set/psnr"], "says": 24.3}]})
    (tmp_path / "own.json").write_text(text)
    assert lint(gather([str(tmp_path / "own.json")])) == ()  # 24.31 rounds to it
    (tmp_path / "own.json").write_text(text.replace("24.3}", "24.30}"))
    assert lint(gather([str(tmp_path / "own.json")])) == ()  # 24.305 would print as both
    (tmp_path / "own.json").write_text(text.replace("24.3}", "24.29}"))
    (one,) = lint(gather([str(tmp_path / "own.json")]))
    assert one.rule == "claim-value"


CSV = """\
method,dataset,codebook_size,tokens,psnr,l2,l2.pixel_range,ssim[percent]
A,set,1024,256,24.31,0.00441,1,73.1
B,set,4096,256,26.02,0.00301,1,–
"""


def test_csv(tmp_path, capsys):
    path = tmp_path / "own.csv"
    path.write_text(CSV, encoding="utf-8")
    assert main(["lint", str(path)]) == 0
    assert capsys.readouterr().out == "1 tables, 5 numbers, 0 claims: nothing found\n"
    path.write_text(CSV.replace("0.00301,1", "0.01204,1"), encoding="utf-8")
    assert main(["lint", str(path)]) == 0
    assert "suspicion: own/csv/2/set [psnr-l2]" in capsys.readouterr().out
    path.write_text(CSV.replace(",1,", ",2,"), encoding="utf-8")
    assert main(["lint", str(path)]) == 1
    assert "least PSNR on [-1, 1] 29.58 dB (5.27 below, impossible)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "dataset,psnr\nset,1\n", "a column `method` is needed"),
        ("a.csv", "method,quality\nA,1\n", "no metric; known"),
        ("a.csv", "method,psnr\nA,good\n", "psnr='good': expected a number, or a dash"),
        ("a.csv", "method,psnr\n", "no rows"),
        ("a.csv", "method,psnr\nA,20.1\n,21.0\n", "line 3: has no method"),
        ("a.json", "{", "Expecting property name"),
        ("a.json", "{}", "format=None: expected 'vqkit-tables-1'"),
        ("a.json", '{"format": "vqkit-evaluation-1"}', "KeyError 'protocol'"),
    ],
)
def test_bad_files_are_refused_in_one_line(name, text, message, tmp_path, capsys):
    (tmp_path / name).write_text(text)
    assert main(["lint", str(tmp_path / name)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.startswith(f"vqkit: {tmp_path / name}: ")
    assert told.count("\n") == 1


def test_the_examples_of_the_guide_work(tmp_path, capsys):
    text = (Path(__file__).parent.parent / "docs" / "linter.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    (own,) = [block for block in blocks if '"format"' in block]
    (lines,) = [block for block in blocks if "method,dataset" in block]
    (tmp_path / "a.json").write_text(own)
    (tmp_path / "a.csv").write_text(textwrap.dedent(lines))
    assert main(["lint", str(tmp_path / "a.json"), str(tmp_path / "a.csv")]) == 0
    told = capsys.readouterr().out
    assert told == "2 tables, 7 numbers, 1 claims: nothing found\n"


def test_bad_names_are_refused(tmp_path, capsys):
    assert main(["lint"]) == 2
    assert "tables: none are named" in capsys.readouterr().err
    assert main(["lint", "loc"]) == 2
    assert "loc: no such file or folder; known names: dual" in capsys.readouterr().err
    assert main(["lint", str(tmp_path)]) == 2
    assert "holds no evaluation" in capsys.readouterr().err


def test_command_writes_json_and_a_page(tmp_path, capsys):
    path = tmp_path / "found.json"
    assert main(["lint", "dual", "--level", "contradiction", "--json", str(path)]) == 1
    written = json.loads(path.read_text(encoding="utf-8"))
    assert {one["level"] for one in written} == {"contradiction"}
    assert written[0]["cells"]["dual/2/4/ms-coco/rfid"] == "4.12"
    page = tmp_path / "found.md"
    assert main(["lint", "dual", "--page", str(page)]) == 0
    assert "# What the linter finds" in page.read_text(encoding="utf-8")
    assert "wrote" in capsys.readouterr().out


def test_an_evaluation_of_vqkit_is_clean_until_it_is_altered(tmp_path, capsys):
    import torch
    from PIL import Image

    from vqkit.config import DataConfig, NetworkConfig, QuantizerConfig
    from vqkit.data import load_images
    from vqkit.evaluation import evaluate
    from vqkit.models import ImageTokenizer, TokenizerConfig

    images = tmp_path / "images"
    images.mkdir()
    generator = torch.Generator().manual_seed(3)
    for index in range(4):
        coarse = torch.rand(1, 1, 4, 4, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (24, 24), mode="bilinear")[0, 0]
        Image.fromarray((smooth * 255).to(torch.uint8).numpy()).save(images / f"{index}.png")
    torch.manual_seed(0)
    network = NetworkConfig(image_channels=1, hidden=8, residual_hidden=4, num_residual_blocks=1)
    quantizer = QuantizerConfig(preset="vq_vae", args={"num_codes": 16, "dim": 8})
    tokenizer = ImageTokenizer(TokenizerConfig(network=network, quantizer=quantizer))
    data = load_images(DataConfig(source="folder", path=str(images), channels=1))
    path = tmp_path / "run" / "evaluation.json"
    evaluate(tokenizer, data, name="tiny").save(path)
    assert main(["lint", str(path.parent)]) == 0
    assert "nothing found" in capsys.readouterr().out

    content = json.loads(path.read_text(encoding="utf-8"))
    content["protocol"]["ssim_range"] = 2.0
    for metric in content["metrics"]:
        if metric["name"] == "l2":
            metric["value"] *= 4
        if metric["name"] == "usage":
            metric["value"] = 1.5
    path.write_text(json.dumps(content))
    assert main(["lint", str(path)]) == 1
    told = capsys.readouterr().out
    for rule in ("data-range", "psnr-l2", "range", "counts"):
        assert f"[{rule}]" in told
