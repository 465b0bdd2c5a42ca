"""Vision Transformers of timm and of transformers."""

import random
from functools import partial
from tempfile import TemporaryDirectory

import pytest
import torch

from minclip.data.transforms import TransformConfig
from minclip.pretrained import load_image_tower, save_image_tower
from minclip.pretrained.load import plan_tower, read_source
from minlm.pretrained.weight_files import read_weights
from tests.parity.drawing import agree, assert_identity, difference, randomise, save

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
BOTH = (torch.float32, torch.float64)


def saved_tensors(model):
    """Return the tensors under the names of its files, which in newer versions differ from its parameters'."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return read_weights(folder).tensors


def compare(path, theirs, run_theirs, prefix="", dtypes=BOTH, names=None, **given):
    """Compare the tower in `path` with theirs; run_theirs: images -> (tokens, features)."""
    ours = load_image_tower(path, **given)
    source = read_source(path)
    rows = plan_tower(source, "image tower", given).rows
    assert_identity(ours, rows, source.tensors)
    images = torch.randn(2, 3, *ours.config.image_size)

    def run(dtype):
        x = images.to(dtype)
        return [ours.forward_tokens(x), ours(x)], list(run_theirs(x))

    more = {"saved_names": names} if names else {}
    agree(ours, theirs, rows, run, their_prefix=prefix, dtypes=dtypes, **more)
    return ours.float(), images


def timm_outputs(model, x):
    tokens = model.forward_features(x)
    return tokens, model.forward_head(tokens, pre_logits=True)


def draw_timm(seed: int):
    """Draw a ViT of timm; return it with the options that its bare state dict lacks."""
    rng = random.Random(f"timm/{seed}")
    heads, patch = rng.choice([1, 2, 3]), rng.choice([4, 8])
    options = {"class_token": False, "global_pool": "avg", "fc_norm": seed % 4 == 1} if seed % 2 else {}
    if seed % 3 == 0:
        options |= {"pre_norm": True, "norm_layer": partial(torch.nn.LayerNorm, eps=1e-5)}
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=patch * rng.randint(1, 4),
        patch_size=patch,
        embed_dim=heads * 8,
        depth=rng.randint(1, 3),
        num_heads=heads,
        mlp_ratio=rng.choice([2, 4]),
        num_classes=rng.choice([0, 5]),
        **options,
    )
    return randomise(model, seed), {"n_heads": heads, "activation": "gelu"}


@pytest.mark.parametrize("seed", range(6))
def test_drawn_vits_of_timm(seed, tmp_path):
    theirs, given = draw_timm(seed)
    compare(save(theirs, tmp_path / "vit.bin"), theirs, partial(timm_outputs, theirs), **given)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch32_clip_quickgelu_224"])
def test_folders_of_timm_say_everything(name, tmp_path):
    """Not square, heads and activation from the architecture's name."""
    theirs = randomise(timm.create_model(name, img_size=(64, 96), num_classes=3, depth=2), 1)
    timm.models.save_for_hf(theirs, tmp_path, safe_serialization=True)
    compare(tmp_path, theirs, partial(timm_outputs, theirs), dtypes=(torch.float32,))


def test_published_size_of_timm(tmp_path):
    """ViT-B/16."""
    theirs = randomise(timm.create_model("vit_base_patch16_224"), 2)
    timm.models.save_for_hf(theirs, tmp_path, safe_serialization=True)
    compare(tmp_path, theirs, partial(timm_outputs, theirs), dtypes=(torch.float32,))


def test_a_mean_beside_a_class_token_is_refused(tmp_path):
    theirs = timm.models.vision_transformer.VisionTransformer(
        8, 4, embed_dim=8, depth=1, num_heads=2, global_pool="avg"
    )
    with pytest.raises(ValueError, match="beside a class token"):
        load_image_tower(save(theirs, tmp_path / "vit.bin"), n_heads=2, activation="gelu")


