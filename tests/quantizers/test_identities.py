"""Methods that coincide for some setting must agree exactly (`methods` 4, identity tests)."""

import pytest
import torch
import torch.nn.functional as F
from quantizer_cases import feature_map, train_steps
from torch import nn

from vqkit.quantizers import (
    CodebookLoss,
    Commitment,
    FreeCodebook,
    GridQuantizer,
    Nearest,
    ProjectedCodebook,
    Residual,
    VectorQuantizer,
    cvq,
    dual,
    looc,
    movq_codes,
    pq,
    rq,
    simvq,
    vit_vqgan,
    vq_ema,
    vq_vae,
    vqgan_lc,
)


def copy_codes(source, target):
    """Copy all codes and rules from one quantizer's only leaf to another's."""
    a, b = next(source.quantizer.leaves()), next(target.quantizer.leaves())
    b.load_state_dict(a.state_dict())


def assert_train_alike(first, second, steps=3):
    assert train_steps(first, steps) == train_steps(second, steps)
    first.eval(), second.eval()
    z = feature_map(first, seed=50)
    assert torch.equal(first(z).ids, second(z).ids)
    assert torch.equal(first(z).z_q, second(z).z_q)


@pytest.mark.parametrize("beta", [1, 2])
def test_looc_of_one_segment_is_cvq(beta):
    first, second = looc(12, 6, num_segments=1, beta=beta), cvq(12, 6, beta=beta)
    copy_codes(first, second)
    assert_train_alike(first, second)


@pytest.mark.parametrize("beta", [1, 2])
def test_looc_of_four_segments_is_movq(beta):
    first = looc(12, 4, num_segments=4, metric="l2", update="none", beta=beta)
    second = movq_codes(12, 4, beta=beta)
    copy_codes(first, second)
    assert_train_alike(first, second)


def test_dual_without_refiner_is_pq_of_two():
    first = dual(12, 4, refiner="none")
    second = pq(12, 4, num_segments=2)
    halves = [part.codebook.codes for part in first.quantizer.parts.values()]
    next(second.quantizer.leaves()).codebook.codes.data.copy_(torch.cat(list(halves)))
    z = feature_map(first)
    a, b = first(z), second(z)
    assert torch.equal(a.ids, b.ids)
    assert torch.equal(a.z_q, b.z_q)
    # Dual sums its halves, PQ's mean runs over both.
    torch.testing.assert_close(a.loss, 2 * b.loss)


def test_residual_of_one_level_is_vq_ema():
    first = rq(12, 4, num_levels=1, restart_below=None)
    second = vq_ema(12, 4)
    copy_codes(first, second)
    assert_train_alike(first, second)


def plain_vq(codes):
    book = FreeCodebook(codes.clone(), moved_by="rule")
    terms = (Commitment(weight=0.25), CodebookLoss(weight=1.0))
    return GridQuantizer(VectorQuantizer(book, Nearest(), terms=terms))


def test_simvq_with_identity_is_a_frozen_vq():
    first = simvq(12, 4).eval()
    leaf = next(first.quantizer.leaves())
    with torch.no_grad():
        leaf.codebook.projector.weight.copy_(torch.eye(4))
        leaf.codebook.projector.bias.zero_()
    second = plain_vq(leaf.codebook.features).eval()
    z = feature_map(first)
    assert torch.equal(first(z).ids, second(z).ids)
    torch.testing.assert_close(first(z).z_q, second(z).z_q)


def test_vqgan_lc_without_projector_is_a_frozen_vq():
    features = torch.randn(12, 8)
    first = vqgan_lc(features, None, projector=False, in_channels=None).eval()
    second = plain_vq(features).eval()
    z = feature_map(first)
    assert torch.equal(first(z).ids, second(z).ids)
    assert torch.equal(first(z).z_q, second(z).z_q)
    wide = ProjectedCodebook(features, nn.Identity(), 8)
    assert torch.equal(wide.table(None)[0], features)


def test_unit_sphere_takes_the_largest_cosine():
    quantizer = vit_vqgan(40, 6, in_channels=None).eval()
    codes = next(quantizer.quantizer.leaves()).codebook.base.codes[0]
    z = feature_map(quantizer)
    rows = z.permute(0, 2, 3, 1)
    cosine = F.normalize(rows, dim=-1) @ F.normalize(codes, dim=-1).T
    out = quantizer(z)
    assert torch.equal(out.ids[..., 0], cosine.argmax(-1))
    norms = out.z_q.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


KERNELS = {2: [1 / 8, 3 / 4, 1 / 8], 3: [1 / 9, 7 / 9, 1 / 9], 4: [1 / 8, 3 / 4, 1 / 8]}


