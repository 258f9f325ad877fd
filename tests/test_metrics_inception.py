"""The FID Inception against a second form of it, written from the paper's tables."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from vqkit.metrics.inception import InceptionV3, load_inception
from vqkit.weights import FOLDER, KNOWN

TORCHVISION = 27_161_264
"""Parameters that torchvision publishes for inception_v3: 1,000 classes and a second classifier."""
SECOND = (768 * 128 + 2 * 128) + (128 * 768 * 25 + 2 * 768) + (768 * 1000 + 1000)


@pytest.fixture(scope="module")
def network():
    return InceptionV3.random(seed=1)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1


def naive(tensors, images):
    """The layers one by one, by the names in the file; returns features and the sizes of maps."""

    def conv(name, x, stride=1, padding=0):
        x = F.conv2d(x, tensors[f"{name}.conv.weight"], stride=stride, padding=padding)
        mean, var, weight, bias = (
            tensors[f"{name}.bn.{key}"][:, None, None]
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 0.001).sqrt() * weight + bias).clamp(min=0)

    def chain(block, x, steps):
        for name, padding, stride in steps:
            x = conv(f"{block}.{name}", x, stride, padding)
        return x

    def average(x):
        """Sums of nine, divided by the pixels that lie inside."""
        nine = torch.ones(x.shape[1], 1, 3, 3, dtype=x.dtype)
        total = F.conv2d(x, nine, padding=1, groups=x.shape[1])
        return total / F.conv2d(torch.ones_like(x), nine, padding=1, groups=x.shape[1])

    def largest(x):
        padded = F.pad(x, (1, 1, 1, 1), value=-torch.inf)
        return padded.unfold(2, 3, 1).unfold(3, 3, 1).amax((-1, -2))

    row3, column3, row7, column7 = (0, 1), (1, 0), (0, 3), (3, 0)
    sizes = []
    x = conv("Conv2d_1a_3x3", images, 2)
    x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", x), padding=1)
    x = F.max_pool2d(x, 3, 2)
    x = F.max_pool2d(conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", x)), 3, 2)
    sizes.append(tuple(x.shape[1:]))
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        double = [("branch3x3dbl_1", 0, 1), ("branch3x3dbl_2", 1, 1), ("branch3x3dbl_3", 1, 1)]
        x = torch.cat(
            [
                chain(name, x, [("branch1x1", 0, 1)]),
                chain(name, x, [("branch5x5_1", 0, 1), ("branch5x5_2", 2, 1)]),
                chain(name, x, double),
                conv(f"{name}.branch_pool", average(x)),
            ],
            1,
        )
    sizes.append(tuple(x.shape[1:]))
    double = [("branch3x3dbl_1", 0, 1), ("branch3x3dbl_2", 1, 1), ("branch3x3dbl_3", 0, 2)]
    branches = [chain("Mixed_6a", x, [("branch3x3", 0, 2)]), chain("Mixed_6a", x, double)]
    x = torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        paddings = (0, column7, row7, column7, row7)
        double = [(f"branch7x7dbl_{i}", p, 1) for i, p in enumerate(paddings, 1)]
        single = [(f"branch7x7_{i}", p, 1) for i, p in enumerate((0, row7, column7), 1)]
        branches = [conv(f"{name}.branch1x1", x), chain(name, x, single), chain(name, x, double)]
        x = torch.cat([*branches, conv(f"{name}.branch_pool", average(x))], 1)
    sizes.append(tuple(x.shape[1:]))
    seven = [("branch7x7x3_1", 0, 1), ("branch7x7x3_2", row7, 1), ("branch7x7x3_3", column7, 1)]
    branches = [
        chain("Mixed_7a", x, [("branch3x3_1", 0, 1), ("branch3x3_2", 0, 2)]),
        chain("Mixed_7a", x, [*seven, ("branch7x7x3_4", 0, 2)]),
    ]
    x = torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
    for name, pool in (("Mixed_7b", average), ("Mixed_7c", largest)):
        three = chain(name, x, [("branch3x3_1", 0, 1)])
        double = chain(name, x, [("branch3x3dbl_1", 0, 1), ("branch3x3dbl_2", 1, 1)])
        branches = [
            conv(f"{name}.branch1x1", x),
            conv(f"{name}.branch3x3_2a", three, padding=row3),
            conv(f"{name}.branch3x3_2b", three, padding=column3),
            conv(f"{name}.branch3x3dbl_3a", double, padding=row3),
            conv(f"{name}.branch3x3dbl_3b", double, padding=column3),
        ]
        x = torch.cat([*branches, conv(f"{name}.branch_pool", pool(x))], 1)
    sizes.append(tuple(x.shape[1:]))
    return x.flatten(2).mean(2), sizes


@pytest.mark.slow
def test_it_computes_what_the_tables_say(network, images):
    expected, sizes = naive(network.state_dict(), images)
    # table 1 of arXiv:1512.00567, with the widths of the released network
    assert sizes == [(192, 35, 35), (288, 35, 35), (768, 17, 17), (2048, 8, 8)]
    found = network(images)
    assert found.shape == (2, 2048)
    assert found.dtype == torch.float32
    assert (found >= 0).all()
    # float32 through 94 convolutions, in two orders of addition
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_it_has_the_published_size(network):
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == TORCHVISION - SECOND + 8 * (2048 + 1)


def test_names_are_those_of_the_published_file(network):
    """94 convolutions with five tensors of normalization each, and the classifier."""
    names = list(network.state_dict())
    assert len(names) == 94 * 6 + 2
    assert sum(name.endswith(".conv.weight") for name in names) == 94
    for name, shape in (
        ("Conv2d_1a_3x3.conv.weight", (32, 3, 3, 3)),
        ("Mixed_5b.branch5x5_2.bn.running_var", (64,)),
        ("Mixed_6b.branch7x7dbl_5.conv.weight", (192, 128, 1, 7)),
        ("Mixed_6e.branch7x7_3.conv.weight", (192, 192, 7, 1)),
        ("Mixed_7a.branch7x7x3_4.conv.weight", (192, 192, 3, 3)),
        ("Mixed_7c.branch3x3dbl_3b.conv.weight", (384, 384, 3, 1)),
        ("Mixed_7c.branch_pool.conv.weight", (192, 2048, 1, 1)),
        ("fc.weight", (1008, 2048)),
        ("fc.bias", (1008,)),
    ):
        assert network.state_dict()[name].shape == shape


def test_pools_are_those_of_the_release(network):
    """Averages leave the padding out; the last block takes a maximum."""
    ones = torch.ones(1, 1280, 8, 8)
    torch.testing.assert_close(network.Mixed_7b._pool(ones), ones)
    spike = torch.zeros(1, 1, 5, 5)
    spike[..., 2, 2] = 9
    assert network.Mixed_7b._pool(spike)[0, 0, 2].tolist() == [0, 1, 1, 1, 0]
    assert network.Mixed_7c._pool(spike)[0, 0, 2].tolist() == [0, 9, 9, 9, 0]
    below = network.Mixed_7c._pool(-ones)  # a maximum never sees the padding's zeros
    assert torch.equal(below, -ones)


def test_logits_have_no_bias(network):
    features = torch.rand(3, 2048, generator=torch.Generator().manual_seed(0))
    assert network.logits(torch.zeros(1, 2048)).abs().max() == 0
    expected = F.linear(features, network.fc.weight, network.fc.bias) - network.fc.bias
    torch.testing.assert_close(network.logits(features), expected, rtol=1e-4, atol=1e-4)


def test_nothing_trains(network):
    assert not any(parameter.requires_grad for parameter in network.parameters())
    network.train()
    assert not any(module.training for module in network.modules())


@pytest.mark.slow
def test_random_weights_depend_on_the_seed_alone(network):
    before = torch.get_rng_state()
    again = InceptionV3.random(seed=1)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_a_file_is_read(network, tmp_path, monkeypatch):
    """As published (`.pth`, without the counters), and as safetensors under its name."""
    tensors = network.state_dict()
    old = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "inception.pth")
    found = load_inception(tmp_path / "inception.pth")
    assert all(torch.equal(t, tensors[name]) for name, t in found.state_dict().items())
    name = KNOWN["inception"].file.replace(".pth", ".safetensors")
    save_file(tensors, tmp_path / name)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert torch.equal(load_inception().fc.weight, network.fc.weight)


def test_other_tensors_and_images_are_refused(network):
    missing = (
        r"weights of Inception: the network lacks 471 tensors \(Conv2d_1a_3x3\.bn\.bias, \.\.\.\)"
    )
    with pytest.raises(ValueError, match=missing):
        InceptionV3({"fc.weight": torch.zeros(1008, 2048)})
    state = network.state_dict()
    with pytest.raises(ValueError, match=r"has no use for 1 tensors \(AuxLogits"):
        InceptionV3({**state, "AuxLogits.fc.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"has another shape in 1 tensors \(fc\.bias"):
        InceptionV3({**state, "fc.bias": torch.zeros(1000)})
    with pytest.raises(ValueError, match=r"\(2, 3, 256, 256\): Inception expects"):
        network(torch.zeros(2, 3, 256, 256))


def test_without_the_file_it_is_said_what_to_do(tmp_path, monkeypatch):
    for name in (FOLDER, f"{FOLDER}_INCEPTION", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError) as error:
        load_inception()
    known = KNOWN["inception"]
    for fact in (known.file, known.url, known.sha256, "95,628,359", ".cache/vqkit/weights", FOLDER):
        assert fact in str(error.value)


def test_torch_fidelitys_name_is_found_as_well(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    (tmp_path / KNOWN["inception"].also[0]).write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"weights-inception.*has 4 bytes, not 95,628,359"):
        load_inception()
