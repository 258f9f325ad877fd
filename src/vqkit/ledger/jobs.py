"""Jobs: the runs behind the rows of a table, each once, and what keeps them from running here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from vqkit.config import DataConfig, RunConfig, require, to_dict, with_changes
from vqkit.ledger.cells import Cell
from vqkit.ledger.costs import gpu_hours, hours_in_words
from vqkit.ledger.observed import SUBSTITUTES
from vqkit.ledger.plans import SMALL_SETS, Plan, needs_beside_a_tokenizer, plan_of, word_of
from vqkit.recipes import looc_table12_images, recipe

EQUAL_BATCH: Final = 128
"""Images per step of every small-image row if a length is given: the same images for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """What may differ from the published training, and becomes part of every number."""

    num_steps: int | None = None
    batch_size: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}={value}", "must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run to make, and the cells that it serves."""

    plan: Plan
    config: RunConfig
    """Named by everything that makes it this run, length included."""
    published: RunConfig
    """The same at its published length."""
    options: Mapping[str, Any]
    """Arguments of the recipe; name, seed, checkpoints and test images are changed afterwards."""
    data_set: str
    test_set: str
    """Images, `cifar10-jpeg` where they stand in for `cifar10`."""
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """Name of the run and its folder."""
        return self.config.name

    @property
    def observation(self) -> str:
        """Name of what is observed: that of the run, unless its test images are another set's."""
        return self.name if self.test_set == self.data_set else f"{self.name}_on_{self.test_set}"


def jobs_of(
    cells: Sequence[Cell],
    data_set: str,
    *,
    path: str | None = None,
    test_path: str | None = None,
    length: Length | None = None,
) -> tuple[Job, ...]:
    """Return the runs that the rows of these cells need on one data set, in printed order.

    Rows of small images can be run on any set of small images; those that the paper does not print
    serve no cell.

    Args:
        cells: of one or several tables; equal plans become one job.
        data_set: images that the rows are measured on, or a stand-in for them (`cifar10-jpeg`).
        path: folder of the training images; default where the recipes look.
        test_path: folder of the test images, if it is another one.
        length: steps, batch and seed, if not the published ones.

    Raises:
        ValueError: a data set that none of the rows has.
    """
    stands_for = SUBSTITUTES.get(data_set, data_set)
    offered = data_sets_of(cells)
    require(data_set in offered, f"data={data_set!r}", f"these rows have {', '.join(offered)}")
    served: dict[tuple[Any, ...], list[Cell]] = {}
    plans: dict[tuple[Any, ...], Plan] = {}
    printed = any(cell.dataset == stands_for for cell in cells)
    for cell in cells:
        plan = plan_of(cell if printed else replace(cell, dataset=stands_for))
        beside = needs_beside_a_tokenizer(cell)  # which no run here gives
        if plan.recipe and plan.test_set == stands_for and not beside:
            key = (plan.recipe, tuple(plan.options.items()), plan.data_set)
            plans.setdefault(key, plan)
            served.setdefault(key, []).extend([cell] if printed else [])
    return tuple(
        _job(plan, tuple(served[key]), data_set, path, test_path, length or Length())
        for key, plan in plans.items()
    )


def data_sets_of(cells: Sequence[Cell]) -> list[str]:
    """Return the data sets that these rows can be run on: printed ones, then the others."""
    known = list(dict.fromkeys(cell.dataset for cell in cells))
    if all(name in SMALL_SETS for name in known):
        known += [name for name in SMALL_SETS if name not in known]
    return known + [name for name, real in SUBSTITUTES.items() if real in known]


def obstacles(job: Job, *, have_gpu: bool) -> list[str]:
    """Return what a run lacks on this machine, in words; empty if it can begin."""
    config, missing = job.config, []
    for name, data in ((job.data_set, config.data), (job.test_set, config.test_data)):
        if data is not None and not Path(data.path or ".").expanduser().exists():
            missing.append(f"data set {name} (looked in {data.path}; docs/datasets.md)")
    codebook = config.quantizer.args.get("features")
    file = codebook.get("file") if isinstance(codebook, dict) else None
    if file is not None and not Path(file).expanduser().is_file():
        missing.append(f"codebook {file} (docs/codebooks.md)")
    missing += [f"weights {file}" for file in missing_weights(training_weights(config))]
    if (
        not have_gpu
        and job.plan.data_set not in SMALL_SETS
        and config == replace(job.published, name=config.name, log=config.log)
    ):
        missing.append(f"a GPU ({hours_in_words(gpu_hours(config))} at the published length)")
    return list(dict.fromkeys(missing))


