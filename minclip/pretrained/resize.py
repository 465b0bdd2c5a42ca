"""Pretrained weights resized to another image size, vocabulary or context, on request only."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minclip.towers.modified_resnet import ModifiedResNetConfig
from minclip.towers.text import BertTextConfig, GPTTextConfig
from minclip.towers.vit import VisionTransformerConfig, resize_positions

Size = tuple[int, int]
Weights = dict[str, Tensor]
# The parameter with a tower's position grid.
POSITIONS = {VisionTransformerConfig: "positions", ModifiedResNetConfig: "attention_pooling.positions"}


def grid_of(config: Any) -> Size:
    """Return the (rows, columns) of a tower's position grid."""
    if isinstance(config, VisionTransformerConfig):
        return config.grid
    return config.image_size[0] // config.stride, config.image_size[1] // config.stride


def resize_image(
    config: Any, weights: Weights, image_size: Size | None, antialias: bool
) -> tuple[Any, Weights]:
    """Resize an image tower's config and weights to another image_size; None = unchanged.

    Position vectors are interpolated, bicubic in float32 (Dosovitskiy et al. 2021, section 3.2), as the format's
    owner does it (`resize_positions`). A tower without positions takes any size.
    """
    if image_size is None or tuple(image_size) == config.image_size:
        return config, weights
    resized = replace(config, image_size=tuple(image_size))
    if type(config) in POSITIONS:
        name = POSITIONS[type(config)]
        positions = resize_positions(weights[name], grid_of(config), grid_of(resized), antialias)
        weights = weights | {name: positions}
    return resized, weights


def resize_text(
    config: GPTTextConfig | BertTextConfig,
    weights: Weights,
    vocab_size: int | None = None,
    context_length: int | None = None,
) -> tuple[GPTTextConfig | BertTextConfig, Weights]:
    """Resize a text tower's config and weights to another vocabulary or context; None = unchanged.

    New tokens start as the mean of the others; a smaller vocabulary keeps the first. A shorter context keeps the
    first positions. Raises ValueError for a longer one: its last positions would be untrained.
    """
    tokens, positions = weights["embedding.tokens.weight"], weights["embedding.positions.weight"]
    n_new = (vocab_size or len(tokens)) - len(tokens)
    if n_new > 0:
        tokens = torch.cat([tokens, tokens.mean(dim=0, keepdim=True).expand(n_new, -1)])
    elif n_new < 0:
        tokens = tokens[:vocab_size].clone()
    length = context_length or len(positions)
    if length > len(positions):
        raise ValueError(
            f"context_length={length} is longer than the {len(positions)} positions of these weights: give at most that"
        )
    if length < len(positions):
        positions = positions[:length].clone()
    resized = replace(config, vocab_size=len(tokens), context_length=length)
    weights = weights | {"embedding.tokens.weight": tokens, "embedding.positions.weight": positions}
    return resized, weights
