"""What an evaluation found, as a record that goes to JSON and back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from vqkit.metrics import CodeStatistics, LosslessRate, Protocol
from vqkit.models.files import write_beside

FORMAT = "vqkit-evaluation-1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One number and everything needed to read it."""

    name: str
    value: float | None
    """None where nothing could be counted (SSIM when all images are below its window)."""
    unit: str
    protocol: str
    """Identifier of the `Protocol`, image set included."""
    num_images: int
    """Images that this number was computed from."""
    num_tokens: int
    """Tokens that the whole set became."""
    spread: float | None = None
    """Standard deviation over subsets or splits, of KID and Inception Score."""
    note: str = ""
    """What a reader must be told beside the number, or why there is none."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, `spread` and `note` only where they say something."""
        values = asdict(self)
        return {k: v for k, v in values.items() if k not in ("spread", "note") or v}


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Numbers of one tokenizer on one image set.

    Names of metrics: `psnr`, `ssim`, `l1`, `l2` (pixels in [0, 1]); `perplexity`, `usage`,
    `usage_ceiling` (min(1, tokens / codes)) and `usage_uniform` (expected from as many uniform
    draws), means over codebooks; `rate` (nominal), `entropy_rate` (zero order, every slot on its
    own), `png_rate` and `raw_rate` in bits per pixel of the images before padding. Where networks
    measured too, `fid`, `kid`, `precision`, `recall`, `inception_score`, `lpips_vgg`, `lpips_alex`.
    """

    name: str
    metrics: tuple[Metric, ...]
    protocol: Protocol
    books: tuple[CodeStatistics, ...]
    """Per codebook, all slots that draw from it pooled."""
    slots: tuple[CodeStatistics, ...]
    slot_names: tuple[str, ...]
    num_pixels: int
    num_exact: int
    """Images rebuilt without error, whose PSNR entered at the protocol's cap."""
    codebook_floats: int
    """Numbers in the codebooks that a decoder needs."""
    tokenizer: dict[str, Any]
    """`ImageTokenizer.describe` at the size of the first image, and `hash` (`tokenizer_hash`)."""
    tokenizer_seconds: float
    """Wall time of encode and decode, in this process."""
    seconds: float = 0.0
    """Wall time of the whole evaluation, in this process."""
    machine: dict[str, Any] = field(default_factory=dict)
    """Versions, git revision, hardware."""
    lossless: LosslessRate | None = field(default=None, compare=False, repr=False)
    """For the next evaluation on the same images; None after loading from a file."""

    def metric(self, name: str) -> Metric:
        """Return a metric; an unknown name is a `ValueError`."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        known = ", ".join(metric.name for metric in self.metrics)
        raise ValueError(f"metric={name!r}: not measured; known are {known}")

    def value(self, name: str) -> float | None:
        """Return the value of a metric; an unknown name is a `ValueError`."""
        return self.metric(name).value

    @property
    def num_images(self) -> int:
        """Images measured."""
        return self.metric("psnr").num_images

    @property
    def num_tokens(self) -> int:
        """Tokens counted: positions × slots."""
        return self.metric("psnr").num_tokens

    def table(self) -> str:
        """Return a Markdown table for people, rates beside every quality."""
        from vqkit.evaluation.tables import table

        return table(self)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        slots = zip(self.slot_names, self.slots, strict=True)
        return {
            "format": FORMAT,
            "name": self.name,
            "metrics": [metric.to_dict() for metric in self.metrics],
            "protocol": self.protocol.to_dict(),
            "data": {
                "fingerprint": self.protocol.reference,
                "num_images": self.num_images,
                "num_pixels": self.num_pixels,
                "num_tokens": self.num_tokens,
                "num_exact": self.num_exact,
            },
            "codebooks": [book.to_dict() for book in self.books],
            "slots": [{"name": name, **slot.to_dict()} for name, slot in slots],
            "codebook_floats": self.codebook_floats,
            "tokenizer": self.tokenizer,
            "tokenizer_seconds": self.tokenizer_seconds,
            "seconds": self.seconds,
            "machine": self.machine,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuild what `to_dict` gave; another format is a `ValueError`."""
        written = values.get("format") if isinstance(values, dict) else None
        if written != FORMAT:
            raise ValueError(f"format={written!r}: expected {FORMAT!r}; evaluate the model again")
        try:
            protocol = {k: v for k, v in values["protocol"].items() if k != "id"}
            return cls(
                name=values["name"],
                metrics=tuple(Metric(**metric) for metric in values["metrics"]),
                protocol=Protocol(**protocol),
                books=tuple(_statistics(book) for book in values["codebooks"]),
                slots=tuple(_statistics(slot) for slot in values["slots"]),
                slot_names=tuple(slot["name"] for slot in values["slots"]),
                num_pixels=values["data"]["num_pixels"],
                num_exact=values["data"]["num_exact"],
                codebook_floats=values["codebook_floats"],
                tokenizer=values["tokenizer"],
                tokenizer_seconds=values["tokenizer_seconds"],
                seconds=values["seconds"],
                machine=values["machine"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"evaluation: {error}; the file is damaged, evaluate again") from error

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON; an existing file is replaced whole or not at all."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        write_beside(Path(path), text.encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; a missing or foreign file is a `ValueError`."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error


def _statistics(values: dict[str, Any]) -> CodeStatistics:
    kept = {f.name: values[f.name] for f in fields(CodeStatistics)}
    return CodeStatistics(**{**kept, "slots": tuple(kept["slots"])})
