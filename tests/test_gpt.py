"""The network of a GPT: its losses against naive ones, and who may see what."""

import math

import pytest
import torch
import torch.nn.functional as F
from gpt_cases import CASES, random_ids, tiny_card, tiny_gpt

from vqkit.config import GPTConfig
from vqkit.generation.gpt.generator import build_gpt
from vqkit.generation.gpt.tables import token_losses
from vqkit.generation.gpt.task import bits_of, measure_bits, replaced
from vqkit.recipes import generator_recipe


def step_logits(network, ids, labels, unit, token):
    """Logits of one token by the definition: only what stands before it is given."""
    units = network.as_units(ids)
    x = network.begin(labels)
    for number in range(unit):
        rows = [
            network.embed_token(units[:, number, s], network.slot_of(number, s))
            for s in range(network.unit_tokens)
        ]
        x = torch.cat((x, sum(rows)[:, None]), dim=1)
    hidden = network.trunk(x)[:, -1]
    if network.depth is not None:
        y, total = hidden[:, None], 0
        for s in range(token):
            total = total + network.embed_token(units[:, unit, s], s)
            y = torch.cat((y, total[:, None]), dim=1)
        hidden = network.depth(y)[:, -1]
    return network.logits(hidden, network.slot_of(unit, token))


@pytest.mark.parametrize(("architecture", "slots"), CASES)
def test_losses_are_those_of_one_token_after_another(architecture, slots):
    made = tiny_gpt(architecture, slots)
    network, ids, labels = made.network, random_ids(made, 2), torch.tensor([1, 3])
    units = network.as_units(ids)
    sums = torch.zeros(len(made.slots))
    with torch.no_grad():
        for unit in range(network.units):
            for token in range(network.unit_tokens):
                logits = step_logits(network, ids, labels, unit, token)
                slot = network.slot_of(unit, token)
                sums[slot] += F.cross_entropy(logits, units[:, unit, token])
        found = network(ids, labels)
    # float32, two orders of summation of losses of about 5 nats
    torch.testing.assert_close(found, sums / 12, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("architecture", "slots"), CASES)
def test_a_token_sees_only_what_is_written_before_it(architecture, slots):
    made = tiny_gpt(architecture, slots)
    network, ids, labels = made.network, random_ids(made, 1), torch.tensor([0])
    x = network.as_units(ids)
    last = made.slots[network.slot_of(network.units - 1, network.unit_tokens - 1)].num_codes
    changed = x.clone()
    changed[:, -1, -1] = (changed[:, -1, -1] + 1) % last

    def hidden(units):
        inputs = torch.cat((network.begin(labels), network.embed(units[:, :-1])), dim=1)
        return network.within(network.trunk(inputs), units)

    assert torch.equal(hidden(x), hidden(changed)), "nothing follows the last token"
    changed = x.clone()
    changed[:, 5, -1] = (changed[:, 5, -1] + 1) % 5
    before, after = hidden(x), hidden(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] != after[:, 6:]).flatten(2).any(2).all()


@pytest.mark.parametrize("at_once", [1, 21, 70, 10**6])
def test_the_loss_by_chunks_is_the_loss(at_once, generator):
    hidden = torch.randn(23, 6, generator=generator, dtype=torch.float64)
    rows = torch.randn(7, 6, generator=generator, dtype=torch.float64)
    ids = torch.randint(7, (23,), generator=generator)
    plain = [hidden.clone().requires_grad_(), rows.clone().requires_grad_()]
    chunks = [hidden.clone().requires_grad_(), rows.clone().requires_grad_()]
    expected = F.cross_entropy(plain[0] @ plain[1].T, ids)
    found = token_losses(*chunks, ids, at_once=at_once)
    # logits become float32 inside
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    expected.backward()
    found.backward()
    for one, other in zip(plain, chunks, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-8)


def test_no_more_logits_exist_than_a_chunk_has(monkeypatch, generator):
    shapes, real = [], F.cross_entropy
    monkeypatch.setattr(
        F, "cross_entropy", lambda x, *a, **k: (shapes.append(tuple(x.shape)), real(x, *a, **k))[1]
    )
    hidden = torch.randn(100, 4, generator=generator, requires_grad=True)
    rows = torch.randn(50, 4, generator=generator, requires_grad=True)
    loss = token_losses(hidden, rows, torch.arange(100) % 50, at_once=1000)
    assert shapes == [(20, 50)] * 5
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.append(t.numel()), t)[1], lambda t: t
    ):
        token_losses(hidden, rows, torch.arange(100) % 50, at_once=1000)
    assert max(kept) <= 400, "no logits are kept for the backward pass"
    loss.backward()
    assert len(shapes) == 15, "the backward pass computes each chunk again"


