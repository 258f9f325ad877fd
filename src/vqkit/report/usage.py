"""How the codebooks are used: by codebook, by slot, how often each code, and who shares codes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from vqkit.metrics import CodeStatistics
from vqkit.metrics.wording import percent
from vqkit.report.axes import named
from vqkit.report.counting import BookCounts, RunCounts
from vqkit.report.markup import Markup, joined, tag
from vqkit.report.plots import Curve, curves
from vqkit.report.runs import Run

MAX_LINES: Final = 4
"""Codebooks or slots of a run that have a line each; more are columns side by side."""
MAX_CURVES: Final = 12
"""Codebooks of a run whose draws are shown; of more, the first ones."""


def usage_section(runs: Sequence[Run], counts: Mapping[str, RunCounts]) -> Markup:
    """Draw a card for every run that was measured or counted."""
    cards = [_card(i, run, counts.get(run.name)) for i, run in enumerate(runs)]
    shown_cards = [card for card in cards if card]
    if not shown_cards:
        return tag("p", "No run was measured and none could be counted.", class_="none")
    return joined(_conditions(counts), tag("div", *shown_cards, class_="cards"))


def _conditions(counts: Mapping[str, RunCounts]) -> Markup | None:
    if not counts:
        return tag(
            "p",
            "Draws of single codes and sharing need a tokenizer and images; none was counted.",
            class_="note",
        )
    found = next(iter(counts.values()))
    part = "" if found.num_images == found.of_images else f" of {found.of_images:,}"
    return tag(
        "p",
        "Bars: share of the codes that the measured images draw at least once; the tick is the "
        "most that so many tokens can show. Curves: codes from the most to the least drawn, by "
        f"their draws over the mean, counted on the first {found.num_images:,}{part} images; level "
        "at 1 is even use, and a curve ends where the codes end that were drawn at all.",
        class_="note",
    )


def _card(number: int, run: Run, counted: RunCounts | None) -> Markup | None:
    found = run.evaluation
    if found is None and counted is None:
        return None
    parts: list[Markup | None] = [tag("h3", named(number, run.name))]
    if found is not None:
        pooled = "all slots pooled" if len(found.slots) > len(found.books) else "one slot each"
        names = _book_names(len(found.books), counted)
        title = "codebook" if len(found.books) == 1 else f"{len(found.books)} codebooks, {pooled}"
        parts.append(_bars(title, names, found.books))
        if len(found.slots) > len(found.books):
            title = f"{len(found.slots)} slots, each on its own"
            parts.append(_bars(title, found.slot_names, found.slots))
    if counted is not None:
        if found is not None and found.protocol.reference != counted.images:
            parts.append(tag("p", "Bars and curves are of different images.", class_="note"))
        parts.append(_draws(number, run.name, counted))
        parts += [_sharing(book) for book in counted.books[:MAX_CURVES] if len(book.shared) > 2]
    return tag("div", *parts, class_="card")


def _book_names(count: int, counted: RunCounts | None) -> list[str]:
    if counted is not None and len(counted.books) == count:
        return [book.name for book in counted.books]
    return ["code"] if count == 1 else [f"codebook {i + 1}" for i in range(count)]


def _bars(title: str, names: Sequence[str], found: Sequence[CodeStatistics]) -> Markup:
    """Draw usage as one bar a line, with codes and perplexity in figures; of many, as columns."""
    if len(found) > MAX_LINES:
        return _columns(title, names, found)
    rows = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            tag(
                "td",
                tag(
                    "span",
                    tag("i", style=f"width:{100 * one.usage:.2f}%"),
                    tag("b", style=f"left:{100 * one.ceiling:.2f}%"),
                    class_="bar",
                ),
            ),
            tag("td", percent(one.usage)),
            tag("td", f"{one.num_used:,} of {one.num_codes:,}"),
            tag("td", f"{one.perplexity:,.1f}"),
        )
        for name, one in zip(names, found, strict=True)
    ]
    heads = ("", "", "used", "codes", "perplexity")
    return tag(
        "table",
        tag("caption", title),
        tag("thead", tag("tr", *(tag("th", head, scope="col") for head in heads))),
        tag("tbody", *rows),
        class_="bars",
    )


def _columns(title: str, names: Sequence[str], found: Sequence[CodeStatistics]) -> Markup:
    """Draw usage as one column for each of many; a hint gives its figures."""
    columns = []
    for name, one in zip(names, found, strict=True):
        facts = (
            f"{name}: {percent(one.usage)}, {one.num_used:,} of {one.num_codes:,} codes, "
            f"perplexity {one.perplexity:,.1f}"
        )
        height = f"height:{100 * one.usage:.2f}%"
        columns.append(tag("span", tag("i", style=height), data_tip=facts))
    usage = [one.usage for one in found]
    spread = f"{percent(min(usage), unit='')} – {percent(max(usage))} used"
    perplexities = [one.perplexity for one in found]
    words = f"{title}: {spread}, perplexity {min(perplexities):,.1f} – {max(perplexities):,.1f}"
    return tag(
        "figure",
        tag("figcaption", words),
        tag("div", *columns, class_="columns", role="img", aria_label=words),
        class_="many",
    )


def _draws(number: int, name: str, counted: RunCounts) -> Markup:
    """Draw the codes by falling number of draws, every codebook a line."""
    lines = []
    for book in counted.books[:MAX_CURVES]:
        mean = book.num_tokens / book.num_codes
        drawn = book.draws.tolist()
        points = [(100 * (i + 1) / book.num_codes, n / mean) for i, n in enumerate(drawn)]
        lines.append(Curve(number=number, name=book.name, points=_by_share(points)))
    tokens = sum(book.num_tokens for book in counted.books)
    return tag(
        "figure",
        curves(
            lines,
            title="draws / mean",
            x_label="% of the codes, most drawn first",
            log=True,
            words=f"How often {name} draws its codes, over {tokens:,} tokens",
        ),
        class_="small",
    )


def _by_share(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep the first points and thin out the long tail evenly on a logarithmic scale of ranks."""
    if len(points) <= 120:
        return list(points)
    ranks = {round(math.exp(i * math.log(len(points) - 1) / 119)) for i in range(120)} | {0}
    return [points[i] for i in sorted(ranks)]


