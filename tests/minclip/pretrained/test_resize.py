"""Pretrained sizes change on request only, and by the stated laws."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minclip.clip import CLIPConfig
from minclip.data.transforms import TransformConfig
from minclip.pretrained import load_image_tower, pretrained_towers, save_image_tower
from minclip.pretrained.resize import grid_of, resize_image, resize_text
from minclip.towers.modified_resnet import ModifiedResNet, ModifiedResNetConfig
from minclip.towers.resnet import ResNet, ResNetConfig
from minclip.towers.text import BertTextConfig, BertTextEncoder
from minclip.towers.vit import VisionTransformer, VisionTransformerConfig

VIT = VisionTransformerConfig(d_model=8, n_heads=2, n_layers=1, image_size=(16, 24), patch_size=(8, 8))
RESNET = ModifiedResNetConfig(d_model=4, n_heads=2, depths=(1, 1, 1, 1), image_size=(64, 32))
TEXT = BertTextConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=12, context_length=7)


@pytest.mark.parametrize("size", [None, (16, 24)])
def test_at_equal_size_nothing_changes(size):
    weights = VisionTransformer(VIT).state_dict()
    config, same = resize_image(VIT, weights, size, antialias=True)
    assert config is VIT
    assert all(same[name] is value for name, value in weights.items())


@given(st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_a_resized_vit_takes_the_new_images(rows, columns, antialias):
    size = (8 * rows, 8 * columns)
    config, weights = resize_image(VIT, VisionTransformer(VIT).state_dict(), size, antialias)
    tower = VisionTransformer(config)
    tower.load_state_dict(weights)
    assert tower(torch.randn(1, 3, *size)).shape == (1, 8)
    # bicubic weights sum to one: a table that is the same everywhere stays the same
    flat = {"positions": torch.ones(7, 8)}
    _, resized = resize_image(VIT, flat, size, antialias)
    torch.testing.assert_close(resized["positions"], torch.ones(1 + rows * columns, 8))


def test_the_attention_pooling_of_clips_resnet_is_resized_too():
    weights = ModifiedResNet(RESNET).state_dict()
    assert grid_of(RESNET) == (2, 1)
    config, resized = resize_image(RESNET, weights, (96, 64), antialias=True)
    tower = ModifiedResNet(config).eval()
    tower.load_state_dict(resized)
    assert torch.equal(resized["attention_pooling.positions"][0], weights["attention_pooling.positions"][0])
    assert tower(torch.randn(1, 3, 96, 64)).shape == (1, 128)


def test_a_network_without_positions_takes_any_size():
    config = ResNetConfig(depths=(1, 1), d_model=4)
    weights = ResNet(config).state_dict()
    resized, same = resize_image(config, weights, (40, 32), antialias=True)
    assert resized.image_size == (40, 32)
    assert same is weights


@pytest.mark.parametrize(
    "norm_input, antialias", [(True, True), (False, False)], ids=["timm", "Hugging Face"]
)
@pytest.mark.parametrize("size", [(8, 16), (24, 40)])
def test_positions_are_resized_as_the_owner_of_the_file_does(norm_input, antialias, size, tmp_path):
    """The same positions, written for timm (a ViT with norm_input) and for Hugging Face (one without)."""
    tower = VisionTransformer(replace(VIT, norm_input=norm_input))
    save_image_tower(tower, TransformConfig(), tmp_path)
    positions = load_image_tower(tmp_path, image_size=size).positions
    grid = load_image_tower(tmp_path).positions[1:].T.reshape(1, 8, 2, 3)
    new_grid = size[0] // 8, size[1] // 8
    expected = F.interpolate(grid, new_grid, mode="bicubic", align_corners=False, antialias=antialias)
    torch.testing.assert_close(positions[1:], expected.flatten(2)[0].T)
    config = CLIPConfig(image=replace(VIT, image_size=size, weights=str(tmp_path)))
    assert torch.equal(pretrained_towers(config)[1]["image_tower.positions"], positions)


def test_vocabularies_and_contexts():
    weights = BertTextEncoder(TEXT).state_dict()
    tokens, positions = weights["embedding.tokens.weight"], weights["embedding.positions.weight"]
    config, same = resize_text(TEXT, weights)
    assert config == TEXT
    assert same["embedding.tokens.weight"] is tokens
    config, larger = resize_text(TEXT, weights, vocab_size=15, context_length=5)
    assert (config.vocab_size, config.context_length) == (15, 5)
    assert torch.equal(larger["embedding.tokens.weight"][:12], tokens)
    torch.testing.assert_close(larger["embedding.tokens.weight"][12:], tokens.mean(dim=0).expand(3, -1))
    assert torch.equal(larger["embedding.positions.weight"], positions[:5])
    BertTextEncoder(config).load_state_dict(larger)
    _, smaller = resize_text(TEXT, weights, vocab_size=10)
    assert torch.equal(smaller["embedding.tokens.weight"], tokens[:10])
    with pytest.raises(ValueError, match="context_length=8 is longer than the 7 positions of these weights"):
        resize_text(TEXT, weights, context_length=8)
