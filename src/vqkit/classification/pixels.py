"""A small classifier of images by their pixels: it reads what generated images show.

Class consistency (`vqkit score --classifier`) is the share of samples that it reads as the class
that was asked for. It has to be trained on real images, and its accuracy on held-out real images
bounds what that share can say. Its features serve where no weights of Inception are at hand; a
distance between them is not FID, and is never called so.

Shapes: B images, C channels, H and W pixels, D features.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqkit.config import from_dict, require, to_dict
from vqkit.config.classification import PixelNetwork, PixelRun
from vqkit.config.forms import check_form
from vqkit.data import BatchStream, ImageSet, iterate_once, load_images, to_float
from vqkit.data.transforms import with_channels
from vqkit.metrics.features import Features
from vqkit.models import files
from vqkit.models.discriminator import SyncedBatchNorm
from vqkit.quantizers.ranks import rank, world_size
from vqkit.training.fit import FitResult, fit
from vqkit.training.settings_file import with_defaults

PRODUCT = "classifier"
"""Folder of the finished classifier within its run."""
_KIND = "pixels"
_FORM = {"network": dict, "num_classes": int, "label_names": [str], "data": str}
_PARTS = 4
"""Parts along each side whose means the hidden layer sees, whatever the size of the images."""


class PixelClassifier(nn.Module):
    """Convolutions with batch normalisation, means over 4 × 4 parts, one hidden layer."""

    def __init__(self, network: PixelNetwork, num_classes: int) -> None:
        super().__init__()
        require(num_classes >= 2, f"{num_classes} classes", "a classifier needs at least 2")
        self.network, self.num_classes = network, num_classes
        self.label_names: tuple[str, ...] = ()
        """Of the images it was trained on; empty if they had none."""
        self.data = ""
        """Fingerprint of those images."""
        width, layers = network.width, _block(network.channels, network.width, size=5, stride=2)
        for _ in range(1, network.halvings):
            wider = 2 * network.width
            layers += _block(width, wider, size=3, stride=2)
            width = wider
        layers += _block(width, width, size=3, stride=1)
        self.body = nn.Sequential(*layers)
        self.hidden = nn.Linear(width * _PARTS**2, network.features)
        self.last = nn.Linear(network.features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D), at least 0, of images (B, C, H, W) in [-1, 1]."""
        parts = F.adaptive_avg_pool2d(self.body(images), _PARTS)
        return F.relu(self.hidden(parts.flatten(1)))

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (B, classes) of features."""
        out: Tensor = self.last(features)
        return out

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """Return the class (B,) int64 that each image uint8 (B, 1 or 3, H, W) shows."""
        pixels = to_float(with_channels(images, self.network.channels)).to(self.last.weight.device)
        return self.logits(self(pixels)).argmax(1)

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        values = {
            "classifier": _KIND,
            "network": asdict(self.network),
            "num_classes": self.num_classes,
            "label_names": list(self.label_names),
            "data": self.data,
        }
        files.write_model(folder, values, self.state_dict())

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open a finished classifier, or that of a finished run; another one is a `ValueError`."""
        place = _place(folder)
        try:
            values = files.read_config(place)
            require(values.get("classifier") == _KIND, "classifier", f"expected {_KIND!r}")
            check_form(values, _FORM, files.CONFIG, "copy it again")
            model = cls(from_dict(PixelNetwork, values["network"]), values["num_classes"])
            model.label_names, model.data = tuple(values["label_names"]), values["data"]
        except ValueError as error:
            problem = f"is no classifier of pixels ({error}); `vqkit classify pixels` trains one"
            raise ValueError(f"classifier={folder}: {problem}") from error
        weights = files.read_weights(place, values)
        files.check_tensors(model.state_dict(), weights, str(place / files.WEIGHTS))
        model.load_state_dict(weights)
        return model.eval()


class ClassifierFeatures(Features):
    """The features of a classifier, where measures of image sets expect those of Inception."""

    name = "classifier"
    at_once = 256

    def __init__(self, classifier: PixelClassifier, folder: str | Path) -> None:
        """`folder` is where it was loaded from."""
        super().__init__(
            classifier,
            sha256=str(files.read_config(_place(folder))["weights"]["sha256"]),
            dim=classifier.network.features,
            num_logits=classifier.num_classes,
            device=classifier.last.weight.device,
        )
        self.resize = "none"
        self.classifier = classifier

    def prepared(self, images: Tensor) -> Tensor:
        """Return images as floats, at their own size."""
        return to_float(with_channels(images, self.classifier.network.channels))


