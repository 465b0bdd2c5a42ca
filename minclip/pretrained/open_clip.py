"""open_clip's folders: OpenAI's table of tensors (openai.py), and an open_clip_config.json beside them."""

from pathlib import Path
from typing import Any

from minclip.clip import CLIP, CLIPConfig
from minclip.data.tokenizer import Tokenizer, WordPiece
from minclip.data.transforms import TransformConfig
from minclip.pretrained import openai
from minclip.pretrained.layout import Layout, make_transform, require_size, unmet
from minclip.pretrained.vocabulary import save_tokenizer
from minclip.towers.modified_resnet import ModifiedResNetConfig
from minclip.towers.vit import VisionTransformerConfig
from minlm.pretrained.key_map import Plan, export_weights
from minlm.pretrained.options import agree, expect, known, option
from minlm.pretrained.weight_files import WeightFile, write_tensors
from minlm.training.files import write_json

CONFIG_NAME = "open_clip_config.json"
# Values of open_clip's options with which its towers compute the same function as ours.
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
# Options that are read or have no effect on these towers; any other is refused.
TOWER_OPTIONS = {"width", "layers", "mlp_ratio", "head_width", "norm_kwargs", "output_tokens"}
MODEL_OPTIONS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "multimodal_cfg"}
MODEL_OPTIONS |= {"nonscalar_logit_scale", "init_logit_scale", "init_logit_bias", "output_dict", "cast_dtype"}
# Options of timm's towers, of attentional pooling and of training: no effect here.
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


def model_options(source: WeightFile) -> dict[str, Any]:
    """Read model_cfg of open_clip_config.json. Raises ValueError if it is missing or has unknown options."""
    where = source.folder / CONFIG_NAME
    config = source.read_json(CONFIG_NAME)
    known(config, {"model_cfg", "preprocess_cfg"}, where)
    options = option(config, "model_cfg", dict, source.path)
    if not options:
        raise ValueError(f"{where} has no model_cfg: put the weights' own {CONFIG_NAME} there")
    expect(options, {"multimodal_cfg": None, "nonscalar_logit_scale": False}, source.path)
    known(options, MODEL_OPTIONS, where)
    return options


def tower_options(
    source: WeightFile, name: str, known_names: set[str], wanted: dict[str, Any]
) -> dict[str, Any]:
    """Read vision_cfg or text_cfg. Raises ValueError for unknown options and for those of another function."""
    options = option(model_options(source), name, dict, source.path, {})
    expect(options, wanted, source.path)
    known(options, known_names, source.folder / CONFIG_NAME)
    return options


def activation(source: WeightFile) -> str:
    """Return the activation of both towers."""
    return "quick_gelu" if option(model_options(source), "quick_gelu", bool, source.path) else "gelu"


def heads(source: WeightFile, width: int, options: dict[str, Any]) -> int:
    """Return the number of heads of an image tower from its head_width."""
    head_width = option(options, "head_width", int, source.path, openai.HEAD_WIDTH)
    if head_width < 1 or width % head_width:
        raise ValueError(f"{source.path}: head_width={head_width} does not divide the width {width}")
    return width // head_width


def epsilon(options: dict[str, Any], where: Any) -> float:
    """Return the epsilon of a tower's LayerNorms."""
    given = option(options, "norm_kwargs", dict, where, {})
    known(given, {"eps"}, where)
    return given.get("eps", openai.EPS)


