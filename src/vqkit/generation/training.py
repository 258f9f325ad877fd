"""Training of generators on token sets: what belongs to the kind is its task's, the rest `fit`'s.

The run's folder is that of `training.fit`; the finished generator lies in `generator/` inside.
"""

from __future__ import annotations

import os
from pathlib import Path

from vqkit.config import GeneratorRun, require, to_dict
from vqkit.config.diffusion import DiffusionConfig
from vqkit.generation.generator import PRODUCT, Card
from vqkit.generation.gpt.task import GPTTask
from vqkit.tokens import TokenSet
from vqkit.training.fit import FitResult, Task, fit
from vqkit.training.settings_file import with_defaults


def train_generator(
    run: GeneratorRun,
    out: Path | str | None = None,
    *,
    resume: bool = True,
    progress: bool = True,
) -> FitResult:
    """Train the generator of `run` into the folder `out` (default `runs/<name>`).

    Run by `python`, or by `torchrun` with one process per device. What `fit` says of a continued
    run, of interrupts and of errors holds here. `load_generator` opens the result.

    Raises:
        ValueError: no token set named, one that is damaged or does not fit the model, and all that
            `fit` refuses.
    """
    folder = Path(out) if out is not None else Path("runs") / run.name
    return fit(
        make_task(run),
        name=run.name,
        folder=folder,
        product=PRODUCT,
        settings=to_dict(run),
        optim=run.optim,
        log=run.log,
        seed=run.seed,
        free=("tokens:", "held_out:"),  # where they lie; their fingerprints must be the same
        completed=lambda saved: with_defaults(saved, GeneratorRun),
        resume=resume,
        progress=progress,
    )


def make_task(run: GeneratorRun) -> Task:
    """Open the token sets of a run and return what `fit` trains."""
    require(
        run.tokens is not None,
        "tokens",
        "names no token set; make one with vqkit tokenize and give its folder (--tokens)",
    )
    assert run.tokens is not None  # for the type checker
    tokens = TokenSet.open(Path(run.tokens))
    card = card_of(tokens, conditional=run.model.conditional)
    held_out = None
    if run.held_out is not None:
        held_out = TokenSet.open(Path(run.held_out))
        check_held_out(held_out, tokens, conditional=run.model.conditional)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    shared = {
        "batch_size": run.optim.batch_size,
        "seed": run.seed,
        "rank": rank,
        "world_size": processes,
    }
    if isinstance(run.model, DiffusionConfig):
        from vqkit.generation.diffusion import DiffusionTask

        return DiffusionTask(tokens, run.model, card, held_out=held_out, **shared)
    return GPTTask(tokens, run.model, card, held_out=held_out, **shared)


def card_of(tokens: TokenSet, *, conditional: bool) -> Card:
    """Return the card of a generator that is trained on a token set.

    Raises:
        ValueError: images of several sizes, or classes asked of a set in which an image has none.
    """
    grid = tokens.grid
    require(
        grid is not None,
        "tokens",
        "its images have grids of several sizes; tokenize with one size",
    )
    assert grid is not None  # for the type checker
    require(
        not conditional or tokens.num_classes > 0,
        "model.conditional=true",
        "this token set has no labels; set it to false",
    )
    require(
        not conditional or int(tokens.all_labels.min()) >= 0,
        "model.conditional=true",
        "some images of this token set have no class (-1); set it to false",
    )
    return Card(
        grid=(grid[0], grid[1]),
        slots=tokens.slots,
        num_classes=tokens.num_classes if conditional else 0,
        label_names=tuple(tokens.label_names or ()) if conditional else (),
        tokenizer=tokens.tokenizer,
        tokens=tokens.fingerprint,
    )


def check_held_out(held_out: TokenSet, tokens: TokenSet, *, conditional: bool) -> None:
    """Raise `ValueError` unless held-out tokens can measure what was trained on `tokens`.

    They are of the same tokenizer and size, and others; for classes, every image has one, and they
    are numbered alike.
    """
    require(
        held_out.tokenizer == tokens.tokenizer,
        "held_out",
        "is a token set of another tokenizer than tokens; tokenize both with one",
    )
    require(
        held_out.grid == tokens.grid, "held_out", f"has grid {held_out.grid}, tokens {tokens.grid}"
    )
    require(
        held_out.fingerprint != tokens.fingerprint,
        "held_out",
        "is the token set that is trained on; name another, or leave it out",
    )
    names = held_out.label_names
    require(
        not conditional or (bool(names) and int(held_out.all_labels.min()) >= 0),
        "held_out",
        "has images without a class; name another, or leave it out",
    )
    require(
        not conditional or names == tokens.label_names[: len(names)],
        "held_out",
        "numbers its classes otherwise than tokens; tokenize both with the same classes",
    )
