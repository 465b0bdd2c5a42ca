"""The losses of minclip/losses.py for large batches: in tiles of rows, never the whole matrix of logits.

B pairs, E embed_dim, R rows of a tile. The backward pass computes each tile again instead of keeping it, so memory
grows with B instead of B^2 (the idea of Inf-CL, Cheng et al. 2024). tests/minclip/test_tiled_losses.py ties these to
the written-out losses.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minclip.losses import clip_logits, tiles


def compared_logits(
    images: Tensor, texts: Tensor, logit_scale: Tensor, groups: Tensor | None, rows: slice
) -> Tensor:
    """Compute rows of the logits (R, B), with -inf where j is not in N(i)."""
    logits = clip_logits(images[rows], texts, logit_scale)  # (R, B)
    if groups is not None:
        outside = groups[rows, None] == groups  # (R, B)
        outside[:, rows].fill_diagonal_(False)
        logits.masked_fill_(outside, float("-inf"))
    return logits


def gradients_by_tiles(
    images: Tensor, texts: Tensor, logit_scale: Tensor, at_logits: Callable[[slice], Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute gradients at images (B, E), texts (B, E), logit_scale and a bias of all logits.

    at_logits: from rows to d loss / d l_ij + [ i = j ] of these rows, (R, B), for l_ij = exp(s) <u_i, v_j> + bias.
    """
    at_images, at_texts = torch.empty_like(images), torch.zeros_like(texts)  # (B, E) each
    at_bias = images.new_tensor(-len(images))
    for rows in tiles(len(images)):
        gradient = at_logits(rows)  # (R, B)
        at_bias += gradient.sum()
        gradient[:, rows].diagonal().sub_(1)
        at_images[rows] = gradient @ texts
        at_texts.addmm_(gradient.T, images[rows])
    at_images *= logit_scale.exp()
    at_texts *= logit_scale.exp()
    # l_ij = exp(s) <u_i, v_j>, so the gradient at s is the sum over i of <u_i, gradient at u_i>.
    return at_images, at_texts, (at_images * images).sum(), at_bias


class TiledInfoNCE(torch.autograd.Function):
    """Sum over pairs of `clip_loss`, 1/2 [ lse_j l_ij + lse_j l_ji ] - l_ii with lse over N(i), and its gradient.

    d loss / d l_ij = 1/2 [ e^{l_ij - lse_j l_ij} + e^{l_ij - lse_i l_ij} ] - [ i = j ]
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, logit_scale: Tensor, groups: Tensor | None
    ) -> Tensor:
        """Compute the sum over pairs; keep only the log-sum-exp of each row and column for the backward pass."""
        row_sums = images.new_empty(len(images))  # (B)
        column_sums = images.new_full((len(images),), float("-inf"))  # (B)
        for rows in tiles(len(images)):
            logits = compared_logits(images, texts, logit_scale, groups, rows)  # (R, B)
            row_sums[rows] = logits.logsumexp(dim=1)
            column_sums = torch.logaddexp(column_sums, logits.logsumexp(dim=0))  # (B)
        ctx.save_for_backward(images, texts, logit_scale, row_sums, column_sums)
        ctx.groups = groups
        own = logit_scale.exp() * (images * texts).sum(dim=1)  # (B)
        return ((row_sums + column_sums) / 2 - own).sum()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator hides the names)
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Compute the gradients, with the two softmax terms of each tile from the kept sums."""
        images, texts, logit_scale, row_sums, column_sums = ctx.saved_tensors

        def at_logits(rows: slice) -> Tensor:
            logits = compared_logits(images, texts, logit_scale, ctx.groups, rows)  # (R, B)
            of_columns = (logits - column_sums).exp_()  # (R, B)
            return logits.sub_(row_sums[rows, None]).exp_().add_(of_columns).div_(2)

        found = gradients_by_tiles(images, texts, logit_scale, at_logits)
        return *(gradients[0] * x for x in found[:3]), None


class TiledSigmoid(torch.autograd.Function):
    """Sum over pairs of `sigmoid_loss`, sum_{j in N(i)} -log sigmoid(-l_ij) - l_ii, and its gradient.

    For j = i this is -log sigmoid(l_ii), since sigmoid(-x) = e^{-x} sigmoid(x).
    d loss / d l_ij = sigmoid(l_ij) - [ i = j ]
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
        groups: Tensor | None,
    ) -> Tensor:
        """Compute the sum over pairs; keep nothing else for the backward pass."""
        ctx.save_for_backward(images, texts, logit_scale, logit_bias)
        ctx.groups = groups
        own = logit_scale.exp() * (images * texts).sum(dim=1) + logit_bias  # (B)
        total = -own.sum()
        for rows in tiles(len(images)):
            logits = compared_logits(images, texts, logit_scale, groups, rows).add_(logit_bias)  # (R, B)
            total -= F.logsigmoid(logits.neg_()).sum()
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator hides the names)
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Compute the gradients, with the sigmoid of each tile."""
        images, texts, logit_scale, logit_bias = ctx.saved_tensors

        def at_logits(rows: slice) -> Tensor:
            logits = compared_logits(images, texts, logit_scale, ctx.groups, rows)  # (R, B)
            return logits.add_(logit_bias).sigmoid_()

        found = gradients_by_tiles(images, texts, logit_scale, at_logits)
        return *(gradients[0] * x for x in found), None


def tiled_clip_loss(
    images: Tensor, texts: Tensor, logit_scale: Tensor, groups: Tensor | None = None
) -> tuple[Tensor, int]:
    """Compute `clip_loss` in tiles: embeddings (B, E), groups (B,) -> (sum over pairs, number of pairs)."""
    with torch.autocast(images.device.type, enabled=False):
        return TiledInfoNCE.apply(images, texts, logit_scale, groups), len(images)


def tiled_sigmoid_loss(
    images: Tensor, texts: Tensor, logit_scale: Tensor, logit_bias: Tensor, groups: Tensor | None = None
) -> tuple[Tensor, int]:
    """Compute `sigmoid_loss` in tiles: embeddings (B, E), groups (B,) -> (sum over pairs, number of pairs)."""
    with torch.autocast(images.device.type, enabled=False):
        return TiledSigmoid.apply(images, texts, logit_scale, logit_bias, groups), len(images)
