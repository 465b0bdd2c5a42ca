"""Every published model that the presets name can be expressed, and has its published number of parameters."""

from dataclasses import replace

import pytest
import torch

from minclip.clip import CLIP, CLIPConfig
from minclip.presets import DISTILBERT, FULL, RESNET50, VIT_B16
from minclip.towers.modified_resnet import ModifiedResNetConfig
from minclip.towers.text import GPTTextConfig

BERT = replace(DISTILBERT, n_layers=12, pool="pooler", token_types=2)
CLIP_TEXT = GPTTextConfig(
    d_model=512, n_heads=8, n_layers=12, vocab_size=49408, context_length=77, activation="quick_gelu"
)
CLIP_VIT_B_32 = replace(VIT_B16, patch_size=(32, 32), norm_input=True, norm_eps=1e-5, activation="quick_gelu")


def built(config: CLIPConfig) -> CLIP:
    with torch.device("meta"):
        return CLIP(config)


def n_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    "side, config, published",
    [
        ("image", VIT_B16, 85_798_656),
        ("image", RESNET50, 23_508_032),
        ("text", BERT, 109_482_240),
        ("text", DISTILBERT, 66_362_880),
        ("text", CLIP_TEXT, 63_428_097 - 512 * 512 - 1),  # CLIP's text side, less projection and scale
    ],
    ids=["ViT-B/16", "ResNet-50", "BERT-base", "DistilBERT", "CLIP-text"],
)
def test_towers(side, config, published):
    model = built(CLIPConfig(**{side: config}))
    assert n_parameters(getattr(model, f"{side}_tower")) == published


def test_clips():
    """The ViT's patch embedding has a bias here, unlike CLIP's: 768 more parameters."""
    vit = built(CLIPConfig(image=CLIP_VIT_B_32, text=CLIP_TEXT, embed_dim=512))
    assert n_parameters(vit) == 151_277_313 + 768
    resnet = built(CLIPConfig(image=ModifiedResNetConfig(), text=CLIP_TEXT, embed_dim=1024))
    assert n_parameters(resnet.image_tower) + n_parameters(resnet.image_projection) == 38_316_896
    assert n_parameters(resnet) == 102_007_137


# What stands on top of the towers: heads and logit_scale.
RESIDUAL = sum(width * 256 + 256 + 256 * 256 + 256 + 2 * 256 for width in (2048, 768)) + 1
HEADS = {
    "resnet50-distilbert-flickr8k": RESIDUAL,
    "resnet50-distilbert-flickr30k": RESIDUAL,
    "vit-gpt-captions": (512 + 256) * 256 + 1,
    "vit-distilbert-cifar10": 2 * (768 * 512 + 512 + 2 * 512) + 1,
    "vit-distilbert-ndlinear-flickr8k": 2 * 1056 + 1,
}


@pytest.mark.parametrize("name", FULL)
def test_the_presets_at_full_size(name):
    """They have images of 224 pixels and whole texts, and differ from the towers by their heads only."""
    config = FULL[name].model
    model = built(config)
    towers = n_parameters(model.image_tower) + n_parameters(model.text_tower)
    assert n_parameters(model) - towers == HEADS[name]
    with torch.device("meta"):
        tokens = torch.zeros(2, config.text.context_length, dtype=torch.int64)
        hidden = model.text_tower.forward_tokens(tokens, torch.ones_like(tokens, dtype=torch.bool))
        images = model.encode_image(torch.zeros(2, 3, 224, 224))
    assert hidden.shape == (*tokens.shape, config.text.d_model)
    assert images.shape == (2, config.embed_dim)
