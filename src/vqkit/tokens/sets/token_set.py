"""Token sets: folders of parquet shards with a manifest, as `write_token_set` writes them.

Legend: n images asked for, h w grid, T tokens per position, C channels of a latent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqkit.config import require
from vqkit.tokens.sets.layout import CAPTION, GRID, LABEL, SIZE, Layout, Numbers
from vqkit.tokens.sets.manifest import check_size, read_manifest, verify_shards
from vqkit.tokens.sets.mapped import MappedShard, read_columns

Indices = Sequence[int] | Numbers | Tensor
"""Numbers of images, each in [0, num_images)."""


class TokenSet(Dataset[dict[str, Tensor]]):
    """The tokens of a set of images, in the order of the images, mapped into memory.

    `token_set[i]` are the tensors of image i, so that a torch DataLoader reads it; `TokenStream`
    makes batches that a resumed training gets again. Sizes of all shards are checked when it is
    opened, the content of each when it is first read, that of all by `verify`.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        """Use `open`."""
        self.folder, self.manifest = folder, manifest
        self.layout = Layout.of(manifest)
        self.slots = self.layout.slots
        """What the T tokens of a position are."""
        self.grid: tuple[int, int] | None = (
            None
            if manifest["grid"] is None
            else (int(manifest["grid"][0]), int(manifest["grid"][1]))
        )
        """Rows and columns of every token map; None if images differ."""
        self.num_images = int(manifest["num_images"])
        self.tokenizer = str(manifest["tokenizer"]["hash"])
        """`tokenizer_hash` of the tokenizer that the ids are of."""
        self.latent_channels = self.layout.latent_channels
        """Channels of the latents; 0 without latents."""
        shards = manifest["shards"]
        self._shards = [MappedShard(folder, shard, self.layout) for shard in shards]
        self._starts = np.cumsum([0, *(shard["rows"] for shard in shards)])

    @classmethod
    def open(cls, folder: str | Path) -> TokenSet:
        """Open a finished token set.

        Raises `ValueError` for a folder without one, an unfinished one, missing and torn shards.
        """
        place = Path(folder).expanduser()
        found = cls(place, read_manifest(place))
        for shard in found.manifest["shards"]:
            check_size(place / shard["file"], shard)
        return found

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Image `index`: `ids` int64 (h, w, T), `label` int64, and `latents` (C, h, w) if any."""
        one = {"ids": self.ids([index])[0], "label": self.labels([index])[0]}
        if self.latent_channels:
            one["latents"] = self.latents([index])[0]
        return one

    def __reduce__(self) -> tuple[Callable[[str], TokenSet], tuple[str]]:
        """Pickle the folder: workers of a DataLoader map the files themselves."""
        return TokenSet.open, (str(self.folder),)

    # ------------------------------------------------------------------ facts

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes; their numbers, where the images came without names."""
        names = self.manifest["label_names"]
        if names is None:
            return tuple(map(str, range(int(self.all_labels.max(initial=-1)) + 1)))
        return tuple(names)

    @property
    def num_classes(self) -> int:
        """Classes, 0 without labels; every label lies in [-1, num_classes)."""
        return len(self.label_names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over tokenizer, names of the classes and all shards; not over their place."""
        facts = [self.tokenizer, self.manifest["label_names"]]
        digests = [shard["sha256"] for shard in self.manifest["shards"]]
        return hashlib.sha256(json.dumps([facts, digests]).encode()).hexdigest()

    @property
    def latent_mean(self) -> Tensor:
        """Mean of every channel of the latents (C,), float32."""
        return self._statistic("mean")

    @property
    def latent_std(self) -> Tensor:
        """Standard deviation of every channel of the latents (C,), float32."""
        return self._statistic("std")

    def _statistic(self, name: str) -> Tensor:
        values = self.manifest["latents"][name] if self.latent_channels else []
        return torch.tensor(values, dtype=torch.float32)

    def check_tokenizer(self, tokenizer: str) -> None:
        """Raise `ValueError` unless `tokenizer` is the hash of the tokenizer of these tokens."""
        require(
            tokenizer == self.tokenizer,
            f"tokens={str(self.folder)!r}",
            f"are those of tokenizer {self.tokenizer[:16]}, and this one is {tokenizer[:16]}; take "
            "the tokenizer that made them, or tokenize again",
        )

    def verify(self) -> None:
        """Compare the SHA-256 of every shard with the manifest.

        Raises `ValueError` naming all that differ.
        """
        verify_shards(self.folder, self.manifest)

    # ------------------------------------------------------------------ values

    def ids(self, indices: Indices) -> Tensor:
        """Return the tokens (n, h, w, T), int64, of images of one grid."""
        rows = self._rows(indices)
        h, w = self._grid_of(rows)
        length = h * w * len(self.slots)
        found = self._gather(rows, length, lambda shard: shard.ids(), len(self.slots))
        return torch.from_numpy(found.astype(np.int64)).unflatten(1, (h, w, len(self.slots)))

    def latents(self, indices: Indices) -> Tensor:
        """Return the latents (n, C, h, w), float32, of images of one grid.

        Raises `ValueError` for a set without latents, and for what is no finite number.
        """
        channels = self.latent_channels
        where = f"tokens={str(self.folder)!r}"
        require(channels > 0, where, "hold no latents; tokenize again with --latents")
        rows = self._rows(indices)
        h, w = self._grid_of(rows)
        found = self._gather(rows, channels * h * w, lambda shard: shard.latents(), channels)
        latents = torch.from_numpy(found.astype(np.float32)).unflatten(1, (channels, h, w))
        require(bool(latents.isfinite().all()), where, "hold latents that are no finite numbers")
        return latents

    def labels(self, indices: Indices) -> Tensor:
        """Return the class of every image (n,), int64; -1 without."""
        return torch.from_numpy(self.all_labels[self._rows(indices)])

    def keys(self, indices: Indices) -> list[str]:
        """Return the name of every image, as its source gave it."""
        return [str(key) for key in self._texts("key", self._rows(indices))]

    def captions(self, indices: Indices) -> list[str | None]:
        """Return the caption of every image, None without."""
        rows = self._rows(indices)
        return self._texts(CAPTION, rows) if self.layout.captions else [None] * len(rows)

    def _texts(self, name: str, rows: Numbers) -> list[str | None]:
        found: dict[int, str | None] = {}
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            column = read_columns(self._shards[number].path, [name]).column(0)
            for row in rows[numbers == number]:
                found[int(row)] = column[int(row - self._starts[number])].as_py()
        return [found[int(row)] for row in rows]

    @cached_property
    def all_labels(self) -> Numbers:
        """The class of all images (num_images,), int64."""
        if not self.layout.labels:
            return np.full(self.num_images, -1, dtype=np.int64)
        labels = np.concatenate([columns[LABEL] for columns in self._small([LABEL])])
        names = self.manifest["label_names"]
        low, high = int(labels.min(initial=0)), int(labels.max(initial=-1))
        require(
            low >= -1 and (names is None or high < len(names)),
            f"tokens={str(self.folder)!r}",
            f"hold label {low if low < -1 else high}, out of range; check the labels of the images",
        )
        return labels

    @cached_property
    def grids(self) -> Numbers:
        """Rows and columns of every token map (num_images, 2), int64."""
        if self.grid is not None:
            return np.broadcast_to(np.array(self.grid), (self.num_images, 2))
        parts = self._small(list(GRID))
        return np.concatenate([np.stack([one[g] for g in GRID], 1) for one in parts])

    def sizes(self, indices: Indices) -> Numbers:
        """Return height and width (n, 2), int64, of images as they were tokenized, in pixels."""
        return self._all_sizes[self._rows(indices)]

    @cached_property
    def _all_sizes(self) -> Numbers:
        parts = self._small(list(SIZE))
        return np.concatenate([np.stack([one[name] for name in SIZE], 1) for one in parts])

    def _small(self, names: list[str]) -> list[dict[str, Numbers]]:
        tables = [read_columns(shard.path, names) for shard in self._shards]
        return [
            {name: table.column(name).to_numpy().astype(np.int64) for name in names}
            for table in tables
        ]

    def _rows(self, indices: Indices) -> Numbers:
        rows = np.asarray(indices, dtype=np.int64).reshape(-1)
        if rows.size and (rows.min() < 0 or rows.max() >= self.num_images):
            odd = rows[(rows < 0) | (rows >= self.num_images)][0]
            raise IndexError(f"image {odd} of {self.num_images}")
        return rows

    def _grid_of(self, rows: Numbers) -> tuple[int, int]:
        if self.grid is not None:
            return self.grid
        sizes = np.unique(self.grids[rows], axis=0)
        require(
            len(sizes) == 1,
            f"tokens={str(self.folder)!r}",
            f"images of {len(sizes)} grids make no batch; tokenize again with --data.crop center",
        )
        return int(sizes[0, 0]), int(sizes[0, 1])

    @cached_property
    def _positions(self) -> Numbers:
        """Positions before every image, counted from the first one of its shard."""
        before = np.concatenate([[0], np.cumsum(self.grids.prod(1))])
        firsts = before[self._starts[:-1]]
        return before[:-1] - np.repeat(firsts, np.diff(self._starts))

    def _gather(
        self, rows: Numbers, length: int, read: Callable[[MappedShard], Numbers], each: int
    ) -> Numbers:
        """Return `length` numbers of every row; a position has `each` of them in the file."""
        out: Numbers | None = None
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            mine = np.flatnonzero(numbers == number)
            values = read(self._shards[number])
            self._check_length(int(number), len(values), each)
            if out is None:
                out = np.empty((len(rows), length), dtype=values.dtype)
            if self.grid is not None:
                out[mine] = values.reshape(-1, length)[rows[mine] - self._starts[number]]
                continue
            for place in mine:
                start = int(self._positions[rows[place]]) * each
                out[place] = values[start : start + length]
        require(out is not None, "indices=[]", "a batch holds at least one image")
        assert out is not None  # for the type checker: required above
        return out

    def _check_length(self, number: int, found: int, each: int) -> None:
        """Raise `ValueError` unless a shard has `each` numbers for every position of its images."""
        rows = slice(self._starts[number], self._starts[number + 1])
        if self.grid is not None:
            positions = (rows.stop - rows.start) * self.grid[0] * self.grid[1]
        else:
            positions = self.grids[rows].prod(1).sum()
        expected = int(positions) * each
        require(
            found == expected,
            f"{self._shards[number].path}: {found:,} numbers",
            f"by the manifest there are {expected:,}; copy both again, or tokenize again (--fresh)",
        )
