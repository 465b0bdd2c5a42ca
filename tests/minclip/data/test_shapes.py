"""Scenes, splits, records and questions of the built-in world."""

import collections
import hashlib
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minclip.data.shapes import ShapesConfig, combinations, make_scene, scenes
from minclip.data.shapes_scene import COLOURS, PATTERNS, RADII, SHAPES
from minclip.data.shapes_text import captions
from tests.minclip.data.caption_parser import MENTION, parse

CONFIG = ShapesConfig(train_size=600, dev_size=500)
SEEDS = st.integers(0, 2**32)


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
    allowed = {"train": seen, "seen": seen, "dev": held}
    for split in ("train", "seen", "dev"):
        for scene in scenes(config, split):
            pairs = [(thing.colour, thing.shape) for thing in scene.objects]
            assert set(pairs) <= set(allowed[split])
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
    assert len(pairs) < len(chosen)  # some attributes occur twice, so the group is not a running number
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


def test_another_process_draws_the_same_bytes():
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


def test_records_survive_pickling_and_have_unique_ids():
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


CHOICES = {"colour": 8, "shape": 8, "size": 2, "pattern": 3, "place": 9, "relation": 4}


def test_only_the_answer_of_each_question_is_true():
    asked, chosen = CONFIG.questions(), scenes(CONFIG, "dev")
    assert {name: len(items[0].choices) for name, items in asked.items()} == CHOICES
    parts = {"size": 0, "pattern": 1, "colour": 2, "shape": 3}
    for name, items in asked.items():
        for question in items:
            scene = chosen[int(question.record.image_id.removeprefix("dev-"))]
            read = [parse(choice) for choice in question.choices]
            assert [attributes == scene.attributes for attributes in read].index(True) == question.answer
            assert len(set(read)) == CHOICES[name]
            for attributes in read:  # only the value asked differs
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
    for name, items in config.questions().items():
        each = len(items) // CHOICES[name]
        assert each >= 1
        assert {question.record.image_id for question in items} <= ids
        assert set(collections.Counter(question.answer for question in items).values()) == {each}
        truths = collections.Counter(asked_value(name, question) for question in items)
        assert len(truths) == CHOICES[name]
        assert set(truths.values()) == {each}


def asked_value(name, question):
    """Parse the value asked from the true sentence."""
    sentence = question.choices[question.answer]
    if name == "relation":
        return MENTION.sub("", sentence).strip()
    read = parse(sentence)
    return read[0] if name == "place" else read[1][("size", "pattern", "colour", "shape").index(name)]


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
def test_bad_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ShapesConfig(**values)


def test_the_largest_dev_split_exists():
    assert len(scenes(ShapesConfig(dev_size=648, held_out=0.125), "dev")) == 648
