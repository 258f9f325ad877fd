"""The named protocols: vqkit's own, and how papers measured, as their published code does it.

docs/protocols.md has the sources line by line. What a paper's code leaves open is said there too.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final

from vqkit.metrics.protocol import DEFAULT, Protocol

CVQ_LOOC: Final = Protocol(
    name="cvq-looc",
    rounding="truncate",
    originals="torch",
    colour="rgb",
    jpeg=75,
    ssim_kernel="uniform",
    lpips="vgg",
    fid_resize="cvq",
)
"""CVQ-VAE's test.py and evaluation.py, which LooC took over for small images."""

VQGAN_LC: Final = Protocol(
    name="vqgan-lc",
    rounding="none",
    originals="numpy",
    psnr_colour="luma",
    psnr_epsilon=1e-8,
    ssim_shrink=256,
    lpips="alex",
    lpips_input="taken_for_0..1",
    fid_resize="clean",
    fid_reference="files",
    fid_rounding="truncate",
)
"""VQGAN-LC's eval_reconstruction.py with pyiqa, piq and clean-fid."""

VQCT: Final = Protocol(
    name="vqct",
    rounding="half_up",
    colour="rgb",
    jpeg=75,
    errors="outputs",
    ssim_window=7,
    ssim_kernel="uniform",
    ssim_colour="grey",
    fid_resize="legacy",
)
"""VQCT's test_net.py, from which the baselines in Dual Codebook's Table 1 are copied."""

VQCT_DUAL: Final = Protocol(
    name="vqct-dual",
    rounding="half_up",
    originals="numpy",
    colour="rgb",
    stretch="image",
    ssim_window=7,
    ssim_kernel="uniform",
    ssim_colour="grey",
    fid_resize="legacy",
)
"""Dual Codebook: the stretched PNG files of its test_step, measured as VQCT measures files."""

LLAMAGEN: Final = Protocol(
    name="llamagen",
    rounding="half_up",
    ssim_window=7,
    ssim_kernel="uniform",
    ssim_range=2.0,
    fid_resize="adm",
)
"""LlamaGen's reconstruction_vq_ddp.py, and the evaluator of ADM for FID."""

SIMVQ: Final = Protocol(
    name="simvq",
    rounding="truncate",
    originals="numpy",
    average="batches",
    batch=64,
    ssim_window=7,
    ssim_kernel="uniform",
    lpips="alex+vgg",
    lpips_input="clamped",
    fid_resize="legacy",
    fid_rounding="round",
)
"""SimVQ's evaluation.py with its default batch of 64 images."""

PROTOCOLS: Final[dict[str, Protocol]] = {
    one.name: one for one in (DEFAULT, CVQ_LOOC, VQGAN_LC, VQCT, VQCT_DUAL, LLAMAGEN, SIMVQ)
}


def find_protocol(name: str) -> Protocol:
    """Return the protocol of that name; an unknown one is a `ValueError` with the nearest name."""
    if name not in PROTOCOLS:
        near = get_close_matches(name, PROTOCOLS, n=1, cutoff=0.0)
        raise ValueError(
            f"protocol={name!r}: unknown; did you mean {near[0]!r}? known: {sorted(PROTOCOLS)}"
        )
    return PROTOCOLS[name]
