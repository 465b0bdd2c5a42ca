"""Pictures of what a CLIP has learnt, saved as PNG: similarity matrix, retrieval grid, zero-shot examples.

Right answers are marked by a green frame and a tick, never by colour alone. Captions may hold any character.
Each function returns the figure that it saved.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from minclip.data.records import Record
from minclip.evaluation.embed import exact_pair
from minlm.plots import BLUE, GREEN, GREY, new_figure, save_figure

MOST_PAIRS = 16  # what a similarity matrix can show with a number in each cell
SHOWN = 5  # answers a query


def wrap(text: str, width: int, lines: int = 4) -> str:
    """`text` on at most `lines` lines of `width` characters, with an ellipsis where it was cut."""
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))


def similarity_matrix(
    images: Sequence[Image.Image | np.ndarray],
    captions: Sequence[str],
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    path: str | Path,
) -> Figure:
    """Cosines of n captions (rows) and their n images (columns); pair i is caption i, image i -> PNG at `path`.

    Embeddings (n, E), unit length. ValueError: counts that differ, more than 16 pairs, those of `exact_pair`.
    """
    counts = len(images), len(captions), len(image_embeddings), len(text_embeddings)
    if len(set(counts)) > 1 or counts[0] > MOST_PAIRS:
        raise ValueError(
            "a similarity matrix needs one image, caption and embedding of each a pair, "
            f"at most {MOST_PAIRS} pairs: got {counts[0]} images, {counts[1]} captions, {counts[2:]} embeddings"
        )
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
            color = "white" if value <= middle else "black"
            weight = "bold" if row == column else "normal"
            style = {"ha": "center", "va": "center", "fontsize": 9, "color": color, "fontweight": weight}
            axes.text(column, row, f"{value:z.2f}", **style)
        axes.add_patch(_frame((row - 0.47, row - 0.47), 0.94))
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


@dataclass(frozen=True)
class Row:
    """A query, a note on it, and what was found for it, best first."""

    query: Image.Image | np.ndarray | str
    note: str
    found: list[Image.Image | np.ndarray | str]
    cosines: list[float]
    right: list[bool]


def retrieval_grid(
    records: Sequence[Record],
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    queries: Sequence[int],
    path: str | Path,
    which: str = "some queries",
) -> Figure:
    """The first five answers among all N images and M captions, both ways -> PNG at `path`.

    Above, the first caption of each record whose number is in `queries` and the images found for it; below, the
    same records' images and the captions found; right are those of the record's group. Embeddings as
    `evaluate_records` gives them for `records`: (N, E) and (M, E). Ties count against the model. which: what the
    queries are, for the titles.
    ValueError: counts or numbers that do not fit, those of `exact_pair`.
    """
    image_of_text = np.array([row for row, record in enumerate(records) for _ in record.captions])
    of_images = np.array([record.group for record in records])
    captions = [caption for record in records for caption in record.captions]
    counts = len(image_embeddings), len(text_embeddings)
    if counts != (len(records), len(captions)):
        raise ValueError(f"{len(records)} records with {len(captions)} captions, but {counts} embeddings")
    if not queries or min(queries) < 0 or max(queries) >= len(records):
        raise ValueError(
            f"queries must be one or more of records 0 to {len(records) - 1}: got {list(queries)}"
        )
    images, texts = (part.cpu().numpy() for part in exact_pair(image_embeddings, text_embeddings, "text"))
    of_texts, rows_above, rows_below = of_images[image_of_text], [], []
    for query in queries:
        text = int(np.flatnonzero(image_of_text == query)[0])
        best, cosines, right, rank = _ranked(images @ texts[text], of_images == of_images[query])
        note = f"its image ranks {rank:,} of {len(records):,}"
        rows_above.append(Row(captions[text], note, [records[i].open() for i in best], cosines, right))
        best, cosines, right, rank = _ranked(texts @ images[query], of_texts == of_images[query])
        note = f"its best caption ranks {rank:,} of {len(captions):,}"
        rows_below.append(Row(records[query].open(), note, [captions[i] for i in best], cosines, right))
    figure = new_figure(11, 3.7 * len(queries) + 1)
    above, below = figure.subfigures(2, 1, hspace=0.02)
    _draw_found_images(
        above, rows_above, f"Caption to image, {which}: the closest images, framed where right"
    )
    _draw_found_captions(
        below, rows_below, f"Image to caption, {which}: the closest captions, ticked where right"
    )
    caption = f"Retrieval among all {len(records):,} images and {len(captions):,} captions, {which}."
    return save_figure(figure, path, caption)


def _ranked(scores: np.ndarray, right: np.ndarray) -> tuple[list[int], list[float], list[bool], int]:
    """Positions, scores and rightness of the best five; the best right one's rank. Tied wrong ones come first."""
    best = np.lexsort((right, -scores))[:SHOWN]
    rank = 1 + int((scores[~right] >= scores[right].max()).sum())
    return best.tolist(), scores[best].tolist(), right[best].tolist(), rank


