"""`vqkit codebook transfer`: the codes of one data set on features of another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vqkit.cli.codebook_cluster import required
from vqkit.cli.console import say
from vqkit.cli.launch import resumable
from vqkit.cli.options import Options, Values, split_names

if TYPE_CHECKING:
    from vqkit.codebooks import CodebookFile, Transfer


def run(words: Sequence[str]) -> None:
    """Measure how well codes serve features: distance, usage, perplexity, with the ceiling.

    NAME is a codebook file, or the folder of a tokenizer or run; FEATURES are those of the other
    data set, from the same encoder. With --iterations the codes are adapted to them and written;
    with --out alone the codes of a tokenizer become a codebook file.
    """
    names, rest = split_names(words)
    options = Options("codebook transfer NAME FEATURES [FEATURES ...]", run.__doc__)
    options.add("iterations", int, "adapt the codes: Lloyd iterations that begin with them")
    options.add("out", str, "codebook file for the adapted codes, or for those of a tokenizer")
    options.add("book", int, "which codebook of a tokenizer that has several, from 0")
    options.add("device", str, "cpu, or cuda for a GPU; default cpu")
    options.add_flag("json", "write JSON instead")
    options.add_flag("overwrite", "replace another codebook")
    given = options.parse(rest)
    if len(names) < 2:
        raise ValueError(
            f"names={names}: give a codebook (file, tokenizer or run) and features to try it on"
        )
    from vqkit.codebooks import open_codes

    book, features = open_codes(names[0], given.get("book")), [Path(name) for name in names[1:]]
    found, written = (_adapted if "iterations" in given else _measured)(book, features, given)
    if given["json"]:
        say(json.dumps({name: one.to_dict() for name, one in found.items()}, indent=2))
        return
    for name, one in found.items():
        say(f"{name}\n{one.text()}\n" if len(found) > 1 else one.text())
    if written:
        say(written)


def _measured(
    book: CodebookFile, features: list[Path], given: Values
) -> tuple[dict[str, Transfer], str]:
    """Return the measurement, and what was written."""
    from vqkit.codebooks import measure_transfer
    from vqkit.codebooks.outputs import already_made, keep

    if "out" in given and book.provenance["method"] != "tokenizer":
        raise ValueError("out: the codes stay as they are; give --iterations to adapt them")
    if "out" in given:  # refuse before the work
        already_made(required(given["out"]), book.provenance, overwrite=given["overwrite"])
    found = {"transfer": measure_transfer(book, features, device=given.get("device"))}
    if "out" not in given:
        return found, ""
    out = required(given["out"])
    keep(out, book.provenance, lambda state: book, overwrite=given["overwrite"])
    return found, f"wrote {book.num_codes:,} codes of {book.dim:,} numbers → {out}"


def _adapted(
    book: CodebookFile, features: list[Path], given: Values
) -> tuple[dict[str, Transfer], str]:
    """Return the measurements before and after, and what was written."""
    from vqkit.codebooks import Transfer, adapt
    from vqkit.codebooks.outputs import keep
    from vqkit.codebooks.transfer import plan_adapt

    out, iterations = required(given.get("out")), given["iterations"]

    def make(state: Path) -> CodebookFile:
        return adapt(book, features, iterations, state=state, device=given.get("device"))

    plan = plan_adapt(book, features, iterations)
    with resumable():
        adapted, made = keep(out, plan, make, overwrite=given["overwrite"])
    report = adapted.provenance["report"]
    found = {name: Transfer.from_dict(report[name]) for name in ("before", "after")}
    verb = "wrote" if made else "is there already:"
    return found, f"{verb} {adapted.num_codes:,} codes of {adapted.dim:,} numbers → {out}"
