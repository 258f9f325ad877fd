"""Six methods at equal nominal bits, on MNIST and on photographs: which one is best?

`OperatingPoint`s say how a method reaches a rate. The grid has stride 4 for all. A whole-vector
method (VQ-VAE, its moving averages, CVQ-VAE) has one token a position and reaches a rate by its
number of codes, 65,536 at most, which is 1 bit per pixel; beyond it takes the grid of stride 2, and
beyond 4 bits per pixel it reaches nothing. A composed method (product, residual, LooC) has two or
more tokens a position, as few as do with 256 codes or fewer, LooC's number. A rate counts as
reached within 2 %.

These are no published experiments. Everything but the quantizer is the same for all: networks of 64
channels, 64 channels to quantize (63 where a position has three tokens), images, steps, seed, and
the settings for few steps of `photos`: Adam at 1e-3, the plain mean squared error, commitment 1.
Smaller batches are no shortcut: with 32 images of MNIST in place of 128, two vectors a code, CVQ's
anchors move most codes at every step, and it ended at 11.8 dB where it reaches about 22.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypedDict, Unpack

from vqkit.config import (
    DataConfig,
    LogConfig,
    NetworkConfig,
    OptimConfig,
    QuantizerConfig,
    RunConfig,
    require,
)
from vqkit.recipes.photos import PhotoOptions, photo_images

EqualSet = Literal["mnist", "photos"]

WHOLE: Final = ("vq_vae", "vq_ema", "cvq")
"""Methods with one token a position."""
COMPOSED: Final = ("pq", "rq", "looc")
"""Methods with several tokens a position."""
METHODS: Final = (*WHOLE, *COMPOSED)
RATES: Final[dict[EqualSet, tuple[float, ...]]] = {
    "mnist": (0.3, 0.6, 1.0, 2.0),
    "photos": (0.6, 1.0, 2.0, 4.0, 8.0),
}
"""Bits per pixel that are compared."""
STRIDES: Final = (4, 2)
MOST_CODES: Final = 65_536
"""Of a whole-vector method."""
FEW_CODES: Final = 256
"""Of each codebook of a composed method."""
TOLERANCE: Final = 0.02
"""Share of the rate by which a point may miss it."""
CHANNELS: Final = 64
"""Channels of the networks, and of what is quantized."""
_TOKENS: Final = 16
"""Most tokens a position."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoint:
    """How a method spends its bits."""

    stride: int
    """Pixels per position of the grid, along each side."""
    num_tokens: int
    """Tokens a position."""
    num_codes: int
    """Codes that each token chooses from."""

    @property
    def bits_per_pixel(self) -> float:
        """Nominal rate of images whose sides are multiples of the stride."""
        return self.num_tokens * math.log2(self.num_codes) / self.stride**2

    def __str__(self) -> str:
        tokens = "" if self.num_tokens == 1 else f"{self.num_tokens} tokens of "
        return f"{tokens}{self.num_codes:,} codes at stride {self.stride}"


class EqualBitsOptions(TypedDict, total=False):
    """What both recipes take; default 600 steps."""

    path: str
    """MNIST: folder of the data set, default data/mnist. Photographs: folder of images, default
    those inside the wheels."""
    test_path: str
    """Photographs: folder of images to measure on, cut to their middle 256 x 256 pixels."""
    num_steps: int
    """Optimizer steps."""
    batch_size: int
    """Images per step; default 128 of MNIST, 16 crops of 64 x 64 of photographs."""
    name: str
    """Name of the run; default `equal_bits_mnist_looc_0.6` and alike."""


