"""Positions: the paper's sine table, and rotations that see distances alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minlm.embeddings import Positions, Rotary, rotate, sinusoidal_positions, token_positions


@given(st.integers(1, 40), st.integers(1, 12))
def test_sinusoidal_table_is_the_papers_formula(length, half):
    d_model = 2 * half
    table = sinusoidal_positions(length, d_model)
    for position in {0, length // 2, length - 1}:
        for i in range(half):
            angle = position / 10000 ** (2 * i / d_model)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


@given(st.integers(1, 20), st.booleans(), st.integers(0, 10**6))
def test_positions_look_up_their_row(length, learned, seed):
    layer = Positions(length, 6, learned)
    wanted = torch.randint(length, (2, 3), generator=torch.Generator().manual_seed(seed))
    found = layer(wanted)
    for row in range(2):
        for column in range(3):
            assert torch.equal(found[row, column], layer.weight[wanted[row, column]])


def test_only_learned_positions_are_parameters_and_saved():
    assert [name for name, _ in Positions(4, 6).named_parameters()] == ["weight"]
    fixed = Positions(4, 6, learned=False)
    assert not list(fixed.parameters())
    assert not fixed.state_dict()


@given(st.integers(1, 6), st.integers(1, 4), st.integers(-50, 50), st.integers(0, 10**6))
def test_rotary_scores_depend_on_distance_alone(length, half, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(2, 3, length, 2 * half, generator=generator).double() for _ in range(2))
    rotary = Rotary(2 * half).double()
    here = torch.arange(length) + 50
    scores, moved = (
        rotate(query, rotary(positions)) @ rotate(key, rotary(positions)).transpose(-2, -1)
        for positions in (here, here + shift)
    )
    torch.testing.assert_close(moved, scores, atol=1e-4, rtol=0)  # angles are float32


@given(st.integers(1, 4), st.integers(0, 30), st.integers(0, 10**6))
def test_rotary_turns_pairs_by_their_angle(half, position, seed):
    x = torch.randn(1, 1, 1, 2 * half, generator=torch.Generator().manual_seed(seed))
    turned = rotate(x, Rotary(2 * half)(torch.tensor([position])))[0, 0, 0]
    for i in range(half):
        z = complex(x[0, 0, 0, i], x[0, 0, 0, i + half])
        angle = position * 10000 ** (-2 * i / (2 * half))
        expected = z * complex(math.cos(angle), math.sin(angle))
        assert abs(complex(turned[i], turned[i + half]) - expected) < 1e-4


@given(st.integers(0, 10**6))
def test_rotary_takes_positions_a_row(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 2, 4, 8, generator=generator)
    positions = torch.randint(0, 30, (3, 4), generator=generator)
    together = rotate(x, Rotary(8)(positions))
    for row in range(3):
        torch.testing.assert_close(together[row], rotate(x[row : row + 1], Rotary(8)(positions[row]))[0])


@pytest.mark.parametrize("width", [2, 3, 4, 6])
def test_a_mask_covers_the_new_tokens_and_the_cached_ones_and_no_more(width):
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    message = f"token_mask covers {width} of 5 tokens: cover the cached ones too"
    with pytest.raises(ValueError, match=message):
        token_positions(tokens, 9, torch.ones(1, width, dtype=torch.bool), n_cached=2)


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match="d_model=7 is odd"):
        sinusoidal_positions(3, 7)
    with pytest.raises(ValueError, match="the head size 5"):
        Rotary(5)
