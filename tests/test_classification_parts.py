"""Augmentation against the papers' formulas, the transformer against transformers' ViTMAE."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import nn

from vqkit.classification.augment import _beta, augmented, erased, shifted
from vqkit.classification.network import TokenViT
from vqkit.classification.pretrained import interpolated, load_pretrained
from vqkit.config.classification import Augmentation, ViTClassifier

SMALL = {"layers": 2, "heads": 2, "width": 16, "mlp": 24}


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def some_maps(count=6, channels=3, h=5, w=7, seed=1):
    return torch.randn(count, channels, h, w, generator=source(seed))


def labels_of(count=6, classes=4):
    return torch.arange(count) % classes


def test_nothing_is_done_by_default():
    maps, targets = augmented(some_maps(), labels_of(), 4, Augmentation(), source())
    assert torch.equal(maps, some_maps())
    assert torch.equal(targets, nn.functional.one_hot(labels_of(), 4).float())


@pytest.mark.parametrize("count", [1, 3])
def test_convolutions_read_maps_and_what_is_near(count):
    settings = ViTClassifier(**SMALL, convolutions=count)
    stem = TokenViT(settings, 3, (5, 7), 4).patch_embed
    maps = some_maps()
    found = stem(maps)
    x = maps
    convolutions = [part for part in stem if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == count
    for number, part in enumerate(convolutions):
        x = nn.functional.conv2d(
            nn.functional.gelu(x) if number else x, part.weight, part.bias, padding=1
        )
    torch.testing.assert_close(found, x.flatten(2).transpose(1, 2))
    maps[:, :, 0, 0] += 1
    changed = (stem(maps) - found).abs().amax((0, 2)).unflatten(0, (5, 7)) > 0
    assert changed[: count + 1, : count + 1].all()
    assert int(changed.sum()) == (count + 1) ** 2


def test_smoothing_spreads_its_share_over_all_classes():
    _, targets = augmented(some_maps(), labels_of(), 4, Augmentation(smoothing=0.2), source())
    assert targets[1].tolist() == pytest.approx([0.05, 0.85, 0.05, 0.05])


@pytest.mark.parametrize("seed", range(3))
def test_mixup_mixes_maps_and_targets_alike(seed):
    before = some_maps()
    settings = Augmentation(mixup=0.8, smoothing=0.1)
    maps, targets = augmented(before, labels_of(), 4, settings, source(seed))
    other = before.flip(0)
    share = ((maps - other) / (before - other))[0, 0, 0, 0].item()
    torch.testing.assert_close(maps, share * before + (1 - share) * other)
    smooth = nn.functional.one_hot(labels_of(), 4) * 0.9 + 0.1 / 4
    torch.testing.assert_close(targets, share * smooth + (1 - share) * smooth.flip(0))


@pytest.mark.parametrize("seed", range(6))
def test_cutmix_counts_what_it_cut(seed):
    before = some_maps()
    maps, targets = augmented(before, labels_of(), 4, Augmentation(cutmix=1.0), source(seed))
    own = (maps == before).all(1)
    other = (maps == before.flip(0)).all(1)
    assert bool((own | other).all())
    share = own[0].float().mean().item()
    assert torch.equal(own, own[:1].expand_as(own))  # one rectangle for the whole batch
    rows, columns = torch.nonzero(~own[0], as_tuple=True)
    if len(rows):
        area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert int(area) == len(rows)  # without holes
    hot = nn.functional.one_hot(labels_of(), 4).float()
    torch.testing.assert_close(targets, share * hot + (1 - share) * hot.flip(0))


def test_mixup_and_cutmix_take_turns():
    """One batch in two is cut: within the 99.9 % of a fair coin over 200 batches."""
    before, draw = some_maps(), source(5)
    cut = 0
    for _ in range(200):
        maps, _ = augmented(before, labels_of(), 4, Augmentation(mixup=0.8, cutmix=1.0), draw)
        cut += bool(((maps == before) | (maps == before.flip(0))).all())
    assert stats.binom.ppf(0.0005, 200, 0.5) <= cut <= stats.binom.ppf(0.9995, 200, 0.5)


@pytest.mark.parametrize("parameter", [0.8, 1.0])
def test_shares_come_from_the_beta_distribution(parameter):
    draw = source(2)
    drawn = [_beta(parameter, draw) for _ in range(500)]
    assert stats.kstest(drawn, stats.beta(parameter, parameter).cdf).pvalue > 0.001


def test_erasing_fills_a_rectangle_of_some_maps():
    before = some_maps(count=400, h=8, w=8)
    after = erased(before, 0.25, source(3))
    gone = (after != before).any(1)
    chosen = gone.flatten(1).any(1)
    low, high = stats.binom.ppf([0.0005, 0.9995], 400, 0.25)
    assert low <= int(chosen.sum()) <= high
    for number in torch.nonzero(chosen).flatten().tolist():
        rows, columns = torch.nonzero(gone[number], as_tuple=True)
        h, w = int(rows.max() - rows.min() + 1), int(columns.max() - columns.min() + 1)
        assert h * w == len(rows)
        assert h * w <= 64 / 3 * 1.4  # rounded up along both sides
    noise = after[gone[:, None].expand_as(after)]
    assert stats.kstest(noise.numpy(), "norm").pvalue > 0.001


def test_shifts_repeat_the_edges():
    before = some_maps(count=20)
    after = shifted(before, 2, source(4))
    moves = set()
    for one, moved in zip(before, after, strict=True):
        fits = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if all(
                torch.equal(
                    moved[:, y, x], one[:, min(max(y - down, 0), 4), min(max(x - right, 0), 6)]
                )
                for y in range(5)
                for x in range(7)
            )
        ]
        assert len(fits) == 1
        moves |= set(fits)
    assert len(moves) > 8


# --------------------------------------------------------------------- the transformer


def mae(folder, **changes):
    """A tiny ViTMAE of transformers with random weights, saved as its publishers do."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=12,
        patch_size=4,
        layer_norm_eps=1e-6,
        mask_ratio=0.0,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=8,
        **changes,
    )
    torch.manual_seed(0)
    whole = transformers.ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.normal_(std=0.3)
    whole.save_pretrained(folder)
    return whole.vit


