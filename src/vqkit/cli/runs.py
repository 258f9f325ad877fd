"""Runs as the commands handle them: built from recipes, trained one after another, loaded."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqkit.cli.console import tell
from vqkit.config import DataConfig, RunConfig, from_dict, to_dict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqkit.evaluation.comparison import Contestant

EVERY_SECONDS = 10.0
"""Between two lines of progress where stderr is no terminal."""


def remove_run(folder: Path) -> None:
    """Delete the run in `folder`, so that it starts anew; other folders are a `ValueError`."""
    if not folder.exists():
        return
    if kind_of(folder) not in ("run", "token run") and any(folder.iterdir()):
        raise ValueError(f"out={folder}: holds no run, and --fresh deletes nothing else")
    from vqkit.training.claim import claimed

    with claimed(folder):  # nobody else trains there
        shutil.rmtree(folder)


def kind_of(folder: str | Path) -> str:
    """Tell what a folder holds: "run", "token run" (of `fit`), "tokenizer", or "" for none."""
    path = Path(folder).expanduser() / "config.json"
    try:
        settings: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    if not isinstance(settings, dict):
        return ""
    if settings.get("library") == "vqkit":
        return "tokenizer"
    if {"product", "optim"} <= settings.keys():
        return "token run"
    return "run" if {"quantizer", "optim"} <= settings.keys() else ""


def load(name: str) -> tuple[Contestant, RunConfig | None]:
    """Load a finished run, or a tokenizer (folder or hub id), and the run's settings if any."""
    from vqkit.evaluation.comparison import Contestant
    from vqkit.models import ImageTokenizer
    from vqkit.training import load_run, run_folder

    folder = Path(name).expanduser()
    if kind_of(folder) != "run":
        tokenizer = ImageTokenizer.from_pretrained(name)
        return Contestant(name=Path(name).name, tokenizer=tokenizer), None
    result = folder / "result.json"
    if not result.is_file():
        raise ValueError(f"run={folder}: is not finished; `vqkit train` with its settings goes on")
    seconds = run_folder.parse_result(result)["seconds"]
    config, tokenizer = load_run(folder)
    return Contestant(name=config.name, tokenizer=tokenizer, train_seconds=seconds), config


def test_images(config: RunConfig | None, changes: dict[str, Any]) -> DataConfig:
    """Return the images to measure on: those of the run, with the given settings changed."""
    base = to_dict(config.test_data) if config is not None and config.test_data else {}
    if "source" in changes and changes["source"] != base.get("source"):
        base = {"channels": base["channels"]} if base else {}  # another set, with its own path
    values = {**base, **changes}
    if values.get("path") and values.get("source", "photos") == "photos":
        values["source"] = changes.get("source", "folder")  # `photos` has no path
    if "source" not in values:
        raise ValueError(
            "data.source: no images to measure on are known; give --data.source and --data.path"
        )
    data: DataConfig = from_dict(DataConfig, values, "data.")
    return data


def place_of(data: DataConfig) -> str:
    """Say in a few words where images come from."""
    return f"{data.source} {data.path}" if data.path else f"{data.source} ({data.split})"


def train_all(configs: Sequence[RunConfig], out: Path, *, fresh: bool) -> list[Path]:
    """Train every run into `out/<name>` and return the folders; finished runs are left alone."""
    folders = [out / config.name for config in configs]
    from vqkit.training import run_folder, train

    plan = Plan(configs, folders)
    for number, (config, folder) in enumerate(zip(configs, folders, strict=True)):
        if fresh:
            remove_run(folder)
        result = run_folder.read_result(folder)
        if result is not None and result["steps"] == config.optim.num_steps:
            tell(f"{config.name}: was trained before, in {folder}")
        with plan.watching(number):
            train(config, out=folder, progress=False)
    return folders


class Plan:
    """Progress of several runs as a whole, read from their logs by a thread of its own."""

    def __init__(
        self,
        configs: Sequence[RunConfig],
        folders: Sequence[Path],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._configs, self._folders, self._clock = configs, folders, clock
        self._began = clock()
        self._first = self._done()
        self._terminal = sys.stderr.isatty()

    @contextmanager
    def watching(self, number: int) -> Iterator[None]:
        """Show progress while run `number` is trained in this thread."""
        stop = threading.Event()
        every = 1.0 if self._terminal else EVERY_SECONDS

        def show() -> None:
            while not stop.wait(every):
                self._show(self.line(number))

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        self._show(self.line(number), last=True)

    def line(self, number: int) -> str:
        """Say how far run `number` and the whole are."""
        config = self._configs[number]
        done, total = self._done(), sum(c.optim.num_steps for c in self._configs)
        new, left = sum(done) - sum(self._first), total - sum(done)
        pace = (self._clock() - self._began) / new if new else None
        rest = "" if pace is None else f", about {_minutes(pace * left)} left for all"
        return (
            f"run {number + 1} of {len(self._configs)}: {config.name}, "
            f"step {done[number]} of {config.optim.num_steps}{rest}"
        )

    def _done(self) -> list[int]:
        return [_last_step(folder) for folder in self._folders]

    def _show(self, line: str, *, last: bool = False) -> None:
        if not self._terminal:
            tell(line)
            return
        sys.stderr.write(f"\r{line}\x1b[K" + ("\n" if last else ""))
        sys.stderr.flush()


def _last_step(folder: Path) -> int:
    from vqkit.training import read_log

    lines = read_log(folder / "log.jsonl")
    return int(lines[-1]["step"]) if lines else 0


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min"
