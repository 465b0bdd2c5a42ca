"""The Transformer, written once: attention, MLP, Block, and the stack of Blocks that every model here is.

Shapes: B batch, T queries, S keys, D d_model, H heads, K = D / H head size. Masks: minlm/masks.py.
Papers: Vaswani et al. 2017 (Attention Is All You Need); pre-norm as in Radford et al. 2019 (GPT-2).
"""

from dataclasses import dataclass
from functools import partial
from math import inf, sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minlm.embeddings import Rotary
from minlm.masks import both, causal_mask

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The shape of a stack of Blocks.

    d_model: width of the residual stream
    n_heads: attention heads; must divide d_model
    n_layers: Blocks
    d_ff: width inside the MLP; none = 4 * d_model
    activation: exact GELU, its tanh form (GPT-2), its sigmoid form (OpenAI's CLIP), or ReLU
    norm_first: LayerNorm before each sublayer and once at the end (GPT-2, ViT, CLIP), or after (BERT, Vaswani)
    norm_eps: added to the variance in every LayerNorm
    dropout: on each sublayer's output, and on attention weights unless those have their own
    attention_dropout: on attention weights, which costs time; none = the same as dropout
    """

    d_model: int = 128
    n_heads: int = 4
    n_layers: int = 4
    d_ff: int | None = None
    activation: Activation = "gelu"
    norm_first: bool = True
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float | None = None

    def __post_init__(self):
        for name in ("d_model", "n_heads", "n_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.mlp_width < 1:
            raise ValueError(f"d_ff={self.d_ff} must be at least 1, or none for 4 * d_model")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"n_heads={self.n_heads} does not divide d_model={self.d_model}: choose heads that do"
            )
        if not 0 < self.norm_eps < inf:
            raise ValueError(f"norm_eps={self.norm_eps} must be above 0 and finite")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1)")

    @property
    def head_size(self) -> int:
        return self.d_model // self.n_heads

    @property
    def mlp_width(self) -> int:
        return 4 * self.d_model if self.d_ff is None else self.d_ff


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T / sqrt(K)) V, equation 1 of Vaswani et al. 2017, as it is written there.

    query (B, H, T, K), key and value (B, H, S, K), mask broadcastable to (B, H, T, S), True = may look
    -> output (B, H, T, K), weights (B, H, T, S). A query that may look nowhere gets weights and output zero
    (softmax has no answer for it), and its gradients are zero too, not NaN.
    """
    scores = (query / sqrt(query.shape[-1])) @ key.transpose(-2, -1)  # (B, H, T, S)
    if mask is not None:
        # The lowest finite number, not -inf: in a row without a single True, -inf would give NaN gradients.
        scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)
    if mask is not None:
        weights = weights * mask
    return F.dropout(weights, dropout) @ value, weights  # (B, H, T, K)


class KeyValueCache:
    """The keys and values one attention layer has seen, in arrays allocated once.

    length: positions filled so far, of capacity.
    """

    def __init__(self, batch: int, capacity: int, n_heads: int, head_size: int, like: Tensor):
        shape = (batch, n_heads, capacity, head_size)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """key, value (B, H, T, K) of the next T positions -> all so far, (B, H, length, K) each."""
        start, self.length = self.length, self.length + key.shape[2]
        if self.length > self.keys.shape[2]:
            raise ValueError(
                f"the key-value cache holds {self.keys.shape[2]} positions; {self.length} were asked for"
            )
        self.keys[:, :, start : self.length] = key
        self.values[:, :, start : self.length] = value
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class MultiHeadAttention(nn.Module):
    """H attentions side by side, each on its own K-wide projection (Vaswani et al. 2017, section 3.2.2).

    Self-attention, or cross-attention when `memory` is given. Runs torch's fused kernel where that is faster:
    the written-out `attention()` above in one pass (tests/minlm/test_transformer.py ties the two).
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.n_heads = config.n_heads
        own = config.attention_dropout
        self.dropout = config.dropout if own is None else own
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.k_proj = nn.Linear(config.d_model, config.d_model)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        rotary: tuple[Rotary, Tensor] | None = None,
        cache: KeyValueCache | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D).

        memory (B, S, D): what to look at instead of x. mask: as in `attention()`, S the keys with the cached
        ones. causal: query i sees key j only where j is not later. rotary: the rotation and the positions
        (T) or (B, T) of x. cache: earlier keys and values; the new ones are appended; an encoder's memory,
        which does not change, is projected once. weights: a list that receives this layer's (B, H, T, S).
        """
        query = self.split_heads(self.q_proj(x))  # (B, H, T, K)
        if rotary is not None:
            rotate, positions = rotary
            query = rotate(query, positions)
        if memory is not None and cache is not None and cache.length:
            key, value = cache.keys, cache.values
        else:
            source = x if memory is None else memory
            key = self.split_heads(self.k_proj(source))  # (B, H, S, K)
            value = self.split_heads(self.v_proj(source))  # (B, H, S, K)
            if rotary is not None:
                key = rotate(key, positions)
            if cache is not None:
                key, value = cache.append(key, value)

        n_queries, n_keys = query.shape[2], key.shape[2]
        # In bfloat16 on a CPU torch's fused kernel is the slower one (benchmarks/attention.py).
        fused = weights is None and not (query.device.type == "cpu" and query.dtype == torch.bfloat16)
        # torch's is_causal is aligned top-left: right only where queries and keys are the same positions.
        fused_causal = fused and causal and mask is None and n_queries == n_keys
        if causal and not fused_causal:
            mask = both(mask, causal_mask(n_queries, n_keys, x.device))
        dropout = self.dropout if self.training else 0.0
        if fused:
            out = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=fused_causal)
        else:
            out, layer_weights = attention(query, key, value, mask, dropout)
            if weights is not None:
                weights.append(layer_weights)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (B, T, D)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, H, T, K)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x): the approximation of GELU in OpenAI's CLIP (Hendrycks & Gimpel 2016, section 2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
}


