"""Hugging Face's CLIPModel, or one tower of it (CLIPVisionModel, CLIPTextModel)."""

from pathlib import Path
from typing import Any

from minclip.clip import CLIP, CLIPConfig
from minclip.data.tokenizer import Tokenizer
from minclip.data.transforms import TransformConfig
from minclip.pretrained.layout import Layout, clip_plan, clip_rows, make_transform, require_size, unmet
from minclip.pretrained.openai import clip_obstacles
from minclip.pretrained.patches import vit_sizes, without_bias
from minclip.pretrained.vocabulary import save_tokenizer
from minclip.towers.text import GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig
from minlm.pretrained.key_map import JOINED, Plan, Row, count_layers, export_weights, layers, module, prefixed
from minlm.pretrained.options import (
    HF_SIZES,
    agree,
    complete,
    expect,
    hf_options,
    option,
    our_activation,
)
from minlm.pretrained.weight_files import WeightFile, write_tensors
from minlm.training.files import write_json

EPS = 1e-5
# Hugging Face's defaults for what config.json omits.
DEFAULTS = {
    "text": {"num_attention_heads": 8, "hidden_act": "quick_gelu", "eos_token_id": 49407},
    "vision": {"num_attention_heads": 12, "hidden_act": "quick_gelu", "image_size": 224},
}
LEGACY_END = (
    2  # eos_token_id of older config files; it is wrong, and Hugging Face takes the largest id instead
)
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
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
NUMBERS = {r"((text|vision)_model\.)?embeddings\.position_ids": "0, 1, 2, ...: not a parameter"}
PAIR = {r"(visual|text)_projection\.weight|logit_scale": "of the whole CLIP, follows the features"}


def vision_rows(config: VisionTransformerConfig) -> list[Row]:
    """Return the table of the image tower ("pre_layrnorm" is their spelling)."""
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
    """Return the table of the text tower."""
    return [
        Row("embeddings.token_embedding.weight", "embedding.tokens.weight"),
        Row("embeddings.position_embedding.weight", "embedding.positions.weight"),
        *layers(BLOCK, config.n_layers),
        *module("final_layer_norm", "transformer.norm"),
    ]


def tower_options(source: WeightFile, name: str) -> dict[str, Any]:
    """Return a tower's part of config.json, all of it if the file holds one tower, {} without a config.json."""
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
    """Return the facts that both towers name alike."""
    return {
        "n_layers": count_layers(source.tensors, rf"{prefix}encoder\.layers\.(\d+)\."),
        "n_heads": options.get("num_attention_heads"),
        "d_ff": source.shape(f"{prefix}encoder.layers.0.mlp.fc1.weight", 2)[0],
        "activation": our_activation(options.get("hidden_act"), source.path),
        "norm_eps": options.get("layer_norm_eps", EPS),
    }


