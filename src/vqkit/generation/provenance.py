"""Where every generated image comes from: one line of JSON each, beside the images.

A line is complete in itself: with the generator and the tokenizer that it names, its image can be
drawn again, to the bit on the same machine with batches of the same size.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from vqkit import __version__
from vqkit.config import from_dict, require
from vqkit.models.files import CONFIG, write_beside

FILE: Final = "provenance.jsonl"
_ROUNDING: Final = ("batch_size", "cache", "compile")
"""Settings of sampling that change nothing but rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What the images of one folder have in common."""

    generator: str
    """SHA-256 of its `config.json`, which names that of its weights."""
    kind: str
    """`gpt` or `diffusion`."""
    tokenizer: str
    """`vqkit.tokens.tokenizer_hash`."""
    seed: int
    sampling: Mapping[str, Any]
    """All settings of sampling."""

    def differences(self, other: Origin) -> list[str]:
        """Name what the other has differently; settings that only change rounding do not count."""
        mine, its = (
            {**asdict(one), "sampling": None, **{f"sampling.{k}": v for k, v in settings.items()}}
            for one, settings in ((self, self.sampling), (other, other.sampling))
        )
        rounding = {f"sampling.{name}" for name in _ROUNDING}
        return [k for k in mine | its if k not in rounding and mine.get(k) != its.get(k)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One image."""

    file: str
    """Relative to the folder."""
    number: int
    """Of the sample: with the seed it decides all that is drawn."""
    label: int | None
    """Class that was asked for."""
    label_name: str
    sha256: str
    """Of the PNG file."""
    origin: Origin
    vqkit: str = __version__

    def to_json(self) -> str:
        """Return one line of text, without its end."""
        values = asdict(self)
        origin = values.pop("origin")
        return json.dumps(values | origin, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a line; another one is a `ValueError`."""
        try:
            values = json.loads(text)
            origin = {name: values.pop(name) for name in Origin.__dataclass_fields__}
            line: Self = from_dict(cls, {**values, "origin": origin})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{FILE}: {text[:80]!r} tells of no image") from error
        return line


class Provenance:
    """The lines of one folder: those of images that are there, and new ones."""

    def __init__(self, folder: Path, origin: Origin) -> None:
        """Open or begin a folder; one with images of another origin is a `ValueError`.

        Images that are missing or damaged, and a line torn by a kill, are forgotten.
        """
        self.folder, self.origin = folder, origin
        self._lines: dict[str, Line] = {}
        for line in read_lines(folder):
            changed = origin.differences(line.origin)
            require(
                not changed,
                f"out={folder}",
                f"holds images with another {', '.join(changed)}; name another folder",
            )
            if _sha256(folder / line.file) == line.sha256:
                self._lines[line.file] = line
        self._write()

    def __contains__(self, file: str) -> bool:
        return file in self._lines

    def add(self, lines: Sequence[Line]) -> None:
        """Append lines of images that are on the disk, durably."""
        with (self.folder / FILE).open("a", encoding="utf-8") as file:
            file.writelines(f"{line.to_json()}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        self._lines |= {line.file: line for line in lines}

    def close(self) -> list[Line]:
        """Put the lines in order, whatever was stopped meanwhile, and return them."""
        self._write()
        return self._sorted()

    def _sorted(self) -> list[Line]:
        return sorted(self._lines.values(), key=lambda line: line.number)

    def _write(self) -> None:
        text = "".join(f"{line.to_json()}\n" for line in self._sorted())
        write_beside(self.folder / FILE, text.encode())


def read_lines(folder: Path) -> list[Line]:
    """Return the whole lines of a folder of generated images; none if it has no such file."""
    path = folder / FILE
    if not path.is_file():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [Line.from_json(text) for text in whole.splitlines()]


def generator_hash(folder: Path) -> str:
    """Return the SHA-256 of a generator's `config.json`, which names that of its weights."""
    return hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
