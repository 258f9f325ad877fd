"""Codebook files put together and taken apart.

Legend: K codes, D dim, n chosen codes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqkit.clustering import kmeans
from vqkit.clustering.draws import Purpose, distinct_rows
from vqkit.codebooks.cluster import described_kmeans, narrowed
from vqkit.codebooks.features import SAME_ENCODER
from vqkit.codebooks.files import CodebookFile, dtype_name
from vqkit.codebooks.report import copies_in, quality
from vqkit.config import require


def merge(
    books: Sequence[CodebookFile],
    num_codes: int | None = None,
    *,
    remove_equal: bool = False,
    state: Path | None = None,
    progress: bool = True,
    **kmeans_settings: Any,
) -> CodebookFile:
    """Join codebooks of the same kind of features.

    Args:
        books: their codes stand one after the other.
        num_codes: cluster them, every code counting once, down to so many; None keeps all. This is
            how 16,384 codes come from VQGAN-LC's 1,000 × 100 centres.
        remove_equal: keep only the first of equal codes.
        state: as in `make_codebook`, for the clustering.
        progress: show on stderr how far the clustering is.
        kmeans_settings: fields of `KMeansSettings`; only with `num_codes`.

    Raises:
        ValueError: codes of different lengths or from different encoders, more codes asked for
            than there are, nothing to do.
    """
    plan = plan_merge(books, num_codes, remove_equal=remove_equal, settings=kmeans_settings)
    codes = torch.cat([book.codes.float() for book in books])
    groups = _joined_groups(books)
    copies = copies_in(codes) if remove_equal else None
    report: dict[str, Any] = {"joined": len(codes)}
    if remove_equal:
        report["removed"] = 0 if copies is None else int(copies.sum())
    if copies is not None:
        codes = codes[~copies]
        groups = _chosen_groups(groups, (~copies).nonzero()[:, 0])
    if num_codes is not None:
        groups = None
        require(
            num_codes <= len(codes),
            f"num_codes={num_codes:,}",
            f"the files hold {len(codes):,} different codes together; ask for fewer",
        )
        found = kmeans(codes, num_codes, state=state, progress=progress, **kmeans_settings)
        codes, report = found.centres, {**report, **quality(found)}
    dtype = getattr(torch, plan["dtype"])
    return CodebookFile(narrowed(codes, dtype), {**plan, "groups": groups, "report": report})


def plan_merge(
    books: Sequence[CodebookFile],
    num_codes: int | None,
    *,
    remove_equal: bool,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Check the arguments of `merge`, and return what determines its codes."""
    require(
        len(books) >= 2 or num_codes is not None or remove_equal,
        f"codebooks: {len(books)}",
        "nothing to do; name several, or give num_codes or remove_equal",
    )
    first, sources = books[0], [book.provenance.get("features") for book in books]
    known = next((one for one in sources if (one or {}).get("encoder") is not None), None)
    for book, features in zip(books, sources, strict=True):
        require(
            book.dim == first.dim,
            f"codebooks of {first.dim} and of {book.dim} dimensions",
            "only codes of one kind of features can be merged; make them of the same features",
        )
        require_same_encoder(known, features)
    total = sum(book.num_codes for book in books)
    described: dict[str, Any] = {
        "sources": [book.sha256 for book in books],
        "remove_equal": remove_equal,
        "num_codes": num_codes,
    }
    if num_codes is None:
        for name, value in settings.items():
            raise ValueError(f"{name}={value!r}: has no effect without num_codes; leave it out")
    else:
        require(
            1 <= num_codes <= total,
            f"num_codes={num_codes:,}",
            f"must lie between 1 and the {total:,} codes that there are",
        )
        described["kmeans"] = described_kmeans(num_codes, settings)
    wide = any(book.codes.dtype == torch.float32 for book in books)
    return {
        "method": "merge",
        "dtype": dtype_name(torch.float32 if wide else torch.float16),
        "settings": described,
        "features": _joined_features(books),
    }


def subset(book: CodebookFile, ids: Tensor, choice: dict[str, Any]) -> CodebookFile:
    """Take codes by their ids.

    Args:
        book: K codes.
        ids: (n,) int64, different ones in [0, K); their order is kept.
        choice: how they were chosen, for the record (JSON values).

    Raises:
        ValueError: no ids, or ids that are out of range or named twice.
    """
    require(ids.ndim == 1 and len(ids) >= 1, f"ids={tuple(ids.shape)}", "name at least one code")
    low, high = int(ids.min()), int(ids.max())
    wrong = low if low < 0 else high
    require(
        low >= 0 and high < book.num_codes,
        f"ids: {wrong:,}",
        f"the codebook has {book.num_codes:,} codes, numbered from 0",
    )
    found, counts = ids.unique(return_counts=True)
    twice = int(found[counts.argmax()])
    require(len(found) == len(ids), f"ids: {twice:,}", "stands there twice; name a code once")
    ordered = bool((ids[1:] > ids[:-1]).all())
    record = {
        "method": "subset",
        "settings": {"source": book.sha256, **choice},
        "features": book.provenance.get("features"),
        "groups": _chosen_groups(book.provenance.get("groups"), ids) if ordered else None,
        "report": {"num_codes_of_source": book.num_codes},
    }
    return CodebookFile(book.codes[ids].clone(), record)


