"""Every setting of a run, in one place. Imports no torch, so recipes and `--help` stay instant.

A run is described by one frozen `RunConfig`. Recipes (`vqkit.recipes`) return one, the command line
overrides single fields (`--optim.lr 1e-3`), and the resolved configuration is saved with every
checkpoint, so that a run can be rebuilt from its folder alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, get_type_hints

Source = Literal["folder", "parquet", "mnist", "fashion_mnist", "cifar10", "photos"]
Crop = Literal["none", "center", "random"]
Precision = Literal["fp32", "bf16"]
Reconstruction = Literal["mse", "l1", "log_mse"]
Skip = Literal["relu", "identity"]


def require(holds: bool, setting: str, problem: str) -> None:
    """Raise `ValueError("setting: problem")` unless `holds`; every configuration check uses it."""
    if not holds:
        raise ValueError(f"{setting}: {problem}")


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig:
    """A preset and its arguments: `QuantizerConfig(preset="vq_vae", args={"num_codes": 64})`."""

    preset: str
    """Name in `vqkit.quantizers.PRESETS`."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the preset; plain JSON values, or tensors (then not from a file)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """The small convolutional encoder and decoder of VQ-VAE (stride 4; `methods` 1.1)."""

    image_channels: int = 3
    """1 for grey, 3 for colour."""
    hidden: int = 128
    """Channels of the feature maps."""
    residual_hidden: int = 32
    """Channels inside a residual block."""
    num_residual_blocks: int = 2
    """Residual blocks in the encoder and in the decoder."""
    skip: Skip = "relu"
    """What the residual skip carries: `relu` of the input, as the published code (an in-place ReLU)
    does, or the `identity`."""

    def __post_init__(self) -> None:
        require(
            self.image_channels in (1, 3),
            f"network.image_channels={self.image_channels}",
            "images are grey (1) or colour (3)",
        )
        for name in ("hidden", "residual_hidden"):
            value = getattr(self, name)
            require(value >= 1, f"network.{name}={value}", "must be at least 1")
        require(self.hidden % 2 == 0, f"network.hidden={self.hidden}", "must be even")
        require(
            self.num_residual_blocks >= 0,
            f"network.num_residual_blocks={self.num_residual_blocks}",
            "must not be negative",
        )
        _check_choice("network.skip", self.skip, Skip)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where images come from and how they are cut."""

    source: Source
    """`folder` (image files, searched recursively), `parquet` (Hugging Face image layout), `mnist`,
    `fashion_mnist`, `cifar10` (original file formats, or parquet, in `path`), or `photos` (the
    photographs inside the scikit-image and scikit-learn wheels; no path)."""
    path: str | None = None
    """Folder or file; needed by every source but `photos`."""
    split: Literal["train", "test"] = "train"
    """Which part of a data set that has parts; `photos` keeps fixed photographs for `test`."""
    channels: Literal[1, 3] = 3
    """Images are converted to grey (1) or colour (3)."""
    resize: int | None = None
    """Shorter side in pixels after an antialiased resize; None keeps the size."""
    crop: Crop = "none"
    """`random` or `center` cut of `crop_size`; `none` keeps whole images (batches of one size)."""
    crop_size: int | None = None
    """Side of the square crop in pixels."""
    flip: bool = False
    """Mirror left to right at random."""
    crops_per_image: int = 1
    """How many random crops of every image make one epoch (small sets of large photographs)."""
    limit: int | None = None
    """Only the first so many images."""
    on_broken: Literal["fail", "skip"] = "fail"
    """What to do with a file that is no readable image: stop, or leave it out and say so."""

    def __post_init__(self) -> None:
        _check_choice("data.source", self.source, Source)
        _check_choice("data.crop", self.crop, Crop)
        require(
            bool(self.path) or (self.path is None and self.source == "photos"),
            f"data.path={self.path!r} with data.source={self.source!r}",
            "name the folder or file that holds the images",
        )
        require(
            self.path is None or self.source != "photos",
            f"data.path={self.path!r} with data.source='photos'",
            "these photographs are inside the wheels; leave the path out, or use 'folder'",
        )
        require(
            (self.crop == "none") == (self.crop_size is None),
            f"data.crop_size={self.crop_size} with data.crop={self.crop!r}",
            "a crop needs a size, and crop='none' takes none",
        )
        for name in ("resize", "crop_size", "limit", "crops_per_image"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"data.{name}={value}", "must be at least 1")
        require(
            self.crops_per_image == 1 or self.crop == "random",
            f"data.crops_per_image={self.crops_per_image} with data.crop={self.crop!r}",
            "several crops of one image differ only with crop='random'",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """The training loss: reconstruction plus the quantizer's own terms."""

    reconstruction: Reconstruction = "mse"
    """`mse` or `l1` on images in [-1, 1], mean over elements; `log_mse` is SQ-VAE's
    (D/2)·log(sum of squares per image)."""
    variance: float = 1.0
    """Divides `mse`: the variance of the training pixels in [0, 1], as the VQ-VAE code does."""

    def __post_init__(self) -> None:
        _check_choice("objective.reconstruction", self.reconstruction, Reconstruction)
        require(self.variance > 0, f"objective.variance={self.variance}", "must be above 0")
        require(
            self.variance == 1.0 or self.reconstruction == "mse",
            f"objective.variance={self.variance} with reconstruction={self.reconstruction!r}",
            "only 'mse' is divided by the variance; leave it at 1",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Adam and the length of the run."""

    num_steps: int
    """Optimizer steps in all."""
    batch_size: int = 128
    """Images per optimizer step, over all processes and accumulated parts together."""
    accumulate: int = 1
    """Parts into which each process cuts its share of the batch, to save memory."""
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    """Largest norm of the gradient; None does not clip."""
    precision: Precision = "fp32"
    """`bf16` runs the networks under autocast; the quantizer always stays in float32."""
    weight_ema: float | None = None
    """Decay of an exponential average of the weights, kept beside them and used for evaluation."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "accumulate"):
            value = getattr(self, name)
            require(value >= 1, f"optim.{name}={value}", "must be at least 1")
        require(
            self.batch_size % self.accumulate == 0,
            f"optim.accumulate={self.accumulate}",
            f"must divide optim.batch_size={self.batch_size}",
        )
        require(self.lr > 0, f"optim.lr={self.lr}", "must be above 0")
        require(self.eps > 0, f"optim.eps={self.eps}", "must be above 0")
        require(
            all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas={self.betas}",
            "must lie in [0, 1)",
        )
        require(
            self.weight_decay >= 0,
            f"optim.weight_decay={self.weight_decay}",
            "must not be negative",
        )
        require(
            self.clip_norm is None or self.clip_norm > 0,
            f"optim.clip_norm={self.clip_norm}",
            "must be above 0, or null for no clipping",
        )
        require(
            self.weight_ema is None or 0 < self.weight_ema < 1,
            f"optim.weight_ema={self.weight_ema}",
            "must lie between 0 and 1, or be null for none",
        )
        _check_choice("optim.precision", self.precision, Precision)


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """What a run writes, and how often (in optimizer steps)."""

    every: int = 50
    """A line in `log.jsonl` (and TensorBoard)."""
    checkpoint_every: int = 1000
    keep: int = 2
    """Checkpoints kept; the newest is never removed."""
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("every", "checkpoint_every", "keep"):
            value = getattr(self, name)
            require(value >= 1, f"log.{name}={value}", "must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One run: what is trained, on what, how."""

    name: str
    """Names the run in tables, and its default folder `runs/<name>`."""
    quantizer: QuantizerConfig
    data: DataConfig
    optim: OptimConfig
    network: NetworkConfig = field(default_factory=NetworkConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    test_data: DataConfig | None = None
    """Images for the evaluation; never used to choose a checkpoint."""
    log: LogConfig = field(default_factory=LogConfig)
    seed: int = 42

    def __post_init__(self) -> None:
        require(bool(self.name), "name=''", "a run needs a name")
        for label, data in (("data", self.data), ("test_data", self.test_data)):
            require(
                data is None or data.channels == self.network.image_channels,
                f"{label}.channels",
                f"must equal network.image_channels={self.network.image_channels}",
            )
        require(
            self.optim.accumulate == 1 or self.objective.reconstruction != "log_mse",
            f"optim.accumulate={self.optim.accumulate} with reconstruction='log_mse'",
            "the logarithm of a batch's error is no sum over its parts; use accumulate=1",
        )


def to_dict(config: Any) -> dict[str, Any]:
    """Turn any configuration of this module into plain JSON values."""
    return asdict(config)


def from_dict(cls: type[Any], values: dict[str, Any], where: str = "") -> Any:
    """Rebuild a configuration from `to_dict`; an unknown or missing key is a `ValueError`."""
    hints = get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    require(not unknown, f"{where}{', '.join(unknown)}", f"unknown key; known are {sorted(known)}")
    built: dict[str, Any] = {}
    for name, value in values.items():
        nested = _dataclass_in(hints[name])
        if nested is not None and isinstance(value, dict):
            value = from_dict(nested, value, f"{where}{name}.")
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    try:
        return cls(**built)
    except TypeError as error:
        raise ValueError(f"{where or cls.__name__}: {error}") from error


def with_changes(config: RunConfig, **changes: Any) -> RunConfig:
    """Copy a run with changed fields; `optim__lr=1e-3` reaches inside."""
    nested: dict[str, dict[str, Any]] = {}
    flat: dict[str, Any] = {}
    for key, value in changes.items():
        outer, _, inner = key.partition("__")
        if inner:
            nested.setdefault(outer, {})[inner] = value
        else:
            flat[outer] = value
    for outer, inner_changes in nested.items():
        flat[outer] = replace(flat.get(outer, getattr(config, outer)), **inner_changes)
    return replace(config, **flat)


def _dataclass_in(hint: Any) -> type[Any] | None:
    options = getattr(hint, "__args__", (hint,))
    return next((t for t in options if isinstance(t, type) and is_dataclass(t)), None)


def _check_choice(setting: str, value: object, choices: Any) -> None:
    allowed = choices.__args__
    listed = ", ".join(map(repr, allowed))
    require(value in allowed, f"{setting}={value!r}", f"expected one of {listed}")
