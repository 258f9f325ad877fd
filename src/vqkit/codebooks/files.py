"""A codebook file: codes (K, D) and where they come from, as one safetensors file.

It holds one tensor, `codes`, and a record in the metadata: method, settings, the features it was
made of, groups, a quality report, and the SHA-256 of the codes and of the record itself. Nothing in
it tells when, where or how fast it was made: the same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from vqkit import __version__
from vqkit.config import require
from vqkit.models.files import write_beside
from vqkit.models.settings import CODEBOOK

FORMAT: Final = 1
"""Version of the layout; raised when older code could misread newer files."""
TENSOR: Final = "codes"
DTYPES: Final = {"float16": torch.float16, "float32": torch.float32}
HEAD: Final = 4096
"""The name of the record stands in so many first bytes of every codebook file."""


@dataclass(frozen=True, slots=True, eq=False)
class CodebookFile:
    """Codes, and what is known of them."""

    codes: Tensor
    """(K, D), float16 or float32."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """JSON values: `method`, `settings`, `features` (provenance of a feature set, or None),
    `groups` ([name, number of codes] for each in the order of the codes, or None), `report`; in a
    file also `format`, `num_codes`, `dim`, `dtype`, `sha256` and `made` (version of vqkit)."""

    @property
    def num_codes(self) -> int:
        """K."""
        return len(self.codes)

    @property
    def dim(self) -> int:
        """Length of a code."""
        return self.codes.shape[1]

    @property
    def groups(self) -> list[tuple[str, int]] | None:
        """Names of the groups with the number of codes of each, in the order of the codes."""
        found = self.provenance.get("groups")
        return None if found is None else [(name, count) for name, count in found]

    @property
    def sha256(self) -> str:
        """Hash of the bytes of the codes."""
        return _digest(self.codes)


def write_codebook(path: str | Path, book: CodebookFile) -> None:
    """Write a codebook file, whole or not at all.

    Raises:
        ValueError: codes that are no finite matrix (K, D) of float16 or float32, or a record that
            is no JSON.
        OSError: the file cannot be written; an older one is left as it was.
    """
    path = Path(path).expanduser()
    record = json.dumps(_record(book), sort_keys=True, allow_nan=False)
    codes = book.codes.detach().cpu().contiguous()
    content = safetensors.torch.save({TENSOR: codes}, {CODEBOOK: record})
    require(not path.is_dir(), f"out={path}", "is a folder; name a file")
    try:
        write_beside(path, content)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}, while writing {path}") from error


def read_codebook(path: str | Path) -> CodebookFile:
    """Read what `write_codebook` wrote; a torn, altered or foreign file is a `ValueError`."""
    path = Path(path).expanduser()
    where = f"codebook={str(path)!r}"
    require(
        path.is_file(), where, "is no file; name a codebook file, see vqkit codebook cluster --help"
    )
    content = path.read_bytes()
    problem, remedy = "is no codebook file", "vqkit codebook cluster makes one from features"
    if is_ours(content):
        problem, remedy = "is damaged", "copy it again, or make it anew"
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        record = json.loads(header["__metadata__"][CODEBOOK])
        newer = record["format"] != FORMAT
        whole = newer or (
            set(tensors) == {TENSOR}
            and _sealed(record) == record
            and _facts(tensors[TENSOR]) == {name: record[name] for name in _facts(tensors[TENSOR])}
        )
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{where}: {problem} ({error}); {remedy}") from error
    require(
        not newer,
        where,
        f"has format {record['format']!r}, this version reads {FORMAT}; load it with vqkit "
        f"{record.get('made')}",
    )
    require(whole, where, f"{problem}; {remedy}")
    return CodebookFile(tensors[TENSOR], record)


def is_ours(content: bytes) -> bool:
    """Tell whether bytes begin like a codebook file, whole or not."""
    return CODEBOOK.encode() in content[:HEAD]


def _record(book: CodebookFile) -> dict[str, Any]:
    """Complete the provenance of `book` with what stands in every file."""
    codes = book.codes
    require(
        codes.ndim == 2 and len(codes) >= 1 and codes.dtype in DTYPES.values(),
        f"codes={tuple(codes.shape)} of {codes.dtype}",
        "need (num_codes, dim) of float16 or float32; convert them",
    )
    finite = bool(codes.isfinite().all())
    require(finite, "codes", "some are not finite in their type; use float32")
    known: dict[str, Any] = {
        "method": None,
        "settings": {},
        "features": None,
        "groups": None,
        "report": {},
    }
    record = {**known, **book.provenance, "format": FORMAT, "made": __version__, **_facts(codes)}
    return _sealed(record)


def _facts(codes: Tensor) -> dict[str, Any]:
    """What a record says of the codes themselves."""
    return {
        "num_codes": codes.shape[0],
        "dim": codes.shape[-1],
        "dtype": dtype_name(codes.dtype),
        "sha256": _digest(codes),
    }


def dtype_name(dtype: torch.dtype) -> str:
    """Return "float16" for torch.float16."""
    return str(dtype).removeprefix("torch.")


def _sealed(record: dict[str, Any]) -> dict[str, Any]:
    """Copy a record with its own hash, by which an altered one is recognised."""
    rest = {name: value for name, value in record.items() if name != "record_sha256"}
    text = json.dumps(rest, sort_keys=True, allow_nan=False)
    return {**rest, "record_sha256": hashlib.sha256(text.encode()).hexdigest()}


def _digest(codes: Tensor) -> str:
    return hashlib.sha256(codes.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
