"""What a shard of a token set looks like: columns, their types, and what one image brings.

Legend: n images, h w grid, P = h·w positions, T tokens per position, C channels of a latent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vqkit.config import require
from vqkit.quantizers.records import Slot

Numbers = npt.NDArray[Any]
LATENT: Final = "latent"
LABEL: Final = "label"
CAPTION: Final = "caption"
GRID: Final = ("grid_height", "grid_width")
"""Positions of the token map."""
SIZE: Final = ("height", "width")
"""Pixels of the image that was tokenized."""
ORIGINAL: Final = ("original_height", "original_width")
"""Pixels of the image as its file has it."""
BOX: Final = ("crop_top", "crop_left", "crop_height", "crop_width")
"""The part of the original that was tokenized, in its pixels; a resize puts it between them."""


def id_column(slot: int) -> str:
    """Name the column of the tokens of a slot: P numbers for every image, row by row."""
    return f"ids_{slot}"


def id_type(num_codes: int) -> str:
    """Return the narrowest unsigned type that holds the ids of a slot."""
    bits = (num_codes - 1).bit_length()
    return next(f"uint{width}" for width in (8, 16, 32, 64) if bits <= width)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Which columns a token set has."""

    slots: tuple[Slot, ...]
    labels: bool
    captions: bool = False
    latent_channels: int = 0
    """0 without latents."""

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Layout:
        """Read it from a manifest."""
        return cls(
            slots=tuple(Slot(slot["name"], slot["num_codes"]) for slot in facts["slots"]),
            labels=facts["labels"],
            captions=facts["captions"],
            latent_channels=facts["latent_channels"],
        )

    def facts(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return {
            "slots": [
                {"name": s.name, "num_codes": s.num_codes, "type": id_type(s.num_codes)}
                for s in self.slots
            ],
            "labels": self.labels,
            "captions": self.captions,
            "latent_channels": self.latent_channels,
        }

    def schema(self, arrow: ModuleType, tokenizer: str) -> Any:
        """Return the Arrow schema; its metadata say what a shard alone would not."""
        fields = [arrow.field("key", arrow.string(), nullable=False)]

        def add(names: Sequence[str], kind: Any) -> None:
            fields.extend(arrow.field(name, kind, nullable=False) for name in names)

        for number, slot in enumerate(self.slots):
            add([id_column(number)], _list(arrow, id_type(slot.num_codes)))
        add(GRID, arrow.uint32())
        add(SIZE, arrow.uint32())
        add(ORIGINAL, arrow.uint32())
        add(BOX, arrow.float32())
        if self.labels:
            add([LABEL], arrow.int64())
        if self.captions:
            fields.append(arrow.field(CAPTION, arrow.string()))
        if self.latent_channels:
            add([LATENT], _list(arrow, "float16"))
        about = {"tokenizer": tokenizer, **self.facts()}
        return arrow.schema(fields, {"vqkit": json.dumps(about, sort_keys=True)})


def _list(arrow: ModuleType, kind: str) -> Any:
    values = arrow.from_numpy_dtype(np.dtype(kind))
    return arrow.list_(arrow.field("element", values, nullable=False))


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What a row says of an image beside its tokens."""

    key: str
    size: tuple[int, int]
    """Height and width in pixels of what was tokenized."""
    original: tuple[int, int]
    """Height and width before resize and crop."""
    box: tuple[float, float, float, float]
    """Top, left, height and width of what was tokenized, in pixels of the original."""
    label: int = -1
    """-1 without one."""
    caption: str | None = None


def pyarrow(what: str) -> ModuleType:
    """Return pyarrow with its parquet module; without it an `ImportError` says what to install."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{what}: token sets are parquet files and need pyarrow, which is not installed; "
            "pip install 'vqkit[tokens]'"
        ) from error
    return arrow


def check_ids(ids: Numbers, slots: Sequence[Slot], where: str) -> None:
    """Raise `ValueError` unless ids (..., T) lie in the ranges of the slots."""
    for number, slot in enumerate(slots):
        found = ids[..., number]
        if found.size:
            low, high = int(found.min()), int(found.max())
            require(
                low >= 0 and high < slot.num_codes,
                f"{where}: id {low if low < 0 else high}",
                f"slot {slot.name!r} has {slot.num_codes:,} codes; the file is damaged or of "
                "another tokenizer",
            )
