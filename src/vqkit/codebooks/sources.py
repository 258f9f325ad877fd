"""What codes are made of: feature sets, or any other vectors, and the classes of their rows.

Legend: N features, K codes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqkit.clustering import VectorSource, open_vectors
from vqkit.clustering.sources import fingerprint, sample
from vqkit.config import require

HASHED_NUMBERS = 1 << 22
"""Numbers of plain vectors that are in memory at a time while they are hashed."""

Features = str | Path | Sequence[str | Path] | VectorSource | Tensor | np.ndarray


def open_source(features: Features) -> tuple[VectorSource, dict[str, Any]]:
    """Return features and their provenance: one feature set, several, or any other vectors.

    Raises:
        ValueError: no features there, or sets of different encoders.
    """
    named = features if isinstance(features, list | tuple) else [features]
    folders = [Path(path).expanduser() for path in named if isinstance(path, str | Path)]
    if len(folders) == len(named):
        require(bool(folders), "features=[]", "name at least one folder of features")
        for folder in folders:
            require(folder.exists(), f"features={str(folder)!r}", "there is no such folder")
        if len(folders) > 1 or _is_set(folders[0]):
            from vqkit.codebooks.features import open_features

            joined = open_features(folders)
            return joined, joined.provenance()
        features = folders[0]
    source = open_vectors(features)
    provenance = getattr(source, "provenance", None)
    if provenance is not None:
        return source, provenance()
    return source, {"kind": "vectors", **fingerprint(source, sample(source))}


def with_contents(source: VectorSource, provenance: dict[str, Any]) -> dict[str, Any]:
    """Add to the provenance of plain vectors the SHA-256 of all values, read block by block.

    That of feature sets has the hashes of their shards.
    """
    if provenance.get("kind") != "vectors":
        return provenance
    digest, rows = hashlib.sha256(), max(1, HASHED_NUMBERS // source.dim)
    for start in range(0, source.num_vectors, rows):
        block = source.read(start, min(start + rows, source.num_vectors)).cpu().contiguous()
        digest.update(block.flatten().view(torch.uint8).numpy().data)
    return {**provenance, "sha256": digest.hexdigest()}


def verify(source: VectorSource) -> None:
    """Check the SHA-256 of all shards of a feature set; a broken one is a `ValueError`."""
    check = getattr(source, "verify", None)
    if check is not None:
        check()


def _is_set(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("manifest.json", "unfinished.json"))


def labels_of(source: VectorSource) -> tuple[Tensor, list[str]]:
    """Return the group of every feature (N,), int64, and the names of the groups.

    Features without groups are a `ValueError`.
    """
    read = getattr(source, "groups", None)
    found = None if read is None else read()
    require(
        found is not None,
        "per_group=True",
        "these features have no groups; extract them from a folder with one subfolder for each "
        "class, or leave per_group out",
    )
    return torch.as_tensor(found).long(), list(getattr(source, "group_names", None) or ())


def share_codes(num_codes: int, labels: Tensor, names: Sequence[str]) -> list[tuple[str, int]]:
    """Return name and number of codes of every group that has features, in rising order.

    Each gets K // G codes and the first K % G one more. Fewer codes than groups, and a group with
    fewer features than codes, are a `ValueError`.
    """
    present, sizes = labels.unique(return_counts=True)
    each, more = divmod(num_codes, len(present))
    require(
        each >= 1,
        f"num_codes={num_codes:,}",
        f"there are {len(present):,} classes; ask for at least one code for each",
    )
    groups = []
    for place, (label, size) in enumerate(zip(present.tolist(), sizes.tolist(), strict=True)):
        name, count = names[label] if label < len(names) else str(label), each + (place < more)
        require(
            count <= size,
            f"num_codes={num_codes:,}",
            f"class {name!r} has {size:,} features for {count:,} codes; ask for fewer codes, "
            "extract more of its images or with less pooling, or leave per_group out",
        )
        groups.append((name, count))
    return groups
