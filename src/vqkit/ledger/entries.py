"""The ledger: an entry for every printed cell, with what was observed or what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final, Literal

from vqkit.ledger.cells import Cell
from vqkit.ledger.costs import gpu_hours, hours_in_words
from vqkit.ledger.downstream import commands_of
from vqkit.ledger.jobs import published_config, training_weights
from vqkit.ledger.observed import Identity, Measurement, Observation, identity_of
from vqkit.ledger.plans import (
    Plan,
    beside_a_tokenizer,
    needs_beside_a_tokenizer,
    plan_of,
    protocol_of,
)
from vqkit.ledger.published import cells
from vqkit.ledger.targets import target_of
from vqkit.metrics.protocol import DEFAULT
from vqkit.weights import KNOWN

Status = Literal["observed", "other pixels", "quoted", "missing", "blank"]
STATUSES: Final[Mapping[Status, str]] = {
    "observed": "measured here, under a protocol and at a length that stand beside the number",
    "other pixels": "measured here on images that stand in for the printed set; no difference",
    "quoted": "the paper copied the number from elsewhere, and we have not run the system",
    "missing": "printed by those who trained it, and not measured here",
    "blank": "a dash or a blank in the paper",
}
"""What an entry can be, and what that means."""

DATA_NAMES: Final[Mapping[str, str]] = {
    "ade20k": "ADE20K",
    "celeba-hq": "CelebA-HQ",
    "ms-coco": "MS-COCO 2014",
    "cub-200": "CUB-200",
    "imagenet": "ImageNet-1k",
    "ffhq": "FFHQ",
    "lsun-churches": "LSUN churches",
    "lsun-bedroom": "LSUN bedrooms",
    "celeba": "CelebA",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar10-jpeg": "CIFAR-10-JPEG",
    "fashion-mnist": "Fashion-MNIST",
}
"""Data sets as people write them."""

WEIGHTS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "fid": ("inception",),
    "gfid": ("inception",),
    "lpips_vgg": ("vgg16", "lpips_vgg"),
    "lpips_alex": ("alexnet", "lpips_alex"),
}
"""Weights that a metric needs, by their name in `vqkit.weights`."""
OTHER_PIXELS: Final = "other pixels than the printed set's"
UNKNOWN_PROTOCOL: Final = "the paper's protocol is not known"
TRAINING_IMAGES: Final = "usage over test images; the paper counts all training images of an epoch"
"""Why an observed value has no difference."""
_SEGMENTS: Final = ("segments_below_90pct", "sharing_segments_min", "sharing_segments_most")


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One observed value of a cell."""

    run: str
    """Name of the observation."""
    data_set: str
    """Images measured."""
    length: str
    """Steps, batch and seed, beside the published ones; part of the value."""
    hardware: str
    bits_per_pixel: float
    """Nominal rate of the tokens."""
    protocol: str
    """Identifier."""
    value: float
    """In the unit of the cell."""
    difference: float | None
    """Observed less printed, under the protocol behind the printed number; None without it."""
    note: str
    """Why there is no difference; empty where there is one, and under other protocols."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One cell of the ledger."""

    cell: Cell
    status: Status
    seen: tuple[Seen, ...]
    """Of each run the protocol of the cell first, then vqkit's, then others."""
    missing: tuple[str, ...]
    """What it takes to observe the cell on its own pixels; empty if it is observed or blank."""
    command: str
    """What runs the row where that is at hand; empty where nothing does."""

    def to_dict(self) -> dict[str, Any]:
        """Return what the ledger keeps, as JSON values."""
        return {
            "cell": self.cell.key,
            "published": self.cell.value,
            "status": self.status,
            "observed": [asdict(one) for one in self.seen],
            "missing": list(self.missing),
            "command": self.command,
        }


def entries(observations: Sequence[Observation]) -> tuple[Entry, ...]:
    """Return the entries of all printed cells, in printed order."""
    by_row: dict[Identity, list[Observation]] = {}
    for observation in observations:
        by_row.setdefault(observation.identity, []).append(observation)
    return tuple(_entry(cell, by_row) for cell in cells())


def value_of(cell: Cell, observation: Observation, measured: Measurement) -> float | None:
    """Return what was observed of a cell's metric, in the cell's unit; None if it was not."""
    if cell.metric in _SEGMENTS:
        counts = observation.segments or {}
        return float(counts[cell.metric]) if cell.metric in counts else None
    value = measured.values.get(metric_of(cell))
    if value is None:
        return None
    return 100 * value if cell.unit == "percent" else value


