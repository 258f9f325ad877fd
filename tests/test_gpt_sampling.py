"""Sampling from a GPT: the same ids however they are computed, from the right distribution."""

from dataclasses import replace

import pytest
import torch
from gpt_cases import CASES, random_ids, tiny_gpt

from vqkit.config import GPTSampling
from vqkit.generation.draws import uniform_draws
from vqkit.generation.gpt import as_transformers
from vqkit.generation.gpt.drawing import draw, probabilities, top_count

pytestmark = pytest.mark.slow

LABELS = torch.tensor([0, 1, 2, 3, 0])  # 3 is "no class"
PLAIN = GPTSampling(guidance=1.5, temperature=0.9, top_k=0.8, top_p=0.95)


@pytest.mark.parametrize(("architecture", "slots"), CASES)
def test_ids_do_not_depend_on_cache_or_batches(architecture, slots):
    made = tiny_gpt(architecture, slots)
    ids = made.write(LABELS, seed=1, sampling=PLAIN)
    assert ids.shape == (5, 3, 4, len(made.slots))
    assert ids.dtype == torch.int64
    for sampling in (
        replace(PLAIN, cache="none"),
        replace(PLAIN, cache="static"),
        replace(PLAIN, batch_size=2),
    ):
        assert torch.equal(made.write(LABELS, seed=1, sampling=sampling), ids)
    later = made.write(LABELS[2:], seed=1, start=2, sampling=PLAIN)
    assert torch.equal(later, ids[2:])
    assert not torch.equal(made.write(LABELS, seed=2, sampling=PLAIN), ids)
    assert not torch.equal(made.write(LABELS, seed=1, start=1, sampling=PLAIN), ids)


