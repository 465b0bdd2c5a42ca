"""Plots show the right numbers, words and frames, read back from the parts of the figures."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from PIL import Image

from minclip.data.records import Record
from minclip.evaluation.plots import (
    accuracy_by_class,
    confusion_matrix,
    retrieval_grid,
    search_results,
    similarity_matrix,
    worst_confusions,
    wrap,
    zero_shot_examples,
)
from minclip.evaluation.retrieval import retrieval_ranks
from minlm.plots import GREEN

LONG = "Two dogs, one that cost $5 and one that cost $6, " + "run across a very green field " * 9


def units(rows, width=8, seed=0):
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def plain(index):
    """An image whose colour is its number, wider than high for odd numbers."""
    return Image.new("RGB", (6 + 2 * (index % 2), 6), (10 * index, 100, 200))


def number_of(axes):
    """The number of the `plain` image in the axes."""
    (drawn,) = axes.get_images()
    return int(drawn.get_array()[0, 0, 0]) // 10


def framed(axes):
    return to_hex(axes.spines["left"].get_edgecolor()).upper() == GREEN


def words(axes):
    return [text.get_text() for text in axes.texts]


def check_png(path, figure):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == tuple((figure.get_size_inches() * figure.dpi).astype(int))
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50
        pixels = np.asarray(image.convert("RGB"))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border == 255).all()  # nothing is cut off
    assert [some.name for some in path.parent.iterdir()] == [path.name]
    assert pyplot.get_fignums() == []


# similarity matrix


@pytest.mark.parametrize("n", [1, 2, 10])
def test_similarity_matrix(tmp_path, n):
    images, texts = units(n, seed=1), units(n, seed=2)
    captions = [LONG, *(f"caption {row}" for row in range(1, n))]
    photos = [plain(row) for row in range(n)]
    figure = similarity_matrix(photos, captions, images, texts, tmp_path / "matrix.png")
    axes = figure.axes[0]
    cosines = (texts.double() @ images.double().T).numpy()
    cells, *thumbnails = axes.get_images()
    np.testing.assert_allclose(cells.get_array(), cosines, atol=1e-6)
    for text in axes.texts:
        column, row = text.get_position()
        assert float(text.get_text()) == pytest.approx(cosines[row, column], abs=0.00501)
        assert (text.get_fontweight() == "bold") == (row == column)
    assert len(axes.texts) == n * n
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    centres = [
        (patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2) for patch in frames
    ]
    assert centres == [pytest.approx((row, row)) for row in range(n)]
    for column, thumbnail in enumerate(thumbnails):
        left, right, bottom, top = thumbnail.get_extent()
        assert (left + right) / 2 == pytest.approx(column)
        assert -1.5 < top < bottom < -0.5  # above the first row of cells
        wide, high = photos[column].size
        assert (right - left) / (bottom - top) == pytest.approx(wide / high)
        assert thumbnail.get_array()[0, 0, 0] == 10 * column
    assert len(thumbnails) == n
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [wrap(caption, 38, 3) for caption in captions]
    assert not any(label.get_parse_math() for label in axes.get_yticklabels())  # "$" is a dollar
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("image", "caption")
    check_png(tmp_path / "matrix.png", figure)


def test_an_image_wins_when_no_caption_is_as_close_as_its_own(tmp_path):
    """The second image is closer to both of the others' captions; every caption is closest to its own image."""
    images = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [0.7, 0.2, 0.6], [0.0, 0.0, 1.0]]), dim=-1)
    figure = similarity_matrix([plain(1)] * 3, ["a"] * 3, images, torch.eye(3), tmp_path / "matrix.png")
    assert "2 of 3 images" in figure.get_suptitle()


def test_a_collapsed_model_wins_no_pair(tmp_path):
    same = units(1).repeat(3, 1)
    figure = similarity_matrix([plain(1)] * 3, ["a"] * 3, same, same, tmp_path / "matrix.png")
    assert "0 of 3 images" in figure.get_suptitle()


# retrieval grid


def make_records(counts):
    return [
        Record(
            str(i), partial(plain, i), tuple(f"caption {i} {c} {LONG if c else ''}" for c in range(count)), i
        )
        for i, count in enumerate(counts)
    ]


