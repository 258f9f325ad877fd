"""Vision models in local folders: real architectures of small width, random weights, real loading.

The tests of full size are marked `soak`.
"""

import json

import pytest
import torch
import transformers
from feature_images import array_set, image_folder, random_pixels
from PIL import Image
from torch.nn import functional as F

from vqkit.cli import main
from vqkit.codebooks.encoders_transformers import TransformersEncoder
from vqkit.codebooks.encoding import cut_square
from vqkit.codebooks.extraction import extract

pytestmark = pytest.mark.slow

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}


def clip_config(**changes):
    """CLIP ViT-L/14 at 224: the true 16 x 16 grid, at a fraction of the width."""
    values = {**SMALL, "image_size": 224, "patch_size": 14, "projection_dim": 24}
    return transformers.CLIPVisionConfig(**{**values, **changes})


def resnet_config(**changes):
    """ResNet-50: bottlenecks, 3 + 4 + 6 + 3 of them, stride 32, at a fraction of the width."""
    values = {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 48], "depths": [3, 4, 6, 3]}
    return transformers.ResNetConfig(**{**values, **changes})


def saved(model, folder):
    """Save a model with random weights, normalisations included, in evaluation mode."""
    torch.manual_seed(0)
    for name, tensor in model.named_parameters():
        if tensor.dim() < 2 or "embedding" in name or "token" in name:
            torch.nn.init.normal_(tensor, std=0.5)
    model.eval().save_pretrained(folder)
    return model


