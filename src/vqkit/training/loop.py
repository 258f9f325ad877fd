"""The training loop."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vqkit.config import RunConfig
from vqkit.models import ImageTokenizer
from vqkit.models.settings import Presets
from vqkit.training import endings, run_folder
from vqkit.training.claim import claimed
from vqkit.training.feed import Feed
from vqkit.training.interrupt import Interrupt
from vqkit.training.log import read_log
from vqkit.training.machine import reproducible
from vqkit.training.progress import open_progress
from vqkit.training.rescue import Rescue
from vqkit.training.run import Run


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

    Whatever stops a run is told in one line and kept in `stopped.json`, which `vqkit doctor`
    explains. With several processes all of them stop together, and each raises.

    Raises:
        ValueError: settings that do not fit, a folder of another run or one where another process
            trains, data that changed since the checkpoint, a loss or gradient that is not finite,
            or a reconstruction error that has exploded (`log.explode`); the batch is saved beside.
        OSError: images that cannot be read any more (a checkpoint was saved before), or three
            checkpoints on end, or the last one, that could not be written. Call again to go on.
        MemoryError: too little memory; one process saves what it can.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was saved.
        Terminated: SIGTERM, likewise; a kind of KeyboardInterrupt.
    """
    folder = Path(out) if out is not None else Path("runs") / config.name
    with claimed(folder):
        if os.environ.get("RANK", "0") == "0":  # of several, the one that claims the folder
            run_folder.check_settings(folder, config, resume=resume)
        run = Run(config, folder, presets)
        if not run.finished:
            if not run.complete:  # else it was stopped between its last checkpoint and its result
                _make_steps(run, progress)
            run.write_result()
    _, tokenizer = run_folder.load_run(folder, presets=presets)
    return TrainResult(folder, tokenizer, read_log(folder / "log.jsonl"))


def _make_steps(run: Run, progress: bool) -> None:
    """Train until the last step, with a checkpoint there."""
    steps = run.config.optim.num_steps
    with (
        reproducible(run.accelerator.device, run.config.optim.deterministic),
        Interrupt() as interrupt,
        run.open_log() as log,
        closing(Feed(run.stream, run.step)) as feed,
        closing(open_progress(progress and run.main, run.config.name, run.step, steps)) as shown,
    ):
        rescue = Rescue(run.trainer)
        endings.make_good(run, log, interrupt)
        while not run.complete:
            batch = feed.next()
            endings.stop_if_asked(run, log, interrupt, feed.error)
            assert batch is not None  # or its process had asked
            rescue.mark()
            report = endings.make_step(run, log, partial(run.trainer.step, batch), rescue.undo)
            endings.check(run, batch, report)
            run.begin_line(report)
            if run.line is not None:
                shown.note(run.line)
            shown.update(run.step, report.losses["loss"])
            endings.finish_line(run, log, interrupt)
            endings.save_if_due(run, log)
