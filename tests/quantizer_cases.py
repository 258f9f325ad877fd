"""Every preset, its variants and some hybrids, small: what the contract is tested over."""

import torch

from vqkit.config import QuantizerConfig
from vqkit.quantizers import (
    PRESETS,
    CodebookLoss,
    Commitment,
    FreeCodebook,
    GridQuantizer,
    Nearest,
    Residual,
    SharedSegments,
    Split,
    VectorQuantizer,
    build,
    cvq,
    dual,
    fsq,
    rq,
    uniform_codes,
    vq_vae,
)


def preset(name, **args):
    def make():
        return build(QuantizerConfig(preset=name, args=args))

    return make


def features():
    return torch.randn(12, 20, generator=torch.Generator().manual_seed(5))


def dual_with_cvq_local():
    parts = {"global": dual(8, 8, num_layers=1).quantizer.parts["global"]}
    return GridQuantizer(Split({**parts, "local": cvq(12, 4).quantizer}))


def looc_around_rq():
    return GridQuantizer(SharedSegments(rq(8, 4, num_levels=2).quantizer, 3))


def residual_of_segments():
    return GridQuantizer(Residual(SharedSegments(vq_vae(8, 4).quantizer, 3), 2))


def two_neighbours():
    book = FreeCodebook(uniform_codes(12, 4))
    terms = (Commitment(weight=0.25), CodebookLoss(weight=1.0))
    return GridQuantizer(VectorQuantizer(book, Nearest(num_neighbours=2), terms=terms))


def lattice_and_cvq():
    return GridQuantizer(Split({"grid": fsq((3, 4)).quantizer, "free": cvq(12, 4).quantizer}))


CASES = {
    "vq_vae": preset("vq_vae", num_codes=12, dim=4),
    "vq_ema": preset("vq_ema", num_codes=12, dim=4),
    "vq_ema restart": preset("vq_ema", num_codes=12, dim=4, restart_below=1.0),
    "gumbel": preset("gumbel", num_codes=12, dim=4),
    "vqgan_fc": preset("vqgan_fc", num_codes=12, dim=4, in_channels=6),
    "vit_vqgan": preset("vit_vqgan", num_codes=12, dim=4, in_channels=6),
    "cvq": preset("cvq", num_codes=12, dim=4),
    "cvq random": preset("cvq", num_codes=12, dim=4, anchors="random"),
    "cvq probrandom": preset("cvq", num_codes=12, dim=4, anchors="probrandom", metric="l2"),
    "cvq contrastive": preset("cvq", num_codes=12, dim=4, contrastive=1.0),
    "cvq beta 2": preset("cvq", num_codes=12, dim=4, beta=2),
    "sq_vae": preset("sq_vae", num_codes=12, dim=4),
    "sq_vae hard": preset("sq_vae", num_codes=12, dim=4, draw="hard"),
    "pq": preset("pq", num_codes=12, dim=4, num_segments=3),
    "pq cvq": preset("pq", num_codes=12, dim=4, num_segments=3, update="cvq"),
    "rq": preset("rq", num_codes=12, dim=4, num_levels=3),
    "rq beta 2": preset("rq", num_codes=12, dim=4, num_levels=2, beta=2),
    "rq own books": preset("rq", num_codes=12, dim=4, num_levels=3, shared=False),
    "simvq": preset("simvq", num_codes=12, dim=4),
    "vqgan_lc": preset("vqgan_lc", features=features(), dim=4, in_channels=6),
    "vqgan_lc aligned": preset("vqgan_lc", features=features(), dim=4, in_channels=6, align=0.9),
    "vqgan_lc reselected": preset(
        "vqgan_lc",
        features=features(),
        dim=4,
        in_channels=6,
        align=0.9,
        pool=torch.randn(40, features().shape[1], generator=torch.Generator().manual_seed(5)),
        patience=0.5,
    ),
    "vqgan_lc trained": preset("vqgan_lc", features=features(), dim=4, in_channels=6, frozen=False),
    "dual": preset("dual", num_codes=12, dim=8, num_layers=1),
    "dual linear": preset("dual", num_codes=12, dim=(4, 2), refiner="linear"),
    "dual none": preset("dual", num_codes=(12, 6), dim=4, refiner="none"),
    "dual cvq": preset("dual", num_codes=12, dim=4, refiner="none", local_update="cvq"),
    "looc": preset("looc", num_codes=12, dim=4, num_segments=3),
    "looc dim 1": preset("looc", num_codes=12, dim=1, num_segments=3, metric="l2"),
    "looc beta 2": preset("looc", num_codes=12, dim=4, num_segments=3, beta=2),
    "looc official": preset(
        "looc", num_codes=12, dim=4, num_segments=3, beta=3, layout="official", update="none"
    ),
    "movq_codes": preset("movq_codes", num_codes=12, dim=4),
    "movq_codes beta 2": preset("movq_codes", num_codes=12, dim=4, beta=2),
    "fsq": preset("fsq", levels=(4, 5, 3)),
    "lfq": preset("lfq", dim=4),
    "lfq bit by bit": preset("lfq", dim=4, joint_bits=0, in_channels=6),
    "rotation": preset("rotation", num_codes=12, dim=4),
    "dual with cvq local": dual_with_cvq_local,
    "looc around rq": looc_around_rq,
    "residual of segments": residual_of_segments,
    "two neighbours": two_neighbours,
    "lattice and cvq": lattice_and_cvq,
}
MISSING = set(PRESETS) - {name.split()[0] for name in CASES}
assert not MISSING, f"presets without a case: {MISSING}"
PERMUTES = [name for name in CASES if "beta" not in name and name != "looc official"]


def make(name, seed=0):
    """Build a case from a seed."""
    torch.manual_seed(seed)
    return CASES[name]()


def feature_map(quantizer, batch=3, height=4, width=5, seed=1, scale=1.0):
    """Random features for a quantizer."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(batch, quantizer.channels, height, width, generator=source) * scale


def train_steps(quantizer, count, *, first=0, optimizer=None):
    """Train in a foreign loop: gradient steps on random features; return the losses."""
    quantizer.train()
    parameters = [p for p in quantizer.parameters() if p.requires_grad]
    optimizer = optimizer or (torch.optim.SGD(parameters, lr=0.05) if parameters else None)
    losses = []
    for step in range(first, first + count):
        out = quantizer(feature_map(quantizer, seed=100 + step))
        loss = out.loss + out.z_q.square().mean()
        losses.append(loss.item())
        if optimizer is not None and loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return losses
