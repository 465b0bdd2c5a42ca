"""Heads: their equations, the Kronecker product, parameter counts, and their std at initialisation."""

from functools import reduce
from math import prod

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minclip.towers.projection import LowRank, NdLinear, NdLinearProjection, make_projection, two_axes
from tests.minlm.reference import normal, randomise

seeds = st.integers(0, 10**6)
widths = st.integers(1, 40)
axes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)
leading = st.lists(st.integers(1, 3), max_size=2)
KINDS = ["linear", "linear_norm", "residual", "ndlinear", "low_rank"]


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def n_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def nd_linear(sizes: list[tuple[int, int]], seed: int) -> NdLinear:
    return randomise(NdLinear(*zip(*sizes, strict=True)), seed)


def bias_of(layer: NdLinear) -> torch.Tensor:
    """The sum of the biases: axis k's is laid along axis k, and the maps of the later axes act on it."""
    total = torch.zeros(layer.out_shape, dtype=torch.float64)
    for k, axis in enumerate(layer.axes):
        factors = [torch.ones(n, dtype=torch.float64) for n in layer.out_shape[:k]]
        factors += [axis.bias, *(later.weight.sum(dim=1) for later in layer.axes[k + 1 :])]
        total += reduce(torch.kron, factors).view(layer.out_shape)
    return total


@given(axes, leading, seeds)
def test_ndlinear_is_a_dense_layer_of_kronecker_products(sizes, leading, seed):
    layer = nd_linear(sizes, seed)
    x = normal(seed + 1, *leading, *layer.in_shape)
    weight = reduce(torch.kron, [axis.weight for axis in layer.axes])
    dense = F.linear(x.flatten(len(leading)), weight, bias_of(layer).flatten())
    same(layer(x), dense.unflatten(-1, layer.out_shape))
    same(layer(torch.zeros_like(x)), bias_of(layer).expand(*leading, *layer.out_shape))


@given(axes)
def test_ndlinear_has_the_parameters_of_its_formula(sizes):
    layer = NdLinear(*zip(*sizes, strict=True))
    assert n_parameters(layer) == sum((n_in + 1) * n_out for n_in, n_out in sizes)
    if len(sizes) == 1:
        assert n_parameters(layer) == n_parameters(torch.nn.Linear(*sizes[0]))


@pytest.mark.parametrize("sizes", [[(256, 64)], [(16, 48), (16, 16)], [(8, 8), (8, 16), (12, 4)]])
def test_ndlinear_preserves_the_std_as_a_dense_head_does(sizes):
    """torch's own initialisation would leave 0.58 of it for each axis."""
    in_shape, out_shape = zip(*sizes, strict=True)
    x, stds, torchs = torch.randn(64, *in_shape), {"nd": [], "dense": []}, []
    for seed in range(40):
        torch.manual_seed(seed)
        layer, dense = NdLinear(in_shape, out_shape), make_projection("linear", prod(in_shape), 64)
        stds["nd"].append(layer(x).square().mean())
        stds["dense"].append(dense(x.flatten(1)).square().mean())
        for axis in layer.axes:
            axis.reset_parameters()
            torch.nn.init.zeros_(axis.bias)
        torchs.append(layer(x).square().mean())
    nd, dense, theirs = (torch.stack(v).mean().sqrt().item() for v in (*stds.values(), torchs))
    assert nd == pytest.approx(dense, rel=0.15)
    assert dense == pytest.approx(1, rel=0.05)
    assert theirs == pytest.approx(3 ** (-len(sizes) / 2), rel=0.15)


@pytest.mark.parametrize(
    "in_shape, out_shape", [((), ()), ((2, 3), (2,)), ((2,), (3, 3)), ((2, 0), (2, 2)), ((2, 2), (2, 0))]
)
def test_axes_that_do_not_match_are_refused(in_shape, out_shape):
    with pytest.raises(ValueError, match=r"the same number of axes, at least one, each of size 1 or more"):
        NdLinear(in_shape, out_shape)


