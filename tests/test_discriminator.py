"""The discriminator: published sizes, a naive form, and batch norm over two processes.

Run as a script it is one of two processes: see `main`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import vqkit
from vqkit.config import AdversarialConfig
from vqkit.models.discriminator import PatchDiscriminator, SyncedBatchNorm


def discriminator(image_channels=3, **settings):
    torch.manual_seed(0)
    return PatchDiscriminator(AdversarialConfig(start=0, **settings), image_channels)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("num_layers", "image_channels", "norm", "published"),
    [
        # pytorch-CycleGAN-and-pix2pix, whose network taming-transformers took over with batch norm
        # and biases on the first and last convolution alone, prints millions: issue 1152 (grey to
        # grey, so two channels) shows 2.765 for 3 layers and 0.662 for 2, ...
        (3, 2, "batch", 2.765),
        (2, 2, "batch", 0.662),
        # ... the log of its pix2pix (3 + 3 channels) 2.769, and that of its CycleGAN, whose
        # instance norm has no parameters and leaves all biases, 2.765.
        (3, 6, "batch", 2.769),
        (3, 3, "none", 2.765),
    ],
)
def test_parameters_are_as_many_as_published(num_layers, image_channels, norm, published):
    found = discriminator(image_channels, num_layers=num_layers, norm=norm)
    assert round(count(found) / 1e6, 3) == published


def test_parameters_of_vqgan_are_those_of_its_layers():
    # 4·4·in·out of each convolution, two biases, two numbers a channel of each norm.
    convolutions = 3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512
    assert 16 * convolutions + 64 + 1 + 2 * (128 + 256 + 512) == 2_765_633
    assert count(discriminator()) == 2_765_633
    assert count(discriminator(norm="synced_batch")) == 2_765_633
    # With LPIPS of VGG16 (14,714,688) and its heads (1,472) that is the 17.5 M of "loss" in the
    # summaries that Lightning prints for taming-transformers.
    assert round((2_765_633 + 14_714_688 + 1_472) / 1e6, 1) == 17.5
    # Two layers, as VQGAN-LC, RQ-VAE and Sber-MoVQ have it.
    assert count(discriminator(num_layers=2)) == 663_361
    # Five: channels stop at 512.
    shapes = [m.weight.shape[0] for m in discriminator(num_layers=5).layers if is_convolution(m)]
    assert shapes == [64, 128, 256, 512, 512, 512, 1]


def is_convolution(module):
    return isinstance(module, nn.Conv2d)


@pytest.mark.parametrize(("num_layers", "patch"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_logit_sees_one_patch(num_layers, patch):
    # 70 and 34 are the sizes of pix2pix's paper (arXiv:1611.07004) and methods 1.2.
    model = discriminator(1, num_layers=num_layers, width=2, norm="none").double()
    assert model.patch_size == patch
    images = torch.zeros(1, 1, 256, 256, dtype=torch.float64, requires_grad=True)
    logits = model(images)
    side = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, side, side], images)
    for axis in (0, 1):
        seen = gradient[0, 0].abs().sum(axis).nonzero()
        assert int(seen.max() - seen.min()) + 1 == patch


def test_logits_are_30_by_30_for_images_of_256_pixels():
    with torch.no_grad():
        assert discriminator(width=1)(torch.zeros(2, 3, 256, 256)).shape == (2, 1, 30, 30)
        assert discriminator(num_layers=2, width=1)(torch.zeros(2, 3, 45, 64)).shape == (
            2,
            1,
            9,
            14,
        )


def test_weights_start_as_in_pix2pix():
    model = discriminator()
    for module in model.layers:
        if is_convolution(module) and module.weight.numel() > 10_000:
            assert float(module.weight.detach().mean()) == pytest.approx(0, abs=1e-3)
            assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
        if isinstance(module, nn.BatchNorm2d):
            assert float(module.weight.detach().mean()) == pytest.approx(1, abs=0.01)
            assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
            assert not module.bias.any()


@pytest.mark.parametrize("norm", ["batch", "synced_batch", "none"])
def test_the_layers_follow_each_other_as_described(norm):
    model = discriminator(num_layers=2, width=4, norm=norm)
    images = torch.rand(2, 3, 24, 16) * 2 - 1
    state = list(model.state_dict().items())
    x, at = images, 0
    for number, stride in enumerate((2, 2, 1, 1)):
        normed = norm != "none" and number in (1, 2)
        weight = state[at][1]
        bias = None if normed else state[at + 1][1]
        x = F.conv2d(x, weight, bias, stride, padding=1)
        at += 1 if normed else 2
        if normed:
            gain, offset = state[at][1], state[at + 1][1]
            mean = x.mean((0, 2, 3), keepdim=True)
            spread = (x - mean).square().mean((0, 2, 3), keepdim=True)
            x = (x - mean) / (spread + 1e-5).sqrt()
            x = x * gain.view(1, -1, 1, 1) + offset.view(1, -1, 1, 1)
            at += 5
        if number < 3:
            x = torch.where(x > 0, x, 0.2 * x)
    assert at == len(state)
    torch.testing.assert_close(model(images), x, rtol=1e-4, atol=1e-5)


def test_bad_images_and_settings_are_refused():
    model = discriminator(width=2)
    with pytest.raises(ValueError, match=r"num_layers=3 with images of 16×32 pixels: needs .*24"):
        model(torch.zeros(2, 3, 16, 32))
    for shape in ((2, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
            model(torch.zeros(shape))
    assert model(torch.zeros(2, 3, 24, 24)).shape == (2, 1, 1, 1)


def test_channels_last_and_bfloat16_change_the_logits_little():
    model, images = discriminator(width=8), torch.rand(2, 3, 32, 32) * 2 - 1
    plain = model(images).detach()
    last = model.to(memory_format=torch.channels_last)(images).detach()
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images).detach()
    assert half.dtype == torch.bfloat16
    assert float((half - plain).abs().max()) < 0.05 * float(plain.abs().max())


def test_synced_norm_is_batch_norm_in_one_process():
    synced, plain = SyncedBatchNorm(3), nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5) * 3 + 7
    assert torch.equal(synced(x), plain(x))
    assert torch.equal(synced.eval()(x), plain.eval()(x))
    for name, value in plain.state_dict().items():
        assert torch.equal(synced.state_dict()[name], value)


# Over two processes: what `main` computes in each, and one process on the joined batch.

SHARES = (3, 5)
"""Images of each process: shares need not be equal."""


def work(norm, rank=None, amount=1):
    """Values and gradients of a discriminator on one process's share, or on all images."""
    model = discriminator(num_layers=2, width=4, norm=norm)
    source = torch.Generator().manual_seed(7)
    # far from zero: naive sums of squares would lose the spread
    batches = [torch.randn(sum(SHARES), 3, 16, 16, generator=source) + 20 for _ in range(3)]
    found = {}
    for number, whole in enumerate(batches):
        images = whole if rank is None else whole.split(SHARES)[rank]
        images = images.clone().requires_grad_()
        logits = model(images)
        # A sum, so that shares of different size add up to that of the joined batch.
        loss = F.softplus(logits * torch.arange(1, 5).view(1, 1, 2, 2)).sum()
        gradient, *others = torch.autograd.grad(loss, (images, *model.parameters()))
        found |= {f"images{number}": gradient, f"logits{number}": logits.detach()}
        for name, value in zip((n for n, _ in model.named_parameters()), others, strict=True):
            found[f"{number}.{name}"] = value
    # The gradient of a gradient, as R1 takes it.
    images = images.detach().requires_grad_()
    (first,) = torch.autograd.grad(model(images).sum(), images, create_graph=True)
    weights = [p for p in model.parameters() if p.ndim == 4]
    second = torch.autograd.grad(first.square().sum(), weights)
    found |= {f"second{number}": value for number, value in enumerate(second)}
    with torch.no_grad():
        found["evaluation"] = model.eval()(images)
    return found, dict(model.named_buffers())


