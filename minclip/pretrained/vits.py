"""Vision Transformers in the names of timm and of Hugging Face's ViT."""

import re
from math import prod
from typing import Any

import torch

from minclip.pretrained.resize import square_grid
from minclip.towers.vit import VisionTransformerConfig
from minlm.pretrained.key_map import (
    BATCHED,
    JOINED,
    SAME,
    TOKEN,
    Plan,
    Row,
    Tensors,
    Transform,
    count_layers,
    layers,
    module,
    prefixed,
)
from minlm.pretrained.options import HF_SIZES, agree, complete, expect, option, our_activation
from minlm.pretrained.weight_files import WeightFile

TIMM_BLOCK = [
    *module("blocks.*.norm1", "transformer.blocks.*.norm1"),
    *module("blocks.*.attn.qkv", "transformer.blocks.*.attention.in_proj"),
    *module("blocks.*.attn.proj", "transformer.blocks.*.attention.out_proj"),
    *module("blocks.*.norm2", "transformer.blocks.*.norm2"),
    *module("blocks.*.mlp.{fc1,fc2}", "transformer.blocks.*.mlp.{fc1,fc2}"),
]
TIMM_IGNORED = {r"head\.(weight|bias)": "the classifier, which follows the features"}
TIMM_EPS = 1e-6
CLIP_EPS = 1e-5  # of the ViTs that timm took over from CLIP: those with norm_pre
# timm's config.json names an architecture; its size word stands for (width, heads).
TIMM_HEADS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12), "large": (1024, 16), "huge": (1280, 16)}
HF_BLOCK = [
    *module("encoder.layer.*.layernorm_before", "transformer.blocks.*.norm1"),
    *module(
        "encoder.layer.*.attention.attention.{query,key,value}",
        "transformer.blocks.*.attention.in_proj",
        JOINED,
    ),
    *module("encoder.layer.*.attention.output.dense", "transformer.blocks.*.attention.out_proj"),
    *module("encoder.layer.*.layernorm_after", "transformer.blocks.*.norm2"),
    *module("encoder.layer.*.intermediate.dense", "transformer.blocks.*.mlp.fc1"),
    *module("encoder.layer.*.output.dense", "transformer.blocks.*.mlp.fc2"),
]
HF_IGNORED = {
    r"(vit\.)?pooler\.dense\.(weight|bias)": "a layer after the class token, which is this tower's feature itself",
    r"classifier\.(weight|bias)": "a task's head",
    r"(vit\.)?embeddings\.mask_token": "used in masked pretraining only",
    r"decoder\..*": "the head of masked pretraining",
}
HF_WANTED = {"model_type": "vit", "num_channels": 3, "qkv_bias": True}


def without_bias(n_extra: int, batched: bool = False) -> Transform:
    """(patches, positions) of theirs, whose patch embedding has no bias; (patches, bias, positions) of ours.

    In: the bias is zero. Out: it is added to the positions of the patches, which is the same function; n_extra
    tokens that are no patches stand before them.
    """
    inner = BATCHED if batched else SAME

    def to_ours(tensors: Tensors) -> Tensors:
        patches, positions = tensors
        return [patches, torch.zeros_like(patches[:, :1, :1, :1].flatten()), *inner.to_ours([positions])]

    def to_theirs(tensors: Tensors) -> Tensors:
        patches, bias, positions = tensors
        moved = torch.cat([positions[:n_extra], positions[n_extra:] + bias])
        return [patches, *inner.to_theirs([moved])]

    return Transform(to_ours, to_theirs)


