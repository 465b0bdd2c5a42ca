"""CLIP: unit embeddings, scaled cosines, the scale's bounds, configs as JSON, and that it learns."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minclip.clip import CLIP, MAX_LOGIT_SCALE, CLIPConfig, contrastive_loss
from minclip.losses import clip_loss, contrastive_metrics, sigmoid_loss, soft_target_loss
from minclip.towers.modified_resnet import ModifiedResNet, ModifiedResNetConfig
from minclip.towers.resnet import ResNet, ResNetConfig
from minclip.towers.text import BertTextConfig, BertTextEncoder, GPTTextConfig, GPTTextEncoder
from minclip.towers.vit import VisionTransformer, VisionTransformerConfig
from minlm.training.config import from_dict, to_dict
from minlm.training.optim import parameter_groups
from tests.drawing import (
    LOSSES,
    PROJECTIONS,
    SMALL,
    batch_loss,
    batch_of,
    clip_configs,
    model_of,
    pair_of,
    resnet_clip_configs,
    seeds,
    sizes,
)

SMALL_MODEL = CLIP(SMALL)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, check_dtype=False)


@given(clip_configs, sizes, seeds)
def test_embeddings_are_projected_features_of_unit_length(config, n, seed):
    model, batch = model_of(config, seed), batch_of(config, n, seed)
    towers = (
        model.image_projection.weight @ model.image_tower(batch["images"]).T,
        model.text_projection.weight @ model.text_tower(batch["tokens"], batch["token_mask"]).T,
    )
    for embeddings, projected in zip(pair_of(model, batch), towers, strict=True):
        assert embeddings.shape == (n, config.embed_dim)
        same(embeddings.norm(dim=-1), torch.ones(n))
        same(embeddings, (projected / projected.square().sum(dim=0).sqrt()).T)


@given(st.one_of(clip_configs, resnet_clip_configs))
def test_the_towers_are_the_configs(config):
    model = CLIP(config)
    towers = {
        VisionTransformerConfig: VisionTransformer,
        ResNetConfig: ResNet,
        ModifiedResNetConfig: ModifiedResNet,
        GPTTextConfig: GPTTextEncoder,
        BertTextConfig: BertTextEncoder,
    }
    for tower, its_config in ((model.image_tower, config.image), (model.text_tower, config.text)):
        assert type(tower) is towers[type(its_config)]
        assert tower.config == its_config
    assert (model.image_projection.bias is not None) == isinstance(config.image, ModifiedResNetConfig)
    assert model.text_projection.bias is None


@given(clip_configs, sizes, sizes, seeds, st.sampled_from(LOSSES), st.floats(-12, 5))
def test_forward_is_the_matrix_of_scaled_cosines(config, n_images, n_texts, seed, loss, bias):
    """And of logit_bias, where the loss has one."""
    model = model_of(replace(config, loss=loss), seed)
    if loss == "sigmoid":
        model.logit_bias.data.fill_(bias)
    batch = batch_of(config, max(n_images, n_texts), seed)
    images, tokens, token_mask = (
        batch["images"][:n_images],
        batch["tokens"][:n_texts],
        batch["token_mask"][:n_texts],
    )
    logits = model(images, tokens, token_mask)
    assert logits.shape == (n_images, n_texts)
    rows, columns = model.encode_image(images), model.encode_text(tokens, token_mask)
    cosines = F.cosine_similarity(rows[:, None], columns[None], dim=-1)
    expected = cosines / config.temperature + (bias if loss == "sigmoid" else 0)
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4, check_dtype=False)


@given(clip_configs, sizes, seeds)
def test_the_batchs_loss_is_the_loss_of_its_encodings(config, n, seed):
    model, batch = model_of(config, seed), batch_of(config, n, seed)
    total, n_pairs, metrics = batch_loss(model, batch)
    expected, expected_pairs = clip_loss(*pair_of(model, batch), model.logit_scale, batch["groups"])
    assert torch.equal(total, expected)
    assert n_pairs == expected_pairs == n
    expected = contrastive_metrics(*pair_of(model, batch), model.logit_scale, batch["groups"])
    assert {name: figure.item() for name, figure in metrics.items()} == {
        name: figure.item() for name, figure in expected.items()
    }
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@given(clip_configs, sizes, seeds, st.sampled_from(LOSSES), st.sampled_from(PROJECTIONS))
def test_loss_and_heads_are_the_configs(config, n, seed, loss, projection):
    """logit_bias is there for the sigmoid loss alone."""
    config = replace(config, loss=loss, projection=projection)
    assert (CLIP(config).logit_bias is not None) == (loss == "sigmoid")
    model, batch = model_of(config, seed), batch_of(config, n, seed)
    pair, groups = pair_of(model, batch), batch["groups"]
    for embeddings in pair:
        same(embeddings.norm(dim=-1), torch.ones(n))
    found, n_pairs, metrics = batch_loss(model, batch)
    scale = model.logit_scale
    expected = {
        "infonce": lambda: clip_loss(*pair, scale, groups),
        "sigmoid": lambda: sigmoid_loss(*pair, scale, model.logit_bias, groups),
        "soft_targets": lambda: soft_target_loss(*pair, scale, groups),
    }[loss]()
    assert torch.equal(found, expected[0])
    assert n_pairs == expected[1]
    assert torch.equal(contrastive_loss(model, *pair, groups)[0], found)
    assert ("bias" in metrics) == (loss == "sigmoid")


@given(clip_configs, sizes, seeds)
def test_a_batch_may_hold_features_in_place_of_images_or_texts(config, n, seed):
    model, batch = model_of(config, seed), batch_of(config, n, seed)
    expected = batch_loss(model, batch)[0]
    image = {"image_features": model.image_tower(batch.pop("images"))}
    text = {"text_features": model.text_tower(batch.pop("tokens"), batch.pop("token_mask"))}
    torch.testing.assert_close(batch_loss(model, batch | image | text)[0], expected)


@given(clip_configs)
def test_the_scale_starts_at_the_configs_temperature(config):
    scale = CLIP(config).logit_scale
    assert scale.shape == ()
    same(scale, torch.tensor(math.log(1 / config.temperature)))
    assert CLIPConfig().temperature == 0.07  # Radford et al. 2021, section 2.5


@given(st.integers(1, 5000))
def test_the_initial_bias_expects_one_positive_pair_per_row(batch_size):
    model = CLIP(replace(SMALL, loss="sigmoid"))
    model.init_logit_bias(batch_size)
    same(model.logit_bias.sigmoid(), torch.tensor(1 / max(2, batch_size)))
    model = CLIP(SMALL)
    model.init_logit_bias(batch_size)  # no bias, nothing to set
    assert model.logit_bias is None


def test_the_sigmoid_loss_starts_near_chance():
    """At 256 random pairs in 128 dimensions: 7.8 with the batch's own bias, 10.0 with SigLIP's -10, chance 6.5."""
    model = CLIP(replace(SMALL, embed_dim=128, loss="sigmoid"))
    generator = torch.Generator().manual_seed(0)
    pair = [F.normalize(torch.randn(256, 128, generator=generator), dim=-1) for _ in range(2)]
    model.init_logit_bias(256)
    started = contrastive_loss(model, *pair)[0].item() / 256
    chance = contrastive_metrics(*pair, model.logit_scale, torch.arange(256), model.logit_bias)["chance"]
    model.logit_bias.data.fill_(-10.0)
    assert chance == pytest.approx(6.54, abs=0.01)
    assert started == pytest.approx(7.5, abs=0.4)
    assert contrastive_loss(model, *pair)[0].item() / 256 == pytest.approx(10.0, abs=0.2)


@given(st.floats(-10, 10))
def test_the_scale_is_clamped_at_both_ends(value):
    model = SMALL_MODEL
    with torch.no_grad():
        model.logit_scale.fill_(value)
    model.clamp_logit_scale()
    expected = torch.tensor(min(max(value, 0.0), MAX_LOGIT_SCALE))
    assert torch.equal(model.logit_scale, expected)
    assert 1 <= model.logit_scale.exp() <= 100.001
    assert model.logit_scale.requires_grad
    assert model.logit_scale.grad_fn is None


@given(st.one_of(clip_configs, resnet_clip_configs), st.floats(0.01, 1))
def test_every_parameter_is_in_one_group_and_matrices_alone_decay(config, weight_decay):
    model = CLIP(config)
    groups = parameter_groups(model, weight_decay)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(names.values())
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decays[name] == (weight_decay if parameter.dim() >= 2 else 0), name
    assert decays["logit_scale"] == 0
    model.image_tower.requires_grad_(False)
    trained = {names[id(p)] for group in parameter_groups(model, 0.1) for p in group["params"]}
    assert trained == {name for name in listed if not name.startswith("image_tower.")}


@given(st.one_of(clip_configs, resnet_clip_configs), sizes, seeds)
def test_config_and_weights_are_the_whole_model(config, n, seed):
    """Config through JSON, weights through a state dict: the same config, and the same encodings bit for bit."""
    model, batch = model_of(config, seed), batch_of(config, n, seed)
    restored = from_dict(CLIPConfig, json.loads(json.dumps(to_dict(config))))
    assert restored == config
    assert type(restored.image) is type(config.image)
    assert type(restored.text) is type(config.text)
    other = CLIP(restored).double().eval()
    other.load_state_dict(model.state_dict())
    for mine, theirs in zip(pair_of(model, batch), pair_of(other, batch), strict=True):
        assert torch.equal(mine, theirs)


VIT = {"type": "VisionTransformerConfig"}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"embed_dim": 0}, "embed_dim=0 must be at least 1"),
        ({"temperature": 0.009}, r"temperature=0.009 must be in \[0.01, 1\]"),
        ({"temperature": 1.1}, r"temperature=1.1 must be in \[0.01, 1\]"),
        ({"temperature": float("nan")}, "temperature=nan must be a finite number"),
        ({"image": VIT | {"n_heads": 5}}, "image.n_heads=5 does not divide image.d_model=128"),
        (
            {"image": VIT | {"patch_size": [7, 8]}},
            "image.patch_size height 7 does not divide image.image_size height 64",
        ),
        ({"image": VIT | {"pool": "max"}}, "image.pool='max' must be one of class, mean, mean_norm, last"),
        ({"text": {"type": "GPTTextConfig", "vocab_size": 0}}, "vocab_size=0 must be at least 1"),
        ({"text": {"type": "BertTextConfig", "end_id": 3}}, "unknown option text.end_id"),
        ({"image": {"type": "VGG"}}, "image.type='VGG' must be one of VisionTransformerConfig, ResNetConfig"),
        ({"text": {"type": "LSTM"}}, "text.type='LSTM' must be one of GPTTextConfig, BertTextConfig"),
    ],
)
def test_impossible_configs_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        from_dict(CLIPConfig, wrong)


def test_projections_keep_the_variance_of_features():
    config = CLIPConfig(
        image=replace(SMALL.image, d_model=64), text=replace(SMALL.text, d_model=256), embed_dim=512
    )
    model = CLIP(config)
    for projection, width in ((model.image_projection, 64), (model.text_projection, 256)):
        assert projection.bias is None
        assert abs(projection.weight.std().item() * width**0.5 - 1) < 0.05


@pytest.mark.parametrize("text_class", [GPTTextConfig, BertTextConfig])
def test_embeddings_stay_in_full_precision_under_autocast(text_class):
    """bf16 has 8 bits: unit vectors in it would be neither unit nor tell near cosines apart."""
    config = replace(
        SMALL, text=text_class(d_model=8, n_heads=2, n_layers=1, vocab_size=20, context_length=8)
    )
    model, batch = CLIP(config), batch_of(config, 6, 0)
    with torch.autocast("cpu", torch.bfloat16):
        pair = pair_of(model, batch | {"images": batch["images"].float()})
    for embeddings in pair:
        assert embeddings.dtype == torch.float32
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(6), atol=1e-6, rtol=0)


@pytest.mark.parametrize("text_class", [GPTTextConfig, BertTextConfig])
def test_a_fixed_batch_is_learned(text_class):
    """Chance at first; some dozens of steps later every image finds its own text, and the loss is small."""
    text = text_class(d_model=16, n_heads=2, n_layers=1, vocab_size=20, context_length=8)
    model, generator = CLIP(replace(SMALL, text=text, embed_dim=16)), torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 20, (12, 8), generator=generator)
    tokens[:, -1] = 3
    batch = {
        "images": torch.randn(12, 3, 8, 8, generator=generator),
        "tokens": tokens,
        "token_mask": torch.ones_like(tokens, dtype=torch.bool),
        "groups": torch.arange(12),
    }
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        total, n_pairs, metrics = batch_loss(model, batch)
        (total / n_pairs).backward()
        optimizer.step()
        model.clamp_logit_scale()
        if step == 0:
            assert total / n_pairs > 0.7 * math.log(12)
    assert metrics["top1"] == 1
    assert total / n_pairs < 0.1 * math.log(12)
    assert metrics["positive_cosine"] > metrics["negative_cosine"] + 0.5
