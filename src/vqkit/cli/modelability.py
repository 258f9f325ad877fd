"""`vqkit modelability`: bits per image of one fixed small GPT, for several tokenizers' tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vqkit.cli.console import plain_warnings, say, tell
from vqkit.cli.options import Options, Values, split_names

if TYPE_CHECKING:
    from vqkit.generation.modelability import Modelability
    from vqkit.tokens import TokenSet

_QUALITIES: Final = {"psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 4)}


def run(words: Sequence[str]) -> None:
    """Train one small GPT on each of several token sets with equal compute; compare their bits.

    TOKENS are token sets of one tokenizer each, --held_out those of other images, in the same
    order. Equal for all are the architecture, the optimizer, the images of a step and the training
    compute; steps follow. With --runs (same order) the numbers of `vqkit evaluate` stand beside. A
    GPT in the folder that is finished is not trained again.
    """
    names, rest = split_names(words)
    options = Options("modelability TOKENS [TOKENS ...]", run.__doc__)
    options.add("held_out", str, "token sets of other images, one for each of TOKENS", count="+")
    options.add("runs", str, "runs of the tokenizers, with evaluation.json", count="+")
    options.add("out", str, "folder of the GPTs and of the table; default runs/modelability")
    options.add("compute", float, "floating-point operations of each training; default 1e13")
    options.add("batch_size", int, "images of a step; default 64")
    options.add("seed", int, "default 0")
    given = options.parse(rest)
    held_out = _same_number(names, given, "held_out")
    runs = _same_number(names, given, "runs") if "runs" in given else []
    labels = _labels(names)
    from vqkit.generation.modelability import BATCH, COMPUTE, modelability, steps_for
    from vqkit.models.files import write_beside
    from vqkit.tokens import TokenSet

    out = Path(given.get("out", "runs/modelability")).expanduser()
    keep = {key: given[key] for key in ("compute", "batch_size", "seed") if key in given}
    sets = [TokenSet.open(name) for name in names]
    for tokens in sets:  # before anything is computed
        steps_for(tokens, given.get("compute", COMPUTE), given.get("batch_size", BATCH))
    qualities = [_evaluation(*of) for of in zip(runs, names, sets, strict=True)] if runs else []
    found = []
    for name, label, other in zip(names, labels, held_out, strict=True):
        tell(f"{label}: training on {name}")
        with plain_warnings():
            one = modelability(name, other, out / label, name=label, measuring=_tell, **keep)
        found.append(one)
    if len({one.num_images for one in found}) > 1:
        raise ValueError("held_out: sets of different numbers of images do not compare")
    table = _table(found, qualities)
    write_beside(out / "modelability.md", (table + "\n").encode())
    everything = [one.to_dict() for one in found]
    write_beside(out / "modelability.json", (json.dumps(everything, indent=2) + "\n").encode())
    say(table)
    say(f"wrote {out / 'modelability.md'}, {out / 'modelability.json'}")


def _tell(name: str) -> None:
    tell(f"{name}: measuring")


def _same_number(names: Sequence[str], given: Values, option: str) -> list[str]:
    found: list[str] = given.get(option, [])
    if not names:
        raise ValueError("tokens: none are named; give the folders of token sets")
    if len(found) != len(names):
        raise ValueError(
            f"{option}: {len(found)} are named for {len(names)} token sets; give one for each, in "
            "the same order"
        )
    return found


def _labels(names: Sequence[str]) -> list[str]:
    """Return a name for each set: the last part of its path that tells them apart."""
    paths = [Path(name) for name in names]
    for part in (lambda path: path.name, lambda path: path.parent.name):
        found = [part(path) for path in paths]
        if len(set(found)) == len(found) and all(found):
            return found
    return [str(path).strip("/").replace("/", "_") for path in paths]


def _evaluation(folder: str, name: str, tokens: TokenSet) -> dict[str, float | None]:
    """Return the numbers of an evaluation that is at hand; none if there is no such file.

    One of another tokenizer than that of the token set is a `ValueError`.
    """
    path = Path(folder).expanduser() / "evaluation.json"
    if not path.is_file():
        tell(f"{path}: is not there; vqkit evaluate {folder} would write it")
        return {}
    from vqkit.evaluation import Evaluation

    found = Evaluation.load(path)
    if found.tokenizer.get("hash", tokens.tokenizer) != tokens.tokenizer:  # old files have none
        raise ValueError(
            f"runs={folder}: its evaluation.json is of other weights than those whose tokens are "
            f"in {name}; name runs in the order of the token sets, or evaluate and tokenize again"
        )
    return {metric.name: metric.value for metric in found.metrics}


def _table(found: Sequence[Modelability], qualities: Sequence[dict[str, float | None]]) -> str:
    """Return a Markdown table with what was held equal below it."""
    from vqkit.evaluation.tables import MISSING, markdown

    header = ["tokens", "bits/image", "bits/pixel", "nominal", "entropy", "tokens/image", "steps"]
    header += [label for label, _ in _QUALITIES.values()] if qualities else []
    rows = []
    for number, one in enumerate(found):
        row = [
            one.name,
            f"{one.bits_per_image:.1f}",
            f"{one.bits_per_pixel:.4f}",
            f"{one.nominal_bits_per_pixel:.4f}",
            f"{one.entropy_bits / one.pixels:.4f}",
            f"{one.num_tokens:,}",
            f"{one.steps:,}",
        ]
        for name, (_, digits) in _QUALITIES.items() if qualities else ():
            value = qualities[number].get(name)
            row.append(MISSING if value is None else f"{value:.{digits}f}")
        rows.append(row)
    first = found[0]
    notes = [
        f"Held-out bits of one GPT (4 layers, width 96; one depth layer where a position has "
        f"several tokens; no classes) on {first.num_images:,} images; nominal and entropy (zero "
        "order, every slot on its own) are bits per pixel of the same tokens.",
        f"Equal for all: that architecture, optimizer, {first.batch_size} images a step, "
        f"{first.compute:.3g} floating-point operations of training (to the last whole step), seed "
        f"{first.seed}. Steps follow from the compute.",
    ]
    return "\n".join([markdown(header, rows), "", *notes])
