"""Classifiers of token maps: VQGAN-LC's (section 4.2, Figure 1b), and small ones.

All are trained on a token set (`vqkit tokenize`), whatever its tokenizer. VQGAN-LC's code for this
is not public; `docs/classification.md` says how its two sentences are read. The fine-tuning is
MAE's (arXiv:2111.06377, Table 9, ViT-B): AdamW (.9, .999), decay 0.05, 100 epochs of which 5 warm
up, half a cosine, layer decay 0.65, drop path 0.1, mixup 0.8, cutmix 1, label smoothing 0.1, random
erasing 0.25, and a rate of 5e-4 for 256 images. Its changes of pixels (RandAugment, random crops,
flips) are not possible on tokens and left out.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Final, TypedDict, Unpack

from vqkit.config import LogConfig, OptimConfig
from vqkit.config.classification import (
    Augmentation,
    ClassifierRun,
    ProbeClassifier,
    Source,
    ViTClassifier,
)

IMAGENET: Final = 1_281_167
"""Training images of ImageNet-1k."""
EPOCHS: Final = 100
WARMUP_EPOCHS: Final = 5
BASE_RATE: Final = 5e-4
"""Learning rate for 256 images; it grows with the batch."""


class ClassifierOptions(TypedDict, total=False):
    """What every recipe here takes."""

    tokens: str
    """Folder of the token set."""
    tokenizer: str
    """Folder of its tokenizer."""
    held_out: str
    """Folder of another token set, on which top-1 is measured."""
    source: Source
    """`codes`, or `latents` before quantization."""
    num_steps: int
    """Optimizer steps."""
    batch_size: int
    """Images per step; the paper's learning rate grows with it."""
    name: str
    """Name of the run; default that of the recipe."""


def lc_classifier(
    pretrained: str | None = None, **options: Unpack[ClassifierOptions]
) -> ClassifierRun:
    """ViT-B from MAE's weights, fine-tuned on the tokens of ImageNet; 86 million weights.

    Command: `vqkit classify train lc_classifier --tokens tokens/imagenet --tokenizer runs/lc
    --pretrained vit-mae-base`, with the folder of `facebook/vit-mae-base`.
    Published (VQGAN-LC, top-1 on ImageNet): VQGAN-LC 75.7 in the text and 75.5 in Figure 1b,
    VQGAN-EMA 73.6 and VQGAN-FC 73.9 in the figure.
    Length: 100 epochs, 125,100 steps of 1,024 images. Hardware: not stated, and not run here.
    Differs: see the head of this module and `docs/classification.md`.
    """
    batch = options.get("batch_size", 1024)
    epoch = IMAGENET // batch
    num_steps = options.get("num_steps", EPOCHS * epoch)
    rate = BASE_RATE * batch / 256
    optim = OptimConfig(
        num_steps=num_steps,
        batch_size=batch,
        lr=rate,
        schedule="cosine",
        warmup_steps=min(WARMUP_EPOCHS * epoch, num_steps // 2),
        final_lr=1e-6 / rate,
        betas=(0.9, 0.999),
        weight_decay=0.05,
        precision="bf16",
    )
    augment = Augmentation(mixup=0.8, cutmix=1.0, erase=0.25, smoothing=0.1)
    model = ViTClassifier(pretrained=pretrained)
    return _run("lc_classifier", model, augment, optim, options, layer_decay=0.65)


def lc_probe(**options: Unpack[ClassifierOptions]) -> ClassifierRun:
    """One linear layer on the mean code of ImageNet's token maps; no published experiment.

    Command: `vqkit classify train lc_probe --tokens tokens/imagenet --tokenizer runs/lc`.
    """
    batch = options.get("batch_size", 4096)
    num_steps = options.get("num_steps", 20 * (IMAGENET // batch))
    optim = _decaying(num_steps, batch, 3e-2)
    return _run("lc_probe", ProbeClassifier(), Augmentation(), optim, options)


def small_classifier(**options: Unpack[ClassifierOptions]) -> ClassifierRun:
    """A small transformer from nothing behind two convolutions, for sets such as MNIST.

    Command: `vqkit classify train small_classifier --tokens tokens/mnist --tokenizer
    runs/vq_vae_mnist`. 3,000 steps of 64 images with 49 positions take about six minutes of one
    core of a server CPU; 0.2 million weights.
    """
    batch = options.get("batch_size", 64)
    optim = _decaying(options.get("num_steps", 3000), batch, 2e-3, weight_decay=0.05)
    model = ViTClassifier(
        layers=2, heads=4, width=64, mlp=256, pooling="none", convolutions=2, drop_path=0.0
    )
    augment = Augmentation(smoothing=0.1)
    return _run("small_classifier", model, augment, optim, options)


def small_probe(**options: Unpack[ClassifierOptions]) -> ClassifierRun:
    """One linear layer on all positions of small token maps.

    Command: `vqkit classify train small_probe --tokens tokens/mnist --tokenizer
    runs/vq_vae_mnist`. Less than a minute on one core of a server CPU with 49 positions.
    """
    batch = options.get("batch_size", 256)
    optim = _decaying(options.get("num_steps", 1000), batch, 1e-3)
    return _run("small_probe", ProbeClassifier(pooling="none"), Augmentation(), optim, options)


CLASSIFIERS: Final[dict[str, Callable[..., ClassifierRun]]] = {
    function.__name__: function
    for function in (lc_classifier, lc_probe, small_classifier, small_probe)
}
"""Recipes of classifiers, in the order in which they are listed."""


def classifier_recipe(name: str) -> Callable[..., ClassifierRun]:
    """Return the recipe called `name`; an unknown name is a `ValueError`."""
    if name in CLASSIFIERS:
        return CLASSIFIERS[name]
    near = difflib.get_close_matches(name, CLASSIFIERS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(CLASSIFIERS)}"
    raise ValueError(f"recipe={name!r}: unknown; {hint}")


def classifier_list() -> str:
    """Return all recipes with the first line of their docstrings."""
    width = max(map(len, CLASSIFIERS)) + 2
    return "\n".join(
        f"  {name:<{width}}{(inspect.getdoc(function) or '').splitlines()[0]}"
        for name, function in CLASSIFIERS.items()
    )


def _decaying(
    num_steps: int, batch_size: int, lr: float, *, weight_decay: float = 0.0
) -> OptimConfig:
    return OptimConfig(
        num_steps=num_steps,
        batch_size=batch_size,
        lr=lr,
        schedule="cosine",
        warmup_steps=min(100, num_steps // 10),
        weight_decay=weight_decay,
    )


def _run(
    name: str,
    model: ViTClassifier | ProbeClassifier,
    augment: Augmentation,
    optim: OptimConfig,
    options: ClassifierOptions,
    *,
    layer_decay: float = 1.0,
) -> ClassifierRun:
    return ClassifierRun(
        name=options.get("name", name),
        tokens=options.get("tokens"),
        tokenizer=options.get("tokenizer"),
        held_out=options.get("held_out"),
        source=options.get("source", "codes"),
        model=model,
        augment=augment,
        layer_decay=layer_decay,
        optim=optim,
        log=LogConfig(
            every=max(1, min(50, optim.num_steps // 10)),
            checkpoint_every=max(1, min(5000, optim.num_steps // 2)),
        ),
    )
