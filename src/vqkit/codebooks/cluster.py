"""Codes out of features: k-means centres or random rows, of all features or of every class.

VQGAN-LC (arXiv:2406.11837) clusters the features of every ImageNet class by itself and joins the
centres; where its text speaks of one clustering, its code does this. Both are here.

Legend: N features, D dim, K codes, G groups (classes).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vqkit.clustering import VectorSource, kmeans
from vqkit.clustering.draws import Purpose, distinct_rows
from vqkit.clustering.keeper import describe_settings
from vqkit.clustering.processes import together
from vqkit.clustering.progress import open_progress
from vqkit.clustering.settings import make_settings
from vqkit.codebooks.files import DTYPES, CodebookFile, dtype_name
from vqkit.codebooks.outputs import keep
from vqkit.codebooks.report import quality
from vqkit.codebooks.sources import (
    Features,
    labels_of,
    open_source,
    share_codes,
    verify,
    with_contents,
)
from vqkit.config import require

Method = Literal["kmeans", "select"]

SELECT_ROWS = 4096
"""Rows that `select` reads at a time."""


def make_codebook(
    features: Features,
    num_codes: int,
    *,
    method: Method = "kmeans",
    per_group: bool = False,
    state: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    dtype: str | None = None,
    **kmeans_settings: Any,
) -> CodebookFile:
    """Make K codes of features (N, D); the same input gives the same codes and record.

    Args:
        features: a folder of `extract`, several of them (joined), or whatever `kmeans` reads. All
            shards of feature sets are checked against their SHA-256 first.
        num_codes: K, from 1 to N.
        method: `kmeans` (centres), or `select`: different random rows (Table 6 of the paper).
        per_group: every class by itself; codes stand in the order of the classes. Each gets K // G
            codes, and the first K % G classes one more. Classes without features do not count.
        state: a file that keeps what is needed to continue k-means after a kill.
        resume: False refuses to continue a state that is there.
        progress: show on stderr how far it is, every 10 seconds.
        dtype: "float16" or "float32"; None: float16 for features in it, else float32.
        kmeans_settings: fields of `KMeansSettings`, among them `iterations` and `seed`; `select`
            has only `seed`.

    Returns:
        codes and record; its report has inertia, sizes and repairs, and no times.

    Raises:
        ValueError: settings or features that do not fit, K > N, a class with fewer features than
            codes, broken shards, a state of another clustering.
        OSError: the state cannot be written.
    """
    job = _agreed_plan(features, num_codes, method, per_group, dtype, kmeans_settings)
    return job.run(state, resume=resume, progress=progress)


def cluster_into(
    out: str | Path,
    features: Features,
    num_codes: int,
    *,
    method: Method = "kmeans",
    per_group: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    dtype: str | None = None,
    **kmeans_settings: Any,
) -> tuple[CodebookFile, bool]:
    """Make a codebook file as `make_codebook`, with the state beside `out`.

    After a kill the same call goes on and gives the same bytes. Where this codebook is in `out`
    already, nothing is done, and the second value returned is False.

    Raises:
        ValueError: as `make_codebook`; `out` holds a codebook of other settings or features and
            `overwrite` is not given, or it holds something else.
        OSError: the file or the state cannot be written.
    """
    out = Path(out).expanduser()
    job = _agreed_plan(features, num_codes, method, per_group, dtype, kmeans_settings)
    return keep(out, job.plan, partial(job.run, progress=progress), overwrite=overwrite)


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """A codebook that is to be made; all settings are checked."""

    source: VectorSource
    method: Method
    num_codes: int
    dtype: torch.dtype
    features: dict[str, Any]
    """Provenance."""
    settings: dict[str, Any]
    """As given, for `kmeans`."""
    described: dict[str, Any]
    """What the codes depend on, as JSON values."""
    labels: Tensor | None = None
    """(N,) group of every feature."""
    groups: list[tuple[str, int]] = field(default_factory=list)
    """Name and codes of every group, in the order of the labels."""

    @property
    def plan(self) -> dict[str, Any]:
        """What determines the codes; see `files.IDENTITY`."""
        return {
            "method": self.method,
            "dtype": dtype_name(self.dtype),
            "settings": self.described,
            "features": self.features,
        }

    def run(
        self, state: str | Path | None = None, *, resume: bool = True, progress: bool = True
    ) -> CodebookFile:
        """Make the codes, once all shards are found to be whole."""
        processes = together()
        processes.agreed(partial(verify, self.source))
        if self.method == "select":
            codes = processes.agreed(partial(self._select, progress))
            report: dict[str, Any] = {"num_vectors": self.source.num_vectors}
        else:
            wanted = [count for _, count in self.groups] if self.labels is not None else None
            found = kmeans(
                self.source,
                self.num_codes if wanted is None else wanted,
                groups=self.labels,
                state=state,
                resume=resume,
                progress=progress,
                **self.settings,
            )
            codes, report = found.centres.cpu(), quality(found)
        groups = None if self.labels is None else [list(pair) for pair in self.groups]
        record = {**self.plan, "groups": groups, "report": report}
        return CodebookFile(narrowed(codes, self.dtype), record)

    def _select(self, progress: bool) -> Tensor:
        """Read random rows in ascending order, and put them in the order of the groups."""
        rows = self._random_rows()
        order = rows.sort()
        codes = torch.empty(len(rows), self.source.dim, dtype=self.source.dtype)
        bar = open_progress(progress, len(rows), "select")
        for start in range(0, len(rows), SELECT_ROWS):
            part = slice(start, start + SELECT_ROWS)
            codes[order.indices[part]] = self.source.take(order.values[part]).cpu()
            bar.tick(len(order.values[part]))
        finite = codes.isfinite().all(1)
        bad = 0 if bool(finite.all()) else int(rows[~finite][0])
        require(
            bool(finite.all()),
            f"features: {self.source.place(bad)}",
            "holds values that are not finite; extract them anew",
        )
        return codes

    def _random_rows(self) -> Tensor:
        seed, total = self.described["seed"], self.source.num_vectors
        if self.labels is None:
            return distinct_rows(seed, Purpose.SAMPLE, 0, self.num_codes, total)
        present, inverse, sizes = self.labels.unique(return_inverse=True, return_counts=True)
        by_group = inverse.argsort(stable=True).split(sizes.tolist())
        return torch.cat(
            [
                mine[distinct_rows(seed, Purpose.SAMPLE, 1 + label, count, len(mine))]
                for mine, label, (_, count) in zip(
                    by_group, present.tolist(), self.groups, strict=True
                )
            ]
        )


def _agreed_plan(*arguments: Any) -> ClusterJob:
    """Return `plan_codebook` of these, or raise the error of any process in all of them."""
    return together().agreed(partial(plan_codebook, *arguments))


def plan_codebook(
    features: Features,
    num_codes: int,
    method: Method,
    per_group: bool,
    dtype: str | None,
    settings: dict[str, Any],
) -> ClusterJob:
    """Check everything that `make_codebook` is given; errors are those of its docstring."""
    require(method in get_args(Method), f"method={method!r}", "expected 'kmeans' or 'select'")
    whole = isinstance(num_codes, Integral) and not isinstance(num_codes, bool)
    require(
        whole and num_codes >= 1, f"num_codes={num_codes!r}", "must be a whole number of at least 1"
    )
    described = _described(method, int(num_codes), settings)
    source, provenance = open_source(features)
    require(
        num_codes <= source.num_vectors,
        f"num_codes={num_codes:,}",
        f"there are only {source.num_vectors:,} features; ask for fewer codes, or extract more "
        "(more images, less pooling)",
    )
    labels: Tensor | None = None
    groups: list[tuple[str, int]] = []
    if per_group:
        labels, names = labels_of(source)
        groups = share_codes(int(num_codes), labels, names)
    return ClusterJob(
        source,
        method,
        int(num_codes),
        _type(dtype, source.dtype),
        with_contents(source, provenance),
        settings,
        {"num_codes": int(num_codes), "per_group": per_group, **described},
        labels,
        groups,
    )


def narrowed(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert codes (K, D); those that the type cannot hold are a `ValueError`."""
    found = codes.to(dtype).contiguous()
    largest = float(codes.abs().max())
    require(
        bool(found.isfinite().all()),
        f"dtype={dtype_name(dtype)!r}",
        f"cannot hold codes up to {largest:.4g}; use 'float32'",
    )
    return found


def described_kmeans(num_codes: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of k-means that its result depends on; given centres as a hash."""
    start = settings.get("init")
    if start is None or isinstance(start, str):
        require(start != "given", "init='given'", "give the name of a method: 'k-means++'")
        described = make_settings(num_codes, settings).of_result()
    else:
        start = torch.as_tensor(start)
        named = make_settings(num_codes, {**settings, "init": "given"})
        described = describe_settings(named, start)
    del described["num_clusters"]
    return described


def _described(method: Method, num_codes: int, settings: dict[str, Any]) -> dict[str, Any]:
    if method == "kmeans":
        return described_kmeans(num_codes, settings)
    for name, value in settings.items():
        if name != "seed":
            raise ValueError(f"{name}={value!r} with method='select': has no effect; leave it out")
    return {"seed": make_settings(num_codes, settings).seed}


def _type(name: str | None, of_features: torch.dtype) -> torch.dtype:
    if name is None:
        return torch.float16 if of_features == torch.float16 else torch.float32
    require(name in DTYPES, f"dtype={name!r}", f"expected one of {', '.join(map(repr, DTYPES))}")
    return DTYPES[name]
