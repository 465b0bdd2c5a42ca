"""Linear probe: accuracy of a linear classifier on a frozen tower's features.

Multinomial logistic regression by full-batch L-BFGS. The L2 strength is chosen on held-out training images, as in
Radford et al. 2021, appendix A.3, by a plain sweep in place of their binary search. Deterministic.

Shapes: N images, D width of the features, C classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minclip.evaluation.retrieval import check_positions
from minclip.evaluation.zero_shot import class_metrics

STRENGTHS = tuple(10.0**power for power in (1, 0, -1, -2, -3, -4))  # swept first, from strong to weak
FINER = 10**0.5  # factor to the best one's neighbours, swept second
HELD_OUT = 0.2  # share of each class
MOST_STEPS = 1000


def fit_classifier(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    l2: float,
    start: tuple[Tensor, Tensor] | None = None,
    tolerance: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Fit multinomial logistic regression to features (N, D) and labels (N,) -> weights (C, D), biases (C,), float64.

        minimum of  1/N sum_n -log softmax(W x_n + b)[y_n]  +  l2 / 2 ||W||^2

    L-BFGS runs from `start`, or from zero, until no gradient exceeds the tolerance. The biases are not regularised,
    so each class must occur.
    """
    features = features.double()
    if start is None:
        start = features.new_zeros(n_classes, features.shape[1]), features.new_zeros(n_classes)
    weights, biases = (part.clone().requires_grad_() for part in start)
    optimizer = torch.optim.LBFGS(
        [weights, biases],
        max_iter=MOST_STEPS,
        history_size=20,
        tolerance_grad=tolerance,
        tolerance_change=0,  # stop by the gradient alone
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weights.T + biases, labels) + l2 / 2 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach(), biases.detach()


def split_held_out(labels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split positions into fitted and held out: a random fifth of each class, never a class's only image."""
    generator = torch.Generator().manual_seed(seed)
    fitted, held_out = [], []
    for label in labels.unique():
        of_class = (labels == label).nonzero().flatten()
        of_class = of_class[torch.randperm(len(of_class), generator=generator)]
        count = min(round(HELD_OUT * len(of_class)), len(of_class) - 1)
        held_out.append(of_class[:count])
        fitted.append(of_class[count:])
    return torch.cat(fitted).sort().values, torch.cat(held_out).sort().values


def choose_l2(features: Tensor, labels: Tensor, n_classes: int) -> float:
    """Choose the L2 strength with the best accuracy on held-out images; the stronger one in a tie.

    Powers of ten are tried first, each fit starting from the one before; then the best one's neighbours.
    """
    fitted, held_out = split_held_out(labels)
    if not len(held_out):
        raise ValueError(
            f"a linear probe holds out a fifth of each class, but no class has 3 of the {len(labels)} images"
        )

    def accuracy(l2: float, start: tuple[Tensor, Tensor] | None) -> tuple[float, tuple[Tensor, Tensor]]:
        weights, biases = fit_classifier(features[fitted], labels[fitted], n_classes, l2, start)
        scores = features[held_out] @ weights.T + biases
        return float((scores.argmax(dim=1) == labels[held_out]).double().mean()), (weights, biases)

    results, start = {}, None
    for l2 in STRENGTHS:
        right, start = accuracy(l2, start)
        results[l2] = right, start
    best = max(results, key=lambda l2: (results[l2][0], l2))
    for l2 in (best * FINER, best / FINER):
        results[l2] = accuracy(l2, results[best][1])
    return max(results, key=lambda l2: (results[l2][0], l2))


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
) -> dict:
    """Fit a linear probe on the training pair of features (N, D) and labels (N,) and evaluate it on the other pair.

    Returns `class_metrics` with the chosen L2 strength "l2" and the number of training images "n_train".

    Features are centred and divided by their root mean square, so that an L2 strength means the same for every tower.
    The final fit includes the held-out images. Raises ValueError for shapes or labels that do not match, or a class
    without a training image.
    """
    for some, of_some, name in (
        (train_features, train_labels, "training labels"),
        (features, labels, "labels"),
    ):
        check_positions(of_some, len(some), len(class_names), name)
        if some.ndim != 2 or some.shape[1] != train_features.shape[1] or not some.isfinite().all():
            raise ValueError(
                f"features of {name} must be finite and (images, width): got {tuple(some.shape)}"
            )
    absent = (torch.bincount(train_labels, minlength=len(class_names)) == 0).nonzero().flatten().tolist()
    if absent:
        raise ValueError(
            f"class {class_names[absent[0]]!r} and {len(absent) - 1} more have no training image"
        )
    train_features, features = train_features.double(), features.double()
    mean = train_features.mean(dim=0)
    scale = (train_features - mean).square().mean().sqrt().clamp(min=1e-12)
    train_features, features = (train_features - mean) / scale, (features - mean) / scale
    l2 = choose_l2(train_features, train_labels, len(class_names))
    weights, biases = fit_classifier(train_features, train_labels, len(class_names), l2)
    metrics = class_metrics(features @ weights.T + biases, labels, class_names)
    return metrics | {"l2": l2, "n_train": len(train_labels)}
