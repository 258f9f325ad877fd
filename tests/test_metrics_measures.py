"""Measures as the evaluator gets them: by name, with a reference file, over processes; LPIPS."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from measure_cases import DIM, pictures, small
from PIL import Image
from safetensors.torch import save_file

from vqkit.cli import main
from vqkit.config import DataConfig
from vqkit.data import load_images
from vqkit.metrics import features as features_module
from vqkit.metrics.features import FeatureMeasures
from vqkit.metrics.inception import InceptionV3
from vqkit.metrics.lpips import LPIPS, LpipsMeasure
from vqkit.metrics.measures import NAMES, make_measure, make_measures
from vqkit.metrics.reference import Reference
from vqkit.weights import FOLDER, KNOWN, sha256_of

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    """Twenty images, and their pixels."""
    path = tmp_path / "images"
    path.mkdir()
    images = pictures(20, seed=5)
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path / f"{index:02}.png")
    return path, images


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    for name in (FOLDER, *(f"{FOLDER}_{name.upper()}" for name in KNOWN), "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def quick(monkeypatch):
    """The small network in place of Inception; the files of weights that were asked for."""
    asked = []

    def load(path=None, *, resize="clean", device="cpu"):
        asked.append(path)
        return small(resize)

    monkeypatch.setattr(features_module, "load_features", load)
    return asked


def reference_of(folder, **options):
    images = load_images(DataConfig(source="folder", path=str(folder)))
    return Reference.of(images, small(), batch_size=3, **options)


def test_autocast_around_an_evaluation_changes_nothing():
    images = pictures(3)
    with torch.autocast("cpu", torch.bfloat16):
        found = small()(images)
    assert torch.equal(found, small()(images))


def test_measures_on_inception_share_one_network(quick):
    (one,) = make_measures(["kid", "fid"], weights={"inception": "file"})
    assert quick == ["file"]
    one.update(pictures(4), pictures(4, seed=1))
    assert [found.name for found in one.results()] == ["kid", "fid"]
    assert make_measure("fid", weights="other", resize="cvq").facts()["inception.resize"] == "cvq"
    assert quick == ["file", "other"]


def test_names_and_modes_are_checked_first(quick, tmp_path):
    with pytest.raises(
        ValueError,
        match="measure='fd': expected one of fid, kid, precision, recall, inception_score",
    ):
        make_measure("fd")
    with pytest.raises(ValueError, match="measures=fid,fid: name each once"):
        make_measures(["fid", "fid"])
    with pytest.raises(ValueError, match="resize='sharp': expected one of 'clean'"):
        make_measure("fid", resize="sharp")
    with pytest.raises(
        ValueError, match="only fid, kid, precision, recall compare with a reference"
    ):
        make_measure("inception_score", reference="file")
    with pytest.raises(ValueError, match="is no file; `vqkit reference` makes one"):
        make_measure("fid", reference=tmp_path)
    assert quick == []


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", NAMES)
def test_without_weights_the_file_is_named(name):
    known = {"lpips_vgg": "vgg16", "lpips_alex": "alexnet"}.get(name, "inception")
    with pytest.raises(ValueError) as error:
        make_measure(name)
    for fact in (KNOWN[known].file, KNOWN[known].url, ".cache/vqkit/weights", FOLDER):
        assert fact in str(error.value)
    assert "\n" not in str(error.value)


def test_a_device_that_torch_refuses_is_named(monkeypatch, tmp_path):
    class Placed(torch.nn.Module):
        def to(self, device):
            raise RuntimeError(f"no device {device}")

    file = tmp_path / "inception.pth"
    torch.save({}, file)
    monkeypatch.setattr(features_module, "InceptionV3", lambda tensors: Placed())
    with pytest.raises(ValueError, match="device='cuda:7': no device cuda:7"):
        features_module.load_features(file, device="cuda:7")


@pytest.mark.usefixtures("no_weights")
def test_the_whole_way_with_a_file_of_inception(tmp_path, monkeypatch):
    file = tmp_path / "pt_inception-2015-12-05-6726825d.safetensors"
    network = InceptionV3.random(seed=0)
    save_file(network.state_dict(), file)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    (measure,) = make_measures(["fid", "inception_score"], resize="adm")
    images, originals = pictures(3, size=16), pictures(3, seed=1, size=16)
    measure.update(images, originals)
    fid, score = measure.results()
    x, y = (measure.features(z).double() for z in (images, originals))
    assert x.shape == (3, 2048)
    a, b = ((z - z.mean(0)) / 2**0.5 for z in (x, y))
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum()
    expected -= 2 * torch.linalg.svdvals(a @ b.T).sum()
    assert fid.value == pytest.approx(float(expected), rel=1e-5)
    assert "3 images for 2,048 features: singular" in fid.note
    assert score.value >= 1
    assert measure.facts()["inception.sha256"] == sha256_of(file)


# Reference


@pytest.mark.parametrize("num_kept", [0, 7, 50])
def test_a_reference_is_what_the_originals_are(folder, tmp_path, num_kept):
    path, originals = folder
    reference = reference_of(path, num_kept=num_kept)
    (tmp_path / "set.safetensors").write_bytes(reference.to_bytes())
    read = Reference.read(tmp_path / "set.safetensors")
    assert read.sha256 == reference.sha256
    assert read.sample.shape == (min(num_kept, 20), DIM)
    images = pictures(20, seed=1)
    names = ["fid", "kid"] if num_kept >= 20 else ["fid"]
    against, plain = (
        FeatureMeasures(small(), names, reference=read),
        FeatureMeasures(small(), names),
    )
    for measures in (against, plain):
        measures.update(images, originals)
    for found, expected in zip(against.results(), plain.results(), strict=True):
        assert found.value == pytest.approx(expected.value, rel=1e-6)
    assert against.facts()["fid.reference"] == reference.images


def test_a_reference_of_other_images_needs_no_originals_features(folder):
    """Its images may have another size and number (VQGAN-LC's protocol)."""
    reference = reference_of(folder[0])
    measures = FeatureMeasures(small(), reference=reference)
    measures.update(pictures(9, size=12), pictures(9, size=12))
    fid, kid, score = measures.results()
    assert fid.num_images == kid.num_images == score.num_images == 9
    assert "9 images for 12 features" in fid.note
    assert "100 subsets of 9 from 9 kept" in kid.note
    assert measures.facts()["kid.reference_kept"] == 20


def test_a_mismatch_is_refused(folder):
    reference = reference_of(folder[0], num_kept=0)
    with pytest.raises(ValueError, match=r"reference\.resize=legacy: images are measured with adm"):
        FeatureMeasures(small("adm"), ["fid"], reference=reference)
    other = replace(reference, network="cd" * 32)
    with pytest.raises(ValueError, match=r"reference\.network=cdcdcdcdcdcd: .* abababababab"):
        FeatureMeasures(small(), ["fid"], reference=other)
    with pytest.raises(ValueError, match="holds no features for kid; make it with --kept"):
        FeatureMeasures(small(), ["kid"], reference=reference)


def test_damaged_and_foreign_files_are_refused(folder, tmp_path):
    whole = reference_of(folder[0]).to_bytes()
    path = tmp_path / "set.safetensors"
    save_file({"mean": torch.zeros(3)}, tmp_path / "other.safetensors")
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    contents = {
        "no statistics of a set": [b"", whole[:50], whole[:-7], b"x" * 300],
        "expected 'vqkit-reference-1'": [(tmp_path / "other.safetensors").read_bytes()],
        "does not fit its hash": [bytes(flipped), whole.replace(b"legacy", b"legacx")],
    }
    for words, bad in contents.items():
        for content in bad:
            path.write_bytes(content)
            with pytest.raises(ValueError, match=words) as error:
                Reference.read(path)
            assert "\n" not in str(error.value)
            assert str(path) in str(error.value)


def test_wrong_shapes_are_refused_before_anything_is_unpacked(folder, tmp_path, monkeypatch):
    def unpack(*_):
        raise AssertionError("D x D numbers are allocated")

    monkeypatch.setattr("vqkit.metrics.reference._unpack", unpack)
    reference = reference_of(folder[0])
    path, dim = tmp_path / "set.safetensors", len(reference.gaussian.mean)
    facts = {"format": "vqkit-reference-1", "num_images": "20", "seed": "0"}
    facts |= {"images": "a", "resize": "clean", "network": "b", "sha256": "c"}
    packed = torch.zeros(dim * (dim + 1) // 2, dtype=torch.float64)
    good = {"mean": reference.gaussian.mean, "covariance": packed, "sample": reference.sample}
    for name, bad in (
        ("mean", torch.zeros(64_000, dtype=torch.uint8)),  # 64 KB that ask for 32 GB
        ("mean", torch.tensor(0.0, dtype=torch.float64)),
        ("covariance", packed[:-1]),
        ("covariance", packed[None]),
        ("covariance", packed.float()),
        ("sample", torch.zeros(3, dim + 1)),
        ("sample", torch.zeros(dim)),
        ("sample", torch.zeros(3, dim, dtype=torch.float64)),
    ):
        save_file({**good, name: bad}, path, metadata=facts)
        with pytest.raises(ValueError, match=rf"no statistics of a set \({name}=") as error:
            Reference.read(path)
        assert "\n" not in str(error.value)


def test_the_command_writes_a_reference(folder, tmp_path, quick, capsys):
    path, _ = folder
    out = tmp_path / "made" / "set.safetensors"
    command = ["reference", str(path), "--out", str(out), "--resize", "legacy", "--device", "cpu"]
    assert main([*command, "--kept", "6"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("wrote 20 images, 6 features for KID, resize legacy")
    read, expected = Reference.read(out), reference_of(path, num_kept=6)
    assert read.images == expected.images
    torch.testing.assert_close(read.sample, expected.sample)
    torch.testing.assert_close(read.gaussian.mean, expected.gaussian.mean)
    assert list(out.parent.iterdir()) == [out]
    measure = make_measure("fid", reference=out, resize="legacy")
    assert measure.facts()["fid.reference"] == expected.images
    assert main(["reference", str(path)]) == 2
    assert "out: no file is named" in capsys.readouterr().err
    assert main(["reference", "--out", str(out)]) == 2
    assert "data.source: no images" in capsys.readouterr().err


def test_a_reference_of_features_of_another_length_is_refused(folder):
    reference = reference_of(folder[0])
    reference.check(small())
    other = replace(reference, gaussian=replace(reference.gaussian, mean=torch.zeros(DIM + 1)))
    with pytest.raises(ValueError, match=rf"reference\.dim={DIM + 1}: images are measured with"):
        other.check(small())


def test_one_image_makes_no_reference(tmp_path):
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="1 images: a reference needs at least 2"):
        reference_of(tmp_path)


# LPIPS


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_is_the_mean_over_images(net):
    lpips = LPIPS.random(net)
    measure = LpipsMeasure(lpips)
    x, y = pictures(5, size=32), pictures(5, seed=1, size=32)
    for part in (slice(0, 2), slice(2, 5)):
        measure.update(x[part], y[part])
    (found,) = measure.results()
    expected = lpips(x / 127.5 - 1, y / 127.5 - 1).mean()
    assert found.name == f"lpips_{net}"
    assert found.value == pytest.approx(float(expected), rel=1e-4)
    assert (found.num_images, found.note) == (5, "")
    (key,) = measure.facts()
    assert key == f"lpips_{net}.tensors"
    assert measure.facts() == LpipsMeasure(LPIPS.random(net)).facts()
    assert measure.facts() != LpipsMeasure(LPIPS.random(net, seed=1)).facts()


def test_images_too_small_for_lpips_are_counted():
    measure = LpipsMeasure(LPIPS.random("alex"))
    measure.update(pictures(3, size=28, channels=1), pictures(3, size=28, channels=1))
    (found,) = measure.results()
    assert (found.value, found.num_images) == (None, 0)
    assert found.note == "3 images below 31×31 pixels left out"
    with pytest.raises(ValueError, match="expects uint8"):
        measure.update(torch.zeros(1, 3, 32, 32), pictures(1, size=32))


# Several processes


def reduce_everything(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    images, originals = pictures(14, size=32), pictures(14, seed=1, size=32)
    lpips = LPIPS.random("alex")
    everything = []
    for chosen in (slice(None), slice(0, 9) if rank == 0 else slice(9, 14)):
        measures = [FeatureMeasures(small(), num_kept=10), LpipsMeasure(lpips)]
        for measure in measures:
            measure.update(images[chosen], originals[chosen])
        everything.append(measures)
    for whole, share in zip(*everything, strict=True):
        total = share.reduce()
        assert total.facts() == whole.facts()
        for found, expected in zip(total.results(), whole.results(), strict=True):
            # one tolerance for four measures: float32 features, float64 sums in another order
            assert found.value == pytest.approx(expected.value, rel=1e-4), found.name
            assert replace(found, value=0, spread=None) == replace(expected, value=0, spread=None)
        assert share.results()[0].num_images == (9 if rank == 0 else 5), "its own share stays"
    torch.distributed.destroy_process_group()


def test_shares_of_two_processes_add_up(tmp_path):
    torch.multiprocessing.spawn(reduce_everything, args=(tmp_path,), nprocs=2)
