"""The one mask convention: boolean, True = may attend, broadcastable to (B, H, T, S), combined with `&`.

A query may attend to a key where every rule allows it, so rules are joined by "and" and no mask is ever
inverted or added to the scores. B batch, H heads, T queries, S keys.
"""

import torch
from torch import Tensor


def causal_mask(n_queries: int, n_keys: int | None = None, device: torch.device | None = None) -> Tensor:
    """(T, S): each query sees itself and what came before it.

    The queries are the *last* T of the S positions (with a key-value cache S > T), so the mask is aligned
    bottom-right: query i stands at position S - T + i.
    """
    n_keys = n_queries if n_keys is None else n_keys
    query_position = torch.arange(n_keys - n_queries, n_keys, device=device)  # (T)
    key_position = torch.arange(n_keys, device=device)  # (S)
    return key_position <= query_position[:, None]  # (T, S)


def key_mask(token_mask: Tensor | None) -> Tensor | None:
    """token_mask (B, S), True = a real token -> (B, 1, 1, S): no query of any head sees padding.

    None, where there is no padding, stays None.
    """
    return None if token_mask is None else token_mask[:, None, None, :]  # (B, 1, 1, S)


def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """first & second, where None allows everything."""
    if first is None or second is None:
        return second if first is None else first
    return first & second