def metric_of(cell: Cell) -> str:
    """Return the evaluator's name of a cell's metric: `fid`, `lpips_vgg`, `usage`, `psnr`, ..."""
    lpips = "lpips_alex" if cell.paper == "vqgan-lc" else "lpips_vgg"
    names = {"rfid": "fid", "lpips": lpips, "utilization": "usage"}
    return names.get(cell.metric, cell.metric)


def command_of(cell: Cell, plan: Plan) -> str:
    """Return the command that observes a cell's row; empty where no recipe does.

    Several commands, from a tokenizer to what is built on its tokens, are joined by `&&`.
    """
    if not plan.recipe:
        return ""
    if beside_a_tokenizer(cell):
        return " && ".join(commands_of(cell))
    target = target_of(cell.paper, cell.table)
    return f"vqkit reproduce {target} --data {plan.test_set} --rows {cell.row}"


def _entry(cell: Cell, by_row: Mapping[Identity, Sequence[Observation]]) -> Entry:
    plan = plan_of(cell)
    beside = needs_beside_a_tokenizer(cell)
    runs = by_row.get(identity_of(plan), ()) if plan.recipe and not beside else ()
    seen = () if cell.value is None else tuple(_seen(cell, runs))
    status = _status(cell, seen)
    open_ = status in ("quoted", "missing", "other pixels")
    return Entry(
        cell=cell,
        status=status,
        seen=seen,
        missing=tuple(_missing(cell, plan, beside, runs)) if open_ else (),
        command="" if cell.value is None else command_of(cell, plan),
    )


def _status(cell: Cell, seen: Sequence[Seen]) -> Status:
    if cell.value is None:
        return "blank"
    if any(one.note != OTHER_PIXELS for one in seen):
        return "observed"
    if seen:
        return "other pixels"
    return "quoted" if cell.quoted else "missing"


def _seen(cell: Cell, runs: Sequence[Observation]) -> list[Seen]:
    """Return the values of all runs, the longest first."""
    order = (protocol_of(cell), DEFAULT.name)
    found = []
    for run in sorted(runs, key=lambda one: -one.num_steps * one.batch_size):
        rank = {one.protocol_name: len(order) for one in run.measurements}
        rank |= {name: place for place, name in enumerate(order)}
        measured = sorted(run.measurements, key=lambda one: rank[one.protocol_name])
        for one in measured[:1] if cell.metric in _SEGMENTS else measured:
            value = value_of(cell, run, one)
            if value is None or cell.value is None:
                continue
            note = _note(cell, run)
            same = one.protocol_name == protocol_of(cell) and not note
            found.append(
                Seen(
                    run=run.name,
                    data_set=run.test_set,
                    length=run.length,
                    hardware=run.hardware,
                    bits_per_pixel=run.bits_per_pixel,
                    protocol=one.protocol_id,
                    value=value,
                    difference=value - cell.value if same else None,
                    note=note,
                )
            )
    return found


def _note(cell: Cell, run: Observation) -> str:
    """Return why no number of a run can be compared with a cell; empty if one can."""
    if run.other_pixels:
        return OTHER_PIXELS
    if not protocol_of(cell):
        return UNKNOWN_PROTOCOL
    if cell.paper == "vqgan-lc" and cell.metric == "utilization":
        return TRAINING_IMAGES
    return ""


def _missing(cell: Cell, plan: Plan, beside: str, runs: Sequence[Observation]) -> list[str]:
    """Return what it takes to observe a cell, in words."""
    if plan.lacking:
        return [plan.lacking]
    real = any(not run.other_pixels for run in runs)
    missing = [] if real else _training_needs(plan)
    weights = [KNOWN[name].file for name in WEIGHTS_OF.get(metric_of(cell), ())]
    missing += [f"weights {file} to measure it" for file in weights]
    if beside:
        missing.append(beside)
    return missing


@cache
def _needs_of(recipe: str, options: tuple[tuple[str, Any], ...], *sets: str) -> tuple[str, ...]:
    plan = Plan(recipe=recipe, options=dict(options), data_set=sets[0], test_set=sets[1])
    config = published_config(plan)
    needs = [f"data set {DATA_NAMES[name]}" for name in dict.fromkeys(sets)]
    if "codebook" in plan.options:
        needs.append(f"codebook {plan.options['codebook']}")
    needs += [f"weights {KNOWN[name].file} to train" for name in training_weights(config)]
    return (*needs, f"{hours_in_words(gpu_hours(config))}")


def _training_needs(plan: Plan) -> list[str]:
    options = tuple(plan.options.items())
    return list(_needs_of(plan.recipe, options, plan.data_set, plan.test_set))
