"""Pictures of a classification, saved as PNG: the confusion matrix, and each class's accuracy beside chance.

Each function returns the figure that it saved.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from minclip.evaluation.plots import wrap
from minlm.plots import BLUE, GREEN, ORANGE, new_figure, plain_axes, save_figure

MOST_CLASSES = 40  # what a picture can show with a name each
COLOURS = (BLUE, ORANGE, GREEN)  # one a kind of classifier


def confusion_matrix(
    counts: Sequence[Sequence[int]], class_names: Sequence[str], path: str | Path, title: str
) -> Figure:
    """Counts (classes, classes), row = the true class, column = the one taken for it -> PNG at `path`.

    Coloured by the share of the row; the title is followed by how many images are right.
    ValueError: counts that are not one row and column a class, no image, more than 40 classes.
    """
    counts = np.asarray(counts)
    n = len(class_names)
    if counts.shape != (n, n) or not counts.sum() or n > MOST_CLASSES:
        raise ValueError(
            f"a confusion matrix needs a row and a column for each of at most {MOST_CLASSES} classes, and an "
            f"image: got {counts.shape} for {n} names, {counts.sum()} images"
        )
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.5, 0.5 * n + 2)
    figure = new_figure(side + 1.2, side + 0.6)
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] <= 0.5 else "black"
        weight = "bold" if row == column else "normal"
        style = {"ha": "center", "va": "center", "fontsize": 8, "color": color, "fontweight": weight}
        axes.text(column, row, f"{counts[row, column]:,}", **style)
    names = [wrap(name, 18, 2) for name in class_names]
    axes.set_xticks(range(n), names, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(n), names, fontsize=8, parse_math=False)
    axes.set_xlabel("taken for")
    axes.set_ylabel("true class")
    figure.colorbar(drawn, ax=axes, label="share of the true class", shrink=0.7)
    right, total = int(counts.trace()), int(counts.sum())
    axes.set_title(f"{title}\n{right:,} of {total:,} images right ({right / total:.1%})", fontsize=11)
    return save_figure(figure, path, f"{title}. {worst_confusions(counts, class_names)}")


def worst_confusions(counts: np.ndarray, class_names: Sequence[str], most: int = 5) -> str:
    """The largest counts beside the diagonal in words, at most five."""
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    places = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(place, wrong.shape) for place in places]
    said = [
        f"{class_names[row]} taken for {class_names[column]} ({wrong[row, column]:,} of {counts[row].sum():,})"
        for row, column in pairs
        if wrong[row, column]
    ]
    return f"Most frequent confusions: {', '.join(said)}." if said else "No image is taken for another class."


def accuracy_by_class(
    per_class: Mapping[str, Mapping[str, float]], chance: float, path: str | Path
) -> Figure:
    """Accuracies {classifier: {class: share}} as bars, one group a class, best first -> PNG at `path`.

    Classes are ordered by the first classifier's accuracy; the dashed line is chance.
    ValueError: no classifier or more than three, other classes in one than in another, more than 40 classes.
    """
    if not 0 < len(per_class) <= len(COLOURS):
        raise ValueError(f"1 to {len(COLOURS)} classifiers can be drawn side by side: got {len(per_class)}")
    first = next(iter(per_class.values()))
    if (
        any(shares.keys() != first.keys() for shares in per_class.values())
        or not 0 < len(first) <= MOST_CLASSES
    ):
        counts = [len(shares) for shares in per_class.values()]
        raise ValueError(
            f"accuracies by class need the same 1 to {MOST_CLASSES} classes of each classifier: got {counts}"
        )
    names = sorted(first, key=lambda name: -first[name])
    thick = 0.8 / len(per_class)
    figure = new_figure(7.5, 0.34 * len(names) * (1 + 0.35 * (len(per_class) - 1)) + 1.6)
    axes = figure.add_subplot()
    for number, ((classifier, shares), color) in enumerate(zip(per_class.items(), COLOURS, strict=False)):
        places = np.arange(len(names)) + (number - (len(per_class) - 1) / 2) * thick
        widths = [shares[name] for name in names]
        bars = axes.barh(places, widths, thick, color=color, label=classifier)
        axes.bar_label(bars, [f"{width:.0%}" for width in widths], padding=3, fontsize=7)
    axes.axvline(chance, color="black", linestyle="--", linewidth=1.2, label=f"chance ({chance:.1%})")
    axes.set_yticks(range(len(names)), [wrap(name, 24, 1) for name in names], fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("accuracy: share of the class's images that are taken for it")
    axes.set_title("Accuracy by class", fontsize=11)
    plain_axes(axes)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.75 / figure.get_figheight()), ncols=4, frameon=False
    )
    return save_figure(figure, path, "Share of each class's images that are taken for it; dashed: chance.")
