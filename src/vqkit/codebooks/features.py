"""Feature sets: folders of patch features with a manifest, as `extract` writes them.

Legend: N features, D dim.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from vqkit.clustering.shards import NpyShards
from vqkit.codebooks.set_folders import FORMAT, MANIFEST, UNFINISHED, read_object
from vqkit.config import require
from vqkit.config.forms import check_form
from vqkit.weights import sha256_of

SAME_ENCODER: Final = (
    *("kind", "model", "module", "sha256", "layer", "pooling", "projected"),
    *("value_range", "scale", "mean", "std"),
)
"""What two encoders must have in common for their features to lie in one space."""
_FILE: Final = {"file": str, "bytes": int, "sha256": str}
_FORM: Final = {
    "dim": int,
    "dtype": str,
    "num_vectors": int,
    "encoder": dict,
    "data": dict,
    "groups": (None, [str]),
    "skipped": list,
    "shards": [{**_FILE, "rows": int}],
}
"""What every manifest has."""
_AGAIN: Final = "extract again with --fresh"
_GOES_ON: Final = "is not finished; the command that began it goes on from there (without --fresh)"


class FeatureSet(NpyShards):
    """The features (N, D) in a folder that `extract` has finished, in the order of the images.

    A `VectorSource`: k-means and codebooks read it block by block. Sizes of all files are checked
    here, their contents by `verify`.

    Raises `ValueError` for a folder without features, an unfinished one, and missing or torn files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.manifest = read_manifest(self.folder)
        shards = self.manifest["shards"]
        for shard in shards:
            self._check_size(shard["file"], shard["bytes"])
        super().__init__([self.folder / shard["file"] for shard in shards])
        stated = [(shard["rows"], self.manifest["dim"]) for shard in shards]
        for shard, (rows, dim) in zip(self.shards, stated, strict=True):
            require(
                (shard.num_vectors, shard.dim) == (rows, dim),
                f"{shard.path}: ({shard.num_vectors}, {shard.dim})",
                f"the manifest says ({rows}, {dim}); {_AGAIN}",
            )
        names = self.manifest["groups"]
        self.group_names: tuple[str, ...] | None = None if names is None else tuple(names)

    def _check_size(self, name: str, size: int) -> None:
        path = self.folder / name
        found = path.stat().st_size if path.is_file() else None
        require(found is not None, f"{path}", f"is missing; copy it there, or {_AGAIN}")
        require(
            found == size,
            f"{path}: {found:,} bytes",
            f"the manifest says {size:,}: the file is torn; copy it again, or {_AGAIN}",
        )

    def groups(self) -> Tensor | None:
        """Return the group of every feature (N,), int64, a number of `group_names`; None without.

        Raises `ValueError` for missing or torn files.
        """
        if self.group_names is None:
            return None
        parts = []
        for shard in self.manifest["shards"]:
            self._check_size(shard["groups"]["file"], shard["groups"]["bytes"])
            path = self.folder / shard["groups"]["file"]
            try:
                parts.append(torch.from_numpy(np.load(path, allow_pickle=False)).long())
            except (OSError, ValueError, EOFError) as error:
                raise ValueError(f"{path}: cannot be read ({error}); {_AGAIN}") from error
        return torch.cat(parts)

    def verify(self) -> None:
        """Compare the SHA-256 of every file with the manifest.

        Raises `ValueError` naming the first that differs.
        """
        for shard in self.manifest["shards"]:
            for part in (shard, shard.get("groups")):
                if part is None:
                    continue
                path = self.folder / part["file"]
                self._check_size(part["file"], part["bytes"])
                require(
                    sha256_of(path) == part["sha256"],
                    f"{path}",
                    "was altered or damaged (another SHA-256 than in the manifest); copy it again, "
                    f"or {_AGAIN}",
                )

    def parts(self) -> list[Any]:
        """Name all files with their SHA-256: a clustering goes on with the same features alone."""
        return [[shard["file"], shard["sha256"]] for shard in self.manifest["shards"]]

    def provenance(self) -> dict[str, Any]:
        """Return where the features come from, as JSON values: the manifest, shards as one hash."""
        digests = "".join(shard["sha256"] for shard in self.manifest["shards"])
        kept = {k: v for k, v in self.manifest.items() if k not in ("shards", "skipped")}
        return {
            **kept,
            "num_skipped": len(self.manifest["skipped"]),
            "sha256": hashlib.sha256(digests.encode()).hexdigest(),
        }


