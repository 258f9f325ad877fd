"""Shards of a token set: parquet files that are whole or not there.

As long as the set is unfinished a record lies beside every shard: 00000.parquet, 00000.json. It is
written last, so a shard counts once its record is there.

Legend: B images of a batch, h w grid, P = h·w positions, T tokens per position, C channels.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from vqkit.codebooks.set_folders import MANIFEST, Kind, finished_shards, tidy, write_object
from vqkit.config import require
from vqkit.tokens.sets.layout import (
    BOX,
    CAPTION,
    GRID,
    LABEL,
    LATENT,
    ORIGINAL,
    SIZE,
    ImageFacts,
    Layout,
    Numbers,
    id_column,
    id_type,
    pyarrow,
)
from vqkit.weights import sha256_of

TOKENS: Final = Kind("tokens", re.compile(r"\d{5,}\.parquet"))
LISTED: Final = ("file", "rows", "first_image", "images", "grid", "bytes", "sha256")
"""What the manifest keeps of a record."""


class ShardWriter:
    """Gathers the rows of shard `number` and writes them: a file, then its record."""

    def __init__(self, folder: Path, number: int, layout: Layout, tokenizer: str) -> None:
        self._folder, self._number = folder, number
        self._layout, self._tokenizer = layout, tokenizer
        self._images: list[ImageFacts] = []
        self._ids: list[Numbers] = []
        self._grids: list[tuple[int, int]] = []
        self._latents: list[Numbers] = []
        self._sums = np.zeros((2, layout.latent_channels))
        self._path = folder / f"{number:05}.parquet"
        self._part = folder / f".{number:05}.parquet.{uuid.uuid4().hex}.part"

    def add(self, images: Sequence[ImageFacts], ids: Tensor, latents: Tensor | None) -> None:
        """Append images with their ids (B, h, w, T), and latents (B, C, h, w) if there are any."""
        self._images += images
        self._ids.append(ids.flatten(1, 2).cpu().numpy())
        self._grids += [(ids.shape[1], ids.shape[2])] * len(ids)
        if latents is None:
            return
        stored = latents.to(torch.float16).cpu()
        self._check_finite(stored, latents, images)
        self._latents.append(stored.flatten(1).numpy())
        exact = stored.double()
        self._sums += torch.stack([exact.sum((0, 2, 3)), exact.square().sum((0, 2, 3))]).numpy()

    def _check_finite(self, stored: Tensor, latents: Tensor, images: Sequence[ImageFacts]) -> None:
        sound = stored.isfinite().flatten(1).all(1)
        if not bool(sound.all()):
            odd = int((~sound).nonzero()[0, 0])
            largest = float(latents[odd].abs().max())
            raise ValueError(
                f"latents of {images[odd].key}: reach {largest:.4g}, no finite float16 number; "
                "check the tokenizer, or leave the latents out"
            )

    def finish(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Give the file its name, then write and return the record: `facts`, size and SHA-256.

        A shard without rows is a record alone.
        """
        record = {**facts, "file": self._path.name, "rows": len(self._images)}
        try:
            if self._images:
                self._write()
                record["bytes"], record["sha256"] = self._part.stat().st_size, sha256_of(self._part)
                os.replace(self._part, self._path)
        except OSError as error:
            text = (
                f"{error.strerror or error}, while writing {self._path}; finished shards are whole"
            )
            raise OSError(error.errno, text) from error
        finally:
            self._part.unlink(missing_ok=True)
        grids = set(self._grids)
        record["grid"] = list(grids.pop()) if len(grids) == 1 else None
        if self._layout.latent_channels:
            record["positions"] = int(sum(h * w for h, w in self._grids))
            record["latent_sums"] = self._sums.tolist()
        write_object(self._folder / f"{self._number:05}.json", record)
        return record

    def _write(self) -> None:
        arrow = pyarrow(f"{self._path}")
        schema = self._layout.schema(arrow, self._tokenizer)
        table = arrow.Table.from_pydict(self._columns(arrow, schema), schema)
        with self._part.open("wb") as file:
            # One row group; 16-bit tokens lie in a dictionary of their values, in as few bits.
            arrow.parquet.write_table(
                table, file, compression="zstd", row_group_size=len(self._images)
            )
            file.flush()
            os.fsync(file.fileno())

    def _columns(self, arrow: Any, schema: Any) -> dict[str, Any]:
        images, grids = self._images, np.array(self._grids)
        columns: dict[str, Any] = {"key": [image.key for image in images]}
        offsets = _offsets(grids.prod(1))
        for number, slot in enumerate(self._layout.slots):
            kind, name = id_type(slot.num_codes), id_column(number)
            values = np.concatenate([ids[..., number].ravel() for ids in self._ids]).astype(kind)
            columns[name] = _lists(arrow, offsets, values, schema.field(name).type)
        tables: list[tuple[tuple[str, ...], Any]] = [
            (GRID, grids),
            (SIZE, [image.size for image in images]),
            (ORIGINAL, [image.original for image in images]),
            (BOX, [image.box for image in images]),
        ]
        for names, rows in tables:
            for name, values in zip(names, np.array(rows).T, strict=True):
                columns[name] = arrow.array(values, schema.field(name).type)
        if self._layout.labels:
            columns[LABEL] = [image.label for image in images]
        if self._layout.captions:
            columns[CAPTION] = [image.caption for image in images]
        if self._latents:
            values = np.concatenate([latents.ravel() for latents in self._latents])
            spans = _offsets(grids.prod(1) * self._layout.latent_channels)
            columns[LATENT] = _lists(arrow, spans, values, schema.field(LATENT).type)
        return columns


