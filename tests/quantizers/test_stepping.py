"""When codes move: with views, discriminators, parts in evaluation, failures, a compiler."""

import pytest
import torch
from quantizer_cases import CASES, feature_map, make
from torch import nn
from torch.utils.checkpoint import checkpoint

from vqkit.config import NetworkConfig, QuantizerConfig
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.quantizers import EMA, cvq, dual, gumbel, looc, vq_ema, vq_vae
from vqkit.quantizers.anchors import Anchors


def codes_of(quantizer, index=0):
    return list(quantizer.quantizer.leaves())[index].codebook.codes.detach().clone()


def steps_of(quantizer):
    return int(next(quantizer.quantizer.leaves()).clock.step)


@pytest.mark.parametrize("name", ["cvq contrastive", "looc", "vit_vqgan", "vq_ema restart"])
def test_two_views_before_one_backward(name):
    """The codes stand still until the backward; both views count towards one update."""
    quantizer = make(name).train()
    z = feature_map(quantizer).requires_grad_()
    first, second = quantizer(z), quantizer(z)
    assert torch.equal(first.ids, second.ids)
    (first.loss + second.loss + first.z_q.sum() + second.z_q.sum()).backward()
    assert steps_of(quantizer) == 0
    quantizer(z)
    assert steps_of(quantizer) == 1


def test_a_term_alone_is_a_backward_too():
    quantizer = cvq(8, 4).train()
    for _ in range(3):
        quantizer(feature_map(quantizer)).loss.backward()
    assert steps_of(quantizer) == 2


def test_without_gradients_every_forward_is_a_step():
    quantizer = vq_ema(8, 4).train()
    for _ in range(3):
        quantizer(feature_map(quantizer))
    assert steps_of(quantizer) == 2


def test_a_part_in_evaluation_keeps_its_codes():
    quantizer = dual(12, 4, refiner="none", local_update="cvq").train()
    quantizer.quantizer.parts["local"].eval()
    before = codes_of(quantizer, 1)
    for _ in range(3):
        quantizer(feature_map(quantizer))
        quantizer.step()
    assert torch.equal(codes_of(quantizer, 1), before)


def test_codes_without_a_finite_vector_stay():
    for anchors in ("closest", "random", "probrandom"):
        quantizer = cvq(6, 4, anchors=anchors).train()
        quantizer.quantizer.rules[0].source.anchors.copy_(codes_of(quantizer))
        quantizer.check_values = False
        before = codes_of(quantizer)
        quantizer(torch.full((1, 4, 2, 2), torch.nan))
        quantizer.step()
        torch.testing.assert_close(codes_of(quantizer), before, msg=anchors)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", CASES)
def test_features_that_are_no_numbers_are_refused(name, bad):
    """On a CPU, in training and evaluation; nothing has happened then."""
    quantizer = make(name)
    z = feature_map(quantizer)
    z[1, 0, 2, 3] = bad
    for training in (True, False):
        quantizer.train(training)
        before = {key: value.clone() for key, value in quantizer.state_dict().items()}
        with pytest.raises(ValueError, match=r"z of shape .*: 1 values are NaN or infinite"):
            quantizer(z)
        for key, value in quantizer.state_dict().items():
            assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", CASES)
def test_a_loop_that_looks_at_its_losses_gets_nan(name):
    """Without the check: ids in range, nothing else that is finite, no statistics."""
    quantizer = make(name).train()
    quantizer.check_values = quantizer.auto_step = False
    z = feature_map(quantizer)
    z[1, 0, 2, 3] = torch.nan
    z.requires_grad_()
    out = quantizer(z)
    limits = torch.tensor([slot.num_codes for slot in quantizer.slots])
    assert ((out.ids >= 0) & (out.ids < limits)).all()
    assert all(term.isnan() for term in out.terms.values())
    assert out.z_q.isnan().all()
    (out.z_q.sum() + out.loss).backward()
    assert z.grad.isnan().any()
    for part in quantizer.modules():
        assert not isinstance(part, EMA) or not part.new_counts.any()
        assert not isinstance(part, Anchors) or not part.counts.any()
    quantizer.eval()
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantizer(z)


def test_a_projection_that_diverged_is_named():
    quantizer = vq_vae(8, 4, in_channels=6)
    with torch.no_grad():
        quantizer.project_in.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="after project_in"):
        quantizer(feature_map(quantizer))


