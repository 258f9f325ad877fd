"""A classifier of token maps: a network, how maps are normalised for it, and what it was made for.

`config.json` and `model.safetensors` hold all of it but the tokenizer, whose codes it is given.

Shapes: B maps, D channels, h x w positions, K classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import Tensor, nn

from vqkit.classification.network import Probe, TokenViT
from vqkit.classification.pretrained import load_pretrained
from vqkit.config import from_dict, require
from vqkit.config.classification import Classifier, ProbeClassifier, Source, ViTClassifier
from vqkit.models import files

PRODUCT: Final = "classifier"
"""Folder of the finished classifier within its run."""
_KIND: Final = "tokens"


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a classifier reads, and what it tells."""

    source: Source
    channels: int
    """D."""
    grid: tuple[int, int]
    """(h, w)."""
    label_names: tuple[str, ...]
    """The K classes."""
    tokenizer: str
    """`tokenizer_hash` of the tokenizer whose tokens it was trained on."""
    tokens: str
    """Fingerprint of the token set that it was trained on."""

    def __post_init__(self) -> None:
        require(self.channels > 0, f"channels={self.channels}", "a map has at least one")
        require(min(self.grid) > 0, f"grid={self.grid}", "a map has at least one position")

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.label_names)


class TokenClassifier(nn.Module):
    """Classes of the maps that a tokenizer's codes (or latents) make."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: Classifier, card: Card, *, backbone: TokenClassifier | None = None
    ) -> None:
        """Build it with fresh weights; `backbone` is what a probe looks through."""
        super().__init__()
        self.config, self.card = config, card
        self.register_buffer("mean", torch.zeros(card.channels))
        self.register_buffer("std", torch.ones(card.channels))
        self.backbone_config: ViTClassifier | None = None
        self.net: TokenViT | Probe
        if isinstance(config, ViTClassifier):
            self.net = TokenViT(config, card.channels, card.grid, card.num_classes)
            return
        inner = None
        if backbone is not None:
            assert isinstance(backbone.net, TokenViT)  # `open_backbone` has seen to it
            assert isinstance(backbone.config, ViTClassifier)
            inner, self.backbone_config = backbone.net, backbone.config
            self.mean.copy_(backbone.mean)
            self.std.copy_(backbone.std)
        self.net = Probe(config, card.channels, card.grid, card.num_classes, inner)

    def load_pretrained(self, place: str) -> None:
        """Begin with MAE's weights (`pretrained.load_pretrained`)."""
        assert isinstance(self.net, TokenViT)  # only its settings name weights
        load_pretrained(self.net, place, self.card.grid)

    def normalised(self, maps: Tensor) -> Tensor:
        """Return maps (B, D, h, w) with the training set's mean taken off, by its deviation."""
        return (maps - self.mean[:, None, None]) / self.std[:, None, None]

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits (B, K) of normalised maps."""
        out: Tensor = self.net(maps)
        return out

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        inner = self.backbone_config
        values = {
            "classifier": _KIND,
            "model": asdict(self.config),
            "backbone": None if inner is None else asdict(inner),
            "card": asdict(self.card),
        }
        files.write_model(folder, values, self.state_dict())

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open a finished classifier, or that of a finished run; another one is a `ValueError`."""
        place = Path(folder).expanduser()
        if (place / PRODUCT / files.CONFIG).is_file():
            place = place / PRODUCT
        values = files.read_config(place)
        require(
            values.get("classifier") == _KIND,
            f"classifier={str(folder)!r}",
            "is no classifier of tokens; vqkit classify train makes one",
        )
        weights = files.read_weights(place, values)
        try:
            card: Card = from_dict(Card, values["card"])
            config = _model_of(values["model"])
            inner = values["backbone"]
            backbone = None if inner is None else cls(_model_of(inner), _wider(card, weights))
            model = cls(config, card, backbone=backbone)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{place / files.CONFIG}: {error} is wrong or missing") from error
        files.check_tensors(model.state_dict(), weights, str(place / files.WEIGHTS))
        model.load_state_dict(weights)
        return model.eval()


def open_backbone(folder: str | Path, card: Card) -> TokenClassifier:
    """Load the transformer that a probe looks through; one for other maps is a `ValueError`."""
    model = TokenClassifier.load(folder)
    where = f"model.backbone={str(folder)!r}"
    require(isinstance(model.net, TokenViT), where, "is no vision transformer")
    same = all(
        getattr(model.card, name) == getattr(card, name) for name in ("source", "grid", "tokenizer")
    )
    require(same, where, "was trained on other maps; it needs the same tokenizer, grid and source")
    return model


def _model_of(values: dict[str, Any]) -> Classifier:
    kind = ProbeClassifier if values["kind"] == "probe" else ViTClassifier
    model: Classifier = from_dict(kind, values, "model.")
    return model


def _wider(card: Card, weights: dict[str, Tensor]) -> Card:
    """Return the card of a backbone, which may tell other classes than the probe on it."""
    count = len(weights["net.backbone.head.bias"])
    return replace(card, label_names=tuple(map(str, range(count))))
