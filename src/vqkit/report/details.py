"""Cost, training curves, settings that differ, where the numbers come from, and what is missing."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from vqkit.report.axes import breakable, named
from vqkit.report.markup import Content, Markup, heading, joined, tag
from vqkit.report.plots import Curve, curves
from vqkit.report.runs import Run

ABSENT: Final = "–"
Facts = dict[str, str]


# ------------------------------------------------------------------ cost


def cost_table(runs: Sequence[Run]) -> Markup:
    """Draw the sortable table of parameters, storage, time and memory."""
    columns: list[tuple[str, str, Callable[[Run], float | None], int]] = [
        ("encoder", "parameters", lambda run: _of_model(run, "encoder_parameters"), 0),
        ("decoder", "parameters", lambda run: _of_model(run, "decoder_parameters"), 0),
        ("quantizer", "parameters", lambda run: _of_model(run, "quantizer_parameters"), 0),
        ("codebook", "floats", lambda run: _of_model(run, "codebook_floats"), 0),
        ("encode + decode", "ms an image", _milliseconds, 1),
        ("training", "minutes", _minutes, 1),
        ("steps", "", lambda run: run.log[-1]["step"] if run.log else None, 0),
        ("training pace", "images/s", _pace, 1),
        ("memory", "MiB, most logged", _memory, 0),
    ]
    heads = [heading("run", "", "text")]
    heads += [heading(label, unit, "number") for label, unit, _, _ in columns]
    heads.append(heading("on", "", "text"))
    rows = [
        tag(
            "tr",
            tag("th", named(i, run.name), scope="row", data_v=run.name),
            *(_number(read(run), digits) for _, _, read, digits in columns),
            tag("td", device := _device(run), class_="text", data_v=device),
        )
        for i, run in enumerate(runs)
    ]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows), class_="sortable")
    return _scrolling(table, "Cost of every run")


def _number(value: float | None, digits: int) -> Markup:
    if value is None:
        return tag("td", ABSENT, class_="none", title="not known")
    return tag("td", f"{value:,.{digits}f}", data_v=repr(value))


def _of_model(run: Run, name: str) -> float | None:
    if run.evaluation is not None:
        return run.evaluation.tokenizer.get(name)
    if run.tokenizer is not None:
        side = run.tokenizer.stride * 8  # none of these numbers depends on the size
        value: float | None = run.tokenizer.describe((side, side)).to_dict().get(name)
        return value
    return None


def _milliseconds(run: Run) -> float | None:
    found = run.evaluation
    return None if found is None else 1000 * found.tokenizer_seconds / found.num_images


def _minutes(run: Run) -> float | None:
    seconds = (run.result or (run.log[-1] if run.log else {})).get("seconds")
    return None if seconds is None else seconds / 60


def _pace(run: Run) -> float | None:
    found = sorted(line["images_per_second"] for line in run.log if line.get("images_per_second"))
    return found[len(found) // 2] if found else None


def _memory(run: Run) -> float | None:
    found = [line["memory_bytes"] for line in run.log if line.get("memory_bytes")]
    return max(found) / 2**20 if found else None


def _device(run: Run) -> str:
    hardware = _machine(run).get("hardware", {})
    device = hardware.get("device")
    if device is None:
        return ABSENT
    threads = hardware.get("threads")
    if device != "cpu":
        return str(device)
    return f"{hardware.get('processor', 'CPU')}, {threads} thread{'' if threads == 1 else 's'}"


def _machine(run: Run) -> dict[str, Any]:
    """Where the training ran, or else the evaluation."""
    if run.result is not None:
        return run.result
    return {} if run.evaluation is None else run.evaluation.machine


# ------------------------------------------------------------------ training curves


def training_curves(runs: Sequence[Run]) -> Markup:
    """Draw what the logs say: loss, quality on training and validation images, codes used."""
    charts: list[tuple[str, Callable[[dict[str, Any]], float | None]]] = [
        ("loss", lambda line: line.get("loss")),
        ("PSNR of training batches, dB", _psnr_of_batch),
        ("codes used, %", lambda line: _percent(line.get("codes_used"))),
        ("perplexity", lambda line: line.get("perplexity")),
        ("PSNR of validation, dB", lambda line: line.get("validation/psnr")),
        ("LPIPS of validation", lambda line: line.get("validation/lpips")),
    ]
    figures = []
    for title, read in charts:
        lines = [
            Curve(number=i, name=run.name, points=points)
            for i, run in enumerate(runs)
            if (points := _points(run, read))
        ]
        if lines:
            log = None if title in ("loss", "perplexity") else False
            drawn = curves(lines, title=title, x_label="optimizer step", log=log)
            figures.append(tag("figure", drawn, class_="small"))
    if not figures:
        return tag("p", "No run has a log, so there are no curves.", class_="none")
    return tag("div", *figures, class_="figures")


def _points(run: Run, read: Callable[[dict[str, Any]], float | None]) -> list[tuple[float, float]]:
    found = ((line["step"], read(line)) for line in run.log)
    return [(step, value) for step, value in found if value is not None]


def _psnr_of_batch(line: dict[str, Any]) -> float | None:
    """From the mean squared error on [-1, 1], whose range is 2."""
    mse = line.get("mse")
    return 10 * math.log10(4 / mse) if mse else None


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


# ------------------------------------------------------------------ settings and provenance


def settings_section(runs: Sequence[Run]) -> Markup:
    """Set the settings side by side that are not the same in all runs."""
    known = [(i, run) for i, run in enumerate(runs) if run.settings is not None]
    if not known:
        return tag("p", "No run has its settings (config.json).", class_="none")
    facts = {i: flat(run.settings) for i, run in known}
    for found in facts.values():
        found.pop("name", None)
    without = [run.name for run in runs if run.settings is None]
    note = tag("p", f"Without settings: {', '.join(without)}.", class_="note") if without else None
    return joined(note, _side_by_side(runs, facts, "settings"))


def provenance_section(runs: Sequence[Run]) -> Markup:
    """Say of every run where it came from: files, versions, hardware, data, commands."""
    facts = _side_by_side(runs, {i: _provenance(run) for i, run in enumerate(runs)}, "facts")
    repeated = [
        tag("li", named(i, run.name), *(tag("code", command) for command in _commands(run)))
        for i, run in enumerate(runs)
        if _commands(run)
    ]
    if not repeated:
        return facts
    return joined(facts, tag("h3", "To repeat it"), tag("ul", *repeated, class_="commands"))


def flat(values: Any, where: str = "") -> Facts:
    """Return nested settings as dotted names and JSON values."""
    if not isinstance(values, dict) or not values:
        return {where: json.dumps(values, ensure_ascii=False)}
    found: Facts = {}
    for name, value in values.items():
        found |= flat(value, f"{where}.{name}" if where else str(name))
    return found


def _side_by_side(runs: Sequence[Run], facts: Mapping[int, Facts], what: str) -> Markup:
    """Draw a table of the facts that differ, and a list of the others to be opened."""
    names = list(dict.fromkeys(name for found in facts.values() for name in found))
    same = [n for n in names if len({found.get(n) for found in facts.values()}) == 1]
    differ = [name for name in names if name not in same]
    parts: list[Content] = []
    if differ:
        heads = [tag("th", named(i, runs[i].name), scope="col") for i in facts]
        rows = [
            tag(
                "tr",
                tag("th", breakable(name), scope="row"),
                *(tag("td", breakable(found.get(name, ABSENT))) for found in facts.values()),
            )
            for name in differ
        ]
        table = tag(
            "table",
            tag("thead", tag("tr", tag("td"), *heads)),
            tag("tbody", *rows),
            class_="facts",
        )
        parts.append(_scrolling(table, f"{what} that differ".capitalize()))
    elif len(facts) > 1:
        parts.append(tag("p", f"All {what} are the same.", class_="note"))
    if same:
        first = next(iter(facts.values()))
        words = f"{len(same)} {what}" + (" that are the same in all runs" if len(facts) > 1 else "")
        listed = [joined(tag("dt", breakable(name)), tag("dd", first[name])) for name in same]
        opened = "" if not differ and len(same) < 40 else None
        parts.append(
            tag("details", tag("summary", words), tag("dl", *listed, class_="same"), open=opened)
        )
    return joined(*parts)


def _provenance(run: Run) -> Facts:
    machine, result, found = _machine(run), run.result or {}, run.evaluation
    hardware, versions = machine.get("hardware", {}), machine.get("versions", {})
    data = result.get("data", {})
    seed = None if run.settings is None else run.settings.get("seed")
    facts: dict[str, Any] = {
        "place": run.place,
        "last written (date of the file)": run.written and f"{run.written:%Y-%m-%d %H:%M} UTC",
        "started": result.get("started"),
        "ended": result.get("ended"),
        "steps": result.get("steps"),
        "seed": seed,
        "git revision": machine.get("git_revision") or (machine and "not recorded"),
        **{
            name: versions.get(name) for name in ("vqkit", "python", "torch", "numpy", "accelerate")
        },
        **{name.replace("_", " "): value for name, value in hardware.items()},
        "training images": data.get("images"),
        "fingerprint of training images": data.get("fingerprint"),
        "fingerprint of measured images": found and found.protocol.reference,
        "protocol": found and found.protocol.id,
        "measured on": found and found.machine.get("hardware", {}).get("device"),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "", {})}


def _commands(run: Run) -> list[str]:
    """What trains and measures a run again, as it was typed where that is recorded.

    Nothing for what is no training.
    """
    if run.settings is None or not run.place:
        return []
    settings = str(Path(run.place) / "config.json")
    again = ["vqkit", "train", "--config", settings, "--out", "runs/again"]
    plain = ["vqkit", "evaluate", run.place]
    facts = (run.result or {}, *(one.machine for one in run.evaluations))
    typed = [found.get("command") for found in facts]
    trained, *measured = (words if isinstance(words, list) else None for words in typed)
    commands = [trained, again, *(words or plain for words in measured or [None])]
    return list(dict.fromkeys(shlex.join(map(str, words)) for words in commands if words))


def missing_section(runs: Sequence[Run]) -> Markup | None:
    """List what could not be shown; None if all runs are complete."""
    items = [
        tag("li", tag("b", run.name), f": {sentence}") for run in runs for sentence in run.missing
    ]
    return tag("ul", *items, class_="missing") if items else None


def _scrolling(table: Markup, label: str) -> Markup:
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)
