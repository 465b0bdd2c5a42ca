"""A run that starts from pretrained towers takes their sizes and weights, and keeps what it decides itself."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from minclip.clip import CLIP, CLIPConfig
from minclip.data.tokenizer import encode_batch
from minclip.data.transforms import TransformConfig
from minclip.presets import FULL, RunConfig
from minclip.pretrained import (
    load_image_tower,
    load_text_tower,
    pretrained_towers,
    save_image_tower,
    save_text_tower,
)
from minclip.runs import load, make_model, make_tokenizer
from minclip.towers.modified_resnet import ModifiedResNetConfig
from minclip.towers.resnet import ResNetConfig
from minclip.towers.text import BertTextConfig, GPTTextConfig
from minclip.towers.vit import VisionTransformer, VisionTransformerConfig
from minlm.lm import LMConfig, TransformerLM
from minlm.tokenizer import train_bpe
from minlm.training.checkpoint import save_checkpoint
from minlm.training.config import files_beside_weights
from minlm.training.state import TrainConfig
from tests.minclip.pretrained.test_towers import IMAGE_CONFIGS, TEXT_CONFIGS, WORDS, drawn

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
    """A ViT pooled so, in timm's layout or, with a class token, in Hugging Face's."""
    size = {"d_model": 8, "n_heads": 2, "n_layers": 1, "image_size": (16, 16), "norm_eps": 1e-6}
    tower = drawn(VisionTransformerConfig(**size, pool=pool))
    save_image_tower(tower, TransformConfig(), folder)
    return tower


@pytest.mark.parametrize("asked", ["class", "mean", "mean_norm", "last"])
@pytest.mark.parametrize("stored", ["class", "mean", "mean_norm"])
def test_the_pooling_is_what_was_asked_for_or_refused(stored, asked, tmp_path):
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
def test_what_the_files_network_lacks_is_refused(option, tmp_path):
    save_image_tower(drawn(IMAGE_CONFIGS[0]), TransformConfig(), tmp_path)
    wanted = VisionTransformerConfig(image_size=(32, 32), weights=str(tmp_path / "model.safetensors"))
    assert pretrained_towers(CLIPConfig(image=wanted))[0].image.depths == (1, 2)
    name = next(iter(option))
    with pytest.raises(
        ValueError, match=f"is a tower for ResNetConfig, which has no {name}=0.1: leave {name} out$"
    ):
        pretrained_towers(CLIPConfig(image=replace(wanted, **option)))


OWN_TEXT = {"d_model": 8, "n_heads": 2, "n_layers": 2, "vocab_size": WORDS.vocab_size, "context_length": 9}
OWN = [
    (VisionTransformerConfig(d_model=8, n_heads=2, n_layers=3, norm_input=True), BertTextConfig(**OWN_TEXT)),
    (ResNetConfig(depths=(1, 2), d_model=4, stem="small"), GPTTextConfig(**OWN_TEXT, end_id=WORDS.end_id)),
    (
        ModifiedResNetConfig(depths=(1, 1), d_model=4, n_heads=2, image_size=(64, 64)),
        BertTextConfig(**OWN_TEXT, pool="pooler"),
    ),
]


def own_run(folder, image, text) -> CLIP:
    """A run of this project with one checkpoint."""
    config = RunConfig(
        image=replace(image, weights="elsewhere", trained_blocks=0), text=text, train=TrainConfig(epochs=1)
    ).with_tokenizer(WORDS)
    model = CLIP(config).eval()
    save_checkpoint(folder, 3, model.state_dict(), {}, files_beside_weights(config, WORDS))
    return model


@pytest.mark.parametrize("image, text", OWN, ids=["ViT", "ResNet", "CLIP's ResNet"])
@pytest.mark.parametrize("place", ["", "step-00000003", "step-00000003/model.safetensors"])
def test_a_run_starts_from_the_towers_of_another(image, text, place, tmp_path):
    model = own_run(tmp_path / "run", image, text)
    weights = str(tmp_path / "run" / place)
    digest = {"vocab_size": WORDS.vocab_size, "vocab_digest": WORDS.digest}
    wanted = CLIPConfig(
        image=replace(type(image)(image_size=(64, 64)), weights=weights),
        text=replace(type(text)(context_length=9), weights=weights, **digest),
    )
    if isinstance(text, BertTextConfig):
        wanted = replace(wanted, text=replace(wanted.text, pool=text.pool))
    config, tensors = pretrained_towers(wanted)
    assert config.image == replace(image, weights=weights)
    assert config.text.n_layers == 2
    again = CLIP(config).eval()
    again.load_state_dict(tensors, strict=False)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(again.image_tower(images), model.image_tower(images))
    tokens, mask, _ = encode_batch(WORDS, ["a dog on the beach", "the cat"], 9)
    if isinstance(text, BertTextConfig):
        torch.testing.assert_close(again.text_tower(tokens, mask), model.text_tower(tokens, mask))
    torch.testing.assert_close(load_image_tower(weights)(images), model.image_tower(images))


def test_runs_that_cannot_be_a_start_say_what_to_do(tmp_path):
    own_run(tmp_path, *OWN[0])
    weights = str(tmp_path)
    text = BertTextConfig(
        weights=weights, context_length=9, vocab_size=WORDS.vocab_size, vocab_digest="other"
    )
    with pytest.raises(
        ValueError, match=r"was trained with another vocabulary: give .* --vocabulary .*step-00000003$"
    ):
        pretrained_towers(CLIPConfig(text=text))
    path = tmp_path / "step-00000003" / "config.json"
    config = json.loads(path.read_text())
    for n_layers, message in (
        (10**9, "its config says 1000000000 layers, its tensors say 3: put its own config beside it"),
        (0, "is not its run's: image.n_layers=0 must be at least 1"),
    ):
        path.write_text(json.dumps(config | {"image": config["image"] | {"n_layers": n_layers}}))
        with pytest.raises(ValueError, match=message):
            load_image_tower(weights)
    path.unlink()
    with pytest.raises(
        ValueError, match=r"the config.json beside .*model.safetensors is not its run's: image"
    ):
        load_image_tower(weights)
    model = TransformerLM(LMConfig(d_model=8, n_heads=2, n_layers=1, tied=False))
    save_file(model.state_dict(), tmp_path / "lm.safetensors")
    with pytest.raises(ValueError, match=r": first write it with python -m minlm export --to hf-gpt2$"):
        load_text_tower(tmp_path / "lm.safetensors")