def train_command(job: Job) -> str:
    """Return the `vqkit train` command with exactly the settings of a job, but without a folder."""
    made = dict(_leaves(to_dict(recipe(job.plan.recipe)(**dict(job.options)))))
    wanted = _leaves(to_dict(job.config))
    changes = {name: x for name, x in wanted if name not in made or made[name] != x}
    words = [f"--{name} {word_of(x)}" for name, x in {**job.options, **changes}.items()]
    return " ".join(["vqkit train", job.plan.recipe, *words])


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by their dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def training_weights(config: RunConfig) -> tuple[str, ...]:
    """Return the weights that training needs, by their name in `vqkit.weights`."""
    return ("vgg16", "lpips_vgg") if config.objective.perceptual == "lpips" else ()


def missing_weights(names: Sequence[str]) -> list[str]:
    """Return the files of those weights that are nowhere on this machine."""
    from vqkit.weights import KNOWN, find_weights

    missing = []
    for name in names:
        try:
            find_weights(name)
        except ValueError:
            missing.append(KNOWN[name].file)
    return missing


def published_config(plan: Plan) -> RunConfig:
    """Return the settings of a plan's recipe at its published length."""
    return recipe(plan.recipe)(**dict(plan.options))


def _job(
    plan: Plan,
    cells: tuple[Cell, ...],
    data_set: str,
    path: str | None,
    test_path: str | None,
    length: Length,
) -> Job:
    published = published_config(plan)
    elsewhere = plan.test_set != plan.data_set
    trained_on = plan.data_set if elsewhere else data_set
    default = trained_on if trained_on in SUBSTITUTES else plan.folder
    options = dict(plan.options) | {"path": path if path is not None else f"data/{default}"}
    steps, batch = length.num_steps, length.batch_size
    if batch is None and steps is not None and plan.data_set in SMALL_SETS:
        batch = EQUAL_BATCH
    options |= {"num_steps": steps} if steps is not None else {}
    options |= {"batch_size": batch} if batch is not None else {}
    config = recipe(plan.recipe)(**options)
    config = replace(config, test_data=_test_images(config, elsewhere, test_path))
    if length.seed is not None:
        config = replace(config, seed=length.seed)
    every = max(1, min(config.log.checkpoint_every, config.optim.num_steps // 3))
    name = _run_name(plan, published, config, trained_on)
    config = with_changes(replace(config, name=name), log__checkpoint_every=every)
    return Job(
        plan=plan,
        config=config,
        published=published,
        options=options,
        data_set=trained_on,
        test_set=data_set,
        cells=cells,
    )


def _test_images(config: RunConfig, elsewhere: bool, path: str | None) -> DataConfig:
    data = config.test_data
    assert data is not None  # every published recipe names its test images
    if elsewhere:
        data = looc_table12_images()
    return data if path is None else replace(data, path=path)


_UNNAMED: Final = {"codebook": "", "tokens": "tokens", "dim": "dim"} | {
    name: name for name in ("projector", "frozen", "update", "random_codes")
}
"""Options that the recipes' own names of runs leave out, and their word in ours."""


def _run_name(plan: Plan, published: RunConfig, config: RunConfig, data_set: str) -> str:
    """`looc_32x4_mnist_600x128`: the recipe's name, steps x batch, and a seed that is not usual."""
    stem, options = published.name, plan.options
    if data_set in SUBSTITUTES:
        stem = stem.replace(SUBSTITUTES[data_set], data_set)
    if plan.data_set not in SMALL_SETS:
        given = [(word, options[name]) for name, word in _UNNAMED.items() if name in options]
        stem += "".join(f"_{word}{Path(str(value)).stem}" for word, value in given)
    seed = f"_seed{config.seed}" if config.seed != published.seed else ""
    return f"{stem}_{config.optim.num_steps}x{config.optim.batch_size}{seed}"
