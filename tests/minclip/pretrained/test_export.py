"""Export and back is the identity, in every format; what a format has no place for is refused with the reason."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import minclip
from minclip.data.tokenizer import WordPiece
from minclip.presets import PRESETS
from minclip.pretrained import export, load_clip, load_image_tower, load_text_tower
from minclip.towers.resnet import ResNetConfig
from minclip.towers.text import BertTextConfig
from minclip.towers.vit import VisionTransformerConfig
from tests.minclip.pretrained.test_clips import RESNET, VIT, WORDS, batch, drawn, text_config, transform_of


class EndsLast(WordPiece):
    """A vocabulary whose end of text is the last id, as CLIP's is."""

    def __init__(self, tokens):
        super().__init__([*[t for t in tokens if t != "[SEP]"], "[SEP]"])


LAST = EndsLast(WORDS.tokens)


@pytest.mark.parametrize("to", ["hf-clip", "open_clip", "openai", "safetensors"])
@pytest.mark.parametrize("image", [VIT, RESNET], ids=["ViT", "ResNet"])
def test_every_tensor_comes_back(to, image, tmp_path):
    model = drawn(image, text_config(LAST))
    if image is VIT:
        model.state_dict()["image_tower.patch_embedding.bias"].zero_()  # CLIP has none: see the next test
    transform = transform_of(model, mean=(0.1, 0.2, 0.3)) if to != "openai" else transform_of(model)
    if (to, image) == ("hf-clip", RESNET):
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


@pytest.mark.parametrize("to", ["hf-clip", "open_clip", "openai"])
def test_a_patch_bias_moves_into_the_positions(to, tmp_path):
    model = drawn(VIT, text_config(LAST))
    export(model, LAST, transform_of(model), tmp_path, to)
    again, _, _ = load_clip(tmp_path)
    assert not again.image_tower.patch_embedding.bias.any()
    inputs = batch(model, LAST.end_id)
    torch.testing.assert_close(again(*inputs), model(*inputs))


def test_the_default_preset_goes_to_open_clip(tmp_path):
    """No LayerNorm before the first Block, exact GELU, a WordPiece, no square heads: open_clip has words for them."""
    preset = PRESETS["shapes"]
    text = replace(preset.text, vocab_size=WORDS.vocab_size, vocab_digest=WORDS.digest, end_id=WORDS.end_id)
    model = drawn(preset.image, text)
    export(model, WORDS, transform_of(model), tmp_path, "open_clip")
    again, _, _ = load_clip(tmp_path)
    torch.testing.assert_close(again(*batch(model)), model(*batch(model)))
    with pytest.raises(
        ValueError, match=r"its ViT has no LayerNorm before the first Block \(image.norm_input\)"
    ):
        export(model, WORDS, transform_of(model), tmp_path, "hf-clip")


def test_a_sigmoid_loss_keeps_its_bias_in_open_clip(tmp_path):
    model = drawn(loss="sigmoid")
    export(model, WORDS, transform_of(model), tmp_path, "open_clip")
    again, _, _ = load_clip(tmp_path)
    assert again.config.loss == "sigmoid"
    assert torch.equal(again.logit_bias, model.logit_bias)
    with pytest.raises(ValueError, match="it has a logit_bias"):
        export(model, WORDS, transform_of(model), tmp_path, "hf-clip")


REFUSED = [
    ("openai", {}, "its end-of-text id is not the last id"),
    ("openai", {"image": replace(VIT, n_heads=2)}, "its heads are not 64 wide"),
    ("openai", {"image": replace(VIT, activation="gelu")}, "its activation is not quick_gelu"),
    ("openai", {"image": replace(VIT, d_ff=32)}, r"its d_ff is not 4 \* d_model"),
    ("open_clip", {"image": replace(VIT, activation="relu")}, "its activations are"),
    ("open_clip", {"image": ResNetConfig(depths=(1,), d_model=4)}, "its image tower is a ResNet"),
    ("hf-clip", {"image": replace(VIT, pool="mean")}, "its ViT has no class token"),
    ("hf-clip", {"image": replace(VIT, patch_size=(8, 4))}, "its patches are not square"),
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
def test_what_has_no_place_is_refused_with_the_reason(to, options, words, tmp_path):
    model = drawn(**options)
    with pytest.raises(ValueError, match=words) as caught:
        export(model, WORDS, transform_of(model), tmp_path / "out", to)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_towers_and_heads(tmp_path):
    """A preset of a ResNet and a BERT: each tower in its owner's format, the heads beside them."""
    text = BertTextConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=WORDS.vocab_size, pool="first")
    model = drawn(VisionTransformerConfig(d_model=8, n_heads=2, n_layers=1), text)
    export(model, WORDS, transform_of(model), tmp_path, "towers")
    images, tokens, mask = batch(model)
    assert torch.equal(load_image_tower(tmp_path / "image")(images), model.image_tower(images))
    assert torch.equal(load_text_tower(tmp_path / "text")(tokens, mask), model.text_tower(tokens, mask))
    heads = load_file(tmp_path / "heads.safetensors")
    assert heads.keys() == {"image_projection.weight", "text_projection.weight", "logit_scale"}
    with pytest.raises(ValueError, match="CLIP's ResNet is part of CLIP's own formats"):
        export(drawn(RESNET), WORDS, transform_of(model), tmp_path / "more", "towers")
