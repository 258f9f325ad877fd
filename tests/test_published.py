"""The published cells: all of them, as printed."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path

import pytest

import vqkit.ledger
from vqkit.ledger import cell, cells, tables
from vqkit.ledger.cells import FORMAT, read_json, tables_of

ROOT = Path(__file__).resolve().parent.parent


def test_every_cell_is_there():
    assert len(tables()) == 30
    assert Counter(c.paper for c in cells()) == {"dual": 124, "vqgan-lc": 374, "looc": 715}
    assert len(cells()) == 1213
    assert sum(c.value is not None for c in cells()) == 1132
    assert len({c.key for c in cells()}) == 1213


@pytest.mark.parametrize(
    ("key", "printed", "unit"),
    [
        ("dual/1/1/ade20k/rfid", "116.85", "none"),
        ("dual/1/2/celeba-hq/psnr", "24.10", "dB"),  # the zero is printed
        ("dual/1/6/celeba-hq/l2", "0.003", "none"),
        ("dual/2/4/ms-coco/rfid", "4.12", "none"),
        ("dual/S1/6/cub-200/psnr", "20.8", "dB"),
        ("vqgan-lc/2/8/imagenet/utilization", "3.4", "percent"),
        ("vqgan-lc/2/20/imagenet/ssim", "71.6", "percent"),
        ("vqgan-lc/5/12/ffhq/gfid", "2.61", "none"),
        ("vqgan-lc/10/2/imagenet/rfid", "2.36", "none"),
        ("looc/5/3/mnist/psnr", "33.90", "dB"),
        ("looc/4/8/cifar10/lpips", "0.0154", "none"),
        ("looc/8/16/fashion-mnist/psnr", "35.3393", "dB"),
        ("looc/9/16/imagenet/lpips", "0.7160", "none"),
        ("looc/11/1/imagenet/gfid", "46.78", "none"),
        ("vqgan-lc/2/1/imagenet/psnr", "–", "dB"),  # a dash of the paper
    ],
)
def test_cells_hold_what_the_papers_print(key, printed, unit):
    assert (cell(key).printed, cell(key).unit) == (printed, unit)


def test_rows_say_what_they_are():
    ours, theirs = cell("looc/5/3/mnist/psnr"), cell("looc/5/2/mnist/psnr")
    assert (ours.system, ours.quoted, theirs.quoted) == ("looc", False, True)
    assert ours.settings == {"codebook_size": 8, "codevector_dim": 4, "num_segments": 32}
    assert cell("vqgan-lc/10/1/imagenet/rfid").settings["codebook_size"] is None


def test_columns_are_complete():
    for table in tables():
        for one in table.cells:
            column = table.column(one.metric)
            assert column.better in ("lower", "higher")
            assert column.unit == one.unit


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="cell='looc/5/3': no such cell"):
        cell("looc/5/3")
    with pytest.raises(ValueError, match="metric='fid': not in table dual/1; known are rfid"):
        tables()[0].column("fid")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.update(format="other"), "format='other': expected"),
        (lambda c: c["tables"][0].pop("rows"), r"tables\[1\]: KeyError 'rows'"),
        (lambda c: c["tables"][0]["rows"][0].pop("values"), r"tables\[1\]: KeyError 'values'"),
        (lambda c: c["tables"].append(c["tables"][0]), "tables=dual/1: named twice"),
        (
            lambda c: c["tables"][0]["rows"][0]["values"]["ade20k"].update(psnr="21"),
            "dual/1/1/ade20k/psnr='21': expected a number",
        ),
        (
            lambda c: c["tables"][0]["rows"][0]["values"]["ade20k"].update(fid=1),
            "dual/1/1/ade20k/fid: no such column",
        ),
    ],
)
def test_damaged_tables_are_refused(damage, message):
    text = (Path(vqkit.ledger.__file__).parent / "published.json").read_text(encoding="utf-8")
    content = json.loads(text)
    damage(content)
    with pytest.raises(ValueError, match=message):
        tables_of(content)


def test_a_list_is_no_file_of_tables():
    with pytest.raises(ValueError, match="expected a JSON object"):
        read_json("[]")
    assert tables_of({"format": FORMAT}) == ()


def test_the_numbers_travel_with_the_package():
    """hatch packs a package's folder whole; nothing may leave the data out."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    assert build["build"]["targets"]["wheel"] == {"packages": ["src/vqkit"]}
    names = {path.name for path in Path(vqkit.ledger.__file__).parent.glob("*.json")}
    assert names >= {"published.json", "claims.json", "others.json"}
