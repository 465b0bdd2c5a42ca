"""The built-in world: its captions are read back by a parser written here, its pictures measured pixel by pixel."""

import collections
import hashlib
import itertools
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minclip.data.shapes import ShapesConfig, combinations, make_scene, scenes, shape_questions
from minclip.data.shapes_scene import COLOURS, PATTERNS, RADII, SHAPES, Object, Scene, draw
from minclip.data.shapes_text import captions

CONFIG = ShapesConfig(train_size=600, dev_size=500)
SEEDS = st.integers(0, 2**32)
SPLITS = st.sampled_from(["train", "dev", "seen"])
INDICES = st.integers(0, 10**6)


# --- a parser of captions that shares nothing with the code that writes them

MENTION = re.compile(
    r"\ba (?P<size>small|little|large|big)(?: (?P<pattern>plain|solid|striped|stripy|dotted|spotted))?"
    r"(?: (?P<colour>red|orange|yellow|green|cyan|blue|purple|black))?"
    r" (?P<shape>circle|square|triangle|diamond|star|cross|heart|ring)\b"
    r"(?: in (?P<colour2>red|orange|yellow|green|cyan|blue|purple|black)\b)?"
    r"(?: with (?P<tail>no pattern|stripes|dots)\b)?"
)
MEANING = {
    "little": "small",
    "big": "large",
    "solid": "plain",
    "no pattern": "plain",
    "stripy": "striped",
    "stripes": "striped",
    "spotted": "dotted",
    "dots": "dotted",
}
PLACES = {
    "in the (top|upper) left corner": "top left",
    "at the top centre|in the middle of the top edge": "top centre",
    "in the (top|upper) right corner": "top right",
    "at the centre left|in the middle of the left edge": "middle left",
    "in the centre|in the middle": "middle centre",
    "at the centre right|in the middle of the right edge": "middle right",
    "in the (bottom|lower) left corner": "bottom left",
    "at the bottom centre|in the middle of the bottom edge": "bottom centre",
    "in the (bottom|lower) right corner": "bottom right",
}
ONE = re.compile(r"(?:a picture of |there is |the image shows )?0 (?P<place>.+)|(?P<first>.+) there is 0")
# Skeletons with R, S for relations and digits for the objects in the order of their mention; then what is said,
# as (who, relation, to whom): who stands in that relation to whom.
TWO = {
    "0 R 1": (0, 1),
    "a picture of 0 R 1": (0, 1),
    "there is 0 and R it 1": (1, 0),
    "0 can be seen R 1": (0, 1),
    "0 and 1, the first R the second": (0, 1),
}
THREE = {  # the two objects of the first relation, the relation's place among the relations, the odd object
    "0 R 1, with 2 R both": ((0, 1), 0, 2),
    "a picture of 0 R 1, with 2 R them": ((0, 1), 0, 2),
    "there is 0 and R it 1 R 2": ((1, 2), 1, 0),
}
SIDES = {
    "0 R two others, 1 on the left and 2 on the right": ((1, 2), "left", 0),
    "0 R two others, 1 at the top and 2 at the bottom": ((1, 2), "above", 0),
    "0 on the left, 1 on the right and 2 R them": ((0, 1), "left", 2),
    "0 at the top, 1 at the bottom and 2 R them": ((0, 1), "above", 2),
}
REVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
LAYOUT_OF = {
    ("left", "below"): "row above",
    ("left", "above"): "row below",
    ("above", "right"): "column left",
    ("above", "left"): "column right",
}


def parse(caption):
    """A caption -> the attributes of the scene that it describes, as `Scene.attributes` gives them."""
    things = []
    for found in MENTION.finditer(caption):
        (colour,) = {found["colour"], found["colour2"]} - {None}
        (pattern,) = {found["pattern"], found["tail"]} - {None}
        words = (found["size"], pattern, colour, found["shape"])
        things.append(tuple(MEANING.get(word, word) for word in words))
    numbers = itertools.count()
    skeleton = MENTION.sub(lambda _: str(next(numbers)), caption)
    if len(things) == 1:
        said = ONE.fullmatch(skeleton)
        (place,) = (
            name for words, name in PLACES.items() if re.fullmatch(words, said["place"] or said["first"])
        )
        return (place, things[0])
    relations = []
    pattern = r"(?:to the )?(left|right) of\b|\b(above|below|under|beneath)\b"
    for found in re.finditer(pattern, skeleton):
        relations.append({"under": "below", "beneath": "below"}.get(found[0], found[1] or found[2]))
    skeleton = re.sub(pattern, "R", skeleton)
    if len(things) == 2:
        layout, pair = ordered(TWO[skeleton], relations[0])
        return ({"left": "row", "above": "column"}[layout], *(things[n] for n in pair))
    if skeleton in SIDES:
        pair, between, odd = SIDES[skeleton]
        (third,) = relations
    else:
        pair, which, odd = THREE[skeleton]
        between, third = relations[which], relations[1 - which]
        if odd == 0:  # "there is C and above it A and B": the pair stands so to C
            third = REVERSE[third]
    between, pair = ordered(pair, between)
    return (LAYOUT_OF[between, third], *(things[n] for n in (*pair, odd)))


