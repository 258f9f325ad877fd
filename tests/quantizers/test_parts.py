"""Assignments, terms, codebooks and caches against numbers written from their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F
from quantizer_cases import feature_map, make, train_steps

from vqkit.quantizers import (
    CodebookLoss,
    Commitment,
    FreeCodebook,
    GridQuantizer,
    Nearest,
    VectorQuantizer,
    dual,
    gumbel,
    lfq,
    rotation,
    simvq,
    sq_vae,
    vq_vae,
    vqgan_lc,
)
from vqkit.quantizers.records import Assigned
from vqkit.quantizers.terms import CategoricalEntropy, Contrastive, GaussianError, UniformKL


def leaf_of(quantizer):
    return next(quantizer.quantizer.leaves())


def rows_of(z):
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def test_vq_vae_by_hand():
    """Two vectors, three codes; terms are means over all four elements."""
    quantizer = vq_vae(3, 2, commitment=0.25, codebook=1.0)
    leaf_of(quantizer).codebook.codes.data.copy_(torch.tensor([[[0.0, 0], [2, 0], [0, 4]]]))
    z = torch.tensor([[1.5, 0.0], [0.0, 3.0]]).T.reshape(1, 2, 1, 2)
    out = quantizer(z)
    assert out.ids.flatten().tolist() == [1, 2]
    mean_square = (0.5**2 + 1.0**2) / 4
    assert out.terms["commitment"].item() == pytest.approx(0.25 * mean_square)
    assert out.terms["codebook"].item() == pytest.approx(mean_square)


def test_two_neighbours_are_averaged():
    book = FreeCodebook(torch.tensor([[0.0, 0], [2, 0], [10, 10], [0, 1]]))
    quantizer = GridQuantizer(VectorQuantizer(book, Nearest(num_neighbours=2)))
    out = quantizer.vectors(torch.tensor([[0.1, 0.2], [9.0, 9.0]]))
    assert out.ids.tolist() == [[0, 3], [2, 1]]
    assert out.z_q.tolist() == [[0.0, 0.5], [6.0, 5.0]]
    assert [slot.name for slot in quantizer.slots] == ["neighbour0", "neighbour1"]


def test_rotation_turns_the_gradient():
    """d z_q/d z is ‖q‖/‖z‖·R with R the rotation from z to q, as a matrix."""
    quantizer = rotation(4, 3).train()
    leaf_of(quantizer).codebook.codes.data.normal_()
    z = torch.randn(1, 3, requires_grad=True)
    out = quantizer.vectors(z)
    jacobian = torch.stack(
        [torch.autograd.grad(out.z_q[0, i], z, retain_graph=True)[0][0] for i in range(3)]
    )
    scale = out.z_q.norm() / z.norm()
    turn = jacobian / scale
    torch.testing.assert_close(turn @ turn.T, torch.eye(3), rtol=0, atol=1e-5)
    assert torch.det(turn).item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(jacobian @ z[0], out.z_q[0].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("z", [[[-1.0, 0.0]], [[0.0, 0.0]]])
def test_rotation_is_straight_through_where_it_is_undefined(z):
    quantizer = rotation(1, 2).train()
    leaf_of(quantizer).codebook.codes.data.copy_(torch.tensor([[[2.0, 0.0]]]))
    z = torch.tensor(z, requires_grad=True)
    quantizer.vectors(z).z_q.backward(torch.tensor([[3.0, 5.0]]))
    assert z.grad.tolist() == [[3.0, 5.0]]


def test_gumbel_gradient_is_that_of_the_one_hot():
    """Codes get Σ over their vectors; logits get the softmax Jacobian of g·C/τ."""
    quantizer = gumbel(5, 3, temperature=0.7).train()
    leaf = leaf_of(quantizer)
    z = feature_map(quantizer, batch=1, height=2, width=2)
    upstream = torch.randn(4, 3)
    out = quantizer(z)
    (rows_of(out.z_q) * upstream).sum().backward()
    ids = out.ids.flatten()
    expected = torch.zeros(5, 3).index_add_(0, ids, upstream)
    torch.testing.assert_close(leaf.codebook.codes.grad[0], expected)
    rows = rows_of(z)
    logits = rows @ leaf.assignment.logits.weight.T + leaf.assignment.logits.bias
    numbers = leaf.clock.uniform(2, torch.arange(4)[:, None], torch.arange(5)[None])
    noisy = ((logits - (-numbers.log()).log().float()) / 0.7).softmax(-1)
    assert torch.equal(noisy.argmax(-1), ids)
    to_weights = upstream @ leaf.codebook.codes[0].T
    to_logits = noisy * (to_weights - (noisy * to_weights).sum(-1, keepdim=True)) / 0.7
    torch.testing.assert_close(leaf.assignment.logits.bias.grad, to_logits.sum(0))


def test_gumbel_draws_follow_the_logits():
    quantizer = gumbel(3, 2).train()
    leaf = leaf_of(quantizer)
    with torch.no_grad():
        leaf.assignment.logits.weight.zero_()
        leaf.assignment.logits.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    ids = quantizer(torch.zeros(1, 2, 100, 100)).ids.flatten()
    shares = torch.bincount(ids, minlength=3) / 10_000
    expected = torch.tensor([0.0, 1.0, 2.0]).softmax(-1)
    torch.testing.assert_close(shares, expected, rtol=0, atol=4 * math.sqrt(0.25 / 10_000))
    assert (quantizer.eval()(torch.zeros(1, 2, 2, 2)).ids == 2).all()


def test_temperature_falls_with_steps():
    quantizer = gumbel(4, 2, temperature=1.0, final_temperature=0.5, anneal_rate=0.1).train()
    leaf = leaf_of(quantizer)
    seen = []
    for _ in range(10):
        seen.append(leaf.assignment.temperature(leaf.clock).item())
        quantizer(feature_map(quantizer))
        quantizer.step()
    assert seen == pytest.approx([max(0.5, math.exp(-0.1 * step)) for step in range(10)], rel=1e-5)


def test_sq_vae_terms_follow_the_paper():
    """Sums over positions, mean over images; σ² = 1 + exp(ℓ)."""
    quantizer = sq_vae(6, 3, initial_log_variance=math.log(4.0)).train()
    leaf = leaf_of(quantizer)
    z = feature_map(quantizer)
    out = quantizer(z)
    rows, codes = rows_of(z), leaf.codebook.codes[0]
    logits = -torch.cdist(rows, codes).square() / (2 * 5.0)
    p = logits.softmax(-1)
    entropy = (p * p.log()).sum() / 3
    error = (rows - rows_of(out.z_q)).square().sum() / (2 * 5.0) / 3
    torch.testing.assert_close(out.terms["categorical_entropy"], entropy)
    torch.testing.assert_close(out.terms["gaussian_error"], error)
    numbers = leaf.clock.uniform(2, torch.arange(60)[:, None], torch.arange(6)[None])
    clean = logits.log_softmax(-1)
    mixture = (clean - (-numbers.log()).log().float()).softmax(-1) @ codes
    assert quantizer.relaxed
    torch.testing.assert_close(rows_of(out.z_q), mixture, rtol=1e-4, atol=1e-5)
    assert torch.equal(quantizer.eval()(z).ids.flatten(), logits.argmax(-1))


def test_kl_to_uniform():
    log_p = torch.randn(1, 7, 5).log_softmax(-1)
    p = log_p.exp()
    a = Assigned(
        torch.zeros(1, 7, 2),
        torch.zeros(1, 7).long(),
        torch.zeros(1, 7, 2),
        7,
        table=torch.zeros(1, 5, 2),
        negative_entropy=(p * log_p).sum(-1),
    )
    expected = sum(
        float(p[0, n, k] * (math.log(p[0, n, k]) + math.log(5))) for n in range(7) for k in range(5)
    )
    assert UniformKL(weight=2.0)(a).item() == pytest.approx(2 * expected / 7, rel=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("block", [1 << 20, 30])
def test_contrastive_term_is_a_cross_entropy(metric, block):
    """CVQ eq. 7 as one K×N matrix; blocks change nothing, and only codes get a gradient."""
    z = torch.randn(1, 23, 4, requires_grad=True)
    table = torch.randn(1, 6, 4, requires_grad=True)
    a = Assigned(z, torch.zeros(1, 23).long(), z, 1, table=table)
    term = Contrastive(weight=1.0, metric=metric, block=block)(a)
    (gradient,) = torch.autograd.grad(term, table, retain_graph=True)
    assert torch.autograd.grad(term, z, allow_unused=True) == (None,)
    twin = table.detach().clone().requires_grad_()
    if metric == "cosine":
        similarity = F.cosine_similarity(twin[0][:, None], z[0].detach()[None], dim=-1)
    else:
        similarity = -(twin[0][:, None] - z[0].detach()[None]).square().sum(-1)
    ordered = similarity.sort(1).values
    logits = torch.cat([ordered[:, -(23 // 6) :].mean(1, keepdim=True), ordered[:, :11]], 1) / 0.07
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(term, expected, rtol=1e-4, atol=1e-4)
    expected.backward()
    torch.testing.assert_close(gradient, twin.grad, rtol=1e-3, atol=1e-4)


def test_lfq_entropies_joint_and_bit_by_bit():
    z = torch.randn(1, 40, 3) * 0.3
    codes = torch.tensor([[(i >> b & 1) * 2.0 - 1 for b in (2, 1, 0)] for i in range(8)])
    p = (-torch.cdist(z[0], codes).square() / 0.5).softmax(-1)
    each, mean = torch.special.entr(p).sum(-1).mean(), torch.special.entr(p.mean(0)).sum()
    joint = lfq(3, entropy=1.0, commitment=0.0, temperature=0.5)
    found = joint.vectors(z.transpose(0, 1)).terms["entropy"]
    torch.testing.assert_close(found, each - mean)
    bit = torch.sigmoid(4 * z[0] / 0.5).mean(0)
    marginal = torch.special.entr(torch.stack([bit, 1 - bit])).sum()
    bits = lfq(3, entropy=1.0, commitment=0.0, temperature=0.5, joint_bits=2)
    torch.testing.assert_close(bits.vectors(z).terms["entropy"], each - marginal)


@pytest.mark.parametrize("name", ["dual", "dual linear", "simvq", "vqgan_lc", "vit_vqgan"])
def test_cached_tables_notice_new_weights(name):
    """EMA weights swapped in, a loaded state and a conversion: never a stale table."""
    quantizer = make(name)
    train_steps(quantizer, 1)
    quantizer.eval()
    z = feature_map(quantizer)
    before = quantizer(z).z_q

    def fresh():
        twin = make(name, seed=3)
        twin.load_state_dict(quantizer.state_dict())
        return twin.eval()(z).z_q

    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.mul_(1.5)
    swapped = quantizer(z).z_q
    assert not torch.equal(swapped, before)
    assert torch.equal(swapped, fresh())
    other = make(name, seed=8)
    quantizer.load_state_dict(other.state_dict())
    assert torch.equal(quantizer(z).z_q, other.eval()(z).z_q)
    quantizer.double().float()
    assert torch.equal(quantizer(z).z_q, other(z).z_q)


def test_computed_tables_run_once_per_training_forward(monkeypatch):
    quantizer = dual(6, 8, num_layers=1).train()
    book = quantizer.quantizer.parts["global"].codebook
    calls = []
    refine = book.refiner.forward
    monkeypatch.setattr(book.refiner, "forward", lambda x: calls.append(1) or refine(x))
    quantizer(feature_map(quantizer))
    assert len(calls) == 1
    quantizer.eval()
    for _ in range(3):
        out = quantizer(feature_map(quantizer))
        quantizer.lookup(out.ids)
    assert len(calls) == 2


def test_dropout_of_the_refiner_is_drawn_from_the_step():
    quantizer = dual(6, 8, num_layers=1, dropout=0.5).train()
    part = quantizer.quantizer.parts["global"]
    first = part.codebook.table(part.clock)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert torch.equal(part.codebook.table(part.clock), first)
    assert torch.equal(torch.get_rng_state(), before)
    part.clock.advance()
    assert not torch.equal(part.codebook.table(part.clock), first)


def test_only_the_asked_for_weights_train():
    features = torch.randn(9, 5)
    frozen = vqgan_lc(features, 3, in_channels=None)
    assert {n.split("codebook.")[1] for n, _ in frozen.named_parameters()} == {
        "projector.weight", "projector.bias"}  # fmt: skip
    trained = vqgan_lc(features, 3, in_channels=None, frozen=False)
    assert any("features" in n for n, _ in trained.named_parameters())
    assert torch.equal(leaf_of(frozen).codebook.features, features)
    width = leaf_of(vqgan_lc(torch.randn(200, 64), 8)).codebook.projector.weight.std()
    assert width.item() == pytest.approx(8**-0.5, rel=0.15)
    assert leaf_of(simvq(4000, 16)).codebook.features.std().item() == pytest.approx(0.25, rel=0.05)


def test_terms_average_and_sum():
    z, z_q = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    a = Assigned(z, torch.zeros(2, 5).long(), z_q, 5, precision=torch.tensor(0.5))
    mean = (z - z_q).square().sum() / 30
    torch.testing.assert_close(Commitment(weight=3.0)(a), 3 * mean)
    torch.testing.assert_close(CodebookLoss(weight=2.0)(a), 2 * mean)
    torch.testing.assert_close(GaussianError(weight=1.0)(a), mean * 30 * 0.5 / 2 / 5)
    log_two = torch.full((1, 4), math.log(2))
    b = Assigned(z, torch.zeros(2, 5).long(), z_q, 2, negative_entropy=-log_two)
    # Four vectors of two images, each with the entropy log 2.
    assert CategoricalEntropy(weight=1.0)(b).item() == pytest.approx(-4 * math.log(2) / 2)
