"""Modelability: how many bits an image costs a small GPT that has learnt a tokenizer's tokens.

A tokenizer with good reconstructions may have tokens that nothing can predict. The score is the
mean of -log2 p(tokens of an image) on held-out images, of one fixed GPT without classes.

Held equal for all token sets: the architecture (layers, widths and heads of the trunk and of the
depth transformer, which writes the tokens of a position where there are several), the optimizer and
its schedule, the images of a step, and the training compute: floating-point operations of forward
and backward, as torch counts matrix products and attention. Not equal, since it follows from the
tokens: the number of steps that this compute pays for, and the tables of the vocabularies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from vqkit.config import GeneratorRun, GPTConfig, LogConfig, OptimConfig, require
from vqkit.generation.generator import Card
from vqkit.generation.gpt.generator import build_gpt
from vqkit.generation.gpt.network import GPT
from vqkit.generation.gpt.task import measure_bits
from vqkit.generation.loading import load_generator
from vqkit.generation.training import card_of, train_generator
from vqkit.models.files import write_beside
from vqkit.tokens import TokenSet
from vqkit.tokens.sets.layout import SIZE
from vqkit.tokens.sets.mapped import read_columns

COMPUTE: Final = 1e13
"""Floating-point operations of a training, unless asked otherwise."""
BATCH: Final = 64
"""Images of a step."""
_COUNTED: Final = 2
"""Images whose operations are counted; the number grows in proportion."""
_LEAST: Final = 20
"""Steps of a training."""
RESULT: Final = "modelability.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Modelability:
    """What one token set costs."""

    name: str
    bits_per_image: float
    """Of held-out images, by the trained GPT."""
    nominal_bits: float
    """Per image: Σ log2(codes) of all its tokens."""
    entropy_bits: float
    """Per image: zero-order entropy of the held-out tokens, every slot on its own."""
    pixels: int
    """Of an image."""
    num_tokens: int
    """Of an image."""
    num_images: int
    """Held-out images measured."""
    compute: float
    """Floating-point operations of the training."""
    steps: int
    batch_size: int
    epochs: float
    """Times that an image was seen, on average."""
    parameters: int
    tokens: str
    """Fingerprint of the token set trained on."""
    held_out: str
    tokenizer: str
    """`vqkit.tokens.tokenizer_hash`."""
    seed: int

    @property
    def bits_per_pixel(self) -> float:
        """Held-out bits of the GPT per pixel."""
        return self.bits_per_image / self.pixels

    @property
    def nominal_bits_per_pixel(self) -> float:
        """Bits of the tokens as they are."""
        return self.nominal_bits / self.pixels

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        rates = {name: getattr(self, name) for name in ("bits_per_pixel", "nominal_bits_per_pixel")}
        return asdict(self) | rates


def fixed_gpt(num_slots: int) -> GPTConfig:
    """Return the GPT that measures: 4 layers of width 96, and one depth layer for several slots."""
    return GPTConfig(
        layers=4,
        heads=4,
        width=96,
        depth_layers=1,
        slots="depth" if num_slots > 1 else None,
        conditional=False,
    )


def modelability(
    tokens: Path | str,
    held_out: Path | str,
    out: Path | str,
    *,
    compute: float = COMPUTE,
    batch_size: int = BATCH,
    seed: int = 0,
    name: str | None = None,
    progress: bool = True,
    measuring: Callable[[str], None] | None = None,
) -> Modelability:
    """Train the fixed GPT on a token set and measure its bits on another of the same tokenizer.

    A run in the folder `out` goes on where it stands; a finished one is read.

    Args:
        tokens: token set to train on; its images all have one size.
        held_out: token set of other images, by the same tokenizer.
        out: folder of the GPT's run, and of the result.
        compute: operations of the training.
        batch_size: images of a step.
        seed: of weights and order.
        name: of the result; default the folder's.
        progress: show steps and time left on stderr.
        measuring: is told when the training is over.

    Raises:
        ValueError: token sets that do not fit together, or compute for less than 20 steps.
    """
    train, test = TokenSet.open(tokens), TokenSet.open(held_out)
    card = card_of(train, conditional=False)
    steps, operations = steps_for(train, compute, batch_size)
    run = GeneratorRun(
        name=name or Path(tokens).name,
        tokens=str(tokens),
        held_out=str(held_out),
        model=fixed_gpt(len(card.slots)),
        optim=_optim(steps, batch_size),
        log=LogConfig(every=max(1, steps // 50), checkpoint_every=max(10, steps // 4)),
        seed=seed,
    )
    train_generator(run, out, progress=progress)
    if measuring is not None:
        measuring(run.name)
    found = _measured(run, out, train, test, steps * batch_size * operations)
    write_beside(Path(out) / RESULT, (json.dumps(found.to_dict(), indent=2) + "\n").encode())
    return found


def _measured(
    run: GeneratorRun, out: Path | str, train: TokenSet, test: TokenSet, compute: float
) -> Modelability:
    """Measure the finished GPT of a run, whose training took `compute`, on held-out tokens."""
    network = load_generator(out).network
    assert isinstance(network, GPT)
    card, optim = card_of(train, conditional=False), run.optim
    positions = card.grid[0] * card.grid[1]
    return Modelability(
        name=run.name,
        bits_per_image=measure_bits(network, test)["bits_per_image"],
        nominal_bits=positions * sum(math.log2(slot.num_codes) for slot in card.slots),
        entropy_bits=_entropy(test, card),
        pixels=math.prod(_sizes(test)),
        num_tokens=positions * len(card.slots),
        num_images=test.num_images,
        compute=compute,
        steps=optim.num_steps,
        batch_size=optim.batch_size,
        epochs=optim.num_steps * optim.batch_size / train.num_images,
        parameters=sum(p.numel() for p in network.parameters()),
        tokens=train.fingerprint,
        held_out=test.fingerprint,
        tokenizer=train.tokenizer,
        seed=run.seed,
    )


def steps_for(tokens: TokenSet, compute: float, batch_size: int = BATCH) -> tuple[int, float]:
    """Return the steps that so much compute pays for, and the operations for one image.

    Raises:
        ValueError: compute for less than 20 steps, or tokens that the GPT does not take.
    """
    card = card_of(tokens, conditional=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ids = tokens.ids(range(_COUNTED))
        operations = training_operations(fixed_gpt(len(card.slots)), card, ids)
    steps = int(compute // (operations * batch_size))
    least = _LEAST * operations * batch_size
    told = f"pays {steps} steps; give at least {least:.3g}"
    require(steps >= _LEAST, f"compute={compute:g}", told)
    return steps, operations


def training_operations(config: GPTConfig, card: Card, ids: Tensor) -> float:
    """Return the operations of forward and backward for one image, given some ids (B, h, w, T).

    Multiplications and additions of matrix products and attention, as torch counts them; the same
    on every device, since attention is counted as the products that it is made of.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    network = build_gpt(config, card)
    labels = torch.full((len(ids),), card.num_classes, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(ids, labels).mean().backward()
    return counter.get_total_flops() / len(ids)


def _optim(steps: int, batch_size: int) -> OptimConfig:
    return OptimConfig(
        num_steps=steps,
        batch_size=batch_size,
        lr=2e-3,
        schedule="cosine",
        warmup_steps=min(100, steps // 10),
        betas=(0.9, 0.95),
        weight_decay=0.01,
        clip_norm=1.0,
    )


def _entropy(tokens: TokenSet, card: Card) -> float:
    """Return the zero-order entropy of an image's tokens in bits, every slot on its own."""
    total = 0.0
    counts = [torch.zeros(slot.num_codes, dtype=torch.int64) for slot in card.slots]
    for start in range(0, tokens.num_images, 1024):
        ids = tokens.ids(range(start, min(start + 1024, tokens.num_images)))
        for number, count in enumerate(counts):
            count += ids[..., number].flatten().bincount(minlength=len(count))
    for count in counts:
        share = count[count > 0].double() / count.sum()
        total -= float((share * share.log2()).sum())
    return total * card.grid[0] * card.grid[1]


def _sizes(tokens: TokenSet) -> tuple[int, int]:
    """Return height and width of all images in pixels; several sizes are a `ValueError`."""
    paths = [tokens.folder / shard["file"] for shard in tokens.manifest["shards"]]
    tables = [read_columns(path, list(SIZE)) for path in paths]
    height, width = ({int(v) for t in tables for v in t.column(n).to_numpy()} for n in SIZE)
    one = len(height) == len(width) == 1
    require(one, "held_out", "its images have several sizes; bits per pixel need one")
    return height.pop(), width.pop()
