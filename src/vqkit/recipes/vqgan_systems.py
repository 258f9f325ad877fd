"""What the VQGAN systems of the papers share: data sets, networks, schedules, and how they join.

A paper's own method has one recipe per data set (`dual_ade20k`, `looc_ffhq`); a baseline takes the
data set as an argument (`dual_vqgan --data_set ms_coco`). All of them need the weights of LPIPS;
`--objective.perceptual none` trains without it, which is another experiment. Where a paper gives
epochs, steps are epochs times whole batches. No time is stated: no recipe was run here in full.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypedDict

from vqkit.config import (
    AdversarialConfig,
    Crop,
    DataConfig,
    LogConfig,
    Network,
    ObjectiveConfig,
    OptimConfig,
    QuantizerConfig,
    RunConfig,
    Source,
    ValidationConfig,
    VQGANNetwork,
    require,
)

TAMING_LR: Final = 4.5e-6
"""VQGAN's learning rate per image of the batch: GPUs times images per GPU times accumulation."""

VQGAN_WEIGHTS: Final = {"commitment": 1.0, "codebook": 0.25}
"""Of the published VQGANs: beta stands on the codebook term."""

F8: Final = VQGANNetwork(multipliers=(1, 2, 2, 4), attention_strides=())
"""32 x 32 positions for 256 x 256 pixels; attention only in the middle."""
F16: Final = VQGANNetwork()
"""16 x 16 positions for 256 x 256 pixels."""
F32: Final = VQGANNetwork(multipliers=(1, 1, 2, 2, 4, 4), attention_strides=(32,))
"""8 x 8 positions for 256 x 256 pixels (RQ-VAE)."""

L1_LPIPS: Final = ObjectiveConfig(reconstruction="l1", perceptual="lpips")

SetName = Literal[
    "ade20k",
    "celeba_hq",
    "ms_coco",
    "cub_200",
    "ffhq",
    "imagenet",
    "lsun_churches",
    "lsun_bedrooms",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """A data set as its papers train on it; `docs/datasets.md` says how to lay it out."""

    train_images: int
    train: str
    """Training images, in the folder of the data set."""
    test: str
    source: Source = "folder"
    stretch: bool = False
    """Resize to a square whatever the shape."""
    crop: Crop = "center"
    """Of the training images; tests take the centre."""
    flip: bool = False


DATA_SETS: Final[dict[SetName, Facts]] = {
    # The full release of 2021, not the 20,210 images of the scene parsing benchmark.
    "ade20k": Facts(train_images=25_574, train="train", test="val", stretch=True),
    # The split of taming-transformers.
    "celeba_hq": Facts(train_images=25_000, train="train", test="val", flip=True),
    "ms_coco": Facts(train_images=82_783, train="train2014", test="val2014", flip=True),
    "cub_200": Facts(train_images=5_994, train="train", test="val", crop="random", flip=True),
    "ffhq": Facts(train_images=60_000, train="train", test="val"),
    "imagenet": Facts(train_images=1_281_167, train="train", test="val", crop="random"),
    "lsun_churches": Facts(
        train_images=126_227,
        train="church_outdoor_train_lmdb",
        test="church_outdoor_val_lmdb",
        flip=True,
        source="lmdb",
    ),
    "lsun_bedrooms": Facts(
        train_images=3_033_042,
        train="bedroom_train_lmdb",
        test="bedroom_val_lmdb",
        flip=True,
        source="lmdb",
    ),
}


class VQGANOptions(TypedDict, total=False):
    """What every recipe of a VQGAN system takes besides its method."""

    path: str
    """Folder of the data set, laid out as docs/datasets.md says; with `test_path`, the training
    images themselves. Default data/<data set>."""
    test_path: str
    """Images to evaluate on; default those that the data set keeps for it."""
    validation_path: str
    """Images to look at during training; default none. Never the test set."""
    files: str
    """List of the training images below `path` (docs/datasets.md); default all."""
    test_files: str
    """List of the test images below `test_path`; default all."""
    validation_files: str
    """List of the images to look at below `validation_path`; default all."""
    batch_size: int
    """Images per step over all GPUs; default as published. VQGAN's learning rates follow it."""
    num_steps: int
    """Optimizer steps; default as published."""
    name: str
    """Name of the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How a system is trained."""

    optim: OptimConfig
    """As published; steps, learning rate and warm-up are replaced by what stands below."""
    epochs: int = 0
    lr_per_image: float = 0.0
    warmup_epochs: float = 0.0
    objective: ObjectiveConfig = L1_LPIPS
    adversarial: AdversarialConfig | None
    flip: bool | None = None
    """Mirror training images, where that is not as usual for the data set."""


def vqgan_run(
    name: str,
    data_set: SetName,
    quantizer: QuantizerConfig,
    schedule: Schedule,
    options: VQGANOptions,
    *,
    network: Network = F16,
    size: int = 256,
) -> RunConfig:
    """Join the parts of one system, named `<name>_<data set>` unless `options` has a name."""
    require(data_set in DATA_SETS, f"data_set={data_set!r}", f"expected one of {list(DATA_SETS)}")
    facts = DATA_SETS[data_set]
    usual = schedule.optim
    batch = options.get("batch_size", usual.batch_size)
    per_epoch = max(1, facts.train_images // batch)
    steps = options.get("num_steps", schedule.epochs * per_epoch or usual.num_steps)
    warmup = int(schedule.warmup_epochs * per_epoch) or usual.warmup_steps
    train, test = _images(data_set, facts, schedule, size, options)
    held = options.get("validation_path")
    listed = options.get("validation_files")
    require(
        listed is None or held is not None,
        f"validation_files={listed!r}",
        "its images lie below validation_path; give that too",
    )
    validation = replace(test, path=held, files=listed) if held is not None else None
    return RunConfig(
        name=options.get("name", f"{name}_{data_set}"),
        quantizer=quantizer,
        network=network,
        data=train,
        test_data=test,
        validation=ValidationConfig(data=validation) if validation is not None else None,
        objective=schedule.objective,
        adversarial=schedule.adversarial,
        optim=replace(
            usual,
            num_steps=steps,
            batch_size=batch,
            lr=schedule.lr_per_image * batch or usual.lr,
            warmup_steps=min(warmup, steps // 2),  # a run cut short keeps a part of it
        ),
        log=LogConfig(every=100, checkpoint_every=5000),
    )


def preset(name: str, **args: Any) -> QuantizerConfig:
    """Return `QuantizerConfig(preset=name, args=args)`."""
    return QuantizerConfig(preset=name, args=args)


def _images(
    data_set: SetName, facts: Facts, schedule: Schedule, size: int, options: VQGANOptions
) -> tuple[DataConfig, DataConfig]:
    """Return the images to train on and to test on."""
    root = options.get("path", f"data/{data_set}")
    test = options.get("test_path")
    crop_size = None if facts.stretch else size
    centre = DataConfig(
        source=facts.source,
        path=test if test is not None else f"{root}/{facts.test}",
        resize=size,
        stretch=facts.stretch,
        crop="none" if facts.stretch else "center",
        crop_size=crop_size,
        files=options.get("test_files"),
    )
    train = replace(
        centre,
        path=root if test is not None else f"{root}/{facts.train}",
        files=options.get("files"),
        crop="none" if facts.stretch else facts.crop,
        flip=facts.flip if schedule.flip is None else schedule.flip,
    )
    return train, centre
