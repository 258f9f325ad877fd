"""`vqkit tokens`: what is in a token set, whether it is whole, and several as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vqkit.cli.compress import long_out, required_out
from vqkit.cli.console import say
from vqkit.cli.options import Options, one_name, split_names
from vqkit.cli.verbs import choose

if TYPE_CHECKING:
    from vqkit.tokens import TokenSet

_USAGE = """\
usage: vqkit tokens VERB TOKENS [TOKENS ...] [--option value ...]

{verbs}

  vqkit tokens VERB --help   options of a verb
"""


def run(words: Sequence[str]) -> None:
    """Run one verb; without any, list them."""
    chosen = choose(words, {name: summary for name, (_, summary) in VERBS.items()}, _USAGE)
    if chosen is not None:
        name, rest = chosen
        VERBS[name][0](rest)


def describe(words: Sequence[str]) -> None:
    """Say what is in a token set: images, tokens, bits, tokenizer, and how it was made."""
    name, rest = one_name(words, "token set", "describe one after another")
    Options("tokens describe TOKENS", describe.__doc__).parse(rest)
    if name is None:
        raise ValueError("tokens: none are named; give a folder of vqkit tokenize")
    from vqkit.tokens import TokenSet

    say("\n".join(_lines(TokenSet.open(name))))


def _lines(found: TokenSet) -> list[str]:
    manifest = found.manifest
    data, made = manifest["data"], manifest["environment"]
    bits = sum(math.log2(slot.num_codes) for slot in found.slots)
    size = sum(shard["bytes"] for shard in manifest["shards"])
    grid = "differ from image to image"
    if found.grid is not None:
        h, w = found.grid
        grid = f"{h} x {w} positions, {h * w * len(found.slots):,} tokens, {h * w * bits:,.1f} bits"
    codes = _run_lengths([slot.num_codes for slot in found.slots])
    prepared = [f"{k} {v}" for k, v in manifest["preprocessing"].items() if k != "hash" and v]
    lines = [
        f"images         {found.num_images:,} of {data['source']} {data['path'] or ''}".rstrip(),
        f"an image       {grid}",
        f"a position     {len(found.slots)} tokens, codes {codes}",
        f"classes        {found.num_classes or 'none'}",
        f"latents        {found.latent_channels or 'no'} channels",
        f"files          {len(manifest['shards']):,}, {size:,} bytes, "
        f"{8 * size / found.num_images:,.1f} bits for an image with all its columns",
        f"tokenizer      {found.tokenizer}",
        f"preprocessing  {', '.join(prepared)}",
        f"made with      {', '.join(f'{name} {value}' for name, value in made.items())}",
        f"fingerprint    {found.fingerprint}",
    ]
    if manifest["skipped"]:
        lines.append(f"left out       {len(manifest['skipped']):,} broken images")
    return lines


def _run_lengths(counts: list[int]) -> str:
    """Write 256, 256, 512 as "2 x 256, 512"."""
    parts: list[list[int]] = []
    for count in counts:
        if parts and parts[-1][1] == count:
            parts[-1][0] += 1
        else:
            parts.append([1, count])
    return ", ".join(f"{n} x {count:,}" if n > 1 else f"{count:,}" for n, count in parts)


def verify(words: Sequence[str]) -> None:
    """Compare every shard with the SHA-256 in the manifest; a damaged one is named."""
    names, rest = split_names(words)
    Options("tokens verify TOKENS [TOKENS ...]", verify.__doc__).parse(rest)
    if not names:
        raise ValueError("tokens: none are named; give a folder of vqkit tokenize")
    from vqkit.tokens.sets.manifest import read_manifest, verify_shards

    for name in names:
        folder = Path(name).expanduser()
        manifest = read_manifest(folder)
        verify_shards(folder, manifest)
        say(f"{name}: all {len(manifest['shards']):,} shards are as the manifest says")


def merge(words: Sequence[str]) -> None:
    """Write one token set of the images of several, in their order.

    They must be of one tokenizer, prepared alike, with the same classes.
    """
    names, rest = split_names(words)
    options = Options("tokens merge TOKENS TOKENS [TOKENS ...]", merge.__doc__)
    options.add("out", str, "folder to write; also -o")
    given = options.parse(long_out(rest))
    out = required_out(given)
    from vqkit.tokens import TokenSet
    from vqkit.tokens.sets import merge_token_sets

    found = merge_token_sets([TokenSet.open(name) for name in names], out)
    say(f"wrote {found.num_images:,} images of {len(names)} token sets → {out}")


VERBS: Final = {
    "describe": (describe, "images, tokens, bits, tokenizer, how it was made"),
    "verify": (verify, "compare every shard with its SHA-256"),
    "merge": (merge, "several token sets of one tokenizer as one"),
}
"""Verb to its function and a summary."""
