"""Sizes and options of a Transformer."""

from dataclasses import dataclass
from typing import Annotated, Literal

from minlm.training.bounds import Bounded, above, at_least, within

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Bounded):
    """Sizes and options of a stack of Blocks.

    d_model: width of the residual stream
    n_heads: attention heads; must divide d_model
    n_layers: Blocks
    d_ff: width inside the MLP; none = 4 * d_model
    activation: exact GELU, its tanh form (GPT-2), its sigmoid form (OpenAI's CLIP), or ReLU
    norm_first: LayerNorm before each sublayer and once at the end (GPT-2, ViT, CLIP), or after (BERT, Vaswani)
    norm_eps: added to the variance in every LayerNorm
    dropout: on each sublayer's output, and by default on attention weights
    attention_dropout: on attention weights; slower than 0; none = the same as dropout
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
