"""The contract that every quantizer keeps, whole or composed (`architecture` 3)."""

import copy
import io
import pickle

import pytest
import torch
from quantizer_cases import CASES, PERMUTES, feature_map, make, train_steps

from vqkit.quantizers import VectorQuantizer

every = pytest.mark.parametrize("name", CASES)


def state(quantizer):
    return {key: value.clone() for key, value in quantizer.state_dict().items()}


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@every
@pytest.mark.parametrize("training", [True, False])
def test_shapes_ids_and_lookup(name, training):
    quantizer = make(name)
    train_steps(quantizer, 3)
    quantizer.train(training)
    z = feature_map(quantizer) * 3
    out = quantizer(z)
    assert out.z_q.shape == z.shape
    assert out.ids.shape == (3, 4, 5, len(quantizer.slots))
    assert out.ids.dtype == torch.int64
    limits = torch.tensor([slot.num_codes for slot in quantizer.slots])
    assert (out.ids >= 0).all()
    assert (out.ids < limits).all()
    rebuilt = quantizer.lookup(out.ids)
    if training and quantizer.relaxed:
        assert not torch.equal(rebuilt, out.z_q)
    else:
        assert torch.equal(rebuilt, out.z_q)


@every
def test_lookup_is_exact_far_from_the_origin(name):
    quantizer = make(name).train()
    out = quantizer(feature_map(quantizer) * 10 + 1000)
    if not quantizer.relaxed:
        assert torch.equal(quantizer.lookup(out.ids), out.z_q)


@every
def test_slots_and_books_cover_every_token_once(name):
    quantizer = make(name)
    names = [slot.name for slot in quantizer.slots]
    assert len(set(names)) == len(names)
    assert all(names)
    members = sorted(slot for book in quantizer.books for slot in book)
    assert members == list(range(len(names)))
    for book in quantizer.books:
        assert len({quantizer.slots[slot].num_codes for slot in book}) == 1


@every
def test_gradient_reaches_the_encoder(name):
    quantizer = make(name).train()
    z = feature_map(quantizer).requires_grad_()
    weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(9))
    (quantizer(z).z_q * weights).sum().backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert z.grad.abs().sum() > 0


@every
def test_terms_are_finite_and_sum_to_the_loss(name):
    out = make(name).train()(feature_map(make(name)))
    assert all(torch.isfinite(term) and term.ndim == 0 for term in out.terms.values())
    torch.testing.assert_close(out.loss, sum(out.terms.values(), torch.zeros(())))


@every
def test_evaluation_writes_nothing(name):
    quantizer = make(name)
    train_steps(quantizer, 2)
    quantizer.eval()
    before = state(quantizer)
    first = quantizer(feature_map(quantizer, seed=7))
    second = quantizer(feature_map(quantizer, seed=7))
    assert torch.equal(first.ids, second.ids)
    assert torch.equal(first.z_q, second.z_q)
    assert_same_state(state(quantizer), before)
    untouched = make(name)
    start = state(untouched)
    untouched.eval()(feature_map(untouched))
    untouched.step()
    assert_same_state(state(untouched), start)


