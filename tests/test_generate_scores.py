"""Scores of generated images: precision and recall, distances by class, class consistency."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from measure_cases import DIM, pictures, small
from PIL import Image
from torch.nn import BatchNorm2d

from vqkit.classification import pixels
from vqkit.classification.pixels import PixelClassifier
from vqkit.cli import main
from vqkit.cli.score import _check_names
from vqkit.config import DataConfig, LogConfig, OptimConfig
from vqkit.config.classification import PixelNetwork, PixelRun
from vqkit.data import load_images
from vqkit.evaluation.sample_distances import Distances
from vqkit.evaluation.samples import score_samples
from vqkit.generation.provenance import Line, Origin
from vqkit.metrics import features as features_module
from vqkit.metrics import precision_recall as module
from vqkit.metrics.class_references import ClassReferences, class_references, file_of
from vqkit.metrics.features import FeatureMeasures
from vqkit.metrics.frechet import Moments, frechet_distance
from vqkit.metrics.precision_recall import precision_recall
from vqkit.metrics.reference import Reference
from vqkit.models.discriminator import SyncedBatchNorm


def naive_share(rows, centres, k):
    """Equation 2 of the paper, point by point."""
    inside = 0
    for row in rows:
        for i, centre in enumerate(centres):
            others = [float((centre - o).norm()) for j, o in enumerate(centres) if j != i]
            inside_this = float((row - centre).norm()) <= sorted(others)[k - 1]
            if inside_this:
                inside += 1
                break
    return inside / len(rows)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_the_paper(monkeypatch, generator, k):
    monkeypatch.setattr(module, "_BLOCK", 7)  # several blocks
    real = torch.randn(23, 3, generator=generator, dtype=torch.float64)
    made = 1.5 * torch.randn(17, 3, generator=generator, dtype=torch.float64) + 0.7
    precision, recall = precision_recall(real, made, neighbours=k)
    assert precision == naive_share(made, real, k)
    assert recall == naive_share(real, made, k)
    assert 0 < precision < 1
    assert 0 < recall < 1


def test_of_a_set_and_itself_all_is_inside(generator):
    rows = torch.randn(40, 5, generator=generator) + 1e3  # far from zero: distances stay
    assert precision_recall(rows, rows) == (1.0, 1.0)
    assert precision_recall(rows, rows + 100) == (0.0, 0.0)


def test_one_mode_alone_is_precise_and_recalls_little(generator):
    spread = torch.randn(200, 2, generator=generator)
    precision, recall = precision_recall(spread, spread[:20] * 0.01)
    assert precision == 1.0
    assert recall < 0.1


@pytest.mark.parametrize(
    ("real", "made", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(9, 2), "need at least 4 each"),
        (torch.zeros(9, 2), torch.zeros(9, 3), "features of 2 and 3"),
        (torch.full((9, 2), torch.nan), torch.zeros(9, 2), "NaN or infinity"),
    ],
)
def test_bad_features_are_refused(real, made, message):
    with pytest.raises(ValueError, match=message):
        precision_recall(real, made)


def test_the_measure_is_that_of_the_features(tmp_path):
    images, originals = pictures(30, seed=1), pictures(30, seed=2)
    measure = FeatureMeasures(small(), ["recall", "fid", "precision"])
    for x, y in zip(images.split(8), originals.split(8), strict=True):
        measure.update(x, y)
    found = {one.name: one for one in measure.results()}
    expected = precision_recall(small()(originals), small()(images))
    assert (found["precision"].value, found["recall"].value) == expected
    assert list(found) == ["recall", "fid", "precision"]
    assert found["precision"].note == "k = 3, 30 images against 30"
    assert measure.facts()["recall.neighbours"] == 3
    few = FeatureMeasures(small(), ["precision"])
    few.update(images[:3], originals[:3])
    assert few.results()[0].value is None


class Brightness:
    """Reads an image as the third of the range that its mean lies in."""

    num_classes = 3

    def read(self, images):
        return (images.float().mean((1, 2, 3)) / 85.01).long()


def bright(count, label, seed):
    """Noise whose mean is that of class `label`."""
    noise = pictures(count, seed=seed).float() / 255
    return (noise * 40 + label * 85 + 22).to(torch.uint8)


def write(folder, images, name):
    (folder / name).mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name / f"{index:03}.png")


@pytest.fixture
def samples(tmp_path):
    """Three classes of images; two of class 1 show class 2."""
    for label, shown in enumerate([[0] * 9, [1] * 5 + [2] * 2, [2] * 8]):
        images = [bright(1, one, seed=10 * label + i)[0] for i, one in enumerate(shown)]
        write(tmp_path / "samples/images", images, str(label))
    return tmp_path / "samples"


def loaded(folder):
    images = load_images(DataConfig(source="folder", path=str(folder)))
    return images, images.labels.tolist()


def test_scores_are_those_of_their_definitions(samples, tmp_path):
    images, labels = loaded(samples / "images")
    for label in range(3):
        write(tmp_path / "real", bright(12, label, seed=50 + label), str(label))
    real, _ = loaded(tmp_path / "real")
    features = small()
    by_class = dict(class_references(real, features, batch_size=5))
    whole = Reference.of(real, features)
    distances = [
        Distances(features=features, reference=whole, names=("fid", "precision")),
        Distances(features=features, by_class={0: by_class[0], 2: by_class[2]}),
    ]
    scores = score_samples(
        images, labels, distances=distances, classifier=Brightness(), batch_size=4
    )
    assert scores.value("class_consistency") == (9 + 5 + 8) / 24
    assert [one.read_as for one in scores.classes] == [(9, 0, 0), (0, 5, 2), (0, 0, 8)]
    expected = []
    for label in (0, 2):
        moments = Moments(DIM)
        rows = [images.image(i) for i in range(24) if labels[i] == label]
        moments.update(features(torch.stack(rows)))
        expected.append(frechet_distance(moments.gaussian(), by_class[label].gaussian))
    assert scores.value("gfid_class_mean") == pytest.approx(sum(expected) / 2, rel=1e-6)
    assert scores.classes[1].distance is None
    assert scores.classes[2].distance == pytest.approx(expected[1], rel=1e-6)
    every = torch.stack([images.image(i) for i in range(24)])
    measure = FeatureMeasures(features, ["fid"], reference=whole)
    measure.update(every, every)
    assert scores.value("gfid") == pytest.approx(measure.results()[0].value, rel=1e-6)
    assert 0 <= scores.value("precision") <= 1
    with pytest.raises(ValueError, match="known are gfid, precision, gfid_class_mean"):
        scores.value("fid")


def test_features_of_a_classifier_are_never_called_fid(samples):
    images, labels = loaded(samples / "images")
    features = small()
    features.name = "classifier"
    reference = Reference.of(images, features)
    (given,) = [Distances(features=features, reference=reference)]
    scores = score_samples(images, labels, distances=[given])
    names = [one.name for one in scores.found]
    assert names[0] == "classifier_distance"
    assert names[2:] == ["classifier_precision", "classifier_recall"]
    assert not [name for name in names if "fid" in name]
    assert scores.facts[0]["classifier.sha256"] == "ab" * 32
    assert scores.facts[0]["classifier.fid.reference"] == images.fingerprint()
    assert scores.value("classifier_distance") == pytest.approx(0, abs=1e-6)


def test_scores_that_need_classes_ask_for_them(samples):
    images, labels = loaded(samples / "images")
    with pytest.raises(ValueError, match="have no classes"):
        score_samples(images, None, classifier=Brightness())
    with pytest.raises(ValueError, match="classifier knows classes 0 to 2"):
        score_samples(images, [label + 1 for label in labels], classifier=Brightness())


def test_statistics_of_classes_come_back_from_their_folder(samples, tmp_path):
    images, _ = loaded(samples / "images")
    for label, reference in class_references(images, small()):
        path = file_of(tmp_path / "stats", label)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(reference.to_bytes())
    found = ClassReferences(tmp_path / "stats")
    assert sorted(found) == [0, 1, 2]
    assert found[1].gaussian.count == 7
    assert found[1].images.endswith("[class 1]")
    with pytest.raises(ValueError, match="holds no statistics of classes"):
        ClassReferences(tmp_path / "none")


def test_the_command_takes_the_network_of_each_reference(samples, tmp_path, monkeypatch, capsys):
    images, _ = loaded(samples / "images")
    files = [str(tmp_path / f"{mode}.safetensors") for mode in ("legacy", "adm")]
    asked = []
    for file, mode in zip(files, ("legacy", "adm"), strict=True):
        Path(file).write_bytes(Reference.of(images, small(mode)).to_bytes())

    def load(path=None, *, resize, device):
        asked.append(resize)
        return small(resize)

    monkeypatch.setattr(features_module, "load_features", load)
    words = ["score", str(samples), "--device", "cpu"]
    assert main([*words, "--reference", *files, "--json", str(tmp_path / "s.json")]) == 0
    assert asked == ["legacy", "adm"]
    scores = json.loads((tmp_path / "s.json").read_text())
    names = [one["name"] for one in scores["found"]]
    assert names == ["gfid", "gkid", "precision", "recall"] * 2
    assert scores["found"][0]["value"] == pytest.approx(0, abs=1e-6)
    assert scores["found"][2]["value"] == 1
    assert [one["inception.resize"] for one in scores["facts"]] == asked
    shown = capsys.readouterr().out
    assert f"gfid: reference {images.fingerprint()[:12]}, 24 images; 24 images: biased" in shown
    (tmp_path / "no.safetensors").write_bytes(b"torn")
    assert main([*words, "--reference", str(tmp_path / "no.safetensors")]) == 2
    assert "no statistics of a set" in capsys.readouterr().err
    (samples / "images/0").rename(samples / "images/zero")
    assert main([*words, "--reference", *files]) == 2
    assert "folder 'zero' names no class" in capsys.readouterr().err


def test_names_of_classes_must_agree():
    origin = Origin(generator="", kind="gpt", tokenizer="", seed=0, sampling={})
    line = Line(file="", number=0, label=1, label_name="cat", sha256="", origin=origin)
    other = Brightness()
    for names in ((), ("dog", "cat")):
        other.label_names = names
        _check_names([line], other)
    other.label_names = ("cat", "dog")
    with pytest.raises(ValueError, match="calls class 1 'dog', the samples 'cat'"):
        _check_names([line], other)


# The commands, with a classifier of pixels.

TRAINING = ["--network.width", "8", "--network.halvings", "1", "--optim.num_steps", "60"]
TRAINING += ["--optim.batch_size", "12", "--shift", "0"]
TRAINING += ["--log.checkpoint_every", "60"]


def test_a_classifier_of_pixels_counts_alike_on_all_processes():
    """Statistics of a process's own images would set the processes apart, which ends a run."""
    norms = [m for m in PixelClassifier(PixelNetwork(), 3).modules() if isinstance(m, BatchNorm2d)]
    assert len(norms) == 3
    assert all(isinstance(norm, SyncedBatchNorm) for norm in norms)