def read_vit(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """Plan a ViT pooled at its class token."""
    options = tower_options(source, "vision_cfg", VISION_OPTIONS, VISION_WANTED)
    facts = openai.vit_facts(source, options.get("image_size"))
    facts |= {
        "n_heads": heads(source, facts["d_model"], options),
        "activation": activation(source),
        "norm_eps": epsilon(options, source.path),
    }
    more = {"patch_side": facts["patch_size"][1], "no_norm": not facts["norm_input"]}
    names = SIZES | {"patch_size": "patch_side", "no_ln_pre": "no_norm"}
    agree(options, facts | more, names, source.path)
    return openai.vit_plan(source, facts, given)


def read_resnet(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """Plan a ResNet of CLIP's."""
    options = tower_options(source, "vision_cfg", VISION_OPTIONS, {"timm_model_name": None})
    facts, width = openai.resnet_facts(source)
    facts["n_heads"] = heads(source, width, options)
    agree(options, facts | {"n_layers": list(facts["depths"])}, SIZES, source.path)
    return openai.resnet_plan(source, facts, width, given)


def read_text(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """Plan the text tower. The end-of-text id is the last id or, with pool_type eos, eos_id."""
    options = tower_options(source, "text_cfg", TEXT_OPTIONS, TEXT_WANTED)
    pool = options.get("pool_type", "argmax")
    if pool not in ("argmax", "eos"):
        raise ValueError(
            f"{source.path} pools texts by {pool!r}: only argmax and eos, at the end of text, can be loaded"
        )
    facts = openai.text_facts(source, prefix)
    facts |= {
        "n_heads": options.get("heads", facts["d_model"] // openai.HEAD_WIDTH),
        "activation": activation(source),
        "norm_eps": epsilon(options, source.path),
        "end_id": options.get("eos_id", 2) if pool == "eos" else facts["vocab_size"] - 1,
    }
    agree(options, facts, SIZES, source.path)
    return openai.text_plan(source, prefix, facts, given)


def check_tokenizer(source: WeightFile) -> None:
    """Raise ValueError if the config changes how texts are cleaned."""
    if (source.folder / CONFIG_NAME).is_file():
        cleaning = option(model_options(source), "text_cfg", dict, source.path, {})
        expect(cleaning, {"tokenizer_mode": None, "tokenizer_kwargs": {}}, source.folder / CONFIG_NAME)


def read_transform(source: WeightFile, image_size: tuple[int, int]) -> TransformConfig | None:
    """Read preprocess_cfg; None without one. Raises ValueError for preprocessing that this project lacks."""
    height, width = image_size
    where = source.folder / CONFIG_NAME
    options = option(source.read_json(CONFIG_NAME), "preprocess_cfg", dict, where, {})
    if not options:
        return None
    known(options, {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}, where)
    expect(options, {"resize_mode": "shortest", "mode": "RGB"}, where)
    require_size(options, "size", [height, [height, width]], image_size, where)
    mean, std, interpolation = map(options.get, ("mean", "std", "interpolation"))
    return make_transform(mean, std, interpolation, where)


def obstacles(config: CLIPConfig) -> list[str]:
    """List why open_clip's config cannot express this model."""
    found = openai.clip_obstacles(config)
    if found:
        return found
    activations = {config.text.activation}
    if isinstance(config.image, VisionTransformerConfig):
        activations.add(config.image.activation)
    one = len(activations) == 1 and activations <= {"gelu", "quick_gelu"}
    return unmet((one, f"its activations are {', '.join(sorted(activations))}"))


def write(model: CLIP, tokenizer: Tokenizer, transform: TransformConfig, folder: Path) -> None:
    """Write a folder for open_clip's create_model("local-dir:FOLDER")."""
    image: Any = model.config.image  # a VisionTransformerConfig or ModifiedResNetConfig, see obstacles
    text: Any = model.config.text  # a GPTTextConfig
    text_options = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.d_model,
        "heads": text.n_heads,
        "layers": text.n_layers,
        "mlp_ratio": text.mlp_width / text.d_model,
        "norm_kwargs": {"eps": text.norm_eps},
    }
    if text.end_id != text.vocab_size - 1:
        text_options |= {"pool_type": "eos", "eos_id": text.end_id}
    if isinstance(tokenizer, WordPiece):
        text_options["hf_tokenizer_name"] = "in this folder"
    options = {
        "embed_dim": model.config.embed_dim,
        "quick_gelu": text.activation == "quick_gelu",
        "vision_cfg": vision_options(image),
        "text_cfg": text_options,
    }
    if model.logit_bias is not None:
        options["init_logit_bias"] = model.logit_bias.item()
    preprocess = {"mean": transform.mean, "std": transform.std, "interpolation": transform.interpolation}
    weights = export_weights(model.state_dict(), openai.rows_of(model.config))
    write_tensors(folder / "open_clip_model.safetensors", weights)
    save_tokenizer(tokenizer, folder)
    write_json(folder / CONFIG_NAME, {"model_cfg": options, "preprocess_cfg": preprocess})


def vision_options(image: VisionTransformerConfig | ModifiedResNetConfig) -> dict[str, Any]:
    """Return vision_cfg of open_clip_config.json."""
    height, width = image.image_size
    size = {"image_size": height if height == width else [height, width], "width": image.d_model}
    if isinstance(image, ModifiedResNetConfig):
        return {**size, "layers": list(image.depths), "head_width": image.d_model * 32 // image.n_heads}
    return {
        **size,
        "layers": image.n_layers,
        "head_width": image.head_size,
        "patch_size": image.patch_size[0],
        "mlp_ratio": image.mlp_width / image.d_model,
        "no_ln_pre": not image.norm_input,
        "norm_kwargs": {"eps": image.norm_eps},
    }


PREFIXES = ("", "text.")  # the second with custom_text
LAYOUTS = [
    Layout("open_clip's ViT", "image tower", openai.VIT_ANCHOR, read_vit, beside=CONFIG_NAME),
    Layout("open_clip's ResNet", "image tower", openai.RESNET_ANCHOR, read_resnet, beside=CONFIG_NAME),
    Layout("open_clip", "text tower", openai.TEXT_ANCHOR, read_text, PREFIXES, beside=CONFIG_NAME),
]
