"""A run that starts from pretrained towers takes their sizes and weights, and keeps what it decides itself."""

from dataclasses import replace

import pytest
import torch

from minclip.clip import CLIP, CLIPConfig
from minclip.pretrained import pretrained_towers, save_image_tower, save_text_tower
from minclip.text import BertTextConfig, GPTTextConfig
from minclip.transforms import TransformConfig
from minclip.vit import VisionTransformerConfig
from tests.minclip.test_pretrained_towers import IMAGE_CONFIGS, TEXT_CONFIGS, WORDS, drawn

ASKED = {"trained_blocks": 1, "lr_factor": 0.1, "dropout": 0.2}


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
    save_image_tower(drawn(IMAGE_CONFIGS[2]), TransformConfig(), tmp_path / "image")
    save_text_tower(drawn(TEXT_CONFIGS[1]), WORDS, tmp_path / "text")
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
    left = model.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) == {"image_projection.weight", "text_projection.weight", "logit_scale"}
    assert not model.image_tower.patch_embedding.weight.requires_grad
    assert model.image_tower.transformer.blocks[-1].mlp.fc1.weight.requires_grad
    assert torch.equal(model.text_tower.norm.weight, weights["text_tower.norm.weight"])


def test_without_files_nothing_happens():
    config = CLIPConfig()
    assert pretrained_towers(config) == (config, {})


def test_the_poolers_layer_comes_where_it_is_asked_for(folder):
    _, weights = pretrained_towers(config_for(folder, pool="pooler"))
    assert "text_tower.pooler.weight" in weights


def test_what_does_not_fit_the_run_is_refused(folder):
    config = config_for(folder)
    with pytest.raises(ValueError, match="is a tower for BertTextConfig, the config has GPTTextConfig"):
        pretrained_towers(replace(config, text=GPTTextConfig(weights=str(folder / "text"))))
    with pytest.raises(
        ValueError, match=r"knows 36 tokens, the vocabulary has 40: give the one .* --vocabulary"
    ):
        pretrained_towers(replace(config, text=replace(config.text, vocab_size=40)))
    with pytest.raises(ValueError, match="context_length=12 is longer than the 9 positions"):
        pretrained_towers(config_for(folder, context_length=12))
    with pytest.raises(ValueError, match="no weights at"):
        pretrained_towers(replace(config, image=replace(config.image, weights="nowhere")))
