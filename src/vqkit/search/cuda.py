"""Nearest codes on an NVIDIA GPU: fused Triton kernels that hold no scores in memory.

Up to 16 dimensions all scores are computed in float32 and the smallest distance wins
(`cuda_few`). Beyond, tensor cores screen all codes in float16 with a rigorous error bound, and what
the screen leaves is compared in float64 (`cuda_screen`, `cuda_decide`), as the other backends do;
so are vectors or codes in float64 of any dimension.

Nothing here waits for the device: no value is read back and no shape depends on values, so that a
search can stand in a CUDA graph or in a compiled model (where it is one opaque operator).

Memory beyond the arguments: a float16 or float32 copy of the codes, and for a block of vectors a
float16 copy and 256 bytes a vector and split.

Legend: G groups, N vectors, K codes, D dim.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

from vqkit.search.inputs import Metric

FEW = 16
"""Dimensions up to which ordinary arithmetic computes the scores."""
MAX_CODES = 2**26
"""More codes could overflow 32-bit positions."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


# Looked up once, here: a model that is being compiled cannot look for packages.
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
_INSTALLED = find_spec("triton") is not None and (_INTERPRETED or torch.version.cuda is not None)


def interpreted() -> bool:
    """Tell whether Triton's interpreter runs the kernels, on a CPU."""
    return _INTERPRETED


def installed() -> bool:
    """Tell whether Triton is there, and for NVIDIA GPUs or its interpreter."""
    return _INSTALLED


def fits(codes: Tensor, metric: Metric) -> bool:
    """Tell whether the kernels can search codes (..., K, D) for `metric` (they know all)."""
    del metric
    if codes.shape[-2] > MAX_CODES:
        return False
    if codes.device.type == "cuda":
        return has_tensor_cores(codes.device.index)
    return codes.device.type == "cpu" and interpreted()


def has_tensor_cores(index: int | None) -> bool:
    """Tell whether a device has the tensor cores that the kernels need; constant for a compiler."""
    return torch.cuda.get_device_capability(index) >= (8, 0)


# All that `torch.compiler.assume_constant_result` does, but for importing the whole compiler.
vars(has_tensor_cores)["_dynamo_marked_constant"] = True


def nearest(vectors: Tensor, codes: Tensor, metric: Metric) -> Tensor:
    """Find the nearest codes without waiting for the device.

    Args:
        vectors: (G, N, D), any floating type and strides, on a CUDA device.
        codes: (G, K, D) on the same device.
        metric: `l2`, `cosine` or `dot`.

    Returns:
        ids (G, N), int64 in [0, K). Vectors that are not finite and, for `cosine` and `dot`, zero
        vectors get some id in that range.
    """
    if torch.compiler.is_compiling():
        return _operator(vectors, codes, metric)
    return _nearest(vectors, codes, metric)


@torch.library.custom_op("vqkit::nearest_on_cuda", mutates_args=())
def _operator(vectors: Tensor, codes: Tensor, metric: str) -> Tensor:
    return _nearest(vectors, codes, metric)


@_operator.register_fake
def _(vectors: Tensor, codes: Tensor, metric: str) -> Tensor:
    return vectors.new_empty(vectors.shape[:2], dtype=torch.int64)


def _nearest(vectors: Tensor, codes: Tensor, metric: str) -> Tensor:
    vectors, codes = vectors.detach(), codes.detach()
    if vectors.dtype not in DTYPES:
        vectors = vectors.float()
    if codes.dtype not in DTYPES:
        codes = codes.float()
    ids = torch.zeros(vectors.shape[:2], dtype=torch.int64, device=vectors.device)
    if ids.numel() == 0 or codes.shape[1] == 1:
        return ids
    on_device = torch.cuda.device(vectors.device) if vectors.is_cuda else nullcontext()
    # Only here, so that a machine without Triton can import this module.
    from vqkit.search import cuda_few, cuda_many

    with on_device:
        few = codes.shape[2] <= FEW and torch.float64 not in (vectors.dtype, codes.dtype)
        (cuda_few if few else cuda_many).search(vectors, codes, metric, ids)
    return ids
