"""The folder of a run made by `fit`: its settings, whether it may go on, what it has brought.

As `run_folder.py` describes it for a tokenizer; `config.json` has `product` besides, the name of
the folder of the finished thing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from vqkit.config import LogConfig, OptimConfig, to_dict
from vqkit.training.checkpoint import checkpoint_folder, list_checkpoints, newest_checkpoint
from vqkit.training.run_folder import read_result
from vqkit.training.settings_file import refuse_changes, saved_settings, with_defaults

FREE: Final = ("log.", "optim.accumulate:", "optim.compile:")
"""What may always change when a run is continued."""
Completed = Callable[[dict[str, Any]], dict[str, Any]]
"""Adds what an older version did not save to settings (`settings_file.with_defaults`)."""


def settings_of(
    settings: dict[str, Any],
    product: str,
    name: str,
    optim: OptimConfig,
    log: LogConfig,
    seed: int,
) -> dict[str, Any]:
    """Return all settings as JSON values, in the form of `config.json`."""
    own = {"product": product, "name": name, "optim": to_dict(optim), "log": to_dict(log)}
    plain: dict[str, Any] = json.loads(json.dumps(settings | own | {"seed": seed}))
    return plain


def check_settings(
    folder: Path,
    wanted: dict[str, Any],
    optim: OptimConfig,
    *,
    resume: bool,
    free: Sequence[str] = (),
    completed: Completed = dict,
) -> None:
    """Raise `ValueError` if `folder` holds what a run with the settings `wanted` may not continue.

    `FREE` settings and those that begin as `free` says may differ (`refuse_changes`); settings that
    an older version did not save are those that `completed` adds, and defaults. A run that
    was stopped before its first checkpoint may be begun again with any settings.
    """
    saved = saved_settings(folder, resume=resume)
    if saved is None:
        return
    if not list_checkpoints(folder) and read_result(folder, wanted["product"]) is None:
        return  # nothing is there to be continued
    saved = completed(saved)
    for part, kind in (("optim", OptimConfig), ("log", LogConfig)):
        saved[part] = with_defaults(saved.get(part), kind)
    refuse_changes(folder, saved, wanted, optim, (*FREE, *free))


def read_product(folder: Path, product: str) -> tuple[Path, dict[str, Tensor] | None]:
    """Return the folder from which the model of a run is loaded, and tensors that replace its own.

    That is the finished thing or, of a run that goes on, the newest whole checkpoint; the tensors
    are its averaged weights by the names of `state_dict`, None if the checkpoint keeps none. A
    folder without either is a `ValueError`.
    """
    if read_result(folder, product) is not None:
        return folder / product, None
    snapshot, refused = newest_checkpoint(folder)
    if snapshot is None:
        reasons = "; ".join(refused) or "it was stopped before its first checkpoint"
        raise ValueError(f"run={folder}: has no whole checkpoint ({reasons}); train it again")
    return checkpoint_folder(folder, snapshot.step), snapshot.average
