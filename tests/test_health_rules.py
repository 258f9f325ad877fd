"""The rules of health on made-up lines: what must be said, when, how often, and what must not."""

import copy
import json
import math
import random
import re
from pathlib import Path

import pytest

from vqkit.config import AdversarialConfig, with_changes
from vqkit.recipes import RECIPES
from vqkit.training import symptoms
from vqkit.training.symptoms import MACHINE_RULES, REMEDIES, RULES
from vqkit.training.watch import Watch

EVERY = 10


def book(**changes):
    """A codebook in good health."""
    good = {"codes": 1000, "tokens": 4000, "used": 0.9, "perplexity": 600.0}
    return good | {"dead": 0.01, "idle": 40, "norm_ratio": 1.2} | changes


def line(step, *, code=None, **changes):
    """A line of a run in good health, its discriminator included; None leaves a key out."""
    noise = random.Random(step).uniform(0.8, 1.25)
    healthy = {
        "step": step,
        "mse": 0.02 * noise,
        "gradient_norm": 0.5 * noise,
        "generator": 0.1 * noise,
        "adaptive_weight": 0.4 * noise,
        "accuracy_real": 0.8,
        "accuracy_fake": 0.7,
        "logits_real": 0.6 * noise,
        "logits_fake": -0.5,
        "images_per_second": 100 * noise,
        "seconds": step * 1.0,
        "books": {"code": book(**(code or {}))},
    } | changes
    return {key: value for key, value in healthy.items() if value is not None}


def told(lines, watch=None):
    """What a watch says of lines, as (step, name)."""
    watch = watch or Watch(5000, every=EVERY, adaptive_max=100.0)
    return [(x["step"], warning.name) for x in lines for warning in watch.look(x)]


def run(make, steps=1000):
    return [make(step) for step in range(EVERY, steps + 1, EVERY)]


def after(step, start, **ill):
    """A healthy line until `start`, an ill one from there on."""
    return line(step, **ill) if step >= start else line(step)


def test_a_healthy_run_is_told_nothing():
    watch = Watch(5000, every=EVERY)
    assert told(run(line, 5000), watch) == []
    assert watch.active == []


# Cause -> what a line shows from step 500 on, and for how long it must last.
ILLNESSES = {
    "codebook_dead": ({"code": {"used": 0.001, "perplexity": 1.0, "dead": 0.999}}, 100),
    "codebook_collapse": ({"code": {"used": 0.04, "perplexity": 20.0, "dead": 0.9}}, 100),
    "codebook_shrinks": ({"code": {"used": 0.25, "perplexity": 180.0}}, 100),
    "dead_codes": ({"code": {"used": 0.5, "dead": 0.85, "idle": 470}}, 100),
    "latents_outgrow_codes": ({"code": {"norm_ratio": 30.0}}, 100),
    "discriminator_wins": (
        {"accuracy_real": 0.99, "accuracy_fake": 0.98, "logits_fake": -3.0},
        200,
    ),
    "discriminator_blind": (
        {"accuracy_real": 0.52, "accuracy_fake": 0.46, "logits_real": 0.01, "logits_fake": 0.02},
        200,
    ),
    "adaptive_weight_clamped": ({"adaptive_weight": 100.0}, 100),
    "adaptive_weight_tiny": ({"adaptive_weight": 1e-6}, 100),
    "error_far_above_best": ({"mse": 0.5}, 100),
}


def ill_run(name, start=500, steps=1000):
    changes, _ = ILLNESSES[name]
    if name == "discriminator_wins":  # the generator's loss rises meanwhile

        def make(step):
            rise = {"generator": 0.1 + (step - start) / 100}
            return after(step, start, **changes, **rise)

    else:

        def make(step):
            return after(step, start, **changes)

    return run(make, steps)


