"""How a run ends before its last step: what is saved, what is kept for the doctor, what is raised.

Every function here is called by all processes at the same step, and raises on all or on none, but
for an error in the middle of a step: where the other processes are then nobody knows.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from vqkit.data import Batch
from vqkit.quantizers import ranks
from vqkit.training import health
from vqkit.training.base_run import BaseRun
from vqkit.training.feed import unreadable
from vqkit.training.interrupt import Interrupt, Terminated
from vqkit.training.log import RunLog
from vqkit.training.run import Run
from vqkit.training.step_report import StepReport
from vqkit.training.stops import Kind, describe_batch, describe_weights, write_stop


def stop_if_asked(run: BaseRun, log: RunLog, interrupt: Interrupt, error: Exception | None) -> None:
    """Save and raise if any process was sent a signal, or cannot read its next batch (`error`)."""
    signs = [interrupt.received is asked for asked in (signal.SIGINT, signal.SIGTERM)]
    mine = torch.tensor([*signs, error is not None], device=run.accelerator.device)
    interrupted, terminated, _ = everyone = ranks.sum_over_ranks(mine.float()).tolist()
    if not any(everyone):
        return
    kept = _save_rest(run, log)
    if interrupted or terminated:
        message = f"stopped after step {run.step}, {kept}"
        _record(run, "signal", run.step, message, name="SIGTERM" if terminated else "SIGINT")
        raise Terminated(message) if terminated else KeyboardInterrupt(message)
    message = (
        f"step={run.step + 1}: data cannot be read ({unreadable(error)}); step {run.step} is "
        f"{kept}; {run.put_back}"
    )
    _record(run, "data", run.step + 1, message)
    raise OSError(message) from error


def make_step(
    run: BaseRun,
    log: RunLog,
    step: Callable[[], StepReport],
    undo: Callable[[BaseException], bool],
) -> StepReport:
    """Make a step; if it fails, save the one before where `undo` brings it back, and raise."""
    try:
        return step()
    except (RuntimeError, ValueError, MemoryError) as error:
        alone = run.accelerator.num_processes == 1
        sound = run.step == run.saved or (alone and undo(error))
        kept = _save_rest(run, log) if sound else f"lost, step {run.saved} is the last saved"
        needs_less = f"optim.accumulate={2 * run.optim.accumulate}"
        _raise(run, error, f"step {run.step} is {kept}", needs_less)


def check(run: Run, batch: Batch, report: StepReport) -> None:
    """Raise `ValueError` naming the batch if a loss is not finite, or has exploded for good."""
    if report.problem:
        kind: Kind = "not_finite"
        step, problem = run.step + 1, report.problem
        left = " and the last checkpoint is good" if run.saved else "; no checkpoint exists yet"
    else:
        error = run.trainer.mean_over_processes({"mse": report.losses["mse"]})["mse"]
        if not run.explosion.look(error):
            return
        kind, step, left = "exploded", run.step, ""
        problem = (
            f"the reconstruction error (mse {error:.3g}) is more than {run.explosion.factor:g} "
            f"times the least of the run ({run.explosion.least:.3g}), for {run.explosion.limit} "
            "steps on end"
        )
    try:
        where = f"saved in {health.save_bad_batch(run.folder, batch, step, problem, ranks.rank())}"
    except OSError as failure:
        where = f"not saved ({failure})"
    listed = ", ".join(batch.keys[:8]) + (", ..." if len(batch.keys) > 8 else "")
    message = (
        f"step={step}: {problem}; the batch of {len(batch.keys)} images ({listed}) is {where}"
        f"{left}; train in another folder with a smaller optim.lr or with optim.clip_norm"
    )
    facts = {
        "problem": f"step {step:,}: {problem}",
        "losses": report.losses,
        "gradient_norm": report.norm,
        "explosion": run.explosion.state(),
        "batch": describe_batch(batch),
        **report.gradients,
        **describe_weights(*run.trainer.models()),
    }
    _record(run, kind, step, message, **facts)
    raise ValueError(message)


def stop_if_not_finite(run: BaseRun, report: StepReport) -> None:
    """Raise `ValueError` if a loss or gradient is not finite; the batch can be drawn again."""
    if not report.problem:
        return
    step = run.step + 1
    left = "the last checkpoint is good" if run.saved else "no checkpoint exists yet"
    message = (
        f"step={step}: {report.problem}; {left}; train in another folder with a smaller optim.lr "
        "or with optim.clip_norm"
    )
    facts = {
        "problem": f"step {step:,}: {report.problem}",
        "losses": report.losses,
        "gradient_norm": report.norm,
        **report.gradients,
        **describe_weights(*run.trainer.models()),
    }
    _record(run, "not_finite", step, message, **facts)
    raise ValueError(message)


def finish_line(run: BaseRun, log: RunLog, interrupt: Interrupt) -> None:
    """Validate and log the step where that is due; what fails there loses no step."""
    try:
        run.finish_line(log, lambda: interrupt.requested)
    except OSError as error:
        kept = _save_rest(run, log)
        message = f"step={run.step}: {error}; the step is {kept}; {run.put_back}"
        _record(run, "data", run.step, message)
        raise OSError(message) from error
    except ValueError as error:
        message = f"step={run.step}: {error}"
        _record(
            run,
            "not_finite",
            run.step,
            message,
            **describe_weights(*run.trainer.models()),
        )
        raise ValueError(message) from error
    except (RuntimeError, MemoryError) as error:
        _raise(run, error, f"the step is {_save_rest(run, log)}", "a smaller validation.batch_size")


def make_good(run: BaseRun, log: RunLog, interrupt: Interrupt) -> None:
    """At a resume: make the validation that was broken off, and save that it is done."""
    if run.line is not None:
        finish_line(run, log, interrupt)
        if run.line is None:
            _save(run, log, final=run.complete)


def save_if_due(run: BaseRun, log: RunLog) -> None:
    """Write a checkpoint where the settings ask for one."""
    if run.checkpoint_due and run.line is None:
        _save(run, log, final=run.complete)


def _save(run: BaseRun, log: RunLog, *, final: bool) -> None:
    try:
        run.save(log, final=final)
    except OSError as error:
        _record(run, "disk", run.step, str(error))
        raise
    except ValueError as error:
        facts = describe_weights(*run.trainer.models())
        _record(run, "not_finite", run.step, str(error), **facts)
        raise
    except RuntimeError as error:
        _record(run, "apart", run.step, str(error))
        raise


def _save_rest(run: BaseRun, log: RunLog) -> str:
    """Save the last step if it is not saved yet; return what has become of it."""
    if run.step != run.saved:
        try:
            _save(run, log, final=True)
        except OSError as error:
            return f"not saved ({error})"
    return f"saved in {run.folder}" if run.step else "nothing to save"


def _raise(run: BaseRun, error: Exception, kept: str, needs_less: str) -> NoReturn:
    """Raise `error` with a hint, or a `MemoryError` of one line in its place."""
    step = run.step + 1
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if not _is_memory(error):
        _record(run, "error", step, f"{type(error).__name__}: {first}")
        error.add_note(f"after step {run.step} of the run in {run.folder}; {kept}")
        raise error
    message = (
        f"step={step}: out of memory ({first}); {kept}; the same command goes on when more is "
        f"free, or with {needs_less}, which needs less"
    )
    _record(run, "memory", step, message)
    raise MemoryError(message) from error


def _is_memory(error: Exception) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        word in str(error).lower() for word in words
    )


def _record(run: BaseRun, kind: Kind, step: int, message: str, **facts: Any) -> None:
    """Leave a record for the doctor."""
    if run.main:
        write_stop(run.folder, kind, step, message, **facts, **run.facts())
