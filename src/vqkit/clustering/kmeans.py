"""The public function: vectors in, centres out.

Legend: N vectors, D dim, K centres, G groups.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
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
from vqkit.clustering.sources import VectorSource, fingerprint, open_vectors, sample
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

    The result depends on the vectors, their order and the settings alone: not on blocks, shards,
    threads, nor the number of processes. Under torch.distributed every process makes the same
    call, works on its part of the rows and returns the same result.

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
        ValueError: K > N, values that are not finite (their place is named), an unknown setting
            or column, shapes that do not fit, a damaged state or one of another clustering.
        OSError: the state cannot be written.
    """
    source = open_vectors(vectors, column)
    start = _given(settings, source)
    path = None if state is None else Path(state)
    if groups is not None:
        parts = Groups.of(_labels(source, groups), source.num_vectors, num_clusters)
        checked = make_settings(int(parts.centres.max()), settings)
        _check_start(start, int(parts.centres.sum()))
        return _by_group(source, parts, checked, start, path, resume=resume, progress=progress)
    if not isinstance(num_clusters, int):
        raise ValueError(
            f"num_clusters={num_clusters!r}: must be one whole number; several are for groups=..."
        )
    checked = make_settings(num_clusters, settings)
    _check_start(start, num_clusters)
    return _whole(source, checked, start, together(), path, resume=resume, progress=progress)


def _whole(
    source: VectorSource,
    settings: KMeansSettings,
    start: Tensor | None,
    processes: Processes,
    path: Path | None,
    *,
    resume: bool,
    progress: bool,
) -> Clustering:
    """Cluster all vectors of a source together."""
    require(
        settings.num_clusters <= source.num_vectors,
        f"num_clusters={settings.num_clusters}",
        f"there are only {source.num_vectors:,} vectors; ask for fewer centres",
    )
    device = _device(settings, source)
    rows = sample(source)
    belongs = {"settings": describe_settings(settings, start), "data": fingerprint(source, rows)}
    saved = load(path, processes, belongs, resume=resume)
    lloyd = settings.algorithm == "lloyd"
    first, last = processes.share(source.num_vectors)
    of_iteration = last - first if lloyd else settings.batch(source.num_vectors)
    # The survey before the first iteration reads all vectors too.
    total = last - first + settings.iterations * of_iteration
    bar = open_progress(progress and processes.rank == 0, total)
    share = Share(source, processes, settings.block(source.dim), device, bar.tick)
    keeper = Keeper(path, belongs, settings.save_seconds, time.monotonic(), processes.rank == 0)
    if saved is None:
        run = begin(share, settings, start)
    else:
        run = resumed(share, settings, saved)
        keeper.saved = run.now.step
        bar.skip(last - first + run.now.step * of_iteration)
    return iterate(run, keeper)


def _by_group(
    source: VectorSource,
    groups: Groups,
    settings: KMeansSettings,
    start: Tensor | None,
    path: Path | None,
    *,
    resume: bool,
    progress: bool,
) -> Clustering:
    """Cluster every group by itself; `start` are the first centres of all of them."""
    processes = together()
    rows = sample(source)
    own_settings = describe_settings(settings, start)
    own_settings["groups"] = groups.fingerprint()
    # A group that is done does not go on, as a whole clustering does.
    own_settings["iterations_of_groups"] = own_settings.pop("iterations")
    belongs = {"settings": own_settings, "data": fingerprint(source, rows)}
    saved = load(path, processes, belongs, resume=resume)
    run = GroupRun(groups, saved)
    bar = open_progress(progress and processes.rank == 0, source.num_vectors)
    bar.skip(run.num_done)
    alone = Processes()
    starts = None if start is None else start.split(groups.centres.tolist())

    def cluster(part: VectorSource, group: int) -> Clustering:
        given = None if starts is None else starts[group]
        own = groups.settings(settings, group)
        return _whole(part, own, given, alone, None, resume=True, progress=False)

    keeper = Keeper(path, belongs, settings.save_seconds, time.monotonic(), processes.rank == 0)
    keeper.saved = len(run.results)
    try:
        for done in run.advance(source, cluster, processes):
            bar.tick(done)
            keeper.save(len(run.results), run.state, now=False)
    finally:
        keeper.save(len(run.results), run.state, now=True)
    return run.result(_device(settings, source))


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
    if isinstance(init, np.ndarray):
        init = torch.from_numpy(np.ascontiguousarray(init))
    if not isinstance(init, Tensor):
        require(init != "given", "init='given'", "pass the first centres themselves, (K, D)")
        return None
    settings["init"] = "given"
    require(
        init.dim() == 2 and init.shape[1] == source.dim and init.is_floating_point(),
        f"init={tuple(init.shape)} of {init.dtype}",
        f"need floating point centres (K, {source.dim})",
    )
    require(bool(init.isfinite().all()), "init", "holds values that are not finite; leave them out")
    return init.detach().float()


def _check_start(start: Tensor | None, num_centres: int) -> None:
    require(
        start is None or len(start) == num_centres,
        f"init: {0 if start is None else len(start):,} centres",
        f"need {num_centres:,}, one for each cluster",
    )