@pytest.mark.parametrize("name", ILLNESSES)
def test_an_illness_is_told_once_when_it_lasts(name):
    _, patience = ILLNESSES[name]
    watch = Watch(5000, every=EVERY, adaptive_max=100.0)
    found = told(ill_run(name), watch)
    assert [what for _, what in found] == [name]
    # Medians of a few lines look at what lasts; they may add some lines.
    assert 500 + patience <= found[0][0] <= 500 + patience + 4 * EVERY
    assert watch.active == [name]


@pytest.mark.parametrize("name", ILLNESSES)
def test_what_passes_is_no_illness(name):
    changes, patience = ILLNESSES[name]
    end = 500 + patience - 3 * EVERY
    lines = run(lambda step: line(step, **changes) if 500 <= step < end else line(step))
    assert told(lines) == []


@pytest.mark.parametrize("name", ILLNESSES)
def test_what_is_long_grows_with_the_run(name):
    assert told(ill_run(name), Watch(100_000, every=EVERY, adaptive_max=100.0)) == []
    found = told(ill_run(name, 500, 5000), Watch(50_000, every=EVERY, adaptive_max=100.0))
    assert [what for _, what in found] == [name]
    assert found[0][0] >= 1500


@pytest.mark.parametrize("name", ILLNESSES)
def test_a_resumed_watch_says_what_the_undisturbed_one_says(name):
    lines = ill_run(name)
    for cut in (30, 55, 60, 90):
        watch = Watch(5000, every=EVERY, adaptive_max=100.0)
        before = told(lines[:cut], watch)
        resumed = Watch(5000, every=EVERY, adaptive_max=100.0)
        resumed.restore(json.loads(json.dumps(watch.state())))
        assert resumed.active == watch.active
        assert before + told(lines[cut:], resumed) == told(lines)
        assert told(lines[cut:], watch) == told(lines)[len(before) :]


def test_a_line_is_not_changed_and_remarks_are_json_values():
    watch = Watch(5000, every=EVERY)
    keys = set()
    for made in ill_run("codebook_collapse"):
        before = copy.deepcopy(made)
        remarks = watch.remarks(made)
        assert made == before
        keys |= set(remarks)
        if remarks:
            (warning,) = json.loads(json.dumps(remarks))["warnings"]
            assert warning["name"] == "codebook_collapse"
            assert "used 40 of 1,000 codes, perplexity 20" in warning["message"]
            assert warning["remedy"] == REMEDIES["codebook_collapse"]
    assert keys == {"warnings"}


def test_lines_between_the_regular_ones_are_passed_over():
    regular = ill_run("codebook_dead")
    between = [line(x["step"] + 3, code={"tokens": 50}) for x in regular]
    mixed = [x for pair in zip(regular, between, strict=True) for x in pair]
    assert told(mixed) == told(regular) != []


def test_settings_of_a_run_reach_its_watch():
    config = with_changes(RECIPES["photos_looc"](), optim__num_steps=20_000, log__every=25)
    watch = Watch.for_run(config)
    assert (watch.every, watch.scale.long, watch.scale.adaptive_max) == (25, 400, math.inf)
    adversarial = AdversarialConfig(start=0, adaptive_max=50.0)
    assert Watch.for_run(with_changes(config, adversarial=adversarial)).scale.adaptive_max == 50


# ------------------------------------------------------------------- once, and again


def test_it_is_told_again_when_it_is_twice_as_bad():
    def make(step):
        ratio = 10.0 if step < 600 else 110.0 if step < 800 else 150.0
        return line(step, code={"norm_ratio": ratio})

    assert [step for step, _ in told(run(make))] == [110, 620]  # twice the logarithm


def test_it_is_told_again_when_it_comes_back_after_a_while():
    ill = {"code": {"used": 0.001, "perplexity": 1.0}}

    def make(step):
        return line(step, **ill) if 200 <= step < 400 or step >= 800 else line(step)

    assert [step for step, _ in told(run(make))] == [300, 900]

    def flickers(step):  # one good line does not make it news
        return line(step, **({} if step == 400 else ill))

    assert [step for step, _ in told(run(flickers))] == [110]


