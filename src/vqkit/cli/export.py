"""`vqkit export`: the tokenizer of a run in its smallest form, to publish."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vqkit.cli.compress import folder_of
from vqkit.cli.console import say, tell
from vqkit.cli.options import Options, split_names
from vqkit.cli.runs import kind_of, load

if TYPE_CHECKING:
    from vqkit.models import ImageTokenizer


def run(words: Sequence[str]) -> None:
    """Write the tokenizer of a finished run, of a folder or of the hub into the folder OUT.

    Codes that are computed (vqgan_lc, simvq, dual) are stored as they are used, without the
    features or the network that they come from. Ids and images stay the same, bit for bit; to
    train on, use the run.
    """
    from vqkit.models import compacted
    from vqkit.models.files import FREQUENCIES, WEIGHTS

    names, rest = split_names(words)
    options = Options("export RUN_OR_TOKENIZER OUT", run.__doc__)
    options.add_flag("keep_features", "keep what codes are computed from, to train on elsewhere")
    given = options.parse(rest)
    if len(names) != 2:
        shown = " ".join(names) or "none"
        raise ValueError(f"names={shown}: expected two, a run or tokenizer and the folder to write")
    name, out = names[0], Path(names[1]).expanduser()
    _check_free(name, out)
    tokenizer = load(name)[0].tokenizer
    exported = tokenizer if given["keep_features"] else compacted(tokenizer)
    exported.save_pretrained(out)
    codes = " + ".join(f"{slot.num_codes:,}" for slot in exported.quantizer.slots)
    size = (out / WEIGHTS).stat().st_size
    smaller = "" if exported is tokenizer else f" instead of {_bytes(tokenizer) / 1e6:,.1f}"
    preset = tokenizer.config.quantizer.preset
    if (folder_of(name) / FREQUENCIES).is_file():
        again = f"vqkit frequencies {shlex.quote(str(out))}"
        tell(f"{FREQUENCIES} stays behind: it belongs to one tokenizer; {again} counts anew")
    say(f"wrote {preset} with {codes} codes, {size / 1e6:,.1f} MB{smaller} → {out}")


def _check_free(name: str, out: Path) -> None:
    """Raise `ValueError` if `out` holds anything but an exported tokenizer."""
    source = Path(name).expanduser()
    if out.resolve() == source.resolve() or kind_of(out.resolve().parent) == "run":
        raise ValueError(f"out={out}: belongs to what is exported or to a run; name another folder")
    if (out / "config.json").exists() and kind_of(out) != "tokenizer":
        raise ValueError(f"out={out}: has the config.json of something else; name another folder")


def _bytes(tokenizer: ImageTokenizer) -> int:
    tensors = tokenizer.state_dict().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