def normalised(images, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
    return (images / 255 - mean) / std


def called(encoder, images):
    with torch.no_grad():
        return encoder(images)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "clip"
    model = transformers.CLIPVisionModelWithProjection(clip_config())
    return saved(model, folder), folder


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "resnet"
    return saved(transformers.ResNetModel(resnet_config()), folder), folder


@torch.no_grad()
def clip_features(model, images):
    """What VQGAN-LC's code does: every patch token through ln_post and the projection."""
    found = model(normalised(images, CLIP_MEAN, CLIP_STD), output_hidden_states=True)
    tokens = model.vision_model.post_layernorm(found.last_hidden_state)
    projected = model.visual_projection(tokens)
    torch.testing.assert_close(projected[:, 0], found.image_embeds)  # and so does the class token
    return projected[:, 1:].transpose(1, 2).unflatten(2, (16, 16))


def test_clip_features_are_projected_patches(clip):
    model, folder = clip
    images = random_pixels(2, 3, 224, 224)
    encoder = TransformersEncoder(folder)
    found = called(encoder, images)
    assert found.shape == (2, 24, 16, 16)
    torch.testing.assert_close(found, clip_features(model, images), atol=1e-5, rtol=1e-5)
    assert (encoder.size, encoder.resize, encoder.stride, encoder.pool) == (224, 224, 14, 4)
    facts = encoder.describe()
    assert facts["projected"]
    assert (facts["kind"], facts["name"], facts["layer"]) == ("transformers", "clip", -1)


def test_clip_with_both_towers_and_without_projection(clip, tmp_path):
    """A whole CLIP keeps its projection's width outside the settings of the vision tower."""
    vision = clip_config(projection_dim=512).to_dict()
    text = {**SMALL, "vocab_size": 50, "max_position_embeddings": 8, "projection_dim": 24}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    model = transformers.CLIPModel(config)
    state = clip[0].state_dict()
    model.load_state_dict(state, strict=False)
    model.save_pretrained(tmp_path / "both")
    images = random_pixels(1, 3, 224, 224)
    alone, both = TransformersEncoder(clip[1]), TransformersEncoder(tmp_path / "both")
    torch.testing.assert_close(called(both, images), called(alone, images))
    text_weights = [p for p in both._vision.parameters() if p.shape[0] == 50]
    assert not text_weights
    bare = transformers.CLIPVisionModel(clip_config())
    saved(bare, tmp_path / "bare")
    encoder = TransformersEncoder(tmp_path / "bare")
    assert called(encoder, images).shape == (1, 32, 16, 16)
    assert not encoder.describe()["projected"]


def test_layers_are_hidden_states_as_they_are(clip):
    model, folder = clip
    images = random_pixels(1, 3, 224, 224)
    with torch.no_grad():
        pixels = normalised(images, CLIP_MEAN, CLIP_STD)
        states = model(pixels, output_hidden_states=True).hidden_states
    for layer in (0, 1, -2, 2):
        found = called(TransformersEncoder(folder, layer=layer), images)
        expected = states[layer][:, 1:].transpose(1, 2).unflatten(2, (16, 16))
        torch.testing.assert_close(found, expected)
    for layer in (3, -4):
        with pytest.raises(ValueError, match=rf"^layer={layer}: clip_vision_model has hidden "):
            TransformersEncoder(folder, layer=layer)


def test_resnet_gives_its_map(resnet):
    model, folder = resnet
    images = random_pixels(2, 3, 224, 224)
    encoder = TransformersEncoder(folder)
    with torch.no_grad():
        expected = model(normalised(images)).last_hidden_state
    assert expected.shape == (2, 48, 7, 7)
    torch.testing.assert_close(called(encoder, images), expected)
    assert encoder.stride == 32
    third = called(TransformersEncoder(folder, layer=3), images)
    assert third.shape == (2, 32, 14, 14)


def test_mae_sees_every_patch_in_its_place(tmp_path):
    """Against the model's own shuffled run, put in order again by hand."""
    sizes = {f"decoder_{name}": 16 for name in ("hidden_size", "intermediate_size")}
    heads = {"decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1}
    config = transformers.ViTMAEConfig(**SMALL, **sizes, **heads)
    model = saved(transformers.ViTMAEForPreTraining(config), tmp_path / "mae").vit
    model.config.mask_ratio = 0.0
    images = random_pixels(2, 3, 64, 64)
    with torch.no_grad():
        noise = torch.rand(2, 16)
        shuffled = model(normalised(images), noise=noise).last_hidden_state[:, 1:]
    expected = torch.empty(2, 32, 16)
    for i in range(2):
        for place, patch in enumerate(noise[i].argsort()):
            expected[i, :, patch] = shuffled[i, place]
    encoder = TransformersEncoder(tmp_path / "mae")
    found = called(encoder, images)
    torch.testing.assert_close(found.flatten(2), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found, called(encoder, images))


def others():
    """Model, and what stands in front of its patches (None: it gives a map)."""
    four = {"depths": [1, 1, 1, 1]}
    swin = {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}
    dino = {**SMALL, "mlp_ratio": 2}
    siglip = transformers.SiglipVisionConfig(**SMALL)
    widths = {"hidden_sizes": [8, 16, 24, 32], "patch_size": 4}
    return {
        "vit": (transformers.ViTModel, transformers.ViTConfig(**SMALL), 1),
        "classifier": (transformers.ViTForImageClassification, transformers.ViTConfig(**SMALL), 1),
        "deit": (transformers.DeiTModel, transformers.DeiTConfig(**SMALL), 2),
        "beit": (transformers.BeitModel, transformers.BeitConfig(**SMALL), 1),
        "dinov2": (transformers.Dinov2Model, transformers.Dinov2Config(**dino), 1),
        "registers": (
            transformers.Dinov2WithRegistersModel,
            transformers.Dinov2WithRegistersConfig(**dino, num_register_tokens=4),
            5,
        ),
        "siglip": (transformers.SiglipVisionModel, siglip, 0),
        "swin": (transformers.SwinModel, transformers.SwinConfig(**swin, patch_size=4), 0),
        "convnext": (
            transformers.ConvNextModel,
            transformers.ConvNextConfig(**widths, **four),
            None,
        ),
    }


@pytest.mark.parametrize("name", others())
def test_other_models(name, tmp_path):
    kind, config, front = others()[name]
    model = saved(kind(config), tmp_path / name)
    size = getattr(config, "image_size", 224) or 224
    size = size if isinstance(size, int) else size[0]
    encoder = TransformersEncoder(tmp_path / name)
    images = random_pixels(2, 3, encoder.size, encoder.size)
    half = name in ("vit", "classifier", "beit", "siglip")
    statistics = ((0.5,) * 3, (0.5,) * 3) if half else (IMAGENET_MEAN, IMAGENET_STD)
    body = getattr(model, "vit", model)
    with torch.no_grad():
        expected = body(normalised(images, *statistics)).last_hidden_state
    if front is not None:
        side = round((expected.shape[1] - front) ** 0.5)
        expected = expected[:, front:].transpose(1, 2).unflatten(2, (side, side))
    torch.testing.assert_close(called(encoder, images), expected, atol=1e-5, rtol=1e-5)
    assert encoder.dim == expected.shape[1]


def test_preprocessing_is_that_of_the_folder(clip, resnet, tmp_path):
    def with_settings(source, name, **values):
        folder = tmp_path / name
        folder.mkdir()
        for file in source.iterdir():
            (folder / file.name).symlink_to(file)
        (folder / "preprocessor_config.json").write_text(json.dumps(values))
        return TransformersEncoder(folder)

    published = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    encoder = with_settings(clip[1], "crop", do_center_crop=True, **published)
    assert (encoder.size, encoder.resize) == (224, 256)
    encoder = with_settings(resnet[1], "share", size={"shortest_edge": 224}, crop_pct=0.875)
    assert (encoder.size, encoder.resize) == (224, 256)
    encoder = with_settings(resnet[1], "square", size={"height": 96, "width": 96})
    assert (encoder.size, encoder.resize) == (96, 96)
    values = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "size": 64}
    encoder = with_settings(resnet[1], "statistics", **values)
    images = random_pixels(1, 3, 64, 64)
    with torch.no_grad():
        pixels = normalised(images, values["image_mean"], values["image_std"])
        expected = resnet[0](pixels).last_hidden_state
    torch.testing.assert_close(called(encoder, images), expected)
    with pytest.raises(ValueError, match=r"image_std=\[0.2\]: need 3 numbers each"):
        with_settings(resnet[1], "bad", image_std=[0.2])
    with pytest.raises(ValueError, match=r"cannot encode an image of 64 x 64"):
        with_settings(clip[1], "small", size=64)


@pytest.mark.parametrize("shape", [(330, 480), (101, 75), (224, 224), (224, 301)])
def test_images_become_what_the_published_processor_makes_of_them(shape, clip, tmp_path):
    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    processor = kind(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    image = random_pixels(1, 3, *shape)[0]
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    encoder = TransformersEncoder(clip[1])
    square = torch.tensor(cut_square(image.numpy(), encoder.size, encoder.resize).copy())
    found = encoder._preprocessing.normalised(square[None])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_a_size_of_ones_own(resnet):
    encoder = TransformersEncoder(resnet[1], size=96)
    assert called(encoder, random_pixels(1, 3, 96, 96)).shape == (1, 48, 3, 3)


def test_sharded_weights_and_half_precision(clip, tmp_path):
    model, folder = clip
    model.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    assert (tmp_path / "parts" / "model.safetensors.index.json").exists()
    images = random_pixels(1, 3, 224, 224)
    found = called(TransformersEncoder(tmp_path / "parts"), images)
    torch.testing.assert_close(found, called(TransformersEncoder(folder), images))
    half = transformers.CLIPVisionModelWithProjection.from_pretrained(folder).half()
    half.save_pretrained(tmp_path / "half")
    found = called(TransformersEncoder(tmp_path / "half"), images)
    assert found.dtype == torch.float32
    expected = clip_features(half.float(), images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_folders_that_cannot_be_used(clip, tmp_path):
    with pytest.raises(ValueError, match="nowhere: is no folder; name one with a saved model"):
        TransformersEncoder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no config.json; name a folder"):
        TransformersEncoder(tmp_path)
    config, weights = (clip[1] / name for name in ("config.json", "model.safetensors"))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes(config.read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(ValueError, match=r"has no model.safetensors; pickled weights are not"):
        TransformersEncoder(pickled)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    transformers.ResNetModel(resnet_config()).save_pretrained(foreign)
    (foreign / "model.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(ValueError, match=r"its weights lack \d+ tensors of resnet \(first: "):
        TransformersEncoder(foreign)
    (foreign / "model.safetensors").write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="foreign: transformers cannot load it"):
        TransformersEncoder(foreign)
    unknown = {"model_type": "never_heard_of"}
    (foreign / "config.json").write_text(json.dumps(unknown))
    with pytest.raises(ValueError, match=r"foreign: transformers cannot load it .*never_heard_of"):
        TransformersEncoder(foreign)


def test_models_without_a_grid_of_features(tmp_path):
    text = {**SMALL, "vocab_size": 50, "max_position_embeddings": 8}
    del text["image_size"], text["patch_size"]
    transformers.BertModel(transformers.BertConfig(**text)).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match=r"text: cannot encode an image of 224 x 224"):
        TransformersEncoder(tmp_path / "text")
    config = transformers.YolosConfig(**{**SMALL, "image_size": [64, 64]}, num_detection_tokens=7)
    transformers.YolosModel(config).save_pretrained(tmp_path / "yolos")
    with pytest.raises(ValueError, match=r"gives 24 tokens for an image, which are not 4 x 4"):
        TransformersEncoder(tmp_path / "yolos", size=64)


def test_from_images_to_features(clip, tmp_path):
    """The whole path of a command: shorter side, middle square, 16 x 16 grid, 4 x 4 means."""
    data = image_folder(tmp_path / "images", [(224, 224), (240, 300), (100, 90)], ["cat", "dog"])
    words = ["codebook", "extract", str(tmp_path / "out"), "--path", data.path]
    assert main([*words, "--encoder", str(clip[1]), "--dtype", "float32", "--device", "cpu"]) == 0
    found = extract(data, TransformersEncoder(clip[1]), tmp_path / "out", dtype="float32")
    assert (found.num_vectors, found.dim) == (3 * 16, 24)
    assert found.group_names == ("cat", "dog")
    assert found.groups().tolist() == [0] * 32 + [1] * 16  # files of a class follow one another
    pixels = random_pixels(1, 3, 224, 224, seed=0)  # the first image has the model's size
    expected = F.avg_pool2d(clip_features(clip[0], pixels), 4).flatten(2)[0].T
    torch.testing.assert_close(found.read(0, 16), expected, atol=1e-5, rtol=1e-5)


def test_half_the_precision_is_close(clip, tmp_path):
    images = array_set(random_pixels(3, 3, 224, 224))
    encoder = TransformersEncoder(clip[1])
    full = extract(images, encoder, tmp_path / "full").read(0, 48).float()
    half = extract(images, encoder, tmp_path / "half", precision="bf16").read(0, 48).float()
    assert not torch.equal(full, half)
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["clip", "resnet"])
def test_at_full_size(name, tmp_path):
    """CLIP ViT-L/14 and ResNet-50 as published, but for the values of their weights."""
    if name == "clip":
        sizes = {"hidden_size": 1024, "intermediate_size": 4096, "projection_dim": 768}
        depth = {"num_hidden_layers": 24, "num_attention_heads": 16}
        config = clip_config(**sizes, **depth)
        model, dim = transformers.CLIPVisionModelWithProjection(config), 768
    else:
        model, dim = transformers.ResNetModel(transformers.ResNetConfig()), 2048
    saved(model, tmp_path / name)
    images = random_pixels(2, 3, 224, 224)
    found = extract(
        array_set(images), TransformersEncoder(tmp_path / name), tmp_path / "out", dtype="float32"
    )
    assert (found.num_vectors, found.dim) == (32, dim)
    with torch.no_grad():
        grid = (
            clip_features(model, images)
            if name == "clip"
            else model(normalised(images)).last_hidden_state
        )
    expected = F.adaptive_avg_pool2d(grid, 4).flatten(2).transpose(1, 2).reshape(32, dim)
    torch.testing.assert_close(found.read(0, 32), expected, atol=1e-3, rtol=1e-3)
