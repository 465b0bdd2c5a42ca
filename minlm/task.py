"""The two tasks of language models: to continue a text, and to reply to a line.

A task defines batches, loss, evaluation, and the sample and plot of a trained model.
"""

from abc import abstractmethod
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minlm.attention_maps import attention_maps
from minlm.data import ReplyDataset, TokenizedDataset, encode_splits, fit_context, text_size
from minlm.evaluate import (
    TextLoss,
    baselines,
    device_of,
    evaluate_replies,
    evaluate_text,
    reply_loss,
    reply_size,
    reply_tokens,
)
from minlm.generate import SamplingConfig, beam_search
from minlm.lm import LMConfig, TransformerLM
from minlm.losses import token_loss
from minlm.presets import RunConfig
from minlm.screenplay.script import parse_script, reply_pairs
from minlm.seq2seq import EncoderDecoder, Seq2SeqConfig
from minlm.tokenizer import Tokenizer
from minlm.training.batches import Batch, Batches, fit_batch, split
from minlm.training.config import files_beside_weights
from minlm.training.distributed import (
    average_gradients,
    first_process_first,
    mean_over_processes,
    rank,
    world_size,
)
from minlm.training.loop import Metrics, Precision
from minlm.transformer import record_attention
from minlm.writing import write

SAMPLE = SamplingConfig(max_new_tokens=800, temperature=0.8)
SHOWN_TOKENS, SHOWN_REPLIES, BEAM = 40, 6, 4
OPENING = 1000  # tokens of the validation text that are searched for its first line


class TokenTask:
    """Training with the cross-entropy of tokens; base of both tasks."""

    unit = "tokens"

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, dataset: TokenizedDataset | ReplyDataset):
        train = fit_batch(config.train, len(dataset), world_size())
        self.config, self.tokenizer, self.dataset = replace(config, train=train), tokenizer, dataset
        sizes = train.batch_size, train.seed, train.workers, train.neighbours
        self.batches = Batches(dataset, *sizes, rank(), world_size())
        self.inference_files = files_beside_weights(self.config, tokenizer)

    @abstractmethod
    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, int]:
        """Compute the loss of a batch -> (sum in nats, tokens)."""

    @abstractmethod
    def text_loss(self, model: Any, stride: int | None = None) -> TextLoss:
        """Compute the loss on the validation split."""

    @abstractmethod
    def baselines(self) -> dict[str, float]:
        """Compute baselines on the validation split; see `minlm.evaluate.baselines`."""

    def entropy(self, text: str) -> dict[str, float]:
        """Return the entropy of a validation text's source, in nats per character, if known."""
        return {}

    def backward(self, model: nn.Module, batch: Batch, precision: Precision) -> tuple[Tensor, int, Metrics]:
        """Compute gradients of the mean loss per token over the batch of all processes, in micro-batches.

        Each sum is divided by the tokens of the whole batch, so that parts and processes of unequal counts average
        exactly. Returns the mean loss, the number of tokens, and chance.
        """
        device = batch["targets"].device
        n_tokens = (
            batch["token_mask"].sum() if "token_mask" in batch else torch.tensor(batch["targets"].numel())
        )
        share = mean_over_processes(n_tokens.to(device, torch.float32))  # tokens per process
        mean = torch.zeros((), device=device)
        for part in split(batch, self.config.train.micro_batches):
            with precision.forward():
                nats, _ = self.loss(model, part)
            precision.backward(nats / share)
            mean = mean + nats.detach() / share
        average_gradients(model)
        return (
            mean_over_processes(mean),
            round(share.item() * world_size()),
            {"chance": log(self.config.model.vocab_size)},
        )

    def after_step(self, model: nn.Module) -> None:
        """Do nothing: no parameter has bounds."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Compute the loss on the validation split, in windows that do not overlap, in the run's precision."""
        with Precision(self.config.train.precision, device_of(model)).forward():
            loss = self.text_loss(model, stride=self.config.model.context_length)
        metrics = loss.metrics()
        shown = ("nats_per_character", "bits_per_byte")
        return {"validation_loss": loss.nats_per_token, **{name: metrics[name] for name in shown}}

    def score(self, metrics: dict[str, float]) -> float:
        """Return the negative validation loss."""
        return -metrics["validation_loss"]


