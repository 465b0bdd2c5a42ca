"""Tokens as vectors, and where they stand: learned, sinusoidal and rotary positions.

B batch, T tokens, S tokens with the cached ones, D d_model, V vocabulary, H heads, K head size.
"""

from math import sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PositionForm = Literal["learned", "sinusoidal", "rotary"]
Rotation = tuple[Tensor, Tensor]  # cosines and sines of the angles that queries and keys are turned by


class TextEmbedding(nn.Module):
    """A vector a token plus, unless positions are rotary, a vector a position: (B, T) -> (B, T, D).

    With sinusoidal positions the token's vector is multiplied by sqrt(D) (Vaswani et al. 2017, section 3.4),
    so that it is not lost beside the sines.
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
        """tokens (B, T), positions (T) or (B, T), as from `token_positions` -> (B, T, D)."""
        x = self.scale * self.tokens(tokens)  # (B, T, D)
        return x if self.positions is None else x + self.positions(positions)

    def head(self, x: Tensor) -> Tensor:
        """x (..., D) -> logits (..., V): the dot product with each token's vector (Press & Wolf 2017)."""
        return F.linear(x, self.tokens.weight)  # (..., V)


def token_positions(
    tokens: Tensor, context_length: int, token_mask: Tensor | None = None, n_cached: int = 0
) -> Tensor:
    """The place of each token among the real ones of its row, from 0: (T), or (B, T) where there is a mask.

    tokens (B, T), the next ones after n_cached; token_mask (B, S) covers those too, and padding may stand
    anywhere. ValueError where S is more than context_length or the mask is of another width.
    """
    n_tokens = n_cached + tokens.shape[1]
    if n_tokens > context_length:
        raise ValueError(f"{n_tokens} tokens are more than context_length={context_length}: cut the text")
    if token_mask is None:
        return torch.arange(n_cached, n_tokens, device=tokens.device)  # (T)
    if token_mask.shape[1] != n_tokens:
        raise ValueError(
            f"token_mask covers {token_mask.shape[1]} tokens of {n_tokens}: it must cover the cached ones too"
        )
    return (token_mask.cumsum(dim=1) - 1).clamp(min=0)[:, n_cached:]  # (B, T)


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """(length, D) table of Vaswani et al. 2017, section 3.5.

    PE(pos, 2i) = sin(pos / 10000^(2i/D)),  PE(pos, 2i+1) = cos(pos / 10000^(2i/D)).
    Raises ValueError where D is odd: sines and cosines come in pairs.
    """
    if d_model % 2:
        raise ValueError(f"sinusoidal positions need an even width, not d_model={d_model}")
    frequency = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)  # (D/2)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency  # (length, D/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()  # (length, D)


class Positions(nn.Module):
    """One vector a position, added to the token's: a learned table, or the fixed sinusoidal one.

    positions (..., T) int64, counted from 0 -> (..., T, D). ValueError past the table's length.
    """

    def __init__(self, length: int, d_model: int, learned: bool = True):
        super().__init__()
        if learned:
            self.weight = nn.Parameter(torch.randn(length, d_model) * 0.01)
        else:
            self.register_buffer("weight", sinusoidal_positions(length, d_model), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        return F.embedding(positions, self.weight)  # (..., T, D)


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021, RoFormer, eq. 34): queries and keys are turned, not shifted.

    Pair i = (x_i, x_{i + K/2}) is rotated by pos * base^(-2i/K), so a score depends on the distance of its
    two positions alone. This pairing of halves is GPT-NeoX's; the paper pairs neighbours.
    """

    def __init__(self, head_size: int, base: float = 10000.0):
        super().__init__()
        if head_size % 2:
            raise ValueError(f"rotary positions need an even head size, not {head_size} = d_model / n_heads")
        frequency = base ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)  # (K/2)
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, positions: Tensor) -> Rotation:
        """positions (T) or (B, T) -> cosines and sines (T, K/2) or (B, 1, T, K/2), the same for every layer."""
        angle = positions[..., None].float() * self.frequency  # (..., T, K/2)
        if angle.dim() == 3:
            angle = angle[:, None]  # (B, 1, T, K/2)
        return angle.cos(), angle.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """x (B, H, T, K) turned by the angles of its positions -> (B, H, T, K)."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, dim=-1)  # (B, H, T, K/2) each
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)  # (B, H, T, K)
