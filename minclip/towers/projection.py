"""Heads that map a tower's features to the joint space, before normalisation. D width of the features, E embed_dim."""

from math import isqrt
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Projection = Literal["linear", "linear_norm", "residual", "ndlinear", "low_rank"]


def make_projection(kind: Projection, width: int, embed_dim: int, bias: bool = False) -> nn.Module:
    """Build a head that maps (..., D) to (..., E). bias: for the linear head only; CLIP's ResNets have one.

    At initialisation every head preserves the std of its input, or gives std 1 if it ends in a LayerNorm.
    """
    match kind:
        case "linear":
            return linear(width, embed_dim, bias)
        case "linear_norm":
            return LinearNorm(width, embed_dim)
        case "residual":
            return ResidualHead(width, embed_dim)
        case "ndlinear":
            return NdLinearProjection(width, embed_dim)
        case "low_rank":
            return LowRank(width, embed_dim)


def linear(c_in: int, c_out: int, bias: bool = True) -> nn.Linear:
    """Build a linear layer with weights drawn normal, std c_in^-1/2 as in CLIP's projections, and zero biases."""
    layer = nn.Linear(c_in, c_out, bias)
    nn.init.normal_(layer.weight, std=c_in**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class LinearNorm(nn.Module):
    """Linear head with LayerNorm: norm(W x + b)."""

    def __init__(self, width: int, embed_dim: int):
        super().__init__()
        self.linear, self.norm = linear(width, embed_dim), nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D) to (..., E)."""
        return self.norm(self.linear(x))  # (..., E)


class ResidualHead(nn.Module):
    """Linear head with a learned correction: norm(y + dropout(fc2(gelu(y)))), y = fc1(x)."""

    def __init__(self, width: int, embed_dim: int, dropout: float = 0.1):
        super().__init__()
        self.fc1, self.fc2 = linear(width, embed_dim), linear(embed_dim, embed_dim)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D) to (..., E)."""
        y = self.fc1(x)  # (..., E)
        return self.norm(y + self.dropout(self.fc2(F.gelu(y))))


class NdLinear(nn.Module):
    """A linear map with bias along each axis in turn, without activations between them (arXiv 2503.17353).

        y = (W_n ... (W_2 (W_1 x + b_1) + b_2) ...) + b_n,   W_k along axis k

    Over the flattened axes this is a dense layer whose weight is the Kronecker product of W_1 ... W_n. It has
    sum_k (in_k + 1) out_k parameters; a dense layer has (prod in + 1) prod out.

    W_k is drawn normal with std in_k^-1/2 and biases are zero, so that the product has the std (prod in)^-1/2 of a
    dense head and preserves the std of its input. With torch.nn.Linear's initialisation, of variance 1 / (3 in_k),
    each axis would multiply the std by 0.58.
    """

    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]):
        super().__init__()
        if len(in_shape) != len(out_shape) or not in_shape or min(*in_shape, *out_shape) < 1:
            raise ValueError(
                f"NdLinear maps {tuple(in_shape)} to {tuple(out_shape)}: both must have the same number of axes, at "
                f"least one, each of size 1 or more"
            )
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.axes = nn.ModuleList(linear(*sizes) for sizes in zip(in_shape, out_shape, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., *in_shape) to (..., *out_shape); ValueError for another shape."""
        n_axes = len(self.in_shape)
        if tuple(x.shape[-n_axes:]) != self.in_shape:
            raise ValueError(f"NdLinear takes (..., {str(self.in_shape)[1:-1]}), got {tuple(x.shape)}")
        for k, layer in enumerate(self.axes, start=-n_axes):
            x = layer(x.movedim(k, -1)).movedim(-1, k)  # axis k: from in_k to out_k
        return x


def two_axes(width: int, embed_dim: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Factor both sizes in two: embed_dim as evenly as possible, width with a first factor close to embed_dim's.

    (768, 256) -> (16, 48), (16, 16).
    """
    rows = next(n for n in range(isqrt(embed_dim), 0, -1) if embed_dim % n == 0)
    divisors = [n for n in range(1, width + 1) if width % n == 0]
    first = min(divisors, key=lambda n: abs(n - rows))
    return (first, width // first), (rows, embed_dim // rows)


class NdLinearProjection(nn.Module):
    """NdLinear head of two axes: 768 -> 256 as (16, 48) -> (16, 16), with 1,056 parameters instead of 196,608."""

    def __init__(self, width: int, embed_dim: int):
        super().__init__()
        self.nd_linear = NdLinear(*two_axes(width, embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D) to (..., E)."""
        return self.nd_linear(x.unflatten(-1, self.nd_linear.in_shape)).flatten(-2)  # (..., E)


class LowRank(nn.Module):
    """Low-rank head up(down(x)) without biases, with about as many parameters as NdLinearProjection.

    The rank is the one closest to that number, at least 1; it is 1 for 768 -> 256.
    """

    def __init__(self, width: int, embed_dim: int):
        super().__init__()
        budget = sum((n_in + 1) * n_out for n_in, n_out in zip(*two_axes(width, embed_dim), strict=True))
        self.rank = max(1, round(budget / (width + embed_dim)))
        self.down, self.up = linear(width, self.rank, bias=False), linear(self.rank, embed_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D) to (..., E)."""
        return self.up(self.down(x))  # (..., E)