def test_images_without_a_class_among_others_teach_no_classifier(tmp_path):
    for label in range(2):
        write(tmp_path, bright(1, label, seed=label), str(label))
    images = load_images(DataConfig(source="folder", path=str(tmp_path)))
    images.labels[0] = -1
    with pytest.raises(ValueError, match=r"^data: some images have no label"):
        pixels._labels(images, "data")


def test_a_classifier_of_pixels_of_an_older_version_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for label in range(2):
        write(tmp_path / "real", bright(4, label, seed=label), str(label))
    run = PixelRun(
        name="tiny",
        data=DataConfig(source="folder", path=str(tmp_path / "real"), channels=1),
        network=PixelNetwork(width=2, features=3),
        optim=OptimConfig(num_steps=1, batch_size=4),
        log=LogConfig(every=1),
    )
    pixels.train_pixel_classifier(run, tmp_path / "run", progress=False)
    path = tmp_path / "run" / "config.json"
    saved = json.loads(path.read_text())
    del saved["pixel_classifier"]["shift"], saved["optim"]["precision"]
    path.write_text(json.dumps(saved))
    pixels.train_pixel_classifier(run, tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"pixel_classifier\.shift: 2 there, 1 here"):
        pixels.train_pixel_classifier(replace(run, shift=1), tmp_path / "run", progress=False)