def test_maes_weights_give_transformers_features(tmp_path):
    """On the same patches, embedded by the same layer, without anything masked."""
    theirs = mae(tmp_path)
    ours = TokenViT(ViTClassifier(**SMALL), 3 * 4 * 4, (3, 3), 5).eval()
    load_pretrained(ours, tmp_path, (3, 3))
    projection = theirs.embeddings.patch_embeddings.projection
    images = torch.randn(2, 3, 12, 12, generator=source(6))
    patches = nn.functional.unfold(images, 4, stride=4).unflatten(2, (3, 3))
    with torch.no_grad():
        ours.patch_embed.weight.copy_(projection.weight.flatten(1))
        ours.patch_embed.bias.copy_(projection.bias)
        noise = torch.arange(9.0).expand(2, -1)  # the order of the patches, kept
        hidden = theirs(images, noise=noise, output_hidden_states=True).hidden_states[-1]
        expected = nn.functional.layer_norm(hidden[:, 1:].mean(1), (16,), eps=1e-6)
        torch.testing.assert_close(ours.features(patches), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_maes_own_code_are_taken(tmp_path):
    torch.manual_seed(1)
    saved = TokenViT(ViTClassifier(**SMALL), 4, (3, 3), 2)
    named = {
        n: p for n, p in saved.state_dict().items() if not n.startswith(("patch_embed.", "head."))
    }
    torch.save({"model": named | {"patch_embed.proj.bias": torch.zeros(16)}}, tmp_path / "mae.pth")
    taken = TokenViT(ViTClassifier(**SMALL), 4, (3, 3), 2)
    before = taken.patch_embed.weight.clone()
    load_pretrained(taken, tmp_path / "mae.pth", (3, 3))
    for name in ("cls_token", "blocks.1.attn.qkv.weight", "blocks.0.norm2.weight"):
        assert torch.equal(taken.state_dict()[name], saved.state_dict()[name])
    assert torch.equal(taken.patch_embed.weight, before)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 32, "mlp": 48}, r"has shape \(1, 1, 16\), the settings say \(1, 1, 32\)"),
        ({"layers": 3}, "are missing"),
        ({"layers": 1}, "has more layers than model.layers=1"),
    ],
)
def test_weights_of_another_size_are_refused(tmp_path, changes, said):
    mae(tmp_path)
    model = TokenViT(ViTClassifier(**SMALL | changes), 4, (3, 3), 2)
    with pytest.raises(ValueError, match=said):
        load_pretrained(model, tmp_path, (3, 3))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (
            (1, 9, 16),
            r"^model\.pretrained: pos_embed has shape \(1, 9, 16\), expected \(1, 1 \+ n²",
        ),
        ((10, 16), r"^model\.pretrained: pos_embed has shape \(10, 16\)"),
        ((2, 10, 16), r"^model\.pretrained: pos_embed has shape \(2, 10, 16\)"),
        ((1, 0, 16), r"^model\.pretrained: pos_embed has shape \(1, 0, 16\)"),
    ],
)
def test_positions_of_no_square_are_refused(shape, said):
    with pytest.raises(ValueError, match=said):
        interpolated(torch.zeros(shape), (2, 4))


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("embeddings.cls_token", "cls_token"),
        ("encoder.layer.1.attention.attention.key.weight", "blocks.1.attn.qkv.weight"),
        ("encoder.layer.0.attention.attention.query.bias", "blocks.0.attn.qkv.bias"),
        ("encoder.layer.0.output.dense.bias", "blocks.0.mlp.fc2.bias"),
        ("embeddings.position_embeddings", "blocks.0.attn.proj.bias, blocks.0.attn.proj.weight"),
    ],
)
def test_weights_with_a_part_missing_or_cut_are_refused(tmp_path, name, missing):
    mae(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {key.removeprefix("vit."): value for key, value in load_file(path).items()}
    model = TokenViT(ViTClassifier(**SMALL), 4, (3, 3), 2)
    without = {key: value for key, value in tensors.items() if key != name}
    cut = without | {name: tensors[name].flatten()[:5]}
    said = rf"^model\.pretrained='.*': holds no weights of MAE: {missing}.* are missing"
    for changed in [without, cut] if ".attention.attention." in name else [without]:
        save_file(changed, path)
        with pytest.raises(ValueError, match=said):
            load_pretrained(model, tmp_path, (3, 3))


def test_a_folder_without_weights_is_refused(tmp_path):
    model = TokenViT(ViTClassifier(**SMALL), 4, (3, 3), 2)
    with pytest.raises(ValueError, match=r"holds no model.safetensors and no pytorch_model.bin"):
        load_pretrained(model, tmp_path, (3, 3))


def test_positions_are_stretched_along_their_own_sides():
    rows = torch.arange(4.0)[:, None].expand(4, 4).reshape(1, 16, 1)
    columns = torch.arange(4.0).expand(4, 4).reshape(1, 16, 1)
    square = torch.cat([torch.full((1, 1, 2), 9.0), torch.cat([rows, columns], 2)], 1)
    made = interpolated(square, (8, 4))
    assert made.shape == (1, 33, 2)
    assert made[0, 0].tolist() == [9.0, 9.0]
    grid = made[0, 1:].unflatten(0, (8, 4))
    torch.testing.assert_close(grid[..., 1], torch.arange(4.0).expand(8, 4))
    assert torch.equal(grid[..., 0], grid[:, :1, 0].expand(8, 4))
    assert bool((grid[1:, 0, 0] > grid[:-1, 0, 0]).all())
    assert interpolated(square, (4, 4)) is square


def test_blocks_are_dropped_for_some_images_and_the_mean_stays():
    config = ViTClassifier(**SMALL | {"layers": 1}, drop_path=0.0)
    block = TokenViT(config, 4, (2, 2), 2).blocks[0]
    block.drop = 0.4
    x = torch.randn(1, 5, 16, generator=source(7)).expand(3000, -1, -1)
    torch.manual_seed(0)
    kept = block.train()._kept(x)
    factors = (kept / x)[:, 0, 0]
    assert sorted({round(value, 4) for value in factors.tolist()}) == [0.0, round(1 / 0.6, 4)]
    assert factors.mean().item() == pytest.approx(1.0, abs=4 * (0.4 / 0.6 / 3000) ** 0.5)
    assert torch.equal(block.eval()._kept(x), x)