@every
@pytest.mark.parametrize("auto_step", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_fresh_object_continues_bit_for_bit(name, auto_step):
    def steps(quantizer, first, count):
        quantizer.auto_step = auto_step
        losses = []
        for step in range(first, first + count):
            losses += train_steps(quantizer, 1, first=step)
            if not auto_step:
                quantizer.step()
        return losses

    reference = make(name)
    losses = steps(reference, 0, 6)
    interrupted = make(name)
    first = steps(interrupted, 0, 3)
    buffer = io.BytesIO()
    torch.save(interrupted.state_dict(), buffer)
    buffer.seek(0)
    fresh = make(name, seed=99)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert losses == first + steps(fresh, 3, 3)
    assert_same_state(state(fresh), state(reference))


@every
def test_pickles_and_copies(name):
    quantizer = make(name)
    train_steps(quantizer, 1)
    quantizer.eval()
    z = feature_map(quantizer)
    expected = quantizer(z)
    for twin in (pickle.loads(pickle.dumps(quantizer)), copy.deepcopy(quantizer)):
        assert torch.equal(twin(z).ids, expected.ids)
        assert torch.equal(twin(z).z_q, expected.z_q)


@pytest.mark.parametrize("name", PERMUTES)
def test_moving_positions_moves_ids(name):
    quantizer = make(name)
    train_steps(quantizer, 2)
    quantizer.eval()
    z = feature_map(quantizer)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    moved = z.flatten(2)[:, :, order].view_as(z)
    expected = quantizer(z).ids.flatten(1, 2)[:, order]
    assert torch.equal(quantizer(moved).ids.flatten(1, 2), expected)


@pytest.mark.parametrize("name", PERMUTES)
def test_vectors_equal_the_map(name):
    quantizer = make(name).eval()
    z = feature_map(quantizer)
    on_map = quantizer(z)
    on_vectors = quantizer.vectors(z.permute(0, 2, 3, 1))
    assert torch.equal(on_vectors.ids, on_map.ids)
    torch.testing.assert_close(on_vectors.z_q, on_map.z_q.permute(0, 2, 3, 1))
    assert torch.equal(quantizer.lookup_vectors(on_vectors.ids), on_vectors.z_q)
    sequence = quantizer.vectors(z.flatten(2).transpose(1, 2))
    assert torch.equal(sequence.ids, on_map.ids.flatten(1, 2))


@every
def test_bf16_input_keeps_float32_distances(name):
    quantizer = make(name).eval()
    z = feature_map(quantizer).bfloat16()
    expected = quantizer(z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantizer(z)
        rebuilt = quantizer.lookup(out.ids)
    assert torch.equal(out.ids, expected.ids)
    assert out.z_q.dtype == torch.float32
    assert torch.equal(out.z_q, expected.z_q)
    assert torch.equal(rebuilt, out.z_q)


@every
def test_batches_do_not_matter(name):
    quantizer = make(name)
    train_steps(quantizer, 2)
    quantizer.eval()
    z = feature_map(quantizer, batch=6)
    whole = quantizer(z).ids
    parts = torch.cat([quantizer(part).ids for part in z.split([1, 2, 3])])
    assert torch.equal(whole, parts)


@every
def test_a_foreign_loop_trains_what_can_be_trained(name):
    """Nothing here knows of step(); codes that are trained or written must move."""
    quantizer = make(name)
    before = state(quantizer)
    train_steps(quantizer, 4)
    after = state(quantizer)
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    for path, leaf in quantizer.named_modules():
        if isinstance(leaf, VectorQuantizer) and leaf.codebook.has_table:
            inside = [key for key in moved if key.startswith(f"{path}.codebook.")]
            assert inside, f"the codes of {path} did not move"
    if not any(leaf.codebook.has_table for leaf in quantizer.quantizer.leaves()):
        assert all("clock" in k or "pending" in k or "project" in k for k in moved), moved


@every
def test_rate_is_the_sum_over_slots(name):
    quantizer = make(name)
    expected = sum(torch.tensor(float(s.num_codes)).log2().item() for s in quantizer.slots)
    assert quantizer.bits_per_position == pytest.approx(expected, rel=1e-6)
    description = quantizer.describe(4, 5, batch_size=2)
    assert description.bits_per_image == pytest.approx(20 * expected, rel=1e-6)
    assert description.tokens_per_image == 20 * len(quantizer.slots)
    assert description.text()
    assert set(quantizer.summary()) == {
        "codebook", "assignment", "update", "terms", "composition", "grid",
    }  # fmt: skip


@every
def test_wrong_ids_are_refused(name):
    quantizer = make(name)
    tokens, last = len(quantizer.slots), quantizer.slots[-1].num_codes
    good = torch.zeros(1, 2, 2, tokens, dtype=torch.int64)
    with pytest.raises(ValueError, match="ids of type"):
        quantizer.lookup(good.int())
    with pytest.raises(ValueError, match="ids of type"):
        quantizer.lookup(good.float())
    with pytest.raises(ValueError, match="last axis"):
        quantizer.lookup(torch.zeros(1, 2, 2, tokens + 1, dtype=torch.int64))
    for bad in (-1, last):
        wrong = good.clone()
        wrong[0, 0, 0, -1] = bad
        with pytest.raises(ValueError, match="ids of slot"):
            quantizer.lookup(wrong)


@every
def test_wrong_features_are_refused(name):
    quantizer = make(name)
    z = feature_map(quantizer)
    with pytest.raises(ValueError, match="in_channels"):
        quantizer(torch.cat([z, z], 1))
    with pytest.raises(ValueError, match="floating-point"):
        quantizer(z.long())
    with pytest.raises(ValueError, match="vectors"):
        quantizer(z[0])
    with pytest.raises(ValueError, match="nothing to quantize"):
        quantizer(z[:0])
    with pytest.raises(ValueError, match="channels"):
        quantizer.vectors(z) if quantizer.beta == 1 else quantizer(z[:, :1])
