"""Official lists of a split's files, and images stretched to a square."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqkit.cli import main
from vqkit.config import DataConfig, RunConfig, from_dict
from vqkit.data import BatchStream, iterate_once, load_images

DOCS = Path(__file__).resolve().parent.parent / "docs" / "datasets.md"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images a/1.png, a/2.png, b/3.png, and a mask beside each, as ADE20K has them."""
    for number, name in enumerate(("a/1", "a/2", "b/3"), 1):
        for ending, value in ((".png", 10 * number), ("_seg.png", 200)):
            path = tmp_path / "set" / f"{name}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (6, 4), value).save(path)
    return tmp_path / "set"


def listed(folder: Path, text: str, **settings):
    files = folder.parent / "list.txt"
    files.write_text(text, encoding="utf-8")
    return load_images(
        DataConfig(source="folder", path=str(folder), files=str(files), channels=1, **settings)
    )


def names(images) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def test_a_list_decides_which_files_and_in_which_order(folder):
    images = listed(folder, f"b/3.png\n\n  ./a//1.png\r\n{folder}/a/2.png\n")
    assert names(images) == ["b/3.png", "a/1.png", "a/2.png"]
    assert [int(images.image(i)[0, 0, 0]) for i in range(3)] == [30, 10, 20]
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 0]
    assert names(listed(folder, "b/3.png\na/1.png\n", limit=1)) == ["b/3.png"]


def test_a_list_is_relative_to_the_path_whatever_parts_it_has(folder):
    (folder / "a").rename(folder / "train")
    assert names(listed(folder, "train/1.png\nb/3.png", split="test")) == ["train/1.png", "b/3.png"]


def test_missing_files_are_counted_and_named(folder):
    with pytest.raises(
        ValueError, match=r"list\.txt': 2 of its 3 files are not in .*\(c\.png, d\)"
    ):
        listed(folder, "c.png\na/1.png\nd")
    many = "".join(f"{number}.png\n" for number in range(1200))
    with pytest.raises(ValueError, match=r"1,200 of its 1,200 .*\(0\.png, .*, 4\.png, \.\.\.\)"):
        listed(folder, many)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/1.png\n../list.txt", r"line 2 names '\.\./list\.txt', which is not below"),
        ("/etc/hostname", r"line 1 names '/etc/hostname', which is not below"),
        ("a/1.png\na/2.png\n./a/1.png", r"line 3 names 'a/1\.png' a second time .*line 1"),
        ("\n \n", "names no file"),
    ],
)
def test_lists_that_cannot_be_meant(folder, text, message):
    with pytest.raises(ValueError, match=message):
        listed(folder, text)


def test_a_list_that_cannot_be_read(folder):
    (folder / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("absent", "binary"):
        with pytest.raises(ValueError, match=rf"data\.files='.*{name}': cannot be read"):
            load_images(DataConfig(source="folder", path=str(folder), files=str(folder / name)))
    with pytest.raises(ValueError, match="only a folder takes a list"):
        DataConfig(source="parquet", path=str(folder), files="x")


def test_the_fingerprint_notices_a_changed_list_and_not_its_place(folder):
    prints = [
        listed(folder, text).fingerprint()
        for text in ("a/1.png\nb/3.png", "b/3.png\na/1.png", "a/1.png\na/2.png", "a/1.png")
    ]
    assert len(set(prints)) == 4
    again = folder.parent / "elsewhere.txt"
    again.write_text("./a/1.png\nb/3.png\n")
    config = DataConfig(source="folder", path=str(folder), files=str(again), channels=1)
    assert load_images(config).fingerprint() == prints[0]


def test_stretch_resizes_both_sides(folder):
    image = Image.fromarray(np.arange(24 * 60, dtype=np.uint8).reshape(24, 60))
    image.save(folder / "wide.png")
    plain = DataConfig(source="folder", path=str(folder), channels=1, resize=16, limit=None)
    images = listed(folder, "wide.png\na/1.png", resize=16, stretch=True)
    (batch,) = iterate_once(images, 8)
    assert batch.images.shape == (2, 1, 16, 16)
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(batch.images[0, 0].numpy(), expected)
    assert BatchStream(images, 2, seed=0).batch(0).images.shape == (2, 1, 16, 16)
    stretched = DataConfig(source="folder", path=str(folder), channels=1, resize=16, stretch=True)
    assert load_images(plain).fingerprint() != load_images(stretched).fingerprint()
    with pytest.raises(ValueError, match=r"data\.stretch=True with data\.resize=None"):
        DataConfig(source="photos", stretch=True)


def test_stretch_of_an_array(tmp_path):
    header = bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 6))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + bytes(range(48)))
    images = load_images(DataConfig(source="mnist", path=str(tmp_path), resize=4, stretch=True))
    assert images.image(0).shape == (3, 4, 4)


