"""Token cross-entropy as (sum, count), and the units it is told in. B batch, T tokens, V vocabulary."""

from math import exp, inf, log

import torch
import torch.nn.functional as F
from torch import Tensor

NO_TARGET = -100  # F.cross_entropy counts such places neither in the sum nor in the gradient


def token_loss(
    logits: Tensor, targets: Tensor, token_mask: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, int]:
    """Cross-entropy in nats -> (sum over real targets, their number), for `minlm.training.loop`.

        loss_t = -(1 - e) log p_t(y_t)  -  e/V sum_v log p_t(v),      p_t = softmax(logits_t)

    logits (B, T, V); targets (B, T), the token that follows each; token_mask (B, T), True = a target that
    counts (None: all do). e = label_smoothing (Szegedy et al. 2016, section 7; 0.1 in Vaswani et al. 2017).
    A model that knows nothing has ln V. ValueError unless e lies in [0, 1).
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
    """The number of equally likely tokens that would be as hard to guess; nats: mean loss per token.

    Infinity where it is more than a float can hold, as after a training run that diverged.
    """
    try:
        return exp(nats)
    except OverflowError:
        return inf


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """What the text costs in bits, a byte of its UTF-8; nats: the loss summed over all its tokens.

    Unlike nats a token it compares models of different vocabularies. ValueError for a text without bytes.
    """
    if n_bytes < 1:
        raise ValueError(f"n_bytes={n_bytes} must be at least 1: an empty text has no bits per byte")
    return nats / log(2) / n_bytes
