"""Text towers: a causal Transformer pooled at the end of the text, and a bidirectional one (BERT).

Shapes: B batch, T tokens, D d_model.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from minclip.towers.freezing import Tower, TowerConfig
from minlm.embeddings import TextEmbedding, token_positions
from minlm.masks import key_mask
from minlm.training.bounds import at_least
from minlm.transformer import Context, Transformer, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig, TowerConfig):
    """Fields of both text towers.

    vocab_size: tokens of the vocabulary to be trained; then set to the size of the vocabulary
    vocab_digest: SHA-256 of the vocabulary; set from the tokenizer
    context_length: longest text in tokens, start and end included
    """

    vocab_size: Annotated[int, at_least(1)] = 1000
    vocab_digest: str = field(default="", metadata={"set_from": "tokenizer"})
    context_length: Annotated[int, at_least(3)] = 32


@dataclass(frozen=True, kw_only=True)
class GPTTextConfig(TextConfig):
    """CLIP's text tower: GPT-2's layout, pooled at the end of text.

    end_id: end-of-text id; text is pooled at its first occurrence; set from the tokenizer
    """

    end_id: int = field(default=3, metadata={"set_from": "tokenizer"})


@dataclass(frozen=True, kw_only=True)
class BertTextConfig(TextConfig):
    """BERT's encoder; DistilBERT with pool first.

    pool: source of the text's features: the first token ([CLS]), that token through one more layer (BERT's
        pooler), or the mean over real tokens
    token_types: size of BERT's token type table, of which captions use the first row; 0 = no such table
    """

    norm_first: bool = False
    norm_eps: float = 1e-12
    pool: Literal["first", "pooler", "mean"] = "mean"
    token_types: Annotated[int, at_least(0)] = 0


class GPTTextEncoder(Tower):
    """Causal text tower, pooled at the *first* end-of-text token (Radford et al. 2021, section 2.4).

    Padding needs no mask: it follows the end of the text, and causal attention ignores it there.
    """

    def __init__(self, config: GPTTextConfig):
        super().__init__()
        self.config, self.width = config, config.d_model
        self.embedding = TextEmbedding(config.vocab_size, config.context_length, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = Transformer(config)
        self.freeze(config, self.transformer.blocks, self.transformer.norm)

    def forward_tokens(self, tokens: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Compute the last hidden states (B, T, D) of tokens (B, T); ValueError if T exceeds context_length."""
        positions = token_positions(tokens, self.config.context_length)
        x = self.dropout(self.embedding(tokens, positions))  # (B, T, D)
        return self.transformer(x, Context(causal=True))  # (B, T, D)

    def forward(self, tokens: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Compute features (B, D) of tokens (B, T); ValueError if a row has no end-of-text token."""
        is_end = tokens == self.config.end_id  # (B, T)
        if not is_end.any(dim=1).all():
            row = int((~is_end.any(dim=1)).nonzero()[0])
            raise ValueError(f"text {row} of the batch has no end-of-text token (id {self.config.end_id})")
        end = is_end.int().argmax(dim=1)  # (B)
        x = self.forward_tokens(tokens)  # (B, T, D)
        return x[torch.arange(len(x), device=x.device), end]  # (B, D)


class BertTextEncoder(Tower):
    """Bidirectional text tower (Devlin et al. 2019): every token attends to every real token.

    As in BERT, a LayerNorm follows the embeddings.
    """

    def __init__(self, config: BertTextConfig):
        super().__init__()
        self.config, self.width = config, config.d_model
        self.embedding = TextEmbedding(config.vocab_size, config.context_length, config.d_model)
        self.token_types = nn.Embedding(config.token_types, config.d_model) if config.token_types else None
        if self.token_types is not None:
            nn.init.normal_(self.token_types.weight, std=0.02)
        self.norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = Transformer(config)
        self.pooler = nn.Identity()
        if config.pool == "pooler":
            self.pooler = nn.Linear(config.d_model, config.d_model)
            nn.init.normal_(self.pooler.weight, std=config.d_model**-0.5)
            nn.init.zeros_(self.pooler.bias)
        self.freeze(config, self.transformer.blocks, self.transformer.norm, self.pooler)

    def forward_tokens(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Compute the last hidden states (B, T, D) of tokens (B, T) with token_mask (B, T), True = real.

        Raises ValueError if T exceeds context_length.
        """
        x = self.embedding(tokens, token_positions(tokens, self.config.context_length))  # (B, T, D)
        if self.token_types is not None:
            x = x + self.token_types.weight[0]  # a caption is a single sentence, of type 0
        return self.transformer(self.dropout(self.norm(x)), Context(mask=key_mask(token_mask)))  # (B, T, D)

    def forward(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Compute features (B, D) of tokens (B, T); token_mask (B, T) excludes padding from attention and pooling."""
        x = self.forward_tokens(tokens, token_mask)  # (B, T, D)
        match self.config.pool:
            case "first":
                return x[:, 0]  # (B, D)
            case "pooler":
                return torch.tanh(self.pooler(x[:, 0]))  # (B, D)
            case "mean":
                real = token_mask[..., None].to(x.dtype)  # (B, T, 1)
                return (x * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)  # (B, D)
