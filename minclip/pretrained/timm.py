"""timm's VisionTransformer: a state dict, and a config.json that names an architecture."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from minclip.data.transforms import TransformConfig
from minclip.pretrained.layout import Layout, unmet
from minclip.pretrained.patches import vit_sizes, without_bias
from minclip.towers.vit import VisionTransformerConfig
from minlm.pretrained.key_map import BATCHED, TOKEN, Plan, Row, count_layers, export_weights, layers, module
from minlm.pretrained.options import complete, expect, option
from minlm.pretrained.weight_files import WeightFile, write_tensors
from minlm.training.files import write_json

BLOCK = [
    *module("blocks.*.norm1", "transformer.blocks.*.norm1"),
    *module("blocks.*.attn.qkv", "transformer.blocks.*.attention.in_proj"),
    *module("blocks.*.attn.proj", "transformer.blocks.*.attention.out_proj"),
    *module("blocks.*.norm2", "transformer.blocks.*.norm2"),
    *module("blocks.*.mlp.{fc1,fc2}", "transformer.blocks.*.mlp.{fc1,fc2}"),
]
IGNORED = {r"head\.(weight|bias)": "the classifier, which follows the features"}
EPS = 1e-6
CLIP_EPS = 1e-5  # of the ViTs that timm took over from CLIP: those with norm_pre
# The size word in an architecture's name -> (width, heads).
HEADS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12), "large": (1024, 16), "huge": (1280, 16)}


def rows(config: VisionTransformerConfig, bias: bool) -> list[Row]:
    """Return the table of a ViT. bias: whether the patch embedding has one (with norm_pre it has none)."""
    n_extra = int(config.pool == "class")
    if bias:
        table = [*module("patch_embed.proj", "patch_embedding"), Row("pos_embed", "positions", BATCHED)]
    else:
        ours = "{patch_embedding.weight,patch_embedding.bias,positions}"
        table = [Row("{patch_embed.proj.weight,pos_embed}", ours, without_bias(n_extra, batched=True))]
    if n_extra:
        table.append(Row("cls_token", "class_token", TOKEN))
    if config.norm_input:
        table += module("norm_pre", "norm_input")
    last = ("fc_norm", "norm_mean") if config.pool == "mean_norm" else ("norm", "transformer.norm")
    return [*table, *layers(BLOCK, config.n_layers), *module(*last)]


def read(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """Plan a ViT pooled at its class token or, without one, by the mean before or after the last LayerNorm."""
    tensors, config = source.tensors, source.read_json("config.json")
    arguments = option(config, "model_args", dict, source.path, {})
    published = option(config, "pretrained_cfg", dict, source.path, {})
    has_class, norm_input = "cls_token" in tensors, "norm_pre.weight" in tensors
    norm_after = "fc_norm.weight" in tensors
    if has_class and norm_after:
        raise ValueError(
            f"{source.path} pools the mean of the patches (fc_norm) beside a class token: this ViT pools the token"
        )
    expect(config, {"global_pool": "token" if has_class else "avg"}, source.path)
    patches = source.shape("patch_embed.proj.weight", 4)
    architecture = option(config, "architecture", str, source.path, "")
    activation = None
    if re.match(r"(vit|deit)_", architecture) and "act_layer" not in arguments:
        activation = "quick_gelu" if "quickgelu" in architecture else "gelu"
    facts = {
        "d_model": patches[0],
        "n_layers": count_layers(tensors, r"blocks\.(\d+)\."),
        "n_heads": arguments.get("num_heads") or named_heads(architecture, patches[0]),
        "d_ff": source.shape("blocks.0.mlp.fc1.weight", 2)[0],
        "activation": activation,
        "norm_eps": CLIP_EPS if norm_input else EPS,
        "pool": "class" if has_class else "mean_norm" if norm_after else "mean",
        "norm_input": norm_input,
        **vit_sizes(
            patches,
            source.shape("pos_embed", 3)[1] - has_class,
            option(published, "input_size", tuple[int, int, int], source.path, (None,))[1:] or None,
            source.path,
        ),
    }
    config = complete(VisionTransformerConfig, facts, given, source.path)
    return Plan(config, rows(config, bias="patch_embed.proj.bias" in tensors), IGNORED)


def named_heads(architecture: str, d_model: int) -> int | None:
    """Return the heads of names such as vit_base_patch16_224; None if unknown or of another width."""
    word = re.match(r"(?:vit|deit)_(\w+?)_patch", architecture)
    width, n_heads = HEADS.get(word[1] if word else "", (None, None))
    return n_heads if width == d_model else None


def obstacles(config: VisionTransformerConfig) -> list[str]:
    """List why timm's VisionTransformer cannot express this network."""
    eps = CLIP_EPS if config.norm_input else EPS
    quick_gelu = config.activation == "quick_gelu"
    return unmet(
        (config.norm_first, "its ViT has its LayerNorms after the sublayers"),
        (config.pool != "last", "its ViT pools the last patch"),
        (config.norm_eps == eps, f"its norm_eps is {config.norm_eps}, not timm's {eps}"),
        (quick_gelu or config.activation == "gelu", f"its activation is {config.activation}"),
        (config.norm_input or not quick_gelu, "timm has quick_gelu only with norm_input"),
    )


def write(
    tower: nn.Module, config: VisionTransformerConfig, transform: TransformConfig, folder: Path
) -> None:
    """Write the state dict, and a config.json with the nearest architecture and the arguments that differ from it."""
    family = "vit_base_patch32_clip_" if config.norm_input else "vit_base_patch32_"
    quick = "quickgelu_" if config.activation == "quick_gelu" else ""
    global_pool = "token" if config.pool == "class" else "avg"
    arguments = {
        "img_size": list(config.image_size),
        "patch_size": list(config.patch_size),
        "embed_dim": config.d_model,
        "depth": config.n_layers,
        "num_heads": config.n_heads,
        "mlp_ratio": config.mlp_width / config.d_model,
        "class_token": config.pool == "class",
        "global_pool": global_pool,
        "fc_norm": config.pool == "mean_norm",
    }
    table = rows(config, bias=not config.norm_input)
    write_tensors(folder / "model.safetensors", export_weights(tower.state_dict(), table))
    more = {"global_pool": global_pool, "model_args": arguments}
    architecture = f"{family}{quick}224"
    write_json(folder / "config.json", options(architecture, config.image_size, transform) | more)


def options(architecture: str, image_size: tuple[int, int], transform: TransformConfig) -> dict[str, Any]:
    """Return timm's config.json for a model without classifier."""
    preparation = asdict(transform)
    return {
        "architecture": architecture,
        "num_classes": 0,
        "pretrained_cfg": {
            "input_size": [3, *image_size],
            "num_classes": 0,
            **{name: preparation[name] for name in ("mean", "std", "interpolation")},
        },
    }


LAYOUTS = [Layout("timm's ViT", "image tower", "blocks.0.attn.qkv.weight", read)]
