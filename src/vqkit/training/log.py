"""The log of a run: one JSON object per line, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from vqkit.models.files import write_whole

CLOCK_KEYS = ("seconds", "images_per_second")
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
        """Wait until what was logged has reached the disk; done before every checkpoint."""
        if self._main and self._path.exists():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def write(self, line: dict[str, Any]) -> None:
        """Append one line; `line["step"]` counts optimizer steps that are done."""
        if not self._main:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(name, value, line["step"])
