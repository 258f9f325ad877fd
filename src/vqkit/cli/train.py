"""`vqkit train`: a recipe or a file of settings, changed by options, trained into a folder.

Recipes of tokenizers give a `RunConfig`, those of generators a `GeneratorRun`.
"""

from __future__ import annotations

import inspect
import itertools
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

from vqkit.cli.console import say, tell, told_of
from vqkit.cli.options import Options, Values, merged, one_name
from vqkit.cli.runs import remove_run
from vqkit.config import GeneratorRun, RunConfig, from_dict, to_dict
from vqkit.config.core import dataclass_of
from vqkit.recipes import generator_recipe, recipe, recipe_list

Log = list[dict[str, Any]]
Settings = RunConfig | GeneratorRun
Recipe = Callable[..., Settings]


def run(words: Sequence[str]) -> None:
    """Train a tokenizer, or a generator on a token set (`--tokens FOLDER`).

    RECIPE is a name that `--list` shows; without it, `--config` holds all settings. A run in the
    folder is continued where it stands. Another `--quantizer.preset` starts with no arguments.
    """
    name, rest = one_name(words, "recipe", "vqkit train --list shows them")
    function, cls = _recipe(name, rest)
    options = Options("train RECIPE", inspect.getdoc(function) or run.__doc__)
    own = _declare(options, function, cls)
    given = options.parse(rest)
    if given.pop("list"):
        say(recipe_list())
        return
    if name is None and "config" not in given:
        raise ValueError("recipe: none is named; vqkit train --list shows them, or give --config")
    fresh, shown = given.pop("fresh"), given.pop("print_config")
    out = given.pop("out", None)
    config = _resolve(options, function, cls, own, given)
    if shown:
        say(json.dumps(to_dict(config), indent=2))
        return
    folder = Path(out) if out is not None else Path("runs") / config.name
    main = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun, one cares and tells
    if fresh and main:
        remove_run(folder)
    if isinstance(config, RunConfig):
        log = _train_tokenizer(config, folder, main=main)
    else:
        log = _train_generator(config, folder, main=main)
    if main:
        last = log[-1]
        say(f"trained {config.name}, {last['step']:,} steps, loss {last['loss']:.4g} → {folder}")


def _train_tokenizer(config: RunConfig, folder: Path, *, main: bool) -> Log:
    from vqkit.training import run_folder, train, validation

    if main:
        run_folder.check_settings(folder, config, resume=True)
        damage = run_folder.forget_damaged(folder)
        if damage:
            tell(f"{damage}; the tokenizer is written again")
        _tell_progress(folder)
    with told_of(validation.logger):
        return train(config, out=folder).log


def _train_generator(config: GeneratorRun, folder: Path, *, main: bool) -> Log:
    from vqkit.generation import train_generator

    if main:
        _tell_progress(folder)
    return train_generator(config, folder).log


def _tell_progress(folder: Path) -> None:
    """Say from where a run goes on."""
    from vqkit.training import list_checkpoints

    present = list_checkpoints(folder)
    if present:
        tell(f"{folder} holds this run up to {present[-1].name}; it goes on from there")


def _recipe(
    name: str | None, words: Sequence[str]
) -> tuple[Recipe | None, type[RunConfig] | type[GeneratorRun]]:
    """Find the recipe, if one is named, and what kind of settings there are."""
    if name is not None:
        generator = generator_recipe(name)
        return (recipe(name), RunConfig) if generator is None else (generator, GeneratorRun)
    place = dict(itertools.pairwise(words)).get("--config", "")
    place = place or next((w.partition("=")[2] for w in words if w.startswith("--config=")), "")
    path = Path(place).expanduser()
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    generator_file = re.search(r"(^|[{,\s])[\"']?(model|tokens)[\"']?\s*:", text) is not None
    return None, (GeneratorRun if generator_file else RunConfig)


def _declare(
    options: Options, function: Recipe | None, cls: type[RunConfig] | type[GeneratorRun]
) -> list[str]:
    """Add all options and return the names of those that the recipe itself takes."""
    options.add_flag("list", "list the recipes")
    options.add("out", str, "folder of the run; default runs/<name>")
    options.add("config", str, "YAML or JSON file of settings; options given beside it win")
    options.add_flag("print_config", "show the settings, in the form that --config reads")
    options.add_flag("fresh", "delete the run in the folder and train again")
    own = options.add_parameters(function) if function is not None else []
    options.add_fields(cls)
    return own


def _resolve(
    options: Options,
    function: Recipe | None,
    cls: type[RunConfig] | type[GeneratorRun],
    own: list[str],
    given: Values,
) -> Settings:
    """Settings of the recipe, then of the file, then of the command line."""
    path = given.pop("config", None)
    settings = options.read(path) if path is not None else {}
    changes: Values = merged(settings, given)
    arguments: dict[str, Any] = {key: changes.pop(key) for key in own if key in changes}
    base = to_dict(function(**arguments)) if function is not None else {}
    values = merged(base, changes)
    if cls is RunConfig:
        _name_source(values)
    _check_complete(cls, values)
    config: Settings = from_dict(cls, values)
    return config


def _name_source(values: Values) -> None:
    """Read images to validate on as those to train on, unless their source is named."""
    held = (values.get("validation") or {}).get("data")
    if isinstance(held, dict) and held.get("path"):
        source = (values.get("data") or {}).get("source", "folder")
        held.setdefault("source", "folder" if source == "photos" else source)


def _check_complete(cls: type[Any], values: Values, where: str = "") -> None:
    """Raise `ValueError` naming a setting that has no default and no value."""
    for item in fields(cls):
        value = values.get(item.name)
        required = item.default is MISSING and item.default_factory is MISSING
        if required and item.name not in values:
            raise ValueError(f"{where}{item.name}: is missing; give it a value, or name a recipe")
        if isinstance(value, dict):
            name = f"{where}{item.name}."
            inner = dataclass_of(get_type_hints(cls)[item.name], value, name)
            if inner is not None:
                _check_complete(inner, value, name)