def test_a_vocabulary_of_200_000_trains(generator):
    made = tiny_gpt(codes=(200_000,))
    ids = random_ids(made, 3)
    loss = made.network(ids, torch.tensor([0, 1, 2])).mean()
    loss.backward()
    assert made.network.head.weight.grad.abs().sum() > 0
    assert float(loss.detach()) > math.log(200_000) / 2


def test_a_tied_table_is_one_table():
    made = tiny_gpt(tie_embeddings=True)
    assert made.network.head is made.network.tokens
    free = tiny_gpt()
    difference = sum(p.numel() for p in free.network.parameters()) - sum(
        p.numel() for p in made.network.parameters()
    )
    assert difference == 11 * 16


def test_the_papers_size_is_404_million():
    run = generator_recipe("lc_gpt")()
    with torch.device("meta"):
        card = tiny_card((100_000,), num_classes=1000, grid=(16, 16))
        network = build_gpt(run.model, card)
    count = sum(p.numel() for p in network.parameters())
    assert 404e6 < count < 407e6
    assert run.optim.num_steps == 125_100
    assert run.optim.warmup_steps == 6255


def test_slots_need_a_way_to_be_written():
    with pytest.raises(ValueError, match=r"model.slots=None with 3 tokens per position: choose"):
        tiny_gpt(codes=(4, 4, 4))
    with pytest.raises(ValueError, match=r"model.slots='depth': these tokens are one per position"):
        tiny_gpt(slots="depth", codes=(4,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 20, "heads": 8}, "model.width=20: must be a multiple of 16 with 8 heads"),
        ({"layers": 0}, "model.layers=0: must be at least 1"),
        ({"dropout": 1.0}, "model.dropout=1.0: must lie in"),
        ({"label_dropout": -0.1}, "model.label_dropout=-0.1"),
        ({"architecture": "rnn"}, "model.architecture='rnn': expected one of 'llama', 'gpt2'"),
        ({"slots": "sum"}, "model.slots='sum': expected one of 'depth', 'interleave'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**settings)


def test_noise_replaces_its_share_within_each_slot(generator):
    made = tiny_gpt(slots="depth")
    ids = random_ids(made, 200)
    other = replaced(ids, made.card, 0.25, generator)
    for number, slot in enumerate(made.slots):
        same = (other[..., number] == ids[..., number]).double().mean()
        expected = 0.75 + 0.25 / slot.num_codes
        # 2,400 draws: a deviation of 0.01 is the standard error
        assert abs(float(same) - expected) < 0.04
        assert int(other[..., number].max()) == slot.num_codes - 1
    assert replaced(ids, made.card, 0.0, generator) is None


class Tokens:
    """Ids in memory, with the face of a token set."""

    def __init__(self, ids, labels):
        self.num_images, self._ids, self._labels = len(ids), ids, labels

    def ids(self, rows):
        return self._ids[rows]

    def labels(self, rows):
        return self._labels[rows]


def test_bits_are_counted_over_images_not_batches():
    made = tiny_gpt(slots="depth")
    ids, labels = random_ids(made, 5), torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        whole = bits_of(made.network(ids, labels), made.grid)
    found = measure_bits(made.network, Tokens(ids, labels), batch_size=2)
    assert found["bits_per_image"] == pytest.approx(float(whole["bits_per_image"]), rel=1e-5)
    assert found["bits_per_token"] * 36 == pytest.approx(found["bits_per_image"])
    uniform = bits_of(torch.tensor([math.log(8), math.log(2)]), (3, 4))
    assert float(uniform["bits_per_image"]) == pytest.approx(12 * (3 + 1))
    with pytest.raises(ValueError, match=r"labels in \[-1, 2\]: expected \[0, 3\)"):
        measure_bits(made.network, Tokens(ids, torch.tensor([0, 1, 2, 0, -1])))
