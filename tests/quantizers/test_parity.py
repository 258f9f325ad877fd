"""The same numbers as vector-quantize-pytorch: values 1e-5, gradients 1e-4, five stateful steps."""

import pytest
import torch

from vqkit.quantizers import dual, fsq, lfq, rotation, rq, simvq, vq_ema, vq_vae

oracle = pytest.importorskip("vector_quantize_pytorch")

VALUE = {"rtol": 1e-5, "atol": 1e-6}
GRADIENT = {"rtol": 1e-4, "atol": 1e-7}


def sequence(dim, *, batch=4, length=30, seed=0, scale=1.0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, dim, generator=source) * scale


def gradients(run, z, parameters=()):
    """Outputs of run(z) -> (z_q, ids, loss), and gradients of a mixed objective."""
    z = z.clone().requires_grad_()
    z_q, ids, loss = run(z)
    weights = sequence(z_q.shape[-1], batch=len(z), length=z.shape[1], seed=77)
    total = (z_q * weights).sum() + loss
    found = torch.autograd.grad(total, [z, *parameters], allow_unused=True)
    return z_q, ids, loss, found


def ours(quantizer):
    def run(z):
        out = quantizer.vectors(z)
        return out.z_q, out.ids.squeeze(-1), out.loss

    return run


def assert_same(mine, theirs):
    torch.testing.assert_close(mine[0], theirs[0], **VALUE)
    assert torch.equal(mine[1], theirs[1])
    torch.testing.assert_close(mine[2].reshape(()), theirs[2].reshape(()), **VALUE)
    for a, b in zip(mine[3], theirs[3], strict=True):
        torch.testing.assert_close(a, b, **GRADIENT)


def codes_of(quantizer, index=0):
    return list(quantizer.quantizer.leaves())[index].codebook.codes


def test_ema_for_five_steps():
    mine = vq_ema(16, 8, commitment=0.25, decay=0.9).train()
    theirs = oracle.VectorQuantize(8, 16, decay=0.9, commitment_weight=0.25, rotation_trick=False)
    start = torch.randn(1, 16, 8)
    rule = next(mine.quantizer.leaves()).rules[0]
    codes_of(mine).copy_(start)
    rule.sums.copy_(start)
    theirs._codebook.embed.data.copy_(start)
    theirs._codebook.embed_avg.data.copy_(start)
    theirs.train()
    for step in range(5):
        z = sequence(8, seed=step)
        found = gradients(ours(mine), z)
        assert_same(found, gradients(theirs, z))
        mine.step()
        torch.testing.assert_close(codes_of(mine), theirs._codebook.embed, **VALUE)
    torch.testing.assert_close(rule.counts, theirs._codebook.cluster_size, **VALUE)


def test_learned_codes():
    mine = vq_vae(16, 8, commitment=0.25, codebook=1.0).train()
    theirs = oracle.VectorQuantize(
        8, 16, commitment_weight=0.25, learnable_codebook=True, ema_update=False,
        rotation_trick=False,
    ).train()  # fmt: skip
    start = torch.randn(1, 16, 8)
    codes_of(mine).data.copy_(start)
    theirs._codebook.embed.data.copy_(start)
    z = sequence(8)
    a = gradients(ours(mine), z, [codes_of(mine)])
    # Their learned codes get only the commitment's two-sided gradient; ours is term by term.
    z_there = z.clone().requires_grad_()
    z_q, ids, _ = theirs(z_there)
    torch.testing.assert_close(a[0], z_q, **VALUE)
    assert torch.equal(a[1], ids)
    codes = start[0].clone().requires_grad_()
    picked = codes[ids]
    torch.nn.functional.mse_loss(picked, z).backward()
    torch.testing.assert_close(a[3][1][0], codes.grad, **GRADIENT)


def test_rotation_trick():
    mine = rotation(16, 8).train()
    theirs = oracle.VectorQuantize(8, 16, commitment_weight=0.0, rotation_trick=True).train()
    start = torch.randn(1, 16, 8)
    codes_of(mine).data.copy_(start)
    theirs._codebook.embed.data.copy_(start)
    z = sequence(8)
    weights = sequence(8, seed=77)
    here, there = (z.clone().requires_grad_() for _ in range(2))
    (mine.vectors(here).z_q * weights).sum().backward()
    quantized, _, _ = theirs(there)
    (quantized * weights).sum().backward()
    torch.testing.assert_close(here.grad, there.grad, rtol=1e-4, atol=1e-6)


