"""Folders of sets that grow shard by shard: how one begins, goes on after a kill, and is removed.

Features here and token sets (room `tokens`) are such sets. While a set is unfinished, its facts lie
in unfinished.json and every whole shard has a record beside it; the manifest is written last.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from vqkit.clustering.processes import Processes
from vqkit.config import require
from vqkit.config.core import short
from vqkit.config.forms import check_form
from vqkit.models.files import write_beside
from vqkit.training.claim import claimed

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
UNFINISHED: Final = "unfinished.json"
GROUPS: Final = "groups"
_AGAIN: Final = "begin again with resume=False (--fresh)"
_RECORD: Final = re.compile(r"\d{5,}\.json")
_PART: Final = re.compile(r"\..+\.part")


@dataclass(frozen=True, slots=True)
class Kind:
    """What sort of set lies in a folder."""

    name: str
    """As its manifest and messages say it."""
    shard: re.Pattern[str]
    """Names of its shards."""
    others: tuple[str, ...] = ()
    """Names of its other files, less manifest and records."""

    @property
    def mark(self) -> dict[str, Any]:
        """What the manifest begins with."""
        return {"library": "vqkit", "format": FORMAT, "kind": self.name}


@contextmanager
def claimed_by_first(folder: Path, processes: Processes, *, doing: str) -> Iterator[None]:
    """Keep a folder for these processes (see `claimed`); all raise what the first one meets."""
    with ExitStack() as held:
        claim = claimed(folder, doing=doing) if processes.rank == 0 else nullcontext()
        processes.agreed(partial(held.enter_context, claim))
        yield


def read_records(folder: Path, count: int) -> dict[int, dict[str, Any]]:
    """Return the records of the shards below `count` that are there as their records say."""
    found = {}
    for number in range(count):
        path = folder / f"{number:05}.json"
        if not path.is_file():
            continue
        record = read_object(path)
        check_form(record, {"rows": int, "skipped": list}, f"{path}", _AGAIN)
        files = [part for part in (record, record.get("groups")) if part and record["rows"]]
        for part in files:
            check_form(part, {"file": str, "bytes": int}, f"{path}", _AGAIN)
        sizes = [_size(folder / part["file"]) == part["bytes"] for part in files]
        if all(sizes):  # a file that somebody took away is written again
            found[number] = record
    return found


def finished_shards(
    folder: Path, facts: dict[str, Any], count: int, left_out: Iterable[tuple[str, str]]
) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Return the records of those of `count` shards that have rows, and the broken images.

    `left_out` are broken images (name, reason) that no shard knows of. A set without one row is a
    `ValueError`.
    """
    records = [record for _, record in sorted(read_records(folder, count).items())]
    assert len(records) == count, "every shard has been written"
    shards = [record for record in records if record["rows"]]
    skipped = [broken for record in records for broken in record["skipped"]]
    known = {name for name, _ in skipped}
    skipped += [[name, reason] for name, reason in left_out if name not in known]
    if not shards:
        name, reason = skipped[0]
        raise ValueError(
            f"data.path={facts['data']['path']!r}: none of {facts['data']['images']:,} images can "
            f"be read (first: {name}: {reason}); check that the path holds images"
        )
    return shards, skipped


def begin(folder: Path, facts: dict[str, Any], *, resume: bool, kind: Kind) -> bool:
    """Make ready a folder for the set that `facts` describe; True if it is there already.

    Raises `ValueError` if it holds something else, or a set of other settings (it names which)
    that may not be removed because of `resume`.
    """
    where = f"out={str(folder)!r}"
    require(not folder.is_file(), where, "is a file; name a folder")
    there = _begun(folder, kind)
    if there is None:
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        foreign = [name for name in names if not _PART.fullmatch(name)]
        require(not foreign, where, "holds something else; name a new or an empty folder")
    elif resume:
        differ = _differences(there, json.loads(json.dumps(facts)))
        require(
            not differ,
            where,
            f"holds {kind.name} of other settings: {'; '.join(differ)}; use those, name another "
            "folder, or begin again with resume=False (--fresh)",
        )
        if (folder / MANIFEST).is_file():
            tidy(folder)
        return (folder / MANIFEST).is_file()
    else:
        remove_set(folder, kind)
    write_object(folder / UNFINISHED, {**kind.mark, **facts})
    return False


def _begun(folder: Path, kind: Kind) -> dict[str, Any] | None:
    """Return what the set in a folder says about itself, finished or not."""
    for name in (MANIFEST, UNFINISHED):
        if (folder / name).is_file():
            found = read_object(folder / name)
            ours = {key: found.get(key) for key in kind.mark} == kind.mark
            place = f"out={str(folder)!r}"
            require(ours, place, f"has a {name} of something else; name another folder")
            return found
    return None


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    """Name the settings in `here` that differ; places and names of the same things may."""
    differ = []
    for key, value in here.items():
        name, other = f"{prefix}{key}", there.get(key)
        if isinstance(value, dict):
            differ += _differences(other if isinstance(other, dict) else {}, value, f"{name}.")
        elif name == "encoder.sha256" and value is None:
            continue  # whitening to be fitted; `encoder.whitening` tells that it was there too
        elif value != other and name not in ("data.path", "encoder.name"):
            differ.append(f"{name} ({short(other)} there, {short(value)} here)")
    return differ


def tidy(folder: Path) -> None:
    """Remove what only an unfinished set has; the manifest is there."""
    (folder / UNFINISHED).unlink(missing_ok=True)
    remove_leftovers(folder)


def remove_leftovers(folder: Path, names: Iterable[re.Pattern[str]] = (_RECORD, _PART)) -> None:
    """Remove what only an unfinished set has: records, and parts that killed processes left."""
    for place in (folder, folder / GROUPS):
        for path in place.iterdir() if place.is_dir() else ():
            if any(pattern.fullmatch(path.name) for pattern in names) and path.is_file():
                path.unlink(missing_ok=True)


def remove_set(folder: Path, kind: Kind) -> None:
    """Remove a set, finished or not, and nothing else that may lie in its folder.

    A kill in between leaves an unfinished set: never a manifest without its shards, and never
    shards that nothing says the kind of.
    """
    if (folder / MANIFEST).exists():
        os.replace(folder / MANIFEST, folder / UNFINISHED)
    remove_leftovers(folder, (_RECORD, _PART, kind.shard))
    for name in (*kind.others, UNFINISHED):
        (folder / name).unlink(missing_ok=True)


def write_object(path: Path, values: dict[str, Any]) -> None:
    """Write JSON values whole or not at all."""
    write_beside(path, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


def read_object(path: Path) -> dict[str, Any]:
    """Read JSON values; an unreadable file is a `ValueError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); get or make it again") from error
    require(isinstance(values, dict), f"{path}", "holds no JSON object; get or make it again")
    return dict(values)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
