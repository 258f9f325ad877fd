"""The folder of a run: what is in it, whether it may be continued, what it has brought.

config.json        the resolved settings
log.jsonl          one line per `log.every` steps, for every epoch and every validation
step_00001000/     checkpoints (`checkpoint.py`)
validation/, best/ pictures and the best tokenizer so far (`validation.py`)
tokenizer/         the finished tokenizer, with averaged weights if the run keeps them; whole, with
                   the features and networks that codes are computed from (`vqkit export` leaves
                   them out)
result.json        written last: steps, seconds, versions, hardware, final line of the log
stopped.json       why a run did not reach its end (`stops.py`), with bad_batch.safetensors
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from vqkit.config import RunConfig, from_dict, to_dict
from vqkit.models import ImageTokenizer
from vqkit.models.files import read_config, read_weights
from vqkit.models.settings import Presets, config_from_values, without_sources, without_tensors
from vqkit.training.checkpoint import (
    checkpoint_folder,
    list_checkpoints,
    newest_checkpoint,
    verify_checkpoint,
)
from vqkit.training.folders import whole_folder
from vqkit.training.settings_file import (
    SETTINGS,
    read_settings,
    refuse_changes,
    saved_settings,
    with_defaults,
    write_json,
)
from vqkit.weights import sha256_of

RESULT: Final = "result.json"
TOKENIZER: Final = "tokenizer"
_PLACES: Final = ("path", "files", "workers")
_WRITTEN_AGAIN: Final = "the same `vqkit train` command writes it again from the last checkpoint"
FREE: Final = (
    "log.",
    *(f"{data}.{name}:" for data in ("data", "validation.data") for name in _PLACES),
    "validation.batch_size:",
    "test_data",
    "optim.accumulate:",
    "optim.compile:",
)
"""What may change when a run is continued: where images lie (the same ones, by their fingerprint),
the test set, which training never sees, and what makes a run fit a machine, though the last two
change how sums are rounded."""


def config_to_json(config: RunConfig) -> dict[str, Any]:
    """Return the settings as JSON values; a tensor becomes its shape, type and SHA-256.

    The name of a codebook's file gets the SHA-256 of the file beside it, while it is there.
    """
    values = to_dict(config)
    args = values["quantizer"]["args"]
    values["quantizer"]["args"] = {name: _describe(value) for name, value in args.items()}
    plain: dict[str, Any] = json.loads(json.dumps(values))  # tuples become lists, as in the file
    return plain


def check_settings(folder: Path, config: RunConfig, *, resume: bool) -> None:
    """Raise `ValueError` if `folder` holds a run that this configuration may not continue.

    `FREE` settings may differ, and `optim.num_steps` if it grows and the learning rate does not
    depend on it. A run that was stopped before its first checkpoint may be begun again with any
    settings.
    """
    saved = saved_settings(folder, resume=resume)
    if saved is None:
        return
    if not list_checkpoints(folder) and read_result(folder) is None:
        return  # it was stopped before its first checkpoint: nothing is there to be continued
    wanted = config_to_json(config)
    saved = with_defaults(saved, RunConfig, config_to_json)
    _take_over_codebooks(saved, wanted)
    refuse_changes(folder, saved, wanted, config.optim, FREE)


def settings_of(folder: Path, config: RunConfig) -> dict[str, Any]:
    """Return `config_to_json` for a run in `folder`, which it may continue.

    The hash of a codebook's file that is gone since is taken over from the saved settings.
    """
    values = config_to_json(config)
    _take_over_codebooks(read_settings(folder) or {}, values)
    return values


def read_result(folder: Path, product: str = TOKENIZER) -> dict[str, Any] | None:
    """Return `result.json` of a finished run; None without one, or with half of one."""
    path = folder / RESULT
    if not path.exists() or not (folder / product).is_dir():
        return None
    try:
        return parse_result(path)
    except ValueError:
        return None  # it is written again from the last checkpoint


def parse_result(path: Path) -> dict[str, Any]:
    """Return the record in the file `path`; `ValueError` naming it if it is damaged."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        named = {"steps", "seconds"} <= result.keys()
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {_WRITTEN_AGAIN}") from error
    if not named:
        raise ValueError(f"{path}: names no steps and seconds; {_WRITTEN_AGAIN}")
    return result


