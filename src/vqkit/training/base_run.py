"""What every run on a folder does between the steps: it resumes, logs, saves and records."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import torch
from torch import nn

from vqkit.config import LogConfig, OptimConfig
from vqkit.quantizers import ranks
from vqkit.training import health, run_folder
from vqkit.training.checkpoint import (
    Snapshot,
    newest_checkpoint,
    save_checkpoint,
    set_aside_newer,
)
from vqkit.training.folders import remove_unfinished
from vqkit.training.log import RunLog, read_log
from vqkit.training.machine import (
    command_line,
    describe_machine,
    make_accelerator,
    utc_now,
)
from vqkit.training.pace import Pace
from vqkit.training.settings_file import write_settings
from vqkit.training.stops import forget_stop
from vqkit.training.watch import Watch

logger = logging.getLogger(__name__)

TRIES: Final = 3
"""Checkpoints on end that may fail for the disk before a run stops."""


class Stepper(Protocol):
    """What changes during a run: models, optimizers, and the number of steps done."""

    done: int

    def agree(self, wish: bool) -> bool:
        """Return whether any process wishes it."""

    def snapshot(self, record: dict[str, Any]) -> Snapshot:
        """Return the state after `done` steps."""

    def restore(self, snapshot: Snapshot) -> None:
        """Continue where `snapshot` was taken."""

    def models(self) -> tuple[nn.Module, ...]:
        """List the networks that learn, the one that is to be saved first."""


class BaseRun(ABC):
    """A trainer, its data and its folder; `Run` trains tokenizers, `FitRun` what learns tokens."""

    trainer: Stepper
    product: str
    """Folder of the finished thing."""
    put_back: ClassVar[str]
    """What helps where data cannot be read."""
    settings: dict[str, Any]
    """As JSON values."""
    watch: Watch
    data: dict[str, Any]
    """Which data these are."""

    def __init__(self, folder: Path, optim: OptimConfig, log: LogConfig, product: str) -> None:
        """Join the other processes; see whether the run is `finished`, which loads nothing."""
        self.folder, self.optim, self.log_settings, self.product = folder, optim, log, product
        self.accelerator = make_accelerator()
        self.accelerator.wait_for_everyone()  # the main process may have removed another run
        self.main = self.accelerator.is_main_process
        result = run_folder.read_result(folder, product)
        self.finished = result is not None and result["steps"] == optim.num_steps
        self.line: dict[str, Any] | None = None
        """The line of the last step, while it waits for its validation."""
        self.failures = self.saved = 0
        """Checkpoints on end that could not be written, and the step of the newest one."""
        self._pace = Pace()
        self._started = utc_now()

    # ------------------------------------------------------------------ what is of one kind only

    @abstractmethod
    def check_data(self, record: dict[str, Any]) -> None:
        """Raise `ValueError` if the data are not those of a checkpoint's record."""

    @abstractmethod
    def finish_line(self, log: RunLog, stop: Callable[[], bool]) -> None:
        """Validate if it is time and write the line, which `stop` may put off."""

    @abstractmethod
    def write_model(self, folder: Path) -> None:
        """Save the model as it is now, for a checkpoint."""

    @abstractmethod
    def write_product(self, folder: Path) -> None:
        """Save the finished thing."""

    # ------------------------------------------------------------------ beginning

    def resume(self) -> None:
        """Continue from the newest whole checkpoint, if there is one, and make the folder ready."""
        self.machine = describe_machine(self.accelerator.device, self.accelerator.num_processes)
        snapshot, refused = newest_checkpoint(self.folder)
        if snapshot is None and refused:
            raise ValueError(
                f"out={self.folder}: no checkpoint of this run is whole ({'; '.join(refused)}); "
                "train in another folder"
            )
        for reason in refused:
            logger.warning("checkpoint passed over: %s", reason)
        if snapshot is not None:
            self.check_data(snapshot.record)
            self.trainer.restore(snapshot)
            self.restore_record(snapshot.record)
        self._check_together(0 if snapshot is None else snapshot.step)  # all have read; one writes
        if self.main:
            remove_unfinished(self.folder)
            set_aside_newer(self.folder, self.trainer.done)
            run_folder.forget_result(self.folder)
            forget_stop(self.folder)
            write_settings(self.folder, self.settings)
        self.accelerator.wait_for_everyone()
        self.saved = self.trainer.done
        self._pace.start(self.trainer.done)

    def _check_together(self, step: int) -> None:
        """Raise `ValueError` on all processes unless they see the same checkpoint and data."""
        seen = hashlib.sha256(repr((step, self.data)).encode()).digest()[:6]
        mine = torch.tensor([[step, int.from_bytes(seen, "big")]])
        rows = ranks.gather_over_ranks(mine.to(self.accelerator.device)).view(-1, 2)
        if bool((rows != rows[0]).any()):
            raise ValueError(
                f"out={self.folder}: processes do not see the same (checkpoints of the steps "
                f"{rows[:, 0].tolist()}, or other images); give all machines the same folders"
            )

    def restore_record(self, record: dict[str, Any]) -> None:
        """Continue from `record()`."""
        self._pace.seconds_before = record["seconds"]
        self._started = record.get("started", self._started)
        if record.get("watch"):
            self.watch.restore(record["watch"])
        self.line = record.get("line")

    # ------------------------------------------------------------------ where it stands

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.trainer.done

    @property
    def complete(self) -> bool:
        """Whether the last step is done, and looked at."""
        return self.step >= self.optim.num_steps and self.line is None

    @property
    def checkpoint_due(self) -> bool:
        """Whether the settings ask for a checkpoint after this step."""
        return self.complete or self.step % self.log_settings.checkpoint_every == 0

    def open_log(self) -> RunLog:
        """Continue the log where the trainer stands."""
        board = self.log_settings.tensorboard
        # A line that waits for its validation may be there already, if its checkpoint was not.
        start = self.step if self.line is None else self.step - 1
        return RunLog(self.folder, start=start, tensorboard=board, main=self.main)

    def write_line(self, log: RunLog) -> None:
        """Write the line that waits, with what the rules of health say to it."""
        assert self.line is not None  # it is due
        remarks = self.watch.remarks(self.line)
        for said in (said for kind in remarks.values() for said in kind):
            if self.main:
                logger.warning("step %d: %s: %s; %s", self.step, *said.values())
        log.write(self.line | remarks)
        self.line = None

    # ------------------------------------------------------------------ checkpoints, result

    def save(self, log: RunLog, *, final: bool) -> None:
        """Write a checkpoint, unless weights are not finite or processes have drifted apart.

        A disk that fails is survived, with a warning, for `TRIES` - 1 times on end; the next one,
        or a `final` checkpoint, is an `OSError` on all processes.
        """
        for model in reversed(self.trainer.models()):
            health.check_weights(model, self.step, self.saved)
            health.check_ranks_agree(model, self.accelerator.device, self.step)
        snapshot = self.trainer.snapshot(self.record())
        failure: OSError | None = None
        if self.main:
            try:
                log.flush()
                keep = self.log_settings.keep
                save_checkpoint(self.folder, snapshot, self.write_model, keep)
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
        """Return what belongs to every result: settings, data, command, machine and time."""
        return {
            "config": self.settings,
            **self.data,
            "command": command_line(),
            "started": self._started,
            "seconds": self._pace.seconds,
            **self.machine,
        }

    def record(self) -> dict[str, Any]:
        """Return `facts`, and what a resumed run must know besides tensors."""
        return self.facts() | {"watch": self.watch.state(), "line": self.line}

    def write_result(self) -> None:
        """Save the finished thing and the record of the run."""
        if self.main:
            lines = read_log(self.folder / "log.jsonl")
            facts = {**self.facts(), "ended": utc_now()}
            result = {"steps": self.step, **facts, "last_line": lines[-1]}
            run_folder.write_result(self.folder, self.product, self.write_product, result)
        self.accelerator.wait_for_everyone()
