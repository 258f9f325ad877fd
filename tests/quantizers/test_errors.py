"""What does not fit is refused when a quantizer is built, in words that help."""

import pytest
import torch

from vqkit.config import QuantizerConfig
from vqkit.quantizers import (
    EMA,
    Anchors,
    BinaryLattice,
    BitEntropy,
    Commitment,
    FreeCodebook,
    GridQuantizer,
    GumbelLogits,
    LatticePoint,
    Nearest,
    ProjectedCodebook,
    Residual,
    SharedSegments,
    Split,
    UniformKL,
    UnitSphere,
    VectorQuantizer,
    build,
    cvq,
    dual,
    fsq,
    gumbel,
    lfq,
    looc,
    movq_codes,
    pq,
    rq,
    simvq,
    sq_vae,
    through_weights,
    uniform_codes,
    vit_vqgan,
    vq_ema,
    vq_vae,
    vqgan_lc,
)


def book(**settings):
    return FreeCodebook(uniform_codes(4, 2), **settings)


def projected():
    return ProjectedCodebook(torch.randn(4, 3), torch.nn.Linear(3, 2), 2)


WRONG = {
    "EMA on computed codes": (
        lambda: VectorQuantizer(projected(), Nearest(), rules=[EMA(projected())]),
        "computes its codes; use FreeCodebook",
    ),
    "anchors on computed codes": (
        lambda: VectorQuantizer(projected(), Nearest(), rules=[Anchors(projected())]),
        "computes its codes",
    ),
    "EMA beside a gradient": (lambda: EMA(book()), "moved_by='rule'"),
    "nearest on a lattice": (lambda: VectorQuantizer(BinaryLattice(3), Nearest()), "LatticePoint"),
    "rounding a table": (lambda: VectorQuantizer(book(), LatticePoint()), "use Nearest"),
    "a term without its scores": (
        lambda: VectorQuantizer(book(), Nearest(), terms=[UniformKL(weight=1.0)]),
        "needs negative_entropy",
    ),
    "a term twice": (
        lambda: VectorQuantizer(book(), Nearest(), terms=[Commitment(weight=1.0)] * 2),
        "paid once",
    ),
    "Gumbel on independent segments": (
        lambda: VectorQuantizer(FreeCodebook(uniform_codes(4, 2, 3)), GumbelLogits(4, 2)),
        "split the vector",
    ),
    "residual by cosine": (lambda: Residual(cvq(4, 2).quantizer, 2), "nearest code by L2"),
    "residual on the sphere": (
        lambda: Residual(vit_vqgan(4, 2, in_channels=None).quantizer, 2),
        "plain space",
    ),
    "residual of a lattice": (lambda: Residual(fsq().quantizer, 2), "nearest code by L2"),
    "unequal levels": (
        lambda: Residual([vq_vae(4, 2).quantizer, vq_vae(4, 3).quantizer]),
        "equal channels",
    ),
    "wrong number of levels": (lambda: Residual([vq_vae(4, 2).quantizer], 3), "num_levels=3"),
    "no parts": (lambda: Split({}), "at least one"),
    "unknown reduction": (
        lambda: Split({"a": vq_vae(4, 2).quantizer}, reduction="max"),
        "'sum' or 'mean'",
    ),
    "no segments": (lambda: SharedSegments(vq_vae(4, 2).quantizer, 0), "num_segments=0"),
    "no codes": (lambda: vq_vae(0, 4), "num_codes=0"),
    "half a code": (lambda: vq_vae(2.5, 4), "num_codes=2.5"),
    "no width": (lambda: vq_vae(4, -1), "dim=-1"),
    "simvq without width": (lambda: simvq(4, 0), "dim=0"),
    "metric": (lambda: cvq(4, 2, metric="manhattan"), "'l2', 'cosine'"),
    "anchors": (lambda: cvq(4, 2, anchors="nearest"), "'closest', 'random', 'probrandom'"),
    "decay": (lambda: vq_ema(4, 2, decay=1.7), r"decay=1.7: must lie in \[0, 1\)"),
    "anchor decay": (lambda: cvq(4, 2, decay=1.0), "decay=1.0"),
    "negative weight": (lambda: vq_vae(4, 2, commitment=-3.0), "commitment weight=-3.0"),
    "restart": (lambda: rq(4, 2, restart_below=0.0), "restart_below=0.0"),
    "update": (lambda: looc(4, 2, num_segments=2, update="ema"), "'cvq' or 'none'"),
    "layout": (lambda: looc(4, 2, num_segments=2, layout="other"), "layout='other'"),
    "beta": (lambda: looc(4, 2, num_segments=2, beta=0), "beta=0"),
    "official sizes": (
        lambda: GridQuantizer(vq_vae(4, 6).quantizer, beta=2, layout="official"),
        "divisible by beta²=4",
    ),
    "refiner": (lambda: dual(4, 8, refiner="graph"), "'transformer', 'linear' or 'none'"),
    "heads": (lambda: dual(4, 6), "num_heads=8"),
    "dropout": (lambda: dual(4, 8, dropout=1.0), "dropout=1.0"),
    "pair": (lambda: dual((4, 4, 4), 8), "pair"),
    "levels": (lambda: fsq((8, 1)), "levels="),
    "too many levels": (lambda: fsq((1024,) * 7), "2\\^62"),
    "bits": (lambda: lfq(63), "62 bits"),
    "LFQ temperature": (lambda: BitEntropy(weight=1.0, temperature=0.0), "temperature=0.0"),
    "temperature": (lambda: gumbel(4, 2, final_temperature=2.0), "final_temperature=2.0"),
    "draw": (lambda: sq_vae(4, 2, draw="firm"), "'soft' or 'hard'"),
    "anneal": (lambda: gumbel(4, 2, anneal_rate=-1.0), "anneal_rate=-1.0"),
    "neighbours": (
        lambda: VectorQuantizer(book(), Nearest(num_neighbours=9)),
        "must not exceed num_codes=4",
    ),
    "features": (lambda: vqgan_lc(torch.zeros(4, dtype=torch.long)), "features of shape"),
    "unprojected width": (
        lambda: vqgan_lc(torch.randn(4, 6), 3, projector=False),
        "projector=False",
    ),
    "moved by": (lambda: book(moved_by="magic"), "moved_by='magic'"),
    "in_channels": (lambda: movq_codes(4, 2, in_channels=0), "in_channels=0"),
    "segments": (lambda: pq(4, 2, num_segments=0), "num_segments=0"),
    "no gradient through weights": (
        lambda: VectorQuantizer(book(), Nearest(), estimator=through_weights),
        "use straight_through",
    ),
    "weights without their gradient": (
        lambda: VectorQuantizer(book(), GumbelLogits(4, 2)),
        "use through_weights",
    ),
    "logits of another size": (
        lambda: VectorQuantizer(book(), GumbelLogits(6, 2), estimator=through_weights),
        "make both alike",
    ),
    "anchors of another book": (
        lambda: VectorQuantizer(
            book(), Nearest(), rules=[Anchors(FreeCodebook(uniform_codes(9, 2)))]
        ),
        "make it for the codebook",
    ),
    "anchors by another measure": (
        lambda: VectorQuantizer(book(), Nearest("cosine"), rules=[Anchors(book())]),
        "use the same for both",
    ),
    "a grid inside segments": (
        lambda: SharedSegments(vq_vae(4, 2), 2),
        "give its .quantizer",
    ),
    "a grid inside a split": (lambda: Split({"a": vq_vae(4, 2)}), "give its .quantizer"),
    "a grid as a level": (lambda: Residual(vq_vae(4, 2), 2), "give its .quantizer"),
    "a grid inside a grid": (lambda: GridQuantizer(vq_vae(4, 2)), "give its .quantizer"),
    "a quantizer twice": (
        lambda: Split(dict.fromkeys("ab", vq_vae(4, 2).quantizer)),
        "given twice",
    ),
    "a level twice": (
        lambda: Residual([(level := vq_vae(4, 2).quantizer), level]),
        "given twice",
    ),
    "a part called code": (lambda: Split({"code": vq_vae(4, 2).quantizer}), "cannot name a part"),
    "a part called half": (lambda: Split({"half": vq_vae(4, 2).quantizer}), "cannot name a part"),
    "codes of one axis": (lambda: FreeCodebook(torch.randn(3)), "codes of shape"),
    "half a pair": (lambda: dual(8, 1.5), "pair"),
    "temperature nan": (lambda: gumbel(4, 2, temperature=float("nan")), "temperature=nan"),
    "sphere of lattice": (
        lambda: VectorQuantizer(UnitSphere(BinaryLattice(2)), LatticePoint()),
        "use Nearest",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(name):
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_preset_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"preset='lock': unknown; did you mean 'looc'"):
        build(QuantizerConfig(preset="lock"))


def test_unknown_argument_suggests_the_nearest():
    args = {"num_codes": 4, "dim": 2, "num_segmnts": 2}
    with pytest.raises(ValueError, match=r"args.num_segmnts: unknown; did you mean 'num_segments'"):
        build(QuantizerConfig(preset="looc", args=args))


def test_missing_arguments_are_named():
    with pytest.raises(ValueError, match="looc also needs dim, num_segments"):
        build(QuantizerConfig(preset="looc", args={"num_codes": 4}))


def test_own_presets_by_name():
    def mine(num_codes):
        return vq_vae(num_codes, 2)

    config = QuantizerConfig(preset="mine", args={"num_codes": 4})
    assert build(config, {"mine": mine}).channels == 2
    with pytest.raises(ValueError, match="vqkit's own"):
        build(config, {"looc": mine})


def test_interpolation_refuses_vectors():
    quantizer = looc(4, 2, num_segments=2, beta=2)
    with pytest.raises(ValueError, match="needs a feature map"):
        quantizer.vectors(torch.randn(2, 3, 4))
    with pytest.raises(ValueError, match="needs a feature map"):
        quantizer.lookup_vectors(torch.zeros(2, 8, dtype=torch.int64))
