"""The contract of `ImageTokenizer`, over several presets and every kind of image size."""

import copy
import pickle

import pytest
import torch

from vqkit.config import NetworkConfig, QuantizerConfig, from_dict
from vqkit.models import ImageTokenizer, TokenizerConfig, config_values

SMALL = NetworkConfig(hidden=8, residual_hidden=4, num_residual_blocks=1)
PRESETS = {
    "vq_vae": {"num_codes": 8, "dim": 4},
    "vq_ema": {"num_codes": 8, "dim": 4, "in_channels": 6},
    "cvq": {"num_codes": 8, "dim": 4},
    "looc": {"num_codes": 4, "dim": 2, "num_segments": 3, "beta": 2},
    "rq": {"num_codes": 8, "dim": 4, "num_levels": 2},
    "dual": {"num_codes": 4, "dim": 4, "num_layers": 1, "num_heads": 2},
    "fsq": {"levels": (4, 3)},
    "sq_vae": {"num_codes": 8, "dim": 4},
}
SIZES = [(1, 1), (7, 5), (4, 8), (30, 41), (3, 64)]


def tokenizer_of(preset="vq_vae", *, network=SMALL, seed=0):
    torch.manual_seed(seed)
    quantizer = QuantizerConfig(preset=preset, args=PRESETS[preset])
    return ImageTokenizer(TokenizerConfig(quantizer=quantizer, network=network))


