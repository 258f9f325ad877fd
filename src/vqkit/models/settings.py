"""What a tokenizer is made of, as plain values that fit into `config.json`.

Tensors among the arguments of a preset (pretrained features, say) become buffers of the quantizer,
so the weights file holds their values. The configuration keeps only their shape and type, as
`{"tensor": {"shape": [...], "dtype": "float32"}}`.

Where a run is described before anything is built, plain values say where a tensor comes from:
`{"file": "codebook.safetensors"}`, whose only tensor it is, or `{"normal": {"shape": [K, F]}}`,
drawn from a normal distribution with a `seed` (default 0). It is made when the model is built.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vqkit.config import (
    Network,
    NetworkConfig,
    QuantizerConfig,
    from_dict,
    require,
    to_dict,
)
from vqkit.quantizers import PRESETS, GridQuantizer, build
from vqkit.weights import sha256_of

Presets = Mapping[str, Callable[..., GridQuantizer]]
"""Preset functions of the user, by name: `{"mine": my_preset}`."""
CODEBOOK: Final = "vqkit_codebook"
"""Where a codebook file (`vqkit.codebooks`) keeps its record in the metadata."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """Everything needed to build an `ImageTokenizer`: its networks and its quantizer.

    `vqkit.config.from_dict` builds it from plain values, as they stand in a file.
    """

    quantizer: QuantizerConfig
    """The preset and its arguments."""
    network: Network = field(default_factory=NetworkConfig)
    """Encoder and decoder."""

    def __post_init__(self) -> None:
        for name, kinds in (("quantizer", (QuantizerConfig,)), ("network", get_args(Network))):
            value = getattr(self, name)
            listed = " or ".join(kind.__name__ for kind in kinds)
            require(isinstance(value, kinds), f"{name}={value!r}", f"expected a {listed}")


_LATER: Final[dict[str, Any]] = {"downsamplings": 2}
"""Settings of networks that were added after tokenizers had been published, and their defaults."""


def build_quantizer(config: QuantizerConfig, presets: Presets | None = None) -> GridQuantizer:
    """Call the preset named in `config`: one of `presets`, or else one of vqkit.

    A name that vqkit itself uses, an unknown name and arguments that do not fit are `ValueError`s.
    """
    taken = sorted(set(presets or {}) & set(PRESETS))
    require(not taken, f"presets={taken}", "vqkit has presets of these names; choose others")
    require(isinstance(config.preset, str), f"preset={config.preset!r}", "expected a name")
    return build(config, presets)


def config_values(config: TokenizerConfig) -> dict[str, Any]:
    """Return the configuration as JSON values; tensors are replaced by their shape and type.

    Settings that came later are left out at their default: the hash of a tokenizer, which `.vqk`
    files name, stays what it was, and older versions read it.
    """
    network = to_dict(config.network)
    return {
        "network": {k: v for k, v in network.items() if k not in _LATER or v != _LATER[k]},
        "quantizer": {
            "preset": config.quantizer.preset,
            "args": without_tensors(config.quantizer.args),
        },
    }


def config_from_values(values: Any) -> TokenizerConfig:
    """Read what `config_values` wrote; anything else is a `ValueError`."""
    require(isinstance(values, dict), f"tokenizer={values!r}", "expected its settings, an object")
    config: TokenizerConfig = from_dict(TokenizerConfig, values, "tokenizer.")
    args = config.quantizer.args
    require(isinstance(args, dict), f"tokenizer.quantizer.args={args!r}", "expected an object")
    for name, value in args.items():
        require(
            not _is_source(value),
            f"tokenizer.quantizer.args.{name}={value!r}",
            "a saved model has its tensors in its own weights file, and names no other source",
        )
    return config


def describe_tensors(config: TokenizerConfig) -> TokenizerConfig:
    """Copy `config` with every tensor replaced by its shape and type."""
    args = without_tensors(config.quantizer.args)
    return replace(config, quantizer=replace(config.quantizer, args=args))


def read_tensors(config: TokenizerConfig) -> TokenizerConfig:
    """Copy `config` with float32 tensors (K, F) where its arguments say where they come from.

    A missing or unsuitable file, a senseless shape and files whose features come from different
    encoders are `ValueError`s that name the argument.
    """
    args = {
        name: _tensor_of(f"quantizer.args.{name}", value)
        for name, value in config.quantizer.args.items()
    }
    _check_one_encoder(config.quantizer.args)
    return replace(config, quantizer=replace(config.quantizer, args=args))


def _check_one_encoder(args: Mapping[str, Any]) -> None:
    """Refuse features beside those of another encoder, as far as the files say where from."""
    files = {k: v["file"] for k, v in args.items() if _is_source(v) and "file" in v}
    found = {}
    for name, path in files.items():
        with safetensors.safe_open(Path(path).expanduser(), "pt") as file:
            record = json.loads((file.metadata() or {}).get(CODEBOOK, "{}"))
        encoder = (record.get("features") or {}).get("encoder")
        if encoder:
            found[name] = tuple(encoder.get(key) for key in ("sha256", "layer", "pooling"))
    for name, encoder in found.items():
        first = next(iter(found))
        require(
            encoder == found[first],
            f"quantizer.args.{name}.file={files[name]!r}",
            f"its features come from another encoder than those of {files[first]!r}; make both of "
            "features of one encoder",
        )


def zero_tensors(config: TokenizerConfig) -> TokenizerConfig:
    """Copy `config` with zeros wherever only a shape and a type are left, lists as tuples.

    For a model whose `load_state_dict` follows: the zeros are buffers that it fills.
    """
    args = {name: _with_zeros(value) for name, value in config.quantizer.args.items()}
    return replace(config, quantizer=replace(config.quantizer, args=args))


def without_sources(config: QuantizerConfig, saved: Mapping[str, Any]) -> QuantizerConfig:
    """Copy `config` with zeros where its arguments say where a tensor comes from.

    `saved` are the arguments of a model built from `config`, as `config_values` has them; its
    `load_state_dict` fills the zeros.
    """
    args = {
        name: _with_zeros(saved[name]) if _is_source(value) and name in saved else value
        for name, value in config.args.items()
    }
    return replace(config, args=args)


def refuse_descriptions(config: TokenizerConfig) -> None:
    """Raise `ValueError` if an argument is only the shape of a tensor, without its values."""
    for name, value in config.quantizer.args.items():
        require(
            not _holds_description(value),
            f"quantizer.args.{name}",
            "only the shape of a tensor is known; give the tensor, or load the model with "
            "from_pretrained",
        )


def without_tensors(value: Any) -> Any:
    """Copy nested dicts, lists and tuples, replacing every tensor by its shape and type."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return {"tensor": {"shape": list(value.shape), "dtype": dtype}}
    if isinstance(value, dict):
        return {key: without_tensors(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_tensors(item) for item in value]
    if isinstance(value, tuple):
        return tuple(without_tensors(item) for item in value)
    return value


def _is_source(value: Any) -> bool:
    kinds = ({"file"}, {"file", "sha256"}, {"normal"})
    return isinstance(value, dict) and set(value) in kinds


def _tensor_of(setting: str, value: Any) -> Any:
    if not _is_source(value):
        return value
    if "file" in value:
        return _tensor_in_file(
            f"{setting}.file={value['file']!r}", value["file"], value.get("sha256")
        )
    shape, seed = value["normal"].get("shape"), value["normal"].get("seed", 0)
    whole = isinstance(shape, list | tuple) and all(isinstance(n, int) and n >= 1 for n in shape)
    require(
        whole and len(shape) == 2 and isinstance(seed, int),
        f"{setting}.normal={value['normal']!r}",
        "expected the shape [rows, features], and maybe a seed",
    )
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def _tensor_in_file(setting: str, name: Any, sha256: str | None = None) -> Tensor:
    path = Path(name).expanduser()
    wanted = (
        "name a safetensors file of features (K, F), such as `vqkit codebook cluster` writes "
        "(options --codebook and --pool of the recipes)"
    )
    require(not path.is_dir(), setting, f"is a folder; {wanted}")
    require(path.is_file(), setting, f"no such file; {wanted}")
    same = sha256 is None or sha256_of(path) == sha256
    require(same, setting, "is another file than the one of these settings (another SHA-256)")
    try:
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {}).get(CODEBOOK, "{}"))
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(
            f"{setting}: is no safetensors file, or a torn one ({error}); {wanted}"
        ) from error
    require(
        len(tensors) == 1, setting, f"holds {len(tensors)} tensors; expected the features alone"
    )
    (features,) = tensors.values()
    require(
        features.ndim == 2 and features.is_floating_point(),
        setting,
        f"holds a tensor of shape {tuple(features.shape)} and type {features.dtype}; expected "
        "features (K, F), floating point",
    )
    if "sha256" in record:  # a codebook file says what it holds
        content = features.contiguous().view(torch.uint8).numpy().tobytes()
        require(
            hashlib.sha256(content).hexdigest() == record["sha256"],
            setting,
            "was altered since it was written; copy the codebook file again, or make it anew",
        )
    return features.float()


def _is_description(value: Any) -> bool:
    return (
        isinstance(value, dict) and set(value) == {"tensor"} and isinstance(value["tensor"], dict)
    )


def _holds_description(value: Any) -> bool:
    if _is_description(value):
        return True
    if isinstance(value, dict):
        return any(map(_holds_description, value.values()))
    return isinstance(value, list | tuple) and any(map(_holds_description, value))


def _with_zeros(value: Any) -> Any:
    if _is_description(value):
        shape, dtype = value["tensor"].get("shape"), value["tensor"].get("dtype")
        kind = getattr(torch, dtype, None) if isinstance(dtype, str) else None
        require(
            isinstance(kind, torch.dtype)
            and isinstance(shape, list | tuple)
            and all(isinstance(size, int) and size >= 0 for size in shape),
            f"tensor={value['tensor']!r}",
            "expected a shape and a dtype of torch, such as [16, 8] and 'float32'",
        )
        return torch.zeros(tuple(shape), dtype=kind)
    if isinstance(value, dict):
        return {key: _with_zeros(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_with_zeros(item) for item in value)
    return value
