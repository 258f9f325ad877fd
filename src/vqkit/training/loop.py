"""The training loop."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqkit.config import RunConfig
from vqkit.data import Batch, BatchStream, load_images
from vqkit.models import ImageTokenizer
from vqkit.models.settings import Presets
from vqkit.training import health, run_folder
from vqkit.training.checkpoint import (
    newest_checkpoint,
    remove_unfinished,
    save_checkpoint,
    set_aside_newer,
)
from vqkit.training.interrupt import Interrupt
from vqkit.training.log import RunLog, read_log
from vqkit.training.machine import describe_machine, make_accelerator, reproducible
from vqkit.training.objective import TokenizerObjective
from vqkit.training.progress import open_progress
from vqkit.training.trainer import StepReport, Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished run."""

    folder: Path
    """What `run_folder` describes: settings, log, checkpoints, tokenizer."""
    tokenizer: ImageTokenizer
    """The tokenizer saved in `folder / "tokenizer"`, in evaluation mode on the CPU."""
    log: list[dict[str, Any]]
    """The lines of `log.jsonl`; `step` counts optimizer steps, `loss` is the total."""


def train(
    config: RunConfig,
    *,
    out: Path | str | None = None,
    resume: bool = True,
    progress: bool = True,
    presets: Presets | None = None,
) -> TrainResult:
    """Train the tokenizer of `config` into the folder `out` (default `runs/<name>`).

    Run by `python`, or by `torchrun` with one process per device. If `out` holds the same run it is
    continued exactly where its newest whole checkpoint stands, or returned if it is finished;
    `resume=False` refuses instead. `progress` shows steps, loss and time left on stderr. `presets`
    adds quantizers of your own by name. Seeds torch's global generator with `config.seed`.

    Raises:
        ValueError: settings that do not fit, a folder of another run, data that changed since the
            checkpoint, or a loss or gradient that is not finite (the batch is saved beside).
        OSError: a checkpoint could not be written; the one before it is whole.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was saved.
    """
    folder = Path(out) if out is not None else Path("runs") / config.name
    run_folder.check_settings(folder, config, resume=resume)
    run = _Run(config, folder, presets)
    if run.finished:
        return run.result()
    if not run.complete:  # else it was stopped between its last checkpoint and its result
        _make_steps(run, progress)
    run.write_result()
    return run.result()


def _make_steps(run: _Run, progress: bool) -> None:
    """Train until the last step, with a checkpoint there."""
    with (
        reproducible(run.accelerator.device),
        Interrupt() as interrupt,
        run.open_log() as log,
        closing(run.stream.iterate(run.trainer.done)) as batches,
        closing(run.open_progress(progress)) as shown,
    ):
        for batch in batches:
            report = run.trainer.step(batch)
            run.stop_unless_finite(batch, report)
            shown.update(run.trainer.done, report.losses["loss"])
            run.write_log(log, report)
            stop = run.trainer.agree(interrupt.requested)
            if stop or run.checkpoint_due:
                log.flush()
                run.save()
            if run.complete:
                break
            if stop:
                raise KeyboardInterrupt(
                    f"stopped after step {run.trainer.done}, saved in {run.folder}"
                )