def read_vision(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """Plan the image tower; its feature is the class token after post_layernorm, before the projection."""
    options = tower_options(source, "vision")
    expect(options, {"num_channels": 3}, source.path)
    patches = source.shape(f"{prefix}embeddings.patch_embedding.weight", 4)
    n_positions = source.shape(f"{prefix}embeddings.position_embedding.weight", 2)[0]
    facts = {
        "d_model": patches[0],
        **common_facts(source, prefix, options),
        "pool": "class",
        "norm_input": True,
        **vit_sizes(patches, n_positions - 1, options.get("image_size"), source.path),
    }
    agree(options, facts | {"patch_side": patches[-1]}, HF_SIZES | {"patch_size": "patch_side"}, source.path)
    config = complete(VisionTransformerConfig, facts, given, source.path)
    ignored = {**NUMBERS, **PAIR, r"text_model\..*": "the text tower"}
    return Plan(config, prefixed(vision_rows(config), theirs=prefix), ignored)


def read_text(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """Plan the text tower, pooled at the first eos_token_id.

    An eos_token_id of 2 is in config files from before it was used. It means the largest id of a text, which is
    end-of-text in CLIP's vocabulary.
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


def read_joint(source: WeightFile, prefix: str, towers: dict[str, Plan]) -> Plan:
    """Plan a whole CLIPModel."""
    return clip_plan(source, towers, source.shape("text_projection.weight", 2)[0], JOINT, NUMBERS)


def read_transform(source: WeightFile, image_size: tuple[int, int]) -> TransformConfig:
    """Read preprocessor_config.json or processor_config.json; without either, CLIP's own values hold.

    image_size: of the model in the file. Raises ValueError unless images are prepared by a resize of the shorter side
    to that size, a centre crop and normalisation.
    """
    height, width = image_size
    where = source.folder
    options = source.read_json("preprocessor_config.json")
    if not options:
        options = option(source.read_json("processor_config.json"), "image_processor", dict, where, {})
    require_size(options, "size", [height, {"shortest_edge": height}], image_size, where)
    require_size(options, "crop_size", [height, {"height": height, "width": width}], image_size, where)
    factor = option(options, "rescale_factor", float, where, 1 / 255)
    if abs(factor * 255 - 1) > 1e-6:
        raise ValueError(f"{where} has rescale_factor={factor}: only 1/255 can be loaded")
    wanted = dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True)
    expect(options, wanted | {"do_pad": False}, where)
    resample = option(options, "resample", int, where, 3)
    if resample not in RESAMPLE:
        raise ValueError(f"{where} has resample={resample}: only 2 (bilinear) and 3 (bicubic) can be loaded")
    return make_transform(options.get("image_mean"), options.get("image_std"), RESAMPLE[resample], where)


def obstacles(config: CLIPConfig) -> list[str]:
    """List why a CLIPModel cannot express this model."""
    match config.image, config.text:
        case VisionTransformerConfig() as image, GPTTextConfig() as text:
            legacy = text.end_id == LEGACY_END and text.vocab_size != LEGACY_END + 1
            return clip_obstacles(config) + unmet(
                (image.norm_input, "its ViT has no LayerNorm before the first Block (image.norm_input)"),
                (image.image_size[0] == image.image_size[1], "its images are not square"),
                (config.loss != "sigmoid", "it has a logit_bias"),
                (
                    not legacy,
                    f"its end-of-text id is {LEGACY_END}, which Hugging Face reads as the largest id",
                ),
            )
        case VisionTransformerConfig(), _:
            return clip_obstacles(config)
    return [f"its image tower is a {type(config.image).__name__.removesuffix('Config')}"]


def write(model: CLIP, tokenizer: Tokenizer, transform: TransformConfig, folder: Path) -> None:
    """Write a folder for CLIPModel.from_pretrained."""
    image: Any = model.config.image  # a VisionTransformerConfig, see obstacles
    text: Any = model.config.text  # a GPTTextConfig
    vision_options = {
        "model_type": "clip_vision_model",
        **hf_options(image),
        "image_size": image.image_size[0],
        "patch_size": image.patch_size[0],
    }
    text_options = {
        "model_type": "clip_text_model",
        **hf_options(text),
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
        "bos_token_id": tokenizer.start_id,
        "eos_token_id": text.end_id,
        "pad_token_id": tokenizer.pad_id,
    }
    options = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model.config.embed_dim,
        "vision_config": vision_options,
        "text_config": text_options,
    }
    vision = prefixed(vision_rows(image), theirs="vision_model.")
    table = clip_rows(vision, prefixed(text_rows(text), theirs="text_model."), JOINT)
    write_tensors(folder / "model.safetensors", export_weights(model.state_dict(), table))
    save_tokenizer(tokenizer, folder)
    write_json(folder / "preprocessor_config.json", preprocessor(transform, image.image_size[0]))
    write_json(folder / "config.json", options)


def preprocessor(transform: TransformConfig, side: int) -> dict[str, Any]:
    """Return preprocessor_config.json for square images."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True),
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "resample": next(number for number, name in RESAMPLE.items() if name == transform.interpolation),
        "rescale_factor": 1 / 255,
        "image_mean": transform.mean,
        "image_std": transform.std,
    }


LAYOUTS = [
    Layout(
        "Hugging Face's CLIP",
        "image tower",
        "embeddings.class_embedding",
        read_vision,
        ("vision_model.", ""),
        antialias=False,
    ),
    Layout(
        "Hugging Face's CLIP",
        "text tower",
        "embeddings.token_embedding.weight",
        read_text,
        ("text_model.", ""),
    ),
    Layout("Hugging Face's CLIP", "CLIP", "visual_projection.weight", read_joint),
]