def operating_point(method: str, rate: float) -> OperatingPoint:
    """Return how a method reaches a rate in bits per pixel.

    A method that is none of the six, or that does not reach the rate, is a `ValueError`, which says
    why.
    """
    require(method in METHODS, f"method={method!r}", f"expected one of {', '.join(METHODS)}")
    require(0 < rate <= 24, f"rate={rate}", "give bits per pixel, above 0 and at most 24")
    whole = method in WHOLE
    most = MOST_CODES if whole else FEW_CODES
    counts = (1,) if whole else range(2, _TOKENS + 1)
    for stride in STRIDES if whole else STRIDES[:1]:
        for num_tokens in counts:
            bits = rate * stride**2 / num_tokens
            if bits > 32:
                continue
            point = OperatingPoint(stride=stride, num_tokens=num_tokens, num_codes=round(2**bits))
            miss = abs(point.bits_per_pixel / rate - 1) if point.num_codes > 1 else math.inf
            if point.num_codes <= most and miss <= TOLERANCE:
                return point
    needed = f"one token a position needs 2^{rate * STRIDES[-1] ** 2:g} codes at stride 2"
    if not whole:
        needed = f"no 2 to {_TOKENS} tokens of at most {FEW_CODES} codes at stride 4 come near"
    raise ValueError(f"rate={rate:g} with method={method!r}: is out of reach: {needed}")


def equal_bits_mnist(
    method: str = "looc", rate: float = 0.6, **options: Unpack[EqualBitsOptions]
) -> RunConfig:
    """One of six methods on MNIST, `rate` bits per pixel; 600 steps of 128 images.

    Command: `vqkit train equal_bits_mnist`, with `--method` and `--rate` every row of
    `docs/results/equal_bits.md`. About 90 seconds on one core of a server CPU, 1 bit per pixel with
    65,536 codes 15 to 30 minutes.
    """
    data = DataConfig(source="mnist", path=options.get("path", "data/mnist"), channels=1)
    test = replace(data, split="test")
    return _run("mnist", method, rate, data, test, options)


def equal_bits_photos(
    method: str = "looc", rate: float = 1.0, **options: Unpack[EqualBitsOptions]
) -> RunConfig:
    """One of six methods on photographs, `rate` bits per pixel; 600 steps of 16 crops.

    Command: `vqkit train equal_bits_photos`, with `--method` and `--rate` every row of
    `docs/results/equal_bits.md`. Two minutes or more on one core of a server CPU, with 65,536 codes
    up to an hour. Test images are cut to their middle 256 x 256 pixels, so that no bits go into
    padding.
    """
    places: PhotoOptions = {}
    if "path" in options:
        places["path"] = options["path"]
    if "test_path" in options:
        places["test_path"] = options["test_path"]
    data, test = photo_images(places, size=64)
    test = replace(test, crop="center", crop_size=256)
    return _run("photos", method, rate, data, test, options)


def _run(
    data_set: EqualSet,
    method: str,
    rate: float,
    data: DataConfig,
    test: DataConfig,
    options: EqualBitsOptions,
) -> RunConfig:
    point = operating_point(method, rate)
    num_steps = options.get("num_steps", 600)
    batch_size = options.get("batch_size", 128 if data_set == "mnist" else 16)
    return RunConfig(
        name=options.get("name", f"equal_bits_{data_set}_{method}_{rate:g}"),
        quantizer=QuantizerConfig(preset=method, args=_args(method, point)),
        network=NetworkConfig(
            image_channels=data.channels,
            hidden=CHANNELS,
            downsamplings=2 if point.stride == 4 else 1,
        ),
        data=data,
        test_data=test,
        optim=OptimConfig(num_steps=num_steps, batch_size=batch_size, lr=1e-3),
        log=LogConfig(every=10, checkpoint_every=max(1, num_steps // 2)),
    )


def _args(method: str, point: OperatingPoint) -> dict[str, Any]:
    """Return the arguments of a preset; PQ is LooC in everything but the shared codebook."""
    args: dict[str, Any] = {"num_codes": point.num_codes, "dim": CHANNELS, "commitment": 1.0}
    if method == "rq":
        args["num_levels"] = point.num_tokens
    if method in ("pq", "looc"):
        args |= {"dim": CHANNELS // point.num_tokens, "num_segments": point.num_tokens}
    if method == "pq":
        args |= {"update": "cvq", "metric": "cosine"}
    return args
