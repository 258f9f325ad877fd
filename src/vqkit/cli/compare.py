"""`vqkit compare`: several runs, trained or loaded, in one table, one picture and one page."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqkit.cli.console import say, tell
from vqkit.cli.options import Options, split_names
from vqkit.cli.report import write_comparison_report
from vqkit.cli.runs import kind_of, load, place_of, test_images, train_all
from vqkit.config import DataConfig, RunConfig
from vqkit.recipes import recipe

if TYPE_CHECKING:
    from vqkit.evaluation.comparison import Contestant

NO_BENCHMARK = (
    "This is a picture of the idea and no benchmark: so few steps on so few pictures rank nothing."
)
_RECIPE_OPTIONS = {"num_steps": "steps", "batch_size": "batch_size", "path": "path"}


def run(words: Sequence[str]) -> None:
    """Set several runs side by side: a table, a picture with the originals, and a page with all.

    A NAME is the folder of a finished run, of a tokenizer, or a recipe, which is trained into
    `<out>/<recipe>` (once: what is finished there is loaded). All are measured on the same
    images: by default those that the first run names for it.
    """
    names, rest = split_names(words)
    options = Options("compare NAME NAME ... --out DIR", run.__doc__)
    options.add(
        "out",
        str,
        "folder for table.md, table.json, comparison.png, report.html; default runs/compare",
    )
    options.add("steps", int, "optimizer steps of the recipes; default their own")
    options.add("batch_size", int, "images per step of the recipes; default their own")
    options.add("path", str, "folder of images that the recipes train on; default their own")
    options.add_flag("fresh", "delete the runs of recipes in the folder and train them again")
    options.add_fields(DataConfig, "data.")
    given = options.parse(rest)
    if len(names) < 2:
        raise ValueError(f"names={names}: give at least two runs or recipes to compare")
    out = Path(given.get("out", "runs/compare"))
    arguments = {key: given[word] for key, word in _RECIPE_OPTIONS.items() if word in given}
    configs = {
        name: recipe(name)(**arguments)
        for name in dict.fromkeys(names)
        if kind_of(name) == "" and not Path(name).expanduser().exists()
    }
    if arguments and not configs:
        raise ValueError(f"{', '.join(arguments)}: only recipes are trained, and none is named")
    command = shlex.join(["vqkit", "compare", *words])
    data = given.get("data", {})
    compare_runs(names, configs, out, data=data, fresh=given["fresh"], command=command)


def compare_runs(
    names: Sequence[str],
    configs: dict[str, RunConfig],
    out: Path,
    *,
    data: dict[str, Any],
    fresh: bool = False,
    note: str = "",
    command: str = "",
) -> None:
    """Train `configs`, load the other names, write and print the comparison."""
    from vqkit.data import load_images
    from vqkit.evaluation.comparison import compare

    others = {name: load(name) for name in names if name not in configs}
    known = [config for _, config in others.values()] + list(configs.values())
    held_out = _common_images(known, data)
    images = load_images(held_out)  # before hours of training
    folders = train_all(list(configs.values()), out, fresh=fresh)
    trained = {name: load(str(folder)) for name, folder in zip(configs, folders, strict=True)}
    called = list(dict.fromkeys(names))
    loaded = _distinct([(others | trained)[name][0] for name in called], called)
    where = place_of(held_out)
    tell(f"measuring {len(loaded)} tokenizers on {len(images):,} images of {where}")
    result = compare(loaded, images, out, note=note)
    say(result.table)
    say(f"\ntable:   {result.table_path}\npicture: {result.picture_path}")
    paths = dict(zip(configs, map(str, folders), strict=True))
    page = write_comparison_report(
        loaded,
        [paths.get(name, name) for name in called],
        result.evaluations,
        images,
        out / "report.html",
        command=command,
        note=note,
    )
    say(f"report:  {page}")


def _common_images(configs: Sequence[RunConfig | None], changes: dict[str, Any]) -> DataConfig:
    """The images of the first run that names some; runs that name others need a decision."""
    first = next((c for c in configs if c is not None and c.test_data is not None), None)
    data = test_images(first, changes)
    if not changes and any(c is not None and c.test_data != data for c in configs):
        raise ValueError(
            "data: the runs name different images to be measured on; choose with --data.source "
            "and --data.path"
        )
    return data


def _distinct(loaded: Sequence[Contestant], names: Sequence[str]) -> list[Contestant]:
    """Runs of one name are told apart by what they were called on the command line."""
    often = Counter(one.name for one in loaded)
    return [
        one if often[one.name] == 1 else replace(one, name=name)
        for one, name in zip(loaded, names, strict=True)
    ]