def test_books_are_told_together_and_again_when_twice_as_many():
    def make(step):
        bad = 0 if step < 200 else 5 if step < 500 else 9 if step < 700 else 12
        ill = {"used": 0.001, "perplexity": 1.0}
        books = {f"segment{n}": book(**(ill if n < bad else {})) for n in range(12)}
        return line(step, books=books)

    watch = Watch(5000, every=EVERY)
    said = [(x["step"], w) for x in run(make) for w in watch.look(x)]
    assert [(step, w.name) for step, w in said] == [(300, "codebook_dead"), (800, "codebook_dead")]
    assert said[0][1].message.startswith("segment0: 4,000 tokens used 1 of 1,000 codes; segment1")
    assert said[0][1].message.endswith("; 2 more")
    assert said[1][1].message.endswith("; 9 more")


def test_only_the_worst_of_a_codebook_is_told():
    ill = {"used": 0.001, "perplexity": 1.0, "dead": 0.999, "idle": 400}
    assert {name for _, name in told(run(lambda step: after(step, 500, code=ill)))} == {
        "codebook_dead"
    }


# ------------------------------------------------------------------- near misses


@pytest.mark.parametrize(
    "code",
    [
        {"used": 0.06, "perplexity": 40.0},  # few codes from the first line on: not yet collapsed
        {"codes": 16, "used": 0.25, "perplexity": 2.0},
        {"codes": 16, "tokens": 128, "used": 0.125, "perplexity": 1.6},
        {"codes": 100_000, "tokens": 2000, "used": 0.01, "perplexity": 700.0},  # 1,000 of 2,000
        {"codes": 1, "used": 1.0, "perplexity": 1.0},
        {"used": 0.3, "dead": 0.7, "idle": 5000},
        {"norm_ratio": 7.5},
    ],
)
def test_modest_codebooks_are_left_in_peace(code):
    assert told(run(lambda step: line(step, code=code))) == []


def test_codes_that_were_never_counted_say_nothing():
    assert told(run(lambda step: line(step, books=None))) == []


def test_an_uneven_codebook_has_collapsed_though_many_codes_are_used():
    ill = {"used": 0.5, "perplexity": 5.0}
    assert told(run(lambda step: line(step, code=ill))) == [(110, "codebook_collapse")]


def test_a_codebook_that_recovers_is_not_told_to_shrink():
    def dips(step):  # vectors ran away from the codes, which come back into use
        depth = 1.0 if step < 100 else 0.1 + 0.4 * (step - 100) / 900
        return line(step, code={"used": 0.9 * depth, "perplexity": 1 + 500 * depth})

    assert told(run(dips)) == []

    def falls(step):
        depth = 1.0 if step < 100 else 0.1
        return line(step, code={"used": 0.9 * depth, "perplexity": 1 + 500 * depth})

    assert told(run(falls)) == [(210, "codebook_shrinks")]


def test_windows_of_another_length_do_not_compare():
    def make(step):  # log.every became 20 times smaller in another sitting
        short = {"tokens": 200, "used": 0.05, "perplexity": 45.0}
        return line(step, code=short if step > 500 else {})

    assert told(run(make)) == []


def test_long_vectors_at_the_start_of_a_run_settle():
    def make(step):
        return line(step, code={"norm_ratio": 1.1 + 400 * math.exp(-step / 50)})

    assert told(run(make)) == []

    def settles_high(step):  # it came down from a peak, and stays there
        return line(step, code={"norm_ratio": 10.0 if step <= 40 else 100 if step <= 80 else 30})

    assert told(run(settles_high)) == [(310, "latents_outgrow_codes")]


def test_a_discriminator_that_learns_alone_may_win():
    def make(step):
        sure = {"accuracy_real": 1.0, "accuracy_fake": 1.0}
        return line(step, **sure, generator=None, adaptive_weight=None)

    assert told(run(make)) == []