def forget_damaged(folder: Path) -> str:
    """Mark a finished run as unfinished if its tokenizer is damaged and a checkpoint is whole.

    To train on writes the tokenizer again. Returns what is damaged, "" if nothing is done.
    """
    damage = damage_of(folder / TOKENIZER) if read_result(folder) is not None else ""
    if not damage or not any(_is_whole(path) for path in reversed(list_checkpoints(folder))):
        return ""
    forget_result(folder)
    return damage


def damage_of(tokenizer: Path) -> str:
    """Return what is wrong with a saved tokenizer, "" if every byte is as it was written."""
    try:
        read_weights(tokenizer, read_config(tokenizer))
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def forget_result(folder: Path) -> None:
    """Mark a run that goes on as unfinished; its checkpoints hold everything it has."""
    (folder / RESULT).unlink(missing_ok=True)


def write_result(
    folder: Path, product: str, save: Callable[[Path], None], result: dict[str, Any]
) -> None:
    """Write the folder `product` by `save`, then `result.json`, each whole or not at all."""
    with whole_folder(folder / product) as part:
        save(part)
    write_json(folder / RESULT, result)


def without_files(folder: Path, config: RunConfig) -> RunConfig:
    """Copy `config` with zeros where it names the file of a codebook that a checkpoint holds.

    For a run that is continued: the file is read when it begins, and may be gone afterwards.
    """
    for checkpoint in list_checkpoints(folder)[-1:]:
        try:
            saved = config_from_values(read_config(checkpoint).get("tokenizer"))
        except ValueError:
            break  # it is damaged; an older one will be found, and the file is read again
        return replace(config, quantizer=without_sources(config.quantizer, saved.quantizer.args))
    return config


def load_run(
    folder: Path | str, *, presets: Presets | None = None
) -> tuple[RunConfig, ImageTokenizer]:
    """Return the settings of a run and its tokenizer, in evaluation mode on the CPU.

    The finished tokenizer, or else the newest whole checkpoint; in both cases with the averaged
    weights if the run keeps them. A folder without a run is a `ValueError`.
    """
    folder = Path(folder)
    saved = read_settings(folder)
    if saved is None:
        raise ValueError(f"run={folder}: holds no {SETTINGS}; name the folder of a training run")
    config: RunConfig = from_dict(RunConfig, saved)
    if read_result(folder) is not None:
        return config, ImageTokenizer.from_pretrained(folder / TOKENIZER, presets=presets)
    snapshot, refused = newest_checkpoint(folder)
    if snapshot is None:
        reasons = "; ".join(refused) or "it was stopped before its first checkpoint"
        raise ValueError(f"run={folder}: has no whole checkpoint ({reasons}); train it again")
    tokenizer = ImageTokenizer.from_pretrained(
        checkpoint_folder(folder, snapshot.step), presets=presets
    )
    if snapshot.average is not None:
        tokenizer.load_state_dict({**snapshot.model, **snapshot.average})
    return config, tokenizer


def _is_whole(checkpoint: Path) -> bool:
    try:
        verify_checkpoint(checkpoint)
    except ValueError:
        return False
    return True


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        described = without_tensors(value)
        content = value.detach().cpu().contiguous().numpy().tobytes()
        described["tensor"]["sha256"] = hashlib.sha256(content).hexdigest()
        return described
    if isinstance(value, dict) and set(value) == {"file"}:
        path = Path(value["file"]).expanduser()
        return {**value, "sha256": _hash(path)} if path.is_file() else value
    if isinstance(value, dict):
        return {key: _describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    return value


def _hash(path: Path) -> str:
    found = path.stat()
    return _hash_once(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4)
def _hash_once(path: Path, size: int, changed: int) -> str:
    """Hash a file once a process, as long as its size and time stay: it may have gigabytes."""
    return sha256_of(path)


def _take_over_codebooks(saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Let a codebook's file lie elsewhere, if it is the same one, or be gone since it was read."""
    before = saved.get("quantizer", {}).get("args", {})
    for name, value in wanted["quantizer"]["args"].items():
        was = before.get(name)
        if isinstance(value, dict) and "file" in value and isinstance(was, dict):
            same = value.get("sha256") == was.get("sha256")
            unknown = "sha256" not in value or "sha256" not in was
            if same or (unknown and value["file"] == was.get("file")):
                before[name] = wanted["quantizer"]["args"][name] = was | value
