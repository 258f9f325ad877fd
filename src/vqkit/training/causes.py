"""Causes and remedies: what the log of a run, and the record of its stop, mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from vqkit.config import OptimConfig
from vqkit.training.symptoms import REMEDIES
from vqkit.training.watch import Watch

RISE: Final = 10.0
"""A gradient has risen if it is so many times the median of the lines before."""
PLAIN: Final = 0.5
"""Share of a batch whose images hold one colour only, above which the images are to blame."""
WORSE: Final = {"psnr": 1.0, "l1": 0.01, "lpips": 0.02}
"""How much worse than its best the validation must be, to be called overfitting."""
LATER: Final = 3
"""Validations since the best one, at least."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong."""

    cause: str
    """In a few words: `learning rate too high`."""
    seen: str
    remedy: str


def watched(watch: Watch, lines: list[dict[str, Any]]) -> Iterator[Finding]:
    """What the live warnings say of the last lines."""
    said: dict[str, str] = {}
    for line in lines:
        for warning in watch.look(line):
            said[warning.name] = f"step {line['step']:,}: {warning.message}"
    for name in watch.active:
        yield Finding(name.replace("_", " "), said.get(name, "at the last line"), REMEDIES[name])


def overfitted(lines: list[dict[str, Any]]) -> Iterator[Finding]:
    """Validation that gets worse while training gets better."""
    for metric, margin in WORSE.items():
        key = f"validation/{metric}"
        scores = [(line["step"], line[key], line.get("mse")) for line in lines if key in line]
        if len(scores) <= LATER:
            continue
        sign = 1 if metric == "psnr" else -1
        best = max(range(len(scores)), key=lambda n: sign * scores[n][1])
        (then, best_score, error), (now, score, last_error) = scores[best], scores[-1]
        learns = error is not None and last_error is not None and last_error < error
        if len(scores) - 1 - best >= LATER and sign * (best_score - score) > margin and learns:
            yield Finding(
                "data too few",
                f"{metric} of the validation fell from {best_score:.4g} (step {then:,}) to "
                f"{score:.4g} (step {now:,}) while the training error still falls",
                "the run learns its images by heart: give it more of them, data.flip, random "
                "crops, or fewer steps; best/ holds the tokenizer before",
            )
            return


def stopped(
    optim: OptimConfig, stop: dict[str, Any], lines: list[dict[str, Any]], sick: list[Finding]
) -> Iterator[Finding]:
    """What the record of the stop means, most telling first."""
    kind, message = stop["kind"], stop["message"]
    if kind in CAUSES:
        cause, remedy = CAUSES[kind]
        yield Finding(cause, message, remedy)
    elif kind != "signal":  # a loss that is not finite, or has exploded
        causes = [*_from_images(stop), *sick, *_from_gradient(optim, stop, lines)]
        causes += list(_from_precision(optim, stop)) if not causes else []
        if not causes:
            seen = f"optim.lr={optim.lr:g}, and nothing else looks amiss"
            causes = [Finding("learning rate too high", seen, _LOWER)]
        first, *others = causes
        said = stop.get("problem", message)
        yield Finding(first.cause, f"{said}; {first.seen}", first.remedy)
        yield from others


CAUSES: Final = {
    "data": (
        "images vanished or broken",
        "put them back as they were, or give their new place as data.path; the same command goes "
        "on from the last step",
    ),
    "disk": (
        "disk full",
        "make room (log.keep=1 keeps one checkpoint), or look what ails the disk; the same command "
        "goes on from the newest checkpoint",
    ),
    "memory": (
        "out of memory",
        "end what else uses it, or run the same command with a larger optim.accumulate or a "
        "smaller validation.batch_size, which need less",
    ),
    "apart": (
        "processes apart",
        "a part of the model (a preset of your own?) draws or updates from its own process only; "
        "join its statistics over processes, as vqkit.quantizers.ranks does",
    ),
    "error": (
        "error in the code",
        "run the same command again with --debug for the whole traceback; the run goes on from the "
        "newest checkpoint",
    ),
}
"""Kind of a stop -> cause and remedy, where there is but one."""
_LOWER: Final = (
    "train in another folder with a third of optim.lr, or with optim.clip_norm=1, or with a longer "
    "optim.warmup_steps"
)


def _from_images(stop: dict[str, Any]) -> Iterator[Finding]:
    batch = stop.get("batch", {})
    keys, plain = batch.get("keys", []), batch.get("one_colour", [])
    if keys and len(plain) > PLAIN * len(keys):
        yield Finding(
            "broken images",
            f"{len(plain)} of the {len(keys)} images of the batch are of one colour: "
            f"{', '.join(plain[:3])}",
            "look at them, and take empty or damaged ones out of the data",
        )


def _from_gradient(
    optim: OptimConfig, stop: dict[str, Any], lines: list[dict[str, Any]]
) -> Iterator[Finding]:
    norms = [line["gradient_norm"] for line in lines[-20:] if "gradient_norm" in line]
    last = _number(stop.get("gradient_norm"))
    norms += [last] if math.isfinite(last) else []
    if len(norms) < 3:
        return
    before, peak = statistics.median(norms[:-1]), max(norms[-3:])
    if peak > RISE * before or stop["kind"] == "exploded":
        clipped = "" if optim.clip_norm is None else ", clipped"
        yield Finding(
            "learning rate too high",
            f"the norm of the gradient{clipped} went from {before:.3g} to {peak:.3g}, with "
            f"optim.lr={optim.lr:g}",
            _LOWER,
        )


def _from_precision(optim: OptimConfig, stop: dict[str, Any]) -> Iterator[Finding]:
    if optim.precision == "bf16" and stop["kind"] == "not_finite":
        yield Finding(
            "bf16 overflow",
            "the gradients before were calm, and the networks ran in bf16",
            "train in another folder with optim.precision=fp32, or with optim.clip_norm=1",
        )


def _number(value: Any) -> float:
    """Return a number of a record, whose infinities and NaN are text."""
    return float(value) if value is not None else math.nan
