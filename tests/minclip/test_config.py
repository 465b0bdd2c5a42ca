"""Config of a run: what the tokenizer sets, the transform's size, the spelling of its options."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minclip.config import ModelConfig, RunConfig
from minclip.data.tokenizer import WordPiece
from minclip.presets import PRESETS
from minclip.towers.text import GPTTextConfig
from minlm.training.config import from_dict, to_dict
from minlm.training.options import options_of, override


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


@pytest.mark.parametrize("gib", [-1.0, float("nan"), float("inf")])
def test_impossible_caches_are_refused(gib):
    with pytest.raises(ValueError, match=f"cache_gib={gib} must be at least 0"):
        replace(PRESETS["shapes"], cache_gib=gib)


def test_fields_set_from_the_tokenizer_are_not_options():
    for config in PRESETS.values():
        assert not {"text.end_id", "text.vocab_digest"} & {option.name for option in options_of(config)}


@given(st.integers(1, 9))
def test_options_of_the_model_go_without_its_name(n_layers):
    config = override(PRESETS["shapes"], {"image.n_layers": str(n_layers), "embed_dim": "32"})
    assert (config.model.image.n_layers, config.model.embed_dim) == (n_layers, 32)


def test_the_config_of_an_exported_model_has_no_training():
    config = PRESETS["shapes"]
    exported = ModelConfig(model=config.model, transform=config.transform)
    assert to_dict(exported).keys() == {"model", "transform"}
    assert from_dict(ModelConfig, to_dict(exported)) == exported


@pytest.mark.parametrize("name", ["image", "text", "embed_dim", "temperature", "projection", "loss"])
def test_a_config_from_before_a_run_had_a_model_names_the_new_option(name):
    with pytest.raises(ValueError, match=rf"^unknown option {name}: it is now model\.{name}$"):
        from_dict(RunConfig, {name: None})
