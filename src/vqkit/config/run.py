"""One run: what is trained, on what, how, and what it writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vqkit.config.adversarial import AdversarialConfig
from vqkit.config.core import check_at_least, check_choice, require
from vqkit.config.data import DataConfig
from vqkit.config.network import Network, NetworkConfig, QuantizerConfig
from vqkit.config.objective import ObjectiveConfig
from vqkit.config.optim import OptimConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """What a run writes, and how often (in optimizer steps)."""

    every: int = 50
    """A line in `log.jsonl` (and TensorBoard); ends of epochs and validations have one too."""
    checkpoint_every: int = 1000
    keep: int = 2
    """Checkpoints kept; the newest is never removed."""
    tensorboard: bool = False
    explode: float = 1000.0
    """The run stops when its reconstruction error is so many times the least of the run for
    `explode_steps` steps on end, as it does for NaN."""
    explode_steps: int = 20

    def __post_init__(self) -> None:
        check_at_least("log", self, ("every", "checkpoint_every", "keep", "explode_steps"), 1)
        require(self.explode > 1, f"log.explode={self.explode}", "must be above 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """Images that are reconstructed during training; they choose the best checkpoint."""

    data: DataConfig
    """Never the test set."""
    every: int = 1000
    """Optimizer steps between two validations; the last step has one too."""
    batch_size: int = 16
    pictures: int = 8
    """The first so many images are written beside their reconstructions, in `validation/`."""
    keep_best: Literal["psnr", "l1", "lpips", "none"] = "psnr"
    """The metric by which the tokenizer kept in the folder `best` is chosen."""

    def __post_init__(self) -> None:
        check_at_least("validation", self, ("every", "batch_size"), 1)
        check_at_least("validation", self, ("pictures",), 0)
        check_choice("validation.keep_best", self.keep_best, Literal["psnr", "l1", "lpips", "none"])


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One run: what is trained, on what, how."""

    name: str
    """Names the run in tables, and its default folder `runs/<name>`."""
    quantizer: QuantizerConfig
    data: DataConfig
    optim: OptimConfig
    network: Network = field(default_factory=NetworkConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    adversarial: AdversarialConfig | None = None
    """The discriminator; None trains without one."""
    validation: ValidationConfig | None = None
    """Images to look at during training; None looks at none."""
    test_data: DataConfig | None = None
    """Images for the evaluation; never used to choose a checkpoint."""
    log: LogConfig = field(default_factory=LogConfig)
    seed: int = 42

    def __post_init__(self) -> None:
        require(bool(self.name), "name=''", "a run needs a name")
        held = self.validation.data if self.validation is not None else None
        sets = (("data", self.data), ("test_data", self.test_data), ("validation.data", held))
        for label, data in sets:
            require(
                data is None or data.channels == self.network.image_channels,
                f"{label}.channels",
                f"must equal network.image_channels={self.network.image_channels}",
            )
        require(
            held is None or held.crop != "random",
            f"validation.data.crop={held.crop!r}" if held is not None else "",
            "a validation looks at the same pixels every time; use 'center' or 'none'",
        )
        require(
            held is None or self.test_data is None or _place(held) != _place(self.test_data),
            "validation.data",
            "is the test set, on which nothing may be chosen; hold other images out, or leave "
            "test_data out",
        )
        require(
            self.validation is None
            or self.validation.keep_best != "lpips"
            or self.objective.perceptual == "lpips",
            "validation.keep_best='lpips'",
            "is measured only with objective.perceptual='lpips'; choose psnr or l1",
        )
        require(
            self.optim.accumulate == 1 or self.objective.reconstruction != "log_mse",
            f"optim.accumulate={self.optim.accumulate} with reconstruction='log_mse'",
            "the logarithm of a batch's error is no sum over its parts; use accumulate=1",
        )


def _place(data: DataConfig) -> tuple[str | None, ...]:
    """What says which images these are, however they are cut."""
    return data.source, data.path, data.files, data.split