def draw_hf(seed: int):
    rng = random.Random(f"vit/{seed}")
    heads, patch = rng.choice([1, 2, 3]), rng.choice([4, 8])
    return transformers.ViTConfig(
        hidden_size=heads * 8,
        num_attention_heads=heads,
        num_hidden_layers=rng.randint(1, 3),
        intermediate_size=rng.choice([12, 32]),
        image_size=[patch * rng.randint(1, 4), patch * rng.randint(1, 4)],
        patch_size=patch,
        hidden_act=rng.choice(["gelu", "quick_gelu", "relu", "gelu_new"]),
        layer_norm_eps=rng.choice([1e-12, 1e-5]),
    )


def hf_outputs(model, x):
    tokens = model(x).last_hidden_state
    return tokens, tokens[:, 0]


@pytest.mark.parametrize("seed", range(4))
def test_drawn_vits_of_transformers(seed, tmp_path):
    bare = seed % 2 == 0
    kind = transformers.ViTModel if bare else transformers.ViTForImageClassification
    model = randomise(kind(draw_hf(seed)), seed)
    model.save_pretrained(tmp_path)
    theirs = model if bare else model.vit
    prefix = "" if bare else "vit."
    ours, images = compare(tmp_path, theirs, partial(hf_outputs, theirs), prefix, names=saved_tensors)
    save_image_tower(ours, TransformConfig(), tmp_path / "back")
    back = transformers.ViTModel.from_pretrained(tmp_path / "back", add_pooling_layer=False).eval()
    assert difference(back(images).last_hidden_state, theirs.float()(images).last_hidden_state) <= 1e-5


@pytest.mark.parametrize("seed", range(6))
def test_written_files_open_in_timm(seed, tmp_path):
    theirs, given = draw_timm(seed)
    ours = load_image_tower(save(theirs, tmp_path / "vit.bin"), **given)
    save_image_tower(ours, TransformConfig(), tmp_path / "out")
    images = torch.randn(2, 3, *ours.config.image_size)
    if ours.config.pool == "class" and not ours.config.norm_input:
        return  # written for transformers: test_drawn_vits_of_transformers
    back = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert difference(back(images), theirs.forward_head(theirs.forward_features(images), True)) <= 1e-5


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (21, 28), (9, 15)])
@pytest.mark.parametrize("n_extra", [0, 1])
def test_positions_are_interpolated_as_by_timm(size, n_extra, tmp_path):
    """Positions for 14 x 14 patches, shrunk and enlarged."""
    options = {} if n_extra else {"class_token": False, "global_pool": "avg", "fc_norm": False}
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=28, patch_size=2, embed_dim=8, depth=1, num_heads=2, num_classes=0, **options
    )
    path = save(randomise(theirs, 1), tmp_path / "vit.bin")
    pixels = (2 * size[0], 2 * size[1])
    ours = load_image_tower(path, n_heads=2, activation="gelu", image_size=pixels)
    positions = timm.layers.resample_abs_pos_embed(theirs.pos_embed, size, (14, 14), n_extra)
    assert difference(ours.positions, positions[0]) <= 1e-6
    theirs.set_input_size(pixels)
    images = torch.randn(2, 3, *pixels)
    assert difference(ours.forward_tokens(images), theirs.forward_features(images)) <= 1e-5


@pytest.mark.parametrize("side", [8, 16, 24])
def test_positions_are_interpolated_as_by_transformers(side, tmp_path):
    config = transformers.ViTConfig(
        hidden_size=8,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=8,
        image_size=16,
        patch_size=4,
    )
    theirs = randomise(transformers.ViTModel(config), 1)
    theirs.save_pretrained(tmp_path)
    ours = load_image_tower(tmp_path, image_size=(side, side))
    images = torch.randn(2, 3, side, side)
    expected = theirs(images, interpolate_pos_encoding=True).last_hidden_state
    assert difference(ours.forward_tokens(images), expected) <= 1e-5
