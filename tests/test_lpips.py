"""LPIPS against a naive form in float64, its published sizes and heads, and what never changes."""

from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from vqkit.metrics.lpips import LPIPS, load_lpips
from vqkit.weights import KNOWN

pytestmark = pytest.mark.slow

# VGG16 (configuration D, arXiv:1409.1556) and AlexNet (arXiv:1404.5997) as the LPIPS paper's code
# cuts them: convolutions (stride, padding) that end in a ReLU, max pools (kernel, stride), and
# where a map is compared.
CONV, POOL, TAP = (1, 1), (2, 2), "tap"
VGG = [CONV, CONV, TAP, "pool", CONV, CONV, TAP]
VGG += ["pool", CONV, CONV, CONV, TAP] * 3
ALEX = [(4, 2), TAP, "pool", (1, 2), TAP, "pool", CONV, TAP, CONV, TAP, CONV, TAP]
LAYERS = {"vgg": (VGG, (2, 2)), "alex": (ALEX, (3, 2))}


@pytest.fixture(scope="module", params=["vgg", "alex"])
def lpips(request):
    return LPIPS.random(request.param, seed=1)


def pictures(side=40, channels=3, count=2, seed=0, dtype=torch.float32):
    """Images in [-1, 1] and distorted copies."""
    source = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, generator=source) * 2 - 1
    smooth = F.interpolate(coarse, side, mode="bilinear")
    noise = 0.1 * torch.randn(smooth.shape, generator=source)
    return smooth.to(dtype), (smooth + noise).clamp(-1, 1).to(dtype)


def naive(tensors, net, x, y):
    """LPIPS v0.1 written from its paper and code, in the type of the images."""
    shift = x.new_tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = x.new_tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    layers, pool = LAYERS[net]
    convolutions = [n for n in tensors if n.startswith("features") and n.endswith("weight")]

    def maps(z):
        z, number = (z - shift) / scale, 0
        for layer in layers:
            if layer == "pool":
                z = F.max_pool2d(z, *pool)
            elif layer == TAP:
                yield z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10)
            else:
                name = convolutions[number]
                weight, bias = tensors[name].to(z), tensors[name.replace("weight", "bias")].to(z)
                z = F.conv2d(z, weight, bias, *layer).clamp_min(0)
                number += 1
        assert number == len(convolutions)

    total = 0
    for level, (a, b) in enumerate(zip(maps(x), maps(y), strict=True)):
        weighed = (a - b) ** 2 * tensors[f"heads.{level}"].to(x).view(1, -1, 1, 1)
        total = total + weighed.sum(1).mean((1, 2))
    assert level == 4
    return total


def test_values_and_gradients_are_those_of_the_naive_form(lpips):
    x, y = pictures()
    wide = [z.double().requires_grad_() for z in (x, y)]
    expected = naive(lpips.state_dict(), lpips.net, *wide)
    x.requires_grad_()
    y.requires_grad_()
    found = lpips(x, y)
    assert found.shape == (2,)
    assert found.dtype == torch.float32
    assert (found > 0.01).all()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    to_x, to_y = torch.autograd.grad(found.sum(), (x, y))
    for gradient, reference in zip(
        (to_x, to_y), torch.autograd.grad(expected.sum(), wide), strict=True
    ):
        # float32 in sixteen layers; a ReLU or pool near a tie may go the other way
        size = reference.norm()
        assert float((gradient - reference).norm() / size) < 2e-3


def test_the_networks_have_the_published_sizes():
    # 138,357,544 and 61,100,840 parameters (torchvision's `num_params`), less the classifiers.
    vgg = 138_357_544 - (25088 * 4096 + 4096) - (4096 * 4096 + 4096) - (4096 * 1000 + 1000)
    alex = 61_100_840 - (9216 * 4096 + 4096) - (4096 * 4096 + 4096) - (4096 * 1000 + 1000)
    for net, size, heads in (("vgg", vgg, 1472), ("alex", alex, 1152)):
        found = LPIPS.random(net)
        assert sum(p.numel() for p in found.features.parameters()) == size
        assert sum(p.numel() for p in found.heads.parameters()) == heads