class JoinedFeatures(NpyShards):
    """Several feature sets of one encoder, one after the other, as one source."""

    def __init__(self, sets: Sequence[FeatureSet]) -> None:
        first = sets[0]
        for other in sets[1:]:
            mine, its = (_identity(s.manifest) for s in (first, other))
            differ = [
                f"{name} {_short(mine[name])} and {_short(its[name])}"
                for name in mine
                if mine[name] != its[name]
            ]
            require(
                not differ,
                f"features={str(first.folder)!r} and {str(other.folder)!r}",
                f"were made by different encoders ({'; '.join(differ)}); join sets of one, or "
                "extract one of them again",
            )
        super().__init__([shard.path for one in sets for shard in one.shards])
        self.sets = tuple(sets)
        self.group_names: tuple[str, ...] | None = None
        if all(one.group_names is not None for one in sets):
            names = [name for one in sets for name in one.group_names or ()]
            self.group_names = tuple(dict.fromkeys(names))

    def groups(self) -> Tensor | None:
        """Return the group of every feature (N,), int64; groups of one name are one group."""
        if self.group_names is None:
            return None
        number = {name: i for i, name in enumerate(self.group_names)}
        parts = []
        for one in self.sets:
            places = torch.tensor([number[name] for name in one.group_names or ()])
            found = one.groups()
            assert found is not None  # every set has names
            parts.append(places[found])
        return torch.cat(parts)

    def verify(self) -> None:
        """Compare the SHA-256 of every file with its manifest."""
        for one in self.sets:
            one.verify()

    def parts(self) -> list[Any]:
        """Name the files of all sets."""
        return [one.parts() for one in self.sets]

    def provenance(self) -> dict[str, Any]:
        """Return the provenance of every set, and what they have in common."""
        each = [one.provenance() for one in self.sets]
        shared = {key: each[0][key] for key in ("kind", "dim", "dtype", "encoder")}
        return {**shared, "num_vectors": self.num_vectors, "sets": each}


def open_features(folders: Sequence[str | Path]) -> FeatureSet | JoinedFeatures:
    """Open one feature set, or several as one source.

    Raises:
        ValueError: no folder, one that holds no finished features or is named twice, or sets of
            different encoders.
    """
    require(len(folders) > 0, "features=[]", "name at least one folder that extract has written")
    places = [Path(folder).expanduser().resolve() for folder in folders]
    twice = [str(f) for f, place in zip(folders, places, strict=True) if places.count(place) > 1]
    require(not twice, f"features={twice}", "are the same folder; name every one once")
    sets = [FeatureSet(folder) for folder in folders]
    return sets[0] if len(sets) == 1 else JoinedFeatures(sets)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of finished features; anything else is a `ValueError`."""
    where = f"features={str(folder)!r}"
    require(folder.is_dir(), where, "is no folder; name one that extract has written")
    if not (folder / MANIFEST).is_file():
        begun = (folder / UNFINISHED).is_file()
        require(not begun, where, _GOES_ON)
        require(False, where, f"has no {MANIFEST}; name a folder that extract has written")
    manifest = read_object(folder / MANIFEST)
    require(
        manifest.get("library") == "vqkit" and manifest.get("kind") == "features",
        where,
        f"its {MANIFEST} was not written by extract; name another folder",
    )
    require(
        manifest.get("format") == FORMAT,
        f"{where}: format={manifest.get('format')!r}",
        f"this version reads format {FORMAT}; {_AGAIN}",
    )
    check_form(manifest, _FORM, f"{folder / MANIFEST}", _AGAIN)
    require(bool(manifest["shards"]), where, f"holds no features; {_AGAIN}")
    rows = sum(shard["rows"] for shard in manifest["shards"])
    require(
        rows == manifest["num_vectors"],
        f"{where}: num_vectors={manifest['num_vectors']}",
        f"its shards have {rows}; {_AGAIN}",
    )
    if manifest["groups"] is not None:
        missing = [shard["file"] for shard in manifest["shards"] if not shard.get("groups")]
        require(not missing, where, f"has no groups for {', '.join(missing[:3])}; {_AGAIN}")
        form = {"shards": [{"groups": _FILE}]}
        check_form(manifest, form, f"{folder / MANIFEST}", _AGAIN)
    return manifest


def _identity(manifest: dict[str, Any]) -> dict[str, Any]:
    encoder = manifest["encoder"]
    return {**{name: encoder.get(name) for name in SAME_ENCODER}, "dim": manifest["dim"]}


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 20 else str(value)
