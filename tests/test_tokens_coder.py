"""The coder: models against loops written from the formula, round trips, lengths, exactness."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch

from vqkit.tokens import Alphabet, CodedRate, Frequencies, TokenCoder, coded_rate
from vqkit.tokens.entropy import decode_rows, encode_rows
from vqkit.tokens.frequencies import MAX_COUNT
from vqkit.tokens.header import read_header
from vqkit.tokens.model import (
    GAINS,
    MAX_GAIN,
    MAX_TOKENS,
    MAX_WEIGHTS,
    PRECISION,
    AdaptiveModel,
    Choice,
    choose,
    code_length,
)
from vqkit.tokens.packing import pack_bits, packed_bytes, unpack_bits

pytest.importorskip("constriction")

HASH = "ab" * 32
TAIL = 8
"""Bytes that the range coder may end with: two words."""


def alphabet(*slot_codes, shared=False):
    places = range(len(slot_codes))
    return Alphabet(slot_codes, (tuple(places),) if shared else tuple((i,) for i in places))


def coder_of(found, frequencies=None, stride=4):
    return TokenCoder(found, stride=stride, channels=3, tokenizer=HASH, frequencies=frequencies)


def drawn(found, positions, seed, skew=1.0):
    """Ids (P, T), code k about k ** -skew times as likely as code 1."""
    source = np.random.default_rng(seed)
    columns = []
    for num_codes in found.slot_codes:
        shares = np.arange(1.0, num_codes + 1) ** -skew
        columns.append(source.choice(num_codes, positions, p=shares / shares.sum()))
    return np.stack(columns, axis=1)


def counted(found, rows):
    counts = [np.bincount(rows[:, i], minlength=k) for i, k in enumerate(found.slot_codes)]
    return Frequencies(tuple(counts), HASH, "images", 3)


def naive_frequencies(symbols_before, num_codes, table, gain):
    """The model's frequencies of one context in whole numbers of Python, from its definition."""
    weights = [2 * int(table[k]) + 1 for k in range(num_codes)]
    for symbol in symbols_before:
        weights[symbol] += 0 if gain is None else 2 * 2**gain
    free, total, before, found = 2**PRECISION - num_codes, sum(weights), 0, []
    for weight in weights:
        after = before + weight
        found.append(after * free // total - before * free // total + 1)
        before = after
    return found


@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize("by_slot", [False, True])
def test_the_model_is_its_definition(gain, by_slot):
    found = alphabet(7, 7, shared=True)
    rows, table = drawn(found, 30, 0), counted(found, drawn(found, 200, 1))
    model = AdaptiveModel(found, Choice(by_slot, True, gain), table)
    for start, stop in model.blocks(len(rows)):
        for context, slots in enumerate(model.contexts):
            before = rows[:start, slots].ravel().tolist()
            first = sum(table.counts[slot] for slot in slots)
            expected = naive_frequencies(before, 7, first, gain)
            assert model.frequencies(context).tolist() == expected
            assert sum(expected) == 2**PRECISION
            model.count(context, rows[start:stop, slots].ravel())


def test_blocks_cover_a_stream_and_grow_by_an_eighth():
    blocks = list(AdaptiveModel(alphabet(2), Choice(False, False, 0), None).blocks(1000))
    assert blocks[0] == (0, 1)
    assert blocks[-1][1] == 1000
    assert all(a[1] == b[0] for a, b in itertools.pairwise(blocks))
    assert all(stop - start <= 1 + start / 8 for start, stop in blocks)
    assert len(blocks) < 60


def test_nothing_overflows_at_the_limits():
    """The largest weight that the limits allow, times the largest number it is scaled by."""
    weights = 2 * MAX_COUNT + MAX_WEIGHTS + (2 << MAX_GAIN) * MAX_TOKENS
    assert weights * 2**PRECISION < 2**63


def test_constriction_uses_exactly_our_frequencies():
    """A code's interval, told by the coder's own state: 2 ** 64 scaled to 24 bits and back."""
    from constriction import stream

    model = AdaptiveModel(alphabet(1000), Choice(False, False, 4), None)
    model.count(0, drawn(alphabet(1000), 500, 2)[:, 0])
    frequencies = model.frequencies(0)
    probabilities = stream.model.Categorical((frequencies - 1).astype(float), perfect=False)
    below = 0
    for code, frequency in enumerate(frequencies.tolist()):
        encoder = stream.queue.RangeEncoder()
        encoder.encode(code, probabilities)
        # The whole range is 2 ** 64 - 1, of which 24 bits are shared out.
        scale = (2**64 - 1) >> PRECISION
        assert encoder.pos() == (0, (below * scale, frequency * scale))
        below += frequency


def test_the_bytes_stay_the_same():
    """Written down once; files must be readable with every version of constriction and numpy."""
    found = alphabet(8, 300)
    rows = np.stack([np.arange(40) ** 2 % 8, np.arange(40) ** 2 % 299], axis=1)
    content = encode_rows(rows, found, Choice(False, False, 4), None)
    assert content.hex() == GOLDEN


GOLDEN = (
    "07991600affad57398124b5bf93d4af630ba784bd090d36bfc1d01a722dd38d5"
    "ad382734715e385c05427eb595d38dd3e96a25a17c4ef252"
)

CASES = [
    (alphabet(1024), 49),
    (alphabet(256, 256, 256, 256, shared=True), 64),
    (alphabet(2), 17),
    (alphabet(1), 9),
    (alphabet(1, 5, 1000, 1), 25),
    (alphabet(65536, 4), 100),
    (alphabet(200_000), 16),
]


@pytest.mark.parametrize(("found", "positions"), CASES)
@pytest.mark.parametrize("with_table", [False, True])
@pytest.mark.parametrize("skew", [0.0, 1.2, 6.0])
def test_round_trip(found, positions, with_table, skew):
    table = counted(found, drawn(found, 500, 3, skew)) if with_table else None
    coder = coder_of(found, table)
    ids = torch.from_numpy(drawn(found, positions, 4, skew))[:, None]  # (h, 1, T)
    content = coder.encode([ids], [(4 * positions, 3)])
    back = coder.decode(content)
    assert torch.equal(back.ids[0], ids)
    assert back.ids[0].dtype == torch.int64
    assert back.sizes == ((4 * positions, 3),)


@pytest.mark.slow
def test_a_thousand_maps_near_the_ideal_length():
    """The writer's own model: bytes within 1 % of its ideal length, the header and two words."""
    source = np.random.default_rng(5)
    for trial in range(1000):
        num_slots = int(source.integers(1, 5))
        found = alphabet(
            *([int(source.integers(1, 600))] * num_slots), shared=bool(source.integers(2))
        )
        skew = float(source.uniform(0, 2))
        table = counted(found, drawn(found, 300, trial, skew)) if source.integers(2) else None
        coder = coder_of(found, table)
        h, w = map(int, source.integers(1, 12, 2))
        ids = torch.from_numpy(drawn(found, h * w, trial + 1, skew)).unflatten(0, (h, w))
        content = coder.encode([ids], [(4 * h, 4 * w)])
        assert torch.equal(coder.decode(content).ids[0], ids)
        header, start = read_header(content)
        rows = ids.flatten(0, 1).numpy()
        if header.choice is None:
            assert len(content) - start == packed_bytes(h * w, found)
        else:
            ideal = code_length(rows, found, header.choice, table) / 8
            assert ideal - 1 <= len(content) - start <= 1.01 * ideal + TAIL
        assert len(content) <= start + packed_bytes(h * w, found)


def test_many_tokens_come_near_their_entropy():
    found = alphabet(256, 256, shared=True)
    rows = drawn(found, 20_000, 6)
    ids = torch.from_numpy(rows).unflatten(0, (100, 200))
    shares = np.bincount(rows.ravel()) / rows.size
    entropy = float(-(shares * np.log2(shares)).sum()) * rows.size / 8
    learning = 255 / 2 * math.log2(rows.size) / 8
    content = coder_of(found).encode([ids], [(400, 800)])
    assert entropy < len(content) < entropy + 1.2 * learning + 64


def test_choosing_predicts_the_length_and_finds_the_best():
    found = alphabet(50, 50, shared=True)
    rows, table = drawn(found, 300, 7), counted(found, drawn(found, 1000, 8))
    best, bits = choose(rows, found, table)
    assert bits == pytest.approx(code_length(rows, found, best, table), rel=1e-3)
    lengths = {
        choice: code_length(rows, found, choice, table)
        for by_slot in (False, True)
        for with_table in (False, True)
        for gain in GAINS
        for choice in [Choice(by_slot, with_table, gain)]
    }
    assert lengths[best] <= min(lengths.values()) * 1.001
    assert len(set(lengths.values())) > 20  # the choices do differ


def test_a_table_helps_a_small_map():
    found = alphabet(1024)
    table = counted(found, drawn(found, 100_000, 9, 1.3))
    ids = torch.from_numpy(drawn(found, 49, 10, 1.3)).unflatten(0, (7, 7))
    with_table = coder_of(found, table).encode([ids], [(28, 28)])
    without = coder_of(found).encode([ids], [(28, 28)])
    assert len(with_table) < len(without)
    assert read_header(with_table)[0].table == table.hash


def test_images_of_different_sizes_share_a_file():
    found = alphabet(16, 9)
    coder = coder_of(found)
    sizes = [(28, 28), (28, 28), (13, 5), (28, 28)]
    maps = [
        torch.from_numpy(drawn(found, h * w, seed)).unflatten(0, (h, w))
        for seed, (h, w) in enumerate([(7, 7), (7, 7), (4, 2), (7, 7)])
    ]
    content = coder.encode(maps, sizes)
    back = coder.decode(content)
    assert back.sizes == tuple(sizes)
    assert all(map(torch.equal, back.ids, maps))
    assert len(content) < sum(
        len(coder.encode([ids], [size])) for ids, size in zip(maps, sizes, strict=True)
    )


def test_packed_bits_are_what_they_say():
    found = alphabet(5, 1, 256)
    rows = np.array([[4, 0, 255], [1, 0, 2]])
    assert pack_bits(rows, found).hex() == f"{int('100_11111111_001_00000010_00', 2):06x}"
    many = drawn(found, 10_001, 11)
    assert (unpack_bits(pack_bits(many, found), len(many), found) == many).all()


def test_without_constriction_files_are_packed(monkeypatch):
    found = alphabet(4)
    ids = torch.zeros(20, 20, 1, dtype=torch.int64)
    coded = coder_of(found).encode([ids], [(80, 80)])
    monkeypatch.setitem(sys.modules, "constriction", None)
    packed = coder_of(found).encode([ids], [(80, 80)])
    assert len(coded) < len(packed)
    assert torch.equal(coder_of(found).decode(packed).ids[0], ids)
    with pytest.raises(ImportError, match=r"vqkit\[tokens\]"):
        coder_of(found).decode(coded)


def test_codebooks_too_large_to_be_coded_are_packed():
    found = alphabet(MAX_WEIGHTS + 1)
    ids = torch.full((3, 3, 1), MAX_WEIGHTS)
    content = coder_of(found).encode([ids], [(12, 12)])
    assert read_header(content)[0].choice is None
    assert torch.equal(coder_of(found).decode(content).ids[0], ids)


def test_what_cannot_be_written_is_refused():
    coder = coder_of(alphabet(4))
    ids = torch.zeros(2, 2, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="grid of 3 x 2"):
        coder.encode([ids], [(9, 8)])
    with pytest.raises(ValueError, match="outside"):
        coder.encode([ids + 4], [(8, 8)])
    with pytest.raises(ValueError, match="int64"):
        coder.encode([ids.float()], [(8, 8)])
    with pytest.raises(ValueError, match="no pairs"):
        coder.encode([], [])
    many, coarse = coder_of(alphabet(*[2] * 2**16)), coder_of(alphabet(4), stride=2**16)
    with pytest.raises(ValueError, match="num_slots=65,536: a file holds 1 to 65,535"):
        many.encode([torch.zeros(1, 1, 2**16, dtype=torch.int64)], [(4, 4)])
    with pytest.raises(ValueError, match="stride=65,536: a file holds 1 to 65,535"):
        coarse.encode([ids[:1, :1]], [(4, 4)])


def test_decoding_other_words_gives_other_ids_or_refuses():
    """The checksum's work: the range coder alone cannot know."""
    found = alphabet(300)
    rows = drawn(found, 50, 12)
    choice = Choice(False, False, 0)
    content = encode_rows(rows, found, choice, None)
    assert (decode_rows(content, 50, found, choice, None) == rows).all()
    other = decode_rows(content[4:], 50, found, choice, None)
    assert (other != rows).any()
    with pytest.raises(ValueError, match="whole number of words"):
        decode_rows(content[1:], 50, found, choice, None)


def test_rates_count_real_bytes():
    found = alphabet(16)
    coder = coder_of(found)
    ids = torch.from_numpy(drawn(found, 3 * 49, 13)).reshape(3, 7, 7, 1)
    sizes = [(28, 28)] * 3
    rate = CodedRate(coder)
    with pytest.raises(ValueError, match="no rate"):
        _ = rate.bits_per_pixel
    rate.update(ids, (28, 28))
    alone = sum(len(coder.encode([one], [(28, 28)])) for one in ids)
    assert (rate.num_bytes, rate.num_images) == (alone, 3)
    assert rate.reduce().bits_per_pixel == 8 * alone / (3 * 784)
    together = coded_rate(list(ids), sizes, coder)
    assert together == 8 * len(coder.encode(list(ids), sizes)) / (3 * 784)
    assert together < rate.bits_per_pixel
