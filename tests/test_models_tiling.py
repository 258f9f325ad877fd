"""Tiles: exact where all layers are local, and a warning where they are not."""

from functools import partial

import pytest
import torch
from torch import nn

from vqkit.config import NetworkConfig, QuantizerConfig, ViTNetwork, VQGANNetwork
from vqkit.models import (
    Halo,
    ImageTokenizer,
    TokenizerConfig,
    decode_tiled,
    encode_tiled,
    exact_halo,
    reconstruct_tiled,
)
from vqkit.models.vqgan_blocks import AttentionBlock
from vqkit.quantizers import GridQuantizer
from vqkit.quantizers.presets import vq_vae

pytestmark = pytest.mark.slow

SMALL = NetworkConfig(hidden=8, residual_hidden=4, num_residual_blocks=1)
VQGAN = VQGANNetwork(
    width=8, multipliers=(1, 1, 2), num_res_blocks=1, attention_strides=(4,), z_channels=6,
    norm_groups=4,
)  # fmt: skip
MOVQ = VQGANNetwork(
    width=8, multipliers=(1, 2), num_res_blocks=1, attention_strides=(), z_channels=6,
    norm_groups=4, modulation="codes",
)  # fmt: skip
VIT = ViTNetwork(patch=8, width=16, depth=1, heads=2, mlp=16)
ARGS = {
    "vq_vae": {"num_codes": 32, "dim": 4},
    "vqgan_fc": {"num_codes": 32, "dim": 4, "in_channels": 6},
    "looc": {"num_codes": 8, "dim": 2, "num_segments": 2, "beta": 2},
    "rq": {"num_codes": 8, "dim": 4, "num_levels": 2, "beta": 3},
    "fsq": {"levels": (8, 5)},
    "dual": {"num_codes": 8, "dim": 4, "num_layers": 1, "num_heads": 2},
    "sq_vae": {"num_codes": 64, "dim": 4},
}
OFFICIAL = {"num_codes": 8, "dim": 2, "num_segments": 2, "beta": 2, "layout": "official"}
SIZES = [(43, 61), (5, 90)]
ROUNDING = 1e-12
"""Sums of float64 in another order; images lie in [-1, 1]."""


def tokenizer_of(preset="vq_vae", network=SMALL, *, presets=None, bare=False, **args):
    """A tokenizer in float64 whose features are spread around zero, so that it uses many codes.

    `bare` steps around normalisation and attention: what is left is convolutions.
    """
    torch.manual_seed(0)
    quantizer = QuantizerConfig(preset=preset, args=args or ARGS.get(preset, {}))
    config = TokenizerConfig(quantizer=quantizer, network=network)
    tokenizer = ImageTokenizer(config, presets=presets).double().eval()
    for layer in tokenizer.modules():
        if bare and isinstance(layer, nn.GroupNorm | AttentionBlock):
            layer.register_forward_hook(lambda _, inputs, output: inputs[0])
    with torch.no_grad():
        last = [part for part in tokenizer.encoder.modules() if isinstance(part, nn.Conv2d)][-1]
        z = tokenizer.encoder(torch.rand(2, 3, 32, 32).double() * 2 - 1)
        last.bias.sub_(z.mean((0, 2, 3)))
        for tensor in (last.weight, last.bias):
            tensor.div_(z.std((0, 2, 3)).view(-1, *[1] * (tensor.ndim - 1)))
        tokenizer.decoder.last_weight.mul_(4)
    return tokenizer


