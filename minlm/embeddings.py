"""Where a token stands: learned, sinusoidal and rotary positions.

B batch, T tokens, D width, H heads, K head size.
"""

import torch
from torch import Tensor, nn


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """(length, D) table of Vaswani et al. 2017, section 3.5.

    PE(pos, 2i) = sin(pos / 10000^(2i/D)),  PE(pos, 2i+1) = cos(pos / 10000^(2i/D)).
    Raises ValueError where D is odd: sines and cosines come in pairs.
    """
    if d_model % 2:
        raise ValueError(f"sinusoidal positions need an even width, not d_model={d_model}")
    frequency = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
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
        return nn.functional.embedding(positions, self.weight)  # (..., T, D)


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021, RoFormer, eq. 34): queries and keys are turned, not shifted.

    Pair i = (x_i, x_{i + K/2}) is rotated by pos * base^(-2i/K), so a score depends on the distance of its
    two positions alone. This pairing of halves is GPT-NeoX's; the paper pairs neighbours.
    """

    def __init__(self, head_size: int, base: float = 10000.0):
        super().__init__()
        if head_size % 2:
            raise ValueError(f"rotary positions need an even head size, not {head_size} = d_model / n_heads")
        frequency = base ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, H, T, K), positions (T) or (B, T) -> x turned, same shape."""
        angle = positions[..., None].float() * self.frequency  # (..., T, K/2)
        if angle.dim() == 3:
            angle = angle[:, None]  # (B, 1, T, K/2)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        first, second = x.chunk(2, dim=-1)  # (B, H, T, K/2)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)  # (B, H, T, K)
