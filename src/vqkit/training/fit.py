"""One loop for every model that is trained on tokens: generators and classifiers.

A `Task` says what is trained and on what; `fit` does the rest as safely as `train` does it for a
tokenizer, on the same folder layout, with `<run>/<product>/` in place of `<run>/tokenizer/`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vqkit.config import LogConfig, OptimConfig
from vqkit.training import endings, fit_folder
from vqkit.training.claim import claimed
from vqkit.training.fit_folder import Completed
from vqkit.training.fit_run import FitRun
from vqkit.training.fit_task import Groups, Task, equal_parts
from vqkit.training.interrupt import Interrupt
from vqkit.training.log import read_log
from vqkit.training.machine import reproducible
from vqkit.training.progress import open_progress

__all__ = ["FitResult", "Task", "fit"]


@dataclass(frozen=True, slots=True)
class FitResult:
    """A finished run."""

    folder: Path
    """Settings, log, checkpoints, and the finished thing in `folder / product`."""
    log: list[dict[str, Any]]
    """The lines of `log.jsonl`; `step` counts optimizer steps."""


def fit(
    task: Task,
    *,
    name: str,
    folder: Path | str,
    product: str,
    settings: dict[str, Any],
    optim: OptimConfig,
    log: LogConfig,
    seed: int,
    parts: Callable[[Any, int], Sequence[Any]] = equal_parts,
    groups: Groups | None = None,
    free: Sequence[str] = (),
    completed: Completed = dict,
    resume: bool = True,
    progress: bool = True,
) -> FitResult:
    """Train `task.model` for `optim.num_steps` steps into `folder`.

    Run by `python`, or by `torchrun` with one process per device. If `folder` holds the same run it
    is continued exactly where its newest whole checkpoint stands (bit for bit on a CPU), or
    returned if it is finished. Nothing that is drawn depends on what was drawn before: `losses`
    gets a generator of (seed, step, part, rank), and torch's global one (dropout) is seeded
    likewise.

    Every `log.checkpoint_every` steps and at the end `task.validate` is asked, a line is logged
    with its numbers as `validation/<name>`, and a checkpoint is written, from which
    `model.safetensors` and `config.json` can be loaded as the finished thing can. With
    `optim.weight_ema` averaged weights are validated and are the finished thing.

    Args:
        task: what is trained.
        name: of the run, in progress and tables.
        folder: of the run; new, or one that holds this run.
        product: folder of the finished thing within the run: `generator` or `classifier`.
        settings: everything the run is made of, as JSON values (`to_dict` of its configuration);
            saved as `config.json` with `product`, `name`, `optim`, `log` and `seed`. A folder whose
            settings differ is refused.
        optim: `batch_size` is that of all processes and parts together; weights of two and more
            dimensions decay, others do not, unless `groups` says otherwise.
        log: `explode` has no meaning here.
        seed: of every draw.
        parts: cuts a batch into `optim.accumulate` parts of equal size. The default cuts tensors
            along their first dimension, within tuples, lists, dicts and data classes too.
        groups: returns the optimizer's groups of parameters for a model: `params`, and
            `lr_scale` (1) and `weight_decay` (that of `optim`) where they differ.
        free: beginnings of dotted names of settings that a continued run may change, such as
            `tokens:` (the token set's place; its fingerprint is among `task.facts()`).
        completed: adds to saved settings what an older version did not know, with its default.
        resume: False refuses a folder that holds a run.
        progress: show steps, loss and time left on stderr.

    Raises:
        ValueError: a folder of another run or one where another process trains, data that changed
            since the checkpoint, or a loss or gradient that is not finite.
        OSError: a batch that cannot be read any more (a checkpoint was saved before), or three
            checkpoints on end, or the last one, that could not be written. Call again to go on.
        MemoryError: too little memory; one process saves what it can.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was saved.
        Terminated: SIGTERM, likewise; a kind of KeyboardInterrupt.
    """
    folder = Path(folder)
    wanted = fit_folder.settings_of(settings, product, name, optim, log, seed)
    with claimed(folder):
        if os.environ.get("RANK", "0") == "0":  # of several, the one that claims the folder
            fit_folder.check_settings(
                folder, wanted, optim, resume=resume, free=free, completed=completed
            )
        run = FitRun(task, folder, wanted, optim, log, parts=parts, groups=groups)
        if not run.finished:
            if not run.complete:  # else it was stopped between its last checkpoint and its result
                _make_steps(run, progress)
            run.write_result()
    return FitResult(folder, read_log(folder / "log.jsonl"))


def _make_steps(run: FitRun, progress: bool) -> None:
    """Train until the last step, with a checkpoint there."""
    steps = run.optim.num_steps
    with (
        reproducible(run.accelerator.device, run.optim.deterministic),
        Interrupt() as interrupt,
        run.open_log() as log,
        closing(open_progress(progress and run.main, run.name, run.step, steps)) as shown,
    ):
        endings.make_good(run, log, interrupt)
        while not run.complete:
            batch, error = run.next_batch()
            endings.stop_if_asked(run, log, interrupt, error)
            step = partial(run.trainer.step, batch)
            report = endings.make_step(run, log, step, run.trainer.undo)
            endings.stop_if_not_finite(run, report)
            run.begin_line(report)
            if run.line is not None:
                shown.note(run.line)
            shown.update(run.step, report.losses["loss"])
            endings.finish_line(run, log, interrupt)
            endings.save_if_due(run, log)
