"""Runs a tokenizer over a whole image set and measures what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from vqkit.config import require
from vqkit.data import ImageSet, iterate_once
from vqkit.data.share import Share
from vqkit.evaluation.result import Evaluation, Metric
from vqkit.evaluation.scoring import Networks, Scoring
from vqkit.metrics import DEFAULT, CodeUsage, LosslessRate, Protocol
from vqkit.metrics.measures import SetMeasure
from vqkit.models import ImageTokenizer, decode_tiled, encode_tiled
from vqkit.models.tokenizer import evaluation_mode
from vqkit.quantizers.ranks import world_size
from vqkit.tokens.frequencies import tokenizer_hash
from vqkit.training.machine import describe_machine

CPU_PIXELS: Final = 2**17
"""Pixels of a batch that go through a model at once on a CPU. What is between the layers of larger
ones leaves its caches: 16 images of 256 x 256 together take 1.7 times as long as in pairs."""


@dataclass(kw_only=True)
class _Sums:
    """All that is kept of the images seen so far."""

    scorings: tuple[Scoring, ...]
    """One for every protocol."""
    usage: CodeUsage
    lossless: LosslessRate
    tokenizer_seconds: float = 0.0
    size: tuple[int, int] = (0, 0)
    """(height, width) of the first image."""

    def reduce(self) -> _Sums:
        """Return the sums of all processes; the clock and the first size stay one's own."""
        return replace(
            self,
            scorings=tuple(scoring.reduce() for scoring in self.scorings),
            usage=self.usage.reduce(),
            lossless=self.lossless.reduce(),
        )