def test_names_are_those_of_torchvision():
    convolutions = {
        "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        "alex": (0, 3, 6, 8, 10),
    }
    for net, numbers in convolutions.items():
        names = {f"features.{n}.{kind}" for n in numbers for kind in ("weight", "bias")}
        names |= {f"heads.{level}" for level in range(5)}
        assert set(LPIPS.random(net).state_dict()) == names


def test_it_is_a_distance_of_pairs(lpips):
    x, y = pictures()
    assert torch.equal(lpips(x, x), torch.zeros(2))
    torch.testing.assert_close(lpips(x, y), lpips(y, x), rtol=1e-6, atol=0)
    apart = torch.cat([lpips(x[:1], y[:1]), lpips(x[1:], y[1:])])
    torch.testing.assert_close(lpips(x, y), apart, rtol=1e-4, atol=1e-6)
    nearer = x + 0.2 * (y - x)
    assert (lpips(x, nearer) < lpips(x, y)).all()


def test_a_step_down_the_gradient_brings_images_nearer():
    lpips = LPIPS.random(seed=3)
    x, y = pictures(32, count=1)
    before = float(lpips(x, y))
    for _ in range(5):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(lpips(x, y).sum(), x)
        x = (x - 0.5 * gradient / gradient.norm()).detach()
    assert float(lpips(x, y)) < 0.9 * before


def test_gradients_reach_images_and_never_weights(lpips):
    x, y = pictures()
    x.requires_grad_()
    lpips(x, y).sum().backward()
    assert bool(x.grad.abs().sum(1).any())
    assert y.grad is None
    assert not any(p.requires_grad or p.grad is not None for p in lpips.parameters())


def test_dead_features_have_finite_gradients():
    """Where all features are 0 their length has no derivative."""
    tensors = LPIPS.random(seed=1).state_dict()
    tensors["features.7.bias"] = torch.full_like(tensors["features.7.bias"], -1e4)
    lpips = LPIPS(tensors)
    x, y = (z.requires_grad_() for z in pictures(32))
    distance = lpips(x, y)
    distance.sum().backward()
    assert torch.isfinite(distance).all()
    assert torch.isfinite(x.grad).all()
    assert bool(x.grad.any())


def test_it_stays_in_evaluation_mode():
    lpips = LPIPS.random("alex")
    parent = nn.ModuleDict({"lpips": lpips, "other": nn.Dropout()})
    parent.train()
    assert parent["other"].training
    assert not any(module.training for module in lpips.modules())
    assert lpips.train() is lpips
    assert not lpips.train(True).training
    x, y = pictures()
    assert torch.equal(lpips(x, y), lpips(x, y))


def test_grey_images_are_repeated_to_colour(lpips):
    x, y = pictures(channels=1)
    found = lpips(x, y)
    assert torch.equal(found, lpips(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1)))


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = LPIPS.random("alex", seed=2).state_dict()
    assert torch.equal(torch.get_rng_state(), before), "no draw from the global generator"
    second, third = (LPIPS.random("alex", seed=seed).state_dict() for seed in (2, 3))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], third[name]) for name in first)


GOLDEN = {"vgg": [0.0598662, 0.0567025], "alex": [0.0490797, 0.0545668]}


def test_random_weights_give_the_recorded_distances():
    """Recorded from this code, which the naive form agrees with: seeds must keep their meaning."""
    x, y = pictures(32, seed=4)
    found = [LPIPS.random(net, seed=0)(x, y).tolist() for net in ("vgg", "alex")]
    assert found[0] == pytest.approx(GOLDEN["vgg"], rel=1e-3)
    assert found[1] == pytest.approx(GOLDEN["alex"], rel=1e-3)


def test_channels_last_and_bfloat16_change_it_little():
    lpips = LPIPS.random(seed=1)
    x, y = pictures()
    plain = lpips(x, y)
    lpips.to(memory_format=torch.channels_last)
    torch.testing.assert_close(lpips(x, y), plain, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = lpips(x.bfloat16(), y)
        assert torch.equal(lpips(x, x), torch.zeros(2))
    half = lpips.bfloat16()(x, y)
    assert mixed.dtype == half.dtype == torch.float32
    # bfloat16 has 8 bits: 0.4 % at each of sixteen layers
    torch.testing.assert_close(mixed, plain, rtol=0.05, atol=0)
    torch.testing.assert_close(half, plain, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 32, 32), (2, 3, 32, 31)), r"\(2, 3, 32, 32\) against \(2, 3, 32, 31\)"),
        (((2, 4, 32, 32),) * 2, r"\(B, 1 or 3, H, W\)"),
        (((3, 32, 32),) * 2, r"\(B, 1 or 3, H, W\)"),
        (((2, 3, 15, 32),) * 2, r"15×32 pixels: .* 16×16; .*objective\.perceptual='none'"),
    ],
)
def test_bad_images_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        LPIPS.random()(*(torch.zeros(shape) for shape in shapes))


