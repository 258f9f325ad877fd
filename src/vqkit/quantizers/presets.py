"""Every method as one composition of parts. Read this file to compare the literature.

`num_codes` is K, `dim` the length d* of one codevector; `in_channels` adds 1×1 projections in and
out, `beta` LooC's interpolation. A quantizer takes feature maps with `quantizer.channels` channels.
β of VQ-VAE is two weights: `commitment` pulls the encoder, `codebook` pulls the codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from . import estimators
from .alignment import Align
from .anchors import Anchors
from .assignments import GumbelLogits, LatticePoint, Nearest, StochasticDistance
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
from .grid import GridQuantizer, Layout
from .joining import Reduction
from .lattice import BinaryLattice, ScalarLattice
from .quantizer import VectorQuantizer
from .refiners import transformer_refiner
from .selection import Reselect
from .tables import RowLinear
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

AnchorKind = Literal["closest", "random", "probrandom"]
Metric = Literal["l2", "cosine"]


def _paid(codebook: float, commitment: float) -> tuple[Term, ...]:
    return (Commitment(weight=commitment), CodebookLoss(weight=codebook))


def vq_vae(
    num_codes: int,
    dim: int,
    *,
    commitment: float = 0.25,
    codebook: float = 1.0,
    metric: Metric = "l2",
    in_channels: int | None = None,
) -> GridQuantizer:
    """VQ-VAE: codes moved by gradient, nearest by L2 (arXiv:1711.00937)."""
    book = FreeCodebook(uniform_codes(num_codes, dim))
    quantizer = VectorQuantizer(book, Nearest(metric), terms=_paid(codebook, commitment))
    return GridQuantizer(quantizer, in_channels=in_channels)


def vq_ema(
    num_codes: int,
    dim: int,
    *,
    commitment: float = 0.25,
    decay: float = 0.99,
    eps: float = 1e-5,
    restart_below: float | None = None,
    metric: Metric = "l2",
    in_channels: int | None = None,
) -> GridQuantizer:
    """VQ-VAE with codes as moving averages of their vectors (arXiv:1711.00937, appendix A.1)."""
    book = FreeCodebook(uniform_codes(num_codes, dim), moved_by="rule")
    rule = EMA(book, decay=decay, eps=eps, restart_below=restart_below)
    terms = (Commitment(weight=commitment),)
    quantizer = VectorQuantizer(book, Nearest(metric), terms=terms, rules=(rule,))
    return GridQuantizer(quantizer, in_channels=in_channels)


def gumbel(
    num_codes: int,
    dim: int,
    *,
    kl: float = 5e-4,
    temperature: float = 1.0,
    final_temperature: float = 1 / 16,
    anneal_rate: float = math.log(16) / 150_000,
    in_channels: int | None = None,
) -> GridQuantizer:
    """Gumbel-VQ: codes drawn by learned logits, τ falling from 1 to 1/16 in 150,000 steps
    (DALL-E, arXiv:2102.12092; VQGAN's GumbelQuantize)."""
    assignment = GumbelLogits(
        num_codes,
        dim,
        temperature=temperature,
        final_temperature=final_temperature,
        anneal_rate=anneal_rate,
    )
    quantizer = VectorQuantizer(
        FreeCodebook(normal_codes(num_codes, dim)),
        assignment,
        terms=(UniformKL(weight=kl),),
        estimator=estimators.through_weights,
    )
    return GridQuantizer(quantizer, in_channels=in_channels)


def vqgan_fc(
    num_codes: int,
    dim: int = 8,
    *,
    in_channels: int | None = 256,
    commitment: float = 0.1,
    codebook: float = 0.033,
) -> GridQuantizer:
    """VQGAN-FC as the VQGAN-LC paper runs it: a low-dimensional VQ without any normalisation
    (arXiv:2406.11837, section 4.1; weights .1·(commitment + .33·codebook) of its code)."""
    book = FreeCodebook(uniform_codes(num_codes, dim))
    quantizer = VectorQuantizer(book, Nearest(), terms=_paid(codebook, commitment))
    return GridQuantizer(quantizer, in_channels=in_channels)


def vit_vqgan(
    num_codes: int = 8192,
    dim: int = 32,
    *,
    in_channels: int | None = 768,
    commitment: float = 0.25,
    codebook: float = 1.0,
) -> GridQuantizer:
    """ViT-VQGAN: factorised codes, vectors and codes of unit length (arXiv:2110.04627)."""
    book = UnitSphere(FreeCodebook(normal_codes(num_codes, dim)))
    quantizer = VectorQuantizer(book, Nearest(), terms=_paid(codebook, commitment))
    return GridQuantizer(quantizer, in_channels=in_channels)


def _cvq_parts(
    book: FreeCodebook,
    *,
    anchors: AnchorKind,
    metric: Metric,
    decay: float,
    commitment: float,
    contrastive: float,
) -> VectorQuantizer:
    terms = _paid(1.0, commitment)
    if contrastive:
        terms += (Contrastive(weight=contrastive, metric=metric),)
    rule = Anchors(book, anchors=anchors, metric=metric, decay=decay)
    return VectorQuantizer(book, Nearest(metric), terms=terms, rules=(rule,))


def cvq(
    num_codes: int,
    dim: int,
    *,
    anchors: AnchorKind = "closest",
    metric: Metric = "cosine",
    decay: float = 0.99,
    commitment: float = 0.25,
    contrastive: float = 0.0,
    beta: int = 1,
    in_channels: int | None = None,
) -> GridQuantizer:
    """CVQ-VAE: seldom-used codes are drawn to features, online (arXiv:2307.15139)."""
    quantizer = _cvq_parts(
        FreeCodebook(uniform_codes(num_codes, dim)),
        anchors=anchors,
        metric=metric,
        decay=decay,
        commitment=commitment,
        contrastive=contrastive,
    )
    return GridQuantizer(quantizer, beta=beta, in_channels=in_channels)


def sq_vae(
    num_codes: int,
    dim: int,
    *,
    initial_log_variance: float = math.log(20.0),
    draw: Literal["soft", "hard"] = "soft",
    temperature: float = 1.0,
    final_temperature: float = 1e-3,
    anneal_rate: float = 1e-5,
    in_channels: int | None = None,
) -> GridQuantizer:
    """SQ-VAE, Gaussian I: stochastic codes with a learned variance (arXiv:2205.07547).

    Train it with `ObjectiveConfig(reconstruction="log_mse")`; ℓ starts at log 10 for 28×28 images,
    log 20 for 32×32. Its terms are sums over positions, per image.
    """
    assignment = StochasticDistance(
        initial_log_variance=initial_log_variance,
        draw=draw,
        temperature=temperature,
        final_temperature=final_temperature,
        anneal_rate=anneal_rate,
    )
    quantizer = VectorQuantizer(
        FreeCodebook(normal_codes(num_codes, dim)),
        assignment,
        terms=(CategoricalEntropy(weight=1.0), GaussianError(weight=1.0)),
        estimator=estimators.through_weights,
    )
    return GridQuantizer(quantizer, in_channels=in_channels)


def pq(
    num_codes: int,
    dim: int,
    *,
    num_segments: int,
    update: Literal["none", "cvq"] = "none",
    anchors: AnchorKind = "closest",
    metric: Metric = "l2",
    commitment: float = 0.25,
    in_channels: int | None = None,
) -> GridQuantizer:
    """Product quantization: an own codebook of K codes for every segment (Jégou et al. 2011)."""
    book = FreeCodebook(uniform_codes(num_codes, dim, num_segments))
    rules = _update_rules(update, book, anchors, metric)
    quantizer = VectorQuantizer(book, Nearest(metric), terms=_paid(1.0, commitment), rules=rules)
    return GridQuantizer(quantizer, in_channels=in_channels)


def rq(
    num_codes: int,
    dim: int,
    *,
    num_levels: int = 4,
    shared: bool = True,
    commitment: float = 0.25,
    decay: float = 0.99,
    restart_below: float | None = 1.0,
    beta: int = 1,
    in_channels: int | None = None,
) -> GridQuantizer:
    """RQ-VAE: each level quantizes what the levels before left over (arXiv:2203.01941)."""

    def level() -> VectorQuantizer:
        book = FreeCodebook(normal_codes(num_codes, dim), moved_by="rule")
        rule = EMA(book, decay=decay, restart_below=restart_below)
        terms = (Commitment(weight=commitment),)
        return VectorQuantizer(book, Nearest(), terms=terms, rules=(rule,))

    levels = level() if shared else [level() for _ in range(num_levels)]
    return GridQuantizer(Residual(levels, num_levels), beta=beta, in_channels=in_channels)


def simvq(
    num_codes: int,
    dim: int,
    *,
    metric: Metric = "l2",
    commitment: float = 0.25,
    codebook: float = 1.0,
    bias: bool = True,
    in_channels: int | None = None,
) -> GridQuantizer:
    """SimVQ: frozen random codes behind one trained linear layer (arXiv:2411.02038)."""
    features = normal_codes(num_codes, dim)[0] * dim**-0.5
    book = ProjectedCodebook(features, RowLinear(dim, dim, bias=bias), dim)
    quantizer = VectorQuantizer(book, Nearest(metric), terms=_paid(codebook, commitment))
    return GridQuantizer(quantizer, in_channels=in_channels)


def vqgan_lc(
    features: Tensor,
    dim: int | None = None,
    *,
    frozen: bool = True,
    projector: bool = True,
    metric: Metric = "l2",
    commitment: float = 0.1,
    codebook: float = 0.033,
    align: float | None = None,
    pool: Tensor | None = None,
    patience: float = 8.0,
    in_channels: int | None = 256,
) -> GridQuantizer:
    """VQGAN-LC: clustered features (K, F) of a vision encoder behind a projector
    (arXiv:2406.11837, eq. 3; Table 9 varies `frozen` and `projector`, Table 10 `dim`: 8).
    Not the paper: `align`, a decay such as 0.9, keeps all codes where the vectors are (`Align`);
    codes that nobody draws become other features of a `pool` (M, F) (`Reselect`)."""
    width = features.shape[-1]
    head: nn.Module = nn.Identity()
    if projector:
        width = 8 if dim is None else dim
        head = RowLinear(features.shape[-1], width)
        nn.init.normal_(head.weight, std=width**-0.5)
    elif dim not in (None, width):
        raise ValueError(f"dim={dim} with projector=False: features have {width}; leave dim out")
    book = ProjectedCodebook(features, head, width, frozen=frozen)
    rules: list[UpdateRule] = [] if align is None else [Align(book, decay=align)]
    rules += [] if pool is None else [Reselect(book, pool, patience=patience, metric=metric)]
    quantizer = VectorQuantizer(
        book, Nearest(metric), terms=_paid(codebook, commitment), rules=rules
    )
    return GridQuantizer(quantizer, in_channels=in_channels)


def dual(
    num_codes: int | tuple[int, int] = 512,
    dim: int | tuple[int, int] = 128,
    *,
    refiner: Literal["transformer", "linear", "none"] = "transformer",
    num_layers: int = 6,
    num_heads: int = 8,
    dropout: float = 0.1,
    local_update: Literal["none", "cvq"] = "none",
    commitment: float = 0.25,
    reduction: Reduction = "sum",
    in_channels: int | None = None,
) -> GridQuantizer:
    """Dual Codebook VQ: half of the channels to a global book refined by a transformer over its
    codes, half to a plain local book (section 3). Pairs give (global, local) sizes."""
    (global_codes, local_codes), (global_dim, local_dim) = _pair(num_codes), _pair(dim)
    base: Codebook = FreeCodebook(normal_codes(global_codes, global_dim))
    if refiner == "transformer":
        network = transformer_refiner(
            global_dim, num_layers=num_layers, num_heads=num_heads, dropout=dropout
        )
        base = RefinedCodebook(base, network)
    elif refiner == "linear":
        base = RefinedCodebook(base, RowLinear(global_dim, global_dim))
    elif refiner == "none":
        base = FreeCodebook(uniform_codes(global_codes, global_dim))
    else:
        raise ValueError(f"refiner={refiner!r}: expected 'transformer', 'linear' or 'none'")
    local = FreeCodebook(uniform_codes(local_codes, local_dim))
    rules = _update_rules(local_update, local, "closest", "l2")
    terms = _paid(1.0, commitment)
    parts = {
        "global": VectorQuantizer(base, Nearest(), terms=terms),
        "local": VectorQuantizer(local, Nearest(), terms=terms, rules=rules),
    }
    return GridQuantizer(Split(parts, reduction=reduction), in_channels=in_channels)


def looc(
    num_codes: int,
    dim: int,
    *,
    num_segments: int,
    beta: int = 1,
    layout: Layout = "paper",
    update: Literal["cvq", "none"] = "cvq",
    anchors: AnchorKind = "closest",
    metric: Metric = "cosine",
    commitment: float = 0.25,
    in_channels: int | None = None,
) -> GridQuantizer:
    """LooC: one small codebook shared by all segments of a feature, read from a map enlarged β
    times and pooled back; CVQ keeps the codes alive (sections 3.2-3.3)."""
    book = FreeCodebook(uniform_codes(num_codes, dim))
    rules = _update_rules(update, book, anchors, metric)
    each = VectorQuantizer(book, Nearest(metric), terms=_paid(1.0, commitment), rules=rules)
    quantizer = SharedSegments(each, num_segments * (beta**2 if layout == "official" else 1))
    return GridQuantizer(quantizer, beta=beta, layout=layout, in_channels=in_channels)


def movq_codes(
    num_codes: int = 1024,
    dim: int = 64,
    *,
    num_segments: int = 4,
    commitment: float = 0.25,
    beta: int = 1,
    in_channels: int | None = None,
) -> GridQuantizer:
    """MoVQ's multichannel codes, without its modulated decoder (arXiv:2209.09002, section 3.2)."""
    book = FreeCodebook(uniform_codes(num_codes, dim))
    each = VectorQuantizer(book, Nearest(), terms=_paid(1.0, commitment))
    return GridQuantizer(SharedSegments(each, num_segments), beta=beta, in_channels=in_channels)


def fsq(levels: Sequence[int] = (8, 5, 5, 5), *, in_channels: int | None = None) -> GridQuantizer:
    """FSQ: bound every channel and round it, nothing else (arXiv:2309.15505)."""
    quantizer = VectorQuantizer(ScalarLattice(levels), LatticePoint())
    return GridQuantizer(quantizer, in_channels=in_channels)


def lfq(
    dim: int = 10,
    *,
    entropy: float = 0.1,
    commitment: float = 0.25,
    temperature: float = 0.01,
    joint_bits: int = 10,
    in_channels: int | None = None,
) -> GridQuantizer:
    """LFQ: signs as codes, kept in use by an entropy term (MAGVIT-v2, arXiv:2310.05737)."""
    terms = (
        Commitment(weight=commitment),
        BitEntropy(weight=entropy, temperature=temperature, joint_bits=joint_bits),
    )
    quantizer = VectorQuantizer(BinaryLattice(dim), LatticePoint(), terms=terms)
    return GridQuantizer(quantizer, in_channels=in_channels)


def rotation(
    num_codes: int,
    dim: int,
    *,
    commitment: float = 0.25,
    codebook: float = 1.0,
    in_channels: int | None = None,
) -> GridQuantizer:
    """The rotation trick instead of straight-through (arXiv:2410.06424)."""
    book = FreeCodebook(uniform_codes(num_codes, dim))
    terms = _paid(codebook, commitment)
    quantizer = VectorQuantizer(book, Nearest(), terms=terms, estimator=estimators.rotation)
    return GridQuantizer(quantizer, in_channels=in_channels)


def _update_rules(
    update: str, book: FreeCodebook, anchors: AnchorKind, metric: Metric
) -> tuple[UpdateRule, ...]:
    if update == "none":
        return ()
    if update == "cvq":
        return (Anchors(book, anchors=anchors, metric=metric),)
    raise ValueError(f"update={update!r}: expected 'cvq' or 'none'")


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise ValueError(f"{value!r}: give one size, or a pair (global, local)")
    return pair[0], pair[1]


PRESETS: dict[str, Callable[..., GridQuantizer]] = {
    "vq_vae": vq_vae,
    "vq_ema": vq_ema,
    "gumbel": gumbel,
    "vqgan_fc": vqgan_fc,
    "vit_vqgan": vit_vqgan,
    "cvq": cvq,
    "sq_vae": sq_vae,
    "pq": pq,
    "rq": rq,
    "simvq": simvq,
    "vqgan_lc": vqgan_lc,
    "dual": dual,
    "looc": looc,
    "movq_codes": movq_codes,
    "fsq": fsq,
    "lfq": lfq,
    "rotation": rotation,
}