def _offsets(lengths: Numbers) -> Numbers:
    total = int(lengths.sum())
    require(
        total < 2**31,
        f"shard_images={len(lengths)}",
        f"a column of the shard has {total:,} numbers, and parquet lists hold 2^31; take fewer",
    )
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _lists(arrow: Any, offsets: Numbers, values: Numbers, kind: Any) -> Any:
    return arrow.ListArray.from_arrays(arrow.array(offsets), arrow.array(values), type=kind)


def complete(
    folder: Path, facts: dict[str, Any], count: int, left_out: Iterable[tuple[str, str]]
) -> None:
    """Write the manifest of a set of `count` shards that are all there, and tidy up.

    `left_out` are broken images (name, reason) that no shard knows of: those of sets in memory. A
    set without one row is a `ValueError`.
    """
    shards, skipped = finished_shards(folder, facts, count, left_out)
    latents = None
    if facts["latent_channels"]:
        latents = statistics([(shard["positions"], shard["latent_sums"]) for shard in shards])
    write_object(folder / MANIFEST, manifest_of(facts, shards, skipped, latents))
    tidy(folder)


def manifest_of(
    facts: dict[str, Any],
    shards: Sequence[dict[str, Any]],
    skipped: Sequence[Sequence[str]],
    latents: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return the manifest of shards, given by their records, in their order."""
    grids = {tuple(shard["grid"]) if shard["grid"] else None for shard in shards}
    only = grids.pop() if len(grids) == 1 else None
    return {
        **TOKENS.mark,
        "num_images": sum(shard["rows"] for shard in shards),
        "grid": None if only is None else list(only),
        **facts,
        "latents": latents,
        "skipped": list(skipped),
        "shards": [{name: shard[name] for name in LISTED} for shard in shards],
    }


def statistics(parts: Sequence[tuple[int, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation of every channel over all positions of all images.

    A part is its number of positions, and the sums of values and of squares (2, C) over them.
    """
    positions = sum(count for count, _ in parts)
    sums, squares = np.sum([np.array(both) for _, both in parts], axis=0)
    mean = sums / positions
    std = np.sqrt(np.maximum(squares / positions - mean**2, 0.0))
    return {"dtype": "float16", "positions": positions, "mean": mean.tolist(), "std": std.tolist()}
