"""The config of a training run, and the recipes of `train_lm.py --preset`."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from minlm.data import TextFileConfig
from minlm.lm import LMConfig
from minlm.screenplay.source import ScreenplayConfig
from minlm.seq2seq import Seq2SeqConfig
from minlm.tokenizer import Tokenizer
from minlm.training.bounds import Bounded, within
from minlm.training.state import TrainConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig(Bounded):
    """A language model, its training text, and its training.

    tokens: characters of the text, or byte pairs learned from it
    vocabulary: a vocabulary to use instead: GPT-2's encoder.json, a .tiktoken file, or that of a run
    label_smoothing: share of the probability that training spreads over all tokens
    model: the network; model.vocab_size is the number of byte pairs to learn
    data: the text
    train: options of training
    """

    tokens: Literal["characters", "byte-pairs"] = "characters"
    vocabulary: str | None = None
    label_smoothing: Annotated[float, within("[0, 1)")] = 0.0
    model: LMConfig | Seq2SeqConfig = field(default_factory=LMConfig)
    data: ScreenplayConfig | TextFileConfig = field(default_factory=ScreenplayConfig)
    train: TrainConfig

    def with_tokenizer(self, tokenizer: Tokenizer) -> "RunConfig":
        """Return this config with the model's fields set from the tokenizer. ValueError if an id is missing."""
        known = {"vocab_size": tokenizer.vocab_size, "vocab_digest": tokenizer.digest}
        if isinstance(self.model, Seq2SeqConfig):
            if None in (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id):
                raise ValueError(
                    "an encoder-decoder needs start, end and pad ids, and this vocabulary lacks one: "
                    "leave out --vocabulary, and one is learned"
                )
            known["start_id"] = tokenizer.start_id
        return replace(self, model=replace(self.model, **known))


PRESETS = {
    "screenplay": RunConfig(
        tokens="byte-pairs",
        model=LMConfig(
            d_model=192, n_heads=6, n_layers=4, context_length=384, vocab_size=1200, positions="rotary"
        ),
        data=ScreenplayConfig(n_scenes=10_000),
        train=TrainConfig(
            minutes=3.5, batch_size=16, lr=2e-3, muon_lr=0.02, evaluate_every=100, save_every=100
        ),
    ),
    "shakespeare-char": RunConfig(
        model=LMConfig(d_model=128, n_heads=4, n_layers=2, d_ff=256, context_length=64, positions="rotary"),
        data=TextFileConfig(),
        train=TrainConfig(
            steps=230, batch_size=24, lr=0.02, muon_lr=0.04, muon_momentum=0.85, schedule="linear"
        ),
    ),
    "script-lm": RunConfig(
        tokens="byte-pairs",
        model=LMConfig(
            d_model=192,
            n_heads=6,
            n_layers=4,
            context_length=128,
            vocab_size=2000,
            positions="rotary",
            dropout=0.2,
        ),
        data=TextFileConfig(split="scenes"),
        train=TrainConfig(
            minutes=3.0, batch_size=32, lr=2e-3, muon_lr=0.02, weight_decay=0.3, evaluate_every=50
        ),
    ),
    "script-seq2seq": RunConfig(
        tokens="byte-pairs",
        label_smoothing=0.1,
        model=Seq2SeqConfig(
            d_model=128, n_heads=4, n_layers=2, context_length=96, vocab_size=1000, dropout=0.3
        ),
        data=TextFileConfig(split="scenes"),
        train=TrainConfig(
            epochs=30, batch_size=32, lr=1e-3, schedule="inverse_sqrt", warmup=0.2, evaluate_every=25
        ),
    ),
}
ABOUT = {
    "screenplay": "the built-in script, five minutes on two cores",
    "shakespeare-char": "characters of any text, as in nanoGPT's example: --data.path input.txt",
    "script-lm": "continue a movie script in plain text: --data.path FILE",
    "script-seq2seq": "reply to a line of a movie script in plain text: --data.path FILE",
}
"""One line per preset, for --help."""
FULL = {
    "shakespeare-char": replace(
        PRESETS["shakespeare-char"],
        model=LMConfig(
            d_model=384,
            n_heads=6,
            n_layers=6,
            context_length=256,
            positions="rotary",
            tied=False,
            dropout=0.2,
            attention_dropout=0.0,
        ),
        train=TrainConfig(
            minutes=58.0,
            batch_size=16,
            lr=4e-3,
            muon_lr=0.02,
            muon_momentum=0.9,
            schedule="linear",
            weight_decay=0.3,
            ema_decay=0.998,
            evaluate_every=300,
            save_every=300,
        ),
    ),
    "script-lm": replace(
        PRESETS["script-lm"],
        model=LMConfig(
            d_model=768, n_heads=12, n_layers=12, context_length=256, vocab_size=4000, dropout=0.1
        ),
        train=TrainConfig(epochs=20, batch_size=16, lr=6e-4),
    ),
    "script-seq2seq": replace(
        PRESETS["script-seq2seq"],
        model=Seq2SeqConfig(d_model=512, n_heads=8, n_layers=6, context_length=128, vocab_size=2000),
        train=TrainConfig(epochs=30, batch_size=64, lr=7e-4, schedule="inverse_sqrt", warmup=0.2, beta2=0.98),
    ),
}
"""shakespeare-char: nanoGPT's larger shape, an hour of two cores. script-lm: GPT-2's smallest model. script-seq2seq:
the Transformer's base model (Vaswani et al. 2017, table 3)."""
