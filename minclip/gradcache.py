"""Contrastive batches larger than memory: cached embeddings (Gao et al. 2021, GradCache, section 3).

A contrastive loss compares every pair with every other, so it is not a sum over parts of the batch, and the
plain accumulation of gradients computes another loss. Here: 1. embed the parts without a graph, keeping the
random state before each; 2. the loss of the whole batch, and its gradient at the embeddings; 3. embed each
part again with a graph and the same random state (so dropout draws the same mask), and let the cached
gradient flow on into the towers. Every parameter gets the full batch's gradient, logit_scale's included;
but BatchNorm, by its nature, normalises each part by that part's own statistics. The same holds for parts that
are computed by several processes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from minclip.clip import CLIP, embed_batch, loss_of_share
from minlm.training.checkpoint import random_states, restore_random_states
from minlm.training.loop import Autocast, accumulate, average, split


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm keeps its running statistics: each part is embedded twice and must count once."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def cached_backward(
    model: CLIP,
    batch: dict[str, Tensor],
    loss: Callable,
    n_parts: int,
    scale: Callable[[Tensor], Tensor],
    autocast: Autocast = nullcontext,
) -> tuple[Tensor, int, dict[str, Any]]:
    """The gradients of the mean contrastive loss of a whole batch, in n_parts -> (mean, pairs, figures).

    Takes the place of minlm.training.loop.accumulate in `fit`; in one part the two are the same.
    """
    if n_parts == 1:
        return accumulate(model, batch, loss, 1, scale, autocast)
    parts, states, embeddings = list(split(batch, n_parts)), [], []
    with torch.no_grad(), frozen_statistics(model):
        for part in parts:
            states.append(random_states())
            with autocast():
                embeddings.append(embed_batch(model, part))

    image, text = (torch.cat(side).requires_grad_() for side in zip(*embeddings, strict=True))  # (B, E) each
    with autocast():
        total, n_pairs, figures = loss_of_share(model, image, text, batch["groups"])
    scale(total).backward()  # fills image.grad, text.grad and the gradients of logit_scale and logit_bias

    sizes = [len(part["groups"]) for part in parts]
    for part, state, *cached in zip(
        parts, states, image.grad.split(sizes), text.grad.split(sizes), strict=True
    ):
        restore_random_states(state)
        with autocast():
            pair = embed_batch(model, part)
        for embedding, gradient in zip(pair, cached, strict=True):
            if embedding.requires_grad:  # not where nothing of its side is trained
                embedding.backward(gradient)
    return *average(model, total.detach(), n_pairs), figures
