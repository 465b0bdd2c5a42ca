"""InfoNCE and the sigmoid loss against plain loops, and their laws: order, rotation, groups, chance, floor."""

import math

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minclip.losses import clip_logits, clip_loss, contrastive_metrics, sigmoid_loss
from tests.drawing import draw_pairs, unit
from tests.laws import close
from tests.minclip.scaled import TOLERANCE, log_scale, same, scales
from tests.minlm.reference import normal

seeds = st.integers(0, 10**6)
sizes = st.integers(1, 7)


def written_out(images, texts, scale, groups) -> torch.Tensor:
    """The equation of clip_loss, loop by loop; every argument may carry a gradient."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(images)):
        compared = [j for j in range(len(images)) if j == i or groups[j] != groups[i]]
        to_texts = torch.stack([scale.exp() * images[i].dot(texts[j]) for j in compared])
        to_images = torch.stack([scale.exp() * images[j].dot(texts[i]) for j in compared])
        own = scale.exp() * images[i].dot(texts[i])
        total = total + (to_texts.logsumexp(0) - own) / 2 + (to_images.logsumexp(0) - own) / 2
    return total


@given(sizes, st.integers(1, 8), scales, seeds)
def test_the_loss_and_its_gradients_are_the_equations(n, embed_dim, scale, seed):
    images, texts, groups = draw_pairs(seed, n, embed_dim)
    results = []
    for loss in (lambda *inputs: clip_loss(*inputs)[0], written_out):
        inputs = [x.clone().requires_grad_() for x in (images, texts, log_scale(scale))]
        value = loss(*inputs, groups)
        value.backward()
        results.append((value, inputs))
    (value, inputs), (expected, expected_inputs) = results
    same(value, expected, "the loss must be its equation, term by term")
    for name, mine, theirs in zip(("images", "texts", "scale"), inputs, expected_inputs, strict=True):
        tolerance = TOLERANCE[value.dtype] * max(1.0, theirs.grad.abs().max().item())
        law = f"the gradient of the {name} must be the equation's"
        close(mine.grad, theirs.grad, law, atol=tolerance, rtol=0)


@given(sizes, st.integers(1, 8), scales, seeds)
def test_the_gradient_of_the_scale_is_the_slope_of_the_loss(n, embed_dim, scale, seed):
    images, texts, groups = draw_pairs(seed, n, embed_dim)
    parameter, step = log_scale(scale).requires_grad_(), 1e-5
    clip_loss(images, texts, parameter, groups)[0].backward()
    above, below = (written_out(images, texts, log_scale(scale + d), groups) for d in (step, -step))
    slope = (above - below) / (2 * step)
    law = "logit_scale's gradient must be the slope of the loss along it"
    close(parameter.grad, slope, law, atol=1e-3, rtol=1e-4)


@given(sizes, st.integers(1, 8), scales, seeds)
def test_the_count_is_the_number_of_pairs(n, embed_dim, scale, seed):
    images, texts, groups = draw_pairs(seed, n, embed_dim)
    assert clip_loss(images, texts, log_scale(scale), groups)[1] == n
    assert clip_loss(images, texts, log_scale(scale))[1] == n


@given(sizes, st.integers(1, 8), scales, seeds)
def test_the_loss_is_symmetric_and_invariant_to_order_and_rotation(n, embed_dim, scale, seed):
    images, texts, groups = draw_pairs(seed, n, embed_dim)
    scale = log_scale(scale)
    value = clip_loss(images, texts, scale, groups)[0]
    same(clip_loss(texts, images, scale, groups)[0], value, "images and texts must be interchangeable")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    same(
        clip_loss(images[order], texts[order], scale, groups[order])[0],
        value,
        "order of pairs must not matter",
    )
    rotation = torch.linalg.qr(normal(seed + 2, embed_dim, embed_dim))[0]
    same(clip_loss(images @ rotation, texts @ rotation, scale, groups)[0], value, "only angles must matter")
    names = torch.randperm(n, generator=torch.Generator().manual_seed(seed + 3)) + 10**9
    assert torch.equal(clip_loss(images, texts, scale, names[groups])[0], value), "groups must be only names"


@given(sizes, st.integers(1, 8), scales, seeds)
def test_unique_groups_are_plain_infonce(n, embed_dim, scale, seed):
    """Radford et al. 2021, figure 3; bit for bit."""
    images, texts, _ = draw_pairs(seed, n, embed_dim)
    scale = log_scale(scale)
    plain = clip_loss(images, texts, scale)[0]
    unique = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    law = "with unique groups the loss must be plain InfoNCE, bit for bit"
    assert torch.equal(clip_loss(images, texts, scale, unique)[0], plain), law
    logits, labels = scale.exp() * (images @ texts.T), torch.arange(n)
    figure_3 = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    same(plain / n, figure_3, "the loss must be that of Radford et al. 2021, figure 3")


@given(st.integers(2, 7), scales, seeds)
def test_a_group_never_pushes_its_own_members_away(n, scale, seed):
    """With one-hot images, coordinate i of text j meets image i alone: its gradient is pair (i, j)'s."""
    groups, scale = draw_pairs(seed, n, n)[2], log_scale(scale)
    for swapped in (False, True):
        one_hot, others = torch.eye(n, dtype=torch.float64), unit(seed, n, n).requires_grad_()
        pair = (others, one_hot) if swapped else (one_hot, others)
        clip_loss(*pair, scale, groups)[0].backward()
        for i in range(n):
            for j in range(n):
                gradient = others.grad[j, i]
                if i == j:
                    assert gradient <= 0, f"pair {i} must be pulled together"
                elif groups[i] == groups[j]:
                    assert gradient == 0, f"{i} and {j} of one group must not be each other's negatives"
                else:
                    assert gradient >= 0, f"{i} and {j} of different groups must be pushed apart"
    apart = groups[:, None] != groups
    if scale < 1:  # where no weight has vanished: every compared pair has its push
        assert (others.grad.T[apart] > 0).all()


