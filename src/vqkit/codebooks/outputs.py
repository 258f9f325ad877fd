"""Where a codebook goes: what is there already, what is never overwritten, what was begun.

`plan` is what determines the codes before they are made: the values of a record that `IDENTITY`
names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from vqkit.clustering.processes import together
from vqkit.codebooks.files import HEAD, CodebookFile, is_ours, read_codebook, write_codebook
from vqkit.config import require

IDENTITY: Final = ("method", "dtype", "settings", "features")
"""What determines the codes; groups and report follow from it."""


def keep(
    out: Path, plan: dict[str, Any], make: Callable[[Path], CodebookFile], *, overwrite: bool
) -> tuple[CodebookFile, bool]:
    """Write what `make(state)` returns to `out`; nothing is made where the same is there already.

    The state of a clustering lies beside `out`. A hash of the plan is in its name, so that those of
    different plans never meet; all of them go when `out` is written. Under torch.distributed every
    process makes the same call, and the first one writes.

    Returns:
        The codebook, and whether it was made now.

    Raises:
        ValueError: see `already_made`.
        OSError: the file cannot be written.
    """
    processes, state = together(), state_beside(out, plan)
    found = processes.agreed(lambda: already_made(out, plan, overwrite=overwrite))
    book = make(state) if found is None else found
    if processes.rank == 0 and found is not None:
        state.unlink(missing_ok=True)  # of a process killed right behind its last step
    write = found is None and processes.rank == 0
    processes.agreed(lambda: _finish(out, book) if write else None)
    return book, found is None


def _finish(out: Path, book: CodebookFile) -> None:
    """Write the codebook, and remove the states of all that were to come here."""
    write_codebook(out, book)
    ours = re.compile(re.escape(out.name) + r"\.[0-9a-f]{8}\.state")
    for state in out.parent.glob("*.state"):
        if ours.fullmatch(state.name):
            state.unlink(missing_ok=True)


def state_beside(out: Path, plan: dict[str, Any]) -> Path:
    """Name the state of a plan; more iterations go on from the same one."""
    settings = {name: value for name, value in plan["settings"].items() if name != "iterations"}
    text = json.dumps({**plan, "settings": settings}, sort_keys=True)
    return out.with_name(f"{out.name}.{hashlib.sha256(text.encode()).hexdigest()[:8]}.state")


def already_made(
    path: Path, plan: Mapping[str, Any], *, overwrite: bool = False
) -> CodebookFile | None:
    """Return the codebook in `path` if it is the one that `plan` describes; None if there is none.

    `plan` has the names in `IDENTITY`. With `overwrite` another codebook may be there.

    Raises:
        ValueError: another codebook is there, or something else, which is never overwritten.
    """
    if not path.exists():
        return None
    where = f"out={str(path)!r}"
    require(
        path.is_file() and is_ours(_head(path)),
        where,
        "is there and no codebook file; name another file",
    )
    try:
        found = read_codebook(path)
    except ValueError as error:
        if overwrite:
            return None
        raise ValueError(f"{error}; --overwrite replaces it") from error
    wanted = json.loads(json.dumps({name: plan[name] for name in IDENTITY}))
    differ = [name for name in IDENTITY if found.provenance.get(name) != wanted[name]]
    if not differ:
        return found
    require(
        overwrite,
        where,
        f"is there, made with another {_differences(found.provenance, wanted, differ)}; give "
        "--overwrite, or name another file",
    )
    return None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], names: list[str]) -> str:
    """Name what differs in a few words, settings one by one."""
    facts = []
    for name in names:
        old, new = there.get(name), here[name]
        if not isinstance(old, dict) or not isinstance(new, dict):
            facts.append(f"{name} ({_short(old)} there, {_short(new)} here)")
            continue
        keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        facts += [
            f"{name}.{key} ({_short(old.get(key))} there, {_short(new.get(key))} here)"
            for key in keys
        ]
    return ", ".join(facts)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
