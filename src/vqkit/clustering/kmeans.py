"""The public function: vectors in, centres out.

Legend: N vectors, D dim, K centres, G groups.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqkit.clustering.groups import GroupRun, Groups
from vqkit.clustering.keeper import Keeper, describe_settings, iterate, load
from vqkit.clustering.processes import Processes, together
from vqkit.clustering.progress import open_progress
from vqkit.clustering.report import Clustering
from vqkit.clustering.run import begin, resumed
from vqkit.clustering.settings import KMeansSettings, make_settings
from vqkit.clustering.sources import (
    VectorSource,
    fingerprint,
    open_vectors,
    require_plain,
    sample,
)
from vqkit.clustering.state import State
from vqkit.clustering.survey import Share
from vqkit.config import require


def kmeans(
    vectors: Tensor | np.ndarray | str | Path | VectorSource,
    num_clusters: int | Sequence[int],
    *,
    column: str | None = None,
    groups: Tensor | np.ndarray | str | None = None,
    state: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    **settings: Any,
) -> Clustering:
    """Find centres with a small sum of squared distances from every vector to its nearest one.

    The result depends on the vectors, their order and the settings alone, not on blocks, shards or
    the number of processes. Under torch.distributed every process makes the same call, works on its
    part of the rows and returns the same result.

    Args:
        vectors: (N, D) in memory (tensor or array, float16, bfloat16, float32 or float64), a
            memory-mapped array, or a file or folder of `.npy` or `.parquet` shards, read once in
            every iteration (once more where empty centres are repaired), and once before the first.
        num_clusters: K, up to N; with groups the centres of each, one number or G of them.
        column: of parquet shards; None takes the only column of lists.
        groups: (N,) whole numbers, or the name of such a column of parquet shards: the vectors of
            each group are clustered by themselves, and centres stand in the order of groups.
        state: a file that keeps what is needed to continue, written between iterations. A call
            with the same arguments goes on from there (or returns what is finished).
        resume: False refuses to continue a state that is there.
        progress: show on stderr how far it is, every 10 seconds.
        settings: fields of `KMeansSettings`, among them `algorithm`, `init` (its names, or the
            first centres (K, D)), `iterations`, `tolerance`, `seed` and `device`.

    Returns:
        centres (K, D) float32 with their sizes, and the report of all iterations.

    Raises:
        ValueError: K > N, values that are not finite or so large that sums hide how the others
            differ (their place is named), an unknown setting or column, shapes that do not fit, a
            damaged state or one of another clustering, processes whose calls differ. What goes
            wrong in one process is raised by all.
        OSError: the state cannot be written.
    """
    processes = together()
    job = processes.agreed(lambda: _prepare(vectors, num_clusters, column, groups, state, settings))
    same = {
        f"{part}.{name}": value
        for part, values in job.belongs.items()
        for name, value in values.items()
    }
    processes.require_same({**same, "state": job.path is not None, "resume": resume})
    saved = load(job.path, processes, job.belongs, resume=resume)
    every = job.settings.save_seconds
    keeper = Keeper(job.path, job.belongs, every, time.monotonic(), processes)
    cluster = _whole if job.groups is None else _by_group
    return cluster(job, keeper, saved, progress=progress)


@dataclass(frozen=True, slots=True)
class _Job:
    """A call whose arguments are checked."""

    source: VectorSource
    sample: Tensor
    settings: KMeansSettings
    start: Tensor | None
    """Given centres of all groups."""
    device: torch.device
    groups: Groups | None = None
    path: Path | None = None
    belongs: dict[str, Any] = field(default_factory=dict)
    """Settings and data, for the state."""


def _prepare(
    vectors: object,
    num_clusters: Any,
    column: str | None,
    groups: Tensor | np.ndarray | str | None,
    state: str | Path | None,
    settings: dict[str, Any],
) -> _Job:
    """Check all arguments, and read the rows by which data are recognised."""
    source = open_vectors(vectors, column)
    shape = f"vectors=({source.num_vectors}, {source.dim})"
    require(source.num_vectors >= 1, shape, "there are only 0 vectors; pass at least one")
    start = _given(settings, source)
    parts: Groups | None = None
    most = num_clusters
    if groups is not None:
        parts = Groups.of(_labels(source, groups), source.num_vectors, num_clusters)
        most = int(parts.centres.max())
    require(
        isinstance(most, Integral),
        f"num_clusters={num_clusters!r}",
        "must be one whole number; several are for groups=...",
    )
    checked = make_settings(most, settings)
    _check_start(start, checked.num_clusters if parts is None else int(parts.centres.sum()))
    require(
        checked.num_clusters <= source.num_vectors,
        f"num_clusters={checked.num_clusters}",
        f"there are only {source.num_vectors:,} vectors; ask for fewer centres",
    )
    device, rows = _device(checked, source), sample(source)
    described = describe_settings(checked, start)
    if parts is not None:
        described["groups"] = parts.fingerprint()
    belongs = {"settings": described, "data": fingerprint(source, rows)}
    path = None if state is None else Path(state)
    return _Job(source, rows, checked, start, device, parts, path, belongs)


def _whole(job: _Job, keeper: Keeper, saved: State | None, *, progress: bool) -> Clustering:
    """Cluster all vectors of a source together."""
    source, settings, processes = job.source, job.settings, keeper.processes
    lloyd = settings.algorithm == "lloyd"
    first, last = processes.share(source.num_vectors)
    of_iteration = last - first if lloyd else settings.batch(source.num_vectors)
    # The survey before the first iteration reads all vectors too.
    total = last - first + settings.iterations * of_iteration
    bar = open_progress(progress and processes.rank == 0, total)
    share = Share(source, processes, settings.block(source.dim), job.device, bar.tick)
    if saved is None:
        run = begin(share, settings, job.start, job.sample)
    else:
        run = resumed(share, settings, saved)
        keeper.saved = run.now.step
        bar.total += (last - first) if lloyd and run.now.step else 0  # ids are found again
        bar.skip(last - first + run.now.step * of_iteration)
    return iterate(run, keeper)


def _by_group(job: _Job, keeper: Keeper, saved: State | None, *, progress: bool) -> Clustering:
    """Cluster every group by itself."""
    assert job.groups is not None, "this is called with groups"
    groups, source = job.groups, job.source
    run = GroupRun(groups, saved, job.settings.iterations)
    bar = open_progress(progress and keeper.processes.rank == 0, source.num_vectors)
    bar.skip(run.num_done)
    starts = None if job.start is None else job.start.split(groups.centres.tolist())

    def cluster(part: VectorSource, group: int) -> Clustering:
        given = None if starts is None else starts[group]
        own = groups.settings(job.settings, group)
        alone = Keeper(None, {}, own.save_seconds, time.monotonic(), Processes())
        mine = _Job(part, sample(part), own, given, job.device)
        return _whole(mine, alone, None, progress=False)

    keeper.saved = len(run.results)
    try:
        for done in run.advance(source, cluster, keeper.processes):
            bar.tick(done)
            keeper.save(len(run.results), run.state, now=False)
        keeper.save(len(run.results), run.state, now=True)
    except BaseException:
        keeper.rescue(len(run.results), run.state)
        raise
    return run.result(job.device)


def _device(settings: KMeansSettings, source: VectorSource) -> torch.device:
    """Return where blocks are searched. Sums need float64, which Apple's GPUs lack."""
    try:
        device = torch.device(settings.device or source.device)
    except RuntimeError as error:
        raise ValueError(
            f"device={settings.device!r}: is no device of torch; use 'cuda'"
        ) from error
    require(device.type in ("cpu", "cuda"), f"device={str(device)!r}", "use 'cpu' or 'cuda'")
    require(
        device.type == "cpu" or torch.cuda.is_available(),
        f"device={str(device)!r}",
        "torch sees no CUDA device; use 'cpu'",
    )
    return device


