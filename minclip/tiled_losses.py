"""The losses of minclip/losses.py for large batches: in tiles of rows, never the whole matrix of logits.

B pairs, E embed_dim, R rows of a tile. The backward pass computes each tile again instead of keeping it, so memory
grows with B instead of B^2 (the idea of Inf-CL, Cheng et al. 2024). tests/minclip/test_tiled_losses.py ties these to
the written-out losses.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from minclip.losses import clip_logits

TILE_SIZE = 2**22  # entries of a tile: 16 MiB in float32


def tiles(n_pairs: int) -> Iterator[slice]:
    """Cut the rows of an (n_pairs, n_pairs) matrix into tiles of at most TILE_SIZE entries."""
    n_rows = max(1, TILE_SIZE // n_pairs)
    for start in range(0, n_pairs, n_rows):
        yield slice(start, min(start + n_rows, n_pairs))


def compared_rows(groups: Tensor, rows: slice) -> Tensor:
    """Compute rows of the mask `compared_pairs`, (R, B): True where j is in N(i)."""
    compared = groups[rows, None] != groups  # (R, B)
    compared[:, rows].fill_diagonal_(True)
    return compared


class TiledInfoNCE(torch.autograd.Function):
    """Sum over pairs of `clip_loss`, 1/2 [ lse_j l_ij + lse_j l_ji ] - l_ii with lse over N(i), and its gradient.

    d loss / d l_ij = 1/2 [ e^{l_ij - lse_j l_ij} + e^{l_ij - lse_i l_ij} ] - [ i = j ]
    """

    @staticmethod
    def logits(
        images: Tensor, texts: Tensor, logit_scale: Tensor, groups: Tensor | None, rows: slice
    ) -> Tensor:
        logits = clip_logits(images[rows], texts, logit_scale)  # (R, B)
        return logits if groups is None else logits.masked_fill_(~compared_rows(groups, rows), float("-inf"))

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, logit_scale: Tensor, groups: Tensor | None
    ) -> Tensor:
        row_sums, column_sums = [], images.new_full((len(images),), float("-inf"))  # (B)
        for rows in tiles(len(images)):
            logits = TiledInfoNCE.logits(images, texts, logit_scale, groups, rows)  # (R, B)
            row_sums.append(logits.logsumexp(dim=1))
            column_sums = torch.logaddexp(column_sums, logits.logsumexp(dim=0))  # (B)
        row_sums = torch.cat(row_sums)  # (B)
        ctx.save_for_backward(images, texts, logit_scale, row_sums, column_sums)
        ctx.groups = groups
        own = logit_scale.exp() * (images * texts).sum(dim=1)  # (B)
        return ((row_sums + column_sums) / 2 - own).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        images, texts, logit_scale, row_sums, column_sums = ctx.saved_tensors
        at_images, at_texts = [], torch.zeros_like(texts)
        for rows in tiles(len(images)):
            logits = TiledInfoNCE.logits(images, texts, logit_scale, ctx.groups, rows)  # (R, B)
            at_logits = (logits - column_sums).exp_()  # (R, B)
            at_logits.add_(logits.sub_(row_sums[rows, None]).exp_()).div_(2)
            at_logits[:, rows].diagonal().sub_(1)
            at_images.append(at_logits @ texts)
            at_texts.addmm_(at_logits.T, images[rows])
        factor = gradients[0] * logit_scale.exp()
        at_images = factor * torch.cat(at_images)  # (B, E)
        # l_ij = exp(s) <u_i, v_j>, so the gradient at s is the sum over i of <u_i, gradient at u_i>.
        return at_images, factor * at_texts, (at_images * images).sum(), None


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

    def loss_of_rows(some: Tensor, texts: Tensor, rows: slice) -> Tensor:
        logits = clip_logits(some, texts, logit_scale) + logit_bias  # (R, B)
        signs = torch.full_like(logits, -1)  # (R, B)
        signs[:, rows].fill_diagonal_(1)
        losses = -F.logsigmoid(signs * logits)
        return (losses if groups is None else losses * compared_rows(groups, rows)).sum()

    losses = [
        checkpoint(loss_of_rows, images[rows], texts, rows, use_reentrant=False)
        for rows in tiles(len(images))
    ]
    return torch.stack(losses).sum(), len(images)