@pytest.mark.slow
def test_the_whole_way_with_a_classifier_of_pixels(samples, tmp_path, capsys):
    for split in ("train", "test"):
        for label in range(3):
            images = bright(12, label, seed=80 + 3 * label + len(split))
            write(tmp_path / "real" / split, images, str(label))
    real, clf = str(tmp_path / "real"), str(tmp_path / "clf")
    images = ["--data.source", "folder", "--data.path", real]
    assert main(["classify", "pixels", "digits", *images, "--out", clf, *TRAINING]) == 0
    assert "100.00 % of held-out images read right" in capsys.readouterr().out
    network = ["--classifier", clf, "--data.split", "test"]
    whole, stats = str(tmp_path / "real.safetensors"), str(tmp_path / "stats")
    assert main(["reference", *images, *network, "--out", whole]) == 0
    assert main(["reference", *images, *network, "--out", stats, "--per_class"]) == 0
    words = ["score", str(samples), "--reference", whole, "--class_references", stats]
    assert main([*words, "--classifier", clf]) == 0
    shown = capsys.readouterr().out
    scores = json.loads((samples / "scores.json").read_text())
    found = {one["name"]: one["value"] for one in scores["found"]}
    assert found["class_consistency"] == pytest.approx(22 / 24)
    assert found["classifier_distance_class_mean"] > 0
    assert "22 of 24 read as asked; least for class 1, 0.714" in shown
    assert main(words) == 2
    assert "give that one as --classifier" in capsys.readouterr().err
    assert main(["score", str(samples)]) == 2
    assert main(["score", str(samples), "--classifier", real]) == 2
    assert "vqkit classify pixels" in capsys.readouterr().err
