"""Tables, draws and statistics that take short cuts, against the long way."""

import pytest
import torch
import torch.nn.functional as F
from quantizer_cases import feature_map
from torch import nn

from vqkit.quantizers import FreeCodebook, dual, gumbel, pq, sq_vae, uniform_codes, vq_ema
from vqkit.quantizers.clock import BLOCK, Clock, counter_uniform
from vqkit.quantizers.scores import Logits, draw, negative_entropy
from vqkit.quantizers.tables import RowLinear, take_codes, unit_rows
from vqkit.quantizers.updates import RowSample, add_statistics
from vqkit.search import nearest

few_or_many = pytest.mark.parametrize("used", [0, 1, 3, 40], ids="{} rows".format)


def gradients(rows, make, used, extra=()):
    """The table and the gradients of a loss on `used` of its rows."""
    rows = rows.detach().clone().requires_grad_()
    table = make(rows)
    weight = torch.randn(used, table.shape[-1], generator=torch.Generator().manual_seed(2))
    (table[..., :used, :] * weight).sum().backward()
    return [table.detach(), rows.grad, *(p.grad.clone() for p in extra)]


@few_or_many
@pytest.mark.parametrize("bias", [True, False])
def test_row_linear_is_a_linear_layer(used, bias):
    torch.manual_seed(0)
    rows, quick = torch.randn(40, 6), RowLinear(6, 3, bias=bias)
    plain = nn.Linear(6, 3, bias=bias)
    plain.load_state_dict(quick.state_dict())
    found = gradients(rows, quick, used, list(quick.parameters()))
    for a, b in zip(found, gradients(rows, plain, used, list(plain.parameters())), strict=True):
        torch.testing.assert_close(a, b)
    frozen = quick(rows[None])
    assert torch.equal(frozen[0], found[0])
    frozen[0, :used].sum().backward()


@few_or_many
def test_unit_rows_are_normalised_rows(used):
    rows = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))
    rows[:, 0], rows[:, 1] = 0, 1e-13
    found = gradients(rows, unit_rows, used)
    for a, b in zip(found, gradients(rows, lambda x: F.normalize(x, dim=-1), used), strict=True):
        torch.testing.assert_close(a, b)


def test_taken_codes_have_the_gradient_of_an_embedding():
    table, ids = torch.randn(3, 7, 4, requires_grad=True), torch.randint(7, (3, 50, 2))
    weight = torch.randn(3, 50, 2, 4)
    codes = take_codes(table, ids)
    (found,) = torch.autograd.grad((codes * weight).sum(), table)
    for group in range(3):
        expected = F.embedding(ids[group], table[group])
        assert torch.equal(codes[group], expected)
        (slope,) = torch.autograd.grad((expected * weight[group]).sum(), table)
        torch.testing.assert_close(found[group], slope[group])


@pytest.mark.parametrize("mix", [True, False])
@pytest.mark.parametrize("block", [1, 77, 1 << 20])
def test_draw_by_blocks_is_the_formula(mix, block, monkeypatch):
    monkeypatch.setattr("vqkit.quantizers.scores.BLOCK", block)
    source = torch.Generator().manual_seed(0)
    sizes = [(9, 4), (11, 4), (11,), (11, 3)]
    inputs = [torch.randn(size, generator=source, requires_grad=True) for size in sizes]
    noise = torch.randn(9, 11, generator=source)
    upstream, of_entropy = torch.randn(9, 3, generator=source), torch.randn(9, generator=source)
    tau = torch.tensor(0.7)
    z, weight, bias, table = inputs
    found = draw(z, Logits(weight, bias), table, tau, lambda rows: noise[rows], mix=mix)
    log_p = F.linear(z, weight, bias).log_softmax(-1)
    weights = ((log_p + noise) / tau).softmax(-1)
    one_hot = F.one_hot(weights.argmax(-1), 11).float()
    z_q = (weights if mix else one_hot + weights - weights.detach()) @ table
    entropy = (log_p.exp() * log_p).sum(-1)
    assert torch.equal(found.ids, weights.argmax(-1))
    torch.testing.assert_close(found.z_q, z_q)
    torch.testing.assert_close(found.negative_entropy, entropy)
    torch.testing.assert_close(negative_entropy(z, Logits(weight, bias)), entropy)
    roots, slopes = [z_q, entropy], [upstream, of_entropy]
    expected = torch.autograd.grad(roots, inputs, slopes)
    by_blocks = torch.autograd.grad([found.z_q, found.negative_entropy], inputs, slopes)
    for a, b in zip(by_blocks, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [gumbel, sq_vae])
def test_evaluation_has_the_gradient_of_its_terms(make, monkeypatch):
    """Blocks made again in the backward pass give what one block gives."""
    quantizer = make(9, 3).eval()
    slopes = []
    for block in (1 << 20, 30):
        monkeypatch.setattr("vqkit.quantizers.scores.BLOCK", block)
        z = feature_map(quantizer).requires_grad_()
        quantizer(z).loss.backward()
        slopes.append(z.grad)
        assert z.grad.any()
    torch.testing.assert_close(*slopes)