@pytest.mark.parametrize(
    "counts, queries, images, texts",
    [
        ([2, 1, 3, 1, 1, 2, 1], [0, 2, 6], units(7, 4, 1), units(11, 4, 2)),
        ([1, 2], [1], units(2, 4, 1), units(3, 4, 2)),  # fewer than five to show
        ([2, 1, 3, 1, 1, 2, 1], [0, 3], units(1).repeat(7, 1), units(1).repeat(11, 1)),  # all tied
    ],
)
def test_retrieval_grid(tmp_path, counts, queries, images, texts):
    records = make_records(counts)
    owners = [i for i, count in enumerate(counts) for _ in range(count)]
    captions = [caption for record in records for caption in record.captions]
    image_ranks, text_ranks = retrieval_ranks(images, texts, torch.tensor(owners))
    scores = (images.double() @ texts.double().T).numpy()
    figure = retrieval_grid(records, images, texts, queries, tmp_path / "grid.png")
    above, below = figure.subfigs
    rows = np.array(above.axes).reshape(len(queries), 6)
    for query, (first, *others) in zip(queries, rows, strict=True):
        text = owners.index(query)
        rank = int(text_ranks[text])
        assert words(first) == [wrap(captions[text], 26, 6), f"its image ranks {rank} of {len(counts)}"]
        shown = [axes for axes in others if axes.get_images()]
        assert len(shown) == min(5, len(counts))
        best = sorted(range(len(counts)), key=lambda i, m=text, q=query: (-round(scores[i, m], 6), i == q))
        assert [number_of(axes) for axes in shown] == best[: len(shown)]
        for place, axes in enumerate(shown, start=1):
            right = place == rank
            assert framed(axes) == right == (number_of(axes) == query)
            cosine = scores[number_of(axes), text]
            assert axes.get_title() == ("✓ " if right else "") + f"{cosine:.3f}"
    rows = np.array(below.axes).reshape(len(queries), 2)
    for query, (first, second) in zip(queries, rows, strict=True):
        assert number_of(first) == query
        assert first.get_xlabel() == f"its best caption ranks {image_ranks[query]} of {len(captions)}"
        best = sorted(range(len(captions)), key=lambda m, q=query: (-round(scores[q, m], 6), owners[m] == q))[
            :5
        ]
        wanted = [(f"{scores[query, m]:.3f}", wrap(captions[m], 95, 2), owners[m] == query) for m in best]
        cosines, found = second.texts[::2], second.texts[1::2]
        assert not any(text.get_parse_math() for text in found)
        drawn = [
            (cosine.get_text().removeprefix("✓ "), text.get_text(), text.get_color() == GREEN)
            for cosine, text in zip(cosines, found, strict=True)
        ]
        assert drawn == wanted
        assert [cosine.get_text().startswith("✓") for cosine in cosines] == [right for *_, right in wanted]
        heights = [text.get_position()[1] for text in found]
        assert heights == sorted(heights, reverse=True)
    check_png(tmp_path / "grid.png", figure)


def test_answers_of_the_querys_group_are_right(tmp_path):
    """Captions made of class names: images 0 and 2 are of one class, 1 of another."""
    records = [Record(str(i), partial(plain, i), (f"class {i % 2}",), i % 2) for i in range(3)]
    images = F.normalize(torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]), dim=-1)
    figure = retrieval_grid(records, images, images, [0], tmp_path / "grid.png")
    above, below = figure.subfigs
    assert [framed(axes) for axes in above.axes[1:4]] == [True, False, True]
    assert words(above.axes[0])[1] == "its image ranks 1 of 3"
    cosines = [text.get_text() for text in below.axes[1].texts[::2]]
    assert [cosine.startswith("✓") for cosine in cosines] == [True, False, True]


def test_search_results(tmp_path):
    figure = search_results("a $5 dog $6", [plain(4), plain(2)], [0.31, 0.254], tmp_path / "search.png")
    first, *others = figure.axes
    assert not first.texts[0].get_parse_math()
    assert words(first)[0] == "a $5 dog $6"
    assert [number_of(axes) for axes in others[:2]] == [4, 2]
    assert [axes.get_title() for axes in others] == ["0.310", "0.254", "", "", ""]
    assert not any(framed(axes) for axes in others)
    check_png(tmp_path / "search.png", figure)


# zero-shot examples


def test_zero_shot_examples(tmp_path):
    choices = [["red", LONG, "$x$ blue"], ["circle", "square"], ["star", "ring"]]
    probabilities = [[0.7, 0.25, 0.05], [0.4, 0.6], [0.5, 0.5]]
    answers = [0, 0, 0]
    photos = [plain(row) for row in range(3)]
    figure = zero_shot_examples(photos, choices, probabilities, answers, tmp_path / "examples.png")
    rows = np.array(figure.axes).reshape(3, 2)
    for index, (left, right) in enumerate(rows):
        assert number_of(left) == index
        (bars,) = right.containers
        assert [bar.get_width() for bar in bars] == probabilities[index]
        green = [to_hex(bar.get_facecolor()).upper() == GREEN for bar in bars]
        assert green == [place == answers[index] for place in range(len(green))]
        labels = [label.get_text() for label in right.get_yticklabels()]
        wanted = [wrap(choice, 40, 2) for choice in choices[index]]
        wanted[answers[index]] = "✓ " + wanted[answers[index]]
        assert labels == wanted
        assert not any(label.get_parse_math() for label in right.get_yticklabels())
        assert words(right) == [f"{share:.0%}" for share in probabilities[index]]
        assert right.yaxis_inverted()  # the first choice on top
    assert [framed(left) for left, _ in rows] == [True, False, False]  # right, wrong, tied
    assert rows[-1, 1].get_xlabel() == "probability"
    check_png(tmp_path / "examples.png", figure)


