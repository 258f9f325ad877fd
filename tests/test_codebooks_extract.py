"""Extraction: what is in a feature set, how it goes on, and what is refused."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from feature_images import array_set, cells, contents, image_folder, random_pixels
from PIL import Image
from torch import nn
from training_runs import run_config, write_images

from vqkit.cli import main
from vqkit.clustering import kmeans
from vqkit.clustering.processes import Processes
from vqkit.codebooks import extraction
from vqkit.codebooks.encoders_modules import ModuleEncoder
from vqkit.codebooks.encoding import Progress, cut_square
from vqkit.codebooks.extraction import extract
from vqkit.codebooks.features import FeatureSet, open_features
from vqkit.codebooks.pixels import PixelPatches
from vqkit.config import DataConfig
from vqkit.data import load_images, to_float
from vqkit.training import claim, train

pytestmark = pytest.mark.slow

SIZES = [(16, 24), (16, 24), (20, 16), (16, 24), (16, 24), (16, 24), (32, 16)]


def run(images, out, encoder=None, **options):
    options = {"shard_images": 3, "batch_size": 2, "progress": False, **options}
    return extract(images, encoder or cells()[0], out, **options)


def test_rows_are_those_of_the_images_in_order(tmp_path):
    data = image_folder(tmp_path / "images", SIZES)
    found = run(data, tmp_path / "out", dtype="float32")
    images = load_images(data)
    grids = [F.avg_pool2d(to_float(images.image(i)[None]), 4) for i in range(len(SIZES))]
    rows = torch.cat([grid.flatten(2)[0].T for grid in grids])
    assert torch.equal(found.read(0, found.num_vectors), rows)
    half = run(data, tmp_path / "half")
    assert torch.equal(half.read(0, half.num_vectors), rows.half())
    assert found.groups() is None


def test_the_manifest_says_what_is_in_the_files(tmp_path):
    data = image_folder(tmp_path / "images", SIZES)
    found = run(data, tmp_path / "out", pool=2)
    assert sorted(contents(tmp_path / "out")) == [
        *(f"0000{k}.npy" for k in range(3)),
        "manifest.json",
    ]
    manifest = found.manifest
    assert (manifest["kind"], manifest["dim"], manifest["dtype"]) == ("features", 3, "float16")
    assert (manifest["num_vectors"], manifest["encoder"]["pooling"]) == (28, 2)
    assert manifest["data"] == {
        "source": "folder",
        "path": data.path,
        "fingerprint": load_images(data).fingerprint(),
        "images": 7,
    }
    spans = [(shard["first_image"], shard["images"], shard["rows"]) for shard in manifest["shards"]]
    assert spans == [(0, 3, 12), (3, 3, 12), (6, 1, 4)]
    array = np.load(tmp_path / "out" / "00001.npy")
    assert array.shape == (12, 3)
    assert array.flags.c_contiguous
    provenance = found.provenance()
    assert json.loads(json.dumps(provenance)) == provenance
    assert "shards" not in provenance


def test_classes_become_groups(tmp_path):
    data = image_folder(tmp_path / "images", SIZES[:4], ["b", "a"])
    found = run(data, tmp_path / "out", pool=1)
    assert found.group_names == ("a", "b")
    assert found.groups().tolist() == [0, 0, 1, 1]
    numbered = array_set(random_pixels(4), labels=torch.tensor([7, 3, 3, -1]))
    found = run(numbered, tmp_path / "numbered", pool=1)
    assert found.group_names == ("-1", "3", "7")
    assert found.groups().tolist() == [2, 1, 1, 0]


def test_labels_of_parquet_files(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def encoded(image):
        stream = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "PNG")
        return {"bytes": stream.getvalue(), "path": None}

    columns = {"image": list(map(encoded, random_pixels(4))), "label": [5, 2, 2, 5]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet")
    data = DataConfig(source="parquet", path=str(tmp_path / "train.parquet"))
    found = run(data, tmp_path / "out", pool=1)
    assert (found.group_names, found.groups().tolist()) == (("2", "5"), [1, 0, 0, 1])
    columns["image"][1] = {"bytes": b"no image", "path": None}
    parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet")
    data = DataConfig(source="parquet", path=data.path, on_broken="skip")
    with pytest.warns(UserWarning, match="is no readable image"):
        found = run(data, tmp_path / "broken", pool=1)
    assert [name for name, _ in found.manifest["skipped"]] == ["train.parquet[1]"]
    assert (found.group_names, found.groups().tolist()) == (("2", "5"), [1, 0, 1])


def test_images_are_cut_to_the_encoders_size(tmp_path):
    data = image_folder(tmp_path / "images", [(24, 43), (15, 12), (16, 16)])
    encoder, _ = cells(size=16)
    found = run(data, tmp_path / "out", encoder, pool=None, dtype="float32", batch_size=3)
    images = load_images(data)
    for i in range(3):
        picture = Image.fromarray(images.image(i).permute(1, 2, 0).numpy())
        short = min(picture.size)
        picture = picture.resize([16 * side // short for side in picture.size], Image.BICUBIC)
        left, top = (picture.width - 16) // 2, (picture.height - 16) // 2
        square = np.array(picture.crop((left, top, left + 16, top + 16)))
        grid = F.avg_pool2d(to_float(torch.from_numpy(square).permute(2, 0, 1)[None]), 4)
        assert torch.equal(found.read(16 * i, 16 * i + 16), grid.flatten(2)[0].T)


def test_grey_images_are_cut_too():
    image = random_pixels(1, 1, 20, 30)[0].numpy()
    assert cut_square(image, 10, 12).shape == (1, 10, 10)
    assert cut_square(image[:, :10, :10], 10, 12) is not None


def test_a_broken_image_is_left_out_or_an_error(tmp_path):
    data = image_folder(tmp_path / "images", SIZES)
    (tmp_path / "images" / "03.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^03\.png: is no readable image .*skip; .*--fresh"):
        run(data, tmp_path / "out")
    skipping = DataConfig(source="folder", path=data.path, on_broken="skip")
    with pytest.raises(ValueError, match="--fresh"):
        run(skipping, tmp_path / "out")
    with pytest.warns(UserWarning, match="is left out"):
        assert run(skipping, tmp_path / "out", resume=False).num_vectors
    with pytest.warns(UserWarning, match=r"03\.png is no readable image"):
        found = run(skipping, tmp_path / "skipped", pool=1)
    assert found.num_vectors == 6
    assert [name for name, _ in found.manifest["skipped"]] == ["03.png"]
    assert [shard["rows"] for shard in found.manifest["shards"]] == [3, 2, 1]
    (tmp_path / "images" / "06.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="is left out"):
        found = run(skipping, tmp_path / "empty", pool=1)
    assert [shard["file"] for shard in found.manifest["shards"]] == ["00000.npy", "00001.npy"]


def test_a_strip_that_would_become_huge_counts_as_broken(tmp_path):
    data = image_folder(tmp_path / "images", [(16, 16), (1, 5000)])
    data = DataConfig(source="folder", path=data.path, on_broken="skip")
    with pytest.warns(UserWarning, match=r"01\.png is no readable image"):
        found = run(data, tmp_path / "out", cells(size=2000)[0], pool=1)
    assert [name for name, _ in found.manifest["skipped"]] == ["01.png"]


def test_nothing_but_broken_images(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(4):
        (tmp_path / "images" / f"{i}.png").write_bytes(b"no image")
    data = DataConfig(source="folder", path=str(tmp_path / "images"), on_broken="skip")
    with (
        pytest.raises(ValueError, match=r"none of 4 images can be read \(first: 0\.png"),
        pytest.warns(UserWarning, match="is left out"),
    ):
        run(data, tmp_path / "out")


def test_some_features_of_every_image(tmp_path):
    images = array_set(random_pixels(7))
    whole = run(images, tmp_path / "whole")
    some = run(images, tmp_path / "some", max_per_image=5)
    assert some.num_vectors == 35
    for i in range(7):
        all_rows = whole.read(48 * i, 48 * i + 48)
        rows = some.read(5 * i, 5 * i + 5)
        places = [(all_rows == row).all(1).nonzero()[0].item() for row in rows]
        assert places == sorted(places)
        assert len(set(places)) == 5
    other = run(images, tmp_path / "other", max_per_image=5, seed=1)
    assert not torch.equal(other.read(0, 35), some.read(0, 35))
    other = run(images, tmp_path / "one", max_per_image=5, batch_size=7, shard_images=7)
    assert torch.equal(other.read(0, 35), some.read(0, 35))


@pytest.mark.parametrize("fail", [1, 2, 4, 5, 6])
def test_an_extraction_goes_on_where_it_stopped(fail, tmp_path):
    """Two calls for a shard of three images, three calls for the rest: `fail` is one of 5."""
    data = image_folder(tmp_path / "images", SIZES)
    run(data, tmp_path / "whole")
    encoder, module = cells(fail)
    out = tmp_path / "out"
    if fail <= 5:
        with pytest.raises(OSError, match="the device is gone"):
            run(data, out, encoder)
        assert not list(out.glob(".*"))
        with pytest.raises(ValueError, match="is not finished; the command that began it goes on"):
            FeatureSet(out)
    else:
        run(data, out, encoder)
    whole = len(list(out.glob("*.npy")))
    encoder, module = cells()
    run(data, out, encoder)
    assert contents(out) == contents(tmp_path / "whole")
    assert module.calls == {0: 5, 1: 3, 2: 1, 3: 0}[whole] if fail != 6 else module.calls == 0


def test_what_is_finished_is_not_done_again(tmp_path):
    images = array_set(random_pixels(4))
    run(images, tmp_path / "out")
    before = contents(tmp_path / "out")
    encoder, module = cells()
    run(images, tmp_path / "out", encoder)
    assert module.calls == 0
    run(images, tmp_path / "out", encoder, resume=False, pool=2)
    assert module.calls == 3
    assert contents(tmp_path / "out") != before
    run(images, tmp_path / "out", encoder, resume=False)
    assert contents(tmp_path / "out") == before


def test_a_shard_that_was_torn_or_taken_away_is_written_again(tmp_path):
    data = image_folder(tmp_path / "images", SIZES, ["a", "b"])
    run(data, tmp_path / "whole")
    for damage in ("00000.npy", "groups/00000.npy"):
        out = tmp_path / damage.replace("/", "_")
        with pytest.raises(OSError, match="the device is gone"):
            run(data, out, cells(fail=4)[0])
        assert (out / "00000.json").exists()
        (out / damage).write_bytes(b"torn")
        run(data, out)
        assert contents(out) == contents(tmp_path / "whole")


def test_a_full_disk_leaves_what_is_finished(tmp_path, monkeypatch):
    data = image_folder(tmp_path / "images", SIZES)
    run(data, tmp_path / "whole")
    out, sync, calls = tmp_path / "out", os.fsync, [0]

    def full(descriptor):
        calls[0] += 1
        if calls[0] == 4:  # one of the settings, two of the first shard
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device, while writing .*00001\.npy"):
            run(data, out)
    assert sorted(contents(out)) == ["00000.json", "00000.npy", "unfinished.json"]
    run(data, out)
    assert contents(out) == contents(tmp_path / "whole")


def test_whitening_is_fitted_once(tmp_path):
    data = image_folder(tmp_path / "images", SIZES)
    run(data, tmp_path / "whole", PixelPatches(patch=4, stride=4, sample=200))
    out = tmp_path / "out"
    out.mkdir()
    run(data, out, PixelPatches(patch=4, stride=4, sample=200))
    assert contents(out) == contents(tmp_path / "whole")
    (out / "manifest.json").rename(tmp_path / "manifest.json")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    begun = {key: manifest[key] for key in ("library", "format", "kind", "encoder", "dtype")}
    begun |= {key: manifest[key] for key in ("settings", "data", "groups")}
    begun["encoder"]["sha256"] = None
    (out / "unfinished.json").write_text(json.dumps(begun))
    before = (out / "whitening.safetensors").stat().st_mtime_ns
    run(data, out, PixelPatches(patch=4, stride=4, sample=200))
    assert contents(out) == contents(tmp_path / "whole")
    assert (out / "whitening.safetensors").stat().st_mtime_ns == before


def test_whitening_of_another_set_is_not_ones_own(tmp_path):
    data = image_folder(tmp_path / "images", SIZES)
    own = PixelPatches(patch=4, stride=4, sample=200)
    run(image_folder(tmp_path / "others", SIZES[::-1]), tmp_path / "first", own)
    given = own.whitened_by(tmp_path / "first")
    for out, made, other, message in [
        ("given", given, own, r"encoder\.whitening \('given' there, 'fitted' here\)"),
        (
            "fitted",
            own,
            given,
            r"encoder\.sha256 .*; encoder\.whitening \('fitted' there, 'given' ",
        ),
    ]:
        run(data, tmp_path / out, made)
        run(data, tmp_path / out, made)
        with pytest.raises(ValueError, match=f"other settings: {message}"):
            run(data, tmp_path / out, other)
    # Sets with one whitening are of one encoder, whichever it was fitted to.
    assert open_features([tmp_path / "first", tmp_path / "given"]).dim == 48


class Watched(Processes):
    """One of several processes, as far as errors go: it notes those that the others hear of."""

    def __init__(self, rank):
        self.rank, self.heard = rank, []

    def agreed(self, work):
        try:
            return work()
        except ValueError as error:
            self.heard.append(error)
            raise


@pytest.mark.parametrize(("place", "rank"), [("to", 0), ("restored", 1), ("reading", 0)])
def test_others_hear_of_errors_between_the_shards(place, rank, tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("the device is gone")

    processes = Watched(rank)
    monkeypatch.setattr(extraction, "together", lambda: processes)
    images, (encoder, _) = array_set(random_pixels(4)), cells()
    monkeypatch.setattr(images if place == "reading" else encoder, place, broken)
    with pytest.raises(ValueError, match="the device is gone") as caught:
        run(images, tmp_path / "out", encoder, device="cpu")
    assert processes.heard == [caught.value]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": 2}, r"encoder\.pooling \(None there, 2 here\)"),
        ({"batch_size": 5}, r"settings\.batch_size \(2 there, 5 here\)"),
        ({"shard_images": 2}, r"settings\.shard_images \(3 there, 2 here\)"),
        ({"dtype": "float32"}, r"dtype \('float16' there, 'float32' here\)"),
        ({"precision": "bf16"}, r"settings\.precision \('float32' there, 'bf16' here\)"),
        ({"max_per_image": 1, "seed": 2}, r"settings\.max_per_image .*; settings\.seed"),
        ({"images": 8}, r"data\.fingerprint .*; data\.images \(7 there, 8 here\)"),
        ({"weights": 1}, r"encoder\.sha256 \('"),
    ],
)
def test_other_settings_are_refused_by_name(changes, message, tmp_path):
    values = {"images": 7, "weights": 0, **changes}
    images = array_set(random_pixels(7))
    with pytest.raises(OSError, match="gone"):
        run(images, tmp_path / "begun", cells(fail=3)[0])
    run(images, tmp_path / "finished")
    images = array_set(random_pixels(values.pop("images")))
    encoder, module = cells()
    if values.pop("weights"):
        module.register_buffer("mine", torch.ones(1))
        encoder = ModuleEncoder(module, name="cells", stride=4)
    for name in ("begun", "finished"):
        before = contents(tmp_path / name)
        with pytest.raises(ValueError, match=rf"holds features of other settings: {message}"):
            run(images, tmp_path / name, encoder, **values)
        assert contents(tmp_path / name) == before


def test_a_folder_where_another_process_extracts_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    monkeypatch.setattr(claim, "WAIT", 0.0)
    images = array_set(random_pixels(4))
    refused = pytest.raises(ValueError, match="another process extracts features here")
    with claim.claimed(tmp_path / "out"), refused:
        run(images, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert run(images, tmp_path / "out").num_vectors > 0


def test_images_may_move(tmp_path):
    data = image_folder(tmp_path / "images", SIZES)
    with pytest.raises(OSError, match="gone"):
        run(data, tmp_path / "out", cells(fail=3)[0])
    shutil.move(tmp_path / "images", tmp_path / "moved")
    run(DataConfig(source="folder", path=str(tmp_path / "moved")), tmp_path / "out")


def test_folders_that_hold_something_else(tmp_path):
    images = array_set(random_pixels(4))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{}")
    (tmp_path / "file").write_text("keep")
    for name, message in {
        "mine": "holds something else; name a new or an empty folder",
        "other": r"has a manifest\.json of something else",
        "file": "is or lies below a file; name a folder",
    }.items():
        for resume in (True, False):
            with pytest.raises(ValueError, match=message):
                run(images, tmp_path / name, resume=resume)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    run(images, tmp_path / "set")
    (tmp_path / "set" / "notes.txt").write_text("keep")
    run(images, tmp_path / "set", resume=False, pool=1)
    assert (tmp_path / "set" / "notes.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": -1}, r"^pool=-1: must not be negative"),
        ({"pool": 7}, r"^pool=7: the encoder gives 6 x 8 positions"),
        ({"batch_size": 0}, r"^batch_size=0: must be at least 1"),
        ({"shard_images": 0}, r"^shard_images=0: must be at least 1"),
        ({"dtype": "int8"}, r"^dtype='int8': expected 'float16' or 'float32'"),
        ({"precision": "fp8"}, r"^precision='fp8': expected 'float32' or 'bf16'"),
    ],
)
def test_bad_settings(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(array_set(random_pixels(4)), tmp_path / "out", **options)


def test_pixels_know_no_other_precision(tmp_path):
    with pytest.raises(ValueError, match=r"^precision='bf16': this encoder always computes"):
        run(array_set(random_pixels(4)), tmp_path / "out", PixelPatches(), precision="bf16")


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, images):
        return F.avg_pool2d(images, 4) * self.scale


def test_features_that_cannot_be_written(tmp_path):
    images = array_set(random_pixels(4))
    with pytest.raises(ValueError, match=r"^dtype='float16': image0 has a feature of .*e\+05"):
        run(images, tmp_path / "big", ModuleEncoder(Scaled(5e5)))
    run(images, tmp_path / "float32", ModuleEncoder(Scaled(5e5)), dtype="float32")
    with pytest.raises(ValueError, match=r"^encoder: image0: gives features that are no finite"):
        run(images, tmp_path / "nan", ModuleEncoder(Scaled(float("nan"))), dtype="float32")


class Wide(nn.Module):
    """As many channels as the image is high."""

    def forward(self, images):
        return images[:, :1].transpose(1, 2)


@pytest.mark.parametrize("shard_images", [1, 2])
def test_features_of_different_widths(shard_images, tmp_path):
    data = image_folder(tmp_path / "images", [(16, 16), (20, 16)])
    with pytest.raises(ValueError, match="dimensions: the encoder must give"):
        run(data, tmp_path / "out", ModuleEncoder(Wide()), shard_images=shard_images)


def test_damaged_sets_are_refused(tmp_path):
    data = image_folder(tmp_path / "images", SIZES, ["a", "b"])
    run(data, tmp_path / "good")
    FeatureSet(tmp_path / "good").verify()

    def damaged(name, change):
        folder = tmp_path / f"bad{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tmp_path / "good", folder)
        change(folder / name)
        return folder

    def flip(path):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    def cut(path):
        path.write_bytes(path.read_bytes()[:-2])

    def edit(**values):
        def change(path):
            path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

        return change

    for name in ("00001.npy", "groups/00001.npy"):
        with pytest.raises(ValueError, match=rf"{name}: was altered or damaged \(another SHA-256"):
            FeatureSet(damaged(name, flip)).verify()
    with pytest.raises(ValueError, match=r"00001\.npy: .* bytes: the manifest says .* is torn"):
        FeatureSet(damaged("00001.npy", cut))
    with pytest.raises(ValueError, match=r"groups/00001\.npy: .* is torn"):
        FeatureSet(damaged("groups/00001.npy", cut)).groups()
    missing = damaged("00002.npy", lambda path: path.unlink())
    with pytest.raises(
        ValueError, match=r"00002\.npy: is missing; copy it there, or extract again w"
    ):
        run(data, missing)
    run(data, missing, resume=False)  # --fresh, as the message says
    assert contents(missing) == contents(tmp_path / "good")
    for values, message in [
        ({"format": 2}, "format=2: this version reads format 1"),
        ({"kind": "tokens"}, "was not written by extract"),
        ({"num_vectors": 5}, "num_vectors=5: its shards have 172"),
        ({"dim": 4}, r"00000\.npy: \(68, 3\): the manifest says \(68, 4\)"),
        ({"shards": []}, "holds no features"),
    ]:
        with pytest.raises(ValueError, match=message):
            FeatureSet(damaged("manifest.json", edit(**values)))
    with pytest.raises(ValueError, match="cannot be read"):
        FeatureSet(damaged("manifest.json", cut))
    with pytest.raises(ValueError, match="is no folder; name one that extract has written"):
        FeatureSet(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no manifest\.json; name a folder"):
        FeatureSet(tmp_path / "images")


@pytest.mark.parametrize("place", range(5))
def test_a_removal_that_was_killed_leaves_an_unfinished_set(place, tmp_path, monkeypatch):
    """Killed where it removes the first, second, ... of five files; the same command goes on."""
    data, out = image_folder(tmp_path / "images", SIZES), tmp_path / "out"
    encoder = PixelPatches(patch=4, stride=4, sample=200)
    run(data, out, encoder)
    before, unlink, count = contents(out), Path.unlink, [0]

    def deadly(path, **options):
        if count[0] == place:
            raise KeyboardInterrupt
        count[0] += 1
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", deadly)
        with pytest.raises(KeyboardInterrupt):
            run(data, out, encoder, resume=False)
    with pytest.raises(ValueError, match=r"is not finished; .* \(without --fresh\)"):
        FeatureSet(out)
    run(data, out, encoder)
    assert contents(out) == before


def test_sets_of_one_encoder_are_joined(tmp_path):
    one = image_folder(tmp_path / "one", SIZES, ["cat", "dog"])
    two = image_folder(tmp_path / "two", SIZES[:4], ["eel", "cat"])
    folders = [tmp_path / "a", tmp_path / "b"]
    first, second = (run(d, f, pool=1) for d, f in zip((one, two), folders, strict=True))
    joined = open_features(folders)
    assert joined.num_vectors == 11
    assert torch.equal(joined.read(5, 9), torch.cat([first.read(5, 7), second.read(0, 2)]))
    assert joined.group_names == ("cat", "dog", "eel")
    assert joined.groups().tolist() == [0] * 4 + [1] * 3 + [0] * 2 + [2] * 2
    joined.verify()
    assert joined.provenance()["num_vectors"] == 11
    assert kmeans(joined, 3, iterations=2, progress=False).centres.shape == (3, 3)
    assert type(open_features(folders[:1])) is FeatureSet
    with pytest.raises(ValueError, match="are the same folder; name every one once"):
        open_features([tmp_path / "a", tmp_path / "b" / ".." / "a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": 2}, r"different encoders \(pooling 1 and 2\)"),
        ({"encoder": "scaled"}, r"different encoders \(.*sha256 \w{12}\.\.\. and \w{12}\.\.\.\)"),
        ({"encoder": "pixels"}, r"different encoders \(kind module and pixels; .*; dim 3 and 192"),
        ({"encoder": "blind"}, r"different encoders \(module Counting and AvgPool2d\)"),
    ],
)
def test_sets_of_different_encoders_are_not_joined(change, message, tmp_path):
    images = array_set(random_pixels(4))
    options = {"pool": 1, **change}
    scaled = ModuleEncoder(nn.Sequential(nn.AvgPool2d(4), nn.BatchNorm2d(3)), name="cells")
    blind = ModuleEncoder(nn.AvgPool2d(8), name="cells")
    others = {"blind": blind, "scaled": scaled, "pixels": PixelPatches(sample=100), "cells": None}
    run(images, tmp_path / "a", pool=1)
    run(images, tmp_path / "b", others[options.pop("encoder", "cells")], **options)
    with pytest.raises(ValueError, match=message):
        open_features([tmp_path / "a", tmp_path / "b"])


def test_progress_says_pace_and_time_left():
    now, stream = [0.0], io.StringIO()
    progress = Progress(600, stream, clock=lambda: now[0])
    for now[0] in (4.0, 8.0, 12.0):
        progress.tick(50, 4000)
    assert stream.getvalue() == (
        "features: 150 of 600 images, 12,000 rows, 1,000 rows/s, 0:36 left\n"
    )


def test_worker_processes_give_the_same_files(tmp_path):
    data = image_folder(tmp_path / "images", SIZES)
    run(data, tmp_path / "threads")
    run(DataConfig(source="folder", path=data.path, workers=2), tmp_path / "processes")
    threads, processes = contents(tmp_path / "threads"), contents(tmp_path / "processes")
    assert threads == processes


def test_the_command(tmp_path, capsys):
    data = image_folder(tmp_path / "images", SIZES, ["a", "b"])
    words = ["codebook", "extract", str(tmp_path / "out"), "--path", data.path, "--device", "cpu"]
    options = ["--patch", "4", "--stride", "4", "--sample", "500", "--shard_images", "3"]
    assert main([*words, *options]) == 0
    assert capsys.readouterr().out == (
        f"wrote 172 features of 48 numbers (float16) from 7 images, 2 classes → {tmp_path}/out\n"
    )
    encoder = PixelPatches(patch=4, stride=4, sample=500)
    extract(data, encoder, tmp_path / "same", shard_images=3)
    assert contents(tmp_path / "out") == contents(tmp_path / "same")
    words[2] = str(tmp_path / "test")
    assert main([*words, "--whitening", str(tmp_path / "out"), *options]) == 0
    assert open_features([tmp_path / "out", tmp_path / "test"]).num_vectors == 344


@pytest.mark.parametrize("fresh", [False, True])
def test_ctrl_c_says_which_command_goes_on(fresh, tmp_path, capsys, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(extraction.Encoding, "run", stopped)
    data = image_folder(tmp_path / "images", SIZES[:1])
    words = ["--path", data.path, "--device", "cpu", "--sample", "9", *["--fresh"] * fresh]
    assert main(["codebook", "extract", str(tmp_path / "out"), *words]) == 130
    command = "the same command without --fresh" if fresh else "the same command"
    assert f"interrupted; {command} goes on from here" in capsys.readouterr().err


def test_the_command_with_a_run_and_its_tokenizer(tmp_path, capsys):
    images = write_images(tmp_path / "images")
    config = run_config(images, optim__num_steps=2)
    train(config, out=tmp_path / "run", progress=False)
    folders = {"run": tmp_path / "run", "tokenizer": tmp_path / "run" / "tokenizer"}
    words = ["--path", str(images), "--device", "cpu"]
    for name, folder in folders.items():
        out = str(tmp_path / f"of_{name}")
        assert main(["codebook", "extract", out, *words, "--encoder", str(folder)]) == 0
    # Two by two positions an image, all of them kept.
    assert "wrote 96 features of 8 numbers" in capsys.readouterr().out
    of_run, of_tokenizer = (FeatureSet(tmp_path / f"of_{name}") for name in folders)
    assert torch.equal(of_run.read(0, 96), of_tokenizer.read(0, 96))
    assert open_features([of_run.folder, of_tokenizer.folder]).num_vectors == 192
    for option, message in [
        (["--layer", "projected"], "layer='projected': this tokenizer has no projection"),
        (["--size", "8"], "size=8: a tokenizer takes images of any size; leave it out"),
    ]:
        out = str(tmp_path / "out")
        command = ["codebook", "extract", out, *words, "--encoder", str(folders["run"]), *option]
        assert main(command) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "out: no folder is named"),
        (["OUT"], "path: no images are named; give --path IMAGES"),
        (["OUT", "--path", "nowhere"], "data.path='nowhere': does not exist"),
        (["OUT", "--path", "IN", "--encoder", "clip"], "encoder='clip': is no folder here"),
        (["OUT", "--path", "IN", "--encoder", "IN"], "has no config.json; name a folder"),
        (["OUT", "--path", "IN", "--encoder", "IN", "--patch", "4"], "patch=4: only --encoder"),
        (["OUT", "--path", "IN", "--layer", "4"], "layer='4': pixels have no such setting"),
        (["OUT", "--path", "IN", "--whiten", "no"], "whiten='no': expected 'zca' or 'pca'"),
        (["OUT", "--path", "IN", "--device", "abacus"], "device='abacus': "),
        (["OUT", "--path", "IN", "--pol", "4"], "--pol: unknown option; did you mean --pool?"),
    ],
)
def test_bad_commands(words, message, tmp_path, capsys):
    data = image_folder(tmp_path / "images", SIZES[:2])
    places = {"OUT": str(tmp_path / "out"), "IN": data.path}
    assert main(["codebook", "extract", *(places.get(word, word) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
