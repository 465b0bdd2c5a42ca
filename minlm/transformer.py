"""The Transformer of every model here: attention, MLP, Block, stack of Blocks.

Shapes: B batch, T queries, S keys, D d_model, H heads, K = D / H head size. Masks: minlm/masks.py.
Papers: Vaswani et al. 2017 (Attention Is All You Need); pre-norm as in Radford et al. 2019 (GPT-2).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minlm.embeddings import Rotation, rotate
from minlm.masks import both, causal_mask
from minlm.transformer_config import TransformerConfig


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Compute softmax(Q K^T / sqrt(K)) V, equation 1 of Vaswani et al. 2017.

    query (B, H, T, K), key and value (B, H, S, K), mask broadcastable to (B, H, T, S), True = may attend
    -> output (B, H, T, K), weights (B, H, T, S). A query that may attend nowhere has weights, output and gradients of
    zero.
    """
    scores = (query / sqrt(query.shape[-1])) @ key.transpose(-2, -1)  # (B, H, T, S)
    if mask is not None:
        # The lowest finite number, because -inf gives NaN gradients in a row without a True.
        scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)
    if mask is not None:
        weights = weights * mask
    return F.dropout(weights, dropout) @ value, weights  # (B, H, T, K), (B, H, T, S)


class KeyValueCache:
    """Keys and values of earlier positions in one attention layer, in arrays (B, H, capacity, K) allocated once.

    length: number of positions filled.
    """

    def __init__(self, batch: int, capacity: int, n_heads: int, head_size: int, like: Tensor):
        self.keys = like.new_zeros(batch, n_heads, capacity, head_size)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add key and value (B, H, T, K) of T positions; return those of all positions, (B, H, length, K) each."""
        start, self.length = self.length, self.length + key.shape[2]
        self.keys[:, :, start : self.length] = key
        self.values[:, :, start : self.length] = value
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]  # (B, H, length, K) each


@dataclass(frozen=True)
class Context:
    """Inputs of attention beside x, the same in every layer of a forward pass.

    causal: position t attends to position s only if s <= t
    mask: of the cached positions and those of x; broadcastable to (B, H, T, S), True = may attend
    rotation: cosines and sines that rotate queries and keys (minlm/embeddings.py)
    memory: output of an encoder (B, S, D), for cross-attention
    memory_mask: mask of the memory's positions
    caches: keys and values of earlier positions
    """

    causal: bool = False
    mask: Tensor | None = None
    rotation: Rotation | None = None
    memory: Tensor | None = None
    memory_mask: Tensor | None = None
    caches: "Caches | None" = None


ALL = Context()  # every position attends to every other


class MultiHeadAttention(nn.Module):
    """Multi-head attention, with one projection of width K per head (Vaswani et al. 2017, section 3.2.2).

    Self-attention, or with `cross` attention from x to an encoder's memory. in_proj stacks the matrices of query, key
    and value. Uses torch's fused kernel if it is faster; its result equals that of `attention()`.
    """

    recorded: list[Tensor] | None = None  # by record_attention

    def __init__(self, config: TransformerConfig, cross: bool = False):
        super().__init__()
        self.n_heads, self.cross = config.n_heads, cross
        self.dropout = config.dropout if config.attention_dropout is None else config.attention_dropout
        self.in_proj = nn.Linear(config.d_model, 3 * config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)
        nn.init.normal_(self.in_proj.weight, std=config.d_model**-0.5)
        nn.init.normal_(self.out_proj.weight, std=(2 * config.n_layers * config.d_model) ** -0.5)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        cache = None if context.caches is None else context.caches[self]
        if self.cross:
            query, key, value = self.project_across(x, context.memory, cache)  # (B, H, T or S, K) each
            mask, causal = context.memory_mask, False
        else:
            qkv = self.in_proj(x).unflatten(-1, (3, self.n_heads, -1))  # (B, T, 3, H, K)
            query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, K) each
            if context.rotation is not None:
                query, key = rotate(query, context.rotation), rotate(key, context.rotation)
            if cache is not None:
                key, value = cache.append(key, value)  # (B, H, S, K) each
            # A single query is the last position, which may attend to all.
            mask, causal = context.mask, context.causal and x.shape[1] > 1

        n_queries, n_keys = query.shape[2], key.shape[2]
        # On a CPU in bfloat16 the fused kernel is slower (benchmarks/attention.py).
        fused = self.recorded is None and not (query.device.type == "cpu" and query.dtype == torch.bfloat16)
        # torch's is_causal is aligned top-left: it is correct only if queries and keys are the same positions.
        fused_causal = fused and causal and mask is None and n_queries == n_keys
        if causal and not fused_causal:
            mask = both(mask, causal_mask(n_queries, n_keys, query.device))
        dropout = self.dropout if self.training else 0.0
        if fused:
            out = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=fused_causal)
        else:
            out, weights = attention(query, key, value, mask, dropout)  # (B, H, T, K), (B, H, T, S)
            if self.recorded is not None:
                self.recorded.append(weights)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (B, T, D)

    def project_across(
        self, x: Tensor, memory: Tensor | None, cache: KeyValueCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project x (B, T, D) and memory (B, S, D) to query (B, H, T, K), key and value (B, H, S, K).

        The memory does not change, so with a cache it is projected once.
        """
        sizes = [x.shape[-1], 2 * x.shape[-1]]
        w_query, w_memory = self.in_proj.weight.split(sizes)  # (D, D), (2 D, D)
        b_query, b_memory = self.in_proj.bias.split(sizes)  # (D), (2 D)
        query = F.linear(x, w_query, b_query).unflatten(-1, (self.n_heads, -1))  # (B, T, H, K)
        query = query.transpose(1, 2)  # (B, H, T, K)
        if cache is not None and cache.length:
            return query, cache.keys, cache.values
        if memory is None:
            raise ValueError("cross-attention has no memory: give Context(memory=...)")
        projected = F.linear(memory, w_memory, b_memory).unflatten(
            -1, (2, self.n_heads, -1)
        )  # (B, S, 2, H, K)
        key, value = projected.permute(2, 0, 3, 1, 4)  # (B, H, S, K) each
        if cache is not None:
            cache.append(key, value)
        return query, key, value


