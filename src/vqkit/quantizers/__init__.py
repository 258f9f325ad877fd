"""The algebra of quantizers: few parts, and every method as a sentence of them."""

from .alignment import Align
from .anchors import Anchors
from .assignments import Assignment, GumbelLogits, LatticePoint, Nearest, StochasticDistance
from .build import build
from .codebooks import (
    Codebook,
    FreeCodebook,
    ProjectedCodebook,
    RefinedCodebook,
    UnitSphere,
    normal_codes,
    uniform_codes,
)
from .compose import Residual, SharedSegments, Split
from .description import QuantizerDescription
from .estimators import rotation as rotate
from .estimators import straight_through, through_weights
from .grid import GridQuantizer
from .lattice import BinaryLattice, Lattice, ScalarLattice
from .presets import (
    PRESETS,
    cvq,
    dual,
    fsq,
    gumbel,
    lfq,
    looc,
    movq_codes,
    pq,
    rotation,
    rq,
    simvq,
    sq_vae,
    vit_vqgan,
    vq_ema,
    vq_vae,
    vqgan_fc,
    vqgan_lc,
)
from .quantizer import Quantizer, VectorQuantizer
from .records import Assigned, Quantized, Slot
from .selection import Reselect
from .terms import (
    BitEntropy,
    CategoricalEntropy,
    CodebookLoss,
    Commitment,
    Contrastive,
    GaussianError,
    Term,
    UniformKL,
)
from .updates import EMA, UpdateRule

__all__ = [
    "EMA",
    "PRESETS",
    "Align",
    "Anchors",
    "Assigned",
    "Assignment",
    "BinaryLattice",
    "BitEntropy",
    "CategoricalEntropy",
    "Codebook",
    "CodebookLoss",
    "Commitment",
    "Contrastive",
    "FreeCodebook",
    "GaussianError",
    "GridQuantizer",
    "GumbelLogits",
    "Lattice",
    "LatticePoint",
    "Nearest",
    "ProjectedCodebook",
    "Quantized",
    "Quantizer",
    "QuantizerDescription",
    "RefinedCodebook",
    "Reselect",
    "Residual",
    "ScalarLattice",
    "SharedSegments",
    "Slot",
    "Split",
    "StochasticDistance",
    "Term",
    "UniformKL",
    "UnitSphere",
    "UpdateRule",
    "VectorQuantizer",
    "build",
    "cvq",
    "dual",
    "fsq",
    "gumbel",
    "lfq",
    "looc",
    "movq_codes",
    "normal_codes",
    "pq",
    "rotate",
    "rotation",
    "rq",
    "simvq",
    "sq_vae",
    "straight_through",
    "through_weights",
    "uniform_codes",
    "vit_vqgan",
    "vq_ema",
    "vq_vae",
    "vqgan_fc",
    "vqgan_lc",
]
