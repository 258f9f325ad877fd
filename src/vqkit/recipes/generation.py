"""GPTs on token sets: VQGAN-LC's (Tables 4 and 5), and small ones.

All are trained on a token set (`vqkit tokenize`), whatever its tokenizer; with several tokens per
position give `--slots depth` or `--slots interleave`. Where the VQGAN-LC paper (section 4.1 and
appendix A) and its code differ, this is how it is read:

- Size. 24 layers, 16 heads and a width of 1,024 have 302 million weights; the 404 million of the
  paper are these and one table of 100,000 tokens. Its code (minGPT) has a second table as the last
  layer: 508 million, `--model.tie_embeddings false`. With 16,384 codes the model is smaller, so the
  rows of Tables 4 and 5 are not of one size.
- Length. The paper: 100 epochs, 5 of warm-up, a straight line down. The code holds two schedules:
  a line over 125,100 steps, which are those 100 epochs, and warm-up 5,000, hold 80,000, then half a
  cosine to 1e-5 at step 450,000. Here the line.
- Optimizer. The paper says Adam; the code is AdamW (.9, .95) with decay 0.01. Here the tables of
  tokens and classes decay too.
- Noise. The code replaces a fifth of the input tokens by others (`pkeep` 0.8), drawn from the whole
  vocabulary, the classes included; here from the codes of the token's slot.
- Precision. The code: float16 with ZeRO-2 on 32 V100. Here bfloat16.
- Sampling. The paper: top-k of 10 % of the vocabulary, `GPTSampling(top_k=0.1)`; the command of the
  code has top_k=100000, which is none. No guidance; classes are never hidden in training.

No recipe of a paper was run here in full.
"""

from __future__ import annotations

from typing import Final, Literal, TypedDict, Unpack

from vqkit.config import GeneratorRun, GPTConfig, LogConfig, OptimConfig, require
from vqkit.config.generation import SlotOrder

LCSet = Literal["imagenet", "ffhq"]

TRAIN_IMAGES: Final[dict[LCSet, int]] = {"imagenet": 1_281_167, "ffhq": 60_000}
WARMUP_EPOCHS: Final = 5
EPOCHS: Final = 100


class GPTOptions(TypedDict, total=False):
    """What every recipe here takes."""

    tokens: str
    """Folder of the token set."""
    held_out: str
    """Folder of another one, whose bits are measured."""
    slots: SlotOrder
    """How several tokens of a position are written; needed where there are several."""
    num_steps: int
    """Optimizer steps."""
    batch_size: int
    """Images per step."""
    name: str
    """Name of the run; default that of the recipe."""


def lc_gpt(*, data_set: LCSet = "imagenet", **options: Unpack[GPTOptions]) -> GeneratorRun:
    """GPT on the tokens of VQGAN-LC, -FC or -EMA: 24 layers, 16 heads, width 1,024; 404 million.

    Command: `vqkit train lc_gpt --tokens tokens/vqgan_lc_imagenet`.
    Published (VQGAN-LC, Tables 4 and 5, FID of 50,000 samples): ImageNet, by class, 15.4 (LC), 16.3
    (EMA), 17.3 (FC); FFHQ, without classes, 2.61, 4.87, 3.23.
    Sampling: top-k of 10 % of the vocabulary.
    Hardware: 32 V100, batch 1,024, 100 epochs (ImageNet 125,100 steps, FFHQ 5,800) at 4.5e-4.
    Data: a token set of 16 x 16 positions, one token each.
    Differs: see the list at the head of `vqkit.recipes.generation`.
    """
    require(data_set in TRAIN_IMAGES, f"data_set={data_set!r}", "expected 'imagenet' or 'ffhq'")
    model = GPTConfig(
        architecture="gpt2",
        slots=options.get("slots"),
        conditional=data_set == "imagenet",
        label_dropout=0.0,
        token_noise=0.2,
        tie_embeddings=True,
    )
    batch = options.get("batch_size", 1024)
    steps = TRAIN_IMAGES[data_set] // batch
    num_steps = options.get("num_steps", EPOCHS * steps)
    optim = OptimConfig(
        num_steps=num_steps,
        batch_size=batch,
        lr=4.5e-4,
        schedule="linear",
        warmup_steps=min(WARMUP_EPOCHS * steps, num_steps // 20),
        betas=(0.9, 0.95),
        weight_decay=0.01,
        clip_norm=1.0,
        precision="bf16",
    )
    return _run(f"lc_gpt_{data_set}", model, optim, options)


def gpt_mnist(**options: Unpack[GPTOptions]) -> GeneratorRun:
    """A small GPT on MNIST's tokens, by class: 1.8 million weights and two tables.

    Command: `vqkit train gpt_mnist --tokens tokens/mnist`.
    Sampling: guidance 2, top-p 0.9.
    Data: a token set of MNIST, 7 x 7 positions or so. 1,000 steps of 64 images, about an epoch:
    minutes on one core of a CPU.
    """
    return _small("gpt_mnist", 1000, options)


def gpt_cifar10(**options: Unpack[GPTOptions]) -> GeneratorRun:
    """A small GPT on CIFAR-10's tokens, by class: 1.8 million weights and two tables.

    Command: `vqkit train gpt_cifar10 --tokens tokens/cifar10`.
    Sampling: guidance 2, top-p 0.9.
    Data: a token set of CIFAR-10, 8 x 8 positions or so. 3,000 steps of 64 images, about 4 epochs.
    """
    return _small("gpt_cifar10", 3000, options)


def gpt_photos(**options: Unpack[GPTOptions]) -> GeneratorRun:
    """A small GPT on the tokens of photographs, without classes: 1.8 million weights, two tables.

    Command: `vqkit train gpt_photos --tokens tokens/photos`.
    Sampling: top-p 0.95.
    Data: a token set of photographs, 16 x 16 positions or so. A few hundred images are enough for a
    picture of what it does, not for a model of photographs.
    """
    return _small("gpt_photos", 1000, options, conditional=False)


def _small(
    name: str, num_steps: int, options: GPTOptions, *, conditional: bool = True
) -> GeneratorRun:
    model = GPTConfig(
        layers=4,
        heads=6,
        width=192,
        slots=options.get("slots"),
        depth_layers=2,
        conditional=conditional,
    )
    num_steps = options.get("num_steps", num_steps)
    optim = OptimConfig(
        num_steps=num_steps,
        batch_size=options.get("batch_size", 64),
        lr=2e-3,
        schedule="cosine",
        warmup_steps=min(100, num_steps // 10),
        betas=(0.9, 0.95),
        weight_decay=0.01,
        clip_norm=1.0,
    )
    return _run(name, model, optim, options)


def _run(name: str, model: GPTConfig, optim: OptimConfig, options: GPTOptions) -> GeneratorRun:
    return GeneratorRun(
        name=options.get("name", name),
        tokens=options.get("tokens"),
        held_out=options.get("held_out"),
        model=model,
        optim=optim,
        log=LogConfig(
            every=max(1, min(50, optim.num_steps // 10)),
            checkpoint_every=max(1, min(1000, optim.num_steps // 2)),
        ),
    )
