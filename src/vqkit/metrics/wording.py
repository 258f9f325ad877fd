"""Words for the notes below tables: a protocol in one line, a share in percent."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vqkit.metrics.protocol import Protocol


def describe(protocol: Protocol) -> str:
    """Return one line that a reader of a table needs in order to repeat the measurement."""
    mean = "per image then mean"
    if protocol.batch is not None:
        mean = f"means of {protocol.batch} images with pooled PSNR, then their mean"
    parts = [
        _pixels(protocol),
        {"native": "native colour", "rgb": "grey tiled to RGB"}[protocol.colour],
        *([f"both sides through JPEG quality {protocol.jpeg}"] if protocol.jpeg else []),
        "both sides cropped the same",
        mean,
        _psnr(protocol),
        _ssim(protocol),
        *(["l1 and l2 of unclamped outputs in [-1, 1]"] if protocol.errors == "outputs" else []),
        *([_lpips(protocol)] if protocol.lpips else []),
        *([_fid(protocol)] if protocol.fid_resize else []),
    ]
    if protocol.tile is not None:
        halo = "the receptive field" if protocol.halo is None else f"{protocol.halo} pixels"
        parts.append(f"in tiles of {protocol.tile} pixels with a halo of {halo}")
    return ", ".join(parts)


def percent(share: float, *, unit: str = " %") -> str:
    """Write a share in [0, 1] as `97.3 %`; never `100 %` for one that is not whole."""
    return f"100{unit}" if share == 1 else f"{min(100 * share, 99.9):.1f}{unit}"


def _pixels(protocol: Protocol) -> str:
    if protocol.stretch == "image":
        return "each image of both sides stretched from its minimum and maximum to uint8"
    if protocol.rounding == "none":
        return "clamp, no bytes"
    words = {"round": "round", "truncate": "truncate", "half_up": "round (halves up)"}
    sides = " on both sides" if protocol.originals != "bytes" else ""
    return f"clamp and {words[protocol.rounding]} to uint8{sides}"


def _psnr(protocol: Protocol) -> str:
    colour = "of BT.601 luma (16 to 235) " if protocol.psnr_colour == "luma" else ""
    if protocol.psnr_epsilon:
        return f"PSNR {colour}range 1 with {protocol.psnr_epsilon:g} added to the error"
    return f"PSNR {colour}range 1 with at most {protocol.psnr_cap:g} dB"


def _ssim(protocol: Protocol) -> str:
    window = f"Gaussian {protocol.ssim_window}/{protocol.ssim_sigma:g}"
    if protocol.ssim_kernel == "uniform":
        window = f"uniform {protocol.ssim_window}"
    colour = " of grey" if protocol.ssim_colour == "grey" else ""
    small = "" if protocol.ssim_shrink is None else f", shrunk to about {protocol.ssim_shrink}"
    return f"SSIM{colour} {window} range {protocol.ssim_range:g}{small}"


def _lpips(protocol: Protocol) -> str:
    seen = {
        "bytes": "bytes as [-1, 1]",
        "clamped": "outputs clamped to [-1, 1]",
        "taken_for_0..1": "unclamped [-1, 1] taken for [0, 1]",
    }[protocol.lpips_input]
    return f"LPIPS {protocol.lpips} of {seen}"


def _fid(protocol: Protocol) -> str:
    against = {"originals": "the same images", "files": "files as they are, uncropped"}
    return f"FID {protocol.fid_resize} against {against[protocol.fid_reference]}"
