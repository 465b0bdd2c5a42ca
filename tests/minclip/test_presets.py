"""Presets: each builds, survives JSON, and has a line for --help."""

import pytest

from minclip.clip import CLIP
from minclip.data.records import class_captions
from minclip.data.tokenizer import WordPiece, encode_batch
from minclip.presets import ABOUT, PRESETS
from minlm.training.config import from_dict, to_dict


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_survive_json(name):
    config = PRESETS[name]
    assert from_dict(type(config), to_dict(config)) == config
    assert CLIP(config.model).logit_scale.exp().item() == pytest.approx(1 / config.model.temperature)


def test_the_class_captions_of_cifar10_fit_into_its_preset():
    config = PRESETS["vit-distilbert-cifar10"]
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    captions = [caption for name in names for caption in class_captions(name, config.data.templates)]
    tokenizer = WordPiece.train(captions, config.model.text.vocab_size)
    assert encode_batch(tokenizer, captions, config.model.text.context_length)[2] == 0


def test_every_preset_has_a_line_for_help_and_the_option_of_its_data():
    assert list(ABOUT) == list(PRESETS)
    for name, line in ABOUT.items():
        assert "\n" not in line
        for option in ("root", "path"):
            assert (f"--data.{option} " in line) == (getattr(PRESETS[name].data, option, None) == ""), name