def evaluate(
    tokenizer: ImageTokenizer,
    image_set: ImageSet,
    *,
    batch_size: int = 64,
    name: str = "tokenizer",
    protocol: Protocol = DEFAULT,
    measures: Sequence[SetMeasure] = (),
    lossless: LosslessRate | None = None,
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a tokenizer on every image of a set; its mode and state stay as they are.

    Quality is that of `decode(encode(image))` at the image's own size. Memory does not grow with
    the number of images.

    Args:
        tokenizer: the model, on any device.
        image_set: from `load_images`; images of different sizes are fine.
        batch_size: images of one size that go through the model together.
        name: names the run in tables.
        protocol: how quality is measured; the set's fingerprint is added to it. With
            `protocol.tile` images go through the model in tiles (`vqkit.models.encode_tiled`).
        measures: FID, LPIPS and others (`vqkit.metrics.measures`), fresh; their facts enter the
            protocol, their numbers the metrics.
        lossless: `evaluation.lossless` of an earlier evaluation on this very set, to save the time
            that PNG files take.
        share: (rank, number of processes): measure one part of the set. All processes call this
            together and get the result of the whole set; needs `torch.distributed`.
        progress: called after every batch with (images done, images in this share).

    Raises:
        ValueError: an empty set, images that the model does not take, a reconstruction that is not
            finite, or a lossless rate of other images.
    """
    networks = Networks(measures=tuple(measures))
    found = evaluate_under(
        tokenizer,
        image_set,
        [(protocol, networks)],
        batch_size=batch_size,
        name=name,
        lossless=lossless,
        share=share,
        progress=progress,
    )
    return found[0]


def evaluate_under(
    tokenizer: ImageTokenizer,
    image_set: ImageSet,
    protocols: Sequence[tuple[Protocol, Networks]],
    *,
    batch_size: int = 64,
    name: str = "tokenizer",
    lossless: LosslessRate | None = None,
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Evaluation, ...]:
    """Measure the same reconstructions under several protocols, in one pass over the set.

    Arguments and errors as `evaluate`; `protocols` are pairs of a protocol and the networks that
    measure under it (`vqkit.evaluation.scoring.networks_of`). One evaluation for each comes back.
    All have the same tiles: others would be other reconstructions.
    """
    began = time.perf_counter()
    part = Share.of(image_set, share)
    _check(image_set, share)
    tiles = {(protocol.tile, protocol.halo) for protocol, _ in protocols}
    require(len(tiles) == 1, f"protocols={len(protocols)}", "give some, all with the same tiles")
    first = len(image_set) * share[0] // share[1]
    scorings = tuple(Scoring(protocol, networks, first=first) for protocol, networks in protocols)
    with torch.no_grad(), evaluation_mode(tokenizer):
        sums = _measure(tokenizer, part, batch_size, scorings, lossless is None, progress)
    if share[1] > 1:
        sums = sums.reduce()
    sums.lossless = lossless or sums.lossless
    _check_lossless(sums)
    facts = describe_machine(_device(tokenizer), share[1])
    seconds = time.perf_counter() - began
    results = (_result(name, tokenizer, sums, scoring, image_set) for scoring in sums.scorings)
    hashed = tokenizer_hash(tokenizer)
    return tuple(
        replace(
            found, tokenizer={**found.tokenizer, "hash": hashed}, machine=facts, seconds=seconds
        )
        for found in results
    )


def _result(
    name: str, tokenizer: ImageTokenizer, sums: _Sums, scoring: Scoring, image_set: ImageSet
) -> Evaluation:
    quantizer, scores = tokenizer.quantizer, scoring.scores
    description = tokenizer.describe(image_size=sums.size)
    protocol = scoring.stamp(image_set.fingerprint())
    bits = (quantizer.bits_per_position, quantizer.side_bits)
    return Evaluation(
        name=name,
        metrics=_metrics(sums, scoring, protocol.id, *bits),
        protocol=protocol,
        books=sums.usage.by_book(),
        slots=sums.usage.by_slot(),
        slot_names=tuple(slot.name for slot in quantizer.slots),
        num_pixels=scores.num_pixels,
        num_exact=scores.num_exact,
        codebook_floats=description.quantizer.codebook_floats,
        tokenizer=description.to_dict(),
        tokenizer_seconds=sums.tokenizer_seconds,
        lossless=sums.lossless,
    )


def _measure(
    tokenizer: ImageTokenizer,
    images: ImageSet,
    batch_size: int,
    scorings: tuple[Scoring, ...],
    with_lossless: bool,
    progress: Callable[[int, int], None] | None,
) -> _Sums:
    quantizer, device = tokenizer.quantizer, _device(tokenizer)
    sums = _Sums(
        scorings=scorings,
        usage=CodeUsage([slot.num_codes for slot in quantizer.slots], quantizer.books),
        lossless=LosslessRate(),
    )
    done = 0
    for batch in iterate_once(images, batch_size):
        size = (batch.images.shape[-2], batch.images.shape[-1])
        sums.size = size if sums.size == (0, 0) else sums.size
        originals = batch.images.to(device)
        start = _now(device)
        ids, rebuilt = _rebuild(tokenizer, originals, size, scorings[0].protocol)
        sums.tokenizer_seconds += _now(device) - start
        sums.usage.update(ids)
        for scoring in scorings:
            scoring.update(rebuilt, originals)
        if with_lossless:
            sums.lossless.update(batch.images)
        done += len(originals)
        if progress is not None:
            progress(done, len(images))
    return sums


def _rebuild(
    tokenizer: ImageTokenizer, images: Tensor, size: tuple[int, int], protocol: Protocol
) -> tuple[Tensor, Tensor]:
    """Return the ids and the reconstruction of images of `size`."""
    tile, halo = protocol.tile, protocol.halo
    at_once = max(1, CPU_PIXELS // (size[0] * size[1]))
    if _device(tokenizer).type == "cpu" and len(images) > at_once:
        parts = [_rebuild(tokenizer, part, size, protocol) for part in images.split(at_once)]
        ids, rebuilt = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return ids, rebuilt
    if tile is None:
        ids = tokenizer.encode(images)
        return ids, tokenizer.decode(ids, size=size)
    ids = encode_tiled(tokenizer, images, tile=tile, halo=halo)
    return ids, decode_tiled(tokenizer, ids, size, tile=tile, halo=halo)


def _device(tokenizer: ImageTokenizer) -> torch.device:
    return next(tokenizer.parameters()).device


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _check(image_set: ImageSet, share: tuple[int, int]) -> None:
    if not len(image_set):
        raise ValueError("image_set: holds no image; check data.path and data.limit")
    processes = world_size()
    if share[1] not in (1, processes):
        raise ValueError(
            f"share={share}: there are {processes} processes; give (rank, {processes}), or (0, 1) "
            "to measure the whole set in each"
        )
    if share[1] > len(image_set):
        raise ValueError(
            f"share={share}: {len(image_set)} images for {share[1]} processes leave some without; "
            "measure the whole set in one"
        )


def _check_lossless(sums: _Sums) -> None:
    measured = (sums.lossless.num_images, sums.lossless.num_pixels)
    scores = sums.scorings[0].scores
    seen = (scores.num_images, scores.num_pixels)
    if measured != seen:
        raise ValueError(
            f"lossless: measured on {measured[0]} images of {measured[1]} pixels, but this set has "
            f"{seen[0]} of {seen[1]}; leave it out to measure it again"
        )


def _metrics(
    sums: _Sums, scoring: Scoring, protocol: str, bits_per_position: float, side_bits: float
) -> tuple[Metric, ...]:
    """Turn the sums into rows; usage and perplexity are means over codebooks."""
    scores, usage, lossless = scoring.scores, sums.usage, sums.lossless
    books = usage.by_book()
    entropy = sum(slot.entropy for slot in usage.by_slot()) + side_bits
    positions = usage.num_positions / scores.num_pixels
    rows: list[tuple[str, float | None, str]] = [
        ("psnr", scores.mean("psnr"), "dB"),
        ("ssim", scores.mean("ssim"), ""),
        ("l1", scores.mean("l1"), ""),
        ("l2", scores.mean("l2"), ""),
        ("perplexity", _mean([book.perplexity for book in books]), "codes"),
        ("usage", _mean([book.usage for book in books]), "share of codes"),
        ("usage_ceiling", _mean([book.ceiling for book in books]), "share of codes"),
        ("usage_uniform", _mean([book.uniform_usage for book in books]), "share of codes"),
        ("rate", bits_per_position * positions, "bits per pixel"),
        ("entropy_rate", entropy * positions, "bits per pixel"),
        ("png_rate", lossless.png, "bits per pixel"),
        ("raw_rate", lossless.raw, "bits per pixel"),
    ]
    stamp: dict[str, Any] = {"protocol": protocol, "num_tokens": usage.num_tokens}
    plain = [
        Metric(
            name=name,
            value=value,
            unit=unit,
            num_images=scores.count("ssim") if name == "ssim" else scores.num_images,
            **stamp,
        )
        for name, value, unit in rows
    ]
    networks = [Metric(**asdict(found), **stamp) for found in scoring.found()]
    return (*plain, *networks)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
