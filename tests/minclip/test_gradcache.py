"""Cached embeddings give the whole batch's gradient, whatever the parts; plain accumulation does not."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minclip.clip import CLIP, CLIPConfig, contrastive_loss
from minclip.losses import contrastive_metrics
from minclip.towers.text import BertTextConfig
from minlm.training.batches import split
from minlm.training.loop import Precision
from tests.drawing import (
    FLOAT32,
    LOSSES,
    PROJECTIONS,
    SMALL,
    Scaled,
    backward,
    batch_loss,
    batch_of,
    clip_configs,
    model_of,
    pair_of,
    resnet_clip_configs,
)
from tests.laws import close, same_run

seeds = st.integers(0, 10**6)
sizes = st.integers(2, 9)
parts = st.integers(2, 9)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
# Embeddings in float32 round each gradient; in float64 the law holds to rounding.


def gradients(model: CLIP) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def run(model: CLIP, batch: dict, n_parts: int, precision: Precision = FLOAT32) -> tuple:
    """(mean, count, metrics, gradients) of one backward pass, without earlier gradients."""
    model.zero_grad(set_to_none=True)
    value, count, metrics = backward(model, batch, n_parts, precision)
    assert not value.requires_grad
    return value, count, metrics, gradients(model)


def whole_batch(model: CLIP, batch: dict, slices: list[slice]) -> tuple:
    """The reference: embed the slices one after another, all with a graph; one loss, one backward."""
    model.zero_grad(set_to_none=True)
    pairs = [pair_of(model, {name: value[part] for name, value in batch.items()}) for part in slices]
    images, texts = (torch.cat(side) for side in zip(*pairs, strict=True))
    total, count = contrastive_loss(model, images, texts, batch["groups"])
    (total / count).backward()
    metrics = contrastive_metrics(images, texts, model.logit_scale, batch["groups"], model.logit_bias)
    return total.detach() / count, count, metrics, gradients(model)


def chunks(n: int, n_parts: int) -> list[slice]:
    size = math.ceil(n / n_parts)
    return [slice(start, start + size) for start in range(0, n, size)]


def with_dropout(config: CLIPConfig, dropout: float) -> CLIPConfig:
    patch_dropout = 0.0 if config.image.pool == "last" else dropout
    return replace(
        config,
        image=replace(config.image, dropout=dropout, patch_dropout=patch_dropout),
        text=replace(config.text, dropout=dropout),
        temperature=max(config.temperature, 0.05),
    )


@given(clip_configs, sizes, parts, seeds, st.sampled_from(LOSSES), st.sampled_from(PROJECTIONS))
def test_every_gradient_is_the_whole_batchs(config, n, n_parts, seed, loss, projection):
    """logit_scale's and logit_bias's too; parts of unequal size, groups that cross them, more parts than pairs."""
    config = replace(config, loss=loss, projection=projection)
    model, batch = model_of(with_dropout(config, 0.0), seed), batch_of(config, n, seed)
    dtype = pair_of(model, batch)[0].dtype
    expected = whole_batch(model, batch, [slice(n)])
    same_run(run(model, batch, n_parts), expected, dtype)
    assert all(gradient is not None for gradient in expected[3].values())


@pytest.mark.parametrize("device", DEVICES)
@given(clip_configs, sizes, parts, seeds, st.sampled_from([0.1, 0.5]))
def test_with_dropout_both_passes_draw_the_same_masks(device, config, n, n_parts, seed, dropout):
    """The same patches and heads' dropout too, and the device's generator where one pass leaves it."""
    config = replace(config, projection="residual")
    model = model_of(with_dropout(config, dropout), seed).train().to(device)
    batch = {name: value.to(device) for name, value in batch_of(config, n, seed).items()}
    get_state = torch.cuda.get_rng_state if device == "cuda" else torch.get_rng_state
    dtype = pair_of(model, batch)[0].dtype
    torch.manual_seed(seed)
    expected = whole_batch(model, batch, chunks(n, n_parts))
    after = get_state()
    torch.manual_seed(seed)
    same_run(run(model, batch, n_parts), expected, dtype)
    assert torch.equal(get_state(), after), "the random state must end where one pass leaves it"


FROZEN = ["image_tower", "text_tower", "image_projection", "text_projection", "logit_scale"]


@given(
    clip_configs, sizes, parts, seeds, st.sampled_from(LOSSES), st.sets(st.sampled_from(FROZEN), max_size=4)
)
def test_frozen_parts_get_no_gradient_and_the_others_the_whole_batchs(config, n, n_parts, seed, loss, frozen):
    """A tower, its head too, or both sides, whose embeddings then have no graph."""
    config = replace(config, loss=loss)
    model, batch = model_of(config, seed), batch_of(config, n, seed)
    for name in frozen:
        getattr(model, name).requires_grad_(False)
    expected = whole_batch(model, batch, [slice(n)])
    same_run(run(model, batch, n_parts), expected, pair_of(model, batch)[0].dtype)
    for name, gradient in expected[3].items():
        assert (gradient is None) == (name.split(".")[0] in frozen), f"{name}: only what is frozen has none"


@given(clip_configs, sizes, parts, seeds, st.sampled_from(["image", "text", "both"]))
def test_features_in_place_of_images_and_texts(config, n, n_parts, seed, kept):
    model, batch = model_of(config, seed), batch_of(config, n, seed)
    with torch.no_grad():
        if kept != "text":
            batch["image_features"] = model.image_tower(batch.pop("images"))
        if kept != "image":
            batch["text_features"] = model.text_tower(batch.pop("tokens"), batch.pop("token_mask"))
    expected = run(model, batch, 1)
    same_run(run(model, batch, n_parts), expected, torch.float32)


@given(clip_configs, sizes, parts, seeds)
def test_a_loss_scale_multiplies_gradients_and_not_the_loss(config, n, n_parts, seed):
    """As with fp16's scaler, which divides by the scale before the step."""
    model, batch = model_of(config, seed), batch_of(config, n, seed)
    dtype = pair_of(model, batch)[0].dtype
    expected = run(model, batch, n_parts)
    *found, scaled = run(model, batch, n_parts, Scaled(1024))
    same_run((*found, {name: gradient / 1024 for name, gradient in scaled.items()}), expected, dtype)