@pytest.mark.parametrize("layout", ["paper", "official"])
@pytest.mark.parametrize("beta", KERNELS)
def test_interpolating_and_pooling_is_a_blur(beta, layout):
    """Without quantization β leaves a separable blur with replicated edges."""
    quantizer = looc(4, 4, num_segments=beta**2, beta=beta, layout=layout)
    z = feature_map(quantizer)
    rows = quantizer._to_rows(z.permute(0, 2, 3, 1))
    kernel = torch.tensor(KERNELS[beta])
    padded = F.pad(z, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    blurred = F.conv2d(padded, torch.outer(kernel, kernel)[None, None])
    torch.testing.assert_close(quantizer._from_rows(rows), blurred[:, 0].view_as(z))


def test_official_layout_holds_the_sub_pixels_of_one_channel():
    """β = 2, d* = 4: every code is the 2×2 patch of one channel, and pooling averages it."""
    quantizer = looc(6, 4, num_segments=2, beta=2, layout="official").eval()
    z = feature_map(quantizer)
    out = quantizer(z)
    codes = next(quantizer.quantizer.leaves()).codebook.codes[0]
    assert quantizer.channels == 8
    assert out.ids.shape[-1] == 8
    expected = codes[out.ids].mean(-1).permute(0, 3, 1, 2)
    torch.testing.assert_close(out.z_q, expected)


def test_paper_layout_orders_tokens_by_sub_pixel():
    quantizer = looc(6, 4, num_segments=2, beta=2).eval()
    z = feature_map(quantizer)
    up = F.interpolate(z, scale_factor=2, mode="bilinear", align_corners=False)
    plain = looc(6, 4, num_segments=2)
    copy_codes(quantizer, plain)
    ids = plain.eval()(up).ids  # (B, 2h, 2w, 2)
    cells = [ids[:, i::2, j::2] for i in range(2) for j in range(2)]
    assert torch.equal(quantizer(z).ids, torch.cat(cells, -1))
    assert quantizer.slots[3].name == "row0col1.segment1"


def test_ema_without_memory_is_the_batch_mean():
    quantizer = vq_ema(6, 4, decay=0.0, eps=0.0).train()
    z = feature_map(quantizer)
    ids = quantizer(z).ids.flatten()
    quantizer.step()
    codes = next(quantizer.quantizer.leaves()).codebook.codes[0]
    rows = z.permute(0, 2, 3, 1).reshape(-1, 4)
    for code in ids.unique():
        torch.testing.assert_close(codes[code], rows[ids == code].mean(0))


ALPHA = [(0, 0.999, 1e-3), (1e-4, 0.904, 1e-3), (6.9e-4, 0.50, 2e-3), (1e-3, 0.37, 3e-3),
         (5e-3, 0.0067, 1e-3), (1e-2, 0.0, 1e-4)]  # fmt: skip


@pytest.mark.parametrize(("uniform_share", "alpha", "tolerance"), ALPHA)
def test_pull_of_anchors(uniform_share, alpha, tolerance):
    """K·p -> α, the table of `methods` 2.9; the share stays put because it is fed itself."""
    quantizer = cvq(10, 2)
    leaf = next(quantizer.quantizer.leaves())
    rule = leaf.rules[0]
    with torch.no_grad():
        leaf.codebook.codes.zero_()
        rule.usage.fill_(uniform_share / 10)
        rule.counts[0, 1:] = 1.0
        rule.counts[0, 0] = 9 * uniform_share / 10 / (1 - uniform_share / 10)
        rule.source.anchors.fill_(1.0)
        rule.source.scores.fill_(0.0)
        rule.apply_to(leaf.codebook, leaf.clock)
    assert leaf.codebook.codes[0, 0, 0].item() == pytest.approx(alpha, abs=tolerance)


def test_gradients_of_the_terms():
    """∂Σz_q/∂z = 1; the code term moves no encoder, the commitment no code (eq. 3)."""
    quantizer = vq_vae(8, 4).train()
    codes = next(quantizer.quantizer.leaves()).codebook.codes
    z = feature_map(quantizer).requires_grad_()
    out = quantizer(z)
    (ones,) = torch.autograd.grad(out.z_q.sum(), z, retain_graph=True)
    assert torch.equal(ones, torch.ones_like(z))
    through = torch.autograd.grad(out.z_q.sum(), codes, retain_graph=True, allow_unused=True)
    assert through == (None,)
    to_z = torch.autograd.grad(out.terms["codebook"], z, retain_graph=True, allow_unused=True)
    assert to_z == (None,)
    to_codes = torch.autograd.grad(out.terms["commitment"], codes, allow_unused=True)
    assert to_codes == (None,)


def test_residuals_are_detached():
    """A later level's terms move no earlier level's codes."""
    quantizer = GridQuantizer(Residual([vq_vae(8, 4).quantizer, vq_vae(8, 4).quantizer])).train()
    first, second = (leaf.codebook.codes for leaf in quantizer.quantizer.leaves())
    out = quantizer(feature_map(quantizer))
    later = out.terms["level1.codebook"] + out.terms["level1.commitment"]
    assert torch.autograd.grad(later, first, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(later, second)[0].abs().sum() > 0
