"""The rules of health: what a line of the log and the lines before it say of a run.

Every rule is a generator of symptoms from a line, the traces of the lines before it and the scale
of the run. Its thresholds are constants here; docs/health.md lists causes and remedies. A rule
waits until something lasts for `Scale.long` steps (twice as long for a discriminator) and three
lines, because every training begins with few codes, long vectors and a discriminator that first
knows nothing and soon too much.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vqkit.training.traces import Lasting, Traces

COLLAPSED: Final = 0.05
"""A codebook has collapsed when its tokens used fewer than this share of the codes that they could
have reached: min(codes, tokens). Uniform draws reach at least 63 % of that."""
COLLAPSED_PERPLEXITY: Final = 0.01
"""Likewise for the perplexity, both less one: 1 is that of a single code."""
FEW: Final = 0.3
"""A codebook shrinks when it uses less than this share of the codes that uniform draws would reach,
and less than `FEWER` times its own best share."""
FEWER: Final = 0.4
UNEVEN: Final = 0.05
"""Likewise for the perplexity, less one; images of one background are uneven by nature."""
MORE_UNEVEN: Final = 0.1
RECOVERS: Final = 1.25
"""A codebook that shrank recovers when its perplexity is so many times that of the low point's
beginning: codes that vectors run away from at the start of a run come back into use."""
DEAD: Final = 0.8
"""Share of dead codes that is said."""
OUTGROWN: Final = 8.0
"""Length of the vectors in lengths of the codes that they draw; 1 to 1.5 in a settled run."""
SURE: Final = 0.95
"""Accuracy, on real and on reconstructed images, of a discriminator that wins."""
RISEN: Final = 2.0
"""Rise of the generator's loss above its best, in logits: two of hinge's margins; one is what it
costs to be told apart at all."""
UNDECIDED: Final = 0.7
"""At least so good was that loss while the discriminator knew nothing: 0 for hinge, else ln 2."""
BLIND: Final = 0.05
"""Distance of the accuracy from 1/2, and of real from fake logits, of one that sees nothing."""
NEGLIGIBLE: Final = 1e-4
"""Adaptive weight with which the discriminator has no say."""
FAR: Final = 4.0
"""Squared error in multiples of its best."""
FINE: Final = 1e-3
"""Squared error on [-1, 1] (36 dB) below which nothing is wrong."""
SPIKE: Final = 10.0
"""Norm of the gradient in multiples of the median around it."""
SLOW: Final = 0.5
"""Share of the best pace."""
SLOW_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Scale:
    """What is long, and what is large, in one run."""

    long: int
    """Steps for which something must last: 2 % of the run, at least 100."""
    adaptive_max: float
    """Bound of the adaptive weight."""


@dataclass(frozen=True, slots=True)
class Symptom:
    """What a rule sees at one line."""

    name: str
    message: str
    degree: float = 1.0
    """How bad it is; twice as bad is said again. Degrees of the same name add up. What may grow
    without bounds counts by its logarithm."""


Rule = Callable[[Mapping[str, Any], Traces, Scale], Iterator[Symptom]]


def codes(line: Mapping[str, Any], traces: Traces, scale: Scale) -> Iterator[Symptom]:
    """Say the worst that holds of every codebook."""
    for name, book in line.get("books", {}).items():
        reach = min(book["codes"], book["tokens"])
        used = round(book["used"] * book["codes"])
        drawn = f"{name}: {book['tokens']:,} tokens used {used:,} of {book['codes']:,} codes"
        spread = f"{drawn}, perplexity {book['perplexity']:.4g}"
        few = used < COLLAPSED * reach
        uneven = book["perplexity"] - 1 < COLLAPSED_PERPLEXITY * (reach - 1)
        fell = _fallen(name, book, traces)
        dead = f"{round(book['dead'] * book['codes']):,} of {book['codes']:,} codes are dead"
        checks = {
            "codebook_dead": (used == 1 < book["codes"], drawn),
            "codebook_collapse": (few or uneven, spread),
            "codebook_shrinks": (bool(fell), f"{spread}; {fell}"),
            "dead_codes": (
                book["dead"] >= DEAD,
                f"{name}: {dead}, the longest for {book['idle']:,} steps",
            ),
        }
        lasting = {
            check: traces.lasting(f"{name}:{check}", holds, line["step"], book["perplexity"])
            for check, (holds, _) in checks.items()
        }
        since = lasting["codebook_shrinks"]
        if since and book["perplexity"] > RECOVERS * since.first:
            lasting["codebook_shrinks"] = None
        worst = next((check for check in checks if _long(lasting[check], scale)), None)
        if worst is not None:
            yield Symptom(worst, checks[worst][1])


def _fallen(name: str, book: Mapping[str, Any], traces: Traces) -> str:
    """Say how far usage or perplexity fell below their best, empty if not far."""
    key = f"{name}:{book['tokens']}"  # windows of other lengths do not compare
    expected = book["codes"] * -math.expm1(-book["tokens"] / book["codes"])  # of uniform draws
    room = max(expected - 1, 1e-9)
    used = traces.median(f"{key}:used", book["used"] * book["codes"] / expected, 3)
    spread = traces.median(f"{key}:spread", (book["perplexity"] - 1) / room, 3)
    best_used = traces.most(f"{key}:best_used", used)
    best_spread = traces.most(f"{key}:best_spread", spread)
    if used < FEW and used < FEWER * best_used:
        return f"once {best_used / used:.3g} times as many were used"
    if spread < UNEVEN and spread < MORE_UNEVEN * best_spread:
        return f"once it was {best_spread * room + 1:.4g}"
    return ""


def norms(line: Mapping[str, Any], traces: Traces, scale: Scale) -> Iterator[Symptom]:
    """Find codebooks whose vectors run away from the codes they draw, or do not come back."""
    for name, book in line.get("books", {}).items():
        if "norm_ratio" not in book:
            continue
        ratio = traces.median(f"{name}:ratio", book["norm_ratio"])
        lasting = traces.lasting(f"{name}:outgrown", ratio >= OUTGROWN, line["step"], ratio)
        falls = lasting is not None and ratio < lasting.peak / 2
        if _long(lasting, scale, 3 if falls else 1):
            message = f"{name}: vectors are {ratio:.3g} times as long as the codes that they draw"
            yield Symptom("latents_outgrow_codes", message, math.log(ratio))


def discriminator(line: Mapping[str, Any], traces: Traces, scale: Scale) -> Iterator[Symptom]:
    """Find a discriminator that is too sure, or that sees nothing."""
    if "accuracy_real" not in line:
        return
    step = line["step"]
    real = traces.median("accuracy_real", line["accuracy_real"])
    fake = traces.median("accuracy_fake", line["accuracy_fake"])
    apart = traces.median("logits", line["logits_real"] - line["logits_fake"])
    says = f"the discriminator knows {real:.0%} of real and {fake:.0%} of reconstructed patches"
    if "generator" in line:  # else it still learns alone
        loss = traces.median("generator", line["generator"])
        best = traces.least("best_generator", min(loss, UNDECIDED))
        wins = traces.lasting("wins", min(real, fake) >= SURE, step)
        if wins and _long(wins, scale, 2) and loss >= best + RISEN:
            rise = f"the generator's loss rose from {best:.3g} to {loss:.3g}"
            yield Symptom("discriminator_wins", f"{says} for {wins.span:,.0f} steps, {rise}")
    blind = abs((real + fake) / 2 - 0.5) < BLIND and abs(apart) < BLIND
    if _long(traces.lasting("blind", blind, step), scale, 2):
        yield Symptom("discriminator_blind", f"{says}, its logits differ by {apart:.2g}")


def adaptive(line: Mapping[str, Any], traces: Traces, scale: Scale) -> Iterator[Symptom]:
    """Find an adaptive weight that is no ratio of gradients any more."""
    if "adaptive_weight" not in line:
        return
    weight = traces.median("adaptive", line["adaptive_weight"])
    bound = 0.99 * scale.adaptive_max
    if _long(traces.lasting("clamped", weight >= bound, line["step"]), scale):
        message = f"the adaptive weight stands at its bound, {scale.adaptive_max:g}"
        yield Symptom("adaptive_weight_clamped", message)
    if _long(traces.lasting("negligible", weight < NEGLIGIBLE, line["step"]), scale):
        yield Symptom("adaptive_weight_tiny", f"the adaptive weight is {weight:.2g}")


def error(line: Mapping[str, Any], traces: Traces, scale: Scale) -> Iterator[Symptom]:
    """Find a squared error far above its best."""
    if "mse" not in line:
        return
    now = traces.median("mse", line["mse"])
    best = traces.least("best_mse", now)
    far = now > FAR * best and now > FINE
    if _long(traces.lasting("far", far, line["step"]), scale):
        message = f"the squared error is {now:.3g}, {now / best:.3g} times its best"
        yield Symptom("error_far_above_best", message, math.log(now / best))


def gradient(line: Mapping[str, Any], traces: Traces, scale: Scale) -> Iterator[Symptom]:
    """Find a gradient that jumps again and again.

    A line is judged two lines later: a spike is alone, a new level (the discriminator's start) is
    not. Three of the last 50 lines are too many.
    """
    if "gradient_norm" not in line:
        return
    tail = traces.tail("gradient", line["gradient_norm"], 21)
    if len(tail) < 13:
        return
    *before, candidate, next_one, last = tail
    middle = statistics.median(before)
    alone = candidate > SPIKE * middle and max(next_one, last) < candidate / 3
    height = candidate / middle if alone else 0.0
    spikes = [spike for spike in traces.tail("spikes", height, 50) if spike]
    if len(spikes) >= 3:
        message = f"the norm of the gradient jumped {len(spikes)} times within 50 lines of the log"
        yield Symptom("gradient_spikes", f"{message}, up to {max(spikes):.3g} times its median")


def pace(line: Mapping[str, Any], traces: Traces, scale: Scale) -> Iterator[Symptom]:
    """Find a machine that became slow."""
    if "images_per_second" not in line or "seconds" not in line:
        return
    now = traces.median("pace", line["images_per_second"])
    if len(traces.tail("first", now, 8)) < 8:
        return  # the first lines compile, cache and find their rhythm
    best = traces.most("best_pace", now)
    slow = traces.lasting("slow", now < SLOW * best, line["seconds"])
    if slow and slow.span >= SLOW_SECONDS and slow.lines >= 3:
        message = f"{now:,.1f} images per second, after {best:,.1f}"
        yield Symptom("throughput_fell", message, best / now)


RULES: Final[tuple[Rule, ...]] = (codes, norms, discriminator, adaptive, error, gradient)
"""Of what a resumed run repeats exactly."""
MACHINE_RULES: Final[tuple[Rule, ...]] = (pace,)
"""Of the clock."""

REMEDIES: Final = {
    "codebook_dead": (
        "every vector gets the same code, images cannot be told apart: take a preset that revives "
        "codes (cvq, looc, or vq_ema with restart_below=1), a smaller optim.lr or commitment, "
        "and look at the images (are they all alike?)"
    ),
    "codebook_collapse": (
        "most codes never move to the vectors: take a preset that revives codes (cvq, looc, or "
        "vq_ema with restart_below=1), shorter codes (vqgan_fc, dim=8), or fewer of them"
    ),
    "codebook_shrinks": (
        "codes lose their vectors: lower optim.lr, lengthen optim.warmup_steps, or take a preset "
        "that revives codes (cvq, looc, or vq_ema with restart_below=1)"
    ),
    "dead_codes": (
        "they cost bits and memory for nothing: fewer codes (of a lattice: fewer levels), or a "
        "preset that revives them (cvq, looc, or vq_ema with restart_below=1)"
    ),
    "latents_outgrow_codes": (
        "the encoder runs away from the codes, the early sign of collapse: raise the commitment, "
        "lower optim.lr or lengthen optim.warmup_steps, or use moving averages (vq_ema)"
    ),
    "discriminator_wins": (
        "its judgement no longer teaches: lower adversarial.lr or adversarial.weight, start later "
        "(adversarial.start), grow slowly (adversarial.ramp), or regularise it "
        "(adversarial.lecam, adversarial.r1)"
    ),
    "discriminator_blind": (
        "it learns nothing: raise adversarial.lr, take adversarial.norm=batch or a larger "
        "adversarial.width, and look whether adversarial.discriminator_weight or r1 hold it down"
    ),
    "adaptive_weight_clamped": (
        "the discriminator's gradient at the decoder's last layer is nothing beside that of the "
        "error: let it learn first (adversarial.warmup), or set adversarial.adaptive=false with a "
        "weight of your own"
    ),
    "adaptive_weight_tiny": (
        "the discriminator has no say: lower adversarial.lr or regularise it (adversarial.r1), so "
        "that its gradient shrinks, or set adversarial.adaptive=false with a weight of your own"
    ),
    "error_far_above_best": (
        "training has left a good state: go back to the checkpoint before with a smaller optim.lr, "
        "or with optim.clip_norm; after adversarial.start lower adversarial.weight"
    ),
    "gradient_spikes": (
        "single batches throw the weights about: set optim.clip_norm to about twice the usual "
        "norm, lower optim.lr, or lengthen optim.warmup_steps"
    ),
    "throughput_fell": (
        "look for another process on the machine, a slow disk (data.workers), too little memory, "
        "or a processor that is too hot"
    ),
}
"""What every symptom means and what to change."""


def _long(lasting: Lasting | None, scale: Scale, factor: int = 1) -> bool:
    return lasting is not None and lasting.span >= factor * scale.long and lasting.lines >= 3
