"""The pictures of a classification show its numbers: read back from the figures' parts."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minclip.evaluation.class_plots import accuracy_by_class, confusion_matrix, worst_confusions


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
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "taken for")
    assert axes.get_title() == "Linear probe\n1,206 of 1,208 images right (99.8%)"
    with Image.open(tmp_path / "m.png") as image:
        assert image.size == tuple((figure.get_size_inches() * figure.dpi).astype(int))


@pytest.mark.parametrize(
    "counts, names, message",
    [
        ([[1, 0], [0, 1]], "abc", r"got \(2, 2\) for 3 names, 2 images"),
        ([[0, 0], [0, 0]], "ab", r"got \(2, 2\) for 2 names, 0 images"),
        ([[1] * 41] * 41, "a" * 41, "at most 40 classes"),
    ],
)
def test_confusion_matrix_refuses(tmp_path, counts, names, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(counts, names, tmp_path / "m.png", "a")


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


@pytest.mark.parametrize(
    "per_class, message",
    [
        ({}, "1 to 3 classifiers can be drawn side by side: got 0"),
        ({name: {"a": 1.0} for name in "abcd"}, "got 4"),
        ({"x": {"a": 1.0}, "y": {"b": 1.0}}, r"the same 1 to 40 classes of each classifier: got \[1, 1\]"),
        ({"x": {}}, r"got \[0\]"),
        ({"x": {str(i): 1.0 for i in range(41)}}, r"got \[41\]"),
    ],
)
def test_accuracy_by_class_refuses(tmp_path, per_class, message):
    with pytest.raises(ValueError, match=message):
        accuracy_by_class(per_class, 0.1, tmp_path / "bars.png")


def test_the_most_frequent_confusions_are_said_in_words(tmp_path):
    counts = np.array([[5, 3, 0], [9, 1, 0], [0, 0, 4]])
    said = worst_confusions(counts, ("cat", "dog", "cow"))
    assert said == "Most frequent confusions: dog taken for cat (9 of 10), cat taken for dog (3 of 8)."
    assert worst_confusions(np.eye(2, dtype=int), ("cat", "dog")) == "No image is taken for another class."
    confusion_matrix(counts.tolist(), ("cat", "dog", "cow"), tmp_path / "a.png", "Zero shot")
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Description"] == f"Zero shot. {said}"
