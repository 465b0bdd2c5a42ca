"""CLIP in its own names: OpenAI's archives and open_clip's files. The tables, and what either format says of sizes.

The two share every name and differ in what is known beside the tensors. OpenAI's archives hold the numbers
input_resolution, context_length and vocab_size; their heads are 64 wide and their activation is QuickGELU, by
definition of the format. open_clip writes an open_clip_config.json. Tensors with neither could be of both: heads and
activation must be given.
"""

from typing import Any

from torch import Tensor

from minclip.pretrained.resize import square_grid
from minclip.pretrained.resnets import count_depths, visual_resnet_rows
from minclip.pretrained.vits import image_size, without_bias
from minclip.towers.modified_resnet import ModifiedResNetConfig
from minclip.towers.text import GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig
from minlm.pretrained.key_map import (
    TRANSPOSED,
    Plan,
    Row,
    count_layers,
    layers,
    module,
    prefixed,
)
from minlm.pretrained.options import agree, complete, expect, known, option
from minlm.pretrained.weight_files import WeightFile

HEAD_WIDTH = 64  # of every head of OpenAI's, by definition; open_clip's default
EPS = 1e-5
MARKERS = ("input_resolution", "context_length", "vocab_size")
CONFIG_NAME = "open_clip_config.json"
IGNORED = {"|".join(MARKERS): "numbers that the tensors' shapes say too", "attn_mask": "the causal mask"}
IMAGE_IGNORED = {r"visual\..*": "the image tower"}
TEXT_IGNORED = {
    r"(text\.)?(transformer\..*|token_embedding\.weight|positional_embedding|ln_final\..*|text_projection|attn_mask)": (
        "the text tower"
    ),
    r"logit_scale|logit_bias": "of the pair of towers",
}
BLOCK = [
    *module("transformer.resblocks.*.ln_1", "transformer.blocks.*.norm1"),
    Row(
        "transformer.resblocks.*.attn.in_proj_weight",
        "transformer.blocks.*.attention.in_proj.weight",
    ),
    Row(
        "transformer.resblocks.*.attn.in_proj_bias",
        "transformer.blocks.*.attention.in_proj.bias",
    ),
    *module("transformer.resblocks.*.attn.out_proj", "transformer.blocks.*.attention.out_proj"),
    *module("transformer.resblocks.*.ln_2", "transformer.blocks.*.norm2"),
    *module("transformer.resblocks.*.mlp.{c_fc,c_proj}", "transformer.blocks.*.mlp.{fc1,fc2}"),
]
# Options of open_clip's towers under which they are another function than ours.
SAME_BLOCKS = {
    "ls_init_value": None,
    "act_kwargs": None,
    "block_type": None,
    "final_ln_after_pool": False,
    **{name: False for name in ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner")},
    **{name: False for name in ("scale_attn", "scale_fc")},
}
SIZES = {
    "width": "d_model",
    "layers": "n_layers",
    "vocab_size": "vocab_size",
    "context_length": "context_length",
}
# Options that are read, or that change nothing for towers of these kinds; any other may be of another function.
TOWER_OPTIONS = {"width", "layers", "mlp_ratio", "head_width", "norm_kwargs", "output_tokens"}
MODEL_OPTIONS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "multimodal_cfg"}
MODEL_OPTIONS |= {"nonscalar_logit_scale", "init_logit_scale", "init_logit_bias", "output_dict", "cast_dtype"}
# Those of timm's towers, of attentional pooling and of training.
UNUSED_VISION = {
    f"timm_{name}" for name in ("model_pretrained", "pool", "proj", "proj_bias", "drop", "drop_path")
}
UNUSED_VISION |= {"attn_pooler_queries", "attn_pooler_heads", "patch_dropout"}
UNUSED_TEXT = {"hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "hf_tokenizer_name", "pad_id"}
VISION_WANTED = {
    **SAME_BLOCKS,
    "timm_model_name": None,
    "attentional_pool": False,
    "global_average_pool": False,
    "pos_embed_type": "learnable",
    "pool_type": "tok",
}
TEXT_WANTED = {
    **SAME_BLOCKS,
    "hf_model_name": None,
    "embed_cls": False,
    "no_causal_mask": False,
    "proj_bias": False,
    "proj_type": "linear",
}
VISION_OPTIONS = (
    TOWER_OPTIONS | UNUSED_VISION | VISION_WANTED.keys() | {"patch_size", "image_size", "no_ln_pre"}
)
TEXT_OPTIONS = TOWER_OPTIONS | UNUSED_TEXT | TEXT_WANTED.keys()
TEXT_OPTIONS |= {
    "context_length",
    "vocab_size",
    "heads",
    "pool_type",
    "eos_id",
    "tokenizer_mode",
    "tokenizer_kwargs",
}


def vit_rows(config: VisionTransformerConfig) -> list[Row]:
    """The image tower of a ViT: patches without bias, class token, LayerNorm before the first Block (or none)."""
    ours = "{patch_embedding.weight,patch_embedding.bias,positions}"
    rows = [
        Row("class_embedding", "class_token"),
        Row("{conv1.weight,positional_embedding}", ours, without_bias(n_extra=1)),
        *(module("ln_pre", "norm_input") if config.norm_input else []),
        *layers(BLOCK, config.n_layers),
        *module("ln_post", "transformer.norm"),
    ]
    return prefixed(rows, theirs="visual.")


def text_rows(config: GPTTextConfig) -> list[Row]:
    return [
        Row("token_embedding.weight", "embedding.tokens.weight"),
        Row("positional_embedding", "embedding.positions.weight"),
        *layers(BLOCK, config.n_layers),
        *module("ln_final", "transformer.norm"),
    ]


def joint_rows(image: Any, text_prefix: str = "") -> list[Row]:
    """The projections and the scale, in CLIP's names of ours."""
    text = Row(f"{text_prefix}text_projection", "text_projection.weight", TRANSPOSED)
    if isinstance(image, ModifiedResNetConfig):
        image_rows = module("visual.attnpool.c_proj", "image_projection")
    else:
        image_rows = [Row("visual.proj", "image_projection.weight", TRANSPOSED)]
    return [*image_rows, text, Row("logit_scale", "logit_scale")]


def image_rows(config: VisionTransformerConfig | ModifiedResNetConfig) -> list[Row]:
    return visual_resnet_rows(config) if isinstance(config, ModifiedResNetConfig) else vit_rows(config)


def text_prefix(tensors: dict[str, Tensor]) -> str:
    """open_clip puts the text tower under text. where a model has custom_text."""
    return "text." if "text.token_embedding.weight" in tensors else ""


def model_options(source: WeightFile) -> dict[str, Any]:
    """model_cfg of open_clip_config.json; empty where there is none. ValueError for options that are not known."""
    config = source.read_json(CONFIG_NAME)
    where = source.folder / CONFIG_NAME
    known(config, {"model_cfg", "preprocess_cfg"}, where)
    options = option(config, "model_cfg", dict, source.path, {})
    expect(options, {"multimodal_cfg": None, "nonscalar_logit_scale": False}, source.path)
    known(options, MODEL_OPTIONS, where)
    return options


def tower_options(
    source: WeightFile, name: str, known_names: set[str], wanted: dict[str, Any]
) -> dict[str, Any]:
    """vision_cfg or text_cfg. ValueError for options of another function, and for those that are not known."""
    options = option(model_options(source), name, dict, source.path, {})
    expect(options, wanted, source.path)
    known(options, known_names, source.folder / CONFIG_NAME)
    return options


def activation(source: WeightFile) -> str | None:
    options = model_options(source)
    if options:
        return "quick_gelu" if option(options, "quick_gelu", bool, source.path) else "gelu"
    return "quick_gelu" if is_openai(source) else None


def is_openai(source: WeightFile) -> bool:
    return all(name in source.tensors for name in MARKERS)


def heads(source: WeightFile, width: int, options: dict[str, Any]) -> int | None:
    """OpenAI's by definition, open_clip's by its config's head_width, else None."""
    if not model_options(source) and not is_openai(source):
        return None
    head_width = option(options, "head_width", int, source.path, HEAD_WIDTH)
    if head_width < 1 or width % head_width:
        raise ValueError(f"{source.path}: head_width={head_width} does not divide the width {width}")
    return width // head_width


def epsilon(options: dict[str, Any], where: Any) -> float:
    given = option(options, "norm_kwargs", dict, where, {})
    known(given, {"eps"}, where)
    return given.get("eps", EPS)


def hint(source: WeightFile, width: int) -> str:
    return (
        f" (OpenAI's own: n_heads={width // HEAD_WIDTH}, activation='quick_gelu'; open_clip's: its {CONFIG_NAME}; "
        f"for a whole CLIP the heads are image_heads=... and text_heads=...)"
    )


def vit_plan(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """The image tower of a CLIP with a ViT; features are the class token before the projection."""
    options = tower_options(source, "vision_cfg", VISION_OPTIONS, VISION_WANTED)
    patches = source.shape("visual.conv1.weight", 4)
    facts = {
        "d_model": patches[0],
        "n_layers": count_layers(source.tensors, r"visual\.transformer\.resblocks\.(\d+)\."),
        "n_heads": heads(source, patches[0], options),
        "d_ff": source.shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "activation": activation(source),
        "norm_eps": epsilon(options, source.path),
        "pool": "class",
        "norm_input": "visual.ln_pre.weight" in source.tensors,
        **image_size(
            patches,
            source.shape("visual.positional_embedding", 2)[0] - 1,
            options.get("image_size"),
            source.path,
        ),
    }
    more = {"patch_side": patches[-1], "no_norm": not facts["norm_input"]}
    names = SIZES | {"patch_size": "patch_side", "no_ln_pre": "no_norm"}
    agree(options, facts | more, names, source.path)
    config = complete(VisionTransformerConfig, facts, given, source.path, hint(source, patches[0]))
    projection = {r"visual\.proj": "the projection, which follows the features"}
    return Plan(config, vit_rows(config), {**IGNORED, **TEXT_IGNORED, **projection})


def modified_resnet_plan(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """The image tower of a CLIP with a ResNet; features are those before the attention pooling's c_proj."""
    options = tower_options(source, "vision_cfg", VISION_OPTIONS, {"timm_model_name": None})
    n_positions, width = source.shape("visual.attnpool.positional_embedding", 2)
    depths = count_depths(source.tensors, r"visual\.")
    rows, columns = square_grid(n_positions - 1, source.path)
    stride = 4 * 2 ** (len(depths) - 1)
    facts = {
        "image_size": (rows * stride, columns * stride),
        "depths": depths,
        "d_model": source.shape("visual.layer1.0.conv1.weight", 4)[0],
        "n_heads": heads(source, width, options),
    }
    agree(options, facts | {"n_layers": list(depths)}, SIZES, source.path)
    config = complete(ModifiedResNetConfig, facts, given, source.path, hint(source, width))
    projection = {r"visual\.attnpool\.c_proj\.(weight|bias)": "the projection, which follows the features"}
    return Plan(config, image_rows(config), {**IGNORED, **TEXT_IGNORED, **projection})


def text_plan(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """The text tower of a CLIP; features are those at the end of text, before the projection.

    OpenAI's and open_clip's code finds the end of text as the largest id, which is the last of the vocabulary; where
    open_clip's config says pool_type eos, the id is its eos_id.
    """
    options = tower_options(source, "text_cfg", TEXT_OPTIONS, TEXT_WANTED)
    vocab_size, width = source.shape(f"{prefix}token_embedding.weight", 2)
    pool = options.get("pool_type", "argmax")
    if pool not in ("argmax", "eos"):
        raise ValueError(
            f"{source.path} pools texts by {pool!r}: only argmax and eos, at the end of text, can be loaded"
        )
    known = model_options(source) or is_openai(source)
    facts = {
        "vocab_size": vocab_size,
        "context_length": source.shape(f"{prefix}positional_embedding", 2)[0],
        "d_model": width,
        "n_layers": count_layers(source.tensors, rf"{prefix}transformer\.resblocks\.(\d+)\."),
        "n_heads": options.get("heads", width // HEAD_WIDTH) if known else None,
        "d_ff": source.shape(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "activation": activation(source),
        "norm_eps": epsilon(options, source.path),
        "end_id": options.get("eos_id", 2) if pool == "eos" else vocab_size - 1,
    }
    agree(options, facts, SIZES, source.path)
    config = complete(GPTTextConfig, facts, given, source.path, hint(source, width))
    rest = {r"(text\.)?text_projection": "the projection, which follows the features", **IMAGE_IGNORED}
    scale = {r"logit_scale|logit_bias": "of the pair of towers"}
    return Plan(config, prefixed(text_rows(config), theirs=prefix), {**IGNORED, **rest, **scale})
