"""Attention maps: the weights themselves, labels, limits."""

import math

import numpy as np
import pytest
import torch

from minlm.attention_maps import attention_maps, visible


@pytest.mark.parametrize("n_heads, panels", [(1, (1, 1)), (5, (2, 3)), (8, (2, 4))])
def test_attention_maps_show_the_weights(tmp_path, n_heads, panels):
    weights = torch.randn(n_heads, 3, 4).softmax(-1)
    figure = attention_maps(
        weights, ["ein", " Hund", "\n"], tmp_path / "maps.png", ["a", " dog", "", "$5 $6"]
    )
    maps = [axes for axes in figure.axes if axes.get_title().startswith("head")]
    assert [axes.get_title() for axes in maps] == [f"head {head}" for head in range(n_heads)]
    grid = maps[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == panels
    for axes, head in zip(maps, weights, strict=True):
        (drawn,) = axes.get_images()
        np.testing.assert_array_equal(drawn.get_array(), head.numpy())
        assert drawn.get_clim() == (0, pytest.approx(weights.max().item()))
        assert [label.get_text() for label in axes.get_yticklabels()] == ["ein", "␣Hund", "↵"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "␣dog", "∅", "$5␣$6"]
    assert (tmp_path / "maps.png").stat().st_size > 5000


def test_of_very_many_heads_the_first_are_shown(tmp_path):
    weights = torch.randn(70, 2, 2).softmax(-1)
    figure = attention_maps(weights, ["a", "b"], tmp_path / "maps.png")
    assert "weights of the last layer" in figure.get_suptitle()
    titles = [axes.get_title() for axes in figure.axes if axes.get_images()]
    assert titles == [f"head {head}" for head in range(16)]
    assert "(the first 16 of 70)" in figure.get_suptitle()
    assert (tmp_path / "maps.png").stat().st_size > 5000


def test_self_attention_labels_both_sides_alike(tmp_path):
    figure = attention_maps(np.eye(2)[None], ["a", "b"], tmp_path / "maps.png")
    for labels in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        assert [label.get_text() for label in labels] == ["a", "b"]


def test_every_token_can_be_seen():
    tokens = ("a b", "\t", "\n\n", "", "\n      A")
    assert [visible(token) for token in tokens] == ["a␣b", "⇥", "↵↵", "∅", "↵␣×6A"]


@pytest.mark.parametrize(
    "weights, tokens, message",
    [
        (torch.ones(2, 3, 3), ["a", "b"], r"must be \(heads, 2, 2\) for these labels: got \(2, 3, 3\)"),
        (torch.ones(3, 3), ["a", "b", "c"], r"must be \(heads, 3, 3\) for these labels: got \(3, 3\)"),
        (torch.tensor([[[1.0, math.nan]] * 2]), ["a", "b"], "attention weights: 2 of 4 not finite"),
        (
            torch.ones(1, 65, 65),
            ["a"] * 65,
            r"attention weights \(1, 65, 65\): .* more than 64 tokens",
        ),
        (torch.ones(0, 2, 2), ["a", "b"], r"attention weights \(0, 2, 2\): no heads"),
    ],
)
def test_attention_maps_refuse(tmp_path, weights, tokens, message):
    with pytest.raises(ValueError, match=message):
        attention_maps(weights, tokens, tmp_path / "maps.png")


def test_cross_attention_is_called_so(tmp_path):
    figure = attention_maps(np.eye(2)[None], ["a", "b"], tmp_path / "maps.png", ["c", "d"])
    assert figure.get_suptitle().startswith("Cross-attention weights of the last layer")
