"""The two things that a language model is trained for here: to continue a text, and to reply to a line.

A task says what a batch is, what its loss is, what the validation text costs, and what to show of a trained model.
"""

from math import log
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minlm.data import ReplyDataset, TokenizedDataset, text_size
from minlm.evaluate import (
    Cost,
    baselines,
    device_of,
    next_token_loss,
    reply_cost,
    reply_loss,
    reply_size,
    reply_tokens,
    text_cost,
)
from minlm.generate import SamplingConfig, beam_search
from minlm.lm import TransformerLM
from minlm.plots import attention_maps
from minlm.presets import RunConfig
from minlm.script import parse_script, reply_pairs
from minlm.seq2seq import EncoderDecoder
from minlm.transformer import record_attention
from minlm.writing import Tokenizer, write

SAMPLE = SamplingConfig(max_new_tokens=800, temperature=0.8)
SHOWN_TOKENS, SHOWN_REPLIES, BEAM = 40, 6, 4
OPENING = 1000  # tokens of the validation text in which its first line is sought
Figures = dict[str, Tensor | float]


class Continuation:
    """The next token of a text, for a TransformerLM (Radford et al. 2019).

    splits: {"train", "validation"} -> ids (n), arrays or memory maps.
    """

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, splits: dict[str, np.ndarray]):
        self.config, self.tokenizer, self.splits = config, tokenizer, splits
        self.dataset = TokenizedDataset(splits["train"], config.model.context_length, config.train.seed)

    def describe(self) -> str:
        return ", ".join(f"{len(ids):,} tokens of {name}" for name, ids in self.splits.items())

    def loss(self, model: TransformerLM, batch: dict[str, Tensor]) -> tuple[Tensor, int, Figures]:
        """The loss that `fit` minimises: (sum in nats, tokens, figures for the log)."""
        nats, count = next_token_loss(model, batch)
        return nats, count, {"chance": log(self.config.model.vocab_size)}

    def baselines(self) -> dict[str, float]:
        """Losses to compare with, on the validation text; see `minlm.evaluate.baselines`."""
        train, validation = (
            (self.splits[name][:-1], self.splits[name][1:]) for name in ("train", "validation")
        )
        n_characters, _ = text_size(validation[1], self.tokenizer)
        return baselines(train, validation, self.tokenizer.vocab_size, n_characters)

    def cost(self, model: TransformerLM, stride: int | None = None) -> Cost:
        """Of the whole validation text; see `text_cost`."""
        return text_cost(model, self.tokenizer, self.splits["validation"], stride)

    def sample(self, model: TransformerLM) -> str:
        """What the model makes of the first line of the validation text."""
        opening = self.tokenizer.decode(self.splits["validation"][:OPENING].tolist())
        start = opening.lstrip("\n") or opening
        prompt = start[: start.find("\n") + 1] or start[:20]
        return prompt + write(model, self.tokenizer, [prompt], SAMPLE)[0] + "\n"

    @torch.inference_mode()
    def draw(self, model: TransformerLM, path: Path) -> None:
        """The last layer's attention over the first tokens of the validation text."""
        length = min(SHOWN_TOKENS, self.config.model.context_length)
        ids = self.splits["validation"][:length].tolist()
        with record_attention(model) as weights:
            model.features(torch.tensor([ids], device=device_of(model)))
        attention_maps(weights[-1][0], [self.tokenizer.decode([i]) for i in ids], path)


class Replies:
    """A reply to each line of dialogue, for an EncoderDecoder (Vaswani et al. 2017).

    texts: {"train", "validation"} -> scripts. Raises ValueError where nobody replies to anybody.
    """

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, texts: dict[str, str]):
        self.config, self.tokenizer = config, tokenizer
        self.pairs = {name: reply_pairs(parse_script(text)) for name, text in texts.items()}
        length = config.model.context_length
        self.dataset, self.validation = (
            ReplyDataset(self.pairs[name], tokenizer, length) for name in ("train", "validation")
        )

    def describe(self) -> str:
        counts = ", ".join(f"{len(pairs):,} pairs of {name}" for name, pairs in self.pairs.items())
        n_cut = self.dataset.n_cut + self.validation.n_cut
        return f"{counts}, {n_cut:,} of them cut at {self.config.model.context_length} tokens"

    def loss(self, model: EncoderDecoder, batch: dict[str, Tensor]) -> tuple[Tensor, int, Figures]:
        """The loss that `fit` minimises: (sum in nats, tokens, figures for the log)."""
        nats, count = reply_loss(model, batch, self.config.label_smoothing)
        return nats, count, {"chance": log(self.config.model.vocab_size)}

    def baselines(self) -> dict[str, float]:
        """Losses to compare with, on the validation replies; see `minlm.evaluate.baselines`."""
        train, validation = map(reply_tokens, (self.dataset, self.validation))
        n_characters, _ = reply_size(self.validation)
        return baselines(train, validation, self.tokenizer.vocab_size, n_characters)

    def cost(self, model: EncoderDecoder, stride: int | None = None) -> Cost:
        """Of all replies of the validation script, without label smoothing."""
        return reply_cost(model, self.validation)

    def sample(self, model: EncoderDecoder) -> str:
        """Lines of the validation script, with the reply that the beam finds and the one that stands there."""
        lines = [line for line, _ in self.validation.pairs[:SHOWN_REPLIES]]
        length, end_id = self.config.model.context_length, self.tokenizer.end_id
        found = [self.tokenizer.decode(ids) for ids, _ in beam_search(model, lines, length, BEAM, end_id)]
        return "\n".join(
            f"line:   {line}\nmodel:  {reply}\nscript: {real}\n"
            for (line, real), reply in zip(self.pairs["validation"], found, strict=False)
        )

    @torch.inference_mode()
    def draw(self, model: EncoderDecoder, path: Path) -> None:
        """The last layer's attention from a reply to the line before it."""
        source, targets = (ids[:SHOWN_TOKENS] for ids in self.validation.pairs[0])
        target = [self.tokenizer.start_id, *targets[:-1]]
        memory = model.encode(torch.tensor([source], device=device_of(model)))
        with record_attention(model) as weights:
            model.features(torch.tensor([target], device=device_of(model)), memory)
        rows, columns = ([self.tokenizer.decode([i]) for i in ids] for ids in (target, source))
        attention_maps(weights[-1][0], rows, path, columns)


Task = Continuation | Replies
