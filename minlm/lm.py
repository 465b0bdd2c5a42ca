"""TransformerLM: the decoder-only language model, in GPT-2's layout (Radford et al. 2019, section 2.3).

Shapes: B batch, T tokens, S tokens with the cached ones, D d_model, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor, nn

from minlm.embeddings import PositionForm, Rotary, TextEmbedding, token_positions
from minlm.masks import key_mask
from minlm.training.bounds import at_least
from minlm.transformer import Caches, Context, Transformer
from minlm.transformer_config import Activation, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class LMConfig(TransformerConfig):
    """Options of a decoder-only language model.

    vocab_size: tokens of the vocabulary to learn; then those of the tokenizer
    vocab_digest: SHA-256 of the vocabulary; set from the tokenizer
    context_length: maximum number of tokens attended to
    positions: learned vectors (GPT-2), sines (Vaswani et al.), or rotated queries and keys
    tied: use the token embedding, transposed, as the head
    """

    activation: Activation = "gelu_tanh"
    vocab_size: Annotated[int, at_least(1)] = 256
    vocab_digest: str = field(default="", metadata={"set_from": "tokenizer"})
    context_length: Annotated[int, at_least(1)] = 128
    positions: PositionForm = "learned"
    tied: bool = True


class TransformerLM(nn.Module):
    """Decoder-only Transformer: logits of each next token, from the tokens before it.

    Initial std, L = n_layers:

        embedding.tokens.weight                      0.02
        embedding.positions.weight                   0.01
        in_proj.weight                               1/sqrt(D)
        fc1.weight                                   1/sqrt(2*D)
        out_proj.weight fc2.weight                   1/sqrt(2*L*D)
        head.weight                                  0.02
        every bias                                   0
        every gain of a LayerNorm                    0, around 1

    Differences from GPT-2:
    - initial std inside the Blocks (GPT-2: 0.02, and 0.02/sqrt(2*L) for out_proj and fc2; see Transformer);
    - options for sinusoidal and rotary positions, post-norm, other activations and an untied head;
    - no dropout by default (GPT-2: 0.1).
    """

    def __init__(self, config: LMConfig):
        super().__init__()
        self.config = config
        self.embedding = TextEmbedding(
            config.vocab_size, config.context_length, config.d_model, config.positions
        )
        self.rotary = Rotary(config.head_size) if config.positions == "rotary" else None
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = Transformer(config)
        # A tied head is not a parameter of its own: the state dict has one key for both.
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
            nn.init.normal_(self.head.weight, std=0.02)

    def features(
        self, tokens: Tensor, token_mask: Tensor | None = None, caches: Caches | None = None
    ) -> Tensor:
        """Compute the head's inputs: tokens (B, T) -> (B, T, D). Arguments as for `forward`."""
        n_cached = 0 if caches is None else caches.length
        positions = token_positions(tokens, self.config.context_length, token_mask, n_cached)
        rotation = None if self.rotary is None else self.rotary(positions)
        mask = None if token_mask is None else key_mask(token_mask)
        context = Context(causal=True, mask=mask, rotation=rotation, caches=caches)
        return self.transformer(self.dropout(self.embedding(tokens, positions)), context)  # (B, T, D)

    def to_logits(self, features: Tensor) -> Tensor:
        """Compute logits (..., V) of features (..., D)."""
        return self.embedding.head(features) if self.config.tied else self.head(features)  # (..., V)

    def forward(
        self, tokens: Tensor, token_mask: Tensor | None = None, caches: Caches | None = None
    ) -> Tensor:
        """Compute logits (B, T, V) of the token after each of tokens (B, T).

        token_mask: (B, T), True = a real token. Padding is not attended to and has no position, so texts may be padded
        on the left. caches: from `new_caches`; tokens then follow the cached ones, and token_mask (B, S) covers both.
        ValueError for more than context_length tokens, or a mask of another width.
        """
        return self.to_logits(self.features(tokens, token_mask, caches))  # (B, T, V)

    def new_caches(self, batch: int) -> Caches:
        """Create empty caches for texts of up to context_length tokens."""
        return Caches(self.transformer, batch, self.config.context_length)
