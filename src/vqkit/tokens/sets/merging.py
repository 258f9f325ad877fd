"""Several token sets as one: tokens of parts of a data set that were made apart."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from vqkit.codebooks.set_folders import MANIFEST, write_object
from vqkit.config import require
from vqkit.tokens.sets.manifest import check_whole
from vqkit.tokens.sets.shards import manifest_of, statistics
from vqkit.tokens.sets.token_set import TokenSet
from vqkit.training.folders import whole_folder

_EQUAL: Final = (
    *("tokenizer", "slots", "labels", "captions", "latent_channels", "label_names"),
    "preprocessing",
)
"""What token sets must have in common to be one."""


def merge_token_sets(sets: Sequence[TokenSet], out: str | Path) -> TokenSet:
    """Write a token set `out` of all images of `sets`, in their order.

    Shards are linked where the file system can, else copied; each is checked first. Labels keep
    their numbers, so all sets must name the classes alike.

    Raises:
        ValueError: fewer than two sets, sets that do not fit, a damaged shard, or an `out` that is
            there already.
    """
    require(len(sets) >= 2, f"{len(sets)} token sets", "name two or more to merge")
    _check_alike(sets)
    folder = Path(out).expanduser()
    require(not folder.exists(), f"out={str(folder)!r}", "is there already; name a new folder")
    shards: list[dict[str, Any]] = []
    first_image = 0
    with whole_folder(folder) as part:
        for one in sets:
            for shard in one.manifest["shards"]:
                path = one.folder / shard["file"]
                check_whole(path, shard)
                name = f"{len(shards):05}.parquet"
                _link(path, part / name)
                shards.append(
                    {**shard, "file": name, "first_image": first_image + shard["first_image"]}
                )
            first_image += one.manifest["data"]["images"]
        skipped = [broken for one in sets for broken in one.manifest["skipped"]]
        manifest = manifest_of(_facts(sets), shards, skipped, _latents(sets))
        write_object(part / MANIFEST, manifest)
    return TokenSet.open(folder)


def _check_alike(sets: Sequence[TokenSet]) -> None:
    first = sets[0]
    for other in sets[1:]:
        differ = [name for name in _EQUAL if first.manifest[name] != other.manifest[name]]
        require(
            not differ,
            f"tokens={str(first.folder)!r} and {str(other.folder)!r}",
            f"differ in {', '.join(differ)}; tokenize both alike",
        )


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, target)


def _facts(sets: Sequence[TokenSet]) -> dict[str, Any]:
    manifests = [one.manifest for one in sets]
    settings = [manifest["settings"] for manifest in manifests]
    environments = [manifest["environment"] for manifest in manifests]
    parts = [manifest["data"] for manifest in manifests]
    prints = json.dumps([part["fingerprint"] for part in parts])
    return {
        **{name: manifests[0][name] for name in _EQUAL},
        "environment": _common(environments),
        "settings": _common(settings),
        "data": {
            "source": "merged",
            "path": None,
            "split": None,
            "fingerprint": hashlib.sha256(prints.encode()).hexdigest(),
            "images": sum(part["images"] for part in parts),
            "parts": parts,
        },
    }


def _common(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Keep what all agree on; where they differ, list what each says."""
    return {
        name: values[0][name]
        if all(one.get(name) == values[0][name] for one in values)
        else [one.get(name) for one in values]
        for name in values[0]
    }


def _latents(sets: Sequence[TokenSet]) -> dict[str, Any] | None:
    """Mean and deviation over all positions, from those of the sets."""
    if not sets[0].latent_channels:
        return None
    parts = []
    for one in sets:
        found = one.manifest["latents"]
        count, mean, std = found["positions"], np.array(found["mean"]), np.array(found["std"])
        parts.append((count, [count * mean, count * (mean**2 + std**2)]))
    return statistics(parts)
