"""Training of classifiers on token sets; the run's folder is that of `training.fit`."""

from __future__ import annotations

import os
from pathlib import Path

from vqkit.classification.classifier import PRODUCT, TokenClassifier
from vqkit.classification.evaluation import Row, bits_per_pixel, measure
from vqkit.classification.maps import Maps, open_tokenizer
from vqkit.classification.task import ClassifierTask, check_same_classes
from vqkit.config import require, to_dict
from vqkit.config.classification import ClassifierRun, ProbeClassifier
from vqkit.config.core import from_dict
from vqkit.tokens import TokenSet
from vqkit.training.fit import FitResult, fit
from vqkit.training.run_folder import read_result
from vqkit.training.settings_file import read_settings, with_defaults

FREE = ("tokens:", "held_out:", "tokenizer:", "model.pretrained:", "model.backbone:")
"""Settings that may change when a run is continued: where things lie."""


def train_classifier(
    run: ClassifierRun,
    out: Path | str | None = None,
    *,
    resume: bool = True,
    progress: bool = True,
) -> FitResult:
    """Train the classifier of `run` into the folder `out` (default `runs/<name>`).

    Run by `python`, or by `torchrun` with one process per device. What `fit` says of a continued
    run, of interrupts and of errors holds here.

    Raises:
        ValueError: no token set or tokenizer named, ones that do not belong together, images
            without labels, weights that do not fit, and all that `fit` refuses.
    """
    task = make_task(run)
    return fit(
        task,
        name=run.name,
        folder=Path(out) if out is not None else Path("runs") / run.name,
        product=PRODUCT,
        settings=to_dict(run),
        optim=run.optim,
        log=run.log,
        seed=run.seed,
        groups=task.groups,
        free=FREE,
        completed=lambda saved: with_defaults(saved, ClassifierRun),
        resume=resume,
        progress=progress,
    )


def make_task(run: ClassifierRun) -> ClassifierTask:
    """Open what a run names and return what `fit` trains."""
    require(run.tokens is not None, "tokens", "names no token set; vqkit tokenize makes one")
    require(run.tokenizer is not None, "tokenizer", "names no tokenizer; the tokens' own is needed")
    assert run.tokens is not None  # for the type checker
    assert run.tokenizer is not None
    held_out = TokenSet.open(run.held_out) if run.held_out is not None else None
    return ClassifierTask(
        run,
        TokenSet.open(run.tokens),
        Maps(open_tokenizer(run.tokenizer), run.source),
        held_out=held_out,
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
    )


def evaluate_run(
    folder: Path | str,
    tokens: TokenSet,
    *,
    tokenizer: str | None = None,
    device: str = "cpu",
) -> Row:
    """Measure the classifier of a finished run on a token set that it was not trained on.

    Args:
        folder: of the run.
        tokens: of the tokenizer that the run's tokens are of.
        tokenizer: its folder; default that which the run names.
        device: where to compute.

    Raises:
        ValueError: no finished run there, tokens of another tokenizer, grid or classes, or a device
            that torch refuses.
    """
    place = Path(folder).expanduser()
    run, steps = _finished(place)
    named = tokenizer or run.tokenizer
    assert named is not None  # it was trained
    classifier = TokenClassifier.load(place)
    try:
        classifier.to(device)
    except (RuntimeError, AssertionError) as error:  # torch's way to refuse a device
        raise ValueError(f"device={device!r}: {error}") from error
    maps = Maps(open_tokenizer(named), classifier.card.source)
    check_same_classes(tokens, classifier.card, maps, f"tokens={str(tokens.folder)!r}")
    learnt = sum(p.numel() for p in classifier.parameters() if p.requires_grad)
    h, w = classifier.card.grid
    on = " on vit" if isinstance(run.model, ProbeClassifier) and run.model.backbone else ""
    return Row(
        name=run.name,
        quantizer=maps.tokenizer.config.quantizer.preset,
        model=run.model.kind + on,
        source=run.source,
        bits_per_pixel=bits_per_pixel(maps, tokens),
        tokens=h * w * len(tokens.slots),
        steps=steps,
        parameters=learnt,
        found=measure(classifier, maps, tokens),
    )


def held_out_of(folder: Path | str) -> str:
    """Return the token set that a finished run held out; none is a `ValueError`."""
    run, _ = _finished(Path(folder).expanduser())
    problem = "the run held none out; name a token set that it was not trained on"
    require(run.held_out is not None, "--tokens", problem)
    assert run.held_out is not None  # for the type checker
    return run.held_out


def _finished(folder: Path) -> tuple[ClassifierRun, int]:
    """Return the settings of a finished run and its steps."""
    saved, result = read_settings(folder), read_result(folder, PRODUCT)
    where = f"run={str(folder)!r}"
    require(saved is not None and "source" in saved, where, "is no run of vqkit classify train")
    require(result is not None, where, "is not finished; the command that trains it goes on")
    assert saved is not None  # for the type checker
    assert result is not None
    settings = {name: value for name, value in saved.items() if name != "product"}
    run: ClassifierRun = from_dict(ClassifierRun, settings)
    return run, int(result["steps"])
