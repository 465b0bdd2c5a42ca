"""TransformerLM: the decoder-only language model, in GPT-2's layout (Radford et al. 2019, section 2.3).

Shapes: B batch, T tokens, S tokens with the cached ones, D d_model, V vocabulary.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minlm.embeddings import Positions, Rotary
from minlm.masks import key_mask
from minlm.transformer import Activation, KeyValueCache, Transformer, TransformerConfig

PositionForm = Literal["learned", "sinusoidal", "rotary"]
Caches = list[tuple[KeyValueCache, KeyValueCache | None]]


@dataclass(frozen=True, kw_only=True)
class LMConfig(TransformerConfig):
    """A decoder-only language model.

    vocab_size: ids there are; set from the tokenizer
    vocab_digest: SHA-256 of the vocabulary; set from the tokenizer
    context_length: most tokens that are seen at once
    positions: a learned vector each (GPT-2), fixed sines (Vaswani et al.), or rotated queries and keys
    tied: whether the head is the token embedding, transposed, or a matrix of its own
    """

    activation: Activation = "gelu_tanh"
    vocab_size: int = 256
    vocab_digest: str = ""
    context_length: int = 128
    positions: PositionForm = "learned"
    tied: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_sizes(self.vocab_size, self.context_length)


def check_sizes(vocab_size: int, context_length: int) -> None:
    if vocab_size < 1 or context_length < 1:
        raise ValueError(f"vocab_size={vocab_size} and context_length={context_length} must be at least 1")


class TextEmbedding(nn.Module):
    """A vector a token plus, unless positions are rotary, a vector a position: (B, T) -> (B, T, D).

    With sinusoidal positions the token's vector is multiplied by sqrt(D) (Vaswani et al. 2017, section 3.4),
    so that it is not lost beside the sines.
    """

    def __init__(self, vocab_size: int, context_length: int, d_model: int, positions: PositionForm):
        super().__init__()
        sines = positions == "sinusoidal"
        self.scale = sqrt(d_model) if sines else 1.0
        self.tokens = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.positions = None if positions == "rotary" else Positions(context_length, d_model, not sines)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens (B, T), positions (T) or (B, T) -> (B, T, D)."""
        x = self.scale * self.tokens(tokens)  # (B, T, D)
        return x if self.positions is None else x + self.positions(positions)

    def head(self, x: Tensor) -> Tensor:
        """x (..., D) -> logits (..., V): the dot product with each token's vector (Press & Wolf 2017)."""
        return F.linear(x, self.tokens.weight)  # (..., V)


def token_positions(
    tokens: Tensor, token_mask: Tensor | None, caches: Caches | None, context_length: int
) -> Tensor:
    """The place of each token among the real ones of its row, from 0: (T), or (B, T) where there is a mask.

    tokens (B, T); token_mask (B, S) covers the cached tokens too, and padding may stand anywhere. ValueError
    where S is more than context_length or the mask is of another width.
    """
    n_cached, n_new = caches[0][0].length if caches else 0, tokens.shape[1]
    n_tokens = n_cached + n_new
    if n_tokens > context_length:
        raise ValueError(f"{n_tokens} tokens are more than context_length={context_length}: cut the text")
    if token_mask is None:
        return torch.arange(n_cached, n_tokens, device=tokens.device)  # (T)
    if token_mask.shape[1] != n_tokens:
        raise ValueError(
            f"token_mask covers {token_mask.shape[1]} tokens of {n_tokens}: it must cover the cached ones too"
        )
    return (token_mask.cumsum(dim=1) - 1).clamp(min=0)[:, n_cached:]  # (B, T)


class TransformerLM(nn.Module):
    """The probability of each next token, from the tokens before it.

    Initial deviations, L = n_layers:

        embedding.tokens.weight                      0.02
        embedding.positions.weight                   0.01
        q_proj.weight k_proj.weight v_proj.weight    1/sqrt(D)
        fc1.weight                                   1/sqrt(2*D)
        out_proj.weight fc2.weight                   1/sqrt(2*L*D)
        head.weight                                  0.02
        every bias                                   0
        every gain of a LayerNorm                    0, around 1

    Differences from GPT-2:
    - the deviations inside the Blocks (its are 0.02, and 0.02/sqrt(2*L) for out_proj and fc2; see Transformer);
    - query, key and value are three matrices, where its are one (the same numbers);
    - sinusoidal and rotary positions, post-norm, other activations and an untied head can be asked for;
    - dropout is off unless asked for; its is 0.1.
    """

    def __init__(self, config: LMConfig):
        super().__init__()
        self.config = config
        self.embedding = TextEmbedding(
            config.vocab_size, config.context_length, config.d_model, config.positions
        )
        self.rotary = Rotary(config.head_size) if config.positions == "rotary" else None
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = Transformer(config, causal=True)
        # A tied head is no parameter of its own: the state dict has one key for both.
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
            nn.init.normal_(self.head.weight, std=0.02)

    def features(self, tokens: Tensor, token_mask=None, caches=None, weights=None) -> Tensor:
        """What the head reads: tokens (B, T) -> (B, T, D). Arguments as for `forward`."""
        positions = token_positions(tokens, token_mask, caches, self.config.context_length)
        return self.transformer(
            self.dropout(self.embedding(tokens, positions)),
            mask=None if token_mask is None else key_mask(token_mask),
            rotary=None if self.rotary is None else (self.rotary, positions),
            caches=caches,
            weights=weights,
        )

    def to_logits(self, features: Tensor) -> Tensor:
        """features (..., D) -> (..., V)."""
        return self.embedding.head(features) if self.config.tied else self.head(features)  # (..., V)

    def forward(
        self,
        tokens: Tensor,
        token_mask: Tensor | None = None,
        caches: Caches | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """tokens (B, T) -> logits (B, T, V): those at place t are of the token that follows it.

        token_mask (B, T), True = a real token: padding is not seen and takes no position, so texts of unequal
        length may be padded on the left. caches: from `new_caches`; tokens are then the next ones, and the
        mask, (B, S), includes the earlier ones. weights: a list that receives each layer's (B, H, T, S).
        ValueError where there are more than context_length tokens, or the mask is of another width.
        """
        return self.to_logits(self.features(tokens, token_mask, caches, weights))  # (B, T, V)

    def new_caches(self, batch: int) -> Caches:
        """Empty caches for texts of up to context_length tokens."""
        return self.transformer.new_caches(batch, self.config.context_length)
