"""`vqkit classify train` and `vqkit classify evaluate`: classes read from token maps."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vqkit.cli.console import say, tell
from vqkit.cli.launch import own_device, processes
from vqkit.cli.options import Options, Values, merged, one_name, split_names
from vqkit.cli.runs import remove_run
from vqkit.config import from_dict, require, to_dict
from vqkit.config.classification import ClassifierRun
from vqkit.recipes.classification import classifier_list, classifier_recipe


def train(words: Sequence[str]) -> None:
    """Train a classifier of token maps.

    RECIPE is a name that `--list` shows; without it, `--config` holds all settings. --tokens names
    the token set and --tokenizer the tokenizer that made it, whose codes are looked up. A run in
    the folder is continued where it stands.
    """
    name, rest = one_name(words, "recipe", "vqkit classify train --list shows them")
    function = classifier_recipe(name) if name is not None else None
    options = Options("classify train RECIPE", inspect.getdoc(function) or train.__doc__)
    options.add_flag("list", "list the recipes")
    options.add("out", str, "folder of the run; default runs/<name>")
    options.add("config", str, "YAML or JSON file of settings; options given beside it win")
    options.add_flag("print_config", "show the settings, in the form that --config reads")
    options.add_flag("fresh", "delete the run in the folder and train again")
    own = options.add_parameters(function) if function is not None else []
    options.add_fields(ClassifierRun)
    given = options.parse(rest)
    if given.pop("list"):
        say(classifier_list())
        return
    if name is None and "config" not in given:
        raise ValueError(
            "recipe: none is named; vqkit classify train --list shows them, or give --config"
        )
    fresh, shown, out = given.pop("fresh"), given.pop("print_config"), given.pop("out", None)
    run = _resolve(options, function, own, given)
    if shown:
        say(json.dumps(to_dict(run), indent=2))
        return
    _train(run, Path(out if out is not None else f"runs/{run.name}").expanduser(), fresh=fresh)


def _train(run: ClassifierRun, folder: Path, *, fresh: bool) -> None:
    main = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun, one cares and tells
    if fresh and main:
        remove_run(folder)
    from vqkit.classification import train_classifier
    from vqkit.training import list_checkpoints

    present = list_checkpoints(folder)
    if present and main:
        tell(f"{folder} holds this run up to {present[-1].name}; it goes on from there")
    last = train_classifier(run, folder).log[-1]
    if main:
        share = last.get("validation/top1")
        read = "" if share is None else f", top-1 {100 * share:.2f} % of held-out images"
        steps = f"{last['step']:,} steps, loss {last['loss']:.4g}"
        say(f"trained {run.name}, {steps}{read} → {folder}")


def _resolve(
    options: Options,
    function: Callable[..., ClassifierRun] | None,
    own: list[str],
    given: Values,
) -> ClassifierRun:
    """Settings of the recipe, then of the file, then of the command line."""
    path = given.pop("config", None)
    changes: Values = merged(options.read(path) if path is not None else {}, given)
    arguments: dict[str, Any] = {key: changes.pop(key) for key in own if key in changes}
    base = to_dict(function(**arguments)) if function is not None else {}
    values = merged(base, changes)
    for needed in ("name", "optim"):
        require(needed in values, needed, "is missing; give it a value, or name a recipe")
    run: ClassifierRun = from_dict(ClassifierRun, values)
    return run


def evaluate(words: Sequence[str]) -> None:
    """Measure trained classifiers on token sets that they were not trained on: top-1 and top-5.

    RUN is the folder of a run of `vqkit classify train`; several make one table, with the bits per
    pixel of their tokens. --tokens names one token set for each run, in their order (default: what
    the run held out). The processes of torchrun share the images of each.
    """
    names, rest = split_names(words)
    options = Options("classify evaluate RUN ...", evaluate.__doc__)
    options.add("tokens", str, "folders of token sets, one for each run", count="+")
    options.add("tokenizer", str, "their tokenizers, if they moved; one for each run", count="+")
    options.add("json", str, "file for the numbers")
    options.add("device", str, "cpu, or cuda for a GPU; default the GPU if there is one")
    given = options.parse(rest)
    require(bool(names), "run", "none is named; give folders of vqkit classify train")
    for key in ("tokens", "tokenizer"):
        count = len(given.get(key, names))
        require(count == len(names), f"--{key}", f"names {count} folders for {len(names)} runs")
    from vqkit.classification import evaluate_run, held_out_of, table
    from vqkit.models.files import write_beside
    from vqkit.tokens import TokenSet

    device, rows = own_device(given.get("device")), []
    with processes() as first:
        for number, name in enumerate(names):
            place = given["tokens"][number] if "tokens" in given else held_out_of(name)
            tokenizer = given["tokenizer"][number] if "tokenizer" in given else None
            tokens = TokenSet.open(place)
            if first:
                tell(f"measuring {name} on {tokens.num_images:,} images of {place}")
            rows.append(evaluate_run(name, tokens, tokenizer=tokenizer, device=device))
    if not first:
        return
    say(table(rows))
    if "json" in given:
        values = [row.values() for row in rows]
        path = write_beside(Path(given["json"]), (json.dumps(values, indent=2) + "\n").encode())
        say(f"wrote {path}")
