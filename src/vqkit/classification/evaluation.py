"""How often a classifier is right on a token set, and several of them in one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional as F

from vqkit.classification.classifier import TokenClassifier
from vqkit.classification.maps import AT_ONCE, Maps
from vqkit.evaluation.tables import markdown
from vqkit.quantizers import ranks
from vqkit.tokens import TokenSet


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured on a token set."""

    top1: float
    """Share of images whose class has the largest logit, in [0, 1]."""
    top5: float
    """Share of those whose class is among the five largest."""
    loss: float
    """Mean cross-entropy in nats."""
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One classifier in the table."""

    name: str
    quantizer: str
    """Preset of the tokenizer."""
    model: str
    """What reads the class: `vit`, `probe`, `probe on vit`."""
    source: str
    """`codes`, or `latents` before quantization."""
    bits_per_pixel: float
    """Nominal, of the tokens; what `latents` cost is not counted."""
    tokens: int
    """Per image."""
    steps: int
    parameters: int
    """That were learnt."""
    found: Found

    def values(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


@torch.no_grad()
def measure(
    classifier: TokenClassifier, maps: Maps, tokens: TokenSet, *, batch_size: int = AT_ONCE
) -> Found:
    """Measure a classifier, in evaluation mode, on every image of a token set.

    Several processes share the images, and all get the numbers of all.
    """
    device = classifier.mean.device
    sums = torch.zeros(3, dtype=torch.float64)
    mine = torch.arange(tokens.num_images)[ranks.rank() :: ranks.world_size()]
    for rows in mine.split(batch_size) if len(mine) else ():  # fewer images than processes
        labels = tokens.labels(rows)
        made = maps.of_images(tokens, rows, device)
        logits = classifier(classifier.normalised(made)).double().cpu()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([best[:, 0].sum(), best.sum(), loss])
    total = ranks.sum_over_ranks(sums.float().to(device) if ranks.world_size() > 1 else sums)
    top1, top5, loss_sum = (float(value) for value in total / tokens.num_images)
    return Found(top1=top1, top5=top5, loss=loss_sum, images=tokens.num_images)


def bits_per_pixel(maps: Maps, tokens: TokenSet) -> float:
    """Return the nominal bits of all tokens of a set by the pixels of its images."""
    every = tokens.sizes(range(tokens.num_images)).tolist()
    sizes = Counter((height, width) for height, width in every)
    bits = sum(count * maps.tokenizer.bits_per_image(*size) for size, count in sizes.items())
    return bits / sum(count * height * width for (height, width), count in sizes.items())


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table, the rate beside every accuracy."""
    header = ("run", "tokenizer", "reads", "model", "bits/pixel", "tokens", "top-1, %", "top-5, %")
    lines = [
        (
            row.name,
            row.quantizer,
            row.source,
            row.model,
            f"{row.bits_per_pixel:.3f}" if row.source == "codes" else "n/a",
            f"{row.tokens:,}",
            f"{100 * row.found.top1:.2f}",
            f"{100 * row.found.top5:.2f}",
        )
        for row in rows
    ]
    counts = sorted({row.found.images for row in rows})
    steps = "; ".join(
        f"{row.name}: {row.steps:,} steps, {row.parameters:,} weights" for row in rows
    )
    images = " or ".join(f"{count:,}" for count in counts)
    return "\n".join([markdown(header, lines), "", f"{images} images. Trained for: {steps}."])
