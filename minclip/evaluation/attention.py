"""Where a Vision Transformer looks, whatever is asked and for a caption: drawn over the picture.

Attention rolled out through the layers (Abnar and Zuidema 2020, section 3), and only as far as it makes the picture
like the caption (Chefer et al. 2021, section 3.1). B images, H heads, T tokens (class token first where there is
one), L layers, E embed_dim.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from minclip.data.records import Record
from minclip.data.tokenizer import Tokenizer
from minclip.data.transforms import ImageTransform
from minclip.evaluation.embed import embed_texts, evaluating
from minclip.evaluation.plots import wrap
from minclip.towers.vit import VisionTransformer
from minlm.plots import new_figure, save_figure
from minlm.transformer import record_attention

MOST_HEADS = 4


def attention_rollout(weights: Sequence[Tensor]) -> Tensor:
    """Attention weights of L layers, each (B, H, T, T) -> how much of each input token is in each output token.

        A_l = 1/2 mean over heads of the weights + 1/2 I,      rollout = A_L ... A_2 A_1      (B, T, T)

    The identity stands for the residual connection. Each row of the result sums to one. ValueError: no layer.
    """
    if not weights:
        raise ValueError("no attention weights to roll out: 0 layers, at least 1 needed")
    identity = torch.eye(weights[0].shape[-1], device=weights[0].device)
    rollout = identity
    for layer in weights:
        rollout = (layer.float().mean(dim=1) + identity) / 2 @ rollout  # (B, T, T)
    return rollout


def attention_relevance(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Attention of L layers and a score's gradient by it, (B, H, T, T) each -> what each token does for the score.

        A_l = mean over heads of max(0, gradient * weights),      relevance = (I + A_L) ... (I + A_1)      (B, T, T)

    Chefer et al. 2021, equations 5 and 6: of attention counts only what raises the score.
    """
    relevance = torch.eye(weights[0].shape[-1], device=weights[0].device)
    for layer, gradient in zip(weights, gradients, strict=True):
        relevance = relevance + (layer * gradient).clamp(min=0).float().mean(dim=1) @ relevance  # (B, T, T)
    return relevance


def caption_relevance(model: nn.Module, images: Tensor, text_embeddings: Tensor) -> Tensor:
    """Images (B, C, h, w), a unit text embedding (B, E) for each -> relevance of the patches (B, rows, columns).

    What each patch does for the cosine of its picture and text. ValueError for an image tower without attention.
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
        # One sum for all: pictures do not see each other.
        score = (embeddings * text_embeddings.to(device, copy=True)).sum()
        gradients = torch.autograd.grad(score, weights)
    return _over_patches(attention_relevance(weights, gradients).detach(), tower.config)


def vision_transformer(model: nn.Module) -> VisionTransformer:
    if not isinstance(model.image_tower, VisionTransformer):
        name = type(model.image_tower).__name__
        raise ValueError(f"{name} has no attention to show: only a VisionTransformer has patches that look")
    return model.image_tower


def image_attention(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, C, h, w) -> rollout (B, rows, columns) and the last layer's heads (B, H, rows, columns).

    Both are the row of the token that the features are pooled from (the mean of all rows for mean pooling), over
    the grid of patches. ValueError for an image tower without attention.
    """
    tower = vision_transformer(model)
    with evaluating(model), record_attention(tower) as weights:
        tower.forward_tokens(images.to(model.logit_scale.device))
        return tuple(_over_patches(part, tower.config) for part in (attention_rollout(weights), weights[-1]))


def _over_patches(attention: Tensor, config) -> Tensor:
    """(..., T, T) -> (..., rows, columns): what the pooled token sees of the patches."""
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
    model: nn.Module,
    records: Sequence[Record],
    transform: ImageTransform,
    tokenizer: Tokenizer,
    path: str | Path,
) -> Figure:
    """A row a record: the picture as the tower sees it; over it relevance, rollout, the last layer's heads -> PNG.

    Above the picture its first caption and their cosine. Relevance is for that caption; attention takes no account
    of it: it shows what the tower looks at, whatever is asked. Errors as `image_attention`; ValueError for no record.
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
        "Where the image tower looks: bright patches weigh most (each map to its own scale)", fontsize=10
    )
    caption = "Relevance for the caption, attention rolled out over all layers, and the last layer's heads."
    return save_figure(figure, path, caption)
