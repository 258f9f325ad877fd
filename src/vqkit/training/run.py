"""One run on its folder: what the loop does between the steps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vqkit.config import RunConfig
from vqkit.data import BatchStream, ImageSet, load_images
from vqkit.models.settings import Presets
from vqkit.training import health, run_folder
from vqkit.training.base_run import BaseRun
from vqkit.training.explosion import Explosion
from vqkit.training.log import RunLog
from vqkit.training.objective import TokenizerObjective
from vqkit.training.step_report import StepReport
from vqkit.training.trainer import Trainer
from vqkit.training.validation import Validator
from vqkit.training.watch import Watch

logger = logging.getLogger(__name__)


class Run(BaseRun):
    """The trainer of a tokenizer, its images and its folder."""

    trainer: Trainer
    put_back = (
        "put everything back as it was, and the same command goes on (a file that never was an "
        "image: take it out, or set data.on_broken=skip, and train in another folder)"
    )

    def __init__(self, config: RunConfig, folder: Path, presets: Presets | None) -> None:
        """Continue what `folder` holds, or begin; a finished run (`finished`) loads nothing."""
        super().__init__(folder, config.optim, config.log, run_folder.TOKENIZER)
        self.config, self.presets = config, presets
        if self.finished:
            return
        # The hash of a codebook's file is that of the file as the run began.
        self.settings = run_folder.settings_of(folder, config)
        images = load_images(config.data)
        self.stream = BatchStream(
            images,
            config.optim.batch_size,
            seed=config.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        self.data = {"data": _describe(images)}
        objective = TokenizerObjective(config.objective, self.accelerator.device)
        built = run_folder.without_files(folder, config)
        self.trainer = Trainer(built, self.accelerator, objective, presets=presets)
        held = config.validation is not None
        self.validator = Validator(config, folder, objective.lpips) if held else None
        if self.validator is not None:
            self.data["validation_data"] = _describe(self.validator.images)
        self.explosion = Explosion(config.log)
        self.watch = Watch.for_run(config)
        self.resume()

    def check_data(self, record: dict[str, Any]) -> None:
        """Raise `ValueError` if images are not those of the checkpoint."""
        for name, now in self.data.items():
            _check_same(name, record.get(name), now)

    def restore_record(self, record: dict[str, Any]) -> None:
        """Continue from `record()`."""
        super().restore_record(record)
        self.explosion.restore(record.get("explosion", {}))
        if self.validator is not None:
            self.validator.best = record.get("best")

    # ------------------------------------------------------------------ a line of the log

    def begin_line(self, report: StepReport) -> None:
        """Make the line of this step if one is due: its losses, and health since the last line."""
        last = self.step >= self.config.optim.num_steps
        due = self.step % self.config.log.every == 0
        of_epoch = self._close_epoch()
        if not (due or last or of_epoch or self._validation_due):
            return
        line: dict[str, Any] = {"step": self.step}
        line |= self.trainer.mean_over_processes(report.losses)
        line["gradient_norm"] = report.norm
        # Between the regular lines the window goes on, as it would have without this one.
        window = self.trainer.window
        line |= window.close(self.step) if due else window.summary(self.step)
        line |= of_epoch
        line |= self._pace.line(self.step, self.config.optim.batch_size)
        line |= health.memory(self.accelerator.device)
        self.line = line

    def _close_epoch(self) -> dict[str, Any]:
        """Return what the epoch that ends with this step has drawn; empty within an epoch."""
        epoch, rest = divmod(self.step, self.stream.batches_per_epoch)
        return {} if rest else self.trainer.epochs.close(epoch)

    def finish_line(self, log: RunLog, stop: Callable[[], bool]) -> None:
        """Validate if it is time, and write the line; `stop` breaks a validation off.

        What was broken off stays in `line`, hence in the checkpoint, and is made good at a resume.
        """
        if self.line is None:
            return
        if self._validation_due:
            assert self.validator is not None
            with self._pace.paused():
                found = self.validator.look(self.trainer.result(), self.step, stop)
            if found is None:
                return
            self.line |= found
        self.write_line(log)

    @property
    def _validation_due(self) -> bool:
        return self.validator is not None and self.validator.due(self.step)

    # ------------------------------------------------------------------ checkpoints, result

    def record(self) -> dict[str, Any]:
        """Return `facts`, and what a resumed run must know besides tensors."""
        return super().record() | {
            "explosion": self.explosion.state(),
            "best": self.validator.best if self.validator is not None else None,
        }

    def write_model(self, folder: Path) -> None:
        """Save the tokenizer as it is now."""
        self.trainer.tokenizer.save_pretrained(folder)

    def write_product(self, folder: Path) -> None:
        """Save the finished tokenizer."""
        self.trainer.result().save_pretrained(folder)


def _describe(images: ImageSet) -> dict[str, Any]:
    return {"fingerprint": images.fingerprint(), "images": len(images)}


def _check_same(name: str, was: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """Raise `ValueError` if images are not those of the checkpoint, which may know of none."""
    if was is not None and was != now:
        raise ValueError(
            f"{name}: the images are not those of the checkpoint ({now['images']:,} now, "
            f"{was['images']:,} then, or other names, sizes or settings); restore them, or train "
            "in another folder"
        )
