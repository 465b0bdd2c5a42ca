"""Token embeddings, and learned, sinusoidal and rotary positions.

B batch, T tokens, S tokens with the cached ones, D d_model, V vocabulary, H heads, K head size.
"""

from math import sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PositionForm = Literal["learned", "sinusoidal", "rotary"]
Rotation = tuple[Tensor, Tensor]  # cosines and sines of the angles by which queries and keys are rotated


class TextEmbedding(nn.Module):
    """One vector per token plus, unless positions are rotary, one per position: (B, T) -> (B, T, D).

    With sinusoidal positions, token vectors are multiplied by sqrt(D) (Vaswani et al. 2017, section 3.4).
    """

    def __init__(
        self, vocab_size: int, context_length: int, d_model: int, positions: PositionForm = "learned"
    ):
        super().__init__()
        sines = positions == "sinusoidal"
        self.scale = sqrt(d_model) if sines else 1.0
        self.tokens = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.positions = None if positions == "rotary" else Positions(context_length, d_model, not sines)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Embed tokens (B, T) at positions (T) or (B, T), from `token_positions` -> (B, T, D)."""
        x = self.scale * self.tokens(tokens)  # (B, T, D)
        return x if self.positions is None else x + self.positions(positions)

    def head(self, x: Tensor) -> Tensor:
        """Compute logits (..., V), the dot products of x (..., D) with the token vectors (Press & Wolf 2017)."""
        return F.linear(x, self.tokens.weight)  # (..., V)


def token_positions(
    tokens: Tensor, context_length: int, token_mask: Tensor | None = None, n_cached: int = 0
) -> Tensor:
    """Count the position of each token among the real tokens of its row, from 0: (T), or (B, T) with a mask.

    tokens (B, T) follow n_cached earlier ones; token_mask (B, S) covers both, with padding anywhere.
    ValueError if S is more than context_length or the mask has another width.
    """
    n_tokens = n_cached + tokens.shape[1]
    if n_tokens > context_length:
        raise ValueError(f"{n_tokens} tokens are more than context_length={context_length}: cut the text")
    if token_mask is None:
        return torch.arange(n_cached, n_tokens, device=tokens.device)  # (T)
    if token_mask.shape[1] != n_tokens:
        raise ValueError(
            f"token_mask covers {token_mask.shape[1]} of {n_tokens} tokens: cover the cached ones too"
        )
    return (token_mask.cumsum(dim=1) - 1).clamp(min=0)[:, n_cached:]  # (B, T)


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """Compute the table (length, D) of Vaswani et al. 2017, section 3.5.

    PE(pos, 2i) = sin(pos / 10000^(2i/D)),  PE(pos, 2i+1) = cos(pos / 10000^(2i/D)).
    ValueError for odd D.
    """
    if d_model % 2:
        raise ValueError(f"d_model={d_model} is odd: sinusoidal positions need an even width")
    frequency = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)  # (D/2)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency  # (length, D/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()  # (length, D)


class Positions(nn.Module):
    """Table of one vector per position, learned or sinusoidal: positions (..., T) int64, from 0 -> (..., T, D)."""

    weight: Tensor

    def __init__(self, length: int, d_model: int, learned: bool = True):
        super().__init__()
        if learned:
            self.weight = nn.Parameter(torch.randn(length, d_model) * 0.01)
        else:
            self.register_buffer("weight", sinusoidal_positions(length, d_model), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        return F.embedding(positions, self.weight)  # (..., T, D)


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021, RoFormer, eq. 34), which rotate queries and keys.

    Pair i = (x_i, x_{i + K/2}) is rotated by pos * base^(-2i/K), so a score depends on the distance of its two
    positions. These pairs are GPT-NeoX's; the paper pairs neighbours.
    """

    frequency: Tensor

    def __init__(self, head_size: int, base: float = 10000.0):
        super().__init__()
        if head_size % 2:
            raise ValueError(
                f"the head size {head_size} = d_model / n_heads is odd: rotary positions need an even one"
            )
        frequency = base ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)  # (K/2)
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, positions: Tensor) -> Rotation:
        """Return cosines and sines, (T, K/2) or (B, 1, T, K/2), of positions (T) or (B, T)."""
        angle = positions[..., None].float() * self.frequency  # (..., T, K/2)
        if angle.dim() == 3:
            angle = angle[:, None]  # (B, 1, T, K/2)
        return angle.cos(), angle.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate x (B, H, T, K) by the angles of its positions -> (B, H, T, K)."""
    cos, sin = rotation[0].to(x.dtype), rotation[1].to(x.dtype)
    first, second = x.chunk(2, dim=-1)  # (B, H, T, K/2) each
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)  # (B, H, T, K)