def _labels(source: VectorSource, groups: Tensor | np.ndarray | str) -> Tensor:
    if isinstance(groups, str):
        return source.column(groups)
    if isinstance(groups, Tensor):
        return groups
    require_plain(groups, "groups")
    array = np.asarray(groups)
    require(
        array.dtype.kind in "iu",
        f"groups: type {array.dtype}",
        "need whole numbers, or the name of a column of parquet shards",
    )
    return torch.from_numpy(array.astype(np.int64))


def _given(settings: dict[str, Any], source: VectorSource) -> Tensor | None:
    """Take given centres (K, D) out of `settings`, and leave the word."""
    init = settings.get("init")
    require_plain(init, "init")
    if isinstance(init, list | tuple | np.ndarray):
        try:
            kind = None if isinstance(init, np.ndarray) else np.float64
            init = torch.from_numpy(np.array(init, kind, order="C"))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"init: {error}; need floating point centres (K, {source.dim})"
            ) from error
    if not isinstance(init, Tensor):
        named = isinstance(init, str) and init == "given"
        require(not named, "init='given'", "pass the first centres themselves, (K, D)")
        return None
    settings["init"] = "given"
    require(
        init.dim() == 2 and init.shape[1] == source.dim and init.is_floating_point(),
        f"init={tuple(init.shape)} of {init.dtype}",
        f"need floating point centres (K, {source.dim})",
    )
    centres = init.detach().float()
    finite = bool(centres.isfinite().all())
    require(finite, "init", "holds values that are not finite in float32; leave them out")
    return centres


def _check_start(start: Tensor | None, num_centres: int) -> None:
    require(
        start is None or len(start) == num_centres,
        f"init: {0 if start is None else len(start):,} centres",
        f"need {num_centres:,}, one for each cluster",
    )
