"""The probe's optimum is Newton's, its metrics are invariant to rotation and scale, and it fits linear classes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minclip.evaluation.linear_probe import STRENGTHS, choose_l2, fit_classifier, linear_probe, split_held_out
from minclip.evaluation.zero_shot import class_metrics
from tests.minclip.tiny_clip import SEEDS


def problem(n_images, width, n_classes, seed):
    """Random features and labels, each class at least once."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat(
        [torch.arange(n_classes), torch.randint(n_classes, (n_images - n_classes,), generator=generator)]
    )
    centres = torch.randn(n_classes, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(n_images, width, generator=generator, dtype=torch.float64)
    return centres[labels] + 2 * noise, labels


def newton(features, labels, n_classes, l2):
    """The same optimum by Newton's method with the Hessian written out; biases in the last column."""
    n_images = len(features)
    design = torch.cat([features, features.new_ones(n_images, 1)], dim=1)
    width = design.shape[1]
    penalty = torch.full((n_classes, width), l2, dtype=torch.float64)
    penalty[:, -1] = 0
    wanted = torch.nn.functional.one_hot(labels, n_classes).double()
    theta = torch.zeros(n_classes, width, dtype=torch.float64)

    def value(theta):
        losses = torch.logsumexp(design @ theta.T, dim=1) - (wanted * (design @ theta.T)).sum(dim=1)
        return losses.mean() + (penalty * theta.square()).sum() / 2

    for _ in range(100):
        shares = (design @ theta.T).softmax(dim=1)
        gradient = ((shares - wanted).T @ design) / n_images + penalty * theta
        curvature = torch.diag_embed(shares) - shares[:, :, None] * shares[:, None, :]  # (N, C, C)
        hessian = torch.einsum("ncd,ni,nj->cidj", curvature, design, design) / n_images
        hessian = hessian.reshape(n_classes * width, -1) + penalty.flatten().diag()
        step = (torch.linalg.pinv(hessian, hermitian=True) @ gradient.flatten()).reshape(theta.shape)
        size = 1.0
        while value(theta - size * step) > value(theta) and size > 1e-9:
            size /= 2
        theta = theta - size * step
    return theta[:, :-1], theta[:, -1]


@given(st.integers(6, 40), st.integers(1, 5), st.integers(2, 4), st.floats(-2, 1), SEEDS)
def test_the_optimum_is_newtons(n_images, width, n_classes, power, seed):
    features, labels = problem(n_images, width, n_classes, seed)
    weights, biases = fit_classifier(features, labels, n_classes, 10**power, tolerance=1e-9)
    for got, wanted in zip((weights, biases), newton(features, labels, n_classes, 10**power), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)


@given(SEEDS)
def test_the_optimum_does_not_depend_on_the_start_and_leaves_it_alone(seed):
    features, labels = problem(30, 4, 3, seed)
    elsewhere = fit_classifier(features, labels, 3, 10.0)
    kept = [part.clone() for part in elsewhere]
    for got, wanted in zip(
        fit_classifier(features, labels, 3, 0.01, elsewhere, tolerance=1e-9),
        fit_classifier(features, labels, 3, 0.01, tolerance=1e-9),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)
    assert all(torch.equal(part, before) for part, before in zip(elsewhere, kept, strict=True))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_a_fifth_of_each_class_is_held_out(labels):
    fitted, held_out = split_held_out(torch.tensor(labels))
    assert sorted([*fitted.tolist(), *held_out.tolist()]) == list(range(len(labels)))
    for label in set(labels):
        out = sum(labels[i] == label for i in held_out.tolist())
        assert out == min(round(0.2 * labels.count(label)), labels.count(label) - 1)


def test_the_strength_is_the_one_that_held_out_images_like_best():
    """Each strength fitted here from zero; among equals the strongest."""
    features, labels = problem(120, 12, 3, 5)
    fitted, held_out = split_held_out(labels)

    def accuracy(l2):
        weights, biases = fit_classifier(features[fitted], labels[fitted], 3, l2)
        scores = features[held_out] @ weights.T + biases
        return float((scores.argmax(dim=1) == labels[held_out]).double().mean())

    by_strength = {l2: accuracy(l2) for l2 in STRENGTHS}
    best = max(STRENGTHS, key=lambda l2: (by_strength[l2], l2))
    tried = {l2: accuracy(l2) for l2 in (best, best * 10**0.5, best / 10**0.5)}
    assert choose_l2(features, labels, 3) == max(tried, key=lambda l2: (tried[l2], l2))
    assert len(set(by_strength.values())) > 1


def test_the_probe_is_its_parts_on_centred_features():
    features, labels = problem(90, 6, 3, 7)
    new_features, new_labels = problem(40, 6, 3, 8)
    got = linear_probe(features, labels, new_features, new_labels, "abc")
    mean = features.mean(dim=0)
    scale = (features - mean).square().mean().sqrt()
    weights, biases = newton((features - mean) / scale, labels, 3, got["l2"])
    scores = (new_features - mean) / scale @ weights.T + biases
    wanted = class_metrics(scores, new_labels, "abc")
    assert {name: got[name] for name in wanted} == wanted
    assert got["n_train"] == 90
    assert got["l2"] == choose_l2((features - mean) / scale, labels, 3)


@pytest.mark.parametrize("seed", [0, 1])
def test_rotating_moving_and_scaling_the_features_changes_nothing(seed):
    features, labels = problem(60, 5, 3, seed)
    new_features, new_labels = problem(30, 5, 3, seed + 1)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    moved = [7 * some @ rotation + 3 for some in (features, new_features)]
    plain = linear_probe(features, labels, new_features, new_labels, "abc")
    assert linear_probe(moved[0], labels, moved[1], new_labels, "abc") == plain


def test_linear_classes_are_learned_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    labels, new_labels = (torch.randint(4, (count,), generator=generator) for count in (400, 200))
    axes = 3 * torch.eye(4)
    noise = [torch.randn(count, 4, generator=generator) for count in (400, 200)]
    got = linear_probe(axes[labels] + noise[0], labels, axes[new_labels] + noise[1], new_labels, "abcd")
    assert got["top1"] > 0.9
    got = linear_probe(noise[0], labels, noise[1], new_labels, "abcd")
    assert abs(got["top1"] - 0.25) < 0.12


def test_features_that_are_all_the_same_leave_the_commonest_class():
    labels = torch.tensor([0, 1, 2, 1]).repeat(3)
    got = linear_probe(torch.ones(12, 2), labels, torch.ones(12, 2), labels, "abc")
    assert (got["top1"], got["per_class"]) == (0.5, {"a": 0.0, "b": 1.0, "c": 0.0})


FEATURES, LABELS = torch.eye(6), torch.arange(6) // 2


@pytest.mark.parametrize(
    "features, labels, message",
    [
        (FEATURES, LABELS // 2, "class 'c' and 0 more have no training image"),
        (FEATURES, LABELS, "no class has 3 of the 6 images"),
        (FEATURES, LABELS + 1, "training labels must lie in 0 to 2: got 1 to 3"),
        (FEATURES, LABELS[:4], r"training labels must have shape \(6,\)"),
        (FEATURES / 0, LABELS, r"features of training labels must be finite and \(images, width\)"),
        (torch.eye(6)[:, :4], LABELS, r"features of labels must be finite .* got \(6, 6\)"),
    ],
)
def test_linear_probe_refuses(features, labels, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(features, labels, FEATURES, LABELS, "abc")
