"""Evaluations as Markdown tables: no quality without its rate, and the lossless rate beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vqkit.metrics import CodeStatistics
from vqkit.metrics.wording import percent

if TYPE_CHECKING:
    from vqkit.evaluation.result import Evaluation

MISSING = "n/a"
RATES = ("bits/pixel", "entropy", "PNG")
QUALITIES = ("PSNR, dB", "SSIM", "l1", "perplexity", "codes used")
NETWORKS = {
    "lpips_vgg": "LPIPS (VGG)",
    "lpips_alex": "LPIPS (Alex)",
    "fid": "FID",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "inception_score": "Inception Score",
}
"""Metrics that networks measure, with their labels."""
COMPARED = ("run", *RATES, *QUALITIES, "codebook floats", "seconds", "protocol")


def table(evaluation: Evaluation) -> str:
    """Return the numbers of one tokenizer, with footnotes that say how they were measured."""
    rate, entropy, png = (_rate(evaluation, key) for key in ("rate", "entropy_rate", "png_rate"))
    qualities = [
        ("PSNR, dB", _number(evaluation, "psnr", 2)),
        ("SSIM", _number(evaluation, "ssim", 4)),
        ("l1", _number(evaluation, "l1", 5)),
        ("l2", _number(evaluation, "l2", 6)),
        ("perplexity", _perplexity(evaluation)),
        ("codes used", _usage(evaluation)),
        *((label, _number(evaluation, name, 4)) for name, label in _networks(evaluation)),
    ]
    header = ("", evaluation.name, *RATES, "protocol")
    rows = [(label, value, rate, entropy, png, "[1]") for label, value in qualities]
    return "\n".join([markdown(header, rows), "", *_rate_notes(evaluation), *_notes(evaluation)])


def compare_table(evaluations: Sequence[Evaluation]) -> str:
    """Return one row per tokenizer; other image sets or protocols get their own footnote."""
    if not evaluations:
        raise ValueError("evaluations=[]: there is nothing to compare")
    protocols = list(dict.fromkeys(one.protocol.id for one in evaluations))
    rows = [
        (
            one.name,
            *(_rate(one, key) for key in ("rate", "entropy_rate", "png_rate")),
            _number(one, "psnr", 2),
            _number(one, "ssim", 4),
            _number(one, "l1", 5),
            _perplexity(one),
            _usage(one),
            f"{one.codebook_floats:,}",
            f"{one.tokenizer_seconds:.1f}",
            f"[{protocols.index(one.protocol.id) + 1}]",
        )
        for one in evaluations
    ]
    lines = [markdown(COMPARED, rows), ""]
    if len(protocols) > 1:
        lines.append("Rows with different protocol marks are not comparable.")
    for number, protocol in enumerate(protocols, start=1):
        example = next(one for one in evaluations if one.protocol.id == protocol)
        lines.append(protocol_note(example, number))
    lines += _left_out(evaluations)
    lines.append(
        "Rates are bits per pixel: of the tokens as they are, after an ideal zero-order coder "
        "(entropy), and of the originals as optimized PNG files. Seconds: encode and decode."
    )
    return "\n".join(lines)


def _rate_notes(evaluation: Evaluation) -> list[str]:
    rate, png, raw = (evaluation.value(name) for name in ("rate", "png_rate", "raw_rate"))
    assert rate is not None  # a rate needs no images of some size, unlike SSIM
    assert png is not None
    assert raw is not None
    return [
        f"The tokens take {rate / png:.3g} times the bits of the lossless PNG; raw pixels take "
        f"{raw:g} bits/pixel."
    ]


def _notes(evaluation: Evaluation) -> list[str]:
    books = evaluation.books
    tokens = sum(book.num_tokens for book in books)
    uniform = evaluation.value("usage_uniform") or 0.0
    ceiling = evaluation.value("usage_ceiling") or 0.0
    number = "one codebook" if len(books) == 1 else f"the mean over {len(books)} codebooks"
    return [
        f"Perplexity and codes used: {number}, {tokens:,} tokens. So many can show at most "
        f"{percent(ceiling)} (min(1, tokens/codes)); uniform draws show {percent(uniform)}.",
        protocol_note(evaluation, 1),
        *_left_out([evaluation]),
        *network_notes(evaluation),
    ]


def network_notes(evaluation: Evaluation) -> list[str]:
    """Say what belongs to the numbers of networks, and why some are left out."""
    lines = []
    for name, label in _networks(evaluation):
        metric = evaluation.metric(name)
        parts = [] if metric.spread is None else [f"standard deviation {metric.spread:.3g}"]
        parts += [metric.note] if metric.note else []
        if parts:
            lines.append(f"{label}: {'; '.join(parts)}")
    return lines


def _networks(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return (name, label) of the metrics of networks, in the order of `NETWORKS`."""
    names = {metric.name for metric in evaluation.metrics}
    return [(name, label) for name, label in NETWORKS.items() if name in names]


def protocol_note(evaluation: Evaluation, mark: object) -> str:
    """Return the footnote that says how numbers with this mark were measured."""
    protocol = evaluation.protocol
    return (
        f"[{mark}] {protocol.id}: {protocol.describe()}; image set {protocol.reference[:12]}: "
        f"{evaluation.num_images:,} images, {evaluation.num_pixels:,} pixels."
    )


def _left_out(evaluations: Iterable[Evaluation]) -> list[str]:
    """Say which images a mean treats specially."""
    lines = []
    for one in evaluations:
        small = one.num_images - one.metric("ssim").num_images
        if small:
            side = one.protocol.ssim_window
            lines.append(
                f"{one.name}: SSIM leaves out {small:,} images below {side}x{side} pixels."
            )
        if one.num_exact:
            cap = f"{one.protocol.psnr_cap:g} dB"
            lines.append(f"{one.name}: {one.num_exact:,} exact images count as {cap} in PSNR.")
    return lines


def _number(evaluation: Evaluation, name: str, digits: int) -> str:
    value = evaluation.value(name)
    return MISSING if value is None else f"{value:.{digits}f}"


def _rate(evaluation: Evaluation, name: str) -> str:
    return _number(evaluation, name, 3)


def _perplexity(evaluation: Evaluation) -> str:
    return f"{_number(evaluation, 'perplexity', 1)}{_of_codes(evaluation.books)}"


def _of_codes(books: Sequence[CodeStatistics]) -> str:
    sizes = {book.num_codes for book in books}
    return f" of {sizes.pop():,}" if len(sizes) == 1 else ""


def _usage(evaluation: Evaluation) -> str:
    usage, ceiling = (evaluation.value(name) or 0.0 for name in ("usage", "usage_ceiling"))
    return f"{percent(usage)} (at most {percent(ceiling)})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns also line up as plain text."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(
        [f":{'-' * (widths[0] + 1)}", *(f"{'-' * (width + 1)}:" for width in widths[1:])]
    )
    return "\n".join([line(header), f"|{rule}|", *map(line, rows)])