class MLP(nn.Module):
    """fc2(activation(fc1(x))), the same at each position (Vaswani et al. 2017, equation 2)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.d_model)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D)."""
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """Attention, then (in a decoder) cross-attention, then MLP, each in a residual branch with a LayerNorm.

    pre-norm:   x + sublayer(norm(x))     GPT-2, ViT, CLIP
    post-norm:  norm(x + sublayer(x))     Vaswani et al. 2017 (section 3.1), BERT
    """

    def __init__(self, config: TransformerConfig, cross_attention: bool = False):
        super().__init__()
        self.norm_first, self.dropout = config.norm_first, nn.Dropout(config.dropout)
        self.norm1 = nn.LayerNorm(config.d_model, config.norm_eps)
        self.attention = MultiHeadAttention(config)
        if cross_attention:
            self.norm_cross = nn.LayerNorm(config.d_model, config.norm_eps)
            self.cross_attention = MultiHeadAttention(config)
        self.norm2 = nn.LayerNorm(config.d_model, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        rotary: tuple[Rotary, Tensor] | None = None,
        cache: tuple[KeyValueCache, KeyValueCache | None] = (None, None),
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """x (B, T, D), and for cross-attention memory (B, S, D) with memory_mask -> (B, T, D)."""

        def residual(x, norm, sublayer):
            if self.norm_first:
                return x + self.dropout(sublayer(norm(x)))
            return norm(x + self.dropout(sublayer(x)))

        self_cache, cross_cache = cache

        def look(x):
            return self.attention(
                x, mask=mask, causal=causal, rotary=rotary, cache=self_cache, weights=weights
            )

        def look_across(x):
            return self.cross_attention(x, memory, memory_mask, cache=cross_cache, weights=weights)

        x = residual(x, self.norm1, look)
        if memory is not None:
            x = residual(x, self.norm_cross, look_across)
        return residual(x, self.norm2, self.mlp)


class Transformer(nn.Module):
    """n_layers Blocks, and in the pre-norm form the LayerNorm that closes the residual stream.

    causal: every position sees itself and the earlier ones only. cross_attention: Blocks also look at a
    `memory` (the decoder of an encoder-decoder).

    Initialisation (as OpenAI's CLIP): weights normal with deviation D^-1/2 for the query, key and value
    projections, (2 D)^-1/2 for fc1, and D^-1/2 (2 L)^-1/2 for out_proj and fc2, which write into the residual
    stream, so that its variance does not grow with depth L; biases zero.
    """

    def __init__(self, config: TransformerConfig, causal: bool = False, cross_attention: bool = False):
        super().__init__()
        self.config, self.causal, self.cross_attention = config, causal, cross_attention
        self.blocks = nn.ModuleList(Block(config, cross_attention) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model, config.norm_eps) if config.norm_first else nn.Identity()
        writes = (2 * config.n_layers) ** -0.5
        deviation = {
            "q_proj": 1.0,
            "k_proj": 1.0,
            "v_proj": 1.0,
            "fc1": 0.5**0.5,
            "out_proj": writes,
            "fc2": writes,
        }
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                factor = deviation[name.rpartition(".")[2]]
                nn.init.normal_(module.weight, std=factor * config.d_model**-0.5)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        rotary: tuple[Rotary, Tensor] | None = None,
        caches: list[tuple[KeyValueCache, KeyValueCache | None]] | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D). mask, memory_mask: broadcastable to (B, H, T, S), True = may look.

        memory (B, S, D): the encoder's output; needed exactly when the Blocks have cross-attention.
        weights: a list that receives each attention's (B, H, T, S), in the order they run.
        """
        if (memory is not None) != self.cross_attention:
            raise ValueError("memory is needed by a Transformer with cross-attention, and only by one")
        for i, block in enumerate(self.blocks):
            cache = (None, None) if caches is None else caches[i]
            x = block(x, mask, self.causal, memory, memory_mask, rotary, cache, weights)
        return self.norm(x)

    def new_caches(
        self, batch: int, capacity: int, memory_length: int = 0
    ) -> list[tuple[KeyValueCache, KeyValueCache | None]]:
        """Empty caches for every Block: `capacity` positions of text, `memory_length` of an encoder's memory."""
        config, like = self.config, self.blocks[0].attention.k_proj.weight

        def cache(length):
            return KeyValueCache(batch, length, config.n_heads, config.head_size, like)

        return [(cache(capacity), cache(memory_length) if memory_length else None) for _ in self.blocks]
