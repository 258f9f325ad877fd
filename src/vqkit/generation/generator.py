"""What every generator is, whatever its network: tokens of one tokenizer from classes and a seed.

A finished generator is a folder with `config.json` (its kind, the settings of its network, its
card) and `model.safetensors`.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vqkit.config import from_dict, require
from vqkit.models import ImageTokenizer
from vqkit.models.files import read_config, write_model
from vqkit.quantizers import Slot
from vqkit.tokens import tokenizer_hash

PRODUCT = "generator"
"""Folder of the finished generator inside a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a generator writes: images of which tokens, and of which classes."""

    grid: tuple[int, int]
    """Rows and columns of positions."""
    slots: tuple[Slot, ...]
    """The tokens of a position."""
    num_classes: int
    """Classes that can be asked for; 0 if it knows none."""
    label_names: tuple[str, ...]
    """Names of the classes; empty if they have none."""
    tokenizer: str
    """`vqkit.tokens.tokenizer_hash` of the tokenizer whose tokens these are."""
    tokens: str
    """Fingerprint of the token set that it was trained on."""

    def __post_init__(self) -> None:
        require(bool(self.slots), "slots=()", "a position has at least one token")
        codes = min(slot.num_codes for slot in self.slots)
        require(codes > 0, f"slots: num_codes={codes}", "a token has at least one code")
        require(min(self.grid) > 0, f"grid={self.grid}", "has at least one position")
        require(self.num_classes >= 0, f"num_classes={self.num_classes}", "cannot be negative")

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Card:
        """Rebuild a card from the JSON values of `to_values`; others are a `ValueError`."""
        card: Card = from_dict(cls, values, "card.")
        return card

    def to_values(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


class Generator(ABC):
    """A trained model that writes token maps; `load_generator` opens one.

    Subclasses hold their network as `network` and say what `kind` they are.
    """

    kind: ClassVar[str]

    def __init__(self, card: Card, network: torch.nn.Module) -> None:
        self.card = card
        self.network = network.eval()
        self._checked: tuple[weakref.ref[ImageTokenizer], list[tuple[int, int]]] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of positions."""
        return self.card.grid

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The tokens of a position."""
        return self.card.slots

    @property
    def num_classes(self) -> int:
        """Classes that can be asked for; 0 if it knows none."""
        return self.card.num_classes

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes; empty if they have none."""
        return self.card.label_names

    @property
    def tokenizer(self) -> str:
        """`vqkit.tokens.tokenizer_hash` of the tokenizer whose tokens it writes."""
        return self.card.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def knows_no_class(self) -> bool:
        """Whether images of no class can be asked for: it has none, or they were hidden at times.

        A subclass says so by the settings of its training.
        """
        return True

    def to(self, device: torch.device | str) -> Generator:
        """Move the network and return the generator."""
        self.network.to(device)
        return self

    @abstractmethod
    def sample(
        self,
        tokenizer: ImageTokenizer,
        labels: Tensor | None = None,
        *,
        seed: int,
        start: int = 0,
        count: int | None = None,
        sampling: Any = None,
    ) -> Tensor:
        """Return ids int64 (N, h, w, T) on the CPU; sample i draws from (seed, start + i) alone.

        Args:
            tokenizer: The tokenizer whose tokens these are; another one is refused.
            labels: (N,) int64, the class of each image; None asks for no class.
            seed: Together with the number of a sample it decides all that is drawn, so batches
                change nothing but rounding.
            start: Number of the first sample.
            count: N, where `labels` is None.
            sampling: `GPTSampling` or `DiffusionSampling`, by the kind; None is the default of it.

        Raises:
            ValueError: another tokenizer, or labels that do not fit (`check_request`).
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the settings of the network as JSON values."""

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`."""
        save_generator(folder, self.kind, self.settings(), self.card, self.network.state_dict())

    def check_tokenizer(self, tokenizer: ImageTokenizer) -> None:
        """Raise `ValueError` unless this is the tokenizer whose tokens are written.

        Its hash is computed once, and again when a tensor of it was moved or written to.
        """
        state, before = _state_of(tokenizer), self._checked
        if before is not None and before[0]() is tokenizer and before[1] == state:
            return
        found, known = tokenizer_hash(tokenizer), self.card.tokenizer
        require(
            found == known,
            f"tokenizer {found[:16]}",
            f"this generator writes tokens of tokenizer {known[:16]}; load that one",
        )
        self._checked = weakref.ref(tokenizer), state

    def check_request(
        self, tokenizer: ImageTokenizer, labels: Tensor | None, count: int | None
    ) -> Tensor:
        """Return the class of every sample, int64 (N,) on the CPU; `num_classes` means none.

        Raises:
            ValueError: another tokenizer, labels that are no classes of this generator, classes
                asked of one that knows none, no class of one that never saw it hidden, or neither
            labels nor a count.
        """
        self.check_tokenizer(tokenizer)
        known = self.num_classes
        if labels is None:
            require(count is not None, "labels=None", "say how many images: count=")
            assert count is not None  # for the type checker
            require(count >= 1, f"count={count}", "must be at least 1")
            require(
                self.knows_no_class,
                "labels=None",
                "this generator never saw a hidden class (model.label_dropout=0); name classes",
            )
            return torch.full((count,), known, dtype=torch.int64)
        require(known > 0, "labels", "this generator was trained without classes; leave them out")
        require(
            labels.ndim == 1 and len(labels) > 0 and labels.dtype == torch.int64,
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype}",
            "give int64 numbers (N,), one class per image",
        )
        require(count is None or count == len(labels), f"count={count}", f"there are {len(labels)}")
        low, high = int(labels.min()), int(labels.max())
        wrong = low if low < 0 else high
        require(low >= 0 and high < known, f"labels: {wrong}", f"classes are 0 to {known - 1}")
        return labels.cpu()


def _state_of(tokenizer: ImageTokenizer) -> list[tuple[int, int]]:
    """Where the tensors of a tokenizer lie, and how often each was written to."""
    tensors = tokenizer.state_dict().values()
    return [(one.data_ptr(), 0 if one.is_inference() else one._version) for one in tensors]


def save_generator(
    folder: Path, kind: str, settings: dict[str, Any], card: Card, state: Mapping[str, Tensor]
) -> None:
    """Write the two files of a generator, each whole or not at all."""
    write_model(folder, {"generator": kind, "model": settings, "card": card.to_values()}, state)


def read_generator(folder: Path) -> tuple[dict[str, Any], Card]:
    """Return `config.json` of a generator and its card; `folder` may be that of a run.

    Raises:
        ValueError: no generator there, or a tokenizer.
    """
    config = read_config(folder)
    require(
        {"generator", "model", "card"} <= config.keys(),
        f"{folder}",
        "holds no generator; name the folder of a run of vqkit train --tokens",
    )
    return config, Card.from_values(config["card"])


def generator_folder(folder: Path) -> Path:
    """Return the folder of the generator itself, given that or the folder of its run."""
    inside = folder / PRODUCT
    return inside if (inside / "config.json").is_file() else folder
