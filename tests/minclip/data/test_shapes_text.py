"""Captions of the built-in world: an independent parser recovers the scene from each."""

from hypothesis import given
from hypothesis import strategies as st

from minclip.data.shapes import ShapesConfig, make_scene, scenes
from minclip.data.shapes_text import captions
from tests.minclip.data.caption_parser import parse

CONFIG = ShapesConfig(train_size=600, dev_size=500)
SEEDS = st.integers(0, 2**32)
SPLITS = st.sampled_from(["train", "dev", "seen"])
INDICES = st.integers(0, 10**6)


@given(seed=SEEDS, split=SPLITS, index=INDICES)
def test_every_caption_is_parsed_into_the_scene(seed, split, index):
    scene = make_scene(ShapesConfig(seed=seed), split, index)
    said = captions(scene)
    assert len(set(said)) == 5
    for caption in said:
        assert parse(caption) == scene.attributes, caption


def test_every_caption_of_the_splits_is_parsed_into_the_scene():
    for split in ("train", "dev", "seen"):
        for scene in scenes(CONFIG, split):
            assert {parse(caption) for caption in captions(scene)} == {scene.attributes}


def test_captions_of_different_dev_scenes_differ():
    records = CONFIG.read()["dev"]
    said = [caption for record in records for caption in record.captions]
    assert len(records) == 500
    assert len(set(said)) == 5 * 500
