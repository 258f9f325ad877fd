"""`vqkit generate`: images of a trained generator, one grid picture, and where each comes from."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqkit.cli.analyze_parts import progress_of
from vqkit.cli.compress import on_device
from vqkit.cli.console import plain_warnings, say, tell
from vqkit.cli.options import Options, Values, one_name
from vqkit.cli.runs import load

if TYPE_CHECKING:
    from vqkit.generation import Generator


def run(words: Sequence[str]) -> None:
    """Draw images from a generator that `vqkit train --tokens` has made.

    RUN is its folder. Images lie in `images/` of the output folder, with classes in a folder for
    each; `grid.png` shows the first of every class in a row, `provenance.jsonl` says of each image
    which generator, tokenizer, seed, sample number, class and settings it came from. Images that
    are there already with the same settings are kept: the same command goes on after a stop, and
    with a larger --count adds to them.
    """
    name, rest = one_name(words, "generator", "draw from one at a time")
    given, sampling = _parse(name, rest)
    if name is None:
        raise ValueError("run: none is named; give the folder of a run of vqkit train --tokens")
    if "tokenizer" not in given:
        raise ValueError("tokenizer: none is named; give --tokenizer and the one of these tokens")
    from vqkit.generation import load_generator
    from vqkit.generation.generator import generator_folder
    from vqkit.generation.images import draw_images
    from vqkit.generation.provenance import generator_hash

    folder = Path(name).expanduser()
    tokenizer = on_device(load(given["tokenizer"])[0].tokenizer, given.get("device"))
    generator = load_generator(folder).to(next(tokenizer.parameters()).device)
    seed = given.get("seed", 0)
    out = Path(given.get("out", folder / f"samples-{seed}")).expanduser()
    count = given.get("count", 8)
    classes = _numbers(given["classes"], generator) if "classes" in given else None
    groups = len(classes) if classes is not None else max(generator.num_classes, 1)
    tell(f"drawing {groups * count:,} images from {folder} into {out}")
    with plain_warnings():
        drawn = draw_images(
            generator,
            tokenizer,
            out,
            origin=generator_hash(generator_folder(folder)),
            classes=classes,
            count=count,
            seed=seed,
            sampling=sampling,
            columns=given.get("columns", 8),
            keep=given["ids"],
            progress=progress_of("generate"),
        )
    say(f"drew {drawn.made:,} images, {drawn.kept:,} were there → {out}, {drawn.grid.name}")


def _parse(name: str | None, words: Sequence[str]) -> tuple[Values, Any]:
    """Return the options, and the settings of sampling that fit the kind of generator."""
    kinds = _sampling_kinds(name)
    options = Options("generate RUN", run.__doc__)
    options.add("tokenizer", str, "run or tokenizer whose tokens these are: a folder, or a hub id")
    options.add("classes", str, "names or numbers of classes; default all", count="+")
    options.add("count", int, "images of each class, or in all without classes; default 8")
    options.add("seed", int, "default 0")
    options.add("out", str, "folder; default samples-SEED in the run")
    options.add("columns", int, "images of each row of the grid picture; default 8")
    options.add_flag("ids", "also write the ids as a token set, in tokens/ of the folder")
    options.add("device", str, "cpu, or cuda for a GPU; default the GPU if there is one")
    for kind in kinds:
        options.add_fields(kind)
    given = options.parse(words)
    known = {field.name for field in fields(kinds[0])}
    return given, kinds[0](**{key: value for key, value in given.items() if key in known})


def _sampling_kinds(name: str | None) -> list[type[Any]]:
    """Return the settings of sampling of a generator; of all kinds where none is named."""
    from vqkit.config.diffusion import DiffusionSampling
    from vqkit.config.generation import GPTSampling

    if name is None:
        return [GPTSampling, DiffusionSampling]
    from vqkit.generation.generator import generator_folder, read_generator

    settings, _ = read_generator(generator_folder(Path(name).expanduser()))
    return [GPTSampling if settings["generator"] == "gpt" else DiffusionSampling]


def _numbers(words: Sequence[str], generator: Generator) -> list[int]:
    """Return the numbers of classes given by name, by one of a name's synonyms, or by number."""
    known: dict[str, int] = {}
    for number in range(generator.num_classes):
        known[str(number)] = number
    for number, name in enumerate(generator.label_names):
        for synonym in name.split(","):  # "goldfish, Carassius auratus"
            known.setdefault(_plain(synonym), number)
    for number, name in enumerate(generator.label_names):
        known[_plain(name)] = number  # whole names win
    found = []
    for word in words:
        if _plain(word) not in known:
            near = difflib.get_close_matches(_plain(word), known, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "give names, or numbers from 0"
            raise ValueError(f"classes={word!r}: unknown to this generator; {hint}")
        found.append(known[_plain(word)])
    return found


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()
