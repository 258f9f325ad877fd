"""Comparisons: the files they write, the picture, and the commands `compare` and `demo`."""

import json
import re

import pytest
import torch
from PIL import Image

from vqkit.cli import demo, main
from vqkit.cli.runs import Plan, remove_run
from vqkit.config import DataConfig, NetworkConfig, QuantizerConfig
from vqkit.data import load_images
from vqkit.evaluation.comparison import Contestant, compare
from vqkit.evaluation.picture import MAX_BYTES, MAX_WIDTH, Column, draw, png_bytes_of
from vqkit.metrics import psnr
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.recipes import recipe


@pytest.fixture
def pictures(tmp_path):
    """A folder of three smooth pictures, 80 x 72 pixels."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        rows, columns = torch.arange(80)[:, None], torch.arange(72)[None, :]
        grey = ((rows * (i + 1) + columns * 2) % 256).to(torch.uint8)
        Image.fromarray(grey[..., None].expand(-1, -1, 3).numpy()).save(folder / f"{i}.png")
    return folder


def tokenizer(channels=3, **args):
    torch.manual_seed(0)
    network = NetworkConfig(image_channels=channels, hidden=8, residual_hidden=4)
    quantizer = QuantizerConfig(preset="looc", args={"dim": 2, "num_segments": 3, **args})
    return ImageTokenizer(TokenizerConfig(network=network, quantizer=quantizer)).eval()


def test_compare_writes_table_numbers_and_picture(pictures, tmp_path):
    images = load_images(DataConfig(source="folder", path=str(pictures)))
    few, many = tokenizer(num_codes=4), tokenizer(num_codes=16)
    contestants = [
        Contestant(name="few", tokenizer=few, train_seconds=12.3),
        Contestant(name="many", tokenizer=many),
    ]
    out = tmp_path / "out"
    found = compare(contestants, images, out, note="No benchmark.")
    assert sorted(path.name for path in out.iterdir()) == [
        "comparison.png",
        "table.json",
        "table.md",
    ]
    assert found.table_path.read_text(encoding="utf-8") == found.table + "\n"
    rows = [line for line in found.table.splitlines() if re.match(r"\| (few|many)", line)]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [cell[0] for cell in cells] == ["few", "many"]
    assert [float(cell[1]) for cell in cells] == [6 / 16, 12 / 16]  # 3 segments, stride 4
    assert cells[0][9] == "8"  # 4 codes of 2 floats
    assert "Seconds of training: few 12." in found.table
    assert found.table.endswith("No benchmark.")
    values = json.loads(found.json_path.read_text(encoding="utf-8"))
    assert [run["name"] for run in values["runs"]] == ["few", "many"]
    assert found.evaluations[0].value("psnr") == pytest.approx(
        float(torch.stack([psnr_of(few, images.image(i)) for i in range(3)]).mean())
    )


def psnr_of(model, image):
    rebuilt = ((model.reconstruct(image[None]) + 1) * 127.5).round().to(torch.uint8)
    return psnr(rebuilt, image[None])[0]


def test_compare_refuses(pictures, tmp_path):
    images = load_images(DataConfig(source="folder", path=str(pictures)))
    one = Contestant(name="one", tokenizer=tokenizer(num_codes=4))
    with pytest.raises(ValueError, match="different names"):
        compare([one, one], images, tmp_path / "out")
    grey = Contestant(name="grey", tokenizer=tokenizer(channels=1, num_codes=4))
    with pytest.raises(ValueError, match=r"data.channels=3: grey takes images of 1"):
        compare([grey], images, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing is written before all are measured"


def test_compare_draws_no_picture_of_a_diverged_model(pictures, tmp_path, monkeypatch):
    images = load_images(DataConfig(source="folder", path=str(pictures)))
    one = Contestant(name="one", tokenizer=tokenizer(num_codes=4))
    nothing = torch.full((1, 3, 80, 72), float("nan"))
    monkeypatch.setattr(one.tokenizer, "reconstruct", lambda _: nothing)
    with pytest.raises(ValueError, match="NaN or infinity"):
        compare([one], images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def column(title, pictures, caption="20.0 dB"):
    return Column(
        title=title, lines=("1 bits/pixel",), pictures=pictures, captions=[caption] * len(pictures)
    )


def noise(height, width, channels=3, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randint(256, (channels, height, width), dtype=torch.uint8, generator=source)


@pytest.mark.parametrize("count", [1, 2, 9, 30])
def test_pictures_fit(count):
    columns = [column(f"a run with a long name, {i}", [noise(300, 451)] * 2) for i in range(count)]
    sheet = draw(columns, note="No benchmark. " * 20)
    assert sheet.width <= MAX_WIDTH
    content = png_bytes_of(sheet)
    assert len(content) <= MAX_BYTES
    assert content.startswith(b"\x89PNG")


def test_large_pictures_are_shown_pixel_by_pixel():
    picture = noise(600, 700)
    sheet = draw([column("original", [picture]), column("run", [picture])])
    cell = 320
    centre = picture[:, 140 : 140 + cell, 190 : 190 + cell].permute(1, 2, 0).numpy().tobytes()
    found = [
        sheet.crop((left, top, left + cell, top + cell)).tobytes() == centre
        for left in (24, 24 + cell + 8)
        for top in range(24, 120)
    ]
    assert sum(found) == 2


def test_small_grey_pictures_are_enlarged_by_whole_numbers():
    picture = torch.zeros(1, 28, 28, dtype=torch.uint8)
    picture[0, 14, 14] = 255
    sheet = draw([column("original", [picture])])
    black = sheet.convert("L").point(lambda value: 255 if value == 0 else 0).getbbox()
    assert black is not None
    assert black[2] - black[0] == 28 * 11  # 320 // 28 times


def test_no_picture_is_refused():
    with pytest.raises(ValueError, match="no picture"):
        draw([])


@pytest.mark.slow
def test_compare_command_trains_once_and_loads(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    words = [
        *("compare", "photos_looc", "photos_fsq", "--out", str(out)),
        *("--steps", "2", "--batch_size", "2", "--path", str(pictures)),
        *("--data.source", "folder", "--data.path", str(pictures)),
    ]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "run 1 of 2: photos_looc" in shown.err
    assert shown.out.splitlines()[-1] == f"report:  {out / 'report.html'}"
    assert "photos_looc" in (out / "report.html").read_text(encoding="utf-8")
    logs = [(out / name / "log.jsonl").read_bytes() for name in ("photos_looc", "photos_fsq")]
    table = (out / "table.json").read_bytes()
    assert main(words) == 0
    assert "was trained before" in capsys.readouterr().err
    assert logs == [
        (out / name / "log.jsonl").read_bytes() for name in ("photos_looc", "photos_fsq")
    ]
    again = tmp_path / "again"
    folders = [str(out / name) for name in ("photos_fsq", "photos_looc")]
    data = ["--data.source", "folder", "--data.path", str(pictures)]
    assert main(["compare", *folders, "--out", str(again), *data]) == 0
    first, second = json.loads(table), json.loads((again / "table.json").read_bytes())
    assert [run["name"] for run in second["runs"]] == ["photos_fsq", "photos_looc"]
    metrics = [run["evaluation"]["metrics"] for run in first["runs"]]
    assert metrics == [run["evaluation"]["metrics"] for run in reversed(second["runs"])]
    capsys.readouterr()
    assert main(["compare", *folders, "--steps", "3", *data]) == 2
    assert "only recipes are trained" in capsys.readouterr().err


def test_the_demo_shows_the_methods_it_should():
    methods = {recipe(name)().quantizer.preset for name in demo.RECIPES}
    assert {"vq_vae", "cvq", "pq", "rq", "dual", "looc"} <= methods
    looc = [name for name in demo.RECIPES if recipe(name)().quantizer.preset == "looc"]
    assert len(looc) >= 2, "two operating points of LooC"


@pytest.mark.slow
def test_demo(tmp_path, capsys, monkeypatch):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    monkeypatch.setattr(demo, "RECIPES", ("photos_looc", "photos_looc_small"))
    out = tmp_path / "demo"
    assert main(["demo", "--steps", "1", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "no benchmark" in shown.err
    assert "no benchmark" in (out / "table.md").read_text(encoding="utf-8")
    runs = json.loads((out / "table.json").read_bytes())["runs"]
    assert [run["name"] for run in runs] == ["photos_looc", "photos_looc_small"]
    assert [run["evaluation"]["data"]["num_images"] for run in runs] == [2, 2]
    names = {"table": "table.md", "picture": "comparison.png", "report": "report.html"}
    last = [line.split(":") for line in shown.out.splitlines()[-3:]]
    assert [(key, value.strip()) for key, value in last] == [
        (key, str(out / name)) for key, name in names.items()
    ]
    assert "no benchmark" in (out / "report.html").read_text(encoding="utf-8")


def test_time_left_is_of_the_whole(tmp_path):
    configs = [recipe(name)(num_steps=100) for name in ("photos_looc", "photos_fsq")]
    folders = [tmp_path / config.name for config in configs]
    now = 0.0
    plan = Plan(configs, folders, clock=lambda: now)
    assert plan.line(0) == "run 1 of 2: photos_looc, step 0 of 100"
    folders[0].mkdir()
    (folders[0] / "log.jsonl").write_text('{"step": 40}\n', encoding="utf-8")
    now = 20.0
    # 40 of 200 steps took 20 s
    assert plan.line(0).endswith("step 40 of 100, about 1:20 min left for all")


def test_remove_run_spares_other_folders(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no run"):
        remove_run(tmp_path)
    remove_run(tmp_path / "absent")
