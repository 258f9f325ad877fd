"""The pictures on the page: a slider between any two versions, and all of them with error maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vqkit.report.axes import named
from vqkit.report.markup import Content, Markup, joined, tag
from vqkit.report.pictures import (
    MAX_BYTES,
    MAX_SIDE,
    Gallery,
    Picture,
    data_uri,
    error_uri,
    palette,
)
from vqkit.report.runs import Run

ORIGINAL = "original"


@dataclass(frozen=True, slots=True)
class _Encoded:
    """One picture as addresses that hold the files themselves."""

    picture: Picture
    original: str
    rebuilt: dict[str, str]
    errors: dict[str, str]

    @property
    def size(self) -> int:
        return sum(map(len, [self.original, *self.rebuilt.values(), *self.errors.values()]))


def gallery_section(runs: Sequence[Run], gallery: Gallery | None) -> Markup:
    """Draw the slider and, for every picture, its reconstructions above their error maps."""
    if gallery is None:
        words = "No pictures: no run has both its tokenizer and images that it takes."
        return tag("p", words, class_="none")
    encoded = _within_limits(gallery)
    shown = [(i, run) for i, run in enumerate(runs) if run.name in encoded[0].rebuilt]
    thumbs = [
        tag(
            "button",
            tag("img", src=one.original, alt=one.picture.name, decoding="async"),
            type="button",
            aria_pressed="true" if i == 0 else "false",
            data_picture=i,
            title=one.picture.name,
        )
        for i, one in enumerate(encoded)
    ]
    return joined(
        tag("p", _note(gallery, encoded), class_="note"),
        tag("div", *thumbs, class_="thumbs", role="group", aria_label="Choose a picture"),
        _slider(shown),
        _legend(gallery),
        *(_strip(i, one, shown, gallery) for i, one in enumerate(encoded)),
    )


def _within_limits(gallery: Gallery) -> list[_Encoded]:
    """Encode pictures until the page is large enough; the first one always."""
    encoded: list[_Encoded] = []
    total = 0
    for picture in gallery.pictures:
        one = _Encoded(
            picture,
            data_uri(picture.original),
            {run: data_uri(image) for run, image in picture.rebuilt.items()},
            {run: error_uri(picture.error(run), gallery.scale) for run in picture.rebuilt},
        )
        total += one.size
        if encoded and total > MAX_BYTES:
            break
        encoded.append(one)
    return encoded


def _note(gallery: Gallery, encoded: Sequence[_Encoded]) -> str:
    words = f"The first {len(encoded)} of {gallery.num_images:,} images, without loss."
    if len(encoded) < len(gallery.pictures):
        words += (
            f" {len(gallery.pictures)} were asked for; more would make the page larger than "
            f"{MAX_BYTES / 1e6:.0f} MB."
        )
    if any(one.picture.cut for one in encoded):
        words += f" Of larger ones the central {MAX_SIDE} pixels are shown; PSNR is of the whole."
    return words


def _slider(shown: Sequence[tuple[int, Run]]) -> Markup:
    names = [ORIGINAL, *(run.name for _, run in shown)]

    def choice(side: str, chosen: int) -> Markup:
        options = [
            tag("option", name, value=i, selected="" if i == chosen else None)
            for i, name in enumerate(names)
        ]
        return tag("label", tag("span", side), tag("select", *options, data_side=side))

    return tag(
        "div",
        tag("div", choice("left", 0), choice("right", 1), class_="sides"),
        tag(
            "div",
            tag("img", class_="left", alt=""),
            tag("img", class_="right", alt=""),
            tag("div", class_="divider", aria_hidden="true"),
            class_="stage",
        ),
        tag(
            "input",
            type="range",
            min="0",
            max="100",
            value="50",
            step="1",
            class_="cut",
            aria_label="Position of the border between left and right, in percent",
        ),
        tag("p", class_="said", aria_live="polite"),
        class_="compare",
        hidden="",
    )


def _legend(gallery: Gallery) -> Markup:
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in palette()[::15].tolist()]
    ramp = f"background:linear-gradient(90deg,{','.join(colours)})"
    middle, top = gallery.scale / 2, gallery.scale
    return tag(
        "div",
        tag("span", "Error maps, one scale for all:"),
        tag("span", "0", class_="number"),
        tag("span", class_="ramp", style=ramp),
        tag("span", f"{middle:.3g} · ", tag("b", f"{top:.3g}"), class_="number"),
        tag(
            "span",
            f"absolute difference in grey levels of 255, mean over channels; the brightest colour "
            f"also stands for the 0.5 % of larger errors, up to {gallery.largest:.3g}",
            class_="what",
        ),
        class_="legend-errors",
    )


def _strip(
    number: int, one: _Encoded, shown: Sequence[tuple[int, Run]], gallery: Gallery
) -> Markup:
    """All versions of one picture."""
    picture = one.picture
    height, width = picture.original.shape[-2:]
    size: dict[str, Content] = {
        "width": width,
        "height": height,
        "loading": "lazy",
        "decoding": "async",
    }
    label = f"{picture.name}, {picture.size[1]} × {picture.size[0]} pixels"
    cells = [
        tag(
            "figure",
            tag("img", src=one.original, alt=f"original of {picture.name}", data_version=0, **size),
            tag("figcaption", tag("b", ORIGINAL), tag("span", label)),
        )
    ]
    for place, (i, run) in enumerate(shown, start=1):
        error = picture.error(run.name)
        said = _decibels(picture.psnr[run.name])
        rate = f" at {picture.rates[run.name]:.3g} bits/pixel"
        alt = f"{picture.name} through {run.name}, PSNR {said}"
        error_alt = (
            f"error map of {run.name}: {float(error.mean()):.3g} of 255 on average, "
            f"{float(error.max()):.3g} at most"
        )
        image = one.rebuilt[run.name]
        cells.append(
            tag(
                "figure",
                tag("img", src=image, alt=alt, data_version=place, data_said=said, **size),
                tag("img", src=one.errors[run.name], alt=error_alt, title=error_alt, **size),
                tag("figcaption", tag("b", named(i, run.name)), tag("span", said, rate)),
            )
        )
    look = "strip small" if max(height, width) <= 96 else "strip"
    return tag("div", *cells, class_=look, data_picture=number, data_name=label)


def _decibels(value: float) -> str:
    return "exact" if math.isinf(value) else f"{value:.2f} dB"