@given(sizes, st.integers(1, 8), scales, seeds)
def test_one_group_has_loss_zero(n, embed_dim, scale, seed):
    images, texts, _ = draw_pairs(seed, n, embed_dim)
    inputs = [x.clone().requires_grad_() for x in (images, texts, log_scale(scale))]
    value = clip_loss(*inputs, torch.full((n,), 5))[0]
    value.backward()
    assert value == 0, "a batch of one group has no negatives: its loss must be zero"
    # NaN comes of the excluded pairs' infinities.
    assert all((x.grad == 0).all() for x in inputs), "without negatives gradients must be zero, not NaN"


@given(sizes, st.integers(1, 8), seeds)
def test_without_temperature_the_loss_is_chance(n, embed_dim, seed):
    """exp(s) -> 0 makes all logits equal: ln B for unique groups, the mean of ln |N(i)| in general."""
    images, texts, groups = draw_pairs(seed, n, embed_dim)
    scale = log_scale(-40.0)
    same(
        clip_loss(images, texts, scale)[0] / n, math.log(n), "chance must be ln B where all logits are equal"
    )
    chance = contrastive_metrics(images, texts, scale, groups)["chance"]
    same(chance, clip_loss(images, texts, scale, groups)[0].detach() / n)
    sizes_compared = [1 + sum(int(g != h) for h in groups) for g in groups]
    law = "chance must be the mean of ln(number of texts that an image is compared with)"
    same(chance, sum(map(math.log, sizes_compared)) / n, law)


@given(st.integers(2, 40), scales, seeds)
def test_perfect_embeddings_reach_the_floor_of_their_temperature(n, scale, seed):
    """Orthogonal pairs: ln(1 + (B - 1) exp(-exp(s))) each, next to nothing at the largest scale."""
    rotation = torch.linalg.qr(normal(seed, n, n))[0]
    floor = math.log1p((n - 1) * math.exp(-math.exp(scale)))
    law = "perfect embeddings must reach ln(1 + (B - 1) exp(-exp(s)))"
    same(clip_loss(rotation, rotation, log_scale(scale))[0] / n, floor, law)
    assert clip_loss(rotation, rotation, log_scale(math.log(100)))[0] < 1e-6


@given(sizes, sizes, st.integers(1, 8), scales, seeds)
def test_logits_are_scaled_cosines(n_images, n_texts, embed_dim, scale, seed):
    images, texts = unit(seed, n_images, embed_dim), unit(seed + 1, n_texts, embed_dim)
    logits = clip_logits(images, texts, log_scale(scale))
    cosines = F.cosine_similarity(images[:, None], texts[None], dim=-1)
    same(logits, math.exp(scale) * cosines, "logits must be cosines times exp(logit_scale)")


@given(sizes, st.integers(1, 8), scales, seeds, st.booleans())
def test_metrics_equal_plain_loops(n, embed_dim, scale, seed, coarse):
    """Coarse: coordinates -1/4, 0, 1/4, whose products are exact and often tie; a tie is not a hit."""
    images, texts, groups = draw_pairs(seed, n, embed_dim)
    if coarse:
        images, texts = (x.sign() * (x.abs() > 0.3) / 4 for x in (images, texts))
    metrics = contrastive_metrics(images.requires_grad_(), texts, log_scale(scale), groups)
    assert not any(figure.requires_grad for figure in metrics.values())
    cosine = (images @ texts.T).tolist()
    others = [(i, j) for i in range(n) for j in range(n) if groups[i] != groups[j]]
    hits = [all(cosine[i][i] > cosine[i][j] for k, j in others if k == i) for i in range(n)]
    same(metrics["top1"], sum(hits) / n)
    same(metrics["positive_cosine"], sum(cosine[i][i] for i in range(n)) / n)
    same(metrics["negative_cosine"], sum(cosine[i][j] for i, j in others) / max(1, len(others)))
    same(metrics["scale"], math.exp(scale))


