"""Images of the built-in world, measured pixel by pixel."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minclip.data.shapes import ShapesConfig, make_scene, scenes
from minclip.data.shapes_scene import COLOURS, PATTERNS, RADII, SHAPES, Object, Scene, draw
from minclip.data.shapes_text import captions
from tests.minclip.data.caption_parser import parse

CONFIG = ShapesConfig(train_size=600, dev_size=500)
SEEDS = st.integers(0, 2**32)
SPLITS = st.sampled_from(["train", "dev", "seen"])
INDICES = st.integers(0, 10**6)


@given(seed=SEEDS, split=SPLITS, index=INDICES)
def test_objects_lie_inside_and_apart(seed, split, index):
    assert_inside_and_apart(make_scene(ShapesConfig(seed=seed), split, index))


@given(seed=SEEDS, split=SPLITS, index=INDICES, image_size=st.sampled_from([48, 64, 161]))
def test_the_image_agrees_with_the_caption(seed, split, index, image_size):
    assert_image_agrees(make_scene(ShapesConfig(seed=seed), split, index), image_size)


def test_the_dev_images_agree_with_their_captions():
    for scene in scenes(CONFIG, "dev"):  # all layouts, jitter and drift up to their maxima
        assert_inside_and_apart(scene)
        assert_image_agrees(scene, 64)


def assert_inside_and_apart(scene):
    """Check that the boxes of the objects are in the image and do not overlap."""
    for thing in scene.objects:
        assert RADII[thing.size] <= min(thing.x, thing.y)
        assert max(thing.x, thing.y) <= 1 - RADII[thing.size]
    for a, b in itertools.combinations(scene.objects, 2):
        assert max(abs(a.x - b.x), abs(a.y - b.y)) >= RADII[a.size] + RADII[b.size]


def assert_image_agrees(scene, image_size):
    """Measure size, colour, pattern and place of every object in the image; compare them with the caption."""
    image = np.asarray(draw(scene, image_size), dtype=float)
    drawn = np.abs(image - scene.background).max(axis=2) > 8
    centres = []
    places = (np.arange(image_size) + 0.5) / image_size
    for thing in scene.objects:
        reach = RADII[thing.size] + 1.5 / image_size
        box = (np.abs(places - thing.y) <= reach)[:, None] & (np.abs(places - thing.x) <= reach)
        rows, columns = np.nonzero(drawn & box)
        side = max(np.ptp(rows), np.ptp(columns)) / image_size
        assert thing.size == ("small" if side < 0.29 else "large")
        colours = nearest_colours(image[drawn & box])
        ink = "black" if thing.colour in ("yellow", "cyan") else "white"
        inked = colours.pop(ink, 0) > 0
        if image_size > 96:  # else ink covers no whole pixel; smaller sizes are tested below
            assert inked == (thing.pattern != "plain")
        assert colours.most_common(1)[0][0] == thing.colour
        centres.append((columns.mean() / image_size, rows.mean() / image_size))
        drawn &= ~box
    assert not drawn.any()  # nothing but the objects
    assert_layout(parse(captions(scene)[0])[0], centres)


def nearest_colours(pixels):
    """Count the pixels (n, 3) close to each colour of the world and to white."""
    names = [*COLOURS, "white"]
    palette = np.array([*COLOURS.values(), (255, 255, 255)], dtype=float)
    distance = np.abs(pixels[:, None] - palette).max(axis=2)
    close = distance.min(axis=1) < 30
    return collections.Counter(names[n] for n in distance.argmin(axis=1)[close])


def assert_layout(layout, centres):
    """Check that centres measured in the image agree with the layout, with a clear margin."""
    if len(centres) == 1:
        row, column = layout.split()
        ((x, y),) = centres
        assert ("top", "middle", "bottom")[int(3 * y)] == row
        assert ("left", "centre", "right")[int(3 * x)] == column
        return
    axis = 0 if layout.startswith("row") else 1
    assert centres[1][axis] - centres[0][axis] > 0.3
    assert abs(centres[1][1 - axis] - centres[0][1 - axis]) < 0.15
    if len(centres) == 3:
        beyond = {"row above": 1, "row below": -1, "column left": 1, "column right": -1}[layout]
        for first in centres[:2]:
            assert beyond * (centres[2][1 - axis] - first[1 - axis]) > 0.3


@pytest.mark.parametrize("image_size", [48, 64])
def test_objects_that_differ_in_an_attribute_look_different(image_size):
    kinds = list(itertools.product(SHAPES, COLOURS, RADII, PATTERNS))
    images = np.stack(
        [
            np.asarray(draw(Scene("middle centre", (Object(*kind, 0.5, 0.5),), (220, 220, 220)), image_size))
            for kind in kinds
        ]
    ).astype(np.float32)
    flat = images.reshape(len(kinds), -1) / 255
    squares = (flat**2).sum(1)
    distance = squares[:, None] + squares[None] - 2 * flat @ flat.T
    np.fill_diagonal(distance, np.inf)
    closest = np.unravel_index(distance.argmin(), distance.shape)
    # The unit is one channel of one pixel turned from dark to bright: at least 8 in 64 × 64.
    assert distance.min() > 8 * (image_size / 64) ** 2, [kinds[n] for n in closest]


@given(seed=SEEDS, index=INDICES)
def test_the_scene_does_not_depend_on_the_image_size(seed, index):
    small, large = ShapesConfig(seed=seed), ShapesConfig(seed=seed, image_size=256)
    scene = make_scene(small, "dev", index)
    assert scene == make_scene(large, "dev", index)
    shrunk = np.asarray(draw(scene, 256).reduce(4), dtype=float)
    assert np.abs(np.asarray(draw(scene, 64), dtype=float) - shrunk).mean() < 8