@contextmanager
def record_attention(model: nn.Module) -> Iterator[list[Tensor]]:
    """Record attention weights: within the context, each layer appends its (B, H, T, S) to the list, in order."""
    layers = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    weights: list[Tensor] = []
    for layer in layers:
        layer.recorded = weights
    try:
        yield weights
    finally:
        for layer in layers:
            layer.recorded = None


def quick_gelu(x: Tensor) -> Tensor:
    """Compute x * sigmoid(1.702 x), the approximation of GELU in OpenAI's CLIP (Hendrycks & Gimpel 2016, section 2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
}


class MLP(nn.Module):
    """Position-wise MLP, fc2(activation(fc1(x))) (Vaswani et al. 2017, equation 2)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.d_model)
        self.activation = ACTIVATIONS[config.activation]
        nn.init.normal_(self.fc1.weight, std=(2 * config.d_model) ** -0.5)
        nn.init.normal_(self.fc2.weight, std=(2 * config.n_layers * config.d_model) ** -0.5)
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D)."""
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """Attention, (in a decoder) cross-attention, and MLP, each in a residual branch with a LayerNorm.

    norm_first is the pre-norm form (GPT-2, ViT, CLIP), otherwise post-norm (Vaswani et al. 2017, section 3.1; BERT).
    """

    def __init__(self, config: TransformerConfig, cross_attention: bool = False):
        super().__init__()
        self.norm_first, self.dropout = config.norm_first, nn.Dropout(config.dropout)
        self.norm1 = nn.LayerNorm(config.d_model, config.norm_eps)
        self.attention = MultiHeadAttention(config)
        if cross_attention:
            self.norm_cross = nn.LayerNorm(config.d_model, config.norm_eps)
        self.cross_attention = MultiHeadAttention(config, cross=True) if cross_attention else None
        self.norm2 = nn.LayerNorm(config.d_model, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        if self.norm_first:
            x = x + self.dropout(self.attention(self.norm1(x), context))
            if self.cross_attention is not None:
                x = x + self.dropout(self.cross_attention(self.norm_cross(x), context))
            return x + self.dropout(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.dropout(self.attention(x, context)))
        if self.cross_attention is not None:
            x = self.norm_cross(x + self.dropout(self.cross_attention(x, context)))
        return self.norm2(x + self.dropout(self.mlp(x)))


class Transformer(nn.Module):
    """Stack of n_layers Blocks, with a final LayerNorm in the pre-norm form.

    Initial weights (as in OpenAI's CLIP) are normal with std D^-1/2 for in_proj, (2 D)^-1/2 for fc1, and (2 L D)^-1/2
    for out_proj and fc2: these write into the residual stream, whose variance then does not grow with depth L. Biases
    are zero.
    """

    def __init__(self, config: TransformerConfig, cross_attention: bool = False):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config, cross_attention) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model, config.norm_eps) if config.norm_first else nn.Identity()

    def forward(self, x: Tensor, context: Context = ALL) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        for block in self.blocks:
            x = block(x, context)  # (B, T, D)
        return self.norm(x)  # (B, T, D)


class Caches(dict[MultiHeadAttention, KeyValueCache]):
    """An empty KeyValueCache for each attention layer of a Transformer.

    capacity: positions of text; memory_length: positions of an encoder's memory, for cross-attention.
    """

    def __init__(self, transformer: Transformer, batch: int, capacity: int, memory_length: int = 0):
        super().__init__()
        heads, head_size = transformer.config.n_heads, transformer.config.head_size
        for layer in transformer.modules():
            if isinstance(layer, MultiHeadAttention):
                length = memory_length if layer.cross else capacity
                self[layer] = KeyValueCache(batch, length, heads, head_size, layer.out_proj.weight)

    @property
    def length(self) -> int:
        """Number of cached positions of text, the same in every layer."""
        return next(iter(self.values())).length

    def clear(self) -> None:
        """Forget the text, but not the memory."""
        for layer, cache in self.items():
            if not layer.cross:
                cache.length = 0