def _sharing(book: BookCounts) -> Markup:
    """Draw how many codes exactly n of the segments draw."""
    segments = len(book.shared) - 1
    groups = _grouped(book.shared)
    most = max(n for _, n in groups) or 1
    rows = [
        tag(
            "tr",
            tag("th", f"{label} segment{'' if label == '1' else 's'}", scope="row"),
            tag("td", tag("span", tag("i", style=f"width:{100 * n / most:.2f}%"), class_="bar")),
            tag("td", f"{n:,}"),
        )
        for label, n in groups
    ]
    heads = ("drawn by", "", "codes")
    mean = f"a code in use is drawn by {_mean_segments(book):.1f} of {segments} segments"
    caption = f"Sharing in {book.name}: {mean}"
    return tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *(tag("th", head, scope="col") for head in heads))),
        tag("tbody", *rows),
        class_="bars",
    )


def _mean_segments(book: BookCounts) -> float:
    used = sum(book.shared[1:])
    return sum(i * n for i, n in enumerate(book.shared)) / used if used else 0.0


def _grouped(numbers: Sequence[int]) -> list[tuple[str, int]]:
    """Label codes by number of segments; of more than eight, runs of numbers together."""
    if len(numbers) <= 9:
        return [(str(i), n) for i, n in enumerate(numbers)]
    segments = len(numbers) - 1
    edges = sorted({1, *(math.ceil(segments * i / 6) for i in range(1, 7))})
    groups, start = [("0", numbers[0])], 1
    for edge in edges:
        label = str(start) if start == edge else f"{start} – {edge}"
        groups.append((label, sum(numbers[start : edge + 1])))
        start = edge + 1
    return groups
