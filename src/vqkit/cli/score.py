"""`vqkit score`: generated images against real ones, and read by a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqkit.cli.analyze_parts import progress_of
from vqkit.cli.console import plain_warnings, say, tell
from vqkit.cli.options import Options, Values, one_name
from vqkit.cli.reference import classifier_features
from vqkit.config import DataConfig

if TYPE_CHECKING:
    from vqkit.data import ImageSet
    from vqkit.evaluation.sample_distances import Distances
    from vqkit.generation.provenance import Line
    from vqkit.metrics.features import Features
    from vqkit.metrics.reference import Reference


def run(words: Sequence[str]) -> None:
    """Measure generated images.

    SAMPLES is a folder that `vqkit generate` wrote, or any folder of images with a folder for each
    class. Every --reference (of `vqkit reference`) gives FID, KID, precision and recall against its
    images; one made with a classifier gives distances between that classifier's features, which
    carry its name and are no FID. --class_references gives the mean over classes of FID per class.
    --classifier gives class consistency: the share of samples that it reads as the class asked for.
    The table is printed; all numbers go to `scores.json` in SAMPLES.
    """
    name, rest = one_name(words, "folder of samples", "score one at a time")
    options = Options("score SAMPLES", run.__doc__)
    options.add("reference", str, "files of `vqkit reference` to compare with", count="+")
    options.add("class_references", str, "folder of `vqkit reference --per_class`")
    options.add("classifier", str, "run of `vqkit classify pixels`, trained on real images")
    options.add("json", str, "file for the numbers; default scores.json in SAMPLES")
    options.add("batch_size", int, "images measured together; default 64")
    options.add("device", str, "cpu, or cuda for a GPU; default the GPU if there is one")
    given = options.parse(rest)
    if name is None:
        raise ValueError("samples: none are named; give a folder of vqkit generate")
    if not {"reference", "class_references", "classifier"} & set(given):
        raise ValueError(
            "score: nothing to measure with; give --reference, --class_references or --classifier"
        )
    from vqkit.evaluation.samples import score_samples
    from vqkit.generation.provenance import read_lines

    folder = Path(name).expanduser()
    images, labels = _samples(folder)
    networks = _Networks(given)
    lines = read_lines(folder)
    _check_names(lines, networks.classifier)
    with plain_warnings():
        tell(f"measuring {len(images):,} images of {folder}")
        scores = score_samples(
            images,
            labels,
            distances=networks.distances(),
            classifier=networks.classifier,
            name=folder.name,
            batch_size=given.get("batch_size", 64),
            origin=asdict(lines[0].origin) if lines else {},
            progress=progress_of("score"),
        )
    path = Path(given.get("json", folder / "scores.json")).expanduser()
    scores.save(path)
    say(scores.table())
    say(f"wrote {path}")


class _Networks:
    """The networks that are asked for, each loaded once."""

    def __init__(self, given: Values) -> None:
        import torch

        self._given = given
        self._device = given.get("device", "cuda" if torch.cuda.is_available() else "cpu")
        self._inception: dict[str, Features] = {}
        self._own: Features | None = None
        if "classifier" in given:
            self._own = classifier_features(given["classifier"], self._device)

    @property
    def classifier(self) -> Any:
        """The classifier of pixels, if there is one."""
        return None if self._own is None else self._own.network

    def distances(self) -> list[Distances]:
        """Return what to compare with, by the network that each reference was made with."""
        from vqkit.evaluation.sample_distances import Distances
        from vqkit.metrics.class_references import ClassReferences
        from vqkit.metrics.reference import Reference

        found = []
        for file in self._given.get("reference", []):
            reference = Reference.read(Path(file).expanduser())
            found.append(Distances(features=self._of(reference), reference=reference))
        if "class_references" in self._given:
            by_class = ClassReferences(Path(self._given["class_references"]).expanduser())
            features = self._of(next(iter(by_class.values())))
            found.append(Distances(features=features, by_class=by_class))
        return found

    def _of(self, reference: Reference) -> Features:
        from vqkit.metrics.features import load_features

        if self._own is not None and self._own.sha256 == reference.network:
            return self._own
        mode: Any = reference.resize
        if mode == "none":
            raise ValueError(
                f"reference.network={reference.network[:12]}: was made with a classifier; give "
                "that one as --classifier"
            )
        if mode not in self._inception:
            self._inception[mode] = load_features(resize=mode, device=self._device)
        return self._inception[mode]


def _samples(folder: Path) -> tuple[ImageSet, list[int] | None]:
    """Return the images, and the class of each if they lie in folders named by numbers."""
    from vqkit.data import load_images
    from vqkit.generation.images import IMAGES

    inside = folder / IMAGES
    place = inside if inside.is_dir() else folder
    images = load_images(DataConfig(source="folder", path=str(place)))
    names = images.label_names
    if images.labels is None or names is None:
        return images, None
    for name in names:
        if not name.isdecimal():
            raise ValueError(
                f"samples: folder {name!r} names no class; folders of classes are named by numbers"
            )
    return images, [int(names[label]) for label in images.labels.tolist()]


def _check_names(lines: Sequence[Line], classifier: Any) -> None:
    """Refuse a classifier that calls the classes of samples otherwise than their generator did."""
    names = () if classifier is None else classifier.label_names
    for line in lines:
        if not names or line.label is None or line.label_name == str(line.label):
            continue  # one of them has no names
        if line.label >= len(names) or names[line.label] != line.label_name:
            other = names[line.label] if line.label < len(names) else "nothing"
            raise ValueError(
                f"classifier: calls class {line.label} {other!r}, the samples {line.label_name!r}; "
                "give a classifier of the same classes in the same order"
            )
