"""Attention of a Vision Transformer, drawn over the image.

Two maps: attention rollout through the layers (Abnar and Zuidema 2020, section 3), and relevance, the attention that
raises the similarity with a caption (Chefer et al. 2021, section 3.1). B images, H heads, T tokens (class token first
if there is one), L layers, E embed_dim.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from minclip.clip import CLIP
from minclip.data.records import Record
from minclip.data.tokenizer import Tokenizer
from minclip.data.transforms import ImageTransform
from minclip.evaluation.embed import embed_texts, evaluating
from minclip.evaluation.plots import wrap
from minclip.towers.vit import VisionTransformer, VisionTransformerConfig
from minlm.plots import new_figure, save_figure
from minlm.transformer import record_attention

MOST_HEADS = 4


def attention_rollout(weights: Sequence[Tensor]) -> Tensor:
    """Compute the share of each input token in each output token from the weights (B, H, T, T) of L layers.

        A_l = 1/2 mean over heads of the weights + 1/2 I,      rollout = A_L ... A_2 A_1      (B, T, T)

    The identity accounts for the residual connection. Each row of the result sums to one.
    """
    identity = torch.eye(weights[0].shape[-1], device=weights[0].device)
    rollout = identity
    for layer in weights:
        rollout = (layer.float().mean(dim=1) + identity) / 2 @ rollout  # (B, T, T)
    return rollout


def attention_relevance(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Compute each token's relevance for a score from the attention weights of L layers and the score's gradients.

        A_l = mean over heads of max(0, gradient * weights),      relevance = (I + A_L) ... (I + A_1)      (B, T, T)

    weights, gradients: (B, H, T, T) per layer. Only attention that raises the score counts (Chefer et al. 2021,
    equations 5 and 6).
    """
    relevance = torch.eye(weights[0].shape[-1], device=weights[0].device)
    for layer, gradient in zip(weights, gradients, strict=True):
        relevance = relevance + (layer * gradient).clamp(min=0).float().mean(dim=1) @ relevance  # (B, T, T)
    return relevance


def caption_relevance(model: CLIP, images: Tensor, text_embeddings: Tensor) -> Tensor:
    """Compute each patch's relevance (B, rows, columns) for the cosine of its image and a text.

    images: (B, C, h, w); text_embeddings: (B, E), unit length, one per image. Raises ValueError if the image tower
    has no attention.
    """
    tower = vision_transformer(model)
    device = model.logit_scale.device
    with (
        evaluating(model),
        torch.inference_mode(False),
        torch.enable_grad(),
        record_attention(tower) as weights,
    ):
        images = images.to(device, copy=True).requires_grad_()  # a graph, even where the tower is frozen
        embeddings = model.encode_image(images)  # (B, E)
        # One sum for the batch: images do not attend to each other.
        score = (embeddings * text_embeddings.to(device, copy=True)).sum()
        gradients = torch.autograd.grad(score, weights)
    return attention_to_patches(attention_relevance(weights, gradients).detach(), tower.config)


def vision_transformer(model: CLIP) -> VisionTransformer:
    """Return the model's image tower; ValueError if it is not a VisionTransformer."""
    if not isinstance(model.image_tower, VisionTransformer):
        name = type(model.image_tower).__name__
        raise ValueError(f"{name} has no attention to show: only a VisionTransformer has patches")
    return model.image_tower


def image_attention(model: CLIP, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the rollout (B, rows, columns) and the last layer's heads (B, H, rows, columns) of images (B, C, h, w).

    Both are the pooled token's attention to the grid of patches, or the mean over tokens for mean pooling.
    Raises ValueError if the image tower has no attention.
    """
    tower = vision_transformer(model)
    with evaluating(model), record_attention(tower) as weights:
        tower.forward_tokens(images.to(model.logit_scale.device))
    rollout = attention_to_patches(attention_rollout(weights), tower.config)
    return rollout, attention_to_patches(weights[-1], tower.config)


def attention_to_patches(attention: Tensor, config: VisionTransformerConfig) -> Tensor:
    """Select the pooled token's attention to the patches: (..., T, T) -> (..., rows, columns)."""
    match config.pool:
        case "class":
            row = attention[..., 0, :]  # (..., T)
        case "mean" | "mean_norm":
            row = attention.mean(dim=-2)  # (..., T)
        case "last":
            row = attention[..., -1, :]  # (..., T)
    patches = row[..., row.shape[-1] - config.n_patches :]  # (..., N)
    return patches.unflatten(-1, config.grid).float().cpu()  # (..., rows, columns)


def draw_attention(
    model: CLIP,
    records: Sequence[Record],
    transform: ImageTransform,
    tokenizer: Tokenizer,
    path: str | Path,
) -> Figure:
    """Plot one row per record: the tower's input image, then relevance, rollout and the last layer's heads over it.

    The first title is the record's first caption and its cosine with the image. Only relevance depends on the caption.
    Raises ValueError if the image tower has no attention.
    """
    texts = embed_texts(model, tokenizer, [record.captions[0] for record in records])  # (B, E)
    images = torch.stack([transform(record.open()) for record in records])  # (B, C, h, w)
    rollouts, heads = image_attention(model, images)
    relevance = caption_relevance(model, images, texts)
    with evaluating(model):
        embeddings = model.encode_image(images.to(model.logit_scale.device)).float().cpu()  # (B, E)
    heads = heads[:, :MOST_HEADS]
    columns = 3 + heads.shape[1]
    figure = new_figure(1.9 * columns, 2.35 * len(records) + 0.6)
    panels = figure.subplots(len(records), columns, squeeze=False)
    for row, record in enumerate(records):
        image = np.asarray(transform.invert(images[row]))
        cosine = float(embeddings[row] @ texts[row])
        names = [f"{wrap(record.captions[0], 30, 2)}\ncosine {cosine:.2f}", "for this caption", "rollout"]
        names += [f"last layer, head {head}" for head in range(heads.shape[1])]
        maps = [None, relevance[row], rollouts[row], *heads[row]]
        for axes, name, map_ in zip(panels[row], names, maps, strict=True):
            axes.imshow(image)
            axes.set_title(name, fontsize=7, parse_math=False)
            axes.axis("off")
            if map_ is not None:
                edges = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
                axes.imshow(map_.numpy(), cmap="inferno", alpha=0.65, extent=edges, interpolation="bilinear")
    figure.suptitle(
        "Attention of the image tower: bright patches weigh most (each map to its own scale)", fontsize=10
    )
    caption = "Relevance for the caption, attention rolled out over all layers, and the last layer's heads."
    return save_figure(figure, path, caption)
