"""Rollout is the sum over paths; plots show the attention of the token that the features are pooled from."""

import itertools
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from minclip.data.records import Record
from minclip.data.transforms import ImageTransform, TransformConfig
from minclip.evaluation.attention import (
    attention_relevance,
    attention_rollout,
    caption_relevance,
    draw_attention,
    image_attention,
)
from minclip.evaluation.embed import embed_texts
from minclip.towers.resnet import ResNet, ResNetConfig
from minclip.towers.vit import VisionTransformer, VisionTransformerConfig
from minlm.transformer import record_attention
from tests.minclip.tiny_clip import SEEDS, TOKENIZER


def random_weights(layers, heads, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        (3 * torch.randn(2, heads, tokens, tokens, generator=generator)).softmax(-1) for _ in range(layers)
    ]


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), SEEDS)
def test_rollout_is_the_sum_over_all_paths(layers, heads, tokens, seed):
    """All paths through the layers, in loops: half of a token stays, half is attention to others."""
    weights = random_weights(layers, heads, tokens, seed)
    got = attention_rollout(weights)
    assert got.shape == (2, tokens, tokens)
    for image, last, first in itertools.product(range(2), range(tokens), range(tokens)):
        total = 0.0
        for between in itertools.product(range(tokens), repeat=layers - 1):
            path, share = (first, *between, last), 1.0
            for layer, (source, target) in enumerate(itertools.pairwise(path)):
                attended = sum(weights[layer][image, head, target, source].item() for head in range(heads))
                share *= 0.5 * attended / heads + 0.5 * (source == target)
            total += share
        assert got[image, last, first].item() == pytest.approx(total, abs=1e-5)


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 9), SEEDS)
def test_rows_sum_to_one(layers, heads, tokens, seed):
    rows = attention_rollout(random_weights(layers, heads, tokens, seed)).sum(dim=-1)
    torch.testing.assert_close(rows, torch.ones(2, tokens))


@given(st.integers(1, 5), st.integers(1, 5))
def test_tokens_that_attend_to_themselves_only_stay_unchanged(layers, tokens):
    identity = torch.eye(tokens).expand(1, 2, tokens, tokens)
    assert torch.equal(attention_rollout([identity] * layers), torch.eye(tokens)[None])


class TinyModel(nn.Module):
    """A ViT of 2 x 3 patches, and text embeddings given by the number of tokens."""

    def __init__(self, pool="class", **config):
        super().__init__()
        self.config = SimpleNamespace(text=SimpleNamespace(context_length=16))
        self.logit_scale = nn.Parameter(torch.tensor(0.0))
        self.image_tower = VisionTransformer(
            VisionTransformerConfig(
                d_model=8,
                n_heads=2,
                n_layers=2,
                image_size=(16, 24),
                patch_size=(8, 8),
                pool=pool,
                dropout=0.5,
                **config,
            )
        )

    def encode_image(self, images):
        return self.project_image(self.image_tower(images))

    def project_image(self, features):
        return F.normalize(features, dim=-1)

    def encode_text(self, tokens, token_mask):
        return torch.eye(8)[token_mask.sum(dim=1) % 8]


@pytest.mark.parametrize("pool", ["class", "mean", "mean_norm", "last"])
def test_maps_are_the_pooled_tokens_rows_over_the_patches(pool):
    model, images = TinyModel(pool).train(), torch.randn(3, 3, 16, 24)
    rollouts, heads = image_attention(model, images)
    assert model.image_tower.transformer.training == model.training
    with torch.no_grad(), record_attention(model) as weights:
        model.eval().image_tower.forward_tokens(images)
    whole = attention_rollout(weights)
    for image, (row, column) in itertools.product(range(3), itertools.product(range(2), range(3))):
        patch = 3 * row + column + (pool == "class")
        attending = {"class": [0], "last": [5], "mean": range(6), "mean_norm": range(6)}[pool]
        wanted = np.mean([whole[image, token, patch].item() for token in attending])
        assert rollouts[image, row, column].item() == pytest.approx(wanted, abs=1e-6)
        for head in range(2):
            wanted = np.mean([weights[-1][image, head, token, patch].item() for token in attending])
            assert heads[image, head, row, column].item() == pytest.approx(wanted, abs=1e-6)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), SEEDS)
