"""CLIP in Hugging Face's names: CLIPModel, or one tower of it (CLIPVisionModel, CLIPTextModel)."""

from typing import Any

from minclip.pretrained.vits import image_size, without_bias
from minclip.towers.text import GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig
from minlm.pretrained.key_map import JOINED, Plan, Row, count_layers, layers, module, prefixed
from minlm.pretrained.options import HF_SIZES, agree, complete, expect, option, our_activation
from minlm.pretrained.weight_files import WeightFile

EPS = 1e-5
# What config.json leaves out has these values, the defaults of Hugging Face's CLIP.
DEFAULTS = {
    "text": {"num_attention_heads": 8, "hidden_act": "quick_gelu", "eos_token_id": 49407},
    "vision": {"num_attention_heads": 12, "hidden_act": "quick_gelu", "image_size": 224},
}
LEGACY_END = (
    2  # the eos_token_id of older config files, which was wrong: the code takes the largest id instead
)
BLOCK = [
    *module("encoder.layers.*.layer_norm1", "transformer.blocks.*.norm1"),
    *module(
        "encoder.layers.*.self_attn.{q_proj,k_proj,v_proj}", "transformer.blocks.*.attention.in_proj", JOINED
    ),
    *module("encoder.layers.*.self_attn.out_proj", "transformer.blocks.*.attention.out_proj"),
    *module("encoder.layers.*.layer_norm2", "transformer.blocks.*.norm2"),
    *module("encoder.layers.*.mlp.{fc1,fc2}", "transformer.blocks.*.mlp.{fc1,fc2}"),
]
JOINT = [
    Row("visual_projection.weight", "image_projection.weight"),
    Row("text_projection.weight", "text_projection.weight"),
    Row("logit_scale", "logit_scale"),
]
NUMBERS = {r"((text|vision)_model\.)?embeddings\.position_ids": "0, 1, 2, ...: no parameter"}
PAIR = {r"(visual|text)_projection\.weight|logit_scale": "of the pair of towers, follows the features"}


def vision_rows(config: VisionTransformerConfig) -> list[Row]:
    """The image tower. "pre_layrnorm" is how it is spelled."""
    ours = "{patch_embedding.weight,patch_embedding.bias,positions}"
    theirs = "embeddings.{patch_embedding.weight,position_embedding.weight}"
    return [
        Row("embeddings.class_embedding", "class_token"),
        Row(theirs, ours, without_bias(n_extra=1)),
        *module("pre_layrnorm", "norm_input"),
        *layers(BLOCK, config.n_layers),
        *module("post_layernorm", "transformer.norm"),
    ]


def text_rows(config: GPTTextConfig) -> list[Row]:
    return [
        Row("embeddings.token_embedding.weight", "embedding.tokens.weight"),
        Row("embeddings.position_embedding.weight", "embedding.positions.weight"),
        *layers(BLOCK, config.n_layers),
        *module("final_layer_norm", "transformer.norm"),
    ]


def tower_options(source: WeightFile, name: str) -> dict[str, Any]:
    """A tower's part of config.json, or all of it where the file is of one tower; empty where there is none."""
    options = source.read_json("config.json")
    kind = options.get("model_type", "clip")
    if not options:
        return {}
    if kind == f"clip_{name}_model":
        return DEFAULTS[name] | options
    expect(options, {"model_type": "clip"}, source.path)
    # Older files have a second place, which overrides the first.
    first, second = (option(options, f"{name}_config{end}", dict, source.path, {}) for end in ("", "_dict"))
    return DEFAULTS[name] | first | second


def common_facts(source: WeightFile, prefix: str, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "n_layers": count_layers(source.tensors, rf"{prefix}encoder\.layers\.(\d+)\."),
        "n_heads": options.get("num_attention_heads"),
        "d_ff": source.shape(f"{prefix}encoder.layers.0.mlp.fc1.weight", 2)[0],
        "activation": our_activation(options.get("hidden_act"), source.path),
        "norm_eps": options.get("layer_norm_eps", EPS),
    }


def vision_plan(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """The image tower; features are the class token after post_layernorm, before the projection."""
    options = tower_options(source, "vision")
    expect(options, {"num_channels": 3}, source.path)
    patches = source.shape(f"{prefix}embeddings.patch_embedding.weight", 4)
    n_positions = source.shape(f"{prefix}embeddings.position_embedding.weight", 2)[0]
    facts = {
        "d_model": patches[0],
        **common_facts(source, prefix, options),
        "pool": "class",
        "norm_input": True,
        **image_size(patches, n_positions - 1, options.get("image_size"), source.path),
    }
    agree(options, facts | {"patch_side": patches[-1]}, HF_SIZES | {"patch_size": "patch_side"}, source.path)
    config = complete(VisionTransformerConfig, facts, given, source.path)
    ignored = {**NUMBERS, **PAIR, r"text_model\..*": "the text tower"}
    return Plan(config, prefixed(vision_rows(config), theirs=prefix), ignored)


def text_plan(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """The text tower, pooled at the first eos_token_id.

    An eos_token_id of 2 stands in config files from before it was used, and means the largest id of the text, which
    in CLIP's vocabulary is the end of text.
    """
    options = tower_options(source, "text")
    vocab_size, width = source.shape(f"{prefix}embeddings.token_embedding.weight", 2)
    end_id = options.get("eos_token_id")
    facts = {
        "vocab_size": vocab_size,
        "context_length": source.shape(f"{prefix}embeddings.position_embedding.weight", 2)[0],
        "d_model": width,
        **common_facts(source, prefix, options),
        "end_id": vocab_size - 1 if end_id == LEGACY_END else end_id,
    }
    agree(options, facts, HF_SIZES, source.path)
    config = complete(GPTTextConfig, facts, given, source.path)
    ignored = {**NUMBERS, **PAIR, r"vision_model\..*": "the image tower"}
    return Plan(config, prefixed(text_rows(config), theirs=prefix), ignored)