@given(st.text(alphabet="ab $\\_^\n", max_size=200), st.integers(3, 30), st.integers(1, 4))
def test_wrapped_text_fits_and_loses_words_only_with_an_ellipsis(text, width, lines):
    wrapped = wrap(text, width, lines)
    assert len(wrapped.split("\n")) <= lines
    assert all(len(line) <= width for line in wrapped.split("\n"))
    if "…" not in wrapped:
        assert "".join(wrapped.split()) == "".join(text.split())


# classification


def cells_of(axes):
    shown = {}
    for text in axes.texts:
        column, row = text.get_position()
        shown[row, column] = (int(text.get_text().replace(",", "")), text.get_fontweight())
    return shown


def test_confusion_matrix_shows_counts_and_shares_of_rows(tmp_path):
    counts = [[6, 2, 0], [0, 1200, 0], [0, 0, 0]]
    names = ["cat", "$5 dog", "an unseen class"]
    figure = confusion_matrix(counts, names, tmp_path / "m.png", "Linear probe")
    axes = figure.axes[0]
    (drawn,) = axes.get_images()
    assert drawn.get_array().tolist() == [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]]
    assert drawn.get_clim() == (0, 1)
    assert cells_of(axes) == {(0, 0): (6, "bold"), (0, 1): (2, "normal"), (1, 1): (1200, "bold")}
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == names
        assert not any(label.get_parse_math() for label in labels)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    assert axes.get_title() == "Linear probe\n1,206 of 1,208 images right (99.8%)"
    with Image.open(tmp_path / "m.png") as image:
        assert image.size == tuple((figure.get_size_inches() * figure.dpi).astype(int))


shares = st.floats(0, 1)


@pytest.mark.parametrize("n_classifiers", [1, 3])
@given(data=st.data())
def test_bars_are_the_accuracies_best_class_first(tmp_path_factory, n_classifiers, data):
    names = [f"class {number}" for number in range(data.draw(st.integers(1, 5)))]
    classifiers = {f"kind {n}": {name: data.draw(shares) for name in names} for n in range(n_classifiers)}
    path = tmp_path_factory.mktemp("bars") / "bars.png"
    figure = accuracy_by_class(classifiers, 0.1, path)
    axes = figure.axes[0]
    first = classifiers["kind 0"]
    order = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(order) == names
    assert [first[name] for name in order] == sorted(first.values(), reverse=True)
    assert axes.yaxis_inverted()  # the first on top
    heights, edges, labels = [], [], []
    for bars, accuracies in zip(axes.containers, classifiers.values(), strict=True):
        assert [bar.get_width() for bar in bars] == [accuracies[name] for name in order]
        heights.append([bar.get_y() + bar.get_height() / 2 for bar in bars])
        edges += [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in bars]
        labels += [f"{accuracies[name]:.0%}" for name in order]
    assert [text.get_text() for text in axes.texts] == labels
    for (_, end), (start, _) in itertools.pairwise(sorted(edges)):
        assert end <= start + 1e-9  # no bar hides another
    for place, centres in enumerate(zip(*heights, strict=True)):
        assert sum(centres) / n_classifiers == pytest.approx(place)  # centred on the class's label
    assert [line.get_xdata()[0] for line in axes.get_lines()] == [0.1]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(legend) == sorted([*classifiers, "chance (10.0%)"])
    assert path.stat().st_size > 5000


def test_the_most_frequent_confusions_are_in_the_description(tmp_path):
    counts = np.array([[5, 3, 0], [9, 1, 0], [0, 0, 4]])
    said = worst_confusions(counts, ("cat", "dog", "cow"))
    assert said == "Most frequent confusions: dog as cat (9 of 10), cat as dog (3 of 8)."
    assert worst_confusions(np.eye(2, dtype=int), ("cat", "dog")) == "No image is classified wrong."
    confusion_matrix(counts.tolist(), ("cat", "dog", "cow"), tmp_path / "a.png", "Zero shot")
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Description"] == f"Zero shot. {said}"
