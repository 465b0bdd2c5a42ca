"""The mask convention: True = may attend, aligned bottom-right, joined by "and"."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from minlm.masks import both, causal_mask, key_mask


@given(st.integers(1, 9), st.integers(0, 9))
def test_a_query_sees_itself_and_what_came_before(n_queries, n_earlier):
    n_keys = n_earlier + n_queries
    mask = causal_mask(n_queries, n_keys)
    expected = [[key <= n_earlier + query for key in range(n_keys)] for query in range(n_queries)]
    assert mask.tolist() == expected, "a query must see itself and what came before, and nothing after"


@given(st.integers(1, 9))
def test_without_earlier_keys_the_mask_is_square(n):
    assert torch.equal(causal_mask(n), causal_mask(n, n)), "n queries without a cache must have n keys"


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 10**6))
def test_padding_is_hidden_from_every_head_and_query(batch, length, seed):
    token_mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.5
    seen = key_mask(token_mask).expand(batch, 3, 5, length)
    for b in range(batch):
        for s in range(length):
            law = f"key {s} of text {b} must be hidden from all heads and queries if padding, else from none"
            assert (seen[b, :, :, s] == token_mask[b, s]).all(), law


@given(st.integers(1, 6), st.integers(0, 10**6))
def test_rules_are_joined_by_and(length, seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.rand(length, length, generator=generator) < 0.5 for _ in range(2))
    assert torch.equal(both(first, second), first & second), "a key must be visible by both masks"
    assert both(None, second) is second
    assert both(first, None) is first
    assert both(None, None) is None