def pictures(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def assert_exact(tokenizer, images, **sizes):
    ids = tokenizer.encode(images)
    assert len(ids.unique()) > 3  # or equal ids would mean little
    assert torch.equal(encode_tiled(tokenizer, images, **sizes), ids)
    size = tuple(images.shape[-2:])
    expected = tokenizer.decode(ids, size)
    found = decode_tiled(tokenizer, ids, size, **sizes)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(
        reconstruct_tiled(tokenizer, images, **sizes), expected, rtol=0, atol=ROUNDING
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("preset", ARGS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tiles_of_local_layers_are_the_whole_picture(preset, height, width):
    tokenizer = tokenizer_of(preset)
    assert_exact(tokenizer, pictures(2, 3, height, width), tile=24)


@pytest.mark.filterwarnings("error")
def test_the_official_layout_of_looc_is_exact_too():
    assert_exact(tokenizer_of("looc", **OFFICIAL), pictures(1, 3, 43, 61), tile=24)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tile", [1, 8, 9, 31, 512])
def test_tiles_of_any_size_are_exact(tile):
    assert_exact(tokenizer_of(), pictures(1, 3, 18, 33), tile=tile)


@pytest.mark.parametrize("network", [VQGAN, MOVQ], ids=["vqgan", "movq"])
def test_the_halo_holds_all_convolutions_of_vqgan(network):
    # Without normalisation and attention, which real ones always have: only the halo is tested.
    # The warning tells of the layers that are there.
    tokenizer = tokenizer_of(network=network, bare=True)
    with pytest.warns(UserWarning, match="group normalisation"):
        assert_exact(tokenizer, pictures(1, 3, 104, 8), tile=24)


def test_the_reach_of_the_small_network_is_that_of_its_layers():
    # Two convolutions of 4 and stride 2 look into the next position, and so do 3 x 3 ones: the
    # first, and one in every residual block.
    for blocks in (0, 1, 2):
        network = NetworkConfig(hidden=8, residual_hidden=4, num_residual_blocks=blocks)
        side = 4 * (2 + blocks)
        assert exact_halo(tokenizer_of(network=network)) == Halo(encoder=side, decoder=side)
    interpolating = tokenizer_of("looc")
    assert exact_halo(interpolating) == Halo(encoder=4 * 4, decoder=4 * 3)
    assert exact_halo(tokenizer_of(network=VIT)) == Halo(encoder=0, decoder=0)


def sees(network, channels, *, taken, given):
    """How many positions away the middle of the output depends on the input, by its gradient.

    `taken` and `given` are the sides of a position in the input and in the output.
    """
    row = torch.rand(1, channels, taken, 63 * taken, dtype=torch.float64, requires_grad=True)
    middle = network(row)[..., 31 * given : 32 * given]
    (gradient,) = torch.autograd.grad(middle.square().sum(), row)
    used = gradient.abs().sum((0, 1, 2)).view(63, taken).sum(1).nonzero()
    return max(31 - int(used.min()), int(used.max()) - 31)


@pytest.mark.parametrize("network", [SMALL, VQGAN, MOVQ], ids=["vqvae", "vqgan", "movq"])
def test_the_reach_is_that_of_the_gradient(network):
    tokenizer = tokenizer_of(network=network, bare=True)
    stride = network.stride
    found = exact_halo(tokenizer)
    in_encoder = sees(tokenizer.encoder, 3, taken=stride, given=1)
    in_decoder = sees(tokenizer.decoder, tokenizer.quantizer.channels, taken=1, given=stride)
    assert found == Halo(encoder=in_encoder * stride, decoder=in_decoder * stride)


def test_a_smaller_halo_is_not_exact():
    tokenizer, images = tokenizer_of("fsq"), pictures(1, 3, 64, 64)
    ids = tokenizer.encode(images)
    changed = (encode_tiled(tokenizer, images, tile=16, halo=0) != ids).any(-1)[0]
    assert changed.any()
    rebuilt = decode_tiled(tokenizer, ids, tile=16, halo=0)
    assert (rebuilt - tokenizer.decode(ids)).abs().max() > 0.01
    assert_exact(tokenizer, images, tile=16, halo=13)  # rounded up to 16 pixels


def test_memory_is_that_of_a_tile():
    tokenizer, seen = tokenizer_of(), []
    for part in (tokenizer.encoder, tokenizer.decoder):
        part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2:]))
    reconstruct_tiled(tokenizer, pictures(1, 3, 100, 90), tile=20)
    encoded, decoded = seen[: 5 * 5], seen[5 * 5 :]
    assert len(decoded) == 5 * 5
    assert max(max(shape) for shape in encoded) == 20 + 2 * 12
    assert max(max(shape) for shape in decoded) == (20 + 2 * 12) // 4


