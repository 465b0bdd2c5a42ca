"""Config of a run: presets that build, and the tokenizer's facts written into the config."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minlm.presets import ABOUT, FULL, PRESETS, RunConfig
from minlm.runs import MODELS
from minlm.screenplay.source import ScreenplayConfig
from minlm.seq2seq import Seq2SeqConfig
from minlm.tokenizer import CharTokenizer
from minlm.training.config import field_help, from_dict, to_dict
from minlm.training.options import options_of

EVERY = {**PRESETS, **{f"{name} full": config for name, config in FULL.items()}}


@pytest.mark.parametrize("name", EVERY)
def test_presets_build_and_survive_json(name):
    config = EVERY[name]
    assert from_dict(type(config), to_dict(config)) == config
    with torch.device("meta"):
        model = MODELS[type(config.model)](config.model)
    assert model.embedding.tokens.weight.shape == (config.model.vocab_size, config.model.d_model)


def test_full_sizes_are_of_presets_that_there_are():
    assert FULL.keys() <= PRESETS.keys()
    for name, config in FULL.items():
        assert (config.data, config.tokens) == (PRESETS[name].data, PRESETS[name].tokens)
        assert type(config.model) is type(PRESETS[name].model)
        assert config.model.d_model > PRESETS[name].model.d_model


@pytest.mark.parametrize("name", PRESETS)
@given(st.text(min_size=1, max_size=9))
def test_the_tokenizers_facts_are_written_into_the_config(name, text):
    tokenizer = CharTokenizer(text, ("end", "pad", "start"))
    model = PRESETS[name].with_tokenizer(tokenizer).model
    assert (model.vocab_size, model.vocab_digest) == (tokenizer.vocab_size, tokenizer.digest)
    if isinstance(model, Seq2SeqConfig):
        assert model.start_id == tokenizer.start_id


@pytest.mark.parametrize("specials", [(), ("end", "pad"), ("start", "end"), ("pad", "start")])
def test_an_encoder_decoder_needs_its_ids(specials):
    with pytest.raises(ValueError, match="an encoder-decoder needs start, end and pad ids"):
        PRESETS["script-seq2seq"].with_tokenizer(CharTokenizer("ab", specials))
    PRESETS["script-lm"].with_tokenizer(CharTokenizer("ab", specials))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_that_need_a_text_say_so(name):
    if isinstance(PRESETS[name].data, ScreenplayConfig):
        return
    with pytest.raises(ValueError, match="give a script or any plain text with"):
        PRESETS[name].data.read()


def test_the_first_preset_needs_nothing():
    assert isinstance(next(iter(PRESETS.values())).data, ScreenplayConfig)


def test_every_option_has_its_help():
    for config in EVERY.values():
        for part in (config, config.model, config.data, config.train):
            assert all(field_help(type(part)).values()), type(part)
    assert RunConfig.__doc__


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan"), float("inf")])
def test_impossible_smoothings_are_refused(share):
    with pytest.raises(ValueError, match=rf"label_smoothing={share} must be in \[0, 1\)"):
        replace(PRESETS["script-seq2seq"], label_smoothing=share)


def test_every_preset_has_a_line_for_help():
    assert list(ABOUT) == list(PRESETS)


def test_what_is_set_from_the_tokenizer_is_no_option():
    for config in EVERY.values():
        assert not {"model.start_id", "model.vocab_digest"} & {option.name for option in options_of(config)}