def test_numbers_do_not_depend_on_blocks():
    seed, many = torch.tensor(5), torch.arange(3 * BLOCK // 8)[:, None]
    whole = counter_uniform(seed, many, torch.arange(8))
    rows = torch.tensor([0, 1, BLOCK // 8, len(many) - 1])
    assert torch.equal(whole[rows], counter_uniform(seed, rows[:, None], torch.arange(8)))
    line = counter_uniform(seed, torch.arange(3 * BLOCK))
    assert torch.equal(line[-5:], counter_uniform(seed, torch.arange(3 * BLOCK)[-5:]))


@pytest.mark.parametrize("parts", [[1] * 30, [7, 23], [29, 1], [30]])
@pytest.mark.parametrize("num_codes", [5, 20, 64])
def test_a_sample_is_the_same_for_any_parts(parts, num_codes):
    z = torch.randn(1, 30, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    clock = Clock()
    sample = RowSample(FreeCodebook(uniform_codes(num_codes, 2)))
    for part in z.split(parts, 1):
        clock.begin_forward()
        sample.collect(part, clock)
        clock.count_call(part.shape[1])
        clock.end_forward()
    clock.rows.zero_()
    drawn, order = clock.uniform(3, torch.arange(30)).sort()
    priority, rows = sample.sorted()
    kept = min(30, num_codes)
    assert torch.equal(priority, drawn[:kept])
    assert torch.equal(rows, z[:, order[:kept]])
    saved = RowSample(FreeCodebook(uniform_codes(num_codes, 2)))
    saved.load_state_dict(sample.state_dict())
    assert torch.equal(saved.sorted()[1], rows)
    sample.clear()
    assert not sample.rows.any()
    assert sample.priority.isinf().all()


def test_statistics_of_parts_are_those_of_the_whole_bit_for_bit():
    source = torch.Generator().manual_seed(0)
    z, ids = torch.randn(2, 500, 3, generator=source), torch.randint(7, (2, 500), generator=source)
    whole, parts = [(torch.zeros(2, 7), torch.zeros(2, 7, 3)) for _ in range(2)]
    add_statistics(*whole, z, ids)
    for part in torch.arange(500).split([1, 99, 400]):
        add_statistics(*parts, z[:, part], ids[:, part])
    for a, b in zip(whole, parts, strict=True):
        assert torch.equal(a, b)
    expected = torch.zeros(2, 7, 3, dtype=torch.float64)
    for group in range(2):
        expected[group].index_add_(0, ids[group], z[group].double())
    torch.testing.assert_close(whole[1], expected.float())


def test_many_vectors_of_one_code_are_added_in_full_precision():
    """A float32 running sum of 2^21 equal numbers is off by 1 % and more."""
    counts, sums = torch.zeros(1, 1), torch.zeros(1, 1, 1)
    add_statistics(counts, sums, torch.full((1, 1 << 21, 1), 0.1), torch.zeros(1, 1 << 21).long())
    assert sums.item() == pytest.approx(0.1 * (1 << 21), rel=1e-6)


def test_ema_step_out_of_range_is_left_out():
    quantizer = vq_ema(4, 2).train()
    leaf = next(quantizer.quantizer.leaves())
    before = leaf.codebook.codes.clone()
    quantizer(feature_map(quantizer))
    leaf.rules[0].new_sums[0, 1, 1] = torch.inf
    quantizer.step()
    torch.testing.assert_close(leaf.codebook.codes, before)


@pytest.mark.parametrize(
    ("quantizer", "calls"),
    [
        (dual(12, 4, refiner="none"), [2]),
        (dual(12, 4, refiner="linear"), [2]),
        (pq(12, 4, num_segments=3), [3]),
        (dual((8, 12), 4, refiner="none"), [1, 1]),
    ],
    ids=["dual", "dual, refined", "pq", "dual, unequal"],
)
def test_parts_with_equal_tables_are_one_search(quantizer, calls, monkeypatch):
    """Law 2: independent segments are one grouped call, with the result of separate ones."""
    groups = []

    def counted(z, codes, metric="l2"):
        groups.append(len(codes))
        return nearest(z, codes, metric)

    monkeypatch.setattr("vqkit.quantizers.assignments.nearest", counted)
    monkeypatch.setattr("vqkit.quantizers.compose.nearest", counted)
    z = feature_map(quantizer)
    out = quantizer.eval()(z)
    assert groups == calls
    assert torch.equal(quantizer.lookup(out.ids), out.z_q)
    leaf = next(quantizer.quantizer.leaves())
    first = z.permute(0, 2, 3, 1)[..., :4].reshape(-1, 4)
    expected = nearest(first, leaf.codebook.table(leaf.clock)[0])
    assert torch.equal(out.ids[..., 0].flatten(), expected)
