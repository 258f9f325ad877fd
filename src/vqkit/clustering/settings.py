"""Every setting of a clustering, checked when it is made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, Literal, get_args

from vqkit.config import require

Algorithm = Literal["lloyd", "minibatch"]
Init = Literal["random", "k-means++", "given"]

BLOCK_ELEMENTS = 2**23
"""Elements of vectors searched at a time (32 MiB in float32), unless there are more codes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KMeansSettings:
    """What is computed, and how. Only the first part changes the result."""

    num_clusters: int
    """K, from 1 to the number of vectors."""
    algorithm: Algorithm = "lloyd"
    """`lloyd` reads all vectors in every iteration; `minibatch` (Sculley 2010) a batch."""
    init: Init = "k-means++"
    """Where centres begin: `random` rows, `k-means++` (see `seeding`), or `given` as a tensor."""
    iterations: int = 25
    """At most so many passes over the vectors, or batches."""
    tolerance: float = 0.0
    """`lloyd` stops when inertia falls by a smaller share of itself than this; with 0 only when no
    vector moves to another centre."""
    batch_size: int | None = None
    """Vectors of a batch, over all processes; None: 4 for each centre, 1,024 at least."""
    batch_run: int = 64
    """A batch is made of runs of so many neighbouring rows: 1 mixes best, long runs read fast."""
    seed: int = 0
    """Of every draw, 0 or more."""

    block_rows: int | None = None
    """Vectors in memory at a time, for each process; None: 32 MiB, or one for each centre."""
    device: str | None = None
    """Blocks are moved there and searched there; None: where the vectors are (files: cpu)."""
    save_seconds: float = 10.0
    """The state is saved after an iteration if the last save is so long ago; at the end always."""

    def __post_init__(self) -> None:
        for name in ("algorithm", "init"):
            choices = get_args(Algorithm if name == "algorithm" else Init)
            value = getattr(self, name)
            listed = ", ".join(repr(choice) for choice in choices if choice != "given")
            others = ", or the first centres (K, D)" if name == "init" else ""
            require(
                isinstance(value, str) and value in choices,
                f"{name}={value!r}",
                f"expected one of {listed}{others}",
            )
        for name in ("num_clusters", "iterations", "batch_size", "batch_run", "block_rows"):
            if getattr(self, name) is not None or name not in ("batch_size", "block_rows"):
                self._set(name, 1, "must be a whole number of at least 1")
        self._set("seed", 0, "must be a whole number from 0 to 2^63 - 1")
        require(self.seed < 2**63, f"seed={self.seed}", "must be a whole number below 2^63")
        self._set("tolerance", 0, "must be a number in [0, 1)", whole=False)
        require(self.tolerance < 1, f"tolerance={self.tolerance}", "must lie in [0, 1)")
        self._set("save_seconds", 0, "must be a number of at least 0", whole=False)
        self._check_effect()

    def _set(self, name: str, least: int, problem: str, *, whole: bool = True) -> None:
        """Check a number, also one of numpy, and keep it as one of Python."""
        value = getattr(self, name)
        number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
        require(number and value >= least, f"{name}={value!r}", problem)
        object.__setattr__(self, name, int(value) if whole else float(value))

    def _check_effect(self) -> None:
        """Refuse settings that the other algorithm alone has."""
        if self.algorithm == "minibatch":
            require(
                self.tolerance == 0,
                f"tolerance={self.tolerance} with algorithm='minibatch'",
                "the inertia of batches goes up and down; set iterations instead",
            )
            return
        standard = {f.name: f.default for f in fields(self)}
        for name in ("batch_size", "batch_run"):
            value = getattr(self, name)
            require(
                value == standard[name],
                f"{name}={value} with algorithm='lloyd'",
                "has no effect; leave it out, or use algorithm='minibatch'",
            )

    def block(self, dim: int) -> int:
        """Rows of a block of vectors with `dim` dimensions."""
        # A search prepares all codes once per block: with as many rows that is a small part.
        return self.block_rows or max(self.num_clusters, BLOCK_ELEMENTS // dim, 1)

    def batch(self, num_vectors: int) -> int:
        """Vectors of a batch, at most all."""
        return min(self.batch_size or max(1024, 4 * self.num_clusters), num_vectors)

    def of_result(self) -> dict[str, Any]:
        """Return the settings that a result depends on, as JSON values."""
        values = asdict(self)
        for name in ("block_rows", "device", "save_seconds"):
            del values[name]
        return values


def make_settings(num_clusters: int, values: dict[str, Any]) -> KMeansSettings:
    """Build settings from keyword arguments; an unknown one is a `ValueError` naming its like."""
    known = [f.name for f in fields(KMeansSettings)]
    for name in values:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        require(name in known, f"{name}={values[name]!r}", f"{hint}settings are {', '.join(known)}")
    return KMeansSettings(num_clusters=num_clusters, **values)
