"""One run on its folder: what the loop does between the steps."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from vqkit.config import RunConfig
from vqkit.data import BatchStream, ImageSet, load_images
from vqkit.models.settings import Presets
from vqkit.quantizers import ranks
from vqkit.training import health, run_folder
from vqkit.training.checkpoint import (
    newest_checkpoint,
    save_checkpoint,
    set_aside_newer,
)
from vqkit.training.explosion import Explosion
from vqkit.training.folders import remove_unfinished
from vqkit.training.log import RunLog, read_log
from vqkit.training.machine import describe_machine, make_accelerator
from vqkit.training.objective import TokenizerObjective
from vqkit.training.pace import Pace
from vqkit.training.stops import forget_stop
from vqkit.training.trainer import StepReport, Trainer
from vqkit.training.validation import Validator
from vqkit.training.watch import Watch

logger = logging.getLogger(__name__)

TRIES: Final = 3
"""Checkpoints on end that may fail for the disk before a run stops."""


class Run:
    """The trainer, its data and its folder."""

    def __init__(self, config: RunConfig, folder: Path, presets: Presets | None) -> None:
        """Continue what `folder` holds, or begin; a finished run (`finished`) loads nothing."""
        self.config, self.folder, self.presets = config, folder, presets
        self.accelerator = make_accelerator()
        self.accelerator.wait_for_everyone()  # the main process may have removed another run
        self.main = self.accelerator.is_main_process
        result = run_folder.read_result(folder)
        self.finished = result is not None and result["steps"] == config.optim.num_steps
        if self.finished:
            return
        self.settings = run_folder.settings_of(folder, config)
        """As JSON values; the hash of a codebook's file is that of the file as the run began."""
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
        self.machine = describe_machine(self.accelerator.device, self.accelerator.num_processes)
        self.explosion = Explosion(config.log)
        self.watch = Watch.for_run(config)
        self.line: dict[str, Any] | None = None
        """The line of the last step, while it waits for its validation."""
        self.failures = 0
        """Checkpoints on end that could not be written."""
        self._pace = Pace()
        self._restore()
        self.saved = self.trainer.done
        """Step of the newest checkpoint."""
        self._pace.start(self.trainer.done)

    def _restore(self) -> None:
        """Continue from the newest whole checkpoint, if there is one, and make the folder ready."""
        snapshot, refused = newest_checkpoint(self.folder)
        if snapshot is None and refused:
            raise ValueError(
                f"out={self.folder}: no checkpoint of this run is whole ({'; '.join(refused)}); "
                "train in another folder"
            )
        for reason in refused:
            logger.warning("checkpoint passed over: %s", reason)
        if snapshot is not None:
            for name, now in self.data.items():
                _check_same(name, snapshot.record.get(name), now)
            self.trainer.restore(snapshot)
            self._restore_record(snapshot.record)
        self._check_together(0 if snapshot is None else snapshot.step)  # all have read; one writes
        if self.main:
            remove_unfinished(self.folder)
            set_aside_newer(self.folder, self.trainer.done)
            run_folder.forget_result(self.folder)
            forget_stop(self.folder)
            run_folder.write_settings(self.folder, self.settings)
        self.accelerator.wait_for_everyone()

    def _check_together(self, step: int) -> None:
        """Raise `ValueError` on all processes unless they see the same checkpoint and images."""
        seen = hashlib.sha256(repr((step, self.data)).encode()).digest()[:6]
        mine = torch.tensor([[step, int.from_bytes(seen, "big")]])
        rows = ranks.gather_over_ranks(mine.to(self.accelerator.device)).view(-1, 2)
        if bool((rows != rows[0]).any()):
            raise ValueError(
                f"out={self.folder}: processes do not see the same (checkpoints of the steps "
                f"{rows[:, 0].tolist()}, or other images); give all machines the same folders"
            )

    def _restore_record(self, record: dict[str, Any]) -> None:
        self._pace.seconds_before = record["seconds"]
        self.explosion.restore(record.get("explosion", {}))
        if record.get("watch"):
            self.watch.restore(record["watch"])
        if self.validator is not None:
            self.validator.best = record.get("best")
        self.line = record.get("line")

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.trainer.done

    @property
    def complete(self) -> bool:
        """Whether the last step is done, and looked at."""
        return self.step >= self.config.optim.num_steps and self.line is None

    @property
    def checkpoint_due(self) -> bool:
        """Whether the settings ask for a checkpoint after this step."""
        return self.complete or self.step % self.config.log.checkpoint_every == 0

    def open_log(self) -> RunLog:
        """Continue the log where the trainer stands."""
        board = self.config.log.tensorboard
        # A line that waits for its validation may be there already, if its checkpoint was not.
        start = self.step if self.line is None else self.step - 1
        return RunLog(self.folder, start=start, tensorboard=board, main=self.main)

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
        remarks = self.watch.remarks(self.line)
        for said in (said for kind in remarks.values() for said in kind):
            if self.main:
                logger.warning("step %d: %s: %s; %s", self.step, *said.values())
        self.line |= remarks
        log.write(self.line)
        self.line = None

    @property
    def _validation_due(self) -> bool:
        return self.validator is not None and self.validator.due(self.step)

    # ------------------------------------------------------------------ checkpoints, result

    def save(self, log: RunLog, *, final: bool) -> None:
        """Write a checkpoint, unless weights are not finite or processes have drifted apart.

        A disk that fails is survived, with a warning, for `TRIES` - 1 times on end; the next one,
        or a `final` checkpoint, is an `OSError` on all processes.
        """
        for model in (self.trainer.adversary, self.trainer.tokenizer):
            if model is not None:
                health.check_weights(model, self.step, self.saved)
                health.check_ranks_agree(model, self.accelerator.device, self.step)
        snapshot = self.trainer.snapshot(self._record())
        failure: OSError | None = None
        if self.main:
            try:
                log.flush()
                keep = self.config.log.keep
                save_checkpoint(self.folder, snapshot, self.trainer.tokenizer, keep=keep)
            except OSError as error:
                failure = error
        if not self.trainer.agree(failure is not None):
            self.failures, self.saved = 0, self.step
            return
        self.failures += 1
        if final or self.failures >= TRIES:
            raise failure or OSError(f"step={self.step}: process 0 cannot write its checkpoint")
        if self.main:
            logger.warning(
                "step %d: no checkpoint (%s); training goes on and tries again at the next one",
                self.step,
                failure,
            )

    def facts(self) -> dict[str, Any]:
        """Return what belongs to every result: settings, data, machine and time."""
        return {
            "config": self.settings,
            **self.data,
            "seconds": self._pace.seconds,
            **self.machine,
        }

    def _record(self) -> dict[str, Any]:
        """Return `facts`, and what a resumed run must know besides tensors."""
        return self.facts() | {
            "explosion": self.explosion.state(),
            "watch": self.watch.state(),
            "best": self.validator.best if self.validator is not None else None,
            "line": self.line,
        }

    def write_result(self) -> None:
        """Save the finished tokenizer and the record of the run."""
        if self.main:
            lines = read_log(self.folder / "log.jsonl")
            result = {"steps": self.step, **self.facts(), "last_line": lines[-1]}
            run_folder.write_result(self.folder, self.trainer.result(), result)
        self.accelerator.wait_for_everyone()


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
