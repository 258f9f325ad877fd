"""Validation during training: numbers and pictures of fixed images, and the best tokenizer so far.

validation/step_00001000.png   the first images, each above its reconstruction
best/                          the tokenizer with the best score, loadable as any saved tokenizer
best/best.json                 its step, metric, score and all numbers of that validation

The tokenizer that is looked at is the one for use: averaged weights if the run keeps them, in
evaluation mode. It is a copy, and nothing is drawn from the run's random generators.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from vqkit.config import RunConfig, ValidationConfig
from vqkit.data import Batch, BrokenImageError, ImageSet, iterate_once, load_images, to_float
from vqkit.data.share import Share
from vqkit.metrics import DEFAULT, CodeUsage, mean_absolute_error, psnr, to_bytes
from vqkit.metrics.lpips import LPIPS
from vqkit.metrics.reduction import sum_over_processes
from vqkit.models import ImageTokenizer
from vqkit.models.files import write_whole
from vqkit.quantizers import ranks
from vqkit.training.feed import unreadable
from vqkit.training.folders import whole_folder

logger = logging.getLogger(__name__)

PICTURES: Final = "validation"
BEST: Final = "best"
RECORD: Final = "best.json"
METRICS: Final = ("psnr", "l1", "lpips")
_ROW, _GAP = 8, 2  # images side by side; pixels between them


class UnreadableError(OSError):
    """A validation image cannot be read, by this process or another one."""


class Validator:
    """Looks at the images of `config.validation`; several processes share them.

    `best` is part of a checkpoint: a resumed run chooses as the undisturbed one does.
    """

    def __init__(self, config: RunConfig, folder: Path, lpips: LPIPS | None) -> None:
        """Open the images; without any, or with the wrong ones, this is a `ValueError`."""
        assert config.validation is not None  # nothing is to be made otherwise
        self.config: ValidationConfig = config.validation
        self.folder, self.lpips = folder, lpips
        self.num_steps = config.optim.num_steps
        self.images = load_images(self.config.data)
        self._fingerprint = self.images.fingerprint()
        self.best: dict[str, Any] | None = None
        """`step`, `metric` and `score` of the best tokenizer so far."""

    def due(self, step: int) -> bool:
        """Tell whether the tokenizer is looked at after `step` steps."""
        return step % self.config.every == 0 or step == self.num_steps

    def look(
        self, tokenizer: ImageTokenizer, step: int, stop: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Measure `tokenizer`; write a picture of it, and keep it if it is the best.

        Every process calls this at the same step.

        Args:
            tokenizer: in evaluation mode, equal on all processes; it is not changed.
            step: optimizer steps done.
            stop: asked between batches; where any process says yes, all break off.

        Returns:
            Numbers over all images, keys as in the log: `validation/psnr` (dB, mean over images of
            at most 100), `validation/l1` (of pixels in [0, 1]), `validation/lpips` if the run
            trains with it, `validation/codes_used` (share of codes) and `validation/perplexity`,
            both means over codebooks. None if it was broken off.

        Raises:
            UnreadableError: images that are gone or broken.
            ValueError: a reconstruction that is not finite.
            RuntimeError: too little memory, and other errors of the network.
        """
        device = next(tokenizer.parameters()).device
        sums = _Sums(tokenizer, self.lpips)
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            sums.guard(lambda: self._measure(tokenizer, sums, stop))
            if ranks.rank() == 0 and not (sums.broken_off or sums.error):
                sums.guard(lambda: self._draw(tokenizer, step))
        joined = sums.join()
        if joined is None:
            return None
        if ranks.rank() == 0:
            kept = self._keep_best(tokenizer, step, joined)
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in joined.items())
            logger.info("step %d: validation %s%s", step, numbers, "; the best so far" * kept)
        return {f"validation/{name}": value for name, value in joined.items()}

    def _measure(self, tokenizer: ImageTokenizer, sums: _Sums, stop: Callable[[], bool]) -> None:
        share = (ranks.rank(), ranks.world_size())
        for originals, ids, rebuilt in self._pairs(tokenizer, Share.of(self.images, share)):
            sums.add(originals, ids, rebuilt)
            sums.broken_off = stop()
            if sums.broken_off:
                return

    def _pairs(
        self, tokenizer: ImageTokenizer, images: ImageSet
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield originals, ids and reconstructions as bytes, batch by batch."""
        device = next(tokenizer.parameters()).device
        for batch in _readable(images, self.config.batch_size):
            originals = batch.images.to(device)
            size = (originals.shape[-2], originals.shape[-1])
            ids = tokenizer.encode(originals)
            yield originals, ids, to_bytes(tokenizer.decode(ids, size=size))

    # ------------------------------------------------------------------ pictures, best

    def _draw(self, tokenizer: ImageTokenizer, step: int) -> None:
        """Write the picture; where it cannot be written, say so and go on."""
        originals: list[Tensor] = []
        rebuilt: list[Tensor] = []
        first = Share(self.images, 0, min(self.config.pictures, len(self.images)))
        for real, _, made in self._pairs(tokenizer, first):
            originals += real.cpu().unbind()
            rebuilt += made.cpu().unbind()
        if not originals:
            return
        path = self.folder / PICTURES / f"step_{step:08}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            write_whole(part, _png(originals, rebuilt))
            os.replace(part, path)
        except OSError as error:
            logger.warning("step %d: no picture of the validation (%s)", step, error)

    def _keep_best(self, tokenizer: ImageTokenizer, step: int, found: Mapping[str, float]) -> bool:
        """Save the tokenizer if no earlier one has a better score; equal ones stay."""
        metric = self.config.keep_best
        if metric == "none":
            return False
        score = found[metric]
        sign = 1 if metric == "psnr" else -1
        if self.best is not None and sign * score <= sign * self.best["score"]:
            return False
        best = {"step": step, "metric": metric, "score": score}
        record = {
            **best,
            "validation": dict(found),
            "images": len(self.images),
            "data": self._fingerprint,
        }
        try:
            with whole_folder(self.folder / BEST) as part:
                tokenizer.save_pretrained(part)
                write_whole(part / RECORD, (json.dumps(record, indent=2) + "\n").encode())
        except OSError as error:
            logger.warning("step %d: the best tokenizer could not be kept (%s)", step, error)
            return False
        self.best = best
        return True


class _Sums:
    """What one process has seen, and what went wrong for it."""

    def __init__(self, tokenizer: ImageTokenizer, lpips: LPIPS | None) -> None:
        quantizer = tokenizer.quantizer
        self.usage = CodeUsage([slot.num_codes for slot in quantizer.slots], quantizer.books)
        self.lpips = lpips
        self.names = METRICS if lpips is not None else METRICS[:2]
        self.totals = torch.zeros(len(self.names) + 1, dtype=torch.float64)
        """Sums of the metrics over images, then the number of images."""
        self.broken_off = False
        self.error: Exception | None = None

    def guard(self, action: Callable[[], None]) -> None:
        """Run `action` and keep its error: other processes wait, and must hear of it first."""
        try:
            action()
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            self.error = error

    def add(self, originals: Tensor, ids: Tensor, rebuilt: Tensor) -> None:
        """Count a batch; images are uint8 (B, C, H, W)."""
        scores = [
            psnr(rebuilt, originals).clamp(max=DEFAULT.psnr_cap),
            mean_absolute_error(rebuilt, originals),
        ]
        if self.lpips is not None:
            scores.append(self.lpips(to_float(rebuilt), to_float(originals)))
        sums = torch.stack([score.double().sum().cpu() for score in scores])
        self.totals += torch.cat([sums, torch.tensor([float(len(originals))])])
        self.usage.update(ids)

    def join(self) -> dict[str, float] | None:
        """Return the numbers of all processes together; None if one broke off."""
        unreadable_here = isinstance(self.error, OSError | BrokenImageError)
        wrong = isinstance(self.error, ValueError) and not unreadable_here
        signs = [self.broken_off, unreadable_here, wrong, self.error is not None]
        broken_off, gone, bad, failed = sum_over_processes(torch.tensor(signs).double()).tolist()
        if gone:
            raise UnreadableError(f"validation.data: {unreadable(self.error)}") from self.error
        if bad:  # the same kind of error everywhere: what is done about it needs all processes
            mine = self.error if wrong else None
            raise mine or ValueError("validation: another process failed")
        if failed:
            raise self.error or RuntimeError("validation: another process failed")
        if broken_off:
            return None
        *totals, count = sum_over_processes(self.totals).tolist()
        if not count:
            raise UnreadableError("validation.data: none of its images can be read")
        books = self.usage.reduce().by_book()
        return {
            **{name: total / count for name, total in zip(self.names, totals, strict=True)},
            "codes_used": sum(book.usage for book in books) / len(books),
            "perplexity": sum(book.perplexity for book in books) / len(books),
        }


def _readable(images: ImageSet, batch_size: int) -> Iterator[Batch]:
    """Yield batches; whatever is wrong with the images is an `OSError`, and ends no training."""
    try:
        yield from iterate_once(images, batch_size) if len(images) else ()
    except ValueError as error:
        raise UnreadableError(str(error)) from error


def _png(originals: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> bytes:
    """Return a PNG: rows of originals (C, H, W) uint8, each above the row of reconstructions."""
    height, width = (max(image.shape[axis] for image in originals) + _GAP for axis in (1, 2))
    bands = -(-len(originals) // _ROW)
    across = min(_ROW, len(originals))
    sheet = Image.new("RGB", (across * width - _GAP, 2 * bands * height - _GAP), "white")
    for row, images in enumerate((originals, rebuilt)):
        for number, image in enumerate(images):
            band, column = divmod(number, _ROW)
            picture = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy())
            sheet.paste(picture, (column * width, (2 * band + row) * height))
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()
