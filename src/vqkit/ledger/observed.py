"""What was observed: one JSON file per run, written by `vqkit reproduce`, never by hand.

A file belongs to the cells of every row with the same recipe and options; the length of the run,
its batch, its seed and its images are part of what it says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from vqkit.ledger.plans import Plan

if TYPE_CHECKING:
    from vqkit.evaluation import Evaluation

FORMAT: Final = "vqkit-observation-1"
SUBSTITUTES: Final[Mapping[str, str]] = {"cifar10-jpeg": "cifar10"}
"""Image sets with other pixels than the printed one, and the set that they stand for."""

Identity = tuple[str, str, str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Numbers of one tokenizer under one protocol."""

    protocol: Mapping[str, Any]
    """Fields and identifier (`Protocol.to_dict`), image set included."""
    num_images: int
    num_tokens: int
    values: Mapping[str, float | None]
    """Metric -> value, under the evaluator's names: `psnr`, `ssim`, `l1`, `usage`, `rate`, ..."""

    @classmethod
    def of(cls, found: Evaluation) -> Self:
        """Return what the ledger keeps of an evaluation."""
        return cls(
            protocol=json.loads(json.dumps(found.protocol.to_dict())),
            num_images=found.num_images,
            num_tokens=found.num_tokens,
            values={metric.name: metric.value for metric in found.metrics},
        )

    @property
    def protocol_id(self) -> str:
        """Identifier of the protocol: `cvq-looc:0123abcd`."""
        return str(self.protocol["id"])

    @property
    def protocol_name(self) -> str:
        """Its readable half."""
        return str(self.protocol["name"])

    def lost_in(self, other: Measurement | None) -> list[str]:
        """Return the metrics that have a number here, but not in another measurement."""
        values = {} if other is None else other.values
        numbers = (name for name, value in self.values.items() if value is not None)
        return [name for name in numbers if values.get(name) is None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """One run and its measurements."""

    name: str
    """Of the run, its folder and the file."""
    recipe: str
    options: Mapping[str, Any]
    """Arguments of the recipe that make it this row; as in `Plan`."""
    data_set: str
    """Images trained on; `cifar10-jpeg` stands for `cifar10` with other pixels."""
    test_set: str
    num_steps: int
    published_steps: int
    batch_size: int
    published_batch_size: int
    seed: int
    train_seconds: float
    settings: Mapping[str, Any]
    """All settings of the run but the places of its files."""
    machine: Mapping[str, Any]
    """Versions, git revision and hardware of the training."""
    evaluated_on: Mapping[str, Any] = field(default_factory=dict)
    """The same of the evaluation, where it is another one."""
    bits_per_pixel: float
    codebook_floats: int
    segments: Mapping[str, Any] | None = None
    """`Sharing`, where several segments share one codebook."""
    measurements: tuple[Measurement, ...]

    @property
    def identity(self) -> Identity:
        """What makes it the run of a row: recipe, options and image sets."""
        sets = (_stands_for(self.data_set), _stands_for(self.test_set))
        return (self.recipe, _text(self.options), *sets)

    @property
    def other_pixels(self) -> bool:
        """The images are a stand-in, so that no number can be compared with a printed one."""
        return self.test_set in SUBSTITUTES or self.data_set in SUBSTITUTES

    @property
    def length(self) -> str:
        """How long it was trained, beside the published length; belongs to every number."""
        steps = f"{self.num_steps:,}"
        if self.num_steps != self.published_steps:
            steps += f" of {self.published_steps:,}"
        batch = f"batch {self.batch_size:,}"
        if self.batch_size != self.published_batch_size:
            batch += f" (published {self.published_batch_size:,})"
        return f"{steps} steps, {batch}, seed {self.seed}"

    @property
    def hardware(self) -> str:
        """What it was trained on."""
        hardware = self.machine.get("hardware", {})
        device = hardware.get("device", "unknown")
        if device != "cpu":
            return str(device)
        return f"CPU, {hardware.get('threads', '?')} thread(s), {hardware.get('processor', '?')}"

    def measurement(self, protocol: str) -> Measurement | None:
        """Return the measurement under the protocol of that name, if there is one."""
        found = (one for one in self.measurements if one.protocol_name == protocol)
        return next(found, None)

    def over(self, known: Self) -> Self:
        """Return this observation with what only the earlier one of the same row has.

        Measurements under protocols that were not measured again stay. So does one that has a
        number which the new one lacks: its identifier says which networks it was measured with,
        so that two of them are never mixed.
        """
        new = {one.protocol_name: one for one in self.measurements}
        kept = [one for one in known.measurements if one.lost_in(new.get(one.protocol_name))]
        for one in kept:
            new[one.protocol_name] = one
        order = [one.protocol_name for one in (*known.measurements, *self.measurements)]
        measurements = tuple(new[name] for name in dict.fromkeys(order))
        return replace(self, measurements=measurements)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuild what `to_dict` gave; another format is a `ValueError`."""
        written = values.get("format") if isinstance(values, dict) else None
        if written != FORMAT:
            raise ValueError(f"format={written!r}: expected {FORMAT!r}; is it an observation?")
        kept = {name: value for name, value in values.items() if name != "format"}
        try:
            kept["measurements"] = tuple(Measurement(**one) for one in kept["measurements"])
            return cls(**kept)
        except (KeyError, TypeError) as error:
            raise ValueError(f"observation: {error}; delete the file and run it again") from error


def identity_of(plan: Plan) -> Identity:
    """Return what an observation of this plan's row has as its identity."""
    return (plan.recipe, _text(plan.options), plan.data_set, plan.test_set)


def read_observation(path: Path) -> Observation:
    """Read one file; a damaged or foreign one is a `ValueError` naming it."""
    try:
        return Observation.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_observations(folder: Path) -> tuple[Observation, ...]:
    """Read all files of a folder, in the order of their names; none if there is no folder."""
    return tuple(read_observation(path) for path in sorted(folder.glob("*.json")))


def write_observation(observation: Observation, folder: Path) -> Path:
    """Write `<folder>/<name>.json`, whole or not at all, and return its path."""
    from vqkit.models.files import write_beside

    text = json.dumps(observation.to_dict(), indent=1, allow_nan=False) + "\n"
    return write_beside(folder / f"{observation.name}.json", text.encode())


def _stands_for(data_set: str) -> str:
    return SUBSTITUTES.get(data_set, data_set)


def _text(options: Mapping[str, Any]) -> str:
    return json.dumps(dict(options), sort_keys=True)