def search_results(
    query: str, images: Sequence[Image.Image | np.ndarray], cosines: Sequence[float], path: str | Path
) -> Figure:
    """A text and the images found for it, at most five, best first, with their cosines -> PNG at `path`."""
    if not 0 < len(images) <= SHOWN or len(images) != len(cosines):
        raise ValueError(f"1 to {SHOWN} images with a cosine each: got {len(images)} and {len(cosines)}")
    figure = new_figure(11, 2.5)
    row = Row(query, "", list(images), list(cosines), [False] * len(images))
    _draw_found_images(figure, [row], "Images closest to the text")
    return save_figure(figure, path)


def _draw_found_images(figure: Figure | SubFigure, rows: list[Row], title: str) -> None:
    panels = figure.subplots(len(rows), 1 + SHOWN, squeeze=False, width_ratios=(1.5, *[1] * SHOWN))
    figure.suptitle(title, fontsize=12)
    for row, (first, *others) in zip(rows, panels, strict=True):
        _words(first, row.query, row.note)
        for axes in others[len(row.found) :]:
            axes.axis("off")
        for axes, image, cosine, right in zip(others, row.found, row.cosines, row.right, strict=False):
            _image(axes, image, right)
            axes.set_title(
                f"✓ {cosine:.3f}" if right else f"{cosine:.3f}", fontsize=9, color=GREEN if right else "black"
            )


def _draw_found_captions(figure: Figure | SubFigure, rows: list[Row], title: str) -> None:
    panels = figure.subplots(len(rows), 2, squeeze=False, width_ratios=(1, 4))
    figure.suptitle(title, fontsize=12)
    for row, (first, second) in zip(rows, panels, strict=True):
        _image(first, row.query)
        first.set_xlabel(row.note, fontsize=8)
        second.axis("off")
        for place, (caption, cosine, right) in enumerate(zip(row.found, row.cosines, row.right, strict=True)):
            style = {"color": GREEN, "fontweight": "bold"} if right else {"color": "black"}
            style |= {"va": "center", "fontsize": 9, "parse_math": False}
            height = 0.9 - 0.2 * place
            second.text(0.08, height, f"✓ {cosine:.3f}" if right else f"{cosine:.3f}", ha="right", **style)
            second.text(0.095, height, wrap(caption, 95, 2), **style)


def zero_shot_examples(
    images: Sequence[Image.Image | np.ndarray],
    choices: Sequence[Sequence[str]],
    probabilities: Sequence[Sequence[float]],
    answers: Sequence[int],
    path: str | Path,
) -> Figure:
    """Each image beside its choices as horizontal bars of probability, the right one marked -> PNG at `path`.

    For picture i: choices[i], as many probabilities[i], and the position answers[i] of the right choice.
    ValueError: counts that differ, a probability outside 0 to 1, an answer that is not a choice.
    """
    if not images or len({len(images), len(choices), len(probabilities), len(answers)}) > 1:
        counts = len(images), len(choices), len(probabilities), len(answers)
        raise ValueError(
            f"images, choices, probabilities and answers must be equally many, not none: got {counts}"
        )
    most = max(len(some) for some in choices)
    figure = new_figure(9, (0.6 + max(1.4, 0.32 * most)) * len(images) + 0.6)
    panels = figure.subplots(len(images), 2, squeeze=False, width_ratios=(1, 2.6))
    rows = zip(panels, images, choices, probabilities, answers, strict=True)
    for number, ((left, right), image, names, shares, answer) in enumerate(rows):
        shares = np.asarray(shares, dtype=float)
        if (
            shares.shape != (len(names),)
            or not ((shares >= 0) & (shares <= 1)).all()
            or not 0 <= answer < len(names)
        ):
            raise ValueError(
                f"example {number}: {len(names)} choices need as many probabilities from 0 to 1 and one of them as "
                f"the answer: got {shares.tolist()} and {answer}"
            )
        _image(left, image, right=(shares >= shares[answer]).sum() == 1)
        colors = [GREEN if place == answer else BLUE for place in range(len(names))]
        bars = right.barh(range(len(names)), shares, color=colors, height=0.7)
        right.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3, fontsize=8)
        labels = [("✓ " if place == answer else "") + wrap(name, 40, 2) for place, name in enumerate(names)]
        right.set_yticks(range(len(names)), labels, fontsize=8, parse_math=False)
        right.invert_yaxis()
        right.set_xlim(0, 1.1)
        right.spines[["top", "right"]].set_visible(False)
    panels[-1, 1].set_xlabel("probability")
    figure.suptitle("Zero-shot choice: ✓ is the right answer, a framed image was answered right", fontsize=11)
    return save_figure(
        figure, path, "Probabilities of the choices for some zero-shot questions of the split."
    )


def _frame(corner: tuple[float, float], side: float) -> Rectangle:
    return Rectangle(corner, side, side, fill=False, edgecolor=GREEN, linewidth=3)


def _image(axes: Axes, image: Image.Image | np.ndarray, right: bool = False) -> None:
    axes.imshow(np.asarray(image))
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set(edgecolor=GREEN if right else GREY, linewidth=4 if right else 0.5)


def _words(axes: Axes, text: str, note: str) -> None:
    axes.axis("off")
    style = {"ha": "left", "va": "center", "transform": axes.transAxes}
    axes.text(0, 0.55, wrap(text, 26, 6), fontsize=9, parse_math=False, **style)
    axes.text(0, 0.05, note, fontsize=8, color=GREY, **style)
