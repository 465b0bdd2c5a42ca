"""A run that starts from pretrained towers takes their sizes and weights, and keeps what it decides itself."""

from dataclasses import replace

import pytest
import torch

from minclip.clip import CLIP, CLIPConfig
from minclip.data.transforms import TransformConfig
from minclip.pretrained import pretrained_towers, save_image_tower, save_text_tower
from minclip.towers.text import BertTextConfig, GPTTextConfig
from minclip.towers.vit import VisionTransformer, VisionTransformerConfig
from tests.minclip.pretrained.published import IMAGE_CONFIGS, TEXT_CONFIGS, WORDS, drawn_tower

ASKED = {"trained_blocks": 1, "lr_factor": 0.1, "dropout": 0.2, "attention_dropout": 0.3}


def config_for(folder, **text) -> CLIPConfig:
    return CLIPConfig(
        image=VisionTransformerConfig(image_size=(24, 16), weights=str(folder / "image"), **ASKED),
        text=BertTextConfig(
            weights=str(folder / "text"),
            vocab_size=WORDS.vocab_size,
            vocab_digest="d",
            **{"context_length": 6, "pool": "mean"} | text,
            **ASKED,
        ),
    )


@pytest.fixture
def folder(tmp_path):
    save_image_tower(drawn_tower(IMAGE_CONFIGS[2]), TransformConfig(), tmp_path / "image")
    save_text_tower(drawn_tower(TEXT_CONFIGS[1]), WORDS, tmp_path / "text")
    return tmp_path


def test_sizes_from_the_files_the_rest_from_the_run(folder):
    config, weights = pretrained_towers(config_for(folder))
    assert (config.image.d_model, config.image.n_layers, config.image.patch_size) == (8, 2, (8, 8))
    assert (config.text.activation, config.text.token_types, config.text.norm_eps) == ("relu", 2, 1e-5)
    for tower in (config.image, config.text):
        assert {name: getattr(tower, name) for name in ASKED} == ASKED
    assert config.image.image_size == (24, 16)
    assert (config.text.context_length, config.text.pool, config.text.vocab_digest) == (6, "mean", "d")
    model = CLIP(config)
    assert model.image_tower.transformer.blocks[-1].attention.dropout == 0.3
    left = model.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) == {"image_projection.weight", "text_projection.weight", "logit_scale"}
    assert not model.image_tower.patch_embedding.weight.requires_grad
    assert model.image_tower.transformer.blocks[-1].mlp.fc1.weight.requires_grad
    assert torch.equal(model.text_tower.norm.weight, weights["text_tower.norm.weight"])


def test_without_files_nothing_happens():
    config = CLIPConfig()
    assert pretrained_towers(config) == (config, {})


def test_the_pooler_is_loaded_on_request(folder):
    _, weights = pretrained_towers(config_for(folder, pool="pooler"))
    assert "text_tower.pooler.weight" in weights


def test_what_does_not_fit_the_run_is_refused(folder):
    config = config_for(folder)
    other_kind = (
        r"is a tower for BertTextConfig, the config has GPTTextConfig: take one of --preset flickr8k, .*, "
        r'or a --config FILE with "type": "BertTextConfig" in its "text"$'
    )
    with pytest.raises(ValueError, match=other_kind):
        pretrained_towers(replace(config, text=GPTTextConfig(weights=str(folder / "text"))))
    with pytest.raises(
        ValueError, match=r"knows 36 tokens, the vocabulary has 40: give the one .* --vocabulary"
    ):
        pretrained_towers(replace(config, text=replace(config.text, vocab_size=40)))
    with pytest.raises(ValueError, match="context_length=12 is longer than the 9 positions"):
        pretrained_towers(config_for(folder, context_length=12))
    with pytest.raises(ValueError, match="no weights at"):
        pretrained_towers(replace(config, image=replace(config.image, weights="nowhere")))


def vit_file(folder, pool):
    """Write a ViT with this pooling, in timm's layout or, with a class token, in Hugging Face's."""
    size = {"d_model": 8, "n_heads": 2, "n_layers": 1, "image_size": (16, 16), "norm_eps": 1e-6}
    tower = drawn_tower(VisionTransformerConfig(**size, pool=pool))
    save_image_tower(tower, TransformConfig(), folder)
    return tower


@pytest.mark.parametrize("asked", ["class", "mean", "mean_norm", "last"])
@pytest.mark.parametrize("stored", ["class", "mean", "mean_norm"])
def test_the_pooling_is_as_requested_or_refused(stored, asked, tmp_path):
    """The mean and the last patch are pooled from the same weights; other poolings need others."""
    tower = vit_file(tmp_path, stored)
    wanted = VisionTransformerConfig(image_size=(16, 16), pool=asked, weights=str(tmp_path))
    if stored == asked or {stored, asked} == {"mean", "last"}:
        config, weights = pretrained_towers(CLIPConfig(image=wanted))
        again = VisionTransformer(config.image).eval()
        again.load_state_dict({name.removeprefix("image_tower."): x for name, x in weights.items()})
        images = torch.randn(2, 3, 16, 16)
        hidden = tower.forward_tokens(images)
        expected = hidden[:, -1] if asked == "last" else tower(images)
        torch.testing.assert_close(again(images), expected)
        return
    with pytest.raises(
        ValueError, match=rf"image.pool={asked} needs other weights .*: give --image.pool {stored}$"
    ):
        pretrained_towers(CLIPConfig(image=wanted))


@pytest.mark.parametrize("option", [{"dropout": 0.1}, {"attention_dropout": 0.1}, {"patch_dropout": 0.1}])
def test_options_that_the_files_tower_lacks_are_refused(option, tmp_path):
    save_image_tower(drawn_tower(IMAGE_CONFIGS[0]), TransformConfig(), tmp_path)
    wanted = VisionTransformerConfig(image_size=(32, 32), weights=str(tmp_path / "model.safetensors"))
    assert pretrained_towers(CLIPConfig(image=wanted))[0].image.depths == (1, 2)
    name = next(iter(option))
    with pytest.raises(
        ValueError, match=f"is a tower for ResNetConfig, which has no {name}=0.1: leave {name} out$"
    ):
        pretrained_towers(CLIPConfig(image=replace(wanted, **option)))