class _Run:
    """One run on its folder: what `train` does between the steps."""

    def __init__(self, config: RunConfig, folder: Path, presets: Presets | None) -> None:
        self.config, self.folder, self.presets = config, folder, presets
        self.accelerator = make_accelerator()
        self.main = self.accelerator.is_main_process
        result = run_folder.read_result(folder)
        self.finished = result is not None and result["steps"] == config.optim.num_steps
        if self.finished:
            return
        images = load_images(config.data)
        self.stream = BatchStream(
            images,
            config.optim.batch_size,
            seed=config.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        self.data = {"fingerprint": images.fingerprint(), "images": len(images)}
        objective = TokenizerObjective(config.objective)
        self.trainer = Trainer(config, self.accelerator, objective, presets=presets)
        self.machine = describe_machine(self.accelerator.device, self.accelerator.num_processes)
        self._clock = _Clock()
        self._restore()
        self._clock.start(self.trainer.done)

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
            was = snapshot.record["data"]
            if was != self.data:
                raise ValueError(
                    f"data: the images are not those of the checkpoint ({self.data['images']:,} "
                    f"now, {was['images']:,} then, or other names, sizes or settings); restore "
                    "them, or train in another folder"
                )
            self._clock.seconds_before = snapshot.record["seconds"]
            self.trainer.restore(snapshot)
        self.accelerator.wait_for_everyone()  # all have read before one writes
        if self.main:
            remove_unfinished(self.folder)
            set_aside_newer(self.folder, self.trainer.done)
            run_folder.forget_result(self.folder)
            run_folder.write_settings(self.folder, self.config)
        self.accelerator.wait_for_everyone()

    @property
    def complete(self) -> bool:
        """Whether the last step is done."""
        return self.trainer.done >= self.config.optim.num_steps

    @property
    def checkpoint_due(self) -> bool:
        """Whether the settings ask for a checkpoint after this step."""
        return self.complete or self.trainer.done % self.config.log.checkpoint_every == 0

    def open_log(self) -> RunLog:
        """Continue the log where the trainer stands."""
        board = self.config.log.tensorboard
        return RunLog(self.folder, start=self.trainer.done, tensorboard=board, main=self.main)

    def open_progress(self, show: bool) -> Any:
        """Choose the display; only the main process shows one."""
        steps = self.config.optim.num_steps
        return open_progress(show and self.main, self.config.name, self.trainer.done, steps)

    def write_log(self, log: RunLog, report: StepReport) -> None:
        """Write a line if one is due: the step's losses, and health since the last line."""
        due = self.trainer.done % self.config.log.every == 0
        if not due and not self.complete:
            return
        line: dict[str, Any] = {"step": self.trainer.done}
        line |= self.trainer.mean_over_processes(report.losses)
        line["gradient_norm"] = report.norm
        line |= self.trainer.window.summary()
        if due:  # a longer run may go on from here, with the window that it would have had
            self.trainer.window.clear()
        line |= self._clock.line(self.trainer.done, self.config.optim.batch_size)
        if "warning" in line and self.main:
            logger.warning("step %d: %s", self.trainer.done, line["warning"])
        log.write(line)

    def stop_unless_finite(self, batch: Batch, report: StepReport) -> None:
        """Raise `ValueError` naming the batch if its loss or gradient was not finite."""
        if not report.problem:
            return
        step = self.trainer.done + 1
        rank = self.accelerator.process_index
        where = health.save_bad_batch(self.folder, batch, step, report.problem, rank)
        listed = ", ".join(batch.keys[:8]) + (", ..." if len(batch.keys) > 8 else "")
        raise ValueError(
            f"step={step}: {report.problem}; the batch of {len(batch.keys)} images ({listed}) is "
            f"saved in {where} and the last checkpoint is good; train in another folder with a "
            "smaller optim.lr or with optim.clip_norm"
        )

    def save(self) -> None:
        """Write a checkpoint, unless weights are not finite or processes have drifted apart."""
        step = self.trainer.done
        health.check_weights(self.trainer.tokenizer, step)
        health.check_ranks_agree(self.trainer.tokenizer, self.accelerator.device, step)
        snapshot = self.trainer.snapshot(self.record())
        if self.main:
            save_checkpoint(
                self.folder, snapshot, self.trainer.tokenizer, keep=self.config.log.keep
            )
        self.accelerator.wait_for_everyone()

    def record(self) -> dict[str, Any]:
        """Return what belongs to every result: settings, data, machine and time."""
        settings = run_folder.config_to_json(self.config)
        return {
            "config": settings,
            "data": self.data,
            "seconds": self._clock.seconds,
            **self.machine,
        }

    def write_result(self) -> None:
        """Save the finished tokenizer and the record of the run."""
        if self.main:
            lines = read_log(self.folder / "log.jsonl")
            result = {"steps": self.trainer.done, **self.record(), "last_line": lines[-1]}
            run_folder.write_result(self.folder, self.trainer.result(), result)
        self.accelerator.wait_for_everyone()

    def result(self) -> TrainResult:
        """Read the finished run back from its folder."""
        _, tokenizer = run_folder.load_run(self.folder, presets=self.presets)
        return TrainResult(self.folder, tokenizer, read_log(self.folder / "log.jsonl"))


class _Clock:
    """Seconds of training, over all sittings, and the pace since the last line of the log."""

    def __init__(self) -> None:
        self.seconds_before = 0.0
        self.start(0)

    def start(self, step: int) -> None:
        """Begin to count at `step`."""
        self._began = self._last = time.monotonic()
        self._step = step

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.seconds_before + time.monotonic() - self._began

    def line(self, step: int, batch_size: int) -> dict[str, float]:
        """Return what the log says of time after `step`."""
        now = time.monotonic()
        pace = (step - self._step) * batch_size / max(now - self._last, 1e-9)
        self._last, self._step = now, step
        return {"images_per_second": pace, "seconds": self.seconds}