def test_the_commands_of_the_page_make_the_lists(tmp_path):
    """The one-line commands of docs/datasets.md, on folders made like the data sets."""
    commands = re.findall(r"^( *\S.*> *lists/\S+\.txt)$", DOCS.read_text("utf-8"), re.MULTILINE)
    (tmp_path / "lists").mkdir()
    made = {
        "CUB_200_2011/images.txt": "1 001.A/x_1.jpg\n2 001.A/x_2.jpg\n10 002.B/y.jpg\n",
        "CUB_200_2011/train_test_split.txt": "1 0\n2 1\n10 1\n",
        "celebahqtrain.txt": "imgHQ00000.npy\nimgHQ00120.npy\n",
        "celebahqvalidation.txt": "imgHQ01000.npy\n",
        "ffhqtrain.txt": "00012.png\n47234.png\n",
        "ffhqvalidation.txt": "69999.png\n",
        "images1024x1024/00000/00000.png": "",
        "images1024x1024/59000/59999.png": "",
        "images1024x1024/60000/60000.png": "",
        "celeba/list_eval_partition.txt": "000001.jpg 0\n162771.jpg 1\n182638.jpg 2\n",
        "ADE20K_2021_17_01/images/ADE/training/urban/street/ADE_train_1.jpg": "",
        "ADE20K_2021_17_01/images/ADE/training/urban/street/ADE_train_1_seg.png": "",
        "ADE20K_2021_17_01/images/ADE/validation/urban/street/ADE_val_1.jpg": "",
    }
    for name, text in made.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for command in commands:
        subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True)
    found = {path.name: path.read_text().split() for path in (tmp_path / "lists").iterdir()}
    assert found == {
        "cub_train.txt": ["001.A/x_2.jpg", "002.B/y.jpg"],
        "cub_test.txt": ["001.A/x_1.jpg"],
        "celebahq_train.txt": ["0.jpg", "120.jpg"],
        "celebahq_val.txt": ["1000.jpg"],
        "ffhq_train.txt": ["00000/00000.png", "59000/59999.png"],
        "ffhq_val.txt": ["60000/60000.png"],
        "ffhq_vqgan_train.txt": ["00000/00012.png", "47000/47234.png"],
        "ffhq_vqgan_val.txt": ["69000/69999.png"],
        "celeba_val.txt": ["162771.jpg"],
        "ade20k_train.txt": ["training/urban/street/ADE_train_1.jpg"],
        "ade20k_val.txt": ["validation/urban/street/ADE_val_1.jpg"],
    }


@pytest.mark.parametrize(
    "command", re.findall(r"^vqkit (train .*)$", DOCS.read_text("utf-8"), re.MULTILINE)
)
def test_the_commands_of_the_page_name_recipes_and_settings(command, capsys):
    assert main([*shlex.split(command), "--print_config"]) == 0
    config = from_dict(RunConfig, json.loads(capsys.readouterr().out))
    for data in (config.data, config.test_data):
        assert data is not None
        assert data.files is None or Path(data.files).name in DOCS.read_text("utf-8")


def test_the_page_links_to_what_exists():
    text = DOCS.read_text("utf-8")
    titles = re.findall(r"^##? (.*)$", text, re.MULTILINE)
    places = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        page, _, place = target.partition("#")
        assert (DOCS.parent / page).exists()
        assert page or place in places
