"""Files and folders with the weights of a model, opened by what they hold, not by their names.

A state dict is found in them, and its tensors are read only once it is known which are needed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vqkit.config import require
from vqkit.models.importers.stored import Storage, StoredTensor
from vqkit.models.importers.torch_files import AGAIN, ZIP_START, Fetch, open_legacy, open_zip

_FOLDER_WEIGHTS: Final = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
"""Names that diffusers and the hub give to files of weights, the best first."""

_ENTRIES: Final = ("ema", "state_dict", "model")
"""Where checkpoints keep their state dict, the best first: evaluation takes the moving average."""

_SAFETENSORS_TYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An opened file."""

    path: Path
    content: object
    """What it holds: nested dictionaries, with `StoredTensor`s in the places of tensors."""
    fetch: Fetch
    settings: dict[str, Any]
    """Of the `config.json` beside the weights; empty without one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """The state dict of a file."""

    entry: str
    """Where it stood: "state_dict", say; empty for the whole file."""
    tensors: dict[str, StoredTensor]
    others: tuple[str, ...]
    """Names of entries that are no tensors."""


def open_source(path: Path) -> Source:
    """Open a `.ckpt`, `.pt`, `.pth`, `.bin` or `.safetensors` file, or a folder of diffusers.

    What cannot be read, or is none of these, is a `ValueError` of one line naming the file.
    """
    if path.is_dir():
        settings = _settings(path)
        ours = settings.get("library") == "vqkit"
        require(not ours, f"path={path}", "is a tokenizer of vqkit already; load it as one")
        path = _weights_in(path)
    else:
        require(path.is_file(), f"path={path}", "no such file or folder")
        settings = _settings(path.parent)
    with path.open("rb") as file:
        start = file.read(16)
    try:
        if start.startswith(ZIP_START):
            content, fetch = open_zip(path)
        elif start[8:9] == b"{":
            content, fetch = _open_safetensors(path)
        else:
            require(start[:1] == b"\x80", f"begins with {start!r}", f"no checkpoint does; {AGAIN}")
            content, fetch = open_legacy(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Source(path=path, content=content, fetch=fetch, settings=settings)


def find_state(source: Source, entry: str | None = None) -> State:
    """Find the state dict of a file: under `entry`, or where checkpoints usually keep it."""
    content = source.content
    require(isinstance(content, dict), f"{source.path}", "holds no dictionary of tensors")
    assert isinstance(content, dict)  # for the type checker: required above
    places = {key: value for key, value in {**content, "": content}.items() if _is_state(value)}
    require(
        bool(places), f"{source.path}", f"holds no tensors, only {listed(content) or 'nothing'}"
    )
    found = listed(place or "the file itself" for place in places)
    if entry is None:
        usual = [place for place in (*_ENTRIES, "") if place in places] or list(places)
        entry = usual[0]
        clear = entry in (*_ENTRIES, "") or len(places) == 1
        require(clear, f"{source.path}", f"has tensors in {found}; name one as `weights`")
    require(entry in places, f"weights={entry!r}", f"{source.path} has tensors in {found}")
    state = places[entry]
    tensors = {name: value for name, value in state.items() if isinstance(value, StoredTensor)}
    others = tuple(name for name in state if name not in tensors)
    return State(entry=entry, tensors=tensors, others=others if entry else ())


def check_sizes(source: Source, wanted: Mapping[str, StoredTensor]) -> None:
    """Raise `ValueError` unless tensors lie in their storages and have no more bytes than the file.

    Names and shapes are text, and can promise what is not there.
    """
    for name, stored in wanted.items():
        require(
            stored.fits, f"{listed([name])}", "lies outside of its storage; the file is damaged"
        )
    total = sum(stored.nbytes for stored in wanted.values())
    most = source.path.stat().st_size
    require(total <= most, "tensors", f"overlap: they have {total:,} bytes, the file has {most:,}")


def read_tensors(source: Source, wanted: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """Read tensors that pass `check_sizes`, as packed copies on the CPU, by name.

    Damage is a `ValueError`.
    """
    names = defaultdict(list)
    for name, stored in wanted.items():
        names[stored.storage.key].append(name)
    storages = {stored.storage.key: stored.storage for stored in wanted.values()}
    found: dict[str, Tensor] = {}
    for key, numbers in source.fetch(storages.values()):
        for name in names[key]:
            stored = wanted[name]
            same = numbers.view(stored.storage.dtype)  # a storage may be read as two types
            view = same.as_strided(stored.shape, stored.stride, stored.offset)
            found[name] = view.clone(memory_format=torch.contiguous_format)
    return found


def listed(names: Iterable[str], most: int = 5) -> str:
    """Name the first few of many, and how many more there are, in one safe line."""
    every = list(names)
    first = ", ".join(ascii(name[:120])[1:-1] for name in every[:most])
    return first + (f" and {len(every) - most:,} more" if len(every) > most else "")


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(v, StoredTensor) for v in value.values())


def _settings(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a model beside its weights; {} where there is none."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: is damaged ({error}); {AGAIN}") from error
    return settings if isinstance(settings, dict) else {}


def _weights_in(folder: Path) -> Path:
    for name in _FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    hint = f"it has folders of models: {listed(inside)}; name one" if inside else "name the file"
    raise ValueError(f"path={folder}: has no {' or '.join(_FOLDER_WEIGHTS)}; {hint}")


def _open_safetensors(path: Path) -> tuple[object, Fetch]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            kinds = {name: part.get_dtype() for name, part in slices.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"is no whole safetensors file ({error}); {AGAIN}") from error
    content = {
        name: _packed(name, shapes[name], _SAFETENSORS_TYPES[kind])
        for name, kind in kinds.items()
        if kind in _SAFETENSORS_TYPES
    }

    def fetch(storages: Iterable[Storage]) -> Iterator[tuple[str, Tensor]]:
        with safe_open(path, framework="pt") as file:
            for storage in storages:
                yield storage.key, file.get_tensor(storage.key).flatten()

    return content, fetch


def _packed(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> StoredTensor:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    count = strides[-1] * shape[0] if shape else 1
    stride = tuple(reversed(strides))[: len(shape)] if shape else ()
    return StoredTensor(Storage(name, dtype, count), 0, shape, stride)
