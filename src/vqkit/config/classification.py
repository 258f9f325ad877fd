"""Settings of classifiers, of token maps and of pixels, and of their training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vqkit.config.core import check_at_least, check_choice, require
from vqkit.config.data import DataConfig
from vqkit.config.optim import OptimConfig
from vqkit.config.run import LogConfig

Source = Literal["codes", "latents"]
Pooling = Literal["mean", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTClassifier:
    """A vision transformer whose patches are the positions of a token map.

    The defaults are ViT-B, which VQGAN-LC fine-tunes from MAE (arXiv:2406.11837, section 4.2).
    """

    kind: Literal["vit"] = "vit"
    layers: int = 12
    heads: int = 12
    width: int = 768
    mlp: int = 3072
    """Width inside the MLP of a block."""
    pooling: Pooling = "mean"
    """What the last layer sees: the `mean` over positions, MAE's, or all of them (`none`), which
    learns sooner from few images."""
    convolutions: int = 0
    """3 x 3 convolutions that read the map in place of one linear layer, with GELU between them
    ("early convolutions", arXiv:2106.14881): they know what is near, which takes a transformer long
    to find out from few images."""
    pretrained: str | None = None
    """Weights to begin with: a folder as transformers saves ViTMAE (`facebook/vit-mae-base`), or a
    file of MAE's own code; None begins from nothing."""
    drop_path: float = 0.1
    """Share of images that skip the last block in training; it grows from 0 at the first one."""

    def __post_init__(self) -> None:
        check_at_least("model", self, ("layers", "heads", "width", "mlp"), 1)
        check_at_least("model", self, ("convolutions",), 0)
        require(
            self.width % self.heads == 0 and self.width % 4 == 0,
            f"model.width={self.width}",
            f"must be a multiple of 4 and of model.heads={self.heads}",
        )
        check_choice("model.pooling", self.pooling, Pooling)
        _check_shares("model", drop_path=self.drop_path)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeClassifier:
    """One linear layer on frozen features."""

    kind: Literal["probe"] = "probe"
    backbone: str | None = None
    """Run of a ViT classifier: the probe looks at its features, frozen, in place of the tokens."""
    pooling: Pooling = "mean"
    """`mean` over the positions; `none` gives every position weights of its own."""

    def __post_init__(self) -> None:
        check_choice("model.pooling", self.pooling, Pooling)


Classifier = ViTClassifier | ProbeClassifier


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What is done to training maps and their classes; the defaults do nothing.

    MAE fine-tunes with mixup 0.8, cutmix 1, erase 0.25 and smoothing 0.1.
    """

    mixup: float = 0.0
    """Both parameters of the beta distribution from which the share of a second map is drawn; 0
    mixes nothing."""
    cutmix: float = 0.0
    """Likewise for the share of the rectangle that comes from a second map. With both, every batch
    has the one or the other with equal chance."""
    erase: float = 0.0
    """Share of maps in which a rectangle of 1/50 to 1/3 of the area becomes noise."""
    shift: int = 0
    """Maps move by up to so many positions along each side; edges are repeated."""
    smoothing: float = 0.0
    """Share of the target that is spread over all classes."""

    def __post_init__(self) -> None:
        check_at_least("augment", self, ("mixup", "cutmix", "shift"), 0)
        _check_shares("augment", erase=self.erase, smoothing=self.smoothing)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierRun:
    """One training of a classifier on a token set."""

    name: str
    """Names the run in tables, and its default folder `runs/<name>`."""
    tokens: str | None = None
    """Folder of the token set, with labels."""
    tokenizer: str | None = None
    """Folder of the run or tokenizer that made the tokens: codes are looked up in it."""
    held_out: str | None = None
    """Folder of another token set, on which top-1 is measured at every checkpoint; nothing is
    chosen by it."""
    source: Source = "codes"
    """What is classified: the `codes` that tokens stand for (z_q), or the `latents` before
    quantization, which shows what quantizing has cost; needs a token set that holds them."""
    model: Classifier = field(default_factory=ViTClassifier)
    augment: Augmentation = field(default_factory=Augmentation)
    layer_decay: float = 1.0
    """Learning rate of a block, as a share of that of the block after it; MAE: 0.65."""
    optim: OptimConfig
    log: LogConfig = field(default_factory=LogConfig)
    seed: int = 42

    def __post_init__(self) -> None:
        require(bool(self.name), "name=''", "a run needs a name")
        check_choice("source", self.source, Source)
        require(0 < self.layer_decay <= 1, f"layer_decay={self.layer_decay}", "must lie in (0, 1]")


def _check_shares(section: str, **shares: float) -> None:
    for name, value in shares.items():
        require(0 <= value < 1, f"{section}.{name}={value}", "must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelNetwork:
    """What a classifier of pixels is made of."""

    channels: Literal[1, 3] = 1
    width: int = 32
    """Channels after the first halving; after the second there are twice as many."""
    halvings: int = 2
    """How often height and width are halved: 2 for 28 pixels, 5 for 256."""
    features: int = 128
    """D: numbers before the last layer."""

    def __post_init__(self) -> None:
        check_at_least("network", self, ("width", "halvings", "features"), 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelRun:
    """One training of a classifier of pixels."""

    name: str
    data: DataConfig
    """Real images with labels."""
    test_data: DataConfig | None = None
    """Held-out ones; accuracy on them is logged, and nothing is chosen by it."""
    network: PixelNetwork = field(default_factory=PixelNetwork)
    shift: int = 2
    """Training images move by up to so many pixels, edges repeated."""
    optim: OptimConfig
    log: LogConfig = field(default_factory=LogConfig)
    seed: int = 42

    def __post_init__(self) -> None:
        require(bool(self.name), "name=''", "a run needs a name")
        require(self.shift >= 0, f"shift={self.shift}", "must not be negative")
        for name, data in (("data", self.data), ("test_data", self.test_data)):
            require(
                data is None or data.channels == self.network.channels,
                f"{name}.channels",
                f"must equal network.channels={self.network.channels}",
            )
