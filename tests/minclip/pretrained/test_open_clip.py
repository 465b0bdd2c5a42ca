"""Every option of open_clip_config.json is used, or refused by name."""

from dataclasses import replace

import pytest
import torch

from minclip.presets import PRESETS
from minclip.pretrained import export, load_clip, load_clip_model
from tests.minclip.pretrained.published import (
    WORDS,
    clip_batch,
    drawn_clip,
    edit_json,
    transform_of,
)


@pytest.mark.parametrize(
    "tower, option, value",
    [
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "timm_model_name", "vit_x"),
        ("vision_cfg", "ls_init_value", 0.1),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "qk_norm", True),
    ],
)
def test_open_clips_other_functions_are_refused(tower, option, value, tmp_path):
    model = drawn_clip()
    export(model, WORDS, transform_of(model), tmp_path, "open_clip")
    edit_json(tmp_path / "open_clip_config.json", lambda c: c["model_cfg"][tower].update({option: value}))
    with pytest.raises(ValueError, match=f"has {option}={value!r}"):
        load_clip_model(tmp_path)


@pytest.mark.parametrize(
    "part, options, message",
    [
        ("model_cfg", [], r"the option model_cfg=\[\] must be dict, not list"),
        ("vision_cfg", "x", "the option vision_cfg='x' must be dict, not str"),
        ("text_cfg", 3, "the option text_cfg=3 must be dict, not int"),
        ("preprocess_cfg", [], r"the option preprocess_cfg=\[\] must be dict, not list"),
        ("vision_cfg", {"head_width": "8"}, "the option head_width='8' must be int, not str"),
        ("vision_cfg", {"head_width": 7}, "head_width=7 does not divide the width 64"),
        ("vision_cfg", {"head_width": 0}, "head_width=0 does not divide the width 64"),
        ("vision_cfg", {"norm_kwargs": []}, r"the option norm_kwargs=\[\] must be dict, not list"),
        ("text_cfg", {"norm_kwargs": {"eps": "x"}}, "norm_eps='x' must be float, not str"),
        ("text_cfg", {"norm_kwargs": {"eps": float("nan")}}, "norm_eps=nan must be a finite number"),
        ("text_cfg", {"heads": 2.0}, "n_heads=2.0 must be int, not float"),
        ("text_cfg", {"heads": True}, "n_heads=True must be int, not bool"),
        ("model_cfg", {"quick_gelu": "maybe"}, "the option quick_gelu='maybe' must be bool, not str"),
        ("preprocess_cfg", {"mean": 3}, "mean=3 must be 3 values"),
        ("preprocess_cfg", {"std": [0.5, float("nan"), 0.5]}, "std=nan must be a finite number"),
        ("preprocess_cfg", {"interpolation": ["bicubic"]}, r"interpolation=\['bicubic'\] must be one of"),
    ],
)
def test_open_clips_options_are_of_their_kind(part, options, message, tmp_path):
    model = drawn_clip()
    export(model, WORDS, transform_of(model), tmp_path, "open_clip")

    def change(config):
        place = config if part in config else config["model_cfg"]
        place[part] = place[part] | options if isinstance(options, dict) else options

    edit_json(tmp_path / "open_clip_config.json", change)
    with pytest.raises(ValueError, match=f"^{tmp_path}[^ ]*: {message}"):
        load_clip(tmp_path)


@pytest.mark.parametrize(
    "part, options, message",
    [
        (
            "vision_cfg",
            {"global_average_pool": True},
            "has global_average_pool=True: only False can be loaded",
        ),
        ("vision_cfg", {"input_patchnorm": True}, "has options that are not known: input_patchnorm"),
        ("text_cfg", {"b": 1, "a": 0}, "has options that are not known: a, b"),
        ("text_cfg", {"norm_kwargs": {"bias": False}}, "has options that are not known: bias"),
        ("model_cfg", {"moe": 4}, "has options that are not known: moe"),
        ("model_cfg", {"nonscalar_logit_scale": True}, "has nonscalar_logit_scale=True"),
        ("preprocess_cfg", {"size": 20}, r"size=20, the model takes \(16, 16\)"),
        ("preprocess_cfg", {"blur": 1}, "has options that are not known: blur"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "canonicalize"}}, "has tokenizer_kwargs="),
        (
            "vision_cfg",
            {"layers": 10**9},
            "its config says layers=1000000000, its tensors say 2: put its own config beside it",
        ),
        ("vision_cfg", {"no_ln_pre": True}, "its config says no_ln_pre=True, its tensors say False"),
        (
            "vision_cfg",
            {"image_size": 10**30},
            "its config says image_size=10+, its positions are for 4 patches",
        ),
        ("text_cfg", {"vocab_size": 10**9}, "its config says vocab_size=1000000000, its tensors say 36"),
        ("text_cfg", {"heads": 10**9}, "n_heads=1000000000 does not divide d_model=64"),
    ],
)
def test_every_option_of_open_clip_is_used_or_refused(part, options, message, tmp_path):
    model = drawn_clip()
    export(model, WORDS, transform_of(model), tmp_path, "open_clip")

    def change(config):
        place = config if part in config else config["model_cfg"]
        place[part] = place[part] | options

    edit_json(tmp_path / "open_clip_config.json", change)
    with pytest.raises(ValueError, match=f"^{tmp_path}[^\n]*{message}"):
        load_clip(tmp_path)


def test_a_config_without_a_model_is_refused(tmp_path):
    model = drawn_clip()
    export(model, WORDS, transform_of(model), tmp_path, "open_clip")
    edit_json(tmp_path / "open_clip_config.json", lambda config: config.pop("model_cfg"))
    with pytest.raises(ValueError, match=r"open_clip_config.json has no model_cfg: put the weights' own"):
        load_clip(tmp_path)


def test_the_default_preset_goes_to_open_clip(tmp_path):
    """No LayerNorm before the first Block, exact GELU, a WordPiece, no square heads: open_clip has words for them."""
    preset = PRESETS["shapes"]
    text = replace(
        preset.model.text, vocab_size=WORDS.vocab_size, vocab_digest=WORDS.digest, end_id=WORDS.end_id
    )
    model = drawn_clip(preset.model.image, text)
    export(model, WORDS, transform_of(model), tmp_path, "open_clip")
    again, _, _ = load_clip(tmp_path)
    torch.testing.assert_close(again(*clip_batch(model)), model(*clip_batch(model)))
    with pytest.raises(
        ValueError, match=r"its ViT has no LayerNorm before the first Block \(image.norm_input\)"
    ):
        export(model, WORDS, transform_of(model), tmp_path, "hf-clip")


def test_a_sigmoid_loss_keeps_its_bias_in_open_clip(tmp_path):
    model = drawn_clip(loss="sigmoid")
    export(model, WORDS, transform_of(model), tmp_path, "open_clip")
    again, _, _ = load_clip(tmp_path)
    assert again.config.loss == "sigmoid"
    assert torch.equal(again.logit_bias, model.logit_bias)
    with pytest.raises(ValueError, match="it has a logit_bias"):
        export(model, WORDS, transform_of(model), tmp_path, "hf-clip")
