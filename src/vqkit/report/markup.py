"""HTML and SVG as strings that cannot be broken: whatever is no `Markup` is escaped."""

from __future__ import annotations

import html
from typing import Final

VOID: Final = frozenset(
    {"br", "wbr", "img", "input", "meta", "circle", "path", "line", "rect", "polygon"}
)
"""Elements that never hold anything, of HTML and of SVG."""


class Markup(str):
    """Text that is markup already, and stands in the page as it is."""

    __slots__ = ()


Content = str | int | float | None
"""What an element holds: `Markup` as it is, other values as escaped text, None as nothing."""


def escaped(value: Content) -> Markup:
    """Return a value as markup; quotes are escaped as well, for attributes."""
    if value is None:
        return Markup("")
    return value if isinstance(value, Markup) else Markup(html.escape(str(value), quote=True))


def joined(*parts: Content, between: str = "") -> Markup:
    """Put parts one after another."""
    return Markup(between.join(escaped(part) for part in parts))


def tag(name: str, *parts: Content, **attributes: Content) -> Markup:
    """Return an element; `class_` gives `class`, `aria_label` gives `aria-label`.

    An attribute of None is left out, one of "" stands alone (`disabled`).
    """
    opening = name + "".join(
        _attribute(key, value) for key, value in attributes.items() if value is not None
    )
    if name in VOID:
        return Markup(f"<{opening}/>")
    return Markup(f"<{opening}>{joined(*parts)}</{name}>")


def _attribute(key: str, value: Content) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value == "" else f' {name}="{html.escape(str(value), quote=True)}"'


def heading(label: str, unit: str = "", look: str = "number") -> Markup:
    """Return the head of a column that a click sorts by, its unit small beside the label."""
    small = tag("small", unit) if unit else None
    button = tag("button", tag("span", label), small, type="button")
    return tag("th", button, class_=look, scope="col")


def svg(width: float, height: float, *parts: Content, label: str, **attributes: Content) -> Markup:
    """Return a drawing of `width` × `height` units that scales with the page; `label` is read out.

    A drawing has parts to be pointed at, so it is a group of pictures, not one picture.
    """
    return tag(
        "svg",
        tag("title", label),
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        role="group",
        aria_label=label,
        **attributes,
    )


def at(value: float) -> str:
    """Return a coordinate, to a tenth of a unit."""
    return f"{value:.1f}".rstrip("0").rstrip(".")