class _PixelTask:
    """What `fit` trains."""

    def __init__(self, run: PixelRun) -> None:
        self.run = run
        self.images = load_images(run.data)
        self.held_out = None if run.test_data is None else load_images(run.test_data)
        self.labels = _labels(self.images, "data")
        known = int(max(one.max() for one in self.labels.values())) + 1
        names = self.images.label_names or ()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            model = PixelClassifier(run.network, max(known, len(names)))
        model.label_names, model.data = names, self.images.fingerprint()
        self.model: nn.Module = model

    @cached_property
    def stream(self) -> BatchStream:
        """Batches, once it is known how many processes there are."""
        return BatchStream(
            self.images,
            self.run.optim.batch_size,
            seed=self.run.seed,
            rank=rank(),
            world_size=world_size(),
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return images uint8 and their classes."""
        batch = self.stream.batch(step)
        return batch.images, torch.stack([self.labels[key] for key in batch.keys])

    def losses(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return the cross-entropy in nats and the share read right."""
        device = next(self.model.parameters()).device
        images, labels = to_float(batch[0]).to(device), batch[1].to(device)
        images = _shifted(images, self.run.shift, generator)
        assert isinstance(self.model, PixelClassifier)
        logits = self.model.logits(self.model(images)).float()
        right = (logits.argmax(1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits, labels), "accuracy": right}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return the accuracy on the held-out images."""
        if self.held_out is None:
            return {}
        assert isinstance(model, PixelClassifier)
        return {"accuracy": accuracy(model, self.held_out)}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the classifier."""
        assert isinstance(model, PixelClassifier)
        model.save(folder)

    def facts(self) -> dict[str, Any]:
        """Return the fingerprint of the images."""
        return {"data": self.images.fingerprint()}


def train_pixel_classifier(
    run: PixelRun, out: str | Path, *, resume: bool = True, progress: bool = True
) -> FitResult:
    """Train a classifier into the folder `out`, or go on with it; `<out>/classifier` holds it.

    Raises:
        ValueError: images without labels, or what `vqkit.training.fit.fit` refuses.
    """
    settings = {name: value for name, value in to_dict(run).items() if name not in _OF_FIT}
    return fit(
        _PixelTask(run),
        name=run.name,
        folder=out,
        product=PRODUCT,
        settings={"pixel_classifier": settings},
        optim=run.optim,
        log=run.log,
        seed=run.seed,
        completed=_completed,
        resume=resume,
        progress=progress,
    )


_OF_FIT = ("name", "optim", "log", "seed")


def _completed(saved: dict[str, Any]) -> dict[str, Any]:
    """Add to saved settings what an older version did not know."""
    settings = with_defaults({**saved, **saved.get("pixel_classifier", {})}, PixelRun)
    own = {name: value for name, value in settings.items() if name not in saved}
    return {**saved, "pixel_classifier": own}


def accuracy(classifier: PixelClassifier, images: ImageSet, batch_size: int = 256) -> float:
    """Return the share of images of a labelled set that the classifier reads right."""
    labels, right = _labels(images, "test_data"), []
    for batch in iterate_once(images, batch_size):
        asked = torch.stack([labels[key] for key in batch.keys])
        right.append(classifier.read(batch.images).cpu() == asked)
    return float(torch.cat(right).float().mean())


def _labels(images: ImageSet, setting: str) -> dict[str, Tensor]:
    """Return the class of every image by its name."""
    labels = images.labels
    require(labels is not None, setting, "these images have no labels; a classifier needs them")
    assert labels is not None  # for the type checker
    require(int(labels.min()) >= 0, setting, "some images have no label (-1); leave them out")
    return {images.name(i): label for i, label in enumerate(labels)}


def _block(channels: int, width: int, *, size: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, size, stride=stride, padding=size // 2, bias=False),
        SyncedBatchNorm(width),
        nn.ReLU(),
    ]


def _shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move every image by up to `most` pixels, repeating its edges."""
    if not most:
        return images
    height, width = images.shape[-2:]
    padded = F.pad(images, (most, most, most, most), mode="replicate")
    corners = torch.randint(2 * most + 1, (len(images), 2), generator=generator)
    rows, columns = corners[:, :1] + torch.arange(height), corners[:, 1:] + torch.arange(width)
    number = torch.arange(len(images))[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def _place(folder: str | Path) -> Path:
    """Return the folder of the classifier itself, given that or the folder of its run."""
    given = Path(folder).expanduser()
    return given / PRODUCT if (given / PRODUCT / files.CONFIG).is_file() else given
