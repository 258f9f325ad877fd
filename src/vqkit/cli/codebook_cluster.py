"""`vqkit codebook cluster`: features to codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vqkit.cli.console import say
from vqkit.cli.launch import processes, resumable
from vqkit.cli.options import Options, split_names

if TYPE_CHECKING:
    from vqkit.codebooks import CodebookFile


def run(words: Sequence[str]) -> None:
    """Make a codebook file of features: k-means centres, or random rows (--method select).

    FEATURES is a folder of `vqkit codebook extract`, several of one encoder, or a folder or file of
    .npy or .parquet shards. A killed command goes on where it stopped, and torchrun shares the
    work; the file is the same.
    """
    names, rest = split_names(words)
    from vqkit.codebooks.cluster import Method, cluster_into

    options = Options("codebook cluster FEATURES [FEATURES ...] --out FILE", run.__doc__)
    options.add("out", str, "codebook file to write, such as codes.safetensors")
    options.add("num_codes", int, "codes of the codebook, at most one for each feature")
    options.add("method", Method, "kmeans (default), or select: random features as they are")
    options.add_flag("per_group", "every class by itself; each gets an equal share of the codes")
    options.add("dtype", str, "float16 or float32; default float16 for features in it")
    add_kmeans_options(options)
    options.add_flag("overwrite", "replace a codebook of other settings or features")
    given = options.parse(rest)
    if not names:
        raise ValueError("features: none are named; give a folder of vqkit codebook extract")
    out = required(given.pop("out", None))
    if "num_codes" not in given:
        raise ValueError("num_codes: how many codes is not said; give --num_codes")
    with processes() as first, resumable():
        given["progress"] = first
        book, made = cluster_into(out, [Path(name) for name in names], **given)
    if first:
        say(f"{'wrote' if made else 'is there already:'} {facts(book)} → {out}")


def add_kmeans_options(options: Options) -> None:
    """Add the settings of k-means as options, but for K."""
    from vqkit.clustering import KMeansSettings

    options.add_fields(KMeansSettings, skip=("num_clusters",))


def required(out: str | None) -> Path:
    """Return the file to write; none is a `ValueError`."""
    if out is None:
        raise ValueError("out: no file is named; give --out FILE")
    return Path(out).expanduser()


def facts(book: CodebookFile) -> str:
    """Describe a codebook that was just made, in a line."""
    record = book.provenance
    report, features = record["report"], record.get("features") or {}
    text = f"{book.num_codes:,} codes of {book.dim:,} numbers"
    if record["method"] == "select":
        text += f", random ones of {features.get('num_vectors', 0):,} features"
    if "mean_squared_distance" in report:
        sizes = report["sizes"]
        text += (
            f", {len(report['iterations'])} iterations over {report['num_vectors']:,} vectors: "
            f"mean squared distance {report['mean_squared_distance']:.6g}, vectors of a code "
            f"{sizes['smallest']:,} to {sizes['largest']:,} (median {sizes['median']:,}), "
            f"{report['repaired']:,} empty codes repaired, {report['unused']:,} left"
        )
        if sizes["median"] <= 1:
            text += (
                "\nhalf of the codes hold one vector at most, and are single outliers: extract "
                "more features (30 for each code), begin with --init random, or --method select"
            )
    return text
