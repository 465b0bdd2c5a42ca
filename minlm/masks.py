"""The one mask convention: boolean, True = may attend, broadcastable to (B, H, T, S), combined with `&`.

A query may attend to a key if every mask allows it. No mask is inverted or added to the scores.
B batch, H heads, T queries, S keys.
"""

import torch
from torch import Tensor


def causal_mask(n_queries: int, n_keys: int | None = None, device: torch.device | None = None) -> Tensor:
    """Return the mask (T, S) that lets each query attend to itself and earlier positions.

    The queries are the last T of the S positions (with a key-value cache S > T): query i is at position S - T + i.
    """
    n_keys = n_queries if n_keys is None else n_keys
    query_position = torch.arange(n_keys - n_queries, n_keys, device=device)  # (T)
    key_position = torch.arange(n_keys, device=device)  # (S)
    return key_position <= query_position[:, None]  # (T, S)


def key_mask(token_mask: Tensor) -> Tensor:
    """Turn token_mask (B, S), True = a real token, into the mask (B, 1, 1, S) that hides padding."""
    return token_mask[:, None, None, :]  # (B, 1, 1, S)


def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return first & second; None allows everything."""
    if first is None or second is None:
        return second if first is None else first
    return first & second
