"""The settings of a run in its folder: read, written, and compared with those that are wanted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from vqkit.config import OptimConfig, from_dict, to_dict
from vqkit.models.files import write_beside

SETTINGS: Final = "config.json"
LISTED: Final = 12
"""Settings that a message lists."""


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings saved in `folder`, None if there are none; `ValueError` if unreadable."""
    path = folder / SETTINGS
    if not path.exists():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read ({error}); is it the folder of a run?") from error
    return values


def saved_settings(folder: Path, *, resume: bool) -> dict[str, Any] | None:
    """Return the settings of the run that `folder` holds, None if it is empty.

    A folder that holds anything but a run is a `ValueError`; with `resume=False` a run is, too.
    """
    saved = read_settings(folder)
    if saved is None or "optim" not in saved:  # the second is a saved model, say
        foreign = sorted(path.name for path in folder.glob("*")) if folder.exists() else []
        if foreign:
            raise ValueError(
                f"out={folder}: holds {', '.join(foreign[:3])} but no run; choose an empty folder"
            )
        return None
    if not resume:
        raise ValueError(
            f"resume=False: {folder} already holds a run; continue it with resume=True, or choose "
            "another folder"
        )
    return saved


def refuse_changes(
    folder: Path,
    saved: dict[str, Any],
    wanted: dict[str, Any],
    optim: OptimConfig,
    free: Sequence[str],
) -> None:
    """Raise `ValueError` naming the settings that differ and may not.

    Those may that begin as `free` says, and `optim.num_steps` if it grows and the learning rate
    does not depend on it.
    """
    before = (saved.get("optim") or {}).get("num_steps", 0)
    longer = before < optim.num_steps and optim.schedule == "constant"
    allowed = (*free, "optim.num_steps:") if longer else tuple(free)
    found = [d for d in differences(saved, wanted) if not d.startswith(allowed)]
    if found:
        more = f"; {len(found) - LISTED} more" if len(found) > LISTED else ""
        hint = "; to lengthen a run, add --optim.num_steps N to its own command" if longer else ""
        raise ValueError(
            f"out={folder}: holds a run with other settings ({'; '.join(found[:LISTED])}{more}); "
            f"use those, choose another folder, or delete this one (vqkit train --fresh){hint}"
        )


def with_defaults(
    saved: Any, cls: type[Any], to_json: Callable[[Any], dict[str, Any]] = to_dict
) -> Any:
    """Add the settings of `cls` that an older version did not have, with their defaults.

    What is none of its settings stays as it is, and so does all of what it does not read.
    """
    if not isinstance(saved, dict):
        return saved
    known = {field.name for field in fields(cls)}
    others = {name: value for name, value in saved.items() if name not in known}
    try:
        config = from_dict(cls, {name: saved[name] for name in saved if name in known})
    except ValueError:
        return saved
    plain: dict[str, Any] = json.loads(json.dumps(to_json(config)))  # lists, as in the file
    return plain | others


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Save the settings of a run, as JSON values."""
    write_json(folder / SETTINGS, settings)


def differences(saved: Any, wanted: Any, where: str = "") -> list[str]:
    """Name the settings that differ, as `optim.lr: 1 there, 2 here`."""
    if not (isinstance(saved, dict) and isinstance(wanted, dict)):
        return [] if saved == wanted else [f"{where}: {saved!r} there, {wanted!r} here"]
    found: list[str] = []
    for key in sorted(set(saved) | set(wanted)):
        path = f"{where}.{key}" if where else key
        found += differences(saved.get(key), wanted.get(key), path)
    return found


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write `values` to `path`, whole or not at all."""
    write_beside(path, (json.dumps(values, indent=2) + "\n").encode())