@given(clip_configs, sizes, parts, seeds)
def test_no_graph_is_wider_than_a_part(config, n, n_parts, seed):
    """Each part is embedded without a graph, then again with one."""
    model, batch = model_of(config, seed), batch_of(config, n, seed)
    seen = {"image": [], "text": []}
    for name, tower in (("image", model.image_tower), ("text", model.text_tower)):
        tower.register_forward_pre_hook(
            lambda module, inputs, name=name: seen[name].append((torch.is_grad_enabled(), len(inputs[0])))
        )
    backward(model, batch, n_parts)
    lengths = [len(range(n)[part]) for part in chunks(n, n_parts)]
    expected = [(with_graph, length) for with_graph in (False, True) for length in lengths]
    law = "each part must be embedded once without a graph and once with one, never more at a time"
    assert seen == {"image": expected, "text": expected}, law


@given(resnet_clip_configs, sizes, parts, seeds)
def test_batchnorm_counts_every_part_once(config, n, n_parts, seed):
    """Its statistics are those of one pass over the parts, though each is embedded twice."""
    model, batch = model_of(config, seed).train(), batch_of(config, n, seed)
    reference = copy.deepcopy(model)
    whole_batch(reference, batch, chunks(n, n_parts))
    backward(model, batch, n_parts)
    found, expected = (m.image_tower.state_dict() for m in (model, reference))
    for name in found:
        if "running_" in name:
            law = f"{name} must be updated once per part, though parts are embedded twice"
            close(found[name], expected[name], law, atol=1e-12, rtol=1e-12)
    model.image_tower(batch["images"])  # and after it they go on as before
    reference.image_tower(batch["images"])
    for norm, other in zip(model.image_tower.modules(), reference.image_tower.modules(), strict=True):
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.testing.assert_close(norm.running_var, other.running_var, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    "text", [SMALL.text, BertTextConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=20)]
)
def test_under_autocast_every_parameter_still_gets_its_gradient(text):
    """autocast remembers weights cast in the pass without a graph; used again, they would end the gradient."""
    config = replace(SMALL, text=text)
    model, batch = CLIP(config), batch_of(config, 8, 0)
    batch["images"] = batch["images"].float()
    results = []
    for n_parts in (1, 3):
        results.append(run(model, batch, n_parts, Precision("bf16", torch.device("cpu")))[3])
    for name, gradient in results[0].items():
        cosine = torch.cosine_similarity(gradient.flatten(), results[1][name].flatten(), dim=0)
        assert cosine > 0.98, f"{name} must get its gradient under autocast too"


@pytest.mark.parametrize("seed", range(5))
def test_plain_accumulation_is_another_gradient(seed):
    """It compares the pairs of each part only: the laws above can fail."""
    model, batch = CLIP(SMALL).double(), batch_of(SMALL, 8, seed)
    batch["groups"] = torch.arange(8)
    expected, cached = (run(model, batch, n_parts) for n_parts in (1, 4))
    model.zero_grad()
    total = sum(batch_loss(model, part)[0] for part in split(batch, 4)) / 8
    total.backward()
    accumulated = total.detach(), 8, {}, gradients(model)

    def direction(result):
        return torch.cat([gradient.flatten() for gradient in result[3].values()])

    def similarity(result):
        return torch.cosine_similarity(direction(result), direction(expected), dim=0)

    assert similarity(cached) > 1 - 1e-9, "cached gradients must point where the whole batch's do"
    assert similarity(accumulated) < 0.97, "plain accumulation must be told from the whole batch"
    assert accumulated[0] < expected[0] - 0.5  # ln 2 is what chance is worth among two, ln 8 among eight
