"""Contrastive batches larger than memory: cached embeddings (Gao et al. 2021, GradCache, section 3).

A contrastive loss compares every pair with every other, so it is not a sum over parts of the batch, and plain
gradient accumulation computes another loss. Instead:

1. Embed each part without a graph, and save the random state before it.
2. Compute the loss of the whole batch and its gradient with respect to the embeddings.
3. Embed each part again with a graph and the saved random state (dropout draws the same mask), and backpropagate
   the cached gradient through the towers.

Every parameter gets the full batch's gradient. BatchNorm is the exception: it normalises each part by the part's own
statistics, as it does for each process's part in distributed training.
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
    """Keep BatchNorm's running statistics unchanged inside: each part is embedded twice and must count once."""
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
    """Add the gradients of a whole batch's loss, embedding the batch in n_parts -> (loss, metrics).

    loss: from image and text embeddings, (B, E) each, to (loss, metrics). The result does not depend on n_parts.
    """
    parts, states, cached = list(split(batch, n_parts)), [], []
    with torch.no_grad(), frozen_statistics(model):
        for part in parts:
            states.append(random_states())
            with precision.forward():
                cached.append(embed_batch(model, part))

    leaves = [[embedding.requires_grad_() for embedding in pair] for pair in cached]
    images, texts = (torch.cat(side) for side in zip(*leaves, strict=True))  # (B, E) each
    with precision.forward():
        value, metrics = loss(images, texts)
    precision.backward(value)  # fills leaf.grad, and the gradients of logit_scale and logit_bias

    for part, state, pair in zip(parts, states, leaves, strict=True):
        restore_random_states(state)
        with precision.forward():
            embeddings = embed_batch(model, part)
        for embedding, leaf in zip(embeddings, pair, strict=True):
            if embedding.requires_grad:  # skip fully frozen sides
                embedding.backward(leaf.grad)
    return value, metrics
