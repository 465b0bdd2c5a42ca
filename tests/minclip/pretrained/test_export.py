"""Export and back is the identity in every format; what a format cannot express is refused with the reason."""

from contextlib import suppress
from dataclasses import replace
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

import minclip
import minclip.data.clip_bpe
from minclip.clip import TOWERS
from minclip.data.transforms import TransformConfig
from minclip.pretrained import (
    Format,
    export,
    load_clip,
    load_image_tower,
    load_text_tower,
    save_image_tower,
    save_text_tower,
)
from minclip.towers.resnet import ResNetConfig
from minclip.towers.text import BertTextConfig, GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig
from tests.minclip.pretrained.published import (
    CLIP_RESNET,
    CLIP_VIT,
    LAST,
    TEXT,
    VIT,
    WORDS,
    clip_batch,
    drawn_clip,
    text_config,
    transform_of,
)


@pytest.mark.parametrize("to", ["hf-clip", "open_clip", "openai", "safetensors"])
@pytest.mark.parametrize("image", [CLIP_VIT, CLIP_RESNET], ids=["ViT", "ResNet"])
def test_every_tensor_comes_back(to, image, tmp_path):
    model = drawn_clip(image, text_config(LAST))
    if image is CLIP_VIT:
        model.state_dict()["image_tower.patch_embedding.bias"].zero_()  # CLIP has none: see the next test
    transform = transform_of(model, mean=(0.1, 0.2, 0.3)) if to != "openai" else transform_of(model)
    if (to, image) == ("hf-clip", CLIP_RESNET):
        with pytest.raises(
            ValueError, match="cannot be written as hf-clip: its image tower is a ModifiedResNet"
        ):
            export(model, LAST, transform, tmp_path, to)
        return
    export(model, LAST, transform, tmp_path, to)
    again, tokenizer, prepared = (minclip.load if to == "safetensors" else load_clip)(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert tokenizer.digest == LAST.digest
    assert prepared.config == transform.config
    for tower in ("image", "text"):
        ours, found = getattr(model.config, tower), getattr(again.config, tower)
        assert replace(found, d_ff=None) == ours if hasattr(ours, "d_ff") else found == ours


REFUSED = [
    ("openai", {}, "its end-of-text id is not the last id"),
    ("openai", {"image": replace(CLIP_VIT, n_heads=2)}, "its heads are not 64 wide"),
    ("openai", {"image": replace(CLIP_VIT, activation="gelu")}, "its activation is not quick_gelu"),
    ("openai", {"image": replace(CLIP_VIT, d_ff=32)}, r"its d_ff is not 4 \* d_model"),
    ("open_clip", {"image": replace(CLIP_VIT, activation="relu")}, "its activations are"),
    ("open_clip", {"image": ResNetConfig(depths=(1,), d_model=4)}, "its image tower is a ResNet"),
    ("hf-clip", {"image": replace(CLIP_VIT, pool="mean")}, "its ViT has no class token"),
    ("hf-clip", {"image": replace(CLIP_VIT, patch_size=(8, 4))}, "its patches are not square"),
    ("hf-clip", {"projection": "residual"}, "its projection is residual, not linear"),
    (
        "hf-clip",
        {"text": text_config(end_id=2)},
        "its end-of-text id is 2, which Hugging Face reads as the largest",
    ),
    ("hf-clip", {"text": BertTextConfig(d_model=8, n_heads=2, n_layers=1)}, "its text tower is not a GPT"),
    ("onnx", {}, "no format 'onnx': there are hf-clip, open_clip, openai, safetensors, towers"),
]


@pytest.mark.parametrize("to, options, words", REFUSED)
def test_models_that_a_format_cannot_express_are_refused(to, options, words, tmp_path):
    model = drawn_clip(**options)
    with pytest.raises(ValueError, match=words) as caught:
        export(model, WORDS, transform_of(model), tmp_path / "out", to)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to, options, words", REFUSED[:-1])
def test_a_refusal_names_the_formats_that_work(to, options, words, tmp_path):
    """Exactly those: each of the other formats is tried."""
    model = drawn_clip(**options)
    with pytest.raises(ValueError, match="give --to") as caught:
        export(model, WORDS, transform_of(model), tmp_path, to)
    named = str(caught.value).rpartition("give --to ")[2].split(" or ")
    working = []
    for other in get_args(Format):
        with suppress(ValueError):
            export(model, WORDS, transform_of(model), tmp_path / other, other)
            working.append(other)
    assert named == working
    assert "safetensors" in named


def test_towers_and_heads(tmp_path):
    """A preset of a ResNet and a BERT: each tower in its owner's format, the heads beside them."""
    text = BertTextConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=WORDS.vocab_size, pool="first")
    model = drawn_clip(VisionTransformerConfig(d_model=8, n_heads=2, n_layers=1), text)
    export(model, WORDS, transform_of(model), tmp_path, "towers")
    images, tokens, mask = clip_batch(model)
    assert torch.equal(load_image_tower(tmp_path / "image")(images), model.image_tower(images))
    assert torch.equal(load_text_tower(tmp_path / "text")(tokens, mask), model.text_tower(tokens, mask))
    heads = load_file(tmp_path / "heads.safetensors")
    assert heads.keys() == {"image_projection.weight", "text_projection.weight", "logit_scale"}
    with pytest.raises(ValueError, match="CLIP's ResNet is part of CLIP's own formats"):
        export(drawn_clip(CLIP_RESNET), WORDS, transform_of(model), tmp_path / "more", "towers")


@pytest.mark.parametrize(
    "config, words",
    [
        (VisionTransformerConfig(**VIT, pool="mean"), "its norm_eps is 1e-05, not timm's 1e-06"),
        (VisionTransformerConfig(**VIT, pool="last", norm_eps=1e-6), "its ViT pools the last patch"),
        (VisionTransformerConfig(**VIT, norm_first=False), "LayerNorms after the sublayers"),
        (ResNetConfig(stem="small"), "stem='small' is this project's own"),
    ],
)
def test_image_towers_without_a_published_format_are_refused(config, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        save_image_tower(TOWERS[type(config)](config), TransformConfig(), tmp_path)


@pytest.mark.parametrize(
    "config, words",
    [
        (BertTextConfig(**TEXT, pool="pooler"), "it has a pooler"),
        (BertTextConfig(**TEXT, norm_eps=1e-5), "its norm_eps is 1e-05, not DistilBERT's 1e-12"),
        (BertTextConfig(**TEXT, norm_first=True), "LayerNorms before the sublayers"),
        (GPTTextConfig(**TEXT, norm_first=False), "LayerNorms after the sublayers"),
    ],
)
def test_text_towers_without_a_published_format_are_refused(config, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        save_text_tower(TOWERS[type(config)](config), WORDS, tmp_path)
