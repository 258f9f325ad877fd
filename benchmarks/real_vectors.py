"""Vectors and trained codes of tokenizers of photographs, for benchmarks of search.

For every dim a small tokenizer (VQ-EMA, 1,024 codes, stride 4) is trained on the photographs; its
vectors are what its quantizer gets for the middle of each photograph, its codes are k-means centres
of those vectors, as VQGAN-LC makes large codebooks (the largest are other vectors, as drawn). Kept
in a folder, since this takes minutes.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from vqkit.clustering import kmeans
from vqkit.config import DataConfig, QuantizerConfig
from vqkit.data import iterate_once, load_images, to_float
from vqkit.recipes.photos import photos_vq_ema
from vqkit.training import train

STEPS = 300
SIZE = 256
ITERATIONS, LARGE = 2, 2**24
"""Iterations of k-means; codebooks of more numbers than that are drawn vectors."""


def real_case(photos: Path, keep: Path, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return vectors (N, dim) of a tokenizer of `photos`, and codes (K, dim), both float32."""
    num_vectors, num_codes, dim = shape
    keep.mkdir(parents=True, exist_ok=True)
    vectors = _kept(keep / f"vectors_{dim}.pt", lambda: _vectors(photos, dim))
    if len(vectors) < num_vectors or len(vectors) < num_codes:
        raise SystemExit(f"{photos}: {len(vectors)} vectors are too few; add photographs")
    sample = vectors[: max(2 * num_codes, 2**16)]
    if num_codes * dim > LARGE:
        codes = vectors[-num_codes:].clone()
    else:
        codes = _kept(
            keep / f"codes_{num_codes}_{dim}.pt",
            lambda: kmeans(sample, num_codes, init="random", iterations=ITERATIONS).centres,
        )
    # Every so-manieth vector: neighbours in an image are alike.
    return vectors[:: len(vectors) // num_vectors][:num_vectors].contiguous(), codes


def _kept(path: Path, make) -> Tensor:
    if not path.exists():
        beside = path.with_name(path.name + ".part")
        torch.save(make(), beside)
        beside.replace(path)
    return torch.load(path, weights_only=True)


def _vectors(photos: Path, dim: int) -> Tensor:
    config = photos_vq_ema(path=str(photos), num_steps=STEPS, name=f"photos_{dim}")
    quantizer = QuantizerConfig(preset="vq_ema", args={"num_codes": 1024, "dim": dim})
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(config, quantizer=quantizer)
        tokenizer = train(config, out=Path(folder) / "run").tokenizer
    images = load_images(
        DataConfig(source="folder", path=str(photos), crop="center", crop_size=SIZE)
    )
    parts = []
    with torch.no_grad():
        for batch in iterate_once(images, 16):
            z = tokenizer.encoder(to_float(batch.images))
            parts.append(z.permute(0, 2, 3, 1).reshape(-1, dim))
    vectors = torch.cat(parts)
    return vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))]
