"""`import_tokenizer`: a published checkpoint as an `ImageTokenizer`."""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from vqkit.config import require
from vqkit.models.importers.assemble import assemble
from vqkit.models.importers.diffusers_vq import DIFFUSERS
from vqkit.models.importers.kinds import ImportConfig, Kind
from vqkit.models.importers.llamagen import LLAMAGEN
from vqkit.models.importers.sources import State, find_state, listed, open_source
from vqkit.models.importers.stored import StoredTensor
from vqkit.models.importers.taming import TAMING
from vqkit.models.importers.vqgan_lc import VQGAN_LC
from vqkit.models.tokenizer import ImageTokenizer

logger = logging.getLogger(__name__)

KINDS: Final[dict[str, Kind]] = {
    kind.name: kind for kind in (TAMING, LLAMAGEN, VQGAN_LC, DIFFUSERS)
}
"""Every layout that is known."""

_PREFIXES: Final = ("", "module.", "_orig_mod.", "first_stage_model.")
"""Of data parallel, of torch.compile, of generators that hold a tokenizer."""
_FIRST: Final = "encoder.conv_in.weight"
"""A tensor of every kind."""
_ALWAYS: Final = ("weights", "prefix", "norm_groups")
"""Fields of `ImportConfig` that mean something for every kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A tokenizer, and what was read of the file."""

    tokenizer: ImageTokenizer
    kind: str
    path: Path
    """The file of the weights."""
    entry: str
    """Where in it the tensors stood; empty for the file itself."""
    ignored: tuple[str, ...]
    """Names that are no part of a tokenizer."""

    def report(self) -> str:
        """Say in lines what was read and what was not."""
        config = self.tokenizer.config
        where = f", tensors in {self.entry!r}" if self.entry else ""
        lines = [
            f"{self.path}: {self.kind}{where}",
            f"network: {config.network}",
            f"quantizer: {config.quantizer.preset} {config.quantizer.args}",
            f"left out: {_grouped(self.ignored) or 'nothing'}",
        ]
        return "\n".join(lines)


def import_tokenizer(
    path: str | Path, kind: str | None = None, *, config: ImportConfig | None = None
) -> ImageTokenizer:
    """Read a published checkpoint of `KINDS` into an `ImageTokenizer`, in evaluation mode.

    Args:
        path: a file of `torch.save` or safetensors, or a folder of diffusers; nothing that is
            pickled in it is run.
        kind: the layout, one of `KINDS`; by default told by the names of the tensors.
        config: what a file does not say.

    Raises:
        ValueError: the file is damaged, of another kind, or holds more or less than one tokenizer.
    """
    imported = import_checkpoint(path, kind, config=config)
    logger.info("%s", imported.report())
    return imported.tokenizer


def import_checkpoint(
    path: str | Path, kind: str | None = None, *, config: ImportConfig | None = None
) -> Imported:
    """Do what `import_tokenizer` does, and tell what was read and what was left out."""
    config = config or ImportConfig()
    source = open_source(Path(path).expanduser())
    state = find_state(source, config.weights)
    try:
        tensors, foreign = _without_prefix(state, config.prefix)
        chosen = _kind(kind, tensors)
        _check_options(chosen, config)
        chosen.check(source.settings)
        used = {n: stored for n, stored in tensors.items() if not n.startswith(chosen.ignored)}
        tokenizer = assemble(chosen, source, used, config)
    except ValueError as error:
        raise ValueError(f"{source.path}: {error}") from error
    return Imported(
        tokenizer=tokenizer,
        kind=chosen.name,
        path=source.path,
        entry=state.entry,
        ignored=(*(name for name in tensors if name not in used), *foreign),
    )


def _without_prefix(
    state: State, prefix: str | None
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """Return the tokenizer's tensors, without the prefix of their names, and all other names."""
    prefixes = _PREFIXES if prefix is None else (prefix,)
    fitting = [p for p in prefixes if p + _FIRST in state.tensors]
    if not fitting:
        where = "" if prefix is None else f" behind {prefix!r}"
        starts = Counter(name.split(".")[0] for name in state.tensors)
        raise ValueError(
            f"has no {_FIRST!r}{where}; names begin with {listed(starts)}. Give the prefix of the "
            "tokenizer's names, or another entry of the file as `weights`"
        )
    start = fitting[0]
    mine = {n.removeprefix(start): t for n, t in state.tensors.items() if n.startswith(start)}
    others = tuple(name for name in state.tensors if not name.startswith(start))
    return mine, (*others, *state.others)


def _kind(name: str | None, tensors: Mapping[str, StoredTensor]) -> Kind:
    """Find the layout by the names of tensors; a wrong `name` is a `ValueError`."""
    fitting = [kind for kind in KINDS.values() if _has_marks(kind, tensors)]
    if name is not None:
        near = difflib.get_close_matches(name, KINDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(KINDS)}"
        require(name in KINDS, f"kind={name!r}", f"unknown; {hint}")
        asked = KINDS[name]
        hint = f"; it looks like {fitting[0].name}" if fitting else ""
        lacks = [mark for mark in asked.marks if not _begins(mark, tensors)]
        require(not lacks, f"kind={name!r}", f"no tensor begins with {' or '.join(lacks)}{hint}")
        return asked
    require(
        bool(fitting),
        "kind",
        f"the names of the tensors are none of {', '.join(KINDS)} (a model without a codebook?); "
        f"they are like {listed(tensors, 3)}",
    )
    return fitting[0]


def _has_marks(kind: Kind, tensors: Iterable[str]) -> bool:
    names = list(tensors)
    return all(_begins(mark, names) for mark in kind.marks)


def _begins(mark: str, names: Iterable[str]) -> bool:
    return any(name.startswith(mark) for name in names)


def _check_options(kind: Kind, config: ImportConfig) -> None:
    """Refuse settings that would change nothing."""
    for item in fields(config):
        unused = item.name not in (*_ALWAYS, *kind.options)
        value = getattr(config, item.name)
        require(
            not unused or value is None, f"{item.name}={value}", f"means nothing for {kind.name}"
        )


def _grouped(names: Iterable[str]) -> str:
    """Count names by what they begin with: "loss.* (310)"."""
    counts = Counter(name.split(".")[0] for name in names)
    return listed(f"{start}.* ({count})" for start, count in counts.most_common())
