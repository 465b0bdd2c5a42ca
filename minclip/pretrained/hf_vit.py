"""Hugging Face's ViTModel, alone or inside a task's model."""

from pathlib import Path
from typing import Any

from torch import nn

from minclip.data.transforms import TransformConfig
from minclip.pretrained.layout import Layout, unmet
from minclip.pretrained.patches import vit_sizes
from minclip.towers.vit import VisionTransformerConfig
from minlm.pretrained.key_map import (
    BATCHED,
    JOINED,
    TOKEN,
    Plan,
    Row,
    count_layers,
    export_weights,
    layers,
    module,
    prefixed,
)
from minlm.pretrained.options import HF_SIZES, agree, complete, expect, hf_options, our_activation
from minlm.pretrained.weight_files import WeightFile, write_tensors
from minlm.training.files import write_json

BLOCK = [
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
IGNORED = {
    r"(vit\.)?pooler\.dense\.(weight|bias)": "a layer after the class token, which is this tower's feature itself",
    r"classifier\.(weight|bias)": "a task's head",
    r"(vit\.)?embeddings\.mask_token": "used in masked pretraining only",
    r"decoder\..*": "the head of masked pretraining",
}
WANTED = {"model_type": "vit", "num_channels": 3, "qkv_bias": True}


def rows(config: VisionTransformerConfig) -> list[Row]:
    """Return the table of a ViT, which always has a class token."""
    return [
        Row("embeddings.cls_token", "class_token", TOKEN),
        Row("embeddings.position_embeddings", "positions", BATCHED),
        *module("embeddings.patch_embeddings.projection", "patch_embedding"),
        *layers(BLOCK, config.n_layers),
        *module("layernorm", "transformer.norm"),
    ]


def read(source: WeightFile, prefix: str, given: dict[str, Any]) -> Plan:
    """Plan a ViTModel; its feature is the class token after the last LayerNorm."""
    options = source.read_json("config.json")
    expect(options, WANTED, source.path)
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
        **vit_sizes(patches, n_positions - 1, options.get("image_size"), source.path),
    }
    agree(options, facts | {"patch_side": patches[-1]}, HF_SIZES | {"patch_size": "patch_side"}, source.path)
    config = complete(VisionTransformerConfig, facts, given, source.path)
    return Plan(config, prefixed(rows(config), theirs=prefix), IGNORED)


def obstacles(config: VisionTransformerConfig) -> list[str]:
    """List why a ViTModel cannot express this ViT, which has a class token and no norm_input."""
    return unmet(
        (config.norm_first, "its ViT has its LayerNorms after the sublayers"),
        (config.patch_size[0] == config.patch_size[1], "its patches are not square"),
    )


def write(
    tower: nn.Module, config: VisionTransformerConfig, transform: TransformConfig, folder: Path
) -> None:
    """Write a folder for ViTModel.from_pretrained; it has no place for `transform`."""
    options = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        **hf_options(config),
        "image_size": list(config.image_size),
        "patch_size": config.patch_size[0],
        "qkv_bias": True,
        **{f"{name}_dropout_prob": config.dropout for name in ("hidden", "attention_probs")},
    }
    write_tensors(folder / "model.safetensors", export_weights(tower.state_dict(), rows(config)))
    write_json(folder / "config.json", options)


ANCHOR = "embeddings.patch_embeddings.projection.weight"
LAYOUTS = [Layout("Hugging Face's ViT", "image tower", ANCHOR, read, ("", "vit."), antialias=False)]
