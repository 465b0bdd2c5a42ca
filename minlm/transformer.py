"""The Transformer, written once: attention, MLP, Block, and the stack of Blocks that every model here is.

Shapes: B batch, T queries, S keys, D d_model, H heads, K = D / H head size. Masks: minlm/masks.py.
Papers: Vaswani et al. 2017 (Attention Is All You Need); pre-norm as in Radford et al. 2019 (GPT-2).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minlm.embeddings import Rotation, rotate
from minlm.masks import both, causal_mask
from minlm.training.bounds import Bounded, above, at_least, within

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Bounded):
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

    d_model: Annotated[int, at_least(1)] = 128
    n_heads: Annotated[int, at_least(1)] = 4
    n_layers: Annotated[int, at_least(1)] = 4
    d_ff: Annotated[int | None, at_least(1)] = None
    activation: Activation = "gelu"
    norm_first: bool = True
    norm_eps: Annotated[float, above(0)] = 1e-5
    dropout: Annotated[float, within("[0, 1)")] = 0.0
    attention_dropout: Annotated[float | None, within("[0, 1)")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_model % self.n_heads:
            raise ValueError(
                f"n_heads={self.n_heads} does not divide d_model={self.d_model}: choose heads that do"
            )

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

    query (B, H, T, K), key and value (B, H, S, K), mask broadcastable to (B, H, T, S), True = may attend
    -> output (B, H, T, K), weights (B, H, T, S). A query that may attend nowhere gets weights and output zero
    (softmax has no answer for it), and its gradients are zero too, not NaN.
    """
    scores = (query / sqrt(query.shape[-1])) @ key.transpose(-2, -1)  # (B, H, T, S)
    if mask is not None:
        # The lowest finite number, not -inf: in a row without a single True, -inf would give NaN gradients.
        scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)
    if mask is not None:
        weights = weights * mask
    return F.dropout(weights, dropout) @ value, weights  # (B, H, T, K), (B, H, T, S)


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
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]  # (B, H, length, K) each


@dataclass(frozen=True)
class Context:
    """What attention sees beside x in one forward pass; the same for every layer.

    causal: position t attends to position s only if s <= t
    mask: of the positions of x, the cached ones first; broadcastable to (B, H, T, S), True = may attend
    rotation: cosines and sines that turn queries and keys (minlm/embeddings.py); None without rotary positions
    memory: an encoder's output (B, S, D), which cross-attention attends to
    memory_mask: of memory's positions, as mask
    caches: keys and values of earlier positions; None computes all positions at once
    """

    causal: bool = False
    mask: Tensor | None = None
    rotation: Rotation | None = None
    memory: Tensor | None = None
    memory_mask: Tensor | None = None
    caches: "Caches | None" = None


ALL = Context()  # every position attends to every other


class MultiHeadAttention(nn.Module):
    """H attentions side by side, each on its own K-wide projection (Vaswani et al. 2017, section 3.2.2).

    Self-attention, or with `cross` attention from x to an encoder's memory. in_proj holds the matrices of query, key
    and value, one below the other. Runs torch's fused kernel where that is faster: `attention()` above in one pass
    (tests/minlm/test_transformer.py ties the two).
    """

    recorded: list[Tensor] | None = None  # see record_attention

    def __init__(self, config: TransformerConfig, cross: bool = False):
        super().__init__()
        self.n_heads, self.cross = config.n_heads, cross
        own = config.attention_dropout
        self.dropout = config.dropout if own is None else own
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
            mask, causal = context.mask, context.causal

        n_queries, n_keys = query.shape[2], key.shape[2]
        # In bfloat16 on a CPU torch's fused kernel is the slower one (benchmarks/attention.py).
        fused = self.recorded is None and not (query.device.type == "cpu" and query.dtype == torch.bfloat16)
        # torch's is_causal is aligned top-left: right only where queries and keys are the same positions.
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

    def project_across(self, x: Tensor, memory: Tensor, cache: KeyValueCache | None) -> tuple[Tensor, ...]:
        """x (B, T, D), memory (B, S, D) -> query (B, H, T, K), key and value (B, H, S, K).

        The memory does not change, so a cache has it projected once.
        """
        d_model = x.shape[-1]
        (w_query, w_memory), (b_query, b_memory) = (
            parameter.split([d_model, 2 * d_model]) for parameter in (self.in_proj.weight, self.in_proj.bias)
        )  # (D, D), (2 D, D), (D), (2 D)
        query = (
            F.linear(x, w_query, b_query).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        )  # (B, H, T, K)
        if cache is not None and cache.length:
            return query, cache.keys, cache.values
        projected = F.linear(memory, w_memory, b_memory).unflatten(
            -1, (2, self.n_heads, -1)
        )  # (B, S, 2, H, K)
        key, value = projected.permute(2, 0, 3, 1, 4)  # (B, H, S, K) each
        if cache is not None:
            cache.append(key, value)
        return query, key, value


@contextmanager
def record_attention(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, each attention layer of the model appends its weights (B, H, T, S) to the list, in running order."""
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
        nn.init.normal_(self.fc1.weight, std=(2 * config.d_model) ** -0.5)
        nn.init.normal_(self.fc2.weight, std=(2 * config.n_layers * config.d_model) ** -0.5)
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D)."""
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """Attention, then (in a decoder) cross-attention, then MLP, each in a residual branch with a LayerNorm.

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
    """n_layers Blocks, and in the pre-norm form the LayerNorm that closes the residual stream.

    Initial values (as OpenAI's CLIP): weights normal with standard deviation D^-1/2 for in_proj, (2 D)^-1/2 for fc1,
    and (2 L D)^-1/2 for out_proj and fc2, which write into the residual stream, so that its variance does not grow
    with depth L; biases zero.
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
    """An empty cache for each attention layer of a Transformer: {layer: KeyValueCache}.

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
        """Positions of text that are cached, the same in every layer."""
        return next(iter(self.values())).length

    def clear(self) -> None:
        """Forget the text; the memory does not change and stays."""
        for layer, cache in self.items():
            if not layer.cross:
                cache.length = 0