def test_spectral_norm_bounds_every_convolution():
    judge = discriminator(norm="spectral", width=4, num_layers=2)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    for _ in range(50):  # one power iteration each
        judge(images)
    judge.eval()
    weights = [layer.weight for layer in judge.layers if isinstance(layer, nn.Conv2d)]
    assert len(weights) == 4
    for weight in weights:
        largest = torch.linalg.svdvals(weight.flatten(1))[0]
        assert largest.item() == pytest.approx(1.0, abs=0.02)
    copy = discriminator(norm="spectral", width=4, num_layers=2)
    copy.load_state_dict(judge.state_dict())
    assert torch.equal(copy.eval()(images), judge(images))


def main(folder, rank):
    torch.set_num_threads(1)
    meeting = (Path(folder) / "meeting").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    torch.save(work("synced_batch", rank), Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    source = str(Path(vqkit.__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    both = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]
    try:
        for process in both:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in both:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_normalise_like_one_on_the_joined_batch(two_processes):
    (first, _), (second, _) = two_processes
    whole, _ = work("batch")
    assert first.keys() == second.keys() == whole.keys()
    for name, expected in whole.items():
        of_images = name.startswith(("images", "logits", "evaluation"))
        pair = first[name], second[name]
        found = torch.cat(pair) if of_images else pair[0] + pair[1]
        scale = float(expected.abs().max())
        assert scale > 0
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * scale, msg=name)


@pytest.mark.slow
def test_running_statistics_are_the_same_bits_on_both_processes(two_processes):
    (_, first), (_, second) = two_processes
    _, whole = work("batch")
    assert first.keys() == second.keys() == whole.keys()
    for name, expected in whole.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
