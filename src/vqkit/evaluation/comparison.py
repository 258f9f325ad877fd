"""Several tokenizers on the same images: one table, the numbers as JSON, and one picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqkit.data import ImageSet, to_float
from vqkit.evaluation.evaluator import evaluate
from vqkit.evaluation.picture import Column, draw, png_bytes_of
from vqkit.evaluation.result import Evaluation
from vqkit.evaluation.tables import compare_table
from vqkit.metrics import psnr, to_bytes
from vqkit.models import ImageTokenizer
from vqkit.models.files import write_beside

FORMAT = "vqkit-comparison-1"
MAX_PICTURES = 5
"""Images shown: the first ones of the set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """A tokenizer that takes part."""

    name: str
    tokenizer: ImageTokenizer
    train_seconds: float | None = None
    """Wall time of its training, where it is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What a comparison found, and where it was written."""

    evaluations: tuple[Evaluation, ...]
    table: str
    """Markdown."""
    table_path: Path
    json_path: Path
    picture_path: Path


def compare(
    contestants: Sequence[Contestant],
    images: ImageSet,
    out: Path | str,
    *,
    note: str = "",
    batch_size: int = 16,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Measure tokenizers on every image of a set and write `out`/table.md, table.json and
    comparison.png, each whole or not at all.

    Args:
        contestants: tokenizers with different names, in the order of the table.
        images: the same for all.
        out: folder, made if needed.
        note: a sentence below the table and the picture, such as what it must not be taken for.
        batch_size: images of one size that go through a model together.
        progress: called with a name before that tokenizer is measured.

    Raises:
        ValueError: nobody to compare, equal names, or images that a tokenizer does not take.
    """
    names = [one.name for one in contestants]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"contestants={names}: give at least one, all with different names")
    evaluations: list[Evaluation] = []
    for one in contestants:
        _check_channels(one, images)
        if progress is not None:
            progress(one.name)
        lossless = evaluations[0].lossless if evaluations else None
        evaluations.append(
            evaluate(one.tokenizer, images, batch_size=batch_size, name=one.name, lossless=lossless)
        )
    table = "\n".join([compare_table(evaluations), *_training(contestants), *([note] * bool(note))])
    picture = png_bytes_of(draw(_columns(contestants, evaluations, images), note=note))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    numbers = _to_dict(contestants, evaluations, note)
    return Comparison(
        evaluations=tuple(evaluations),
        table=table,
        table_path=write_beside(out / "table.md", f"{table}\n".encode()),
        json_path=write_beside(out / "table.json", numbers),
        picture_path=write_beside(out / "comparison.png", picture),
    )


def _check_channels(one: Contestant, images: ImageSet) -> None:
    taken = one.tokenizer.config.network.image_channels
    if taken != images.channels:
        raise ValueError(
            f"data.channels={images.channels}: {one.name} takes images of {taken}; compare "
            "tokenizers of the same kind of images, or set data.channels"
        )


def _training(contestants: Sequence[Contestant]) -> list[str]:
    known = [c for c in contestants if c.train_seconds is not None]
    if not known:
        return []
    times = ", ".join(f"{c.name} {c.train_seconds:.0f}" for c in known)
    return [f"Seconds of training: {times}."]


def _columns(
    contestants: Sequence[Contestant], evaluations: Sequence[Evaluation], images: ImageSet
) -> list[Column]:
    """Originals and reconstructions of the first images, with the PSNR of each."""
    originals = [images.image(i) for i in range(min(len(images), MAX_PICTURES))]
    columns = [Column(title="original", lines=("", ""), pictures=originals, captions=[])]
    for one, found in zip(contestants, evaluations, strict=True):
        pictures, captions = [], []
        for original in originals:
            rebuilt = _rebuild(one.tokenizer, original)
            pictures.append(rebuilt)
            captions.append(f"{float(psnr(rebuilt[None], original[None])[0]):.1f} dB")
        floats = f"{found.codebook_floats:,} floats"
        rate = f"{found.value('rate'):.3g} bits/pixel"
        columns.append(
            Column(title=one.name, lines=(rate, floats), pictures=pictures, captions=captions)
        )
    return columns


def _rebuild(tokenizer: ImageTokenizer, image: Tensor) -> Tensor:
    """One uint8 image (C, H, W) after encode and decode, as uint8."""
    device = next(tokenizer.parameters()).device
    with torch.no_grad():
        rebuilt = tokenizer.reconstruct(to_float(image[None]).to(device))
    return to_bytes(rebuilt)[0].cpu()


def _to_dict(
    contestants: Sequence[Contestant], evaluations: Sequence[Evaluation], note: str
) -> bytes:
    runs: list[dict[str, Any]] = [
        {"name": one.name, "train_seconds": one.train_seconds, "evaluation": found.to_dict()}
        for one, found in zip(contestants, evaluations, strict=True)
    ]
    values = {"format": FORMAT, "note": note, "runs": runs}
    return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()