def ordered(pair, relation):
    """ "B right of A" is "A left of B"."""
    return (relation, pair) if relation in ("left", "above") else (REVERSE[relation], pair[::-1])


# --- language


@given(seed=SEEDS, split=SPLITS, index=INDICES)
def test_every_caption_read_back_gives_the_scene(seed, split, index):
    scene = make_scene(ShapesConfig(seed=seed), split, index)
    said = captions(scene)
    assert len(set(said)) == 5
    for caption in said:
        assert parse(caption) == scene.attributes, caption


def test_every_caption_of_the_splits_read_back_gives_the_scene():
    for split in ("train", "dev", "seen"):
        for scene in scenes(CONFIG, split):
            assert {parse(caption) for caption in captions(scene)} == {scene.attributes}


def test_captions_of_different_dev_scenes_differ():
    records = CONFIG.read()["dev"]
    said = [caption for record in records for caption in record.captions]
    assert len(records) == 500
    assert len(set(said)) == 5 * 500


# --- scenes and splits


@given(seed=SEEDS, held_out=st.sampled_from([0.125, 0.25, 0.375, 0.5]))
def test_each_colour_and_each_shape_is_held_out_equally_often(seed, held_out):
    seen, held = combinations(ShapesConfig(seed=seed, held_out=held_out))
    assert set(seen) | set(held) == set(itertools.product(COLOURS, SHAPES))
    assert len(seen) + len(held) == 64
    for part, name in ((0, COLOURS), (1, SHAPES)):
        assert collections.Counter(pair[part] for pair in held) == dict.fromkeys(name, 8 * held_out)


@given(seed=SEEDS)
def test_training_never_sees_a_held_out_combination_and_dev_nothing_else(seed):
    config = ShapesConfig(seed=seed, train_size=60, dev_size=60)
    seen, held = combinations(config)
    for split, allowed in (("train", seen), ("seen", seen), ("dev", held)):
        for scene in scenes(config, split):
            pairs = [(thing.colour, thing.shape) for thing in scene.objects]
            assert set(pairs) <= set(allowed)
            assert len(set(pairs)) == len(pairs)  # otherwise "the red circle" could be either


def test_all_colours_shapes_sizes_patterns_and_layouts_occur_in_each_split():
    for split in ("train", "dev", "seen"):
        things = [thing for scene in scenes(CONFIG, split) for thing in scene.objects]
        assert {thing.colour for thing in things} == set(COLOURS)
        assert {thing.shape for thing in things} == set(SHAPES)
        assert {(thing.size, thing.pattern) for thing in things} == set(itertools.product(RADII, PATTERNS))
        assert len({scene.layout for scene in scenes(CONFIG, split)}) == 9 + 2 + 4


@pytest.mark.parametrize("split", ["dev", "seen"])
def test_dev_scenes_differ_in_attributes_and_a_third_has_each_count(split):
    chosen = scenes(CONFIG, split)
    assert len({scene.attributes for scene in chosen}) == len({scene.group for scene in chosen}) == 500
    assert collections.Counter(len(scene.objects) for scene in chosen) == {1: 167, 2: 167, 3: 166}


def test_groups_agree_with_attributes():
    chosen = scenes(ShapesConfig(train_size=6000), "train")
    pairs = {(scene.attributes, scene.group) for scene in chosen}
    assert len({attributes for attributes, _ in pairs}) == len({group for _, group in pairs}) == len(pairs)
    assert len(pairs) < len(chosen)  # some attributes come twice, so the group is not just a running number
    assert 0 <= min(group for _, group in pairs) <= max(group for _, group in pairs) < 2**30


def test_a_larger_split_begins_with_the_smaller_one():
    large = ShapesConfig(train_size=90, dev_size=90, image_size=96)
    small = ShapesConfig(train_size=30, dev_size=30)
    for split in ("train", "dev", "seen"):
        assert scenes(large, split)[:30] == scenes(small, split)
    assert scenes(small, "train") == [make_scene(small, "train", index) for index in range(30)]


