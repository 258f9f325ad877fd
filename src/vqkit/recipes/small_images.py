"""The small-image experiments of LooC (its Tables 1, 3, 4 and 5), which share one way to train.

The networks of the VQ-VAE code (hidden 128, stride 4, 128 channels to quantize), Adam at 3e-4, no
schedule, clipping, weight average or augmentation, 500 epochs, seed 42, reconstruction loss divided
by the variance of the training pixels. What the papers do and we do not: pick the checkpoint by its
error on the test set; we keep the last one.

Batch and steps. LooC trains with batch 128, the quoted VQ-VAE and CVQ rows with 1,024, both for 500
epochs: LooC takes 8 times as many optimizer steps as its baselines. The functions give the
published settings; to compare methods, give all of them the same `num_steps` and `batch_size`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict, Unpack

from vqkit.config import (
    DataConfig,
    NetworkConfig,
    ObjectiveConfig,
    OptimConfig,
    QuantizerConfig,
    RunConfig,
    require,
)
from vqkit.recipes.published import TABLES, Row, SmallSet, table_data_sets

CHANNELS: Final = 128
"""Channels of the quantized features; a LooC or PQ row has CHANNELS / dim segments."""


@dataclass(frozen=True, slots=True)
class _Facts:
    train_images: int
    channels: Literal[1, 3]
    variance: float
    """Variance of the training pixels in [0, 1]."""
    side: int


_SETS: Final[dict[SmallSet, _Facts]] = {
    "mnist": _Facts(60_000, 1, 0.0949, 28),
    "fashion_mnist": _Facts(60_000, 1, 0.1246, 28),
    "cifar10": _Facts(50_000, 3, 0.0633, 32),
}


@dataclass(frozen=True, slots=True)
class _Schedule:
    batch_size: int
    epochs: int = 500
    lr: float = 3e-4


_SCHEDULES: Final[dict[str, _Schedule]] = {
    "looc": _Schedule(128),
    "pq": _Schedule(128),  # run again by LooC's authors, hence like LooC
    "vq_vae": _Schedule(1024),
    "cvq": _Schedule(1024),
    "sq_vae": _Schedule(32, epochs=100, lr=1e-3),
}


class RunOptions(TypedDict, total=False):
    """What every small-image recipe takes besides its codebook."""

    path: str
    """Folder of the data set (original files, or parquet); default `data/<data set>`."""
    batch_size: int
    """Images per step; default as published."""
    num_steps: int
    """Optimizer steps; default the published epochs."""
    name: str
    """Name of the run; default `looc_256x4_mnist` and alike."""


def small_image_run(
    preset: str, data_set: SmallSet, num_codes: int, dim: int, **options: Unpack[RunOptions]
) -> RunConfig:
    """Return the run of one row: `small_image_run("looc", "mnist", 256, 4)`.

    Args:
        preset: looc, pq, vq_vae, cvq or sq_vae.
        data_set: mnist, cifar10 or fashion_mnist.
        num_codes: codes in one codebook.
        dim: length of a code; LooC and PQ cut the 128 channels into 128 / dim segments.
        options: see `RunOptions`.
    """
    require(preset in _SCHEDULES, f"preset={preset!r}", f"expected one of {', '.join(_SCHEDULES)}")
    require(data_set in _SETS, f"data_set={data_set!r}", f"expected one of {', '.join(_SETS)}")
    facts, schedule = _SETS[data_set], _SCHEDULES[preset]
    batch = options.get("batch_size", schedule.batch_size)
    published_steps = schedule.epochs * (facts.train_images // batch)
    where = options.get("path", f"data/{data_set}")
    train = DataConfig(source=data_set, path=where, channels=facts.channels)
    test = DataConfig(source=data_set, path=where, channels=facts.channels, split="test")
    logarithmic = preset == "sq_vae"
    return RunConfig(
        name=options.get("name", f"{preset}_{num_codes}x{dim}_{data_set}"),
        quantizer=QuantizerConfig(
            preset=preset, args=_quantizer_args(preset, num_codes, dim, facts.side)
        ),
        network=NetworkConfig(image_channels=facts.channels),
        data=train,
        test_data=test,
        objective=ObjectiveConfig(reconstruction="log_mse")
        if logarithmic  # scale-free: nothing to divide
        else ObjectiveConfig(variance=facts.variance),
        optim=OptimConfig(
            num_steps=options.get("num_steps", published_steps),
            batch_size=batch,
            lr=schedule.lr,
        ),
    )


def looc_table(
    table: int, *, paths: Mapping[str, str] | None = None, num_steps: int | None = None
) -> list[RunConfig]:
    """Return the runs of Table 1, 3, 4 or 5 of LooC, named like `looc_table5_32x4_mnist`.

    All rows but HVQ-VAE, for every data set of the table in printed order. `paths` says where a
    data set lies (`{"mnist": ...}`). Without `num_steps` every row gets its published batch and
    epochs; with it all rows get so many steps of 128 images, which is the fair comparison.
    """
    require(table in TABLES, f"table={table}", f"expected one of {', '.join(map(str, TABLES))}")
    runs = []
    for data_set in table_data_sets(table):
        options: RunOptions = {}
        if paths is not None and data_set in paths:
            options["path"] = paths[data_set]
        if num_steps is not None:
            options |= {"num_steps": num_steps, "batch_size": 128}
        for row in TABLES[table]:
            options["name"] = row_name(table, row, data_set)
            runs.append(small_image_run(row[0], data_set, row[1], row[2], **options))
    return runs


def row_name(table: int, row: Row, data_set: str) -> str:
    """Return `looc_table5_32x4_mnist`, or `looc_table5_cvq_1024x128_mnist` for another method."""
    preset, num_codes, dim = row
    method = "" if preset == "looc" else f"{preset}_"
    return f"looc_table{table}_{method}{num_codes}x{dim}_{data_set}"


def _quantizer_args(preset: str, num_codes: int, dim: int, side: int) -> dict[str, Any]:
    args: dict[str, Any] = {"num_codes": num_codes, "dim": dim}
    if preset in ("looc", "pq"):
        require(CHANNELS % dim == 0, f"dim={dim}", f"must divide the {CHANNELS} channels")
        args["num_segments"] = CHANNELS // dim
    if preset == "pq":  # LooC in everything but the sharing of the codebook
        args |= {"update": "cvq", "metric": "cosine"}
    if preset == "sq_vae":
        args["initial_log_variance"] = 2.302585 if side == 28 else 2.995732  # log 10, log 20
    return args
