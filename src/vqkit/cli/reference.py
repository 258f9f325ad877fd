"""`vqkit reference`: statistics of an image set in a file, for FID and its kind against it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vqkit.cli.analyze_parts import progress_of
from vqkit.cli.console import plain_warnings, say, tell
from vqkit.cli.options import Options, Values, one_name
from vqkit.cli.runs import place_of, test_images
from vqkit.config import DataConfig

if TYPE_CHECKING:
    from vqkit.data import ImageSet
    from vqkit.metrics.features import Features


def run(words: Sequence[str]) -> None:
    """Measure the images of a set with Inception and write what FID and its kind need of them.

    DATA is a folder of images or a .parquet file; or give --data.source. The file names the images,
    the network and the resize mode by their hashes, and another network or mode refuses it. With
    --classifier the features are those of a classifier of your own (`vqkit classify pixels`), for
    `vqkit score` where no weights of Inception are at hand. With --per_class every class has a file
    of its own, in the folder --out.
    """
    name, rest = one_name(words, "folder of images", "a reference is made of one set")
    options = Options("reference DATA", run.__doc__)
    options.add("out", str, "file to write, .safetensors")
    options.add("resize", str, "clean (default), legacy, adm or cvq; docs/metrics.md")
    options.add("kept", int, "features kept for KID, precision, recall; default 10000, or 0")
    options.add("seed", int, "of the choice of those; default 0")
    options.add("weights", str, "file of Inception; default where vqkit.weights finds it")
    options.add("classifier", str, "features of this classifier of pixels, not of Inception")
    options.add_flag("per_class", "a file for every class, for FID per class")
    options.add("batch_size", int, "images of one size in a batch; default 32")
    options.add("device", str, "cpu, or cuda for a GPU; default the GPU if there is one")
    options.add_fields(DataConfig, "data.")
    given = options.parse(rest)
    if "out" not in given:
        raise ValueError("out: no file is named; vqkit reference DATA --out FILE.safetensors")
    changes = given.get("data", {})
    if name is not None:
        source = "parquet" if name.endswith(".parquet") else "folder"
        changes = {"source": source, **changes, "path": name}
    data = test_images(None, changes)
    from vqkit.data import load_images

    features = _features(given)
    images = load_images(data)
    tell(f"measuring {len(images):,} images of {place_of(data)}")
    with plain_warnings():
        if given["per_class"]:
            _write_classes(images, features, given)
        else:
            _write(images, features, given)


def _features(given: Values) -> Features:
    """Load the network that is asked for."""
    import torch

    from vqkit.metrics.features import load_features

    device = given.get("device", "cuda" if torch.cuda.is_available() else "cpu")
    if "classifier" not in given:
        resize = given.get("resize", "clean")
        return load_features(given.get("weights"), resize=resize, device=device)
    for name in ("resize", "weights"):
        if name in given:
            raise ValueError(f"{name}={given[name]}: is of Inception; leave out --classifier")
    return classifier_features(given["classifier"], device)


def classifier_features(folder: str, device: str) -> Features:
    """Load a classifier of pixels as a network of features."""
    from vqkit.classification.pixels import ClassifierFeatures, PixelClassifier

    try:
        return ClassifierFeatures(PixelClassifier.load(folder).to(device), folder)
    except (RuntimeError, AssertionError) as error:  # torch's way to refuse a device
        raise ValueError(f"device={device!r}: {error}") from error


def _write(images: ImageSet, features: Features, given: Values) -> None:
    from vqkit.metrics.reference import Reference
    from vqkit.models.files import write_beside

    reference = Reference.of(
        images,
        features,
        num_kept=given.get("kept", 10_000),
        seed=given.get("seed", 0),
        batch_size=given.get("batch_size", 32),
        progress=progress_of("reference"),
    )
    content = reference.to_bytes()
    path = write_beside(Path(given["out"]).expanduser(), content)
    say(
        f"wrote {reference.gaussian.count:,} images, {len(reference.sample):,} features for KID, "
        f"resize {features.resize}, {len(content) / 2**20:.1f} MiB → {path}"
    )


def _write_classes(images: ImageSet, features: Features, given: Values) -> None:
    from vqkit.metrics.class_references import class_references, file_of
    from vqkit.models.files import write_beside

    for name in ("kept", "seed"):
        if name in given:
            raise ValueError(f"{name}={given[name]}: files of classes keep no features")
    out, count = Path(given["out"]).expanduser(), 0
    size = given.get("batch_size", 32)
    found = class_references(images, features, batch_size=size, progress=progress_of("reference"))
    for label, reference in found:
        write_beside(file_of(out, label), reference.to_bytes())
        count += 1
    say(f"wrote statistics of {count:,} classes, resize {features.resize} → {out}")