class Continuation(TokenTask):
    """Prediction of the next token of a text, by a TransformerLM (Radford et al. 2019).

    texts: {"train": text, "validation": text}; folder: for the files of their ids. config.model.context_length is
    shortened to what the shortest split fills.
    """

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, texts: dict[str, str], folder: Path):
        with first_process_first():
            self.splits = encode_splits(texts, tokenizer, folder)
        length = fit_context(config.model.context_length, self.splits)
        self.wanted_length = config.model.context_length
        config = replace(config, model=replace(config.model, context_length=length))
        super().__init__(config, tokenizer, TokenizedDataset(self.splits["train"], length, config.train.seed))

    def entropy(self, text: str) -> dict[str, float]:
        """Return the data's entropies of a text."""
        return self.config.data.entropy(text)

    def describe(self) -> str:
        """Describe the data in one line."""
        counts = ", ".join(f"{len(ids):,} tokens of {name}" for name, ids in self.splits.items())
        length = self.config.model.context_length
        if length < self.wanted_length:
            counts += f"; context_length={self.wanted_length} is shortened to {length}, which the shortest split fills"
        return counts

    def loss(self, model: TransformerLM, batch: Batch) -> tuple[Tensor, int]:
        """Compute the loss of the next tokens -> (sum in nats, tokens)."""
        logits = model.to_logits(model.features(batch["tokens"]))  # (B, T, V)
        return token_loss(logits, batch["targets"])

    def baselines(self) -> dict[str, float]:
        """Compute baselines on the validation text."""
        train, validation = (
            (self.splits[name][:-1], self.splits[name][1:]) for name in ("train", "validation")
        )
        n_characters, _ = text_size(validation[1], self.tokenizer)
        return baselines(train, validation, self.tokenizer.vocab_size, n_characters)

    def text_loss(self, model: TransformerLM, stride: int | None = None) -> TextLoss:
        """Compute the loss on the validation text."""
        return evaluate_text(model, self.tokenizer, self.splits["validation"], stride)

    def sample(self, model: TransformerLM) -> str:
        """Continue the first line of the validation text."""
        opening = self.tokenizer.decode(self.splits["validation"][:OPENING].tolist())
        start = opening.lstrip("\n") or opening
        prompt = start[: start.find("\n") + 1] or start[:20]
        return prompt + write(model, self.tokenizer, [prompt], SAMPLE)[0] + "\n"

    @torch.inference_mode()
    def draw(self, model: TransformerLM, path: Path) -> None:
        """Plot the last layer's attention over the first tokens of the validation text."""
        length = min(SHOWN_TOKENS, self.config.model.context_length)
        ids = self.splits["validation"][:length].tolist()
        with record_attention(model) as weights:
            model.features(torch.tensor([ids], device=device_of(model)))
        attention_maps(weights[-1][0], [self.tokenizer.decode([i]) for i in ids], path)


class Replies(TokenTask):
    """Prediction of the reply to a line of dialogue, by an EncoderDecoder (Vaswani et al. 2017).

    texts: {"train": script, "validation": script}. ValueError for a script without replies.
    """

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, texts: dict[str, str], folder: Path):
        self.pairs = {name: reply_pairs(parse_script(text)) for name, text in texts.items()}
        length = config.model.context_length
        self.training, self.validation = (
            ReplyDataset(self.pairs[name], tokenizer, length) for name in ("train", "validation")
        )
        super().__init__(config, tokenizer, self.training)

    def describe(self) -> str:
        """Describe the data in one line."""
        counts = ", ".join(f"{len(pairs):,} pairs of {name}" for name, pairs in self.pairs.items())
        n_cut = self.training.n_cut + self.validation.n_cut
        return f"{counts}, {n_cut:,} of them cut at {self.config.model.context_length} tokens"

    def loss(self, model: EncoderDecoder, batch: Batch) -> tuple[Tensor, int]:
        """Compute the loss of the replies' tokens -> (sum in nats, tokens)."""
        return reply_loss(model, batch, self.config.label_smoothing)

    def baselines(self) -> dict[str, float]:
        """Compute baselines on the validation replies."""
        train, validation = map(reply_tokens, (self.training, self.validation))
        n_characters, _ = reply_size(self.validation)
        return baselines(train, validation, self.tokenizer.vocab_size, n_characters)

    def text_loss(self, model: EncoderDecoder, stride: int | None = None) -> TextLoss:
        """Compute the loss on the validation replies, without label smoothing."""
        return evaluate_replies(model, self.validation)

    def sample(self, model: EncoderDecoder) -> str:
        """Show lines of the validation script with the reply of beam search and the script's own."""
        lines = [line for line, _ in self.validation.pairs[:SHOWN_REPLIES]]
        length, end_id = self.config.model.context_length, self.tokenizer.end_id
        found = [self.tokenizer.decode(ids) for ids, _ in beam_search(model, lines, length, BEAM, end_id)]
        return "\n".join(
            f"line:   {line}\nmodel:  {reply}\nscript: {real}\n"
            for (line, real), reply in zip(self.pairs["validation"], found, strict=False)
        )

    @torch.inference_mode()
    def draw(self, model: EncoderDecoder, path: Path) -> None:
        """Plot the last layer's attention from a reply to its line."""
        source, targets = (ids[:SHOWN_TOKENS] for ids in self.validation.pairs[0])
        target = [self.tokenizer.start_id, *targets[:-1]]
        memory = model.encode(torch.tensor([source], device=device_of(model)))
        with record_attention(model) as weights:
            model.features(torch.tensor([target], device=device_of(model)), memory)
        rows, columns = ([self.tokenizer.decode([i]) for i in ids] for ids in (target, source))
        attention_maps(weights[-1][0], rows, path, columns)


TASKS = {LMConfig: Continuation, Seq2SeqConfig: Replies}
