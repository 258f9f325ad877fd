"""The images that a tokenizer rebuilds best and worst (Dual Codebook VQ, Figure 5)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from vqkit.analysis.conditions import Conditions, Progress, check_inputs, conditions_of
from vqkit.analysis.figures import add_footer, new_figure, sizes_text
from vqkit.analysis.rebuilt.panels import (
    add_scale,
    draw_error,
    draw_image,
    error_scale,
    shape_of,
    short_name,
)
from vqkit.analysis.rebuilt.rebuilding import (
    RebuiltBatch,
    RebuiltImage,
    codebook_sizes,
    rebuilt_batches,
)
from vqkit.config import require
from vqkit.config.core import check_choice
from vqkit.data import ImageSet
from vqkit.metrics import DEFAULT, Protocol, psnr, ssim
from vqkit.models import ImageTokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

By = Literal["psnr", "ssim"]
UNITS = {"psnr": " dB", "ssim": " SSIM"}
MOST = 12
"""Images of a row."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ranked:
    """One image, its score, and its place in the set."""

    index: int
    score: float
    image: RebuiltImage

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        return {
            "index": self.index,
            "name": self.image.name,
            "score": self.score,
            "psnr": self.image.psnr,
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Extremes:
    """Best and worst images of a set under one tokenizer."""

    conditions: Conditions
    num_codes: tuple[int, ...]
    """Of every codebook."""
    quality_protocol: Protocol
    by: By
    mean: float
    """Of the score over all images that have one."""
    left_out: int
    """Images below the window of SSIM, which have no score."""
    best: tuple[Ranked, ...]
    """The best first."""
    worst: tuple[Ranked, ...]
    """The worst first."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values, the pixels left out."""
        return {
            "protocol": {**self.conditions.to_dict(), "quality": self.quality_protocol.to_dict()},
            "by": self.by,
            "mean": self.mean,
            "left_out": self.left_out,
            "best": [one.to_dict() for one in self.best],
            "worst": [one.to_dict() for one in self.worst],
        }


def extremes(
    tokenizer: ImageTokenizer,
    images: ImageSet,
    *,
    count: int = 6,
    by: By = "psnr",
    batch_size: int = 16,
    name: str = "tokenizer",
    progress: Progress | None = None,
) -> Extremes:
    """Rebuild every image of a set and keep the best and the worst.

    Memory: 2 × `count` images, whatever the size of the set.

    Args:
        tokenizer: on any device; its mode and state stay as they are.
        images: from `load_images`.
        count: of the best, and as many of the worst; at most 12.
        by: `psnr` or `ssim`, under vqkit's own protocol. Of equal scores the earlier image wins.
        batch_size: images of one size that go through the model together.
        name, progress: as in `code_frequency`.

    Raises:
        ValueError: no image, images of other channels, or none large enough for SSIM.
    """
    check_inputs(tokenizer, images)
    require(1 <= count <= MOST, f"count={count}", f"one row shows 1 to {MOST} images")
    check_choice("by", by, By)
    kept = _Kept(count)
    total, scored, seen, num_tokens = 0.0, 0, 0, 0
    for batch in rebuilt_batches(tokenizer, images, batch_size, DEFAULT, progress):
        num_tokens += batch.num_tokens
        scores = _scores(batch, by)
        if scores is not None:
            total, scored = total + float(scores.sum()), scored + len(scores)
            kept.offer(batch, scores, seen)
        seen += len(batch.names)
    require(
        scored > 0, f"by={by!r}", f"no image has {DEFAULT.ssim_window} pixels a side; use by='psnr'"
    )
    best, worst = kept.ranked()
    return Extremes(
        conditions=conditions_of(
            name, tokenizer, images, num_images=seen, num_tokens=num_tokens, by=by, count=count
        ),
        num_codes=codebook_sizes(tokenizer),
        quality_protocol=DEFAULT.on(images.fingerprint(), seen),
        by=by,
        mean=total / scored,
        left_out=seen - scored,
        best=best,
        worst=worst,
    )


class _Kept:
    """The best and the worst so far, as heaps whose root is the next one to go."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._best: list[tuple[float, int, Ranked]] = []
        self._worst: list[tuple[float, int, Ranked]] = []

    def offer(self, batch: RebuiltBatch, scores: Tensor, first: int) -> None:
        """Take what belongs to the best or worst; image 0 of the batch is number `first`."""
        decibels = psnr(batch.rebuilt, batch.originals).clamp(max=DEFAULT.psnr_cap).tolist()
        for place, score in enumerate(scores.tolist()):
            index = first + place
            for heap, sign in ((self._best, 1), (self._worst, -1)):
                key = (sign * score, -index)
                if len(heap) < self.count or key > heap[0][:2]:
                    image = RebuiltImage(
                        name=batch.names[place],
                        original=batch.originals[place].clone(),  # not a view of the batch
                        rebuilt=batch.rebuilt[place].clone(),
                        psnr=decibels[place],
                    )
                    entry = (*key, Ranked(index=index, score=score, image=image))
                    (heapq.heappush if len(heap) < self.count else heapq.heapreplace)(heap, entry)

    def ranked(self) -> tuple[tuple[Ranked, ...], tuple[Ranked, ...]]:
        """Return the best and the worst, the extreme ones first."""
        heaps = (self._best, self._worst)
        best, worst = (tuple(one for *_, one in sorted(h, reverse=True)) for h in heaps)
        return best, worst


def _scores(batch: RebuiltBatch, by: By) -> Tensor | None:
    if by == "psnr":
        return psnr(batch.rebuilt, batch.originals).clamp(max=DEFAULT.psnr_cap)
    if min(batch.originals.shape[-2:]) < DEFAULT.ssim_window:
        return None
    return ssim(
        batch.rebuilt,
        batch.originals,
        window=DEFAULT.ssim_window,
        sigma=DEFAULT.ssim_sigma,
        data_range=DEFAULT.ssim_range,
    )


def extremes_figure(found: Sequence[Extremes]) -> Figure:
    """Draw for every tokenizer the best and the worst images: original, rebuilt and error.

    All error maps of the figure have one scale.
    """
    every = [ranked for one in found for ranked in (*one.best, *one.worst)]
    columns = max(max(len(one.best), len(one.worst)) for one in found)
    side = min(2.2, 11 / columns)
    blocks = [row for one in found for row in (one.best, one.worst)]
    heights = [3 * side * max(shape_of(r.image.original) for r in row) + 0.75 for row in blocks]
    figure = new_figure(max(6.4, columns * side + 1.6), sum(heights) + 0.4)
    scale = error_scale(ranked.image.error() for ranked in every)
    parts = figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False).flatten()
    for number, one in enumerate(found):
        for part, word, row in zip(
            parts[2 * number :], ("best", "worst"), (one.best, one.worst), strict=False
        ):
            part.suptitle(
                f"{one.conditions.name}, {sizes_text(one.num_codes)}: {word} of "
                f"{one.conditions.num_images:,} images by {one.by.upper()} "
                f"(mean {one.mean:.4g}{UNITS[one.by]})",
                fontsize=10,
            )
            _draw_block(part, row, columns, one.by, scale)
    protocol = found[0].quality_protocol.id
    add_footer(figure, [one.conditions for one in found], protocol)
    return figure


def _draw_block(part: SubFigure, row: Sequence[Ranked], columns: int, by: By, scale: float) -> None:
    panels = part.subplots(3, columns, squeeze=False)
    for axes in panels.flatten():
        axes.set_axis_off()
    drawn: Any = None
    for column, ranked in enumerate(row):
        above, middle, below = panels[:, column]
        draw_image(above, ranked.image.original, short_name(ranked.image.name))
        draw_image(middle, ranked.image.rebuilt, f"{ranked.score:.4g}{UNITS[by]}")
        drawn = draw_error(below, ranked.image.error(), scale)
    for axes, text in zip(panels[:, 0], ("original", "rebuilt", "|error|"), strict=True):
        _name_row(axes, text)
    add_scale(part, drawn, list(panels.flatten()), scale)


def _name_row(axes: Axes, text: str) -> None:
    axes.text(
        -0.06, 0.5, text, transform=axes.transAxes, rotation=90, va="center", ha="right", fontsize=9
    )