@given(st.integers(2, 7), st.integers(1, 8), seeds)
def test_a_collapsed_model_has_no_hit(n, embed_dim, seed):
    """Every embedding the same: all cosines tie, and the loss is chance at any scale."""
    one = torch.eye(embed_dim, dtype=torch.float64)[seed % embed_dim].repeat(n, 1)
    metrics = contrastive_metrics(one, one, log_scale(3.0), torch.arange(n))
    assert metrics["top1"] == 0, "ties must count against a collapsed model"
    same(metrics["chance"], math.log(n))
    same(clip_loss(one, one, log_scale(3.0))[0] / n, math.log(n))


@given(sizes, st.integers(1, 8), scales, seeds)
def test_the_loss_is_the_same_under_autocast(n, embed_dim, scale, seed):
    """Its logits stay in float32: at scale 100, bfloat16 would round them to multiples of 1/2."""
    images, texts, groups = (
        x.float() if x.is_floating_point() else x for x in draw_pairs(seed, n, embed_dim)
    )
    inputs = (images, texts, log_scale(scale).float(), groups)
    with torch.autocast("cpu", torch.bfloat16):
        value, metrics = clip_loss(*inputs)[0], contrastive_metrics(*inputs)
    assert torch.equal(value, clip_loss(*inputs)[0]), "logits must stay float32 under autocast"
    assert metrics == contrastive_metrics(*inputs)


biases = st.floats(-12, 5)


def sigmoid_written_out(images, texts, scale, bias, groups) -> torch.Tensor:
    """The equation of sigmoid_loss, pair by pair."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(images)):
        for j in range(len(texts)):
            if i == j or groups[i] != groups[j]:
                logit = scale.exp() * images[i].dot(texts[j]) + bias
                total = total - (logit if i == j else -logit).sigmoid().log()
    return total


@given(sizes, st.integers(1, 8), st.floats(0, 2), biases, seeds)
def test_the_sigmoid_loss_and_its_gradients_are_the_equations(n, embed_dim, scale, bias, seed):
    images, texts, groups = draw_pairs(seed, n, embed_dim)
    results = []
    for loss in (lambda *inputs: sigmoid_loss(*inputs)[0], sigmoid_written_out):
        inputs = [x.clone().requires_grad_() for x in (images, texts, log_scale(scale), log_scale(bias))]
        value = loss(*inputs, groups)
        value.backward()
        results.append((value, *(x.grad for x in inputs)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-8, rtol=1e-8)
    assert sigmoid_loss(*inputs, groups)[1] == n


@given(sizes, st.integers(1, 8), scales, biases, seeds)
def test_the_sigmoid_loss_is_symmetric_and_invariant_to_order_and_group_names(
    n, embed_dim, scale, bias, seed
):
    images, texts, groups = draw_pairs(seed, n, embed_dim)
    learned = log_scale(scale), log_scale(bias)
    value = sigmoid_loss(images, texts, *learned, groups)[0]
    same(sigmoid_loss(texts, images, *learned, groups)[0], value)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    same(sigmoid_loss(images[order], texts[order], *learned, groups[order])[0], value)
    unique = sigmoid_loss(images, texts, *learned, order)[0]
    assert torch.equal(sigmoid_loss(images, texts, *learned)[0], unique)


@given(st.integers(1, 40), st.integers(1, 8), seeds)
def test_the_sigmoid_losss_chance_is_the_best_that_a_bias_alone_can_do(n, embed_dim, seed):
    """About ln B + 1 for unique groups; 0 for one group, in which every pair compared is a positive."""
    images, texts, groups = draw_pairs(seed, n, embed_dim)
    for some in (groups, torch.arange(n)):
        metrics = contrastive_metrics(images, texts, log_scale(0.0), some, log_scale(-3.0))
        assert metrics["bias"] == -3
        tried = torch.linspace(-8, 8, 400, dtype=torch.float64)
        blind = [sigmoid_loss(images, texts, log_scale(-40.0), bias, some)[0] / n for bias in tried]
        torch.testing.assert_close(metrics["chance"].double(), min(blind), atol=2e-3, rtol=1e-3)
    if n > 1:
        same(metrics["chance"], math.log(n) + (n - 1) * math.log(n / (n - 1)))
    assert "bias" not in contrastive_metrics(images, texts, log_scale(0.0), groups)
