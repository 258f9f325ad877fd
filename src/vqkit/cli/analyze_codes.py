"""The verbs of `vqkit analyze` that show codes: their use, their map, the codebook itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vqkit.cli.analyze_parts import (
    add_images,
    batch_of,
    file_name,
    labels_of,
    loaded,
    parse_words,
    progress_of,
    tell_written,
)
from vqkit.cli.console import say
from vqkit.cli.options import Options
from vqkit.cli.runs import kind_of

if TYPE_CHECKING:
    from vqkit.analysis import Frequency


def usage(words: Sequence[str]) -> None:
    """Draw usage and perplexity at every epoch of one or several runs, read from their logs.

    VQGAN-LC, Figure 3 left. Usage counts all tokens of an epoch while the weights move.
    """
    names, _, out = parse_words("usage", "RUN", words, usage.__doc__)
    from vqkit.analysis import save_analysis, usage_figure, usage_of_run

    _check_runs(names)
    labels = labels_of(names)
    runs = [usage_of_run(name, name=label) for name, label in zip(names, labels, strict=True)]
    for found in runs:
        last = found.mean[-1]
        say(
            f"{found.conditions.name}: epoch {last.epoch}, {last.usage:.4f} of the codes used "
            f"(uniform draws: {last.uniform_usage:.4f}), perplexity {last.perplexity:,.1f}"
        )
    tell_written(*save_analysis("usage", runs, usage_figure(runs), out))


def frequency(words: Sequence[str]) -> None:
    """Count how often every code is drawn over a set of images.

    VQGAN-LC, Figure 3 right. The counts of every code go to FILE.NAME.npy, which `vqkit codebook
    subset --most_used` reads.
    """
    names, given, out = parse_words("frequency", "TOKENIZER", words, frequency.__doc__, add_images)
    from vqkit.analysis import code_frequency, frequency_figure, save_analysis, save_counts

    results = []
    for label, tokenizer, images in loaded(names, given):
        results.append(
            code_frequency(
                tokenizer, images, name=label, progress=progress_of(label), **batch_of(given)
            )
        )
        _say_books(results[-1])
    files = [*save_analysis("frequency", results, frequency_figure(results), out)]
    for one in results:
        name = file_name(one.conditions.name)
        files += save_counts(one, out.with_name(f"{out.stem}.{name}.npy"))
    tell_written(*files)


def bars(words: Sequence[str]) -> None:
    """Draw how often every code is drawn over a set of images: bars by code, and a map.

    Dual Codebook VQ, Figure 3, second row. The counts of every code go to FILE.NAME.npy.
    """
    names, given, out = parse_words("bars", "TOKENIZER", words, bars.__doc__, add_images)
    from vqkit.analysis import bars_figure, code_frequency, save_analysis, save_counts

    results = []
    for label, tokenizer, images in loaded(names, given):
        progress = progress_of(label)
        results.append(
            code_frequency(tokenizer, images, name=label, progress=progress, **batch_of(given))
        )
        _say_books(results[-1])
    files = [*save_analysis("bars", results, bars_figure(results), out)]
    for one in results:
        name = file_name(one.conditions.name)
        files += save_counts(one, out.with_name(f"{out.stem}.{name}.npy"))
    tell_written(*files)


def segments(words: Sequence[str]) -> None:
    """Draw how many codes each segment uses, and how segments share them.

    LooC, Figures 7 and 8. Levels of a residual quantizer and the parts of Dual count as segments;
    those with codebooks of their own share nothing.
    """
    names, given, out = parse_words("segments", "TOKENIZER", words, segments.__doc__, add_images)
    from vqkit.analysis import save_analysis, segment_usage, segments_figure

    results = []
    for label, tokenizer, images in loaded(names, given):
        progress = progress_of(label)
        found = segment_usage(tokenizer, images, name=label, progress=progress, **batch_of(given))
        results.append(found)
        for book in found.books:
            used = book.num_used()
            text = f"{label} {book.name}: {len(book.segments)} segments use {int(used.min()):,} to "
            text += f"{int(used.max()):,} of {book.num_codes:,} codes"
            if len(book.segments) > 1:
                least = int(book.sharing().min())
                text += f"; every code is used by at least {least} segments"
            say(text)
    tell_written(*save_analysis("segments", results, segments_figure(results), out))


def codebook(words: Sequence[str]) -> None:
    """Draw the codevectors of one or several runs, those that training left alone marked.

    Dual Codebook VQ, Figure 3, first row. Untouched is a code that is bit for bit the one that the
    run's settings and seed give before the first step; never drawn, one that no training token has
    drawn, as the trainer has counted.
    """

    def add(options: Options) -> None:
        options.add("max_codes", int, "of a larger codebook so many codes, at random; default 1024")
        options.add("seed", int, "of the sample; default 0")

    names, given, out = parse_words("codebook", "RUN", words, codebook.__doc__, add)
    _check_runs(names)
    from vqkit.analysis import codes_of_run, grid_figure, save_analysis

    own = {key: given[key] for key in ("max_codes", "seed") if key in given}
    labels = labels_of(names)
    runs = [codes_of_run(n, name=label, **own) for n, label in zip(names, labels, strict=True)]
    for found in runs:
        for book in found.books:
            counts = book.to_dict()
            untouched, undrawn = counts["num_untouched"], counts["num_never_drawn"]
            say(
                f"{found.conditions.name} {book.name}: of {book.num_codes:,} codes after "
                f"{found.steps:,} steps {_known(untouched)} untouched, "
                f"{_known(undrawn)} never drawn"
            )
        if found.unknown:
            say(f"{found.conditions.name}: initial codes unknown: {found.unknown}")
    tell_written(*save_analysis("codebook", runs, grid_figure(runs), out))


def _known(count: int | None) -> str:
    return "an unknown number" if count is None else f"{count:,}"


def _check_runs(names: Sequence[str]) -> None:
    for name in names:
        if kind_of(name) != "run":
            raise ValueError(f"run={name}: is no training run; name its folder, with a log.jsonl")


def _say_books(one: Frequency) -> None:
    for book in one.books:
        found = book.statistics
        say(
            f"{one.conditions.name} {book.name}: {found.num_used:,} of {found.num_codes:,} codes "
            f"used ({found.usage:.4f}; at most {found.ceiling:.4f}, uniform draws "
            f"{found.uniform_usage:.4f}), perplexity {found.perplexity:,.1f}"
        )


def tsne(words: Sequence[str]) -> None:
    """Draw the codes in the plane by t-SNE: those that the images draw green, the others blue.

    VQGAN-LC, Figure 4. The codes are those that vectors are compared with (VQGAN-LC: projected).
    """

    def add(options: Options) -> None:
        add_images(options)
        options.add("max_codes", int, "of a larger codebook so many codes, at random; default 2000")
        options.add("perplexity", float, "of t-SNE; default 30, less where codes are few")
        options.add("seed", int, "of the sample and of t-SNE; default 0")
        options.add("books", int, "codebooks to show, counted from 0; default all", count="+")

    names, given, out = parse_words("tsne", "TOKENIZER", words, tsne.__doc__, add)
    from vqkit.analysis import map_codes, save_analysis, tsne_figure

    keys = ("max_codes", "perplexity", "seed", "books", "batch_size")
    own = {key: given[key] for key in keys if key in given}
    results = []
    for label, tokenizer, images in loaded(names, given):
        results.append(map_codes(tokenizer, images, name=label, progress=progress_of(label), **own))
        for book in results[-1].books:
            say(
                f"{label} {book.name}: {book.num_active:,} of {book.num_codes:,} codes active, "
                f"{len(book.ids):,} shown"
            )
    tell_written(*save_analysis("tsne", results, tsne_figure(results), out))