def test_another_input_shape_is_refused():
    with pytest.raises(ValueError, match=r"NdLinear takes \(\.\.\., 2, 3\), got \(5, 3, 2\)"):
        NdLinear((2, 3), (2, 3))(torch.zeros(5, 3, 2))


@given(st.integers(1, 3000), st.integers(1, 1200))
def test_two_axes_are_factors(width, embed_dim):
    ins, outs = two_axes(width, embed_dim)
    assert (prod(ins), prod(outs)) == (width, embed_dim)
    assert outs[0] <= outs[1]
    assert not any(embed_dim % n == 0 for n in range(outs[0] + 1, int(embed_dim**0.5) + 1))
    distance = abs(ins[0] - outs[0])
    assert not any(width % n == 0 for n in range(1, width + 1) if abs(n - outs[0]) < distance)


def test_the_papers_example():
    """768 -> 256 as (16, 48) -> (16, 16): 1,056 parameters where the dense layer with bias has 196,864."""
    assert two_axes(768, 256) == ((16, 48), (16, 16))
    assert n_parameters(NdLinearProjection(768, 256)) == 1056
    assert n_parameters(torch.nn.Linear(768, 256)) == 196_864
    assert LowRank(768, 256).rank == 1  # 1,024 parameters


@given(st.integers(1, 2048), st.integers(1, 512))
def test_low_rank_has_the_parameters_of_ndlinear(width, embed_dim):
    """As nearly as possible: within half the parameters of one rank, unless rank 1 already has more."""
    with torch.device("meta"):
        low_rank, budget = LowRank(width, embed_dim), n_parameters(NdLinearProjection(width, embed_dim))
    assert n_parameters(low_rank) == low_rank.rank * (width + embed_dim)
    if low_rank.rank > 1 or budget >= width + embed_dim:
        assert abs(n_parameters(low_rank) - budget) <= (width + embed_dim) / 2


@given(st.sampled_from(KINDS), widths, widths, leading, seeds)
def test_heads_are_their_equations(kind, width, embed_dim, leading, seed):
    head = randomise(make_projection(kind, width, embed_dim), seed)
    x = normal(seed + 1, *leading, width)
    weights = dict(head.named_parameters())

    def layer(x, name):
        return x @ weights[f"{name}weight"].T + weights.get(f"{name}bias", 0)

    def norm(x):
        return F.layer_norm(x, (embed_dim,), weights["norm.weight"], weights["norm.bias"])

    match kind:
        case "linear":
            expected = layer(x, "")
            assert "bias" not in weights
        case "linear_norm":
            expected = norm(layer(x, "linear."))
        case "residual":
            y = layer(x, "fc1.")
            expected = norm(y + layer(F.gelu(y), "fc2."))
        case "ndlinear":
            nd = head.nd_linear
            expected = nd(x.view(*leading, *nd.in_shape)).reshape(*leading, embed_dim)
        case "low_rank":
            expected = layer(layer(x, "down."), "up.")
    same(head(x), expected)
    assert head(x).shape == (*leading, embed_dim)


def test_the_residual_heads_dropout_is_on_its_correction():
    head = randomise(make_projection("residual", 8, 16), 0).train()
    head.norm, x = torch.nn.Identity(), normal(1, 400, 8)
    first = head.fc1(x)
    correction, whole = head(x) - first, head.fc2(F.gelu(first))
    dropped = correction == 0
    assert 0.08 < dropped.double().mean() < 0.12
    same(correction[~dropped], whole[~dropped] / 0.9)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_preserve_the_std_of_their_input_at_initialisation(kind):
    torch.manual_seed(1)
    out = torch.stack([make_projection(kind, 768, 256).eval()(torch.randn(32, 768)) for _ in range(40)])
    assert out.square().mean().sqrt().item() == pytest.approx(1, rel=0.15)