@pytest.mark.parametrize("network", [VQGAN, MOVQ, VIT], ids=["vqgan", "movq", "vit"])
def test_layers_that_look_everywhere_are_named_in_one_warning(network):
    tokenizer, images = tokenizer_of(network=network), pictures(1, 3, 64, 48)
    with pytest.warns(UserWarning, match="not that of the whole image") as caught:
        reconstruct_tiled(tokenizer, images, tile=32, halo=8)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    assert text.count("encoder: ") == text.count("decoder: ") == 1
    for what in ("tile=32", "attention" if network is not VIT else "transformer", "seams"):
        assert what in text
    with pytest.warns(UserWarning, match="encoder") as caught:
        encode_tiled(tokenizer, images, tile=32, halo=8)
    assert "decoder" not in str(caught[0].message)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("network", [VQGAN, VIT], ids=["vqgan", "vit"])
def test_a_tile_that_holds_the_image_is_exact_without_a_warning(network):
    tokenizer = tokenizer_of(network=network)
    images = pictures(1, 3, 30, 41)
    expected = tokenizer.reconstruct(images)
    assert torch.equal(reconstruct_tiled(tokenizer, images), expected)
    assert torch.equal(reconstruct_tiled(tokenizer, images, tile=20, halo=100), expected)


@pytest.mark.filterwarnings("ignore:tile=")
def test_larger_tiles_of_vqgan_are_nearer_to_the_whole_picture():
    tokenizer = tokenizer_of("fsq", VQGAN)
    # A picture that is dark at the left and bright at the right: means differ from tile to tile.
    ramp = torch.linspace(-1, 1, 64, dtype=torch.float64).expand(1, 3, 32, 64)
    noise = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(2)).double() - 0.5
    ids = tokenizer.encode((ramp + noise).clamp(-1, 1))
    whole = tokenizer.decode(ids)
    errors = [
        (decode_tiled(tokenizer, ids, tile=tile, halo=8) - whole).abs().mean().item()
        for tile in (8, 32, 64)
    ]
    assert errors[0] > 1.2 * errors[1] > 0.001
    assert errors[2] == 0


def test_modes_state_and_random_numbers_stay():
    tokenizer = tokenizer_of("dual").train()
    tokenizer.decoder.eval()
    images = pictures(1, 3, 40, 24)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    draws = torch.random.get_rng_state()
    with torch.inference_mode():
        found = reconstruct_tiled(tokenizer, images, tile=16)
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert tokenizer.training
    assert not tokenizer.decoder.training
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())
    torch.testing.assert_close(found, tokenizer.reconstruct(images), rtol=0, atol=ROUNDING)


class Mine(GridQuantizer):
    """Nobody knows what it looks at."""


def mine(num_codes, dim):
    return Mine(vq_vae(num_codes, dim).quantizer)


def test_refuses():
    tokenizer, images = tokenizer_of(), pictures(1, 3, 40, 40)
    ids = tokenizer.encode(images)
    for call in (
        partial(encode_tiled, tokenizer, images),
        partial(decode_tiled, tokenizer, ids),
        partial(reconstruct_tiled, tokenizer, images),
    ):
        for sizes in ({"tile": 0}, {"halo": -1}, {"tile": 16, "halo": -4}):
            with pytest.raises(ValueError, match=r"(tile|halo)=(0|-)"):
                call(**sizes)
    with pytest.raises(ValueError, match=r"images\.shape=\(3, 40, 40\)"):
        encode_tiled(tokenizer, images[0])
    with pytest.raises(ValueError, match=r"images in \["):
        encode_tiled(tokenizer, images.double(), tile=16)
    with pytest.raises(ValueError, match=r"ids\.shape=\(10, 10, 1\)"):
        decode_tiled(tokenizer, ids[0])
    with pytest.raises(ValueError, match=r"size=\(41, 40\)"):
        decode_tiled(tokenizer, ids, (41, 40), tile=16)
    with pytest.raises(ValueError, match="slot"):
        decode_tiled(tokenizer, ids + 99, tile=16)
    own = tokenizer_of("mine", presets={"mine": mine}, num_codes=8, dim=4)
    with pytest.raises(ValueError, match="quantizer=Mine"):
        encode_tiled(own, images, tile=16)
    assert torch.equal(encode_tiled(own, images), own.encode(images))  # in one tile all is known