def random_ids(book: CodebookFile, count: int, seed: int = 0) -> tuple[Tensor, dict[str, Any]]:
    """Draw `count` different codes: ascending ids, and the choice for `subset`."""
    _check_count("random", count, book)
    ids = distinct_rows(seed, Purpose.SAMPLE, 0, count, book.num_codes)
    return ids, {"random": count, "seed": seed}


def used_ids(book: CodebookFile, count: int, uses: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Choose the `count` codes with most `uses` (K,), of equal ones the first; ascending ids."""
    _check_count("most_used", count, book)
    require(
        uses.shape == (book.num_codes,),
        f"usage: {tuple(uses.shape)} numbers",
        f"the codebook has {book.num_codes:,} codes; give the counts of a model with these",
    )
    ids = uses.argsort(descending=True, stable=True)[:count].sort().values
    digest = hashlib.sha256(uses.double().contiguous().numpy().tobytes()).hexdigest()
    return ids, {"most_used": count, "usage": digest}


def group_ids(book: CodebookFile, start: int, stop: int) -> tuple[Tensor, dict[str, Any]]:
    """Choose the codes of groups start to stop - 1."""
    groups = book.groups
    if groups is None:
        raise ValueError("groups: this codebook has none; only per_group clustering keeps them")
    require(
        0 <= start < stop <= len(groups),
        f"groups={start}:{stop}",
        f"there are {len(groups):,}, numbered from 0; give FIRST:LAST+1",
    )
    before = sum(count for _, count in groups[:start])
    chosen = sum(count for _, count in groups[start:stop])
    return torch.arange(before, before + chosen), {"groups": [start, stop]}


def read_numbers(path: str | Path) -> Tensor:
    """Read a file of numbers (n,): .npy, .json (a list), or text with one number a line.

    An object of .json with `counts` gives these. Anything else is a `ValueError`.
    """
    file = Path(path).expanduser()
    require(file.is_file(), f"file={str(path)!r}", "there is no such file")
    wanted = "holds no list of numbers; give .npy, a list in .json, or one number a line"
    try:
        if file.suffix == ".npy":
            values = np.load(file, allow_pickle=False)
        elif file.suffix == ".json":
            read = json.loads(file.read_text(encoding="utf-8"))
            values = np.asarray(read["counts"] if isinstance(read, dict) else read)
        else:
            values = np.loadtxt(file, ndmin=1)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"file={str(path)!r}: {wanted} ({error})") from error
    require(
        values.ndim == 1 and values.dtype.kind in "iuf" and bool((values == values.round()).all()),
        f"file={str(path)!r}",
        "need whole numbers in one row",
    )
    return torch.from_numpy(values.astype(np.int64))


def require_same_encoder(first: dict[str, Any] | None, second: dict[str, Any] | None) -> None:
    """Raise `ValueError` if two provenances name encoders that are not the same."""
    one, other = ((features or {}).get("encoder") for features in (first, second))
    if one is None or other is None:
        return
    differ = [name for name in SAME_ENCODER if one.get(name) != other.get(name)]
    facts = ", ".join(
        f"{name} {_short(one.get(name))} and {_short(other.get(name))}" for name in differ
    )
    require(
        not differ,
        f"features of different encoders ({facts})",
        "they do not lie in one space; extract both with one encoder (pixels: --whitening)",
    )


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 20 else str(value)


def _check_count(setting: str, count: int, book: CodebookFile) -> None:
    require(
        1 <= count <= book.num_codes,
        f"{setting}={count:,}",
        f"must lie between 1 and the {book.num_codes:,} codes that there are",
    )


def _joined_features(books: Sequence[CodebookFile]) -> dict[str, Any] | None:
    found = [book.provenance.get("features") for book in books]
    if all(features == found[0] for features in found):
        return found[0]
    encoders = [(features or {}).get("encoder") for features in found]
    encoder = next((one for one in encoders if one is not None), None)
    return {"encoder": encoder, "sets": found}


def _joined_groups(books: Sequence[CodebookFile]) -> list[list[Any]] | None:
    found = [book.groups for book in books]
    if any(groups is None for groups in found):
        return None
    return [list(pair) for groups in found for pair in groups or ()]


def _chosen_groups(groups: list[list[Any]] | None, ids: Tensor) -> list[list[Any]] | None:
    """Count the ascending ids of every group; groups without any are left out."""
    if groups is None:
        return None
    sizes = torch.tensor([count for _, count in groups])
    place = torch.searchsorted(sizes.cumsum(0), ids, right=True)
    counts = torch.bincount(place, minlength=len(groups)).tolist()
    return [[name, count] for (name, _), count in zip(groups, counts, strict=True) if count]