def test_bytes_small_images_and_foreign_weights_are_refused():
    lpips = LPIPS.random("alex")
    with pytest.raises(ValueError, match=r"uint8 against torch\.uint8"):
        lpips(*[torch.zeros(1, 3, 32, 32, dtype=torch.uint8)] * 2)
    with pytest.raises(ValueError, match=r"30×31 pixels: .* 31×31"):
        lpips(*[torch.zeros(1, 3, 30, 31)] * 2)
    assert float(lpips(*[torch.zeros(1, 3, 31, 31)] * 2)) == 0
    assert float(LPIPS.random()(*[torch.zeros(1, 3, 16, 16)] * 2)) == 0
    with pytest.raises(ValueError, match=r"weights of LPIPS \(vgg\): "):
        LPIPS(lpips.state_dict(), "vgg")
    for call in (LPIPS.random, lambda net: LPIPS({}, net), lambda net: load_lpips(net=net)):
        with pytest.raises(ValueError, match="net='squeeze': expected one of vgg, alex"):
            call("squeeze")


def torchvision_file(lpips, path):
    """A file with the names of torchvision's: convolutions, and a classifier that is not used."""
    tensors = {n: t for n, t in lpips.state_dict().items() if n.startswith("features")}
    tensors["classifier.6.weight"] = torch.ones(2, 2)
    torch.save(tensors, path)
    return path


def published_heads(lpips, path):
    heads = {f"lin{i}.model.1.weight": h.view(1, -1, 1, 1) for i, h in enumerate(lpips.heads)}
    torch.save(heads, path)
    return path


def test_published_files_are_read(lpips, tmp_path):
    path = torchvision_file(lpips, tmp_path / "net.pth")
    heads = published_heads(lpips, tmp_path / "heads.pth")
    x, y = pictures()
    found = load_lpips(path, heads=heads, net=lpips.net)
    assert torch.equal(found(x, y), lpips(x, y))
    assert not any(p.requires_grad for p in found.parameters())
    with pytest.raises(ValueError, match=r"net\.pth: holds no lin0\.model\.1\.weight"):
        load_lpips(path, heads=path, net=lpips.net)


def test_a_saved_state_is_one_file_for_all(tmp_path, monkeypatch):
    lpips = LPIPS.random("alex", seed=3)
    save_file(lpips.state_dict(), tmp_path / "lpips.safetensors")
    x, y = pictures()
    found = load_lpips(tmp_path / "lpips.safetensors", net="alex")
    assert torch.equal(found(x, y), lpips(x, y))
    monkeypatch.setenv("VQKIT_WEIGHTS_ALEXNET", str(tmp_path / "lpips.safetensors"))
    assert torch.equal(load_lpips(net="alex")(x, y), lpips(x, y))


@pytest.mark.skipif(not find_spec("torchmetrics"), reason="the heads are in torchmetrics")
@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_published_heads_are_never_negative(net, tmp_path):
    """So the distance is a weighted sum of squares; heads of each layer have its width."""
    path = torchvision_file(LPIPS.random(net), tmp_path / "net.pth")
    found = load_lpips(path, net=net)
    assert all((head >= 0).all() and head.any() for head in found.heads)
    x, y = pictures()
    assert (found(x, y) > 0).all()


def test_without_weights_it_is_said_what_to_do(tmp_path, monkeypatch):
    for name in ("VQKIT_WEIGHTS", "VQKIT_WEIGHTS_VGG16", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError) as error:
        load_lpips()
    for fact in (KNOWN["vgg16"].file, KNOWN["vgg16"].url, ".cache/vqkit/weights", "VQKIT_WEIGHTS"):
        assert fact in str(error.value)
    assert "objective.perceptual='none'" in str(error.value)
