"""Greedy decoding, sampling and beam search for TransformerLM and EncoderDecoder, on token ids.

Prompts are lists of ids of any lengths. A TransformerLM continues them. For an EncoderDecoder they are the sources,
and the reply follows its start_id. Functions return the new ids, without the stop id.

A model attends to at most context_length tokens: the window. When the window is full, its older half is dropped and
its newer half is computed again, from position 0. The window depends only on the length of the text, not on the cache
or the number of calls.

Shapes: B texts, T tokens, V vocabulary, W beam width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from minlm.lm import TransformerLM
from minlm.seq2seq import EncoderDecoder
from minlm.training.bounds import Bounded, at_least, within

Model = TransformerLM | EncoderDecoder
Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Bounded):
    """Options of sampling.

    max_new_tokens: maximum number of tokens after the prompt
    temperature: divides the logits; 0 = greedy, always the most likely token
    top_k: sample from the k most likely tokens; 0 = all
    top_p: sample from the fewest tokens with this total probability; 1 = all
    min_p: sample from tokens of at least this share of the highest probability; 0 = all
    repetition_penalty: makes tokens that the text already has less likely; 1 = no penalty
    seed: of the random draws; text i of a batch uses seed + i
    """

    max_new_tokens: Annotated[int, at_least(1)] = 200
    temperature: Annotated[float, at_least(0)] = 1.0
    top_k: Annotated[int, at_least(0)] = 0
    top_p: Annotated[float, within("(0, 1]")] = 1.0
    min_p: Annotated[float, within("[0, 1)")] = 0.0
    repetition_penalty: Annotated[float, within("[0.01, 100]")] = 1.0
    seed: int = 0


def generate(
    model: Model, prompts: Prompts, config: SamplingConfig, stop: int | None = None
) -> list[list[int]]:
    """Return the new ids of each prompt. A text does not depend on the others in its batch.

    stop: the id that ends a text.
    ValueError for no prompt, an empty prompt, an id outside the vocabulary, or a model in training mode.
    """
    texts = [[] for _ in prompts]
    for step in sample(DecodingState(model, prompts, stop), config):
        for row, token in step:
            texts[row].append(token)
    return texts


def window(text: list[int], context_length: int) -> list[int]:
    """Return the tokens that a model attends to: the whole text, or its end from a multiple of half a context on."""
    half = (context_length + 1) // 2
    excess = max(0, len(text) - context_length)
    return text[-(-excess // half) * half :]


class DecodingState:
    """Texts that grow by one token per step, and the model's cache for them.

    Windows are padded on the left. When the longest one is full, all windows are shortened and computed again. The
    arrays of the cache are allocated once.
    """

    memory: Tensor  # of an EncoderDecoder
    source_mask: Tensor | None  # of an EncoderDecoder

    def __init__(self, model: Model, prompts: Prompts, stop: int | None = None):
        if model.training:
            raise ValueError("the model is in training mode, with dropout: call model.eval() first")
        if not prompts:
            raise ValueError("no prompts: give at least one")
        for i, prompt in enumerate(prompts):
            if len(prompt) == 0:
                raise ValueError(f"prompt {i} is empty: give at least one token, such as the end-of-text id")
        largest = model.config.vocab_size - 1
        for token in [*chain.from_iterable(prompts), *([] if stop is None else [stop])]:
            if not 0 <= token <= largest:
                raise ValueError(
                    f"id {token} is outside the vocabulary: ids of this model run from 0 to {largest}"
                )
        self.model, self.stop = model, stop
        self.device = model.embedding.tokens.weight.device
        if isinstance(model, EncoderDecoder):
            source, self.source_mask = self.padded(prompts)
            with torch.no_grad():
                self.memory = model.encode(source, self.source_mask)  # (B, S, D)
            self.texts = [[model.config.start_id] for _ in prompts]
            self.caches = model.new_caches(*self.memory.shape[:2])
        else:
            self.texts = [list(prompt) for prompt in prompts]
            self.caches = model.new_caches(len(prompts))

    @torch.no_grad()
    def next_logits(self) -> Tensor:
        """Compute the logits (B, V) of the token after each text."""
        context_length = self.model.config.context_length
        if 0 < self.caches.length < context_length:
            tokens = torch.tensor([[text[-1]] for text in self.texts], device=self.device)  # (B, 1)
            if self.token_mask is not None:
                self.token_mask = F.pad(self.token_mask, (0, 1), value=True)  # (B, S)
        else:
            tokens, self.token_mask = self.padded([window(text, context_length) for text in self.texts])
            self.caches.clear()
        if isinstance(self.model, EncoderDecoder):
            features = self.model.features(
                tokens, self.memory, self.source_mask, self.token_mask, self.caches
            )
        else:
            features = self.model.features(tokens, self.token_mask, self.caches)
        return self.model.to_logits(features[:, -1])  # (B, V)

    def append(self, tokens: list[int]) -> None:
        """Append one token to each text, after `next_logits`."""
        for text, token in zip(self.texts, tokens, strict=True):
            text.append(token)

    def select(self, rows: Tensor) -> None:
        """Make text i a copy of text rows[i]; the number of texts may change."""
        self.texts = [list(self.texts[row]) for row in rows.tolist()]
        self.token_mask = None if self.token_mask is None else self.token_mask[rows]
        if isinstance(self.model, EncoderDecoder):
            self.memory = self.memory[rows]
            self.source_mask = None if self.source_mask is None else self.source_mask[rows]
        for cache in self.caches.values():
            cache.keys, cache.values = cache.keys[rows], cache.values[rows]

    def padded(self, texts: Prompts) -> tuple[Tensor, Tensor | None]:
        """Return tokens (B, T), padded on the left, and token_mask (B, T), None without padding."""
        lengths = [len(text) for text in texts]
        width = max(lengths)
        tokens = torch.tensor([[0] * (width - len(text)) + list(text) for text in texts], device=self.device)
        if min(lengths) == width:
            return tokens, None
        n_padding = width - torch.tensor(lengths, device=self.device)[:, None]  # (B, 1)
        return tokens, torch.arange(width, device=self.device) >= n_padding  # (B, T), (B, T)


def sample(state: DecodingState, config: SamplingConfig) -> Iterator[list[tuple[int, int]]]:
    """Yield, for each step, (text, new token) of the texts that have not stopped; end when all have."""
    n_texts = len(state.texts)
    # One generator per text, so that its draws do not depend on the other texts.
    generators = [torch.Generator().manual_seed(config.seed + i) for i in range(n_texts)]
    seen = torch.zeros(n_texts, state.model.config.vocab_size, dtype=torch.bool, device=state.device)
    for row, text in enumerate(state.texts):
        seen[row, text] = True
    running = list(range(n_texts))
    for _ in range(config.max_new_tokens):
        logits = state.next_logits()
        if config.repetition_penalty != 1:
            logits = penalise_repetition(logits, seen, config.repetition_penalty)
        if config.temperature == 0:
            tokens = logits.argmax(dim=-1).tolist()
        else:
            rows = zip(token_probabilities(logits, config).cpu(), generators, strict=True)
            tokens = [int(torch.multinomial(p, 1, generator=generator)) for p, generator in rows]
        running = [row for row in running if tokens[row] != state.stop]
        if not running:
            return
        yield [(row, tokens[row]) for row in running]
        seen[range(n_texts), tokens] = True
        state.append(tokens)


def token_probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Apply temperature and the filters that are set: logits (..., V) -> probabilities (..., V)."""
    # The largest logit becomes 0, so that no low temperature gives infinity.
    logits = (logits.double() - logits.double().amax(dim=-1, keepdim=True)) / config.temperature
    if config.top_k:
        logits = top_k_filter(logits, config.top_k)
    if config.top_p < 1:
        logits = top_p_filter(logits, config.top_p)
    if config.min_p:
        logits = min_p_filter(logits, config.min_p)
    return logits.softmax(dim=-1)


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Lower the logits (B, V) where seen (B, V): the text has this token (Keskar et al. 2019, CTRL, section 4.1).

    Positive logits are divided by the penalty. Negative ones are multiplied: division, as in the paper, would make
    their tokens more likely.
    """
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalised, logits)


def top_k_filter(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits (..., V) and set the others to -inf (Fan et al. 2018, section 5.1).

    Exactly k are kept; of equal ones, the lowest ids.
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)[..., :k]  # (..., k)
    return keep(logits, order, torch.ones_like(order, dtype=torch.bool))


def top_p_filter(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens with a total probability of at least p and set the others to -inf.

    Nucleus sampling (Holtzman et al. 2020, section 3.1). Of equal ones, the lowest ids are kept.
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)  # (..., V)
    falling = logits.softmax(dim=-1).gather(-1, order)  # (..., V)
    before = falling.cumsum(dim=-1) - falling  # (..., V): total probability of the more likely tokens
    return keep(logits, order, before < p)


def min_p_filter(logits: Tensor, p: float) -> Tensor:
    """Set tokens less than p times as probable as the most likely one to -inf (Nguyen et al. 2024, section 3)."""
    probabilities = logits.softmax(dim=-1)
    unlikely = probabilities < p * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(unlikely, float("-inf"))


def keep(logits: Tensor, ids: Tensor, kept: Tensor) -> Tensor:
    """Set logits (..., V) to -inf except at those ids (..., n) where kept (..., n)."""
    mask = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, kept)
    return torch.where(mask, logits, float("-inf"))


@torch.no_grad()
def beam_search(
    model: Model,
    prompts: Prompts,
    max_new_tokens: int,
    width: int,
    stop: int | None = None,
    length_penalty: float = 0.6,
) -> list[tuple[list[int], float]]:
    """Search for the best reply to each prompt (Wu et al. 2016, equation 14, without coverage penalty):

        score(Y) = log P(Y) / ((5 + |Y|) / 6)^length_penalty,    |Y| with the stop id

    Each step keeps the `width` most probable unfinished replies, and scores each of them with the stop id. The search
    ends at max_new_tokens, or when no reply can score higher. Returns (new ids, score) per prompt.
    ValueError as in `generate`, for width or max_new_tokens below 1, and for length_penalty below 0.
    """
    if min(width, max_new_tokens) < 1 or length_penalty < 0:
        raise ValueError(f"{width=} and {max_new_tokens=} must be at least 1, {length_penalty=} at least 0")
    state = DecodingState(model, prompts, stop)
    skip = [len(text) for text in state.texts]
    best: list[tuple[list[int], float]] = [([], float("-inf"))] * len(prompts)
    scores = torch.zeros(len(prompts), 1, dtype=torch.float64, device=state.device)  # (B, W), W = 1 at first

    def offer(log_probability: Tensor, length: int) -> None:
        """Update the best reply of each prompt with replies of log_probability (B, W)."""
        n_beams = log_probability.shape[1]
        score, beam = (log_probability / ((5 + length) / 6) ** length_penalty).max(dim=1)
        for i, (value, row) in enumerate(zip(score.tolist(), beam.tolist(), strict=True)):
            if value > best[i][1]:
                best[i] = (state.texts[i * n_beams + row][skip[i] :], value)

    for length in range(1, max_new_tokens + 1):
        log_probability = state.next_logits().double().log_softmax(dim=-1)  # (B W, V)
        total = scores[..., None] + log_probability.unflatten(0, scores.shape)  # (B, W, V)
        if stop is not None:
            offer(total[..., stop], length)
            total[..., stop] = float("-inf")
        n_beams, vocab_size = total.shape[1:]
        scores, choice = total.flatten(1).topk(min(width, n_beams * vocab_size))  # (B, W)
        first = n_beams * torch.arange(len(prompts), device=state.device)[:, None]
        state.select((first + choice // vocab_size).flatten())
        state.append((choice % vocab_size).flatten().tolist())
        # Log-probabilities only fall, and the longest reply has the largest divisor.
        bound = scores[:, 0] / ((5 + max_new_tokens) / 6) ** length_penalty
        if all(value >= most for (_, value), most in zip(best, bound.tolist(), strict=True)):
            return best
    offer(scores, max_new_tokens)
    return best
