"""Long chains of `vqkit` commands for result pages: each runs once, and a second call goes on."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vqkit.models.files import write_beside


class Done:
    """The commands that have ended well, with the seconds they took in all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = {}
        self.ended: list[str] = []
        if path.is_file():
            values = json.loads(path.read_text("utf-8"))
            self.seconds, self.ended = values["seconds"], values["ended"]

    def run(self, words: Sequence[str]) -> None:
        """Run a command that has not ended yet; a failure ends the benchmark."""
        text = shlex.join(["vqkit", *words])
        if text in self.ended:
            return
        print(f"$ {text}", flush=True)
        began = time.perf_counter()
        try:
            subprocess.run([sys.executable, "-m", "vqkit", *words], check=True)
            self.ended.append(text)
        except subprocess.CalledProcessError as error:
            raise SystemExit(error.returncode) from error
        finally:
            spent = time.perf_counter() - began
            self.seconds[text] = self.seconds.get(text, 0) + spent
            values = {"seconds": self.seconds, "ended": self.ended}
            write_beside(self._path, json.dumps(values, indent=2).encode())

    def of(self, commands: Sequence[Sequence[str]]) -> float:
        """Return the seconds of some commands."""
        return sum(self.seconds.get(shlex.join(["vqkit", *words]), 0) for words in commands)


def listing(commands: Sequence[Sequence[str]], places: Mapping[str, str]) -> str:
    """Return commands as Markdown; `places` are folders and what stands for them on a page."""
    shown = "\n".join(shlex.join(["vqkit", *words]) for words in commands)
    for place, name in places.items():
        shown = shown.replace(place, name)
    return f"```bash\n{shown}\n```"


def read_json(path: str) -> Any:
    """Return what a file holds, None without it."""
    file = Path(path)
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def last_of_log(folder: str) -> dict[str, Any]:
    """Return the last line of a run's log."""
    file = Path(folder) / "log.jsonl"
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return found
