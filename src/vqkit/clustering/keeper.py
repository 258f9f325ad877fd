"""A run from its beginning or its saved state to its end, saved between iterations."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vqkit.clustering.processes import Processes
from vqkit.clustering.report import Clustering
from vqkit.clustering.run import Run
from vqkit.clustering.settings import KMeansSettings
from vqkit.clustering.state import State, check_belongs, read_state, write_state
from vqkit.config import require


@dataclass(slots=True)
class Keeper:
    """Saves the state of a run; the first process does it for all."""

    path: Path | None
    belongs: dict[str, Any]
    """Settings and data, for the record."""
    every: float
    """Seconds between two saves."""
    last: float
    """When the last one was, by time.monotonic()."""
    processes: Processes
    saved: int = -1
    """What was done when it was saved last."""

    def save(self, done: int, state: Callable[[], State], *, now: bool) -> None:
        """Write the state, unless it is too early or nothing was done since."""
        if self.path is not None:
            self.processes.agreed(lambda: self._write(done, state, now=now))

    def rescue(self, done: int, state: Callable[[], State]) -> None:
        """Write the state after an error or interrupt, when others may be anywhere."""
        self._write(done, state, now=True)

    def _write(self, done: int, state: Callable[[], State], *, now: bool) -> None:
        late = time.monotonic() - self.last >= self.every
        first = self.processes.rank == 0
        if self.path is None or not first or self.saved == done or not (now or late):
            return
        current = state()
        record = {**self.belongs, "step": done, **current.record}
        write_state(self.path, State(current.tensors, record))
        self.saved, self.last = done, time.monotonic()


def iterate(run: Run, keeper: Keeper) -> Clustering:
    """Iterate to the end; an interrupt leaves the state of the last whole iteration."""
    try:
        keeper.save(run.now.step, run.state, now=False)  # seeding may have taken long
        while run.now.step < run.settings.iterations and not run.now.converged:
            run.advance()
            keeper.save(run.now.step, run.state, now=False)
        keeper.save(run.now.step, run.state, now=True)
    except BaseException:
        keeper.rescue(run.now.step, run.state)
        raise
    return run.result()


def load(
    path: Path | None, processes: Processes, belongs: dict[str, Any], *, resume: bool
) -> State | None:
    """Read the state on the first process and hand it to all, or the error."""
    if path is None:
        return None

    def read() -> State | None:
        found = read_state(path) if processes.rank == 0 else None
        if found is not None:
            require(
                resume,
                "resume=False",
                f"{path} already holds a state; continue it with resume=True, or name another file",
            )
            check_belongs(path, found, belongs["settings"], belongs["data"])
        return found

    found: State | None = processes.gather(processes.agreed(read))[0]
    return found


def describe_settings(settings: KMeansSettings, start: Tensor | None) -> dict[str, Any]:
    """Return what a result depends on besides the data; given centres become their SHA-256."""
    values = settings.of_result()
    if start is not None:
        content = start.detach().cpu().float().contiguous().numpy().tobytes()
        values["centres"] = hashlib.sha256(content).hexdigest()
    return values