def test_residual_with_own_books_for_five_steps():
    mine = rq(16, 8, num_levels=3, shared=False, commitment=0.25, decay=0.9, restart_below=None)
    theirs = oracle.ResidualVQ(
        dim=8, num_quantizers=3, codebook_size=16, decay=0.9, commitment_weight=0.25,
        rotation_trick=False,
    )  # fmt: skip
    for level, leaf in enumerate(mine.quantizer.leaves()):
        start = torch.randn(1, 16, 8)
        leaf.codebook.codes.copy_(start)
        leaf.rules[0].sums.copy_(start)
        theirs.layers[level]._codebook.embed.data.copy_(start)
        theirs.layers[level]._codebook.embed_avg.data.copy_(start)
    mine.train()
    theirs.train()

    def their_run(z):
        z_q, ids, losses = theirs(z)
        return z_q, ids, losses.mean()

    for step in range(5):
        z = sequence(8, seed=step)
        here, there = z.clone().requires_grad_(), z.clone().requires_grad_()
        a, b = ours(mine)(here), their_run(there)
        torch.testing.assert_close(a[0], b[0], **VALUE)
        assert torch.equal(a[1], b[1])
        torch.testing.assert_close(a[2], b[2], **VALUE)
        paid = [
            torch.autograd.grad(loss, x, retain_graph=True)[0]
            for loss, x in ((a[2], here), (b[2], there))
        ]
        torch.testing.assert_close(*paid, **GRADIENT)
        # They pass the gradient straight through at every level, so the encoder gets it three
        # times; the paper's eq. 6 passes it once, through the sum.
        passed = [torch.autograd.grad(y.sum(), x)[0] for y, x in ((a[0], here), (b[0], there))]
        torch.testing.assert_close(3 * passed[0], passed[1], **GRADIENT)
        mine.step()
        for level in range(3):
            torch.testing.assert_close(
                codes_of(mine, level), theirs.layers[level]._codebook.embed, **VALUE
            )


@pytest.mark.parametrize("levels", [(8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5), (3, 4)])
def test_fsq(levels):
    mine, theirs = fsq(levels).train(), oracle.FSQ(list(levels)).train()
    z = sequence(len(levels), scale=3.0)

    def their_run(z):
        z_q, ids = theirs(z)
        return z_q, ids.long(), torch.zeros(())

    assert_same(gradients(ours(mine), z), gradients(their_run, z))


def test_lfq():
    mine = lfq(6, entropy=0.1, commitment=0.25, temperature=0.01).train()
    theirs = oracle.LFQ(
        dim=6, codebook_size=64, entropy_loss_weight=0.1, commitment_loss_weight=0.25
    ).train()

    def their_run(z):
        z_q, ids, loss = theirs(z, inv_temperature=100.0)
        return z_q, ids.long(), loss

    z = sequence(6, scale=0.05, length=200)  # soft enough that entropies are not all zero
    here, there = gradients(ours(mine), z), gradients(their_run, z)
    torch.testing.assert_close(here[0], there[0], **VALUE)
    assert torch.equal(here[1], there[1])
    # They clamp probabilities at 1e-5 inside the logarithm, we do not: an absolute difference.
    torch.testing.assert_close(here[2], there[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(here[3][0], there[3][0], rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("trick", [False, True])
def test_simvq(trick):
    mine = simvq(16, 8, bias=False).train()
    leaf = next(mine.quantizer.leaves())
    theirs = oracle.SimVQ(dim=8, codebook_size=16, rotation_trick=trick).train()
    theirs.frozen_codebook.copy_(leaf.codebook.features)
    theirs.code_transform.weight.data.copy_(leaf.codebook.projector.weight)
    if trick:
        leaf.estimator = next(rotation(2, 2).quantizer.leaves()).estimator
    z = sequence(8)
    assert_same(
        gradients(ours(mine), z, [leaf.codebook.projector.weight]),
        gradients(theirs, z, [theirs.code_transform.weight]),
    )


def test_transformer_refiner_is_torchs_post_norm_encoder():
    """Against the equations of Vaswani et al. written out: Dual's T in evaluation."""
    quantizer = dual(6, 8, num_layers=2, num_heads=2).eval()
    book = quantizer.quantizer.parts["global"].codebook
    x = book.base.codes[0]
    for layer in book.refiner.layers:
        attention = layer.self_attn
        q, k, v = (x @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, -1)
        heads = [
            (a @ b.T / 2.0).softmax(-1) @ c  # dim of a head: 4
            for a, b, c in zip(*(t.chunk(2, -1) for t in (q, k, v)), strict=True)
        ]
        x = layer.norm1(x + attention.out_proj(torch.cat(heads, -1)))
        x = layer.norm2(x + layer.linear2(layer.linear1(x).relu()))
    torch.testing.assert_close(book.table(None)[0], x, rtol=1e-4, atol=1e-5)
