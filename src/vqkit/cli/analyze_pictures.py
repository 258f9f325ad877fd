"""The verbs of `vqkit analyze` that show images beside what a tokenizer makes of them."""

from __future__ import annotations

from collections.abc import Sequence

from vqkit.cli.analyze_parts import (
    add_images,
    batch_of,
    loaded,
    parse_words,
    progress_of,
    tell_written,
)
from vqkit.cli.console import say
from vqkit.cli.options import Options


def replace(words: Sequence[str]) -> None:
    """Decode after every token has become the M-th nearest code of its codebook.

    VQGAN-LC, Figure 5. From the code, M = 1 is the closest other code and M = 0 the usual one; from
    the feature, M = 1 is the usual code.
    """

    def add(options: Options) -> None:
        add_images(options)
        options.add("m", int, "ranks M; default 0 1 2 4 8 16, from feature 1 2 4 8 16", count="+")
        options.add("from", str, "code (default) or feature: what neighbours are measured from")
        options.add("pictures", int, "images to show, the first ones of the set; default 3")

    names, given, out = parse_words("replace", "TOKENIZER", words, replace.__doc__, add)
    from vqkit.analysis import replace_tokens, replacement_figure, save_analysis

    origin = given.get("from", "code")
    ranks = given.get("m", [0, 1, 2, 4, 8, 16] if origin == "code" else [1, 2, 4, 8, 16])
    results = []
    for label, tokenizer, images in loaded(names, given):
        results.append(
            replace_tokens(
                tokenizer,
                images,
                ranks,
                origin=origin,
                num_pictures=given.get("pictures", 3),
                name=label,
                progress=progress_of(label),
                **batch_of(given),
            )
        )
        for point in results[-1].points:
            similar = "" if point.ssim is None else f", SSIM {point.ssim:.4f}"
            say(f"{label}: M = {point.m:>5}  PSNR {point.psnr:.2f} dB{similar}")
    tell_written(*save_analysis("replace", results, replacement_figure(results), out))


def extremes(words: Sequence[str]) -> None:
    """Rebuild every image of a set and draw the best and the worst, with their errors.

    Dual Codebook VQ, Figure 5.
    """

    def add(options: Options) -> None:
        add_images(options)
        options.add("count", int, "of the best, and as many of the worst; default 6, at most 12")
        options.add("by", str, "psnr (default) or ssim")

    names, given, out = parse_words("extremes", "TOKENIZER", words, extremes.__doc__, add)
    from vqkit.analysis import extremes as find
    from vqkit.analysis import extremes_figure, save_analysis

    own = {key: given[key] for key in ("count", "by", "batch_size") if key in given}
    results = []
    for label, tokenizer, images in loaded(names, given):
        found = find(tokenizer, images, name=label, progress=progress_of(label), **own)
        results.append(found)
        best, worst = found.best[0], found.worst[0]
        say(
            f"{label}: {found.by} from {worst.score:.4g} ({worst.image.name}) to "
            f"{best.score:.4g} ({best.image.name}), mean {found.mean:.4g}"
        )
    tell_written(*save_analysis("extremes", results, extremes_figure(results), out))


def errors(words: Sequence[str]) -> None:
    """Draw chosen images, what tokenizers make of them, and where they are wrong: one scale."""

    def add(options: Options) -> None:
        _add_choice(options)
        options.add("scale", float, "error in levels of 255 where colours end; default by pixels")

    names, given, out = parse_words("errors", "TOKENIZER", words, errors.__doc__, add)
    from vqkit.analysis import error_maps, error_maps_figure, save_analysis

    results = []
    for label, tokenizer, images in loaded(names, given):
        chosen = given.get("images", list(range(min(4, len(images)))))
        results.append(error_maps(tokenizer, images, chosen, name=label))
        for image in results[-1].rebuilt.images:
            say(f"{label} {image.name}: PSNR {image.psnr:.2f} dB")
    figure = error_maps_figure(results, scale=given.get("scale"))
    tell_written(*save_analysis("errors", results, figure, out))


def crops(words: Sequence[str]) -> None:
    """Draw a region of chosen images enlarged, beside the reconstructions of several tokenizers.

    LooC, Figure 3.
    """

    def add(options: Options) -> None:
        _add_choice(options)
        text = "top left height width in pixels; default the middle, a third as high and wide"
        options.add("region", int, text, count=4)

    names, given, out = parse_words("crops", "TOKENIZER", words, crops.__doc__, add)
    from vqkit.analysis import Region, crops_figure, save_analysis
    from vqkit.analysis import crops as cut

    region = None
    if "region" in given:
        top, left, height, width = given["region"]
        region = Region(top=top, left=left, height=height, width=width)
    results = []
    for label, tokenizer, images in loaded(names, given):
        found = cut(tokenizer, images, given.get("images", [0]), region, name=label)
        results.append(found)
        for number, image in enumerate(found.rebuilt.images):
            inside = found.quality(number)
            say(f"{label} {image.name}: PSNR {image.psnr:.2f} dB, in the region {inside:.2f} dB")
    tell_written(*save_analysis("crops", results, crops_figure(results), out))


def _add_choice(options: Options) -> None:
    """Add options of verbs that take a few images by their numbers."""
    options.add("images", int, "numbers of the images in the set, counted from 0", count="+")
    add_images(options, batch=False)