def image_size(patches: torch.Size, n_patches: int, stated: Any, where: Any) -> dict[str, tuple[int, int]]:
    """{patch_size, image_size} of a patch embedding's shape (D, C, P, P) and the number of its positions.

    stated: the config's image_size, a number or (height, width); None = a square picture.
    """
    patch = tuple(patches[-2:])
    if stated is None:
        rows, columns = square_grid(n_patches, where)
        size = (rows * patch[0], columns * patch[1])
    else:
        size = tuple(stated) if isinstance(stated, list | tuple) else (stated, stated)
        n_stated = prod(side // step for side, step in zip(size, patch, strict=False) if type(side) is int)
        if n_stated != n_patches:
            raise ValueError(
                f"{where}: its config says image_size={stated!r}, its positions are for {n_patches} patches"
            )
    return {"patch_size": patch, "image_size": size}


def timm_rows(config: VisionTransformerConfig, bias: bool = True) -> list[Row]:
    """timm's table. bias: whether its patch embedding has one (timm leaves it out where there is norm_pre)."""
    n_extra = int(config.pool == "class")
    if bias:
        rows = [*module("patch_embed.proj", "patch_embedding"), Row("pos_embed", "positions", BATCHED)]
    else:
        ours = "{patch_embedding.weight,patch_embedding.bias,positions}"
        rows = [Row("{patch_embed.proj.weight,pos_embed}", ours, without_bias(n_extra, batched=True))]
    if n_extra:
        rows.append(Row("cls_token", "class_token", TOKEN))
    if config.norm_input:
        rows += module("norm_pre", "norm_input")
    last = ("fc_norm", "norm_mean") if config.pool == "mean_norm" else ("norm", "transformer.norm")
    return [*rows, *layers(TIMM_BLOCK, config.n_layers), *module(*last)]


def timm_plan(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """A timm VisionTransformer, pooled at its class token, or, without one, by the mean before or after the last
    LayerNorm.
    """
    tensors, config = source.tensors, source.read_json("config.json")
    arguments = option(config, "model_args", dict, source.path, {})
    published = option(config, "pretrained_cfg", dict, source.path, {})
    has_class, norm_input = "cls_token" in tensors, "norm_pre.weight" in tensors
    norm_after = "fc_norm.weight" in tensors
    if has_class and norm_after:
        raise ValueError(
            f"{source.path} pools the mean of the patches (fc_norm) beside a class token: this ViT pools the token"
        )
    pool = "class" if has_class else "mean_norm" if norm_after else "mean"
    expect(config, {"global_pool": "token" if has_class else "avg"}, source.path)
    patches = source.shape("patch_embed.proj.weight", 4)
    d_model = patches[0]
    architecture = option(config, "architecture", str, source.path, "")
    activation = None
    if re.match(r"(vit|deit)_", architecture) and "act_layer" not in arguments:
        activation = "quick_gelu" if "quickgelu" in architecture else "gelu"
    facts = {
        "d_model": d_model,
        "n_layers": count_layers(tensors, r"blocks\.(\d+)\."),
        "n_heads": arguments.get("num_heads") or timm_heads(architecture, d_model),
        "d_ff": source.shape("blocks.0.mlp.fc1.weight", 2)[0],
        "activation": activation,
        "norm_eps": CLIP_EPS if norm_input else TIMM_EPS,
        "pool": pool,
        "norm_input": norm_input,
        **image_size(
            patches,
            source.shape("pos_embed", 3)[1] - has_class,
            option(published, "input_size", tuple[int, int, int], source.path, (None,))[1:] or None,
            source.path,
        ),
    }
    config = complete(VisionTransformerConfig, facts, given, source.path)
    return Plan(config, timm_rows(config, bias="patch_embed.proj.bias" in tensors), TIMM_IGNORED)


def timm_heads(architecture: str, d_model: int) -> int | None:
    """Heads of vit_base_patch16_224 and the like; None where the name does not say, or says another width."""
    word = re.match(r"(?:vit|deit)_(\w+?)_patch", architecture)
    width, n_heads = TIMM_HEADS.get(word[1] if word else "", (None, None))
    return n_heads if width == d_model else None


def hf_rows(config: VisionTransformerConfig) -> list[Row]:
    """Hugging Face's ViT, which always has a class token."""
    return [
        Row("embeddings.cls_token", "class_token", TOKEN),
        Row("embeddings.position_embeddings", "positions", BATCHED),
        *module("embeddings.patch_embeddings.projection", "patch_embedding"),
        *layers(HF_BLOCK, config.n_layers),
        *module("layernorm", "transformer.norm"),
    ]


def hf_plan(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """A Hugging Face ViTModel, or the one in a task's model (vit.)."""
    options = source.read_json("config.json")
    expect(options, HF_WANTED, source.path)
    patches = source.shape(f"{prefix}embeddings.patch_embeddings.projection.weight", 4)
    n_positions = source.shape(f"{prefix}embeddings.position_embeddings", 3)[1]
    facts = {
        "d_model": patches[0],
        "n_layers": count_layers(source.tensors, rf"{prefix}encoder\.layer\.(\d+)\."),
        "n_heads": options.get("num_attention_heads"),
        "d_ff": source.shape(f"{prefix}encoder.layer.0.intermediate.dense.weight", 2)[0],
        "activation": our_activation(options.get("hidden_act"), source.path),
        "norm_eps": options.get("layer_norm_eps", 1e-12),
        "pool": "class",
        **image_size(patches, n_positions - 1, options.get("image_size"), source.path),
    }
    agree(options, facts | {"patch_side": patches[-1]}, HF_SIZES | {"patch_size": "patch_side"}, source.path)
    config = complete(VisionTransformerConfig, facts, given, source.path)
    return Plan(config, prefixed(hf_rows(config), theirs=prefix), HF_IGNORED)