@given(seed=SEEDS, variants=st.integers(1, 5))
def test_a_run_of_variants_shows_the_same_objects_in_other_places(seed, variants):
    config = ShapesConfig(seed=seed, train_size=30 * variants, variants=variants)
    chosen = scenes(config, "train")
    things = [sorted(thing.attributes for thing in scene.objects) for scene in chosen]
    runs = [things[start : start + variants] for start in range(0, len(things), variants)]
    assert all(run == [run[0]] * variants for run in runs)
    assert len({str(run[0]) for run in runs}) > 20  # of 30: the next run shows other objects
    assert [len(run[0]) for run in runs] == [1, 2, 3] * 10
    assert len(set(chosen)) == len(chosen)
    orders = [[thing.attributes for thing in scene.objects] for scene in chosen]
    swapped = [a != b for a, b in itertools.pairwise(orders) if sorted(a) == sorted(b)]
    assert any(swapped) == (variants > 1)  # left and right change places too


def test_other_seeds_and_other_splits_give_other_scenes():
    series = {
        (seed, split): [make_scene(ShapesConfig(seed=seed), split, index) for index in range(20)]
        for seed in (0, 1, 2)
        for split in ("train", "seen", "dev")
    }
    everything = [scene for chosen in series.values() for scene in chosen]
    assert len(set(everything)) == len(everything)


def test_the_same_bytes_in_another_process():
    config = ShapesConfig(train_size=12, dev_size=12)
    program = (
        "import hashlib\n"
        "from minclip.data.shapes import ShapesConfig\n"
        "for split, records in ShapesConfig(train_size=12, dev_size=12).read().items():\n"
        "    for r in records:\n"
        "        print(r.image_id, r.group, r.captions, hashlib.sha256(r.open().tobytes()).hexdigest())\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[3],
        env={"PYTHONHASHSEED": "12345"},
    ).stdout.splitlines()
    here = [
        f"{r.image_id} {r.group} {r.captions} {hashlib.sha256(r.open().tobytes()).hexdigest()}"
        for records in config.read().values()
        for r in records
    ]
    assert there == here
    assert len(set(here)) == 36


def test_records_survive_pickling_and_have_ids_of_their_own():
    splits = ShapesConfig(train_size=9, dev_size=9, image_size=40).read()
    records = [record for split in splits.values() for record in split]
    assert len({record.image_id for record in records}) == 27
    for record, scene in zip(splits["dev"], scenes(ShapesConfig(dev_size=9), "dev"), strict=True):
        assert (record.captions, record.group) == (captions(scene), scene.group)
    for record in records:
        copy = pickle.loads(pickle.dumps(record))
        image = copy.open()
        assert (image.mode, image.size) == ("RGB", (40, 40))
        assert image.tobytes() == record.open().tobytes()


# --- pictures


@given(seed=SEEDS, split=SPLITS, index=INDICES)
def test_objects_lie_inside_and_apart(seed, split, index):
    assert_inside_and_apart(make_scene(ShapesConfig(seed=seed), split, index))


@given(seed=SEEDS, split=SPLITS, index=INDICES, image_size=st.sampled_from([48, 64, 161]))
def test_the_picture_shows_what_the_caption_says(seed, split, index, image_size):
    assert_shows_what_is_said(make_scene(ShapesConfig(seed=seed), split, index), image_size)


def test_the_dev_pictures_show_what_their_captions_say():
    for scene in scenes(CONFIG, "dev"):  # all layouts, and jitter and drift out to their ends
        assert_inside_and_apart(scene)
        assert_shows_what_is_said(scene, 64)


def assert_inside_and_apart(scene):
    """The boxes of the objects lie in the picture and do not overlap."""
    for thing in scene.objects:
        assert RADII[thing.size] <= min(thing.x, thing.y)
        assert max(thing.x, thing.y) <= 1 - RADII[thing.size]
    for a, b in itertools.combinations(scene.objects, 2):
        assert max(abs(a.x - b.x), abs(a.y - b.y)) >= RADII[a.size] + RADII[b.size]


def assert_shows_what_is_said(scene, image_size):
    """Size, colour, pattern and place of every object, measured in the picture, are those of the caption."""
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
        if image_size > 96:  # enough for whole pixels of ink; for the smaller ones see the next test
            assert inked == (thing.pattern != "plain")
        assert colours.most_common(1)[0][0] == thing.colour
        centres.append((columns.mean() / image_size, rows.mean() / image_size))
        drawn &= ~box
    assert not drawn.any()  # nothing but the objects
    assert_layout(parse(captions(scene)[0])[0], centres)


