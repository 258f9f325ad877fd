"""Tables to check: the published ones by name, files in the JSON form, CSV, evaluations."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from vqkit.config.core import require
from vqkit.ledger.cells import FORMAT, Setting, read_json, tables_of
from vqkit.ledger.lint.findings import Claim, Dossier
from vqkit.ledger.published import OTHERS, PAPERS, tables

KNOWN = (*PAPERS, *OTHERS)
"""Names under which vqkit carries tables; `papers` stands for the first three."""

_HERE = Path(__file__).parent.parent
_EVALUATION = "vqkit-evaluation-1"
_METRICS = frozenset(
    {"psnr", "ssim", "l1", "l2", "lpips", "lpips_vgg", "lpips_alex", "rfid", "gfid", "fid", "kid"}
    | {"utilization", "usage", "usage_ceiling", "perplexity", "rate", "entropy_rate", "top1"}
)
"""Columns of a CSV file, and metrics of an evaluation, that the linter reads."""


def gather(names: Iterable[str]) -> Dossier:
    """Read what is named: known papers, `papers`, JSON and CSV files, folders of runs.

    Whatever cannot be read is a `ValueError` that names it.
    """
    listed = [one for name in names for one in (PAPERS if name == "papers" else (name,))]
    found = [_known(name) if name in KNOWN else _file(Path(name)) for name in dict.fromkeys(listed)]
    require(bool(found), "tables", f"none are named; give files, or {', '.join(KNOWN)}")
    parts = [dossier for group in found for dossier in group]
    return Dossier(
        tables=tuple(table for part in parts for table in part.tables),
        claims=tuple(claim for part in parts for claim in part.claims),
        defaults={key: value for part in parts for key, value in part.defaults.items()},
    )


def _known(name: str) -> list[Dossier]:
    if name not in PAPERS:
        content = read_json((_HERE / "others.json").read_text(encoding="utf-8"))
        return [Dossier(tables=tuple(t for t in tables_of(content) if t.paper == name))]
    said = _dossier(read_json((_HERE / "claims.json").read_text(encoding="utf-8")))
    mine = {key: value for key, value in said.defaults.items() if key.startswith(f"{name}/")}
    return [
        Dossier(
            tables=tuple(table for table in tables() if table.paper == name),
            claims=tuple(claim for claim in said.claims if claim.paper == name),
            defaults=mine,
        )
    ]


def _file(path: Path) -> list[Dossier]:
    path = path.expanduser()
    if path.is_dir():
        inside = sorted(path.glob("evaluation*.json"))
        require(bool(inside), str(path), "holds no evaluation; run `vqkit evaluate` on it first")
        return [dossier for one in inside for dossier in _file(one)]
    require(path.is_file(), str(path), f"no such file or folder; known names: {', '.join(KNOWN)}")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".csv":
            return [Dossier(tables=tables_of(_from_csv(path.stem, text)))]
        content = read_json(text)
        if content.get("format") == _EVALUATION:
            return [Dossier(tables=tables_of(_from_evaluation(path, content)))]
        return [_dossier(content)]
    except (KeyError, TypeError, AttributeError) as error:
        problem = f"{path}: {type(error).__name__} {error}; see docs/linter.md for the form"
        raise ValueError(problem) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _dossier(content: dict[str, Any]) -> Dossier:
    known = {f.name for f in fields(Claim)} - {"decimals"}
    claims = []
    for number, values in enumerate(content.get("claims", ()), start=1):
        unknown = sorted(set(values) - known)
        require(not unknown, f"claims[{number}].{', '.join(unknown)}", f"known: {sorted(known)}")
        said = values.get("says", 0)
        decimals = -int(said.as_tuple().exponent) if isinstance(said, Decimal) else 0
        told: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        told |= {"says": float(said), "decimals": max(0, decimals)}
        claims.append(Claim(**told))
    defaults = {
        place: {k: float(v) if isinstance(v, Decimal) else v for k, v in settings.items()}
        for place, settings in content.get("defaults", {}).items()
    }
    return Dossier(tables=tables_of(content), claims=tuple(claims), defaults=defaults)


def _from_csv(name: str, text: str) -> dict[str, Any]:
    """Turn a CSV file into the JSON form; `psnr.pixel_range` is a setting of the column psnr."""
    rows = list(csv.DictReader(io.StringIO(text)))
    require(bool(rows), "rows", "the file has no rows below its header")
    heads = [head for head in rows[0] if head]
    require("method" in heads, f"header={','.join(heads)}", "a column `method` is needed")
    metrics = [head for head in heads if head.partition("[")[0] in _METRICS]
    require(bool(metrics), f"header={','.join(heads)}", f"no metric; known: {sorted(_METRICS)}")
    columns = []
    for head in metrics:
        metric, _, unit = head.rstrip("]").partition("[")
        told = {
            other.partition(".")[2]: _plain(rows[0][other])
            for other in heads
            if other.startswith(f"{metric}.")
        }
        columns.append({"metric": metric, "unit": unit or "none", "settings": told})
    built = []
    for number, row in enumerate(rows, start=1):
        require(bool(row["method"]), f"line {number + 1}", "has no method")
        cells = {head.partition("[")[0]: _decimal(head, row[head]) for head in metrics}
        taken = {"method", "system", "dataset", "quoted", *metrics}
        settings = {
            head: _plain(row[head])
            for head in heads
            if head not in taken and "." not in head and row[head]
        }
        built.append(
            {
                "method": row["method"],
                "system": row.get("system") or row["method"],
                "quoted": _plain(row.get("quoted") or "false") is True,
                "settings": settings,
                "values": {row.get("dataset") or "images": cells},
            }
        )
    table = {"paper": name, "table": "csv", "columns": columns, "rows": built}
    return {"format": FORMAT, "tables": [table]}


def _decimal(head: str, text: str | None) -> Decimal | None:
    if not (text or "").strip() or (text or "").strip() in ("-", "–"):
        return None
    try:
        return Decimal((text or "").strip())
    except ArithmeticError as error:
        raise ValueError(f"{head}={text!r}: expected a number, or a dash") from error


def _plain(text: str | None) -> Setting:
    word = (text or "").strip()
    if word.lower() in ("true", "false", "", "-"):
        return {"true": True, "false": False}.get(word.lower())
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _from_evaluation(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Turn an evaluation of vqkit into the JSON form, with what its protocol declares."""
    protocol, data, books = content["protocol"], content["data"], content["codebooks"]
    outputs = protocol.get("errors", "pixels") == "outputs"
    width = 2.0 if outputs else 1.0
    shared = {"pixel_range": 1.0, "num_images": data["num_images"]}
    declared: dict[str, dict[str, Any]] = {
        "psnr": {**shared, "data_range": 1.0, "mean": protocol["average"]},
        "ssim": {**shared, "data_range": float(protocol["ssim_range"])},
        "l1": {**shared, "pixel_range": width},
        "l2": {**shared, "pixel_range": width},
    }
    if outputs or protocol.get("psnr_colour", "same") != "same":
        # PSNR and errors are then not of the same pixels, and no bound holds between them.
        declared["psnr"]["colour"] = protocol.get("psnr_colour", "same")
    values = {
        metric["name"]: Decimal(f"{metric['value']:.6f}")
        for metric in content["metrics"]
        if metric["name"] in _METRICS and metric["value"] is not None
    }
    codes = {book["num_codes"] for book in books}
    settings = {
        "codebook_size": codes.pop() if len(codes) == 1 else None,
        "num_codebooks": len(books),
        "tokens": float(data["num_tokens"]) / data["num_images"],
        "protocol": protocol["id"],
    }
    row = {
        "method": content["name"],
        "settings": settings,
        "values": {protocol["reference"][:12] or "images": values},
    }
    columns = [{"metric": m, "settings": declared.get(m, shared)} for m in values]
    table = {"paper": str(path.parent), "table": path.name, "columns": columns, "rows": [row]}
    return {"format": FORMAT, "tables": [table]}