def test_relevance_is_the_sum_over_all_paths(layers, heads, tokens, seed):
    """All paths, in loops: in each layer a token stays, or another attends to it as far as that raises the score."""
    weights = random_weights(layers, heads, tokens, seed)
    gradients = [torch.randn(w.shape, generator=torch.Generator().manual_seed(seed + 1)) for w in weights]
    got = attention_relevance(weights, gradients)
    for image, last, first in itertools.product(range(2), range(tokens), range(tokens)):
        total = 0.0
        for between in itertools.product(range(tokens), repeat=layers - 1):
            path, share = (first, *between, last), 1.0
            for layer, (source, target) in enumerate(itertools.pairwise(path)):
                raised = 0.0
                for head in range(heads):
                    place = image, head, target, source
                    raised += max(0.0, (weights[layer][place] * gradients[layer][place]).item())
                share *= raised / heads + (source == target)
            total += share
        assert got[image, last, first].item() == pytest.approx(total, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("pool", ["class", "mean", "mean_norm", "last"])
@pytest.mark.parametrize("frozen", [False, True])
def test_relevance_for_a_caption_is_by_the_cosines_gradient(pool, frozen):
    """The gradient with respect to attention, by finite differences through the tower's only layer, written out."""
    model = TinyModel(pool).double()
    tower = model.image_tower
    tower.transformer.blocks = tower.transformer.blocks[:1]
    model.requires_grad_(not frozen)
    images = torch.randn(2, 3, 16, 24).double()
    texts = F.normalize(torch.randn(2, 8).double(), dim=-1)
    got = caption_relevance(model, images, texts)
    assert tower.transformer.training == model.training
    seen = {}
    block = tower.eval().transformer.blocks[0]
    handle = block.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    with torch.no_grad(), record_attention(tower) as weights:
        tower.forward_tokens(images)
    handle.remove()

    def cosines(weights):
        """(B) of any attention weights (B, H, T, T) in place of the layer's own."""
        attend, x = block.attention, seen["x"]
        attended = weights @ attend.in_proj(block.norm1(x)).unflatten(-1, (3, attend.n_heads, -1))[
            :, :, 2
        ].transpose(1, 2)
        x = x + attend.out_proj(attended.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
        with patch.object(tower, "forward_tokens", lambda _: tower.transformer.norm(x)):
            return (model.encode_image(images) * texts).sum(dim=1)

    gradient = torch.zeros_like(weights[0])
    with torch.no_grad():
        for place in itertools.product(*map(range, weights[0].shape[1:])):
            step = torch.zeros_like(weights[0])
            step[:, *place] = 1e-5
            rise = cosines(weights[0] + step) - cosines(weights[0] - step)
            gradient[:, *place] = rise / 2e-5
    whole = torch.eye(weights[0].shape[-1]) + (weights[0] * gradient).clamp(min=0).mean(dim=1)  # (B, T, T)
    first = int(pool == "class")
    row = whole[:, 0] if pool == "class" else whole[:, -1] if pool == "last" else whole.mean(dim=1)
    torch.testing.assert_close(got, row[:, first:].unflatten(1, (2, 3)).float(), atol=1e-6, rtol=1e-4)


def test_a_resnet_has_no_attention_to_show():
    model = TinyModel()
    model.image_tower = ResNet(ResNetConfig(image_size=(32, 32), depths=(1,), d_model=4))
    with pytest.raises(ValueError, match="ResNet has no attention to show: only a VisionTransformer"):
        image_attention(model, torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="ResNet has no attention to show"):
        caption_relevance(model, torch.randn(1, 3, 32, 32), torch.randn(1, 4))


def plain(colour):
    return Image.new("RGB", (30, 20), colour)


def test_the_plot_shows_the_maps_over_the_image(tmp_path):
    model = TinyModel()
    transform = ImageTransform(TransformConfig(), (16, 24), train=False)
    captions = ("a red circle $5 $6", "the star")
    records = [
        Record(str(i), partial(plain, (200, 10 * i, 0)), (caption, "another"), i)
        for i, caption in enumerate(captions)
    ]
    figure = draw_attention(model, records, transform, TOKENIZER, tmp_path / "attention.png")
    images = torch.stack([transform(record.open()) for record in records])
    rollouts, heads = image_attention(model, images)
    texts = embed_texts(model, TOKENIZER, captions)
    relevance = caption_relevance(model, images, texts)
    with torch.no_grad():
        cosines = (model.eval().encode_image(images) * texts).sum(dim=1)
    panels = np.array(figure.axes).reshape(2, 5)
    for row, (first, *others) in enumerate(panels):
        assert first.get_title() == f"{captions[row]}\ncosine {cosines[row]:.2f}"
        assert not first.title.get_parse_math()
        assert [axes.get_title() for axes in others] == [
            "for this caption",
            "rollout",
            "last layer, head 0",
            "last layer, head 1",
        ]
        for axes, wanted in zip(others, [relevance[row], rollouts[row], *heads[row]], strict=True):
            image, drawn = axes.get_images()
            np.testing.assert_array_equal(image.get_array(), np.asarray(transform.invert(images[row])))
            np.testing.assert_array_equal(drawn.get_array(), wanted.numpy())
            assert drawn.get_extent() == image.get_extent()
    assert (tmp_path / "attention.png").stat().st_size > 5000