def nearest_colours(pixels):
    """(n, 3) pixels -> how many are, within rounding and smooth edges, each colour of the world or white."""
    names = [*COLOURS, "white"]
    palette = np.array([*COLOURS.values(), (255, 255, 255)], dtype=float)
    distance = np.abs(pixels[:, None] - palette).max(axis=2)
    close = distance.min(axis=1) < 30
    return collections.Counter(names[n] for n in distance.argmin(axis=1)[close])


def assert_layout(layout, centres):
    """Centres measured in the picture agree with what the layout means, with a clear margin."""
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
    # In full pixels of one channel turned from dark to bright: eight of 64 × 64 at the very least.
    assert distance.min() > 8 * (image_size / 64) ** 2, [kinds[n] for n in closest]


@given(seed=SEEDS, index=INDICES)
def test_the_picture_does_not_depend_on_its_size(seed, index):
    small, large = ShapesConfig(seed=seed), ShapesConfig(seed=seed, image_size=256)
    scene = make_scene(small, "dev", index)
    assert scene == make_scene(large, "dev", index)
    shrunk = np.asarray(draw(scene, 256).reduce(4), dtype=float)
    assert np.abs(np.asarray(draw(scene, 64), dtype=float) - shrunk).mean() < 8


# --- questions


CHOICES = {"colour": 8, "shape": 8, "size": 2, "pattern": 3, "place": 9, "relation": 4}


@pytest.mark.parametrize("split", ["dev", "seen"])
def test_of_each_questions_choices_only_the_answer_is_true(split):
    asked = shape_questions(CONFIG, split)
    assert {name: len(items[0].choices) for name, items in asked.items()} == CHOICES
    parts = {"size": 0, "pattern": 1, "colour": 2, "shape": 3}
    for name, items in asked.items():
        for question in items:
            (scene, _) = question.record.open.args
            read = [parse(choice) for choice in question.choices]
            assert [attributes == scene.attributes for attributes in read].index(True) == question.answer
            assert len(set(read)) == CHOICES[name]
            for attributes in read:  # nothing but what is asked for differs
                if name in parts:
                    ((*mine, _), (*theirs, _)) = (attributes, scene.attributes)
                    assert mine == theirs
                    differing = [n for n in range(4) if attributes[1][n] != scene.attributes[1][n]]
                    assert differing in ([], [parts[name]])
                else:
                    assert sorted(attributes[1:]) == sorted(scene.attributes[1:])


@given(seed=SEEDS)
def test_no_constant_answer_beats_chance(seed):
    config = ShapesConfig(seed=seed, train_size=1, dev_size=240)
    ids = {record.image_id for record in config.read()["dev"]}
    for name, items in shape_questions(config).items():
        each = len(items) // CHOICES[name]
        assert each >= 1
        assert {question.record.image_id for question in items} <= ids
        assert set(collections.Counter(question.answer for question in items).values()) == {each}
        truths = collections.Counter(asked_value(name, question) for question in items)
        assert len(truths) == CHOICES[name]
        assert set(truths.values()) == {each}


def asked_value(name, question):
    """The true value of what is asked, found in the right sentence."""
    sentence = question.choices[question.answer]
    if name == "relation":
        return MENTION.sub("", sentence).strip()
    read = parse(sentence)
    return read[0] if name == "place" else read[1][("size", "pattern", "colour", "shape").index(name)]


# --- borders


@pytest.mark.parametrize(
    "values, message",
    [
        ({"held_out": 0.2}, r"held_out=0\.2 is not in whole eighths: use 0\.125, 0\.25, 0\.375 or 0\.5"),
        ({"held_out": 0.0}, r"held_out=0\.0 is not in whole eighths"),
        ({"held_out": 0.625}, r"held_out=0\.625 is not in whole eighths"),
        ({"train_size": 0, "variants": 3}, r"train_size=0 must be at least 1"),
        ({"train_size": 9, "variants": 0}, r"variants=0 must be at least 1"),
        ({"dev_size": 2}, r"dev_size=2 must be at least 3"),
        ({"dev_size": 1297}, r"dev_size=1297 must be at most 1296"),
        ({"dev_size": 649, "held_out": 0.125}, r"dev_size=649 must be at most 648"),
        ({"image_size": 31}, r"image_size=31 must be at least 32"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        ShapesConfig(**values)


def test_the_largest_dev_split_exists():
    assert len(scenes(ShapesConfig(dev_size=648, held_out=0.125), "dev")) == 648


def test_an_unknown_shape_is_named():
    with pytest.raises(ValueError, match=r"shape 'cube' is none of circle, .*, ring: choose one of these"):
        draw(Scene("row", (Object("cube", "red", "small", "plain", 0.5, 0.5),), (220, 220, 220)), 64)
