"""The manifest of a token set, and whether the shards are what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vqkit.codebooks.set_folders import FORMAT, MANIFEST, UNFINISHED, read_object
from vqkit.config import require
from vqkit.tokens.sets.shards import TOKENS
from vqkit.weights import sha256_of


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
        manifest["format"] == FORMAT,
        f"{path}: format={manifest['format']!r}",
        f"this vqkit reads format {FORMAT}; open it with the version that wrote it",
    )
    return manifest


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
