"""A run that starts from pretrained towers takes their sizes and weights, and keeps what it decides itself."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from minclip.clip import CLIP, CLIPConfig
from minclip.presets import FULL
from minclip.pretrained import pretrained_towers, save_image_tower, save_text_tower
from minclip.runs import load, make_model, make_tokenizer
from minclip.text import BertTextConfig, GPTTextConfig
from minclip.tokenizer import encode_batch
from minclip.transforms import TransformConfig
from minclip.vit import VisionTransformerConfig
from minlm.tokenizer import train_bpe
from minlm.training.config import files_beside_weights
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


def test_a_run_on_gpt2_with_its_own_vocabulary(tmp_path):
    """From GPT-2's files to a batch of captions, pooled at the end of text; and back from the run."""
    words = train_bpe("a dog on the beach, the cat " * 3, 270)
    sizes = {"d_model": 8, "n_heads": 2, "n_layers": 1, "context_length": 9, "activation": "gelu_tanh"}
    tower = drawn(GPTTextConfig(**sizes, vocab_size=words.vocab_size, end_id=words.end_id))
    save_text_tower(tower, words, tmp_path)
    preset = FULL["vit-gpt-captions"]
    text = replace(preset.text, weights=str(tmp_path), context_length=7)
    image = VisionTransformerConfig(d_model=8, n_heads=2, n_layers=1)
    run = replace(preset, image=image, text=text, vocabulary=str(tmp_path))
    tokenizer = make_tokenizer(run, [])
    run = run.with_tokenizer(tokenizer)
    assert (run.text.vocab_size, run.text.end_id, run.text.vocab_digest) == (
        words.vocab_size,
        words.end_id,
        words.digest,
    )
    model = make_model(run, tmp_path / "run", resume=False).eval()
    tokens, token_mask, _ = encode_batch(tokenizer, ["a dog", "the beach on the cat"], 7)
    torch.testing.assert_close(model.text_tower(tokens, token_mask), tower(tokens, token_mask))
    files_beside_weights(replace(run, text=model.config.text), tokenizer)(tmp_path / "run")
    save_file(model.state_dict(), tmp_path / "run" / "model.safetensors")
    again, same, _ = load(tmp_path / "run")
    assert same.digest == words.digest
    expected = model.encode_text(tokens, token_mask)
    torch.testing.assert_close(again.encode_text(tokens, token_mask), expected)


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
