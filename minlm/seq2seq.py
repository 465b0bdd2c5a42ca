"""EncoderDecoder: from a source text to a target text (Vaswani et al. 2017, Attention Is All You Need, figure 1).

Shapes: B batch, S source tokens, T target tokens, D d_model, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor, nn

from minlm.embeddings import TextEmbedding, token_positions
from minlm.masks import key_mask
from minlm.training.bounds import at_least
from minlm.transformer import Caches, Context, Transformer
from minlm.transformer_config import Activation, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(TransformerConfig):
    """Options of an encoder and a decoder of n_layers Blocks each, with one vocabulary.

    vocab_size: tokens of the vocabulary to learn; then those of the tokenizer
    vocab_digest: SHA-256 of the vocabulary; set from the tokenizer
    context_length: longest source, and longest target, in tokens
    start_id: first token of every target; set from the tokenizer
    """

    activation: Activation = "relu"
    norm_first: bool = False
    dropout: float = 0.1
    vocab_size: Annotated[int, at_least(1)] = 256
    vocab_digest: str = field(default="", metadata={"set_from": "tokenizer"})
    context_length: Annotated[int, at_least(1)] = 128
    start_id: Annotated[int, at_least(0)] = field(default=0, metadata={"set_from": "tokenizer"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_id >= self.vocab_size:
            raise ValueError(f"start_id={self.start_id} is outside the vocabulary of {self.vocab_size}")


class EncoderDecoder(nn.Module):
    """Encoder-decoder Transformer: logits of each next target token, from the source and the targets before it.

    One matrix embeds source and target, times sqrt(D), and is the head (section 3.4). Positions are sines.

    Initial std: embedding.tokens.weight 0.02; the Blocks as in `Transformer`.

    Differences from the paper:
    - the initial std. The paper's code has 1/sqrt(D) for the embedding: with a tied head, the model then first predicts
      its input token, with a loss far above chance;
    - biases in the query, key, value and output projections;
    - dropout on attention weights too, as in the paper's code;
    - norm_first, the pre-norm form of its later code, with a LayerNorm at the end of each stack.
    """

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.config = config
        sizes = config.vocab_size, config.context_length, config.d_model
        self.embedding = TextEmbedding(*sizes, positions="sinusoidal")
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Transformer(config)
        self.decoder = Transformer(config, cross_attention=True)

    def embed(self, tokens: Tensor, token_mask: Tensor | None, n_cached: int = 0) -> Tensor:
        positions = token_positions(tokens, self.config.context_length, token_mask, n_cached)
        return self.dropout(self.embedding(tokens, positions))  # (B, T, D)

    def encode(self, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Encode source (B, S) as memory (B, S, D).

        source_mask: (B, S), True = a real token. No token attends to padding, and the memory there is meaningless.
        """
        mask = None if source_mask is None else key_mask(source_mask)
        return self.encoder(self.embed(source, source_mask), Context(mask=mask))  # (B, S, D)

    def features(
        self,
        target: Tensor,
        memory: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        caches: Caches | None = None,
    ) -> Tensor:
        """Compute the head's inputs: target (B, T), memory (B, S, D) -> (B, T, D).

        caches: from `new_caches`; target then follows the cached tokens, and target_mask covers both.
        """
        x = self.embed(target, target_mask, n_cached=0 if caches is None else caches.length)  # (B, T, D)
        context = Context(
            causal=True,
            mask=None if target_mask is None else key_mask(target_mask),
            memory=memory,
            memory_mask=None if source_mask is None else key_mask(source_mask),
            caches=caches,
        )
        return self.decoder(x, context)  # (B, T, D)

    def to_logits(self, features: Tensor) -> Tensor:
        """Compute logits (..., V) of features (..., D)."""
        return self.embedding.head(features)  # (..., V)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """Compute logits (B, T, V) from source (B, S) and target (B, T), which begins with start_id."""
        memory = self.encode(source, source_mask)  # (B, S, D)
        return self.to_logits(self.features(target, memory, source_mask, target_mask))  # (B, T, V)

    def new_caches(self, batch: int, memory_length: int) -> Caches:
        """Create empty caches for targets of up to context_length tokens and a memory of memory_length."""
        return Caches(self.decoder, batch, self.config.context_length, memory_length)
