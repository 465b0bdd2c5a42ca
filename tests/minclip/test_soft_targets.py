"""Soft targets: the corrected loss and its laws, and each fault of the published formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minclip.losses import clip_loss, soft_target_loss
from tests.drawing import draw_pairs, seeds, unit
from tests.minclip.scaled import log_scale, same, scales
from tests.minlm.reference import normal

sizes = st.integers(1, 7)


def published(images, texts, tau):
    """As published: Z = T I^T / tau, Y = softmax((I I^T + T T^T) / 2 * tau) -> (loss, Y)."""
    logits = texts @ images.T / tau
    targets = F.softmax((images @ images.T + texts @ texts.T) / 2 * tau, dim=-1)
    to_images = (-targets * F.log_softmax(logits, dim=-1)).sum(dim=1)
    to_texts = (-targets.T * F.log_softmax(logits.T, dim=-1)).sum(dim=1)
    return (to_images + to_texts).mean() / 2, targets


def written_out(images, texts, scale, groups):
    """The equation of soft_target_loss, loop by loop."""
    total, n = torch.zeros((), dtype=torch.float64), len(images)
    for i in range(n):
        compared = [j for j in range(n) if j == i or groups[j] != groups[i]]
        similarity = [(images[i].dot(images[j]) + texts[i].dot(texts[j])) / 2 for j in compared]
        target = (scale.exp() * torch.stack(similarity)).softmax(dim=0).detach()
        for rows, columns in ((images, texts), (texts, images)):
            logits = torch.stack([scale.exp() * rows[i].dot(columns[j]) for j in compared])
            total = total - (target * logits.log_softmax(dim=0)).sum() / 2
    return total


@given(sizes, st.integers(1, 8), scales, seeds)
def test_the_loss_and_its_gradients_are_the_equations(n, embed_dim, scale, seed):
    """In particular no gradient flows through the targets, and groups leave no NaN."""
    images, texts, groups = draw_pairs(seed, n, embed_dim)
    results = []
    for loss in (lambda *inputs: soft_target_loss(*inputs)[0], written_out):
        inputs = [x.clone().requires_grad_() for x in (images, texts, log_scale(scale))]
        value = loss(*inputs, groups)
        value.backward()
        results.append((value, *(x.grad for x in inputs)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-9)
    assert soft_target_loss(*inputs, groups)[1] == n


@given(sizes, st.integers(1, 8), scales, seeds)
def test_the_loss_is_symmetric_and_invariant_to_order_and_rotation(n, embed_dim, scale, seed):
    images, texts, groups = draw_pairs(seed, n, embed_dim)
    scale = log_scale(scale)
    value = soft_target_loss(images, texts, scale, groups)[0]
    same(soft_target_loss(texts, images, scale, groups)[0], value)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    same(soft_target_loss(images[order], texts[order], scale, groups[order])[0], value)
    rotation = torch.linalg.qr(normal(seed + 2, embed_dim, embed_dim))[0]
    same(soft_target_loss(images @ rotation, texts @ rotation, scale, groups)[0], value)
    assert torch.equal(
        soft_target_loss(images, texts, scale)[0], soft_target_loss(images, texts, scale, order)[0]
    )


@given(st.integers(2, 40), st.integers(1, 8), scales, seeds)
def test_chance_and_floor(n, embed_dim, scale, seed):
    """ln B without temperature; never below the targets' entropy, which equal images and texts reach."""
    images, texts, _ = draw_pairs(seed, n, embed_dim)
    same(soft_target_loss(images, texts, log_scale(-40.0))[0] / n, math.log(n))
    target = (math.exp(scale) * (images @ images.T + texts @ texts.T) / 2).softmax(dim=1)
    entropy = torch.special.entr(target).sum()
    assert soft_target_loss(images, texts, log_scale(scale))[0] >= entropy - 1e-9
    target = (math.exp(scale) * images @ images.T).softmax(dim=1)
    same(soft_target_loss(images, images, log_scale(scale))[0], torch.special.entr(target).sum())


@given(st.integers(2, 12), seeds)
def test_orthogonal_pairs_give_infonce(n, seed):
    """Orthogonal pairs at the largest scale: the targets are the identity."""
    rotation, scale = torch.linalg.qr(normal(seed, n, n))[0], log_scale(math.log(100))
    same(soft_target_loss(rotation, rotation, scale)[0], clip_loss(rotation, rotation, scale)[0])