def pictures(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def floats(*shape, seed=1):
    return pictures(*shape, seed=seed).float() / 127.5 - 1


@pytest.fixture(params=PRESETS)
def tokenizer(request):
    return tokenizer_of(request.param)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_any_size_goes_to_tokens_and_back(tokenizer, height, width):
    images = floats(2, 3, height, width)
    ids = tokenizer.encode(images)
    h, w = -(-height // 4), -(-width // 4)
    assert tokenizer.stride == 4
    assert tokenizer.grid_size(height, width) == (h, w)
    assert ids.shape == (2, h, w, len(tokenizer.quantizer.slots))
    assert ids.dtype == torch.int64
    assert tokenizer.decode(ids).shape == (2, 3, 4 * h, 4 * w)
    restored = tokenizer.reconstruct(images)
    assert restored.shape == images.shape
    assert torch.equal(restored, tokenizer.decode(ids, size=(height, width)))
    assert torch.equal(restored, tokenizer.decode(ids)[..., :height, :width])


def test_reconstruct_is_the_clamped_forward_of_evaluation(tokenizer):
    with torch.no_grad():
        tokenizer.decoder.from_half.weight.mul_(50)  # far outside [-1, 1], or clamp is not seen
        images = floats(2, 3, 12, 8)
        out = tokenizer.eval()(images)
    assert out.images.abs().max() > 1
    assert torch.equal(tokenizer.encode(images), out.quantized.ids)
    torch.testing.assert_close(tokenizer.reconstruct(images), out.images.clamp(-1, 1))
    assert tokenizer.decode(out.quantized.ids).abs().max() == 1


def test_padding_repeats_the_last_row_and_column(tokenizer):
    images = floats(1, 3, 6, 9)
    padded = torch.empty(1, 3, 8, 12)
    for i in range(8):
        for j in range(12):
            padded[:, :, i, j] = images[:, :, min(i, 5), min(j, 8)]
    assert torch.equal(tokenizer.encode(images), tokenizer.encode(padded))


def test_uint8_is_the_float_path(tokenizer):
    images = pictures(3, 3, 7, 10)
    assert torch.equal(tokenizer.encode(images), tokenizer.encode(images.float() / 127.5 - 1))
    assert torch.equal(
        tokenizer.reconstruct(images), tokenizer.reconstruct(images.float() / 127.5 - 1)
    )


def test_pixels_of_a_byte_reach_both_ends_of_the_range():
    seen = []
    tokenizer = tokenizer_of()
    tokenizer.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    tokenizer.encode(torch.tensor([0, 255], dtype=torch.uint8).repeat(3, 2, 2)[None])
    assert (seen[0].min().item(), seen[0].max().item()) == (-1.0, 1.0)


def test_use_in_training_mode_is_evaluation_and_writes_nothing(tokenizer):
    images = floats(2, 3, 8, 8)
    tokenizer.train()(images)  # statistics are pending now, if the quantizer keeps any
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    tokenizer.decoder.eval()
    ids = tokenizer.encode(images)
    restored = tokenizer.reconstruct(images)
    assert tokenizer.training
    assert tokenizer.quantizer.training
    assert not tokenizer.decoder.training
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, before[name]), name
    twin = copy.deepcopy(tokenizer).eval()
    assert torch.equal(ids, twin.encode(images))
    assert torch.equal(restored, twin.reconstruct(images))


def test_a_refused_image_leaves_the_mode_alone():
    tokenizer = tokenizer_of().train()
    with pytest.raises(ValueError):
        tokenizer.decode(torch.full((1, 2, 2, 1), 99))
    assert all(part.training for part in tokenizer.modules())


def test_use_keeps_no_gradient(tokenizer):
    images = floats(1, 3, 8, 8).requires_grad_()
    assert not tokenizer.reconstruct(images).requires_grad
    assert not tokenizer.decode(tokenizer.encode(images)).requires_grad


def test_training_reaches_every_network(tokenizer):
    with torch.no_grad():
        tokenizer.encoder.pre_vq.weight.mul_(30)  # away from 0, where a lattice has one code
    out = tokenizer.train()(floats(2, 3, 8, 12))
    assert out.images.shape == (2, 3, 8, 12)
    (out.images.square().mean() + out.quantized.loss).backward()
    for part in (tokenizer.encoder, tokenizer.decoder):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_grey_images():
    network = NetworkConfig(image_channels=1, hidden=8, residual_hidden=4, num_residual_blocks=1)
    tokenizer = tokenizer_of(network=network)
    assert tokenizer.reconstruct(floats(2, 1, 28, 28)).shape == (2, 1, 28, 28)
    with pytest.raises(ValueError, match="takes 1 channels"):
        tokenizer.encode(floats(2, 3, 28, 28))


@pytest.mark.parametrize(("images", "reason"), [
    (floats(3, 8, 8), r"expected \(B, C, H, W\); add a batch with images\[None\]"),
    (floats(1, 1, 3, 8, 8), r"expected \(B, C, H, W\)$"),
    (floats(1, 8, 8, 3), "takes 3 channels"),
    (floats(1, 4, 8, 8), "takes 3 channels"),
    (floats(0, 3, 8, 8), "is empty"),
    (floats(1, 3, 0, 8), "is empty"),
    (pictures(1, 3, 8, 8).long(), "torch.int64: expected uint8"),
    (pictures(1, 3, 8, 8) > 0, "torch.bool: expected uint8"),
    (pictures(1, 3, 8, 8).float(), r"images / 127.5 - 1"),
    (floats(1, 3, 8, 8) * 1.01, r"expected finite floats in \[-1, 1\]"),
    (torch.full((1, 3, 8, 8), float("nan")), "expected finite floats"),
    (torch.full((1, 3, 8, 8), float("inf")), "expected finite floats"),
    (torch.full((1, 3, 8, 8), -float("inf")), "expected finite floats"),
    (floats(1, 3, 8, 8).numpy(), "expected a tensor"),
])  # fmt: skip
@pytest.mark.parametrize("use", ["encode", "reconstruct"])
def test_other_images_are_refused(images, reason, use):
    with pytest.raises(ValueError, match=reason):
        getattr(tokenizer_of(), use)(images)


def test_one_nan_among_good_pixels_is_found():
    images = floats(1, 3, 8, 8)
    images[0, 2, 7, 7] = float("nan")
    with pytest.raises(ValueError, match="expected finite floats"):
        tokenizer_of().encode(images)


def test_overshoot_of_rounding_is_accepted():
    tokenizer = tokenizer_of()
    images = torch.full((1, 3, 8, 8), 1.0005)
    assert tokenizer.encode(images).shape == (1, 2, 2, 1)


def test_images_on_another_device_are_refused():
    with pytest.raises(ValueError, match="the model is on cpu"):
        tokenizer_of().encode(torch.empty(1, 3, 8, 8, device="meta"))


@pytest.mark.parametrize(("images", "reason"), [
    (floats(2, 3, 30, 32), "multiples of 4"),
    (floats(2, 3, 32, 30), "multiples of 4"),
    (pictures(2, 3, 32, 32), "convert uint8"),
    (floats(3, 32, 32), "add a batch"),
    (floats(2, 1, 32, 32), "takes 3 channels"),
])  # fmt: skip
def test_training_refuses_what_does_not_fit(images, reason):
    with pytest.raises(ValueError, match=reason):
        tokenizer_of()(images)


@pytest.mark.parametrize("size", [(4, 8), (9, 8), (5, 13), (8, 8), (0, 12), (-1, 9), (12, 7)])
def test_sizes_that_do_not_fit_the_grid_are_refused(size):
    tokenizer = tokenizer_of()
    ids = tokenizer.encode(floats(1, 3, 7, 10))
    assert ids.shape[1:3] == (2, 3)
    with pytest.raises(ValueError, match=r"size=|width=|height="):
        tokenizer.decode(ids, size=size)
    for fitting in [(5, 9), (8, 12), (7, 10)]:
        assert tokenizer.decode(ids, size=fitting).shape[-2:] == fitting


@pytest.mark.parametrize("spoil", [
    lambda ids: ids.clone().fill_(10**6),
    lambda ids: ids.clone().fill_(-1),
    lambda ids: ids.int(),
    lambda ids: ids.float(),
    lambda ids: ids.numpy(),
    lambda ids: ids.to("meta"),
    lambda ids: ids[0],
    lambda ids: ids.repeat(1, 1, 1, 2),
])  # fmt: skip
def test_foreign_ids_are_refused(tokenizer, spoil):
    ids = tokenizer.encode(floats(1, 3, 8, 8))
    with pytest.raises(ValueError):
        tokenizer.decode(spoil(ids))


def test_batches_do_not_mix(tokenizer):
    """Codes are 8 random vectors: no near tie that another batch size could decide otherwise."""
    images = floats(3, 3, 9, 9)
    together = tokenizer.encode(images)
    apart = torch.cat([tokenizer.encode(image[None]) for image in images])
    assert torch.equal(together, apart)


def test_pickles_copies_and_state_are_the_same_model(tokenizer):
    images = floats(1, 3, 7, 9)
    expected = tokenizer.reconstruct(images)
    for twin in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert torch.equal(twin.reconstruct(images), expected)
    fresh = ImageTokenizer(tokenizer.config)
    assert not torch.equal(fresh.reconstruct(images), expected)
    fresh.load_state_dict(tokenizer.state_dict())
    assert torch.equal(fresh.reconstruct(images), expected)


def test_channels_last_gives_the_same_images(tokenizer):
    images = floats(2, 3, 9, 9)
    ids, expected = tokenizer.encode(images), tokenizer.reconstruct(images)
    tokenizer.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    assert torch.equal(tokenizer.decode(tokenizer.encode(images), (9, 9)),
                       tokenizer.reconstruct(images))  # fmt: skip
    # another order of summation inside the convolutions: equal up to rounding
    torch.testing.assert_close(tokenizer.decode(ids, (9, 9)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("training", [pytest.param(False, marks=pytest.mark.slow), True])
def test_compiles(training):
    """The trace alone (`eager`): what the code generator makes of it is torch's affair."""
    tokenizer = tokenizer_of("looc").train(training)
    twin = copy.deepcopy(tokenizer)
    images = floats(1, 3, 8, 8)
    expected = tokenizer(images)
    torch.compiler.reset()
    out = torch.compile(twin, backend="eager")(images)
    assert torch.equal(out.images, expected.images)
    assert torch.equal(out.quantized.ids, expected.quantized.ids)
    for model, result in ((tokenizer, expected), (twin, out)):
        (result.images.square().mean() + result.quantized.loss).backward()
        assert model.encoder.to_half.weight.grad.abs().sum() > 0
    torch.testing.assert_close(
        twin.encoder.to_half.weight.grad, tokenizer.encoder.to_half.weight.grad
    )


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"sq_vae"}))
def test_bfloat16_model_keeps_its_laws(preset):
    tokenizer = tokenizer_of(preset).to(torch.bfloat16)
    images = pictures(1, 3, 7, 9)
    restored = tokenizer.reconstruct(images)
    assert restored.dtype == torch.bfloat16
    assert torch.equal(tokenizer.decode(tokenizer.encode(images), (7, 9)), restored)
    assert torch.equal(tokenizer.encode(images), tokenizer.encode(images.float() / 127.5 - 1))


def test_autocast_trains(tokenizer):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = tokenizer.train()(floats(1, 3, 8, 8))
    (out.images.float().square().mean() + out.quantized.loss).backward()
    assert tokenizer.encoder.to_half.weight.grad.isfinite().all()


def test_settings_go_through_plain_values():
    config = tokenizer_of().config
    again = from_dict(TokenizerConfig, config_values(config))
    assert again == config
    with pytest.raises(ValueError, match="unknown key"):
        from_dict(TokenizerConfig, {**config_values(config), "encoder": {}})
    with pytest.raises(ValueError, match="network=3: expected a NetworkConfig"):
        from_dict(TokenizerConfig, {**config_values(config), "network": 3})
