"""Usage, perplexity and lossless rates against counters, simulations and real files."""

from __future__ import annotations

import io
import math
from collections import Counter

import pytest
import torch
from PIL import Image

from vqkit.metrics import (
    CodeUsage,
    LosslessRate,
    ReconstructionScores,
    counts,
    png_bytes,
    uniform_usage,
)


def pictures(num_images, channels, height, width, offset=0):
    """Smooth uint8 images with a little noise: compressible, but not to nothing."""
    generator = torch.Generator().manual_seed(offset)
    coarse = torch.rand(num_images, channels, 5, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noise = 0.02 * torch.randn(smooth.shape, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8)


# Usage


def test_usage_by_hand():
    # Slots 0 and 2 share a codebook of 4 codes, slot 1 has 2 codes of its own.
    ids = torch.tensor([[0, 1, 0], [0, 1, 1], [0, 1, 0], [0, 1, 1]])
    usage = CodeUsage((4, 2, 4), ((0, 2), (1,)))
    usage.update(ids[:3])
    usage.update(ids[3:])
    shared, own = usage.by_book()
    assert (usage.num_positions, usage.num_tokens) == (4, 12)
    assert (shared.num_tokens, shared.num_used, shared.usage, shared.ceiling) == (8, 2, 0.5, 1.0)
    # Code 0 six of eight times: H = -(3/4 log2 3/4 + 1/4 log2 1/4)
    assert shared.entropy == pytest.approx(0.8112781245)
    assert shared.perplexity == pytest.approx(math.exp(0.8112781245 * math.log(2)))
    assert (own.num_tokens, own.num_used, own.usage, own.entropy) == (4, 1, 0.5, 0.0)
    assert [slot.entropy for slot in usage.by_slot()] == pytest.approx([0, 0, 1])
    assert [slot.slots for slot in usage.by_slot()] == [(0,), (1,), (2,)]


@pytest.mark.parametrize("limit", [0, 2**22])
def test_usage_agrees_with_a_counter(monkeypatch, limit):
    monkeypatch.setattr(counts, "DENSE_LIMIT", limit)
    ids = torch.randint(0, 37, (5, 4, 4, 6), generator=torch.Generator().manual_seed(0)) ** 2 // 37
    usage = CodeUsage((37,) * 6, ((0, 5, 2), (1,), (3, 4)))
    for part in ids:
        usage.update(part)
    for found in (*usage.by_book(), *usage.by_slot()):
        expected = Counter(ids[..., list(found.slots)].flatten().tolist())
        total = sum(expected.values())
        entropy = -sum(n / total * math.log2(n / total) for n in expected.values())
        assert (found.num_tokens, found.num_used) == (total, len(expected))
        assert found.entropy == pytest.approx(entropy)


def test_usage_of_a_huge_lattice_needs_no_table():
    usage = CodeUsage((2**40, 2**40), ((0, 1),))
    usage.update(torch.tensor([[2**40 - 1, 5], [7, 5]]))
    (book,) = usage.by_book()
    assert (book.num_used, book.num_tokens, book.ceiling) == (3, 4, 4 / 2**40)
    assert book.entropy == pytest.approx(1.5)
    assert book.uniform_usage == pytest.approx(4 / 2**40)


def test_ceilings_by_simulation():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(0, 50, (4000, 80), generator=generator)
    seen = torch.stack([row.unique().numel() / torch.tensor(50.0) for row in draws])
    # Standard error of the mean is about 0.0006.
    assert uniform_usage(50, 80) == pytest.approx(seen.mean().item(), abs=0.003)
    assert uniform_usage(50, 0) == 0
    assert uniform_usage(1, 1) == 1
    few = CodeUsage((50,), ((0,),))
    few.update(draws[0, :20, None])
    assert few.by_book()[0].ceiling == 0.4
    assert few.by_book()[0].usage <= 0.4


def test_usage_of_nothing_is_zero():
    usage = CodeUsage((8,), ((0,),))
    usage.update(torch.zeros(0, 4, 4, 1, dtype=torch.int64))
    (book,) = usage.by_book()
    assert (book.num_tokens, book.usage, book.entropy) == (0, 0.0, 0.0)


def test_usage_refuses():
    usage = CodeUsage((8, 4), ((0,), (1,)))
    for bad in (torch.tensor([[0, 4]]), torch.tensor([[-1, 0]])):
        with pytest.raises(ValueError, match="outside"):
            usage.update(bad)
    for bad in (torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1]], dtype=torch.int32)):
        with pytest.raises(ValueError, match="ids of shape"):
            usage.update(bad)
    assert usage.num_tokens == 0
    for books in (((0,),), ((0, 1), (1,)), ((0, 2),), ((0, 1),)):
        with pytest.raises(ValueError, match="books="):
            CodeUsage((8, 4), books)


# Rate


@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_rate_is_that_of_the_files(channels):
    images = pictures(5, channels, 20, 24)
    bits = 0
    for image in images:
        buffer = io.BytesIO()
        array = image[0] if channels == 1 else image.permute(1, 2, 0)
        Image.fromarray(array.numpy()).save(buffer, "PNG", optimize=True)
        bits += 8 * len(buffer.getvalue())
        assert torch.equal(torch.tensor(list(Image.open(buffer).tobytes())), array.flatten().long())
    rate = LosslessRate.of([images[:2], images[2:], images[:0]])
    assert rate.num_images == 5
    assert rate.png == pytest.approx(bits / (5 * 20 * 24))
    assert rate.raw == 8 * channels


def test_lossless_rate_refuses():
    with pytest.raises(ValueError, match="uint8"):
        png_bytes(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="none"):
        _ = LosslessRate().png


# Several processes


def reduce_everything(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    images, originals = pictures(5, 1, 16, 16), pictures(5, 1, 16, 16, offset=1)
    ids = torch.randint(0, 9, (5, 4, 4, 3), generator=torch.Generator().manual_seed(1))
    counts.DENSE_LIMIT = 20  # the shared book of two slots is beyond, the single slot is not
    everything = []
    for chosen in (slice(None), slice(0, 3) if rank == 0 else slice(3, 5)):
        scores, usage, rate = (
            ReconstructionScores(),
            CodeUsage((9,) * 3, ((0, 2, 1),)),
            LosslessRate(),
        )
        small = CodeUsage((9,), ((0,),))
        scores.update(images[chosen], originals[chosen])
        usage.update(ids[chosen])
        small.update(ids[chosen][..., :1])
        rate.update(originals[chosen])
        everything.append((scores, usage, small, rate))
    whole, share = everything[0], [one.reduce() for one in everything[1]]
    assert share[0].mean("psnr") == pytest.approx(whole[0].mean("psnr"), rel=1e-12)
    assert share[0].num_images == 5
    assert everything[1][0].num_images == (3 if rank == 0 else 2)
    assert share[1].by_book() == whole[1].by_book()
    assert share[1].by_slot() == whole[1].by_slot()
    assert share[2].by_book() == whole[2].by_book()
    assert share[1].num_tokens == whole[1].num_tokens
    assert share[3].png == whole[3].png
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_shares_of_two_processes_add_up(tmp_path):
    torch.multiprocessing.spawn(reduce_everything, args=(tmp_path,), nprocs=2)
