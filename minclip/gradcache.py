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
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minclip.clip import CLIP, embed_batch
from minlm.training.batches import Batch, split
from minlm.training.checkpoint import random_states, restore_random_states
from minlm.training.loop import Metrics, Precision


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
    batch: Batch,
    n_parts: int,
    precision: Precision,
    loss: Callable[[Tensor, Tensor], tuple[Tensor, Metrics]],
) -> tuple[Tensor, Metrics]:
    """Add the gradients of a whole batch's contrastive loss, embedded in n_parts -> (loss, metrics).

    loss(image embeddings, text embeddings), (B, E) each -> (loss, metrics). The result is that of one part.
    """
    parts, states, embeddings = list(split(batch, n_parts)), [], []
    with torch.no_grad(), frozen_statistics(model):
        for part in parts:
            states.append(random_states())
            with precision.forward():
                embeddings.append(embed_batch(model, part))

    images, texts = (
        torch.cat(side).requires_grad_() for side in zip(*embeddings, strict=True)
    )  # (B, E) each
    with precision.forward():
        value, metrics = loss(images, texts)
    precision.backward(value)  # fills images.grad, texts.grad and the gradients of logit_scale and logit_bias

    sizes = [len(part["groups"]) for part in parts]
    for part, state, *cached in zip(
        parts, states, images.grad.split(sizes), texts.grad.split(sizes), strict=True
    ):
        restore_random_states(state)
        with precision.forward():
            pair = embed_batch(model, part)
        for embedding, gradient in zip(pair, cached, strict=True):
            if embedding.requires_grad:  # skip sides that are fully frozen
                embedding.backward(gradient)
    return value, metrics