def test_recomputation_in_a_backward_is_refused():
    quantizer = looc(8, 2, num_segments=2).train()
    z = feature_map(quantizer).requires_grad_()
    out = checkpoint(lambda x: quantizer(x).z_q, z, use_reentrant=False)
    with pytest.raises(ValueError, match="activation checkpointing"):
        out.sum().backward()


def test_a_failed_forward_leaves_no_trace(monkeypatch):
    quantizer, twin = gumbel(8, 4).train(), gumbel(8, 4).train()
    twin.load_state_dict(quantizer.state_dict())
    z = feature_map(quantizer)
    leaf = next(quantizer.quantizer.leaves())
    estimate = leaf.estimator

    def fail(z, z_q):
        raise MemoryError

    leaf.estimator = fail
    with pytest.raises(MemoryError):
        quantizer(z)
    leaf.estimator = estimate
    assert torch.equal(quantizer(z).ids, twin(z).ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["looc", "dual", "cvq probrandom", "gumbel", "fsq", "rq"])
def test_inside_a_compiled_model(name):
    """A foreign model compiled around the quantizer trains to the same bits as without."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.quantizer = make(name)
            self.encoder = nn.Conv2d(3, self.quantizer.channels, 1)

        def forward(self, images):
            out = self.quantizer(self.encoder(images))
            return out.z_q.square().mean() + out.loss

    def states(compiled):
        model = Model().train()
        run = torch.compile(model, backend="eager") if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for step in range(2):
            optimizer.zero_grad()
            run(torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(step))).backward()
            optimizer.step()
        return model.state_dict()

    plain, compiled = states(False), states(True)
    torch._dynamo.reset()
    for key in plain:
        assert torch.equal(plain[key], compiled[key]), key


@pytest.mark.parametrize("name", sorted(set(CASES) - {"lattice and cvq"}))
def test_models_in_16_bits_train_with_exact_counts(name):
    quantizer = make(name).bfloat16().train()
    z = feature_map(quantizer).bfloat16().requires_grad_()
    out = quantizer(z)
    (out.z_q.float().square().mean() + out.loss.float()).backward()
    assert z.grad.dtype == torch.bfloat16
    has_table = any(leaf.codebook.has_table for leaf in quantizer.quantizer.leaves())
    assert out.z_q.dtype == (
        torch.bfloat16 if has_table or quantizer.project_out else torch.float32
    )
    assert quantizer.lookup(out.ids).dtype == out.z_q.dtype
    quantizer.step()
    for leaf in quantizer.quantizer.leaves():
        for rule in leaf.rules:
            assert all(b.dtype != torch.bfloat16 for b in rule.buffers())


def test_waiting_vectors_are_saved_and_read_back(tmp_path):
    config = TokenizerConfig(
        network=NetworkConfig(hidden=4, residual_hidden=2),
        quantizer=QuantizerConfig(
            preset="cvq", args={"num_codes": 4, "dim": 2, "anchors": "probrandom"}
        ),
    )
    tokenizer = ImageTokenizer(config).train()
    tokenizer.quantizer.auto_step = False
    tokenizer(torch.rand(1, 3, 8, 8))
    tokenizer.save_pretrained(tmp_path)
    again = ImageTokenizer.from_pretrained(tmp_path)
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("name", ["dual", "simvq", "vit_vqgan"])
def test_weights_written_through_data_need_drop_cache(name):
    quantizer = make(name).eval()
    z = feature_map(quantizer)
    quantizer(z)
    for parameter in quantizer.parameters():
        parameter.data.mul_(1.5)
    quantizer.drop_cache()
    twin = make(name)
    twin.load_state_dict(quantizer.state_dict())
    assert torch.equal(quantizer(z).z_q, twin.eval()(z).z_q)


@pytest.mark.parametrize("make_quantizer", [
    lambda: vq_ema(8, 4, restart_below=1.0),
    lambda: cvq(8, 4, anchors="random"),
    lambda: cvq(8, 4, anchors="probrandom"),
    lambda: looc(8, 2, num_segments=2),
])  # fmt: skip
def test_a_forward_of_nan_spoils_no_codes(make_quantizer):
    quantizer = make_quantizer().train()
    quantizer.check_values = False
    for value in (0.0, torch.nan, 0.0):
        quantizer(feature_map(quantizer) + value)
        quantizer.step()
    assert torch.isfinite(codes_of(quantizer)).all()
