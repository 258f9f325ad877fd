"""What holds for the networks of every kind: memory layout, precision, checkpointing, compiling."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vqkit.config import NetworkConfig, ViTNetwork, VQGANNetwork
from vqkit.models import build_networks

pytestmark = pytest.mark.slow

CHANNELS = 5
VQGAN = {
    "width": 8,
    "multipliers": (1, 2, 2),
    "num_res_blocks": 1,
    "attention_strides": (2, 4),
    "z_channels": 6,
    "norm_groups": 4,
}
VIT = {"patch": 4, "width": 16, "depth": 2, "heads": 2, "mlp": 24}
KINDS = {
    "vqvae": (NetworkConfig, {"hidden": 8, "residual_hidden": 4}),
    "vqgan": (VQGANNetwork, VQGAN),
    "movq": (VQGANNetwork, {**VQGAN, "modulation": "codes"}),
    "vit": (ViTNetwork, VIT),
}
DEEP = [kind for kind in KINDS if kind != "vqvae"]


def build(kind, **changes):
    cls, settings = KINDS[kind]
    torch.manual_seed(0)
    return build_networks(cls(**{**settings, **changes}), CHANNELS)


def inputs(batch=2):
    source = torch.Generator().manual_seed(1)
    images = torch.rand(batch, 3, 16, 24, generator=source) * 2 - 1
    return images, torch.randn(batch, CHANNELS, 4, 6, generator=source)


class Clones(TorchDispatchMode):
    """Collect the shapes of all tensors that are copied."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("clone", "copy_", "_to_copy"):
            self.shapes.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_changes_no_number(kind):
    encoder, decoder = build(kind)
    images, z_q = inputs()
    with torch.no_grad():
        z, made = encoder(images), decoder(z_q)
        for part in (encoder, decoder):
            part.to(memory_format=torch.channels_last)
        moved = encoder(images.to(memory_format=torch.channels_last))
        remade = decoder(z_q.to(memory_format=torch.channels_last))
    # sums of float32 in another order
    torch.testing.assert_close(moved, z, rtol=0, atol=1e-5)
    torch.testing.assert_close(remade, made, rtol=0, atol=1e-5)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert remade.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["vqgan", "movq", "vit"])
def test_channels_last_maps_are_never_copied(kind):
    parts = [p.to(memory_format=torch.channels_last) for p in build(kind)]
    packed = [x.to(memory_format=torch.channels_last) for x in inputs()]
    with torch.no_grad(), Clones() as copies:
        for part, x in zip(parts, packed, strict=True):
            part(x)
    assert [shape for shape in copies.shapes if len(shape) > 2] == []


@pytest.mark.parametrize("kind", KINDS)
def test_last_weight_is_the_weight_of_the_last_layer(kind):
    _, decoder = build(kind)
    weight = decoder.last_weight
    assert isinstance(weight, nn.Parameter)
    _, z_q = inputs()
    outputs = []
    layers = [m for m in decoder.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    for layer in layers:
        layer.register_forward_hook(lambda module, _, out: outputs.append((module, out)))
    images = decoder(z_q)
    last, out = outputs[-1]
    assert last.weight is weight
    assert out is images


@pytest.mark.parametrize("kind", KINDS)
def test_decoder_takes_codes_of_another_precision(kind):
    encoder, decoder = (part.to(torch.bfloat16) for part in build(kind))
    images, z_q = inputs()
    with torch.no_grad():
        assert encoder(images.bfloat16()).dtype == torch.bfloat16
        made = decoder(z_q)
    assert made.dtype == torch.bfloat16
    assert made.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_is_on_its_own(kind):
    """No layer looks at the other images of the batch, in training either."""
    encoder, decoder = build(kind)
    images, z_q = inputs(batch=3)
    with torch.no_grad():
        # a batch of another size may be summed in another order
        torch.testing.assert_close(encoder(images)[1:2], encoder(images[1:2]))
        torch.testing.assert_close(decoder(z_q)[1:2], decoder(z_q[1:2]))


def gradients(parts, seed=3):
    """Gradients of one training pass, of inputs and parameters, and the next random number."""
    torch.manual_seed(seed)
    images = inputs()[0].requires_grad_()
    loss = parts[1](parts[0](images)).square().mean()
    parameters = [p for part in parts for p in part.parameters()]
    return [*torch.autograd.grad(loss, [images, *parameters]), torch.rand(3)]


@pytest.mark.parametrize("kind", DEEP)
def test_checkpointing_changes_no_bit(kind):
    plain = build(kind, dropout=0.3)
    saving = build(kind, dropout=0.3, checkpointing=True)
    for one, other in zip(gradients(plain), gradients(saving), strict=True):
        assert torch.equal(one, other)
    moved = gradients(plain, seed=4)
    assert not torch.equal(moved[0], gradients(plain)[0])  # dropout was at work


def saved_bytes(parts):
    """Bytes that autograd keeps for backward, parameters left out."""
    own = {p.data_ptr() for part in parts for p in part.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = parts[1](parts[0](inputs()[0])).square().mean()
    del loss
    return sum(kept.values())


@pytest.mark.parametrize("kind", DEEP)
def test_checkpointing_keeps_less_and_only_in_training(kind):
    plain, saving = build(kind), build(kind, checkpointing=True)
    assert saved_bytes(saving) < 0.6 * saved_bytes(plain)
    for part in (*plain, *saving):
        part.eval()
    assert saved_bytes(saving) == saved_bytes(plain)


@pytest.mark.parametrize("kind", DEEP)
def test_checkpointing_runs_each_block_once_more(kind):
    encoder, _ = build(kind, checkpointing=True)
    calls = []
    names = {"Block", "ResidualBlock", "AttentionBlock"}
    blocks = [m for m in encoder.modules() if type(m).__name__ in names]
    for block in blocks:
        block.register_forward_pre_hook(lambda module, _: calls.append(module))
    images, _ = inputs()
    encoder(images).sum().backward()
    assert len(calls) == 2 * len(blocks)
    calls.clear()
    with torch.no_grad():
        encoder(images)
    assert len(calls) == len(blocks)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", DEEP)
def test_compiling_finds_one_graph(kind, checkpointing):
    """`fullgraph` raises wherever Python would interrupt the compiled code."""
    # this backend, quick for a test, draws anew where the real one repeats a checkpoint's dropout
    parts = build(kind, dropout=0.0 if checkpointing else 0.3, checkpointing=checkpointing)
    compiled = [torch.compile(part, fullgraph=True, backend="eager") for part in parts]
    assert compiled[1].last_weight is parts[1].last_weight
    for one, other in zip(gradients(parts), gradients(compiled), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_states_are_whole(kind):
    parts = build(kind)
    images, z_q = inputs()
    for part, x in zip(parts, (images, z_q), strict=True):
        twin = copy.deepcopy(part)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
            twin.load_state_dict(part.state_dict())
            assert torch.equal(twin(x), part(x))
        assert not list(part.buffers())
