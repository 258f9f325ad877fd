"""The manifest of a token set, and whether the shards are what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from vqkit.codebooks.set_folders import FORMAT, MANIFEST, UNFINISHED, read_object
from vqkit.config import require
from vqkit.config.forms import check_form
from vqkit.tokens.sets.shards import TOKENS
from vqkit.weights import sha256_of

_FORM: Final = {
    "num_images": int,
    "grid": (None, [int]),
    "tokenizer": {"hash": str},
    "slots": [{"name": str, "num_codes": int}],
    "labels": bool,
    "captions": bool,
    "latent_channels": int,
    "label_names": (None, [str]),
    "preprocessing": dict,
    "environment": dict,
    "settings": dict,
    "data": {"source": str, "path": (None, str), "fingerprint": str, "images": int},
    "latents": (None, {"positions": int, "mean": [float], "std": [float]}),
    "skipped": list,
    "shards": [
        {"file": str, "rows": int, "first_image": int, "images": int, "bytes": int, "sha256": str}
    ],
}
"""What every manifest has; what is in `preprocessing` and the like may differ."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_AGAIN: Final = "copy the file again, or tokenize again (--fresh)"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a finished token set; anything else is a `ValueError`."""
    where = f"tokens={str(folder)!r}"
    path = folder / MANIFEST
    if not path.is_file():
        begun = (folder / UNFINISHED).is_file()
        what = "is not finished; the command that began it goes on from there"
        require(not begun, where, f"{what} (without --fresh)")
        require(False, where, "is no token set; make one with vqkit tokenize")
    manifest = read_object(path)
    ours = (manifest.get("library"), manifest.get("kind")) == ("vqkit", TOKENS.name)
    require(ours, where, f"has a {MANIFEST} of something else; name a folder of vqkit tokenize")
    require(
        manifest.get("format") == FORMAT,
        f"{path}: format={manifest.get('format')!r}",
        f"this vqkit reads format {FORMAT}; open it with the version that wrote it",
    )
    check_form(manifest, _FORM, f"{path}", _AGAIN)
    _check_values(manifest, path)
    return manifest


def _check_values(manifest: dict[str, Any], path: Path) -> None:
    """Raise `ValueError` for values of the right form that cannot be true."""

    def check(holds: bool, name: str, problem: str) -> None:
        require(holds, f"{path}: {name}={manifest[name]!r}", f"{problem}; {_AGAIN}")

    grid, channels, latents = (manifest[name] for name in ("grid", "latent_channels", "latents"))
    check(grid is None or (len(grid) == 2 and min(grid) > 0), "grid", "expected rows and columns")
    codes = [slot["num_codes"] for slot in manifest["slots"]]
    check(min(codes, default=0) > 0, "slots", "every position has tokens of one or more codes")
    sizes = None if latents is None else {len(latents["mean"]), len(latents["std"])}
    check(channels >= 0, "latent_channels", "cannot be negative")
    check(not channels or sizes == {channels}, "latents", f"there are {channels} channels")
    rows = [shard["rows"] for shard in manifest["shards"]]
    check(sum(rows) == manifest["num_images"], "num_images", f"its shards have {sum(rows)}")
    check(min(rows, default=0) > 0, "shards", "a set has shards, and each of them images")
    for number, shard in enumerate(manifest["shards"]):
        for name, pattern in (("file", TOKENS.shard), ("sha256", _SHA256)):
            where = f"{path}: shards[{number}].{name}={shard[name]!r}"
            require(bool(pattern.fullmatch(shard[name])), where, f"is no name of ours; {_AGAIN}")


def check_size(path: Path, shard: dict[str, Any]) -> None:
    """Raise `ValueError` unless a shard has the size that the manifest says."""
    found = path.stat().st_size if path.is_file() else None
    require(found is not None, f"{path}", "is missing; copy it there, or tokenize again (--fresh)")
    require(
        found == shard["bytes"],
        f"{path}: {found:,} bytes",
        f"the manifest says {shard['bytes']:,}: the file is torn; copy it again, or tokenize again "
        "(--fresh)",
    )


def check_whole(path: Path, shard: dict[str, Any]) -> None:
    """Raise `ValueError` unless a shard has the SHA-256 that the manifest says."""
    check_size(path, shard)
    require(
        sha256_of(path) == shard["sha256"],
        f"{path}",
        "was altered or damaged (another SHA-256 than in the manifest); copy it again, or tokenize "
        "again (--fresh)",
    )


def verify_shards(folder: Path, manifest: dict[str, Any]) -> None:
    """Compare the SHA-256 of all shards; those that differ are named in one `ValueError`."""
    shards, damaged = manifest["shards"], []
    for shard in shards:
        path = folder / shard["file"]
        whole = path.is_file() and path.stat().st_size == shard["bytes"]
        if not whole or sha256_of(path) != shard["sha256"]:
            damaged.append(shard["file"])
    require(
        not damaged,
        f"tokens={str(folder)!r}",
        f"{len(damaged)} of {len(shards)} shards are missing, altered or damaged (another "
        f"SHA-256 than in the manifest): {', '.join(damaged)}; copy them again, or tokenize "
        "again (--fresh)",
    )
