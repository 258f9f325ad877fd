"""Weights of MAE (arXiv:2111.06377) for a `TokenViT`, from a local folder or file.

Two layouts are read: that of transformers' `ViTMAEModel` and `ViTMAEForPreTraining`, as published
in `facebook/vit-mae-base`, and that of MAE's own code (`blocks.0.attn.qkv.weight`). Taken are the
class token, the positions, interpolated to the grid of the tokens, and the blocks. What reads
patches of pixels is left out, and MAE's fine-tuning leaves the last normalisation out as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from vqkit.classification.network import TokenViT
from vqkit.config import require
from vqkit.weights import read_weights

_FILES: Final = ("model.safetensors", "pytorch_model.bin")
_LAYER: Final = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_OURS: Final = {
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
"""Parts of a layer of transformers -> of a block here; queries, keys and values are joined."""
_EMBEDDINGS: Final = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
}
_PARTS: Final = ("query", "key", "value")


def load_pretrained(model: TokenViT, place: str | Path, grid: tuple[int, int]) -> None:
    """Put MAE's weights into a model for maps of `grid`.

    Args:
        model: takes them.
        place: a folder with `model.safetensors` or `pytorch_model.bin`, or a file.
        grid: rows and columns of the token maps.

    Raises:
        ValueError: no such file, other names, or another size than `model`.
    """
    path = _file(Path(place).expanduser())
    found = _renamed(read_weights(path))
    where = f"model.pretrained={str(place)!r}"
    wanted = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.split(".")[0] in ("cls_token", "pos_embed", "blocks")
    }
    missing = sorted(set(wanted) - set(found))
    require(not missing, where, f"holds no weights of MAE: {', '.join(missing[:3])} are missing")
    extra = [name for name in found if name.startswith("blocks.") and name not in wanted]
    require(not extra, where, f"has more layers than model.layers={len(model.blocks)}")
    found["pos_embed"] = interpolated(found["pos_embed"], grid)
    for name, tensor in wanted.items():
        there, here = tuple(found[name].shape), tuple(tensor.shape)
        require(there == here, where, f"{name} has shape {there}, the settings say {here}")
    model.load_state_dict({name: found[name].float() for name in wanted}, strict=False)


def interpolated(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return positions (1, 1 + h w, W) for another grid than the square one they come from.

    Bicubic, as MAE's fine-tuning does it; the first is that of the class token and stays. Positions
    of no square grid are a `ValueError`.
    """
    shape = tuple(positions.shape)
    rows = shape[1] - 1 if len(shape) == 3 and shape[0] == 1 else 0
    require(
        rows > 0 and math.isqrt(rows) ** 2 == rows,
        "model.pretrained",
        f"pos_embed has shape {shape}, expected (1, 1 + n², width) of a square grid; take weights "
        "of MAE",
    )
    side = math.isqrt(rows)
    if grid == (side, side):
        return positions
    first, rest = positions[:, :1], positions[:, 1:].float()
    square = rest.transpose(1, 2).unflatten(2, (side, side))
    resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([first.float(), resized.flatten(2).transpose(1, 2)], 1)


def _file(place: Path) -> Path:
    if place.is_dir():
        files = [place / name for name in _FILES if (place / name).is_file()]
        require(
            bool(files), f"model.pretrained={str(place)!r}", f"holds no {' and no '.join(_FILES)}"
        )
        return files[0]
    require(place.is_file(), f"model.pretrained={str(place)!r}", "is no folder and no file")
    return place


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the weights as `TokenViT` does; those that cannot be joined are left out."""
    found = {name.removeprefix("vit."): tensor for name, tensor in weights.items()}
    if "embeddings.position_embeddings" not in found:
        return found  # those of MAE's own code already are
    ours = {new: found[old] for old, new in _EMBEDDINGS.items() if old in found}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, tensor in found.items():
        layer = _LAYER.fullmatch(name)
        if layer is None:
            continue
        part, _, kind = layer[2].rpartition(".")
        if part.startswith("attention.attention."):
            place = f"blocks.{layer[1]}.attn.qkv.{kind}"
            joined.setdefault(place, {})[part.rpartition(".")[2]] = tensor
        elif part in _OURS:
            ours[f"blocks.{layer[1]}.{_OURS[part]}.{kind}"] = tensor
    for place, parts in joined.items():
        shapes = {parts[part].shape if part in parts else None for part in _PARTS}
        if len(shapes) == 1 and all(shapes):
            ours[place] = torch.cat([parts[part] for part in _PARTS])
    return ours
