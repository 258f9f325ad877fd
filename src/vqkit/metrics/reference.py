"""Statistics of a reference set in a file: what FID and KID need of it, and what it was made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import torch
from torch import Tensor

from vqkit.config import require
from vqkit.data import ImageSet, iterate_once
from vqkit.metrics.frechet import Gaussian, Moments
from vqkit.metrics.kernel import NUM_KEPT, Sample, keys_of

if TYPE_CHECKING:
    from vqkit.metrics.features import Features

FORMAT: Final = "vqkit-reference-1"
_MAKE: Final = "`vqkit reference` makes one of a set of images"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Moments of the features of an image set, and a sample of the features for KID."""

    gaussian: Gaussian
    sample: Tensor
    """(n, D) float32; n = 0 where the file is for FID alone."""
    seed: int
    """Of the choice of that sample."""
    images: str
    """Fingerprint of the image set (`ImageSet.fingerprint`)."""
    resize: str
    """How images came to the network's size."""
    network: str
    """SHA-256 of the network's file."""

    @classmethod
    def of(
        cls,
        image_set: ImageSet,
        features: Features,
        *,
        num_kept: int = NUM_KEPT,
        seed: int = 0,
        batch_size: int = 32,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """Measure every image of a set; memory does not grow with it.

        Args:
            image_set: from `load_images`; images of different sizes are fine.
            features: network and resize mode.
            num_kept: features kept for KID; 0 makes a small file for FID alone.
            seed: of the choice of those.
            batch_size: images of one size that go through the network together.
            progress: called after every batch with (images done, images in the set).

        Raises:
            ValueError: fewer than two images.
        """
        require(len(image_set) >= 2, f"{len(image_set)} images", "a reference needs at least 2")
        require(num_kept >= 0, f"num_kept={num_kept}", "must be at least 0")
        moments = Moments(features.dim, features.device)
        sample = Sample(features.dim, num_kept) if num_kept else None
        for batch in iterate_once(image_set, batch_size):
            rows = features(batch.images.to(features.device))
            moments.update(rows)
            if sample is not None:
                sample.update(rows, keys_of(batch.images, seed))
            if progress is not None:
                progress(moments.count, len(image_set))
        return cls(
            gaussian=moments.gaussian(),
            sample=torch.empty(0, features.dim) if sample is None else sample.rows(),
            seed=seed,
            images=image_set.fingerprint(),
            resize=features.resize,
            network=features.sha256,
        )

    @property
    def sha256(self) -> str:
        """Of everything in the file, to know a damaged one."""
        digest = hashlib.sha256()
        for text in self._facts().values():
            digest.update(f"{text}\n".encode())
        for tensor in self._tensors().values():
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check(self, features: Features) -> None:
        """Raise `ValueError` unless these came from the same network, resize mode and layer."""
        for name, mine, other in (
            ("resize", self.resize, features.resize),
            ("network", self.network[:12], features.sha256[:12]),
            ("dim", len(self.gaussian.mean), features.dim),
        ):
            require(
                mine == other,
                f"reference.{name}={mine}",
                f"images are measured with {other}; make the reference again, or measure alike",
            )

    def to_bytes(self) -> bytes:
        """Return the content of a safetensors file, which `read` takes."""
        from safetensors.torch import save

        facts = self._facts() | {"sha256": self.sha256}
        return save({k: t.contiguous() for k, t in self._tensors().items()}, metadata=facts)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file; a missing, torn or foreign one is a `ValueError` of one line."""
        from safetensors import SafetensorError, safe_open

        require(Path(path).is_file(), f"reference={path}", f"is no file; {_MAKE}")
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = facts.get("format")
            require(found == FORMAT, f"format={found!r}", f"expected {FORMAT!r}")
            mean, packed, sample = (tensors[name] for name in ("mean", "covariance", "sample"))
            _check_shapes(mean, packed, sample)
            reference = cls(
                gaussian=Gaussian(
                    count=int(facts["num_images"]),
                    mean=mean,
                    covariance=_unpack(packed, len(mean)),
                ),
                sample=sample,
                seed=int(facts["seed"]),
                images=facts["images"],
                resize=facts["resize"],
                network=facts["network"],
            )
            intact = reference.sha256 == facts.get("sha256")
        except (
            OSError,
            SafetensorError,
            LookupError,
            ValueError,
            TypeError,
            RuntimeError,
        ) as error:
            cause = str(error).split("\n")[0]
            raise ValueError(f"reference={path}: no statistics of a set ({cause})") from error
        require(
            intact,
            f"reference={path}",
            f"its content does not fit its hash; {_MAKE}",
        )
        return reference

    def _facts(self) -> dict[str, str]:
        return {
            "format": FORMAT,
            "images": self.images,
            "num_images": str(self.gaussian.count),
            "seed": str(self.seed),
            "resize": self.resize,
            "network": self.network,
        }

    def _tensors(self) -> dict[str, Tensor]:
        covariance = self.gaussian.covariance.cpu()
        rows, columns = torch.triu_indices(*covariance.shape)
        packed = covariance[rows, columns]  # it is symmetric: half of it is enough
        return {"mean": self.gaussian.mean.cpu(), "covariance": packed, "sample": self.sample}


def _check_shapes(mean: Tensor, packed: Tensor, sample: Tensor) -> None:
    """Raise `ValueError` unless all are of the same D, before D² numbers are allocated."""
    require(
        mean.ndim == 1 and mean.dtype == torch.float64,
        f"mean={tuple(mean.shape)}, {mean.dtype}",
        "expected (D,) float64",
    )
    dim = len(mean)
    require(
        packed.shape == (dim * (dim + 1) // 2,) and packed.dtype == torch.float64,
        f"covariance={tuple(packed.shape)}, {packed.dtype}",
        f"expected half of a matrix of {dim} x {dim} float64",
    )
    require(
        sample.ndim == 2 and sample.shape[1] == dim and sample.dtype == torch.float32,
        f"sample={tuple(sample.shape)}, {sample.dtype}",
        f"expected (n, {dim}) float32",
    )


def _unpack(packed: Tensor, dim: int) -> Tensor:
    rows, columns = torch.triu_indices(dim, dim)
    whole = torch.zeros(dim, dim, dtype=packed.dtype)
    whole[rows, columns] = packed
    whole[columns, rows] = packed
    return whole
