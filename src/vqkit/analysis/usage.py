"""Code usage at every epoch of training (VQGAN-LC, arXiv:2406.11837, Figure 3 left)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqkit.analysis.conditions import Conditions
from vqkit.config import require
from vqkit.models import ImageTokenizer
from vqkit.training import load_run, read_log
from vqkit.training.checkpoint import newest_checkpoint
from vqkit.training.health import fingerprint
from vqkit.training.run_folder import read_result
from vqkit.training.window import COUNTED, book_names

KEYS = {
    "usage": "codes_used",
    "num_tokens": "tokens",
    "uniform_usage": "uniform_usage",
    "perplexity": "perplexity",
}
"""What a line of the log says of the epoch that ends with it, behind `epoch_`."""
BOOK_KEYS = {**KEYS, "usage": "used"}
"""The same of one codebook, in `epoch_books`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochUsage:
    """What codes were used for in one epoch."""

    epoch: int
    step: int
    """Optimizer steps done at its end."""
    num_tokens: int
    """Tokens drawn in the epoch."""
    usage: float
    """Share of the codes drawn at least once."""
    uniform_usage: float
    """Share to expect from so many uniform draws."""
    perplexity: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BookUsage:
    """One codebook over the epochs of a run."""

    name: str
    num_codes: int
    epochs: tuple[EpochUsage, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunUsage:
    """The codebooks of a run over its epochs."""

    conditions: Conditions
    mean: tuple[EpochUsage, ...]
    """Mean over the codebooks; the tokens are those of all together."""
    books: tuple[BookUsage, ...]
    """Those that the log tells of at every epoch: all, or of more than 16 perhaps none."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        return {
            "protocol": self.conditions.to_dict(),
            "mean": [asdict(epoch) for epoch in self.mean],
            "books": [asdict(book) for book in self.books],
        }


def usage_of_run(folder: Path | str, *, name: str | None = None) -> RunUsage:
    """Read the usage at every epoch from the log of a run, finished or not.

    Usage counts all tokens of an epoch while the weights move, as the paper does. The images of the
    conditions are those of the training set, the tokens those of all epochs.

    Args:
        folder: of a training run.
        name: for the legend; default the name in the settings of the run.

    Raises:
        ValueError: no run, a run without a whole checkpoint, or one whose log tells of no epoch.
    """
    folder = Path(folder).expanduser()
    config, tokenizer = load_run(folder)
    lines = [line for line in read_log(folder / "log.jsonl") if "epoch" in line]
    mean = tuple(_epoch(line, line, "epoch_", KEYS) for line in lines)
    require(
        bool(mean),
        f"run={folder}",
        "its log tells of no epoch (it ended before its first one, or an older vqkit trained it); "
        "train it for an epoch or more",
    )
    data = training_data(folder)
    conditions = Conditions(
        name=name or config.name,
        tokenizer_sha256=fingerprint(tokenizer).hex(),
        data_fingerprint=data["fingerprint"],
        num_images=data["images"],
        num_tokens=sum(epoch.num_tokens for epoch in mean),
        settings={
            "batch_size": config.optim.batch_size,
            "crops_per_image": config.data.crops_per_image,
            "num_steps": config.optim.num_steps,
        },
    )
    return RunUsage(conditions=conditions, mean=mean, books=_books(lines, mean, tokenizer))


def _books(
    lines: Sequence[dict[str, Any]], mean: tuple[EpochUsage, ...], tokenizer: ImageTokenizer
) -> tuple[BookUsage, ...]:
    """Return the codebooks one by one; a single one has no numbers but those of the whole."""
    slots = tokenizer.quantizer.slots
    sizes = [slots[book[0]].num_codes for book in tokenizer.quantizer.books]
    counted = [b for b, k in zip(tokenizer.quantizer.books, sizes, strict=True) if k <= COUNTED]
    if len(counted) == 1:
        (name,), num_codes = book_names(slots, counted), slots[counted[0][0]].num_codes
        return (BookUsage(name=name, num_codes=num_codes, epochs=mean),)
    told = [line.get("epoch_books", {}) for line in lines]
    return tuple(
        BookUsage(
            name=name,
            num_codes=told[0][name]["codes"],
            epochs=tuple(_epoch(line, line["epoch_books"][name], "", BOOK_KEYS) for line in lines),
        )
        for name in told[0]
        if all(name in books for books in told)
    )


def _epoch(
    line: dict[str, Any], numbers: dict[str, Any], prefix: str, keys: dict[str, str]
) -> EpochUsage:
    try:
        found = {field: numbers[prefix + key] for field, key in keys.items()}
    except KeyError as error:
        raise ValueError(
            f"log.jsonl, step {line['step']}: {error} is missing; the log was altered"
        ) from error
    return EpochUsage(epoch=line["epoch"], step=line["step"], **found)


def training_data(folder: Path) -> dict[str, Any]:
    """Return the `fingerprint` and the number of `images` that a run trains on."""
    result = read_result(folder)
    if result is not None:
        data: dict[str, Any] = result["data"]
        return data
    snapshot, _ = newest_checkpoint(folder)
    assert snapshot is not None  # else `load_run` has complained
    return dict(snapshot.record["data"])
