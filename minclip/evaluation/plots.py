"""Plots of a trained CLIP, saved as PNG: similarity, retrieval, zero-shot examples, confusion and accuracy by class.

Right answers have a green frame and a tick, never colour alone. Captions may hold any character. Each function returns
the figure it saved.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from minclip.data.records import Record
from minclip.evaluation.embed import exact_pair
from minlm.plots import BLUE, GREEN, GREY, ORANGE, new_figure, plain_axes, save_figure

SHOWN = 5  # answers per query
MOST_CLASSES = 40  # class names that fit on an axis
COLOURS = (BLUE, ORANGE, GREEN)  # one per classifier


def wrap(text: str, width: int, lines: int = 4) -> str:
    """Wrap text to at most `lines` lines of `width` characters; an ellipsis marks a cut."""
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))


def similarity_matrix(
    images: Sequence[Image.Image | np.ndarray],
    captions: Sequence[str],
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    path: str | Path,
) -> Figure:
    """Plot the cosines of n captions (rows) and their n images (columns); embeddings (n, E), unit length."""
    first, second = exact_pair(image_embeddings, text_embeddings, "text")
    cosines = (second @ first.T).cpu().numpy()  # (captions, images)
    n = len(captions)
    figure = new_figure(0.8 * n + 5.2, 0.8 * n + 2.6)
    axes = figure.add_subplot()
    drawn = axes.imshow(cosines, cmap="cividis")
    middle = (cosines.min() + cosines.max()) / 2
    for row in range(n):
        for column in range(n):
            value = cosines[row, column]
            cell_text(axes, row, column, f"{value:z.2f}", dark=value <= middle, fontsize=9)
        axes.add_patch(
            Rectangle((row - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor=GREEN, linewidth=3)
        )
    for column, image in enumerate(images):  # a row of thumbnails above the cells
        pixels = np.asarray(image)
        high, wide = 0.47 * np.array(pixels.shape[:2]) / max(pixels.shape[:2])
        axes.imshow(pixels, extent=(column - wide, column + wide, high - 1.02, -high - 1.02))
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -1.5))
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks(range(n), [wrap(caption, 38, 3) for caption in captions], fontsize=8, parse_math=False)
    axes.set_ylabel("caption")
    axes.set_xlabel("image")
    figure.colorbar(drawn, ax=axes, label="cosine similarity", shrink=0.7)
    wins = int(((cosines >= cosines.diagonal()).sum(axis=0) == 1).sum())
    title = "Cosine of each caption with each image; framed: the true pairs"
    figure.suptitle(f"{title}\n{wins} of {n} images are closest to their own caption", fontsize=11)
    return save_figure(
        figure, path, "Cosines of some captions and images of the split; framed: the true pairs."
    )


def cell_text(axes: Axes, row: int, column: int, text: str, dark: bool, fontsize: int) -> None:
    """Write text into a cell of a matrix, white on dark cells, bold on the diagonal."""
    color, weight = "white" if dark else "black", "bold" if row == column else "normal"
    axes.text(column, row, text, ha="center", va="center", fontsize=fontsize, color=color, fontweight=weight)


def retrieval_grid(
    records: Sequence[Record],
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    queries: Sequence[int],
    path: str | Path,
    which: str = "some queries",
) -> Figure:
    """Plot the first five answers to some queries among all N images and M captions, in both directions.

    Top: the first caption of each record in `queries` (row numbers) and the images retrieved for it. Bottom: the
    records' images and the captions retrieved. Answers of the query's group are right; ties count against the model.
    Embeddings (N, E) and (M, E) as `evaluate_records` returns them. which: a description of the queries, for titles.
    """
    image_of_text = np.array([row for row, record in enumerate(records) for _ in record.captions])
    image_groups = np.array([record.group for record in records])
    text_groups = image_groups[image_of_text]
    captions = [caption for record in records for caption in record.captions]
    images, texts = (part.cpu().numpy() for part in exact_pair(image_embeddings, text_embeddings, "text"))
    figure = new_figure(11, 3.7 * len(queries) + 1)
    (above,), (below,) = figure.subfigures(2, 1, squeeze=False, hspace=0.02)
    above.suptitle(f"Caption to image, {which}: the closest images, framed if right", fontsize=12)
    below.suptitle(f"Image to caption, {which}: the closest captions, ticked if right", fontsize=12)
    image_rows = above.subplots(len(queries), 1 + SHOWN, squeeze=False, width_ratios=(1.5, *[1] * SHOWN))
    caption_rows = below.subplots(len(queries), 2, squeeze=False, width_ratios=(1, 4))
    for query, image_row, caption_row in zip(queries, image_rows, caption_rows, strict=True):
        text, group = int(np.flatnonzero(image_of_text == query)[0]), image_groups[query]
        best, cosines, right, rank = rank_answers(images @ texts[text], image_groups == group)
        note = f"its image ranks {rank:,} of {len(records):,}"
        draw_images(image_row, captions[text], note, [records[i].open() for i in best], cosines, right)
        best, cosines, right, rank = rank_answers(texts @ images[query], text_groups == group)
        note = f"its best caption ranks {rank:,} of {len(captions):,}"
        draw_captions(caption_row, records[query].open(), note, [captions[i] for i in best], cosines, right)
    caption = f"Retrieval among all {len(records):,} images and {len(captions):,} captions, {which}."
    return save_figure(figure, path, caption)


def rank_answers(scores: np.ndarray, right: np.ndarray) -> tuple[list[int], list[float], list[bool], int]:
    """Return the best five answers, their scores, which are right, and the rank of the best right one.

    Wrong answers come before right ones with the same score.
    """
    best = np.lexsort((right, -scores))[:SHOWN]
    rank = 1 + int((scores[~right] >= scores[right].max()).sum())
    return best.tolist(), scores[best].tolist(), right[best].tolist(), rank


def search_results(
    query: str, images: Sequence[Image.Image | np.ndarray], cosines: Sequence[float], path: str | Path
) -> Figure:
    """Plot a text and at most five images found for it, best first, with their cosines."""
    figure = new_figure(11, 2.5)
    (row,) = figure.subplots(1, 1 + SHOWN, squeeze=False, width_ratios=(1.5, *[1] * SHOWN))
    figure.suptitle("Images closest to the text", fontsize=12)
    draw_images(row, query, "", images, cosines, [False] * len(images))
    return save_figure(figure, path)


def draw_images(
    row: Sequence[Axes],
    query: str,
    note: str,
    images: Sequence[Image.Image | np.ndarray],
    cosines: Sequence[float],
    right: Sequence[bool],
) -> None:
    """Draw a text with a note and the images found for it in a row of axes."""
    words, *others = row
    for axes in (words, *others[len(images) :]):
        axes.axis("off")
    words.text(0, 0.55, wrap(query, 26, 6), fontsize=9, parse_math=False, va="center")
    words.text(0, 0.05, note, fontsize=8, color=GREY, va="center")
    for axes, image, cosine, is_right in zip(others, images, cosines, right, strict=False):
        draw_image(axes, image, is_right)
        tick, color = ("✓ ", GREEN) if is_right else ("", "black")
        axes.set_title(f"{tick}{cosine:.3f}", fontsize=9, color=color)


def draw_captions(
    row: Sequence[Axes],
    query: Image.Image,
    note: str,
    captions: Sequence[str],
    cosines: Sequence[float],
    right: Sequence[bool],
) -> None:
    """Draw an image with a note and the captions found for it in a row of two axes."""
    first, second = row
    draw_image(first, query)
    first.set_xlabel(note, fontsize=8)
    second.axis("off")
    for place, (caption, cosine, is_right) in enumerate(zip(captions, cosines, right, strict=True)):
        style = {"va": "center", "fontsize": 9, "parse_math": False}
        style |= {"color": GREEN, "fontweight": "bold"} if is_right else {"color": "black"}
        height = 0.9 - 0.2 * place
        second.text(0.08, height, f"{'✓ ' if is_right else ''}{cosine:.3f}", ha="right", **style)
        second.text(0.095, height, wrap(caption, 95, 2), **style)


def draw_image(axes: Axes, image: Image.Image | np.ndarray, right: bool = False) -> None:
    """Draw an image without ticks, with a green frame if it is right."""
    axes.imshow(np.asarray(image))
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set(edgecolor=GREEN if right else GREY, linewidth=4 if right else 0.5)


def zero_shot_examples(
    images: Sequence[Image.Image | np.ndarray],
    choices: Sequence[Sequence[str]],
    probabilities: Sequence[Sequence[float]],
    answers: Sequence[int],
    path: str | Path,
) -> Figure:
    """Plot images beside the probabilities of their choices as bars; the right answer is ticked.

    An image is framed if its right answer has the highest probability; a tie is wrong.
    """
    most = max(len(some) for some in choices)
    figure = new_figure(9, (0.6 + max(1.4, 0.32 * most)) * len(images) + 0.6)
    panels = figure.subplots(len(images), 2, squeeze=False, width_ratios=(1, 2.6))
    rows = zip(panels, images, choices, probabilities, answers, strict=True)
    for (left, right), image, names, shares, answer in rows:
        draw_image(left, image, right=sum(share >= shares[answer] for share in shares) == 1)
        colors = [GREEN if place == answer else BLUE for place in range(len(names))]
        bars = right.barh(range(len(names)), shares, color=colors, height=0.7)
        right.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3, fontsize=8)
        labels = [("✓ " if place == answer else "") + wrap(name, 40, 2) for place, name in enumerate(names)]
        right.set_yticks(range(len(names)), labels, fontsize=8, parse_math=False)
        right.invert_yaxis()
        right.set_xlim(0, 1.1)
        right.spines[["top", "right"]].set_visible(False)
    panels[-1, 1].set_xlabel("probability")
    figure.suptitle(
        "Zero-shot choice: ✓ marks the right answer; an image answered right is framed", fontsize=11
    )
    return save_figure(
        figure, path, "Probabilities of the choices for some zero-shot questions of the split."
    )


def confusion_matrix(
    confusion: Sequence[Sequence[int]], class_names: Sequence[str], path: str | Path, title: str
) -> Figure:
    """Plot a confusion matrix: counts per true class (row) and predicted class (column).

    Colours show the share of the row. The title is followed by the number of images classified right.
    """
    counts, n = np.asarray(confusion), len(class_names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.5, 0.5 * n + 2)
    figure = new_figure(side + 1.2, side + 0.6)
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    for row, column in np.argwhere(counts):
        dark = shares[row, column] <= 0.5
        cell_text(axes, row, column, f"{counts[row, column]:,}", dark, fontsize=8)
    names = [wrap(name, 18, 2) for name in class_names]
    axes.set_xticks(range(n), names, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(n), names, fontsize=8, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    figure.colorbar(drawn, ax=axes, label="share of the true class", shrink=0.7)
    right, total = int(counts.trace()), int(counts.sum())
    axes.set_title(f"{title}\n{right:,} of {total:,} images right ({right / total:.1%})", fontsize=11)
    return save_figure(figure, path, f"{title}. {worst_confusions(counts, class_names)}")


def worst_confusions(counts: np.ndarray, class_names: Sequence[str], most: int = 5) -> str:
    """Describe the largest off-diagonal counts in words, at most five."""
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    places = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(place, wrong.shape) for place in places]
    confused = [
        f"{class_names[row]} as {class_names[column]} ({wrong[row, column]:,} of {counts[row].sum():,})"
        for row, column in pairs
        if wrong[row, column]
    ]
    return (
        f"Most frequent confusions: {', '.join(confused)}." if confused else "No image is classified wrong."
    )


def accuracy_by_class(
    per_class: Mapping[str, Mapping[str, float]], chance: float, path: str | Path
) -> Figure:
    """Plot accuracies {classifier: {class: share}} of at most three classifiers as bars, one group per class.

    Classes are ordered by the first classifier's accuracy, highest first; the dashed line is chance.
    """
    first = next(iter(per_class.values()))
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
    axes.set_xlabel("accuracy: share of the class's images that are classified right")
    axes.set_title("Accuracy by class", fontsize=11)
    plain_axes(axes)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.75 / figure.get_figheight()), ncols=4, frameon=False
    )
    return save_figure(
        figure, path, "Share of each class's images that are classified right; dashed: chance."
    )