@pytest.mark.parametrize(("architecture", "slots"), CASES)
def test_cached_logits_differ_by_rounding_alone(architecture, slots):
    """The bound: 1e-5 times the largest logit, in float32."""
    made = tiny_gpt(architecture, slots)
    network, ids, labels = made.network, random_ids(made, 3), torch.tensor([0, 1, 2])
    units = network.as_units(ids)
    with torch.no_grad():
        x = torch.cat((network.begin(labels), network.embed(units[:, :-1])), dim=1)
        hidden = network.trunk(x)
        whole = network.logits(hidden, 0)
        for static in (False, True):
            cache = network.trunk.new_cache(static=static)
            steps = [
                network.trunk(x[:, n : n + 1], cache, torch.tensor([n]) if n else None)
                for n in range(network.units)
            ]
            found = network.logits(torch.cat(steps, dim=1), 0)
            torch.testing.assert_close(found, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_greedy_ids_are_those_of_transformers_generate(architecture):
    made = tiny_gpt(architecture)
    labels = torch.tensor([0, 1, 2, 1])
    expected = as_transformers(made).generate(
        11 + labels[:, None],
        attention_mask=torch.ones(4, 1, dtype=torch.int64),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=11,
        suppress_tokens=[11, 12, 13, 14],
    )
    ids = made.write(labels, seed=0, sampling=GPTSampling(temperature=0))
    assert torch.equal(ids.flatten(1), expected[:, 1:])
    with pytest.raises(ValueError, match="3 tokens per position: a language model"):
        as_transformers(tiny_gpt(slots="depth"))


def test_a_token_is_drawn_with_its_probability(generator):
    logits = torch.randn(1, 9, generator=generator)
    count = 20_000
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ids = draw(logits.expand(count, -1), grid, GPTSampling(temperature=0.7))
    found = ids.bincount(minlength=9) / count
    # an even grid of numbers misses each share by less than one grid step at each border
    torch.testing.assert_close(found, (logits[0] / 0.7).softmax(0), rtol=0, atol=2 / count)


def test_top_k_and_top_p_leave_what_they_say():
    p = torch.tensor([[0.4, 0.05, 0.3, 0.2, 0.05]])
    kept = probabilities(p.log(), GPTSampling(top_k=2))
    assert kept.gt(0).tolist() == [[True, False, True, False, False]]
    torch.testing.assert_close(kept[0, [0, 2]], torch.tensor([4 / 7, 3 / 7]))
    assert torch.equal(probabilities(p.log(), GPTSampling(top_k=0.4)), kept)
    for top_p, count in ((0.1, 1), (0.4, 1), (0.41, 2), (0.69, 2), (0.71, 3), (1.0, 5)):
        kept = probabilities(p.log(), GPTSampling(top_p=top_p))
        assert int(kept.gt(0).sum()) == count, top_p
    assert [top_count(k, 100_000) for k in (0.1, 1, 100_000, 300_000, 1e-9)] == [
        10_000,
        1,
        100_000,
        100_000,
        1,
    ]


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(number, generator):
    logits = torch.randn(50, 300, generator=generator) * 5
    logits[:, [0, -1]] = -torch.inf
    uniform = torch.full((50,), number, dtype=torch.float64)
    for sampling in (GPTSampling(), GPTSampling(top_k=3), GPTSampling(top_p=0.5)):
        ids = draw(logits, uniform, sampling)
        assert (probabilities(logits, sampling).gather(1, ids[:, None]) > 0).all()


def test_numbers_belong_to_a_sample():
    whole = uniform_draws(7, 0, 6, 5)
    assert torch.equal(uniform_draws(7, 4, 2, 5), whole[4:])
    assert torch.equal(uniform_draws(7, 0, 6, 3), whole[:, :3])
    assert ((whole >= 0) & (whole < 1)).all()
    assert len(whole.unique()) == 30
    # 10,000 numbers: mean and variance within four standard errors of those of the interval
    many = uniform_draws(0, 0, 100, 100)
    assert abs(float(many.mean()) - 0.5) < 4 * (1 / 12 / 10_000) ** 0.5
    assert abs(float(many.var()) - 1 / 12) < 4 * (1 / 180 / 10_000) ** 0.5


def test_the_first_token_follows_its_distribution():
    made = tiny_gpt()
    count = 4000
    ids = made.write(torch.full((count,), 1), seed=0, sampling=GPTSampling(batch_size=1000))
    with torch.no_grad():
        hidden = made.network.trunk(made.network.begin(torch.tensor([1])))[:, -1]
        expected = made.network.logits(hidden, 0).softmax(1)[0]
    found = ids[:, 0, 0, 0].bincount(minlength=11) / count
    error = (expected * (1 - expected) / count).sqrt()
    assert ((found - expected).abs() < 4 * error + 1e-9).all()


def test_guidance_is_the_formula():
    made = tiny_gpt()
    network, labels = made.network, torch.tensor([2])
    with torch.no_grad():
        asked, free = (
            network.logits(network.trunk(network.begin(torch.tensor([c])))[:, -1], 0)
            for c in (2, 3)
        )
    sampling = GPTSampling(guidance=3.0)
    numbers = uniform_draws(0, 0, 1, 12)
    expected = draw(free + 3 * (asked - free), numbers[:, 0], sampling)
    assert made.write(labels, seed=0, sampling=sampling)[0, 0, 0, 0] == expected
    none = torch.tensor([3])
    plain = made.write(none, seed=0, sampling=GPTSampling())
    assert torch.equal(made.write(none, seed=0, sampling=sampling), plain), "nothing to guide to"


@pytest.mark.parametrize("cache", ["growing", "static", "none"])
@pytest.mark.parametrize("slots", [None, "depth", "interleave"])
def test_a_prompt_is_continued(slots, cache):
    made = tiny_gpt(slots=slots)
    ids = made.write(LABELS, seed=3, sampling=PLAIN)
    sampling = replace(PLAIN, cache=cache)
    assert torch.equal(made.write(LABELS, seed=3, sampling=sampling, prompt=ids[:, :2]), ids)
    other = (ids[0, :1] + 1) % 5
    found = made.write(LABELS, seed=3, sampling=sampling, prompt=other)
    assert torch.equal(found[:, :1], other.expand(5, *other.shape))
    assert not torch.equal(found[:, 1:], ids[:, 1:])


def test_unconditional_models_write_without_classes():
    made = tiny_gpt(num_classes=0)
    ids = made.write(torch.zeros(3, dtype=torch.int64), seed=0, sampling=GPTSampling())
    assert ids.shape == (3, 3, 4, 1)
    with pytest.raises(ValueError, match=r"guidance=2.0: this generator was trained without"):
        made.write(torch.zeros(1, dtype=torch.int64), seed=0, sampling=GPTSampling(guidance=2.0))
    made = tiny_gpt(label_dropout=0.0)
    with pytest.raises(ValueError, match=r"guidance=2.0: this generator never saw a hidden class"):
        made.write(torch.zeros(1, dtype=torch.int64), seed=0, sampling=GPTSampling(guidance=2.0))


def test_bfloat16_copies_the_weights_and_leaves_the_model():
    made = tiny_gpt()
    before = made.write(LABELS, seed=0, sampling=GPTSampling())
    ids = made.write(LABELS, seed=0, sampling=GPTSampling(precision="bf16"))
    assert ids.max() < 11
    assert made._writer.network.tokens.weight.dtype == torch.bfloat16
    assert made.network.tokens.weight.dtype == torch.float32
    assert torch.equal(made.write(LABELS, seed=0, sampling=GPTSampling()), before)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (torch.zeros(3, 4, 1, dtype=torch.int64), "prompt of 3 rows: an image has 3; leave"),
        (torch.zeros(1, 5, 1, dtype=torch.int64), r"prompt of shape \(1, 5, 1\) and type"),
        (torch.zeros(2, 1, 4, 1, dtype=torch.int64), r"give int64 ids \(5, rows, 4, 1\)"),
        (torch.zeros(1, 4, 1), "type torch.float32"),
        (torch.full((1, 4, 1), 11), r"prompt: slot slot0: ids lie in \[0, 11\)"),
        (torch.full((1, 4, 1), -1), r"prompt: slot slot0: ids lie in \[0, 11\)"),
    ],
)
def test_prompts_are_checked(prompt, message):
    with pytest.raises(ValueError, match=message):
        tiny_gpt().write(LABELS, seed=0, sampling=GPTSampling(), prompt=prompt)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0: must not be negative"),
        ({"top_k": 0}, "top_k=0: give a whole number of tokens, or a share"),
        ({"top_k": 1.5}, "top_k=1.5: give a whole number of tokens, or a share"),
        ({"top_p": 0.0}, "top_p=0.0: is a probability"),
        ({"guidance": -0.5}, "guidance=-0.5: must not be negative"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"cache": "some"}, "cache='some': expected one of"),
        ({"compile": True}, "compile with cache='growing': needs cache='static'"),
    ],
)
def test_sampling_is_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        GPTSampling(**settings)


def test_compiled_steps_write_the_same_ids(monkeypatch):
    """Traced, but no C++ compiler is asked."""
    compiled_by = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda step, **_: compiled_by(step, backend="aot_eager", dynamic=False)
    )
    made = tiny_gpt()
    sampling = GPTSampling(cache="static", compile=True, batch_size=3)
    plain = GPTSampling(batch_size=3)
    found = made.write(LABELS, seed=1, sampling=sampling)
    assert torch.equal(found, made.write(LABELS, seed=1, sampling=plain))