def test_a_sure_discriminator_does_not_win_while_the_generator_holds_its_loss():
    sure = {"accuracy_real": 1.0, "accuracy_fake": 1.0, "generator": 1.3}
    assert told(run(lambda step: line(step, **sure))) == []


def test_a_discriminator_that_says_real_to_everything_is_blind():
    blind = {"accuracy_real": 1.0, "accuracy_fake": 0.0, "logits_real": 0.051, "logits_fake": 0.052}
    assert told(run(lambda step: line(step, **blind))) == [(210, "discriminator_blind")]


def test_no_adaptive_weight_is_no_illness():
    assert told(run(lambda step: line(step, adaptive_weight=None))) == []
    # Without a bound nothing stands at it.
    lines = run(lambda step: line(step, adaptive_weight=1e4))
    assert told(lines, Watch(5000, every=EVERY)) == []


def test_a_tiny_error_may_multiply():
    def make(step):
        return line(step, mse=1e-6 if step < 500 else 5e-4)

    assert told(run(make)) == []


# ------------------------------------------------------------------- gradient, pace


def spiking(at, height=30.0):
    return run(lambda step: line(step, **({"gradient_norm": height} if step in at else {})))


def test_gradient_spikes_are_told_at_the_third():
    assert told(spiking((300, 400))) == []
    assert told(spiking((300, 400, 500))) == [(520, "gradient_spikes")]
    assert told(spiking((300, 400, 500), height=3.0)) == []
    assert told(spiking((100, 400, 700))) == []  # seldom


def test_a_new_level_of_the_gradient_is_no_spike():
    def make(step):  # the discriminator begins, and ends its ramp
        return line(step, gradient_norm=0.5 if step < 300 else 20.0 if step < 600 else 800.0)

    assert told(run(make)) == []


def test_a_fallen_pace_is_told_apart_from_the_rest():
    def make(step):
        return line(step, images_per_second=40.0 if step >= 500 else 100.0)

    watch = Watch(5000, every=EVERY)
    found = {x["step"]: watch.remarks(x) for x in run(make)}
    (step,) = (step for step, remarks in found.items() if remarks)
    assert 560 <= step <= 600
    (warning,) = found[step]["machine_warnings"]
    assert warning["name"] == "throughput_fell"
    assert warning["message"] == "40.0 images per second, after 100.0"
    # The clock is no part of the state: another machine has its own pace.
    assert watch.state() == _state_without_clock(run(make))


def _state_without_clock(lines):
    watch = Watch(5000, every=EVERY)
    for made in lines:
        watch.look({k: v for k, v in made.items() if k not in ("images_per_second", "seconds")})
    return watch.state()


def test_a_short_break_is_no_fallen_pace():
    def make(step):
        return line(step, images_per_second=40.0 if 500 <= step < 540 else 100.0)

    assert told(run(make)) == []
    # The first lines compile: their pace is no measure, slow or fast.
    quick = run(lambda step: line(step, images_per_second=900.0 if step < 40 else 100.0))
    assert told(quick) == []


# ------------------------------------------------------------------- documentation


def test_every_warning_has_a_remedy_and_a_row_in_the_documentation():
    source = Path(symptoms.__file__).read_text("utf-8")
    rules = source.partition("def codes")[2].partition("RULES: Final")[0]
    named = set(re.findall(r'"([a-z]+(?:_[a-z]+)+)": \(', rules))
    named |= set(re.findall(r'Symptom\("(\w+)"', rules))
    assert named == set(REMEDIES)
    assert set(ILLNESSES) | {"gradient_spikes", "throughput_fell"} == named
    page = (Path(__file__).parent.parent / "docs" / "health.md").read_text("utf-8")
    rows = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert named <= rows
    assert len(RULES) + len(MACHINE_RULES) == 7
