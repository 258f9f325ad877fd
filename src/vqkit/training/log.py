"""The log of a run: one JSON object per line, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from vqkit.models.files import write_whole

logger = logging.getLogger(__name__)

CLOCK_KEYS = ("seconds", "images_per_second", "memory_bytes", "machine_warnings")
"""What a resumed run cannot repeat: everything else in the log is the same, bit for bit."""


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; a last line that a crash cut off is left out."""
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        lines.append(json.loads(line))
    return lines


def cut_log(path: Path, step: int) -> None:
    """Drop what was logged after `step`: a run that resumes there writes it again."""
    kept = [line for line in read_log(path) if line["step"] <= step]
    if path.exists():
        part = path.with_name(path.name + ".part")
        write_whole(part, "".join(json.dumps(line) + "\n" for line in kept).encode())
        os.replace(part, path)


class RunLog:
    """Appends to `log.jsonl` (and to `tensorboard/`); only the main process writes."""

    def __init__(self, folder: Path, *, start: int, tensorboard: bool, main: bool) -> None:
        """Continue the log after `start` steps."""
        self._main = main
        self._path = folder / "log.jsonl"
        self._board: Any = None
        self._waiting: list[str] = []
        """Lines that the disk has refused so far."""
        if not main:
            return
        cut_log(self._path, start)
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError(
                    "log.tensorboard=True: tensorboard is not installed; pip install 'vqkit[train]'"
                ) from error
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def __enter__(self) -> RunLog:
        """Return the log itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        if self._board is not None:
            self._board.close()

    def flush(self) -> None:
        """Wait until what was logged has reached the disk; done before every checkpoint.

        Lines that the disk refused are tried again, and an `OSError` if it still does.
        """
        if not self._main:
            return
        self._append()
        if self._path.exists():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def write(self, line: dict[str, Any]) -> None:
        """Append one line; `line["step"]` counts optimizer steps that are done.

        A disk that is full does not stop training here: the line waits for the next one.
        """
        if not self._main:
            return
        self._waiting.append(json.dumps(line) + "\n")
        try:
            self._append()
        except OSError as error:
            logger.warning("step %d: the log waits for the disk (%s)", line["step"], error)
        try:
            for name, value in _scalars(line) if self._board is not None else ():
                if name != "step":
                    self._board.add_scalar(name, value, line["step"])
        except OSError as error:
            self._board = None  # its writer is gone for good
            logger.warning("step %d: no more TensorBoard in this sitting (%s)", line["step"], error)

    def _append(self) -> None:
        """Write the lines that wait, all or none of them."""
        if not self._waiting:
            return
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(self._waiting))
        except OSError:
            with suppress(OSError):
                os.truncate(self._path, size)
            raise
        self._waiting.clear()


def _scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """List the numbers of a line by name, those of its codebooks as `books/local/perplexity`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, value
