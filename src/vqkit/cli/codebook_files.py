"""`vqkit codebook describe`, `merge` and `subset`: codebook files, looked at and rearranged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vqkit.cli.codebook_cluster import add_kmeans_options, facts, required
from vqkit.cli.console import say
from vqkit.cli.launch import resumable
from vqkit.cli.options import Options, Values, one_name, split_names

if TYPE_CHECKING:
    from torch import Tensor

    from vqkit.codebooks import CodebookFile


def describe(words: Sequence[str]) -> None:
    """Tell what a codebook is made of and how its codes lie. Writes nothing.

    NAME is a codebook file, or the folder of a tokenizer or run, whose codes are then meant.
    """
    name, rest = one_name(words, "codebook", "describe one after another")
    options = Options("codebook describe NAME", describe.__doc__)
    options.add_flag("json", "write JSON instead")
    options.add("book", int, "which codebook of a tokenizer that has several, from 0")
    given = options.parse(rest)
    from vqkit.codebooks import describe_codes, open_codes

    found = describe_codes(open_codes(_named(name), given.get("book")))
    say(json.dumps(found.to_dict(), indent=2) if given["json"] else found.text())


def merge(words: Sequence[str]) -> None:
    """Join codebook files of the same kind of features into one.

    With --num_codes all codes are clustered once more, down to so many. The options behind it are
    those of k-means.
    """
    names, rest = split_names(words)
    options = Options("codebook merge FILE [FILE ...] --out FILE", merge.__doc__)
    options.add("out", str, "codebook file to write")
    options.add_flag("remove_equal", "keep only the first of equal codes")
    options.add("num_codes", int, "cluster the codes down to so many; default all")
    add_kmeans_options(options)
    options.add_flag("overwrite", "replace another codebook")
    given = options.parse(rest)
    from vqkit.codebooks import edit, read_codebook
    from vqkit.codebooks.outputs import keep

    if not names:
        raise ValueError("codebooks: none are named; give the files to merge")
    out, overwrite = required(given.pop("out", None)), given.pop("overwrite")
    books = [read_codebook(name) for name in names]
    num_codes, remove_equal = given.pop("num_codes", None), given.pop("remove_equal")
    plan = edit.plan_merge(books, num_codes, remove_equal=remove_equal, settings=given)
    make = partial(edit.merge, books, num_codes, remove_equal=remove_equal, **given)
    with resumable():
        book, made = keep(out, plan, lambda state: make(state=state), overwrite=overwrite)
    removed = book.provenance["report"].get("removed")
    equal = "" if removed is None else f", {removed:,} equal ones removed"
    say(f"{_wrote(made)} {facts(book)}{equal} → {out}")


def subset(words: Sequence[str]) -> None:
    """Take some codes of a codebook: give one of --random, --most_used, --ids and --groups."""
    name, rest = one_name(words, "codebook", "merge several first")
    options = Options("codebook subset FILE --out FILE", subset.__doc__)
    options.add("out", str, "codebook file to write")
    options.add("random", int, "so many, drawn at random")
    options.add("seed", int, "of --random; default 0")
    options.add("most_used", int, "so many, those used most")
    options.add("usage", str, "for --most_used: uses of every code, .npy, .json or one a line")
    options.add("ids", str, "numbers with commas, or a file of them; their order is kept")
    options.add("groups", str, "FIRST:LAST+1, the codes of these classes, counted from 0")
    options.add_flag("overwrite", "replace another codebook")
    given = options.parse(rest)
    from vqkit.codebooks import edit, read_codebook
    from vqkit.codebooks.outputs import keep

    out, overwrite = required(given.pop("out", None)), given.pop("overwrite")
    source = read_codebook(_named(name))
    book = edit.subset(source, *_choice(source, given))
    plan = {**book.provenance, "dtype": source.provenance["dtype"]}
    book, made = keep(out, plan, lambda state: book, overwrite=overwrite)
    say(f"{_wrote(made)} {facts(book)}, of {source.num_codes:,} → {out}")


def _choice(book: CodebookFile, given: Values) -> tuple[Tensor, dict[str, Any]]:
    """Return the ids that the options choose, and how."""
    import hashlib

    from vqkit.codebooks import edit

    ways = [way for way in ("random", "most_used", "ids", "groups") if way in given]
    if len(ways) != 1:
        named = " and ".join(ways) or "none"
        raise ValueError(f"codes: {named} given; give one of random, most_used, ids and groups")
    (way,) = ways
    for name, of in (("seed", "random"), ("usage", "most_used")):
        if name in given and of != way:
            raise ValueError(f"{name}={given[name]!r} without {of}: has no effect; leave it out")
    if way == "random":
        return edit.random_ids(book, given["random"], given.get("seed", 0))
    if way == "most_used":
        if "usage" not in given:
            raise ValueError("usage: no file of uses is named; give --usage FILE")
        return edit.used_ids(book, given["most_used"], edit.read_numbers(given["usage"]))
    if way == "ids":
        ids = _ids(given["ids"])
        return ids, {"ids": hashlib.sha256(ids.numpy().tobytes()).hexdigest(), "count": len(ids)}
    first, colon, last = given["groups"].partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise ValueError(f"groups={given['groups']!r}: expected FIRST:LAST+1, such as 0:10")
    return edit.group_ids(book, int(first), int(last))


def _ids(text: str) -> Tensor:
    import torch

    from vqkit.codebooks import edit

    words = text.split(",")
    if all(word.strip().isdigit() for word in words):
        return torch.tensor([int(word) for word in words])
    return edit.read_numbers(text)


def _named(name: str | None) -> str:
    if name is None:
        raise ValueError("codebook: none is named; give a codebook file")
    return name


def _wrote(made: bool) -> str:
    return "wrote" if made else "is there already:"
