"""Numbers on images and tokens: PSNR, SSIM, l1, l2, usage and rates, under a stated protocol.

Everything here is plain torch. Images are uint8 or float in [0, 1]. Accumulators keep only sums and
counts: their memory does not grow with the set, and several processes can add theirs up.
"""

from vqkit.metrics.compat import PROTOCOLS, find_protocol
from vqkit.metrics.pixels import to_bytes
from vqkit.metrics.protocol import DEFAULT, Protocol
from vqkit.metrics.rate import LosslessRate, png_bytes
from vqkit.metrics.reconstruction import (
    ReconstructionScores,
    mean_absolute_error,
    mean_squared_error,
    psnr,
    ssim,
)
from vqkit.metrics.usage import CodeStatistics, CodeUsage, uniform_usage

__all__ = [
    "DEFAULT",
    "PROTOCOLS",
    "CodeStatistics",
    "CodeUsage",
    "LosslessRate",
    "Protocol",
    "ReconstructionScores",
    "find_protocol",
    "mean_absolute_error",
    "mean_squared_error",
    "png_bytes",
    "psnr",
    "ssim",
    "to_bytes",
    "uniform_usage",
]
