"""`vqkit import`: a published checkpoint of other code as a tokenizer of vqkit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vqkit.cli.console import say, tell
from vqkit.cli.options import Options, one_name
from vqkit.cli.runs import kind_of


def run(words: Sequence[str]) -> None:
    """Turn a checkpoint of taming-transformers, LlamaGen, VQGAN-LC or diffusers into a tokenizer.

    FILE is what they publish: a .ckpt, .pt, .pth, .bin or .safetensors file, or a folder of
    diffusers. Code that is pickled in it is not run. docs/importing.md says where to get each.
    """
    from vqkit.models.importers import KINDS, ImportConfig, import_checkpoint

    name, rest = one_name(words, "file or folder", "import one after another")
    options = Options("import FILE", run.__doc__)
    options.add("out", str, "folder for the tokenizer")
    options.add("kind", str, f"{', '.join(KINDS)}; by default told by the names of the tensors")
    options.add_fields(ImportConfig)
    given = options.parse(rest)
    if name is None:
        raise ValueError("file: none is named; give a checkpoint, see vqkit import --help")
    if "out" not in given:
        raise ValueError("out: no folder is named; give --out FOLDER")
    out, kind = Path(given.pop("out")), given.pop("kind", None)
    if (out / "config.json").exists() and kind_of(out) != "tokenizer":
        raise ValueError(f"out={out}: has the config.json of something else; name another folder")
    imported = import_checkpoint(name, kind, config=ImportConfig(**given))
    tell(imported.report())
    imported.tokenizer.save_pretrained(out)
    quantizer = imported.tokenizer.quantizer
    codes = " + ".join(f"{slot.num_codes:,}" for slot in quantizer.slots)
    parameters = sum(p.numel() for p in imported.tokenizer.parameters())
    say(
        f"wrote {imported.kind} with {codes} codes, stride {imported.tokenizer.stride}, "
        f"{parameters:,} parameters → {out}"
    )
