"""Config of a run: presets that build, and the tokenizer's facts written into the config."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minclip.clip import CLIP
from minclip.data.records import class_captions
from minclip.data.tokenizer import WordPiece, encode_batch
from minclip.presets import ABOUT, PRESETS
from minclip.towers.text import GPTTextConfig
from minlm.training.command import options_of
from minlm.training.config import from_dict, to_dict


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_survive_json(name):
    config = PRESETS[name]
    assert from_dict(type(config), to_dict(config)) == config
    assert CLIP(config.model).logit_scale.exp().item() == pytest.approx(1 / config.model.temperature)


@pytest.mark.parametrize("name", PRESETS)
@given(st.sampled_from(["a red dog", "zwei Hunde", "q"]))
def test_the_tokenizers_facts_are_written_into_the_config(name, text):
    tokenizer = WordPiece.train([text], 60)
    config = PRESETS[name].with_tokenizer(tokenizer)
    assert config.model.text.vocab_size == tokenizer.vocab_size
    assert config.model.text.vocab_digest == tokenizer.digest
    if isinstance(config.model.text, GPTTextConfig):
        assert config.model.text.end_id == tokenizer.end_id


@pytest.mark.parametrize("name", PRESETS)
def test_the_transform_has_the_towers_image_size(name):
    config = PRESETS[name]
    for train in (True, False):
        transform = config.image_transform(train)
        assert transform.image_size == config.model.image.image_size
        assert transform.crops == (train and config.transform.crop_scale[0] < 1)


def test_the_class_captions_of_cifar10_fit_into_its_preset():
    config = PRESETS["vit-distilbert-cifar10"]
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    captions = [caption for name in names for caption in class_captions(name, config.data.templates)]
    tokenizer = WordPiece.train(captions, config.model.text.vocab_size)
    assert encode_batch(tokenizer, captions, config.model.text.context_length)[2] == 0


@pytest.mark.parametrize("gib", [-1.0, float("nan"), float("inf")])
def test_impossible_caches_are_refused(gib):
    with pytest.raises(ValueError, match=f"cache_gib={gib} must be at least 0"):
        replace(PRESETS["shapes"], cache_gib=gib)


def test_every_preset_has_a_line_for_help_and_the_option_of_its_data():
    assert list(ABOUT) == list(PRESETS)
    for name, line in ABOUT.items():
        assert "\n" not in line
        for option in ("root", "path"):
            assert (f"--data.{option} " in line) == (getattr(PRESETS[name].data, option, None) == ""), name


def test_fields_set_from_the_tokenizer_are_not_options():
    for config in PRESETS.values():
        assert not {"text.end_id", "text.vocab_digest"} & {option.name for option in options_of(config)}
