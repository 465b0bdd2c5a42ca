"""Formats are recognised, and files that do not fit are refused in one line that names the reason."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from minclip.clip import TOWERS
from minclip.data.tokenizer import WordPiece
from minclip.data.transforms import TransformConfig
from minclip.pretrained import (
    export,
    is_published,
    load_clip,
    load_clip_model,
    load_image_tower,
    load_text_tower,
    save_image_tower,
    save_text_tower,
)
from minclip.towers.resnet import ResNetConfig
from minclip.towers.vit import VisionTransformerConfig
from tests.minclip.pretrained.published import (
    CLIP_VIT,
    IMAGE_CONFIGS,
    TEXT_CONFIGS,
    VIT,
    WORDS,
    drawn_clip,
    drawn_tower,
    hf_folder,
    loads_or_says_why,
    openai_file,
    spoil,
    text_config,
    token_batch,
    transform_of,
)


@pytest.mark.parametrize("config", IMAGE_CONFIGS, ids=lambda config: type(config).__name__)
def test_image_towers_come_back(config, tmp_path):
    tower = drawn_tower(config)
    save_image_tower(tower, TransformConfig(), tmp_path)
    # a state dict that does not name its network shows no image size
    given = {"image_size": config.image_size} if isinstance(config, ResNetConfig) else {}
    again = load_image_tower(tmp_path, **given)
    assert not again.training
    images = torch.randn(2, 3, *config.image_size)
    torch.testing.assert_close(again(images), tower(images))
    torch.testing.assert_close(again.forward_tokens(images), tower.forward_tokens(images))
    assert again(images).shape == (2, again.width)


@pytest.mark.parametrize("config", TEXT_CONFIGS, ids=lambda config: type(config).__name__)
def test_text_towers_come_back(config, tmp_path):
    tower = drawn_tower(config)
    save_text_tower(tower, WORDS, tmp_path)
    again = load_text_tower(tmp_path)
    assert torch.equal(again(*token_batch()), tower(*token_batch()))
    assert (
        again.config.pool == config.pool if hasattr(config, "pool") else again.config.end_id == config.end_id
    )
    assert WordPiece.load(tmp_path).digest == WORDS.digest


def test_the_activation_is_read_from_the_config(tmp_path):
    """The same tensors with another activation are another function, in both formats that name it."""
    for activation, name in (("gelu", "open_clip"), ("quick_gelu", "hf-clip"), ("gelu", "hf-clip")):
        folder = tmp_path / f"{name}-{activation}"
        model = drawn_clip(
            replace(CLIP_VIT, activation=activation), replace(text_config(), activation=activation)
        )
        export(model, WORDS, transform_of(model), folder, name)
        again = load_clip_model(folder)
        assert again.config.text.activation == again.config.image.activation == activation


def test_another_image_size_on_request_only(tmp_path):
    openai_file(tmp_path)
    assert load_clip_model(tmp_path).config.image.image_size == (16, 16)
    resized = load_clip_model(tmp_path, image_size=(24, 32))
    assert resized.image_tower.positions.shape == (13, 64)
    assert resized.image_tower(torch.randn(1, 3, 24, 32)).shape == (1, 64)


def test_unused_and_missing_tensors_are_named(tmp_path):
    hf_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"vision_model.head.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"1 not used: vision_model.head.weight$"):
        load_clip_model(tmp_path)
    short = {name: x for name, x in tensors.items() if name != "vision_model.post_layernorm.bias"}
    save_file(short, path)
    with pytest.raises(ValueError, match=r"1 not filled: image_tower.transformer.norm.bias$"):
        load_clip_model(tmp_path)
    save_file({"a.b": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"holds no CLIP of a known format \(.*\): its tensors are a.b, ..."):
        load_clip_model(tmp_path)


def test_unknown_formats_are_refused(tmp_path):
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError,
        match=r"holds no image tower of a known format \(torchvision's or timm's ResNet, .*its tensors are some.weight",
    ):
        load_image_tower(tmp_path)
    with pytest.raises(ValueError, match=r"holds no text tower of a known format \(BERT, DistilBERT, GPT-2"):
        load_text_tower(tmp_path)


def test_heads_and_activation_are_never_guessed(tmp_path):
    save_image_tower(drawn_tower(IMAGE_CONFIGS[2]), TransformConfig(), tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="places, which is not a square grid"):
        load_image_tower(tmp_path)
    save_image_tower(
        drawn_tower(VisionTransformerConfig(**(VIT | {"image_size": (16, 16)}))), TransformConfig(), tmp_path
    )
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"does not say n_heads, activation: put its config.json beside it"):
        load_image_tower(tmp_path)
    assert load_image_tower(tmp_path, n_heads=2, activation="gelu", trained_blocks=0).frozen


@pytest.mark.parametrize("given", [{"n_heads": 4}, {"activation": "relu"}])
def test_options_that_contradict_the_file_are_refused(given, tmp_path):
    """Other heads or another activation are another function of the same weights, and nothing else would show it."""
    config = VisionTransformerConfig(**VIT)
    save_image_tower(TOWERS[VisionTransformerConfig](config), TransformConfig(), tmp_path)
    assert load_image_tower(tmp_path, n_heads=2, activation="gelu").config.n_heads == 2
    name, value = next(iter(given.items()))
    with pytest.raises(ValueError, match=f"says {name}=.*, not {value!r}: the two must agree"):
        load_image_tower(tmp_path, **given)


@pytest.mark.parametrize(
    "config", [IMAGE_CONFIGS[2], *TEXT_CONFIGS], ids=lambda config: type(config).__name__
)
@given(data=st.data())
def test_odd_configs_are_one_line(config, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    if isinstance(config, VisionTransformerConfig):
        save_image_tower(TOWERS[type(config)](config), TransformConfig(), folder)
    else:
        save_text_tower(TOWERS[type(config)](config), WORDS, folder)
    spoil(folder / "config.json", data)
    loads_or_says_why(
        load_image_tower if isinstance(config, VisionTransformerConfig) else load_text_tower, folder
    )


@pytest.mark.parametrize(
    "config", [IMAGE_CONFIGS[2], *TEXT_CONFIGS], ids=lambda config: type(config).__name__
)
def test_hostile_sizes_are_refused_before_anything_is_built(config, tmp_path):
    """Each number of the config at a time: a billion Blocks, an image of 10^60 pixels."""
    image = isinstance(config, VisionTransformerConfig)
    if image:
        save_image_tower(drawn_tower(config), TransformConfig(), tmp_path)
    else:
        save_text_tower(drawn_tower(config), WORDS, tmp_path)
    path = tmp_path / "config.json"
    options = json.loads(path.read_text())
    numbers = [
        name for name, value in options.items() if type(value) is int and not name.endswith("token_id")
    ]
    assert len(numbers) >= 5
    for name in numbers:
        for hostile in (10**9, 10**30):
            path.write_text(json.dumps(options | {name: hostile}))
            with pytest.raises(ValueError, match=f"^{tmp_path}.*{hostile}"):
                (load_image_tower if image else load_text_tower)(tmp_path)
    if image:
        path.write_text(json.dumps(options | {"image_size": [10**30, 10**30]}))
        with pytest.raises(ValueError, match="its positions are for 6 patches"):
            load_image_tower(tmp_path)


@pytest.mark.parametrize(
    "to, name", [("open_clip", "open_clip_config"), ("hf-clip", "config"), ("hf-clip", "pre*")]
)
@given(data=st.data())
def test_odd_configs_of_clips_are_one_line(to, name, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    model = drawn_clip()
    export(model, WORDS, transform_of(model), folder, to)
    [path] = folder.glob(f"{name}.json")
    spoil(path, data)
    loads_or_says_why(load_clip, folder)


def test_published_files_differ_from_runs(tmp_path):
    model = hf_folder(tmp_path / "hf")
    export(model, WORDS, transform_of(model), tmp_path / "run", "safetensors")
    openai_file(tmp_path / "openai")
    assert is_published(tmp_path / "hf")
    assert is_published(tmp_path / "openai")
    assert is_published(tmp_path / "openai" / "model.pt")
    assert not is_published(tmp_path / "run")
    assert not is_published(tmp_path / "nowhere")
