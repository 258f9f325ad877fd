"""The page: its sections in one file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from vqkit import __version__
from vqkit.data import ImageSet
from vqkit.models.files import write_beside
from vqkit.report import details
from vqkit.report.axes import named
from vqkit.report.counting import RunCounts, count_codes
from vqkit.report.curves import Result, curves_section
from vqkit.report.gallery import gallery_section
from vqkit.report.headline import headline
from vqkit.report.markup import Markup, escaped, joined, tag
from vqkit.report.pictures import MAX_PICTURES, Gallery, make_gallery
from vqkit.report.quality import protocol_list, quality_table, rate_figures
from vqkit.report.rosetta import rosetta_section
from vqkit.report.runs import Run
from vqkit.report.usage import usage_section

TITLE: Final = "Tokenizers compared"
_LEAD_RATE: Final = (
    "Filled marks are the nominal rate, log2 of the number of codes for every token; hollow ones "
    "the zero-order entropy of the codes that the images draw. The dotted line joins the runs that "
    "no other one beats at its rate or below. Upright lines: what the images take without loss."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A page that was written."""

    path: Path
    num_bytes: int
    runs: tuple[Run, ...]
    """With all that they lack."""


def write_report(
    runs: Sequence[Run],
    out: Path | str,
    *,
    images: ImageSet | None = None,
    pictures: ImageSet | None = None,
    num_pictures: int = MAX_PICTURES,
    curves: Sequence[Result] = (),
    title: str = TITLE,
    note: str = "",
    command: str = "",
    now: datetime | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Write one self-contained HTML page about any number of runs.

    Args:
        runs: from `read_run`, with different names (`distinct`).
        out: the file; a former one is replaced whole or not at all.
        images: what codes are counted on; None counts none.
        pictures: what is shown, the first ones; None shows `images`.
        num_pictures: how many at most; fewer if the page would become too large.
        curves: of `vqkit rate-distortion`, from `read_rate_distortion`.
        title: of the page.
        note: a sentence that a reader must not miss, below the title.
        command: what was typed, for the foot of the page.
        now: the time that the page names as its own; default this moment.
        progress: called with a sentence before work that takes a while.

    Raises:
        ValueError: no run, or equal names.
    """
    names = [run.name for run in runs]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"runs={names}: give at least one, all with different names")
    shown = images if pictures is None else pictures
    gallery: Gallery | None = None
    told = list(runs)
    if shown is not None and num_pictures:
        gallery, told = make_gallery(
            told,
            shown,
            limit=num_pictures,
            progress=None if progress is None else lambda name: progress(f"pictures of {name}"),
        )
    counts = {} if images is None else _count(told, images, progress)
    body = _body(told, gallery, counts, curves_section(curves), title=title, note=note)
    content = _page(body, title, _foot(command, now or datetime.now(UTC))).encode()
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_beside(path, content)
    return Report(path=path, num_bytes=len(content), runs=tuple(told))


def _count(
    runs: Sequence[Run], images: ImageSet, progress: Callable[[str], None] | None
) -> dict[str, RunCounts]:
    found = {}
    for run in runs:
        model = run.tokenizer
        if model is None or model.config.network.image_channels != images.channels:
            continue
        if progress is not None:
            progress(f"counting the codes of {run.name}")
        found[run.name] = count_codes(model, images)
    return found


def _body(
    runs: Sequence[Run],
    gallery: Gallery | None,
    counts: Mapping[str, RunCounts],
    curves: Markup | None,
    *,
    title: str,
    note: str,
) -> Markup:
    measured = joined(quality_table(runs), protocol_list(runs))
    figures = joined(tag("p", _LEAD_RATE, class_="note"), _legend(runs), rate_figures(runs))
    training = joined(_legend(runs), details.training_curves(runs))
    sections = [
        ("quality", "Quality and rate", measured),
        ("rate", "Quality over rate", figures),
        ("pictures", "The same pictures", gallery_section(runs, gallery)),
        ("codes", "Use of the codes", usage_section(runs, counts)),
        ("training", "Training", training),
        ("cost", "Cost", details.cost_table(runs)),
        ("settings", "Settings that differ", details.settings_section(runs)),
        ("provenance", "Provenance", details.provenance_section(runs)),
    ]
    if curves is not None:
        sections.insert(2, ("curves", "Beside other codecs", curves))
    translated = rosetta_section(runs)
    if translated is not None:
        sections.insert(1, ("protocols", "Other protocols", translated))
    missing = details.missing_section(runs)
    if missing is not None:
        sections.append(("missing", "What is missing", missing))
    links = [tag("a", heading, href=f"#{name}") for name, heading, _ in sections]
    return joined(
        tag(
            "header",
            tag("p", "vqkit report", class_="kind"),
            tag("h1", title),
            tag("p", note, class_="warning") if note else None,
            headline(runs),
        ),
        tag("nav", *links, aria_label="Sections"),
        tag(
            "main",
            *(tag("section", tag("h2", heading), part, id=n) for n, heading, part in sections),
        ),
    )


def _legend(runs: Sequence[Run]) -> Markup:
    items = [tag("li", named(i, run.name)) for i, run in enumerate(runs)]
    return tag("ul", *items, class_="legend", aria_label="Marks of the runs")


def _foot(command: str, now: datetime) -> Markup:
    typed = joined("; made by ", tag("code", command)) if command else None
    words = f"Written {now:%Y-%m-%d %H:%M} UTC by vqkit {__version__}"
    return tag("footer", tag("p", words, typed, ". The page holds all it shows and loads nothing."))


def _page(body: Markup, title: str, foot: Markup) -> str:
    """Fill the template; the page may run its own script and load nothing at all."""
    folder = files("vqkit.report")
    style, script = ((folder / name).read_text("utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = Template((folder / "page.html").read_text("utf-8"))
    return template.substitute(
        title=escaped(title), style=style, script=script, digest=digest, body=body, foot=foot
    )
