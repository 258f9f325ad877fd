"""One run of `fit` on its folder: what the loop does between the steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vqkit.config import LogConfig, OptimConfig
from vqkit.training import health
from vqkit.training.base_run import BaseRun
from vqkit.training.fit_task import Groups, Task
from vqkit.training.fit_trainer import FitTrainer
from vqkit.training.log import RunLog
from vqkit.training.step_report import StepReport
from vqkit.training.watch import Watch


class FitRun(BaseRun):
    """A task, its trainer and its folder."""

    trainer: FitTrainer
    put_back = "put the data back as they were, and the same command goes on"

    def __init__(
        self,
        task: Task,
        folder: Path,
        settings: dict[str, Any],
        optim: OptimConfig,
        log: LogConfig,
        *,
        parts: Callable[[Any, int], Sequence[Any]],
        groups: Groups | None,
    ) -> None:
        """Continue what `folder` holds, or begin; a finished run (`finished`) loads nothing."""
        super().__init__(folder, optim, log, settings["product"])
        self.task, self.settings, self.name = task, settings, str(settings["name"])
        if self.finished:
            return
        self.data = {"data": json.loads(json.dumps(task.facts()))}
        seed = settings["seed"]
        self.trainer = FitTrainer(
            task, optim, self.accelerator, seed=seed, parts=parts, groups=groups
        )
        self.watch = Watch(optim.num_steps, every=log.every)
        self.resume()

    def check_data(self, record: dict[str, Any]) -> None:
        """Raise `ValueError` if the data are not those of the checkpoint, as far as it tells.

        What an older version did not write down cannot be compared.
        """
        was, now = record.get("data") or {}, self.data["data"]
        changed = sorted(key for key, value in was.items() if value != now.get(key))
        if changed:
            raise ValueError(
                f"out={self.folder}: the data are not those of the checkpoint (another "
                f"{', '.join(changed)}); restore them, or train in another folder"
            )

    def next_batch(self) -> tuple[Any, Exception | None]:
        """Return the next batch, or the error that prevents it, to be told to all processes."""
        try:
            return self.task.batch(self.step), None
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            return None, error

    @property
    def _last(self) -> bool:
        return self.step >= self.optim.num_steps

    @property
    def _validation_due(self) -> bool:
        return self._last or self.step % self.log_settings.checkpoint_every == 0

    def begin_line(self, report: StepReport) -> None:
        """Make the line of this step if one is due."""
        if self.step % self.log_settings.every and not self._validation_due:
            return
        line: dict[str, Any] = {"step": self.step}
        line |= self.trainer.mean_over_processes(report.losses)
        line["gradient_norm"] = report.norm
        line |= self._pace.line(self.step, self.optim.batch_size)
        line |= health.memory(self.accelerator.device)
        self.line = line

    def finish_line(self, log: RunLog, stop: Callable[[], bool]) -> None:
        """Validate if it is time, and write the line; with `stop` both wait for a resume."""
        if self.line is None:
            return
        if self._validation_due:
            if self.trainer.agree(stop()):
                return
            with self._pace.paused(), self.trainer.finished() as model:
                found = self.task.validate(model)
            self.line |= {f"validation/{name}": value for name, value in found.items()}
        self.write_line(log)

    def write_model(self, folder: Path) -> None:
        """Save the model as it is now."""
        self.task.save(self.trainer.model, folder)

    def write_product(self, folder: Path) -> None:
        """Save the finished thing."""
        with self.trainer.finished() as model:
            self.task.save(model, folder)
