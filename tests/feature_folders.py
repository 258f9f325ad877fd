"""Folders of features as `vqkit codebook extract` writes them, from rows made by hand."""

import hashlib
import json

import numpy as np
import torch

ENCODER = {
    "kind": "pixels",
    "name": "patches",
    "sha256": "a" * 64,
    "layer": None,
    "pooling": 4,
}


def write_features(folder, rows, *, labels=None, names=None, num_shards=2, encoder=ENCODER):
    """Write rows (N, D) of float16 or float32, with `labels` (N,) into `names`; returns folder."""
    rows = rows.numpy()
    folder.mkdir(parents=True)
    shards = []
    for number, part in enumerate(np.array_split(np.arange(len(rows)), num_shards)):
        shard = {"rows": len(part), "first_image": int(part[0]), "images": len(part)}
        shard |= _written(folder, f"{number:05}.npy", rows[part])
        if labels is not None:
            (folder / "groups").mkdir(exist_ok=True)
            own = labels.numpy()[part].astype(np.int64)
            shard["groups"] = _written(folder, f"groups/{number:05}.npy", own)
        shards.append(shard)
    manifest = {
        "library": "vqkit",
        "format": 1,
        "kind": "features",
        "dim": rows.shape[1],
        "dtype": rows.dtype.name,
        "num_vectors": len(rows),
        "encoder": encoder,
        "data": {"path": "pictures", "fingerprint": "f" * 64, "images": len(rows)},
        "groups": names,
        "skipped": [],
        "shards": shards,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def _written(folder, name, values):
    np.save(folder / name, values)
    content = (folder / name).read_bytes()
    return {"file": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def blobs(count, dim=5, seed=0, dtype=torch.float16):
    """Rows around eight centres."""
    source = torch.Generator().manual_seed(seed)
    centres = torch.randn(8, dim, generator=source) * 3
    noise = torch.randn(count, dim, generator=source) * 0.5
    return (centres[torch.arange(count) % 8] + noise).to(dtype)
