"""Token cross-entropy as (sum, count), perplexity, bits per byte. B batch, T tokens, V vocabulary."""

from math import exp, inf, log

import torch
import torch.nn.functional as F
from torch import Tensor

NO_TARGET = -100  # F.cross_entropy ignores such targets


def token_loss(
    logits: Tensor, targets: Tensor, token_mask: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, int]:
    """Compute the cross-entropy in nats -> (sum over real targets, their number).

        loss_t = -(1 - e) log p_t(y_t)  -  e/V sum_v log p_t(v),      p_t = softmax(logits_t)

    logits (B, T, V); targets (B, T), the next tokens; token_mask (B, T), True = a target that counts (None: all).
    e = label_smoothing (Szegedy et al. 2016, section 7; 0.1 in Vaswani et al. 2017). At chance the mean is ln V.
    ValueError unless e is in [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1)")
    count = targets.numel()
    if token_mask is not None:
        count = int(token_mask.sum())
        targets = torch.where(token_mask, targets, NO_TARGET)
    total = F.cross_entropy(
        logits.flatten(0, -2).float(),  # (B T, V)
        targets.flatten(),  # (B T)
        ignore_index=NO_TARGET,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total, count


def perplexity(nats: float) -> float:
    """Compute exp(nats), nats the mean loss per token; infinity if a float cannot hold it, as after divergence."""
    try:
        return exp(nats)
    except OverflowError:
        return inf


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Convert the loss of a text, summed over its tokens, to bits per byte of UTF-8.

    Unlike nats per token, this compares models of different vocabularies. ValueError for an empty text.
    """
    if n_bytes < 1:
        raise ValueError(f"n_bytes={n_bytes} must be at least 1: give a text that is not empty")
    return nats / log(2) / n_bytes
