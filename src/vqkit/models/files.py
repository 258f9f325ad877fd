"""A model on disk: `model.safetensors` (the tensors) and `config.json` (everything else).

Nothing is pickled, so loading a folder runs no code of whoever wrote it. `config.json` names the
size and the SHA-256 of its weights file: two files that do not belong together are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from vqkit import __version__
from vqkit.config import require

FORMAT: Final = 1
"""Version of the layout of the two files; raised when older code could misread newer files."""
CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
FREQUENCIES: Final = "frequencies.safetensors"
"""How often codes are drawn, for the coder (room `tokens`); a model works without it."""


def write_model(folder: Path, values: dict[str, Any], state: Mapping[str, Any]) -> None:
    """Write the settings `values` (JSON values) and the tensors of `state` into `folder`.

    Both files are written whole beside the old ones and renamed only then, so an `OSError` (a full
    disk, say) leaves what was there. Raises `ValueError` for what the two files cannot hold.
    """
    weights = safetensors.torch.save(_storable(state), metadata={"format": "pt"})
    config = {
        "library": "vqkit",
        "format": FORMAT,
        "vqkit_version": __version__,
        **values,
        "weights": {
            "file": WEIGHTS,
            "bytes": len(weights),
            "sha256": hashlib.sha256(weights).hexdigest(),
        },
    }
    text = json.dumps(config, indent=2, allow_nan=False, default=_refuse) + "\n"
    require(not folder.is_file(), f"folder={folder}", "is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    part = f".{uuid.uuid4().hex}.part"
    contents = {WEIGHTS: weights, CONFIG: text.encode()}
    try:
        for name, content in contents.items():
            write_whole(folder / (name + part), content)
        for name in contents:
            os.replace(folder / (name + part), folder / name)
    finally:
        for name in contents:
            (folder / (name + part)).unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` and wait until it has reached the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_beside(path: Path, content: bytes) -> Path:
    """Write `path` whole or not at all and return it; its folder is made if needed.

    Raises:
        OSError: a full disk, say; what was there is left as it was, and nothing beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        write_whole(part, content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings in `folder`; a missing, unreadable or foreign file is a `ValueError`."""
    path, inside = folder / CONFIG, folder / "tokenizer"
    is_run = (inside / CONFIG).is_file()
    require(not is_run, f"{folder}", f"is the folder of a run; load {inside}")
    require(path.is_file(), f"{path}", f"is missing; {folder} is no saved vqkit model")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); save the model again") from error
    require(
        isinstance(config, dict) and config.get("library") == "vqkit" and "format" in config,
        f"{path}",
        "was not written by vqkit; it has no 'library' and 'format' of ours",
    )
    require(
        config["format"] == FORMAT,
        f"{path}: format={config['format']!r}",
        f"this is vqkit {__version__}, which reads format {FORMAT}; the file was written by vqkit "
        f"{config.get('vqkit_version', '(unknown)')}, so load it with that version",
    )
    return config


def read_weights(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors, on the CPU, that belong to `config`; anything else is a `ValueError`."""
    path = folder / WEIGHTS
    stated = config.get("weights")
    require(
        isinstance(stated, dict)
        and isinstance(stated.get("bytes"), int)
        and isinstance(stated.get("sha256"), str),
        f"{folder / CONFIG}: weights={stated!r}",
        "does not name the size and SHA-256 of its weights file; save the model again",
    )
    assert isinstance(stated, dict)  # for the type checker: required above
    require(path.is_file(), f"{path}", "is missing; copy it beside its config.json")
    content = path.read_bytes()
    require(
        len(content) >= stated["bytes"],
        f"{path}: {len(content):,} bytes",
        f"is truncated, {stated['bytes']:,} were written; copy the file again",
    )
    require(
        hashlib.sha256(content).hexdigest() == stated["sha256"],
        f"{path}",
        "does not belong to the config.json beside it (another SHA-256); the two files come from "
        "different models, or the file was altered",
    )
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise ValueError(f"{path}: is no safetensors file ({error})") from error


def check_tensors(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    where: str,
    *,
    free_length: Collection[str] = (),
) -> None:
    """Raise `ValueError` unless `found` has the names, shapes and kinds of numbers of `expected`.

    Tensors named in `free_length` may have any shape: statistics that were waiting to be used.

    Floating point tensors may have another precision; they are converted when loaded.
    """
    missing = sorted(set(expected) - set(found))
    require(not missing, f"{where}", f"tensors are missing: {', '.join(missing)}")
    extra = sorted(set(found) - set(expected))
    require(not extra, f"{where}", f"tensors that this model does not have: {', '.join(extra)}")
    for name, tensor in found.items():
        here, there = tuple(expected[name].shape), tuple(tensor.shape)
        fits = here == there or (name in free_length and len(here) == len(there))
        require(fits, f"{where}: {name}", f"has shape {there}, the settings say {here}")
        same_kind = expected[name].dtype == tensor.dtype or (
            expected[name].is_floating_point() and tensor.is_floating_point()
        )
        require(
            same_kind,
            f"{where}: {name}",
            f"has type {tensor.dtype}, the settings say {expected[name].dtype}",
        )


def _storable(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copy a state into tensors that safetensors takes: on the CPU, packed, sharing no memory."""
    for name, value in state.items():
        require(isinstance(value, Tensor), f"state {name}", "is no tensor and cannot be saved")
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in state.items()
    }


def _refuse(value: object) -> Any:
    raise ValueError(
        f"quantizer.args: {value!r} cannot be saved; use numbers, text, lists, dicts or tensors"
    )
