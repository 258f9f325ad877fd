"""The one place that finds weights which other people trained: Inception, VGG16, AlexNet, heads.

Nothing is fetched unless it is asked for. A file is looked for, in this order, at the path that the
caller gives, at `VQKIT_WEIGHTS_<NAME>` (a file), in the folder `VQKIT_WEIGHTS`, inside an installed
package that ships it, in vqkit's cache (`~/.cache/vqkit/weights`, or below `XDG_CACHE_HOME`), and
in torch's cache, where torchvision leaves its downloads. `docs/weights.md` lists the files.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import os
import pickle
import struct
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vqkit.config import require

if TYPE_CHECKING:
    from torch import Tensor

FOLDER: Final = "VQKIT_WEIGHTS"
"""Environment variable: a folder of weights; with `_<NAME>` behind it, one file."""
BLOCK: Final = 2**20
"""Bytes that are read at a time."""


# What torch.load raises for torn or foreign files.
_TORN: Final = (
    *(pickle.UnpicklingError, struct.error, RuntimeError, EOFError, ValueError, LookupError),
    *(TypeError, AttributeError, AssertionError, ArithmeticError, MemoryError),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsFile:
    """One published file of weights."""

    file: str
    """Its name in a folder of weights; `.safetensors` in place of the suffix is found as well."""
    url: str
    sha256: str
    size: int
    """Bytes."""
    licence: str
    purpose: str
    """What it is and who needs it; shown when it is missing."""
    otherwise: str
    """What can be done without it."""
    also: tuple[str, ...] = ()
    """Other names under which the same bytes are published."""
    package: str = ""
    """Installed package that ships the same file, if any ..."""
    package_path: str = ""
    """... and where in it."""


_LPIPS_URL: Final = (
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/"
    "082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/"
)
_NO_LPIPS: Final = "objective.perceptual='none' trains without LPIPS"
_NO_HEADS: Final = f"installing vqkit[train] brings it along, and {_NO_LPIPS}"

# The SHA-256 of the torchvision files and of Inception begin with the eight digits in their names,
# which torch.hub itself checks; the rest of Inception's stands in the records of several public
# projects. The heads were compared with the files inside the torchmetrics wheel.
KNOWN: Final[Mapping[str, WeightsFile]] = {
    "vgg16": WeightsFile(
        file="vgg16-397923af.pth",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        size=553_433_881,
        licence="BSD-3-Clause (torchvision); trained on ImageNet",
        purpose="VGG16 of torchvision, whose features LPIPS compares",
        otherwise=_NO_LPIPS,
    ),
    "alexnet": WeightsFile(
        file="alexnet-owt-7be5be79.pth",
        url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        size=244_408_911,
        licence="BSD-3-Clause (torchvision); trained on ImageNet",
        purpose="AlexNet of torchvision, whose features LPIPS (Alex) compares",
        otherwise="LPIPS with VGG16 needs another file",
    ),
    "inception": WeightsFile(
        file="pt_inception-2015-12-05-6726825d.pth",
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        size=95_628_359,
        licence="Apache-2.0 (TensorFlow models); trained on ImageNet",
        purpose="InceptionV3 of December 2015, whose features FID, KID and Inception Score compare",
        otherwise="PSNR, SSIM, l1 and l2 need no weights",
        also=("weights-inception-2015-12-05-6726825d.pth",),
    ),
    "lpips_vgg": WeightsFile(
        file="lpips_vgg.pth",
        url=_LPIPS_URL + "vgg.pth",
        sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        size=7_289,
        licence="BSD-2-Clause",
        purpose="linear heads of LPIPS v0.1 on VGG16",
        otherwise=_NO_HEADS,
        package="torchmetrics",
        package_path="functional/image/lpips_models/vgg.pth",
    ),
    "lpips_alex": WeightsFile(
        file="lpips_alex.pth",
        url=_LPIPS_URL + "alex.pth",
        sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        size=6_009,
        licence="BSD-2-Clause",
        purpose="linear heads of LPIPS v0.1 on AlexNet",
        otherwise=_NO_HEADS,
        package="torchmetrics",
        package_path="functional/image/lpips_models/alex.pth",
    ),
}
"""Every file that vqkit knows, by the name that `find_weights` takes."""


def find_weights(name: str, explicit: str | Path | None = None, *, download: bool = False) -> Path:
    """Return the path of a known file of weights.

    Args:
        name: key of `KNOWN`.
        explicit: path of the file; then nothing else is looked at.
        download: fetch the file into the cache if it is nowhere. Its SHA-256 is checked before it
            gets its name.

    Raises:
        ValueError: the file is nowhere (the message says which it is, where it comes from and where
            to put it), it is torn, a path or variable names no file, or the download failed.
    """
    require(name in KNOWN, f"weights={name!r}", f"expected one of {', '.join(KNOWN)}")
    known, variable = KNOWN[name], f"{FOLDER}_{name.upper()}"
    for setting, path in ((f"weights of {name}", explicit), (variable, os.environ.get(variable))):
        if path:
            require(Path(path).is_file(), f"{setting}={path}", f"is no file; {_advice(name)}")
            return Path(path)
    places = _places(known)
    for place in places:
        other = [place.with_name(name) for name in known.also]
        for path in (place, place.with_suffix(".safetensors"), *other):
            if path.is_file():
                _check_size(path, known)
                return path
    require(
        download,
        f"weights of {name}",
        f"{known.file} is missing ({known.purpose}); {_advice(name)} Looked for: "
        f"{', '.join(map(str, places))}",
    )
    return _download(known)


def cache_folder() -> Path:
    """Return the folder that downloads go to; it need not exist."""
    return _user_cache() / "vqkit" / "weights"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits, for the record of a measurement."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors` file, or of a `.pth` file, by name, on the CPU.

    Nothing that a pickle asks for is run (`torch.load(weights_only=True)`). Raises `ValueError` for
    a file that is neither, is torn, or holds anything but tensors by name.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(found, dict) and isinstance(found.get("model"), dict):
            found = found["model"]  # a checkpoint, such as MAE's
    except (OSError, SafetensorError, *_TORN) as error:
        cause = str(error).split("\n")[0]
        raise ValueError(f"{path}: cannot be read as tensors ({cause}); get it again") from error
    named = isinstance(found, dict) and all(isinstance(v, torch.Tensor) for v in found.values())
    require(named, f"{path}", "holds something else than tensors by name; give a state_dict")
    return {name: tensor.detach() for name, tensor in found.items()}


def _places(known: WeightsFile) -> list[Path]:
    places = []
    folder = os.environ.get(FOLDER)
    if folder:
        require(Path(folder).is_dir(), f"{FOLDER}={folder}", "is no folder")
        places.append(Path(folder) / known.file)
    if known.package:
        # of a top-level package, this imports nothing
        spec = importlib.util.find_spec(known.package)
        roots = spec.submodule_search_locations if spec is not None else None
        places += [Path(root) / known.package_path for root in roots or ()]
    torch_home = os.environ.get("TORCH_HOME") or _user_cache() / "torch"
    places.append(cache_folder() / known.file)
    places.append(Path(torch_home) / "hub" / "checkpoints" / known.file)
    return places


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _check_size(path: Path, known: WeightsFile) -> None:
    size = path.stat().st_size
    require(
        path.name not in (known.file, *known.also) or size == known.size,
        f"{path}",
        f"has {size:,} bytes, not {known.size:,}: it is torn or another file; get it again from "
        f"{known.url}",
    )


def _advice(name: str) -> str:
    known = KNOWN[name]
    return (
        f"get it from {known.url} ({known.size:,} bytes, SHA-256 {known.sha256}, {known.licence}), "
        f"and put it into {cache_folder()}, or set {FOLDER}=<its folder> or "
        f"{FOLDER}_{name.upper()}=<file>, or let "
        f"vqkit.weights.find_weights({name!r}, download=True) do so; {known.otherwise}."
    )


def _download(known: WeightsFile) -> Path:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _fetch(known, folder / known.file)
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(
            f"{known.url}: cannot be fetched into {folder} ({error}); fetch it by other means"
        ) from error


def _fetch(known: WeightsFile, path: Path) -> Path:
    """Write beside `path` and rename once the content is known to be right."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(known.url, timeout=60) as source, part.open("wb") as file:
            while block := source.read(BLOCK):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        require(
            digest.hexdigest() == known.sha256,
            f"{known.url}",
            f"sent a file with SHA-256 {digest.hexdigest()}, not {known.sha256}; nothing is kept",
        )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