# The published formula: a head of 256 that ends in LayerNorm, 32 pairs, tau = 1.
def layer_normed(seed: int, n: int = 32) -> torch.Tensor:
    return F.layer_norm(normal(seed, n, 256), (256,))


@given(sizes, st.integers(1, 8), scales, seeds)
def test_equal_embeddings_have_no_gradient_to_learn_from(n, embed_dim, scale, seed):
    """Random towers: the targets are uniform and the loss is their entropy, its least; InfoNCE's least is zero."""
    image, text = unit(seed, 2, embed_dim)
    alike = image.expand(n, -1), text.expand(n, -1), log_scale(scale)
    same(soft_target_loss(*alike)[0], n * math.log(n))
    same(clip_loss(*alike)[0], n * math.log(n))
    images = alike[0].clone().requires_grad_()
    soft_target_loss(images, *alike[1:])[0].backward()
    same(images.grad, torch.zeros_like(images))


def test_fault_without_unit_length_the_targets_are_the_identity_from_the_start():
    images, texts = layer_normed(0), layer_normed(1)
    assert (images.square().sum(dim=1) - 256).abs().max() < 0.01
    _, targets = published(images, texts, 1.0)
    assert (targets - torch.eye(32)).abs().max() < 1e-20
    mended = (F.normalize(images) @ F.normalize(images).T + F.normalize(texts) @ F.normalize(texts).T) / 2
    assert 0.04 < mended.softmax(dim=1).diagonal().mean() < 0.5  # soft indeed


def test_fault_gradient_flows_through_the_targets():
    images, texts = (unit(seed, 32, 256).requires_grad_() for seed in (0, 1))
    _, targets = published(images, texts, 1.0)
    assert targets.requires_grad
    learned = torch.autograd.grad(published(images, texts, 1.0)[0], images)[0]
    logits = texts @ images.T
    fixed = targets.detach()
    value = F.cross_entropy(logits, fixed) / 2 - (fixed.T * logits.T.log_softmax(dim=1)).sum() / 64
    detached = torch.autograd.grad(value, images)[0]
    assert (learned - detached).norm() > 0.05 * detached.norm()


def test_fault_tau_multiplies_where_it_should_divide():
    """A smaller tau sharpens the logits and blurs the targets."""
    images, texts = unit(0, 32, 256), unit(1, 32, 256)
    sharpness = [published(images, texts, tau)[1].diagonal().mean() for tau in (0.05, 1.0, 20.0)]
    assert sharpness == sorted(sharpness)
    assert sharpness[0] < 0.04
    assert sharpness[2] > 0.99


def test_fault_the_rows_of_the_transposed_targets_do_not_sum_to_one():
    """A pair similar to all others, which are dissimilar to each other, has a target that sums to two."""
    basis = torch.eye(32, dtype=torch.float64)
    images = F.normalize(torch.cat([basis[:1], basis[:1] + basis[1:]]))
    _, targets = published(images, images, 8.0)
    same(targets.sum(dim=1), torch.ones(32))
    sums = targets.T.sum(dim=1)
    assert sums[0] > 2
    assert (sums[1:] < 0.98).all()


@pytest.mark.parametrize("cosine", [0.36, 0.40])
def test_fault_the_loss_vanishes_at_pairs_that_hardly_match(cosine):
    """A loss near zero is no evidence of retrieval: at unit length and scale 1 it is as far as ever from zero."""
    basis = torch.linalg.qr(normal(0, 256, 256))[0] * 16  # rows of squared length 256, as LayerNorm's
    images = basis[:32]
    texts = cosine * images + math.sqrt(1 - cosine**2) * basis[32:64]
    same(F.cosine_similarity(images, texts), torch.full((32,), cosine, dtype=torch.float64))
    assert published(images, texts, 1.0)[0] < 1e-30
    noisy_images, noisy_texts = layer_normed(2, 128), layer_normed(3, 128)
    noisy_texts = F.layer_norm(cosine * noisy_images + math.sqrt(1 - cosine**2) * noisy_texts, (256,))
    assert published(noisy_images, noisy_texts, 1.0)[0] < 0.005  # drawn ones, in a batch of 128
    pair = F.normalize(noisy_images), F.normalize(noisy_texts)
    assert soft_target_loss(*pair, log_scale(0.0))[0] / 128 > 4.5  # ln 128 = 4.85
