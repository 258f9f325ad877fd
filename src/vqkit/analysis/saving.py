"""A figure and its numbers on disk, side by side; counts for whoever wants to go on with them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from vqkit import __version__
from vqkit.analysis.frequency import Frequency
from vqkit.config import require
from vqkit.metrics.counts import DENSE_LIMIT
from vqkit.models.files import write_beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "vqkit-analysis-1"
DPI = 150


class Result(Protocol):
    """What every analysis gives."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""


def check_figure_path(path: Path | str) -> Path:
    """Return the path of a figure; anything but a `.png` is a `ValueError`."""
    path = Path(path).expanduser()
    require(path.suffix == ".png", f"out={path}", "figures are PNG files; name one, such as a.png")
    return path


def save_analysis(
    kind: str, results: Sequence[Result], figure: Figure, path: Path | str
) -> tuple[Path, Path]:
    """Write the figure to `path` (.png) and the numbers beside it (.json); return both paths.

    Each file is replaced whole or not at all. Equal results give equal bytes of JSON. Numbers that
    are not finite are a `ValueError`.
    """
    path = check_figure_path(path)
    values = {
        "format": FORMAT,
        "vqkit_version": __version__,
        "kind": kind,
        "results": [result.to_dict() for result in results],
    }
    numbers = (json.dumps(values, indent=1, allow_nan=False) + "\n").encode()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI)
    return (
        write_beside(path, picture.getvalue()),
        write_beside(path.with_suffix(".json"), numbers),
    )


def save_counts(found: Frequency, path: Path | str) -> list[Path]:
    """Write how often every code was drawn to `path` (.npy), (K,) int64; return what was written.

    `vqkit codebook subset --most_used N --usage FILE` reads it. Of several codebooks each has a
    file `<stem>.<codebook>.npy`. Beyond 4,194,304 codes it holds rows (code, draws) of the codes
    that occur instead.
    """
    path = Path(path).expanduser()
    paths = []
    for book in found.books:
        dense = book.statistics.num_codes <= DENSE_LIMIT
        counts = book.table() if dense else torch.stack([book.ids, book.counts], 1)
        content = io.BytesIO()
        np.save(content, counts.numpy(), allow_pickle=False)
        name = f"{path.stem}.{book.name}.npy" if len(found.books) > 1 else path.name
        paths.append(write_beside(path.with_name(name), content.getvalue()))
    return paths
