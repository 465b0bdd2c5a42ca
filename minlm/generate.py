"""Text from a model: greedy, sampled, or the best of a beam; for TransformerLM and EncoderDecoder.

Prompts are lists of ids of any lengths. A TransformerLM continues them; for an EncoderDecoder they are the
sources, and a reply is written after its start_id. What is returned are the new ids, without the stop id.

The window: a model sees at most context_length tokens. When one more would not fit, the older half of the
window is dropped and the newer half read again, from position 0. What is seen of a text depends on its length
alone, not on how it came about: with a cache or without, in one call or in two, the same is seen.

Shapes: B texts, T tokens, V vocabulary, W beam width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

import torch
from torch import Tensor

from minlm.lm import TransformerLM
from minlm.seq2seq import EncoderDecoder
from minlm.training.bounds import Bounded, at_least, within

Model = TransformerLM | EncoderDecoder
Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Bounded):
    """How tokens are drawn.

    max_new_tokens: tokens after the prompt, if the text does not stop earlier
    temperature: logits are divided by it; 0 = greedy, always the likeliest token
    top_k: tokens to choose from, the k likeliest; 0 = all
    top_p: choose from the fewest tokens that have this probability together; 1 = all
    min_p: choose from tokens at least this probable, as a share of the likeliest one's; 0 = all
    repetition_penalty: makes tokens that the text already has less likely; 1 = no penalty
    seed: of the draws; text i of a batch draws with seed + i
    """

    max_new_tokens: Annotated[int, at_least(1)] = 200
    temperature: Annotated[float, at_least(0)] = 1.0
    top_k: Annotated[int, at_least(0)] = 0
    top_p: Annotated[float, within("(0, 1]")] = 1.0
    min_p: Annotated[float, within("[0, 1)")] = 0.0
    repetition_penalty: Annotated[float, within("[0.01, 100]")] = 1.0
    seed: int = 0


def generate(
    model: Model,
    prompts: Prompts,
    config: SamplingConfig,
    stop: int | None = None,
    cached: bool = True,
) -> list[list[int]]:
    """The new ids of each prompt. A text's neighbours in the batch change nothing in it.

    stop: the id that ends a text. cached: False computes everything anew for each token, which gives the same.
    ValueError: no prompt, an empty one, an id outside the vocabulary, a model in training mode.
    """
    texts = [[] for _ in prompts]
    for step in sample(DecodingState(model, prompts, stop, cached), config):
        for row, token in step:
            texts[row].append(token)
    return texts


def stream(
    model: Model, prompt: Sequence[int], config: SamplingConfig, stop: int | None = None, cached: bool = True
) -> Iterator[int]:
    """What `generate` returns for one prompt, id by id, as soon as each is drawn."""
    return (token for ((_, token),) in sample(DecodingState(model, [prompt], stop, cached), config))


def window(text: list[int], context_length: int) -> list[int]:
    """What is seen of a text: all of it, or its end, cut at a multiple of half of context_length."""
    half = (context_length + 1) // 2
    excess = max(0, len(text) - context_length)
    return text[-(-excess // half) * half :]


class DecodingState:
    """Texts that grow token by token, and what the model has computed of each one's window.

    The windows stand in one array, aligned at their ends and padded on the left. When the array is as wide as
    context_length, the longest window is full, and all are read again. The caches' arrays are made once.
    """

    def __init__(self, model: Model, prompts: Prompts, stop: int | None = None, cached: bool = True):
        if model.training:
            raise ValueError("the model is in training mode, where dropout acts: call model.eval() first")
        if not prompts:
            raise ValueError("no prompts: give at least one")
        for i, prompt in enumerate(prompts):
            if len(prompt) == 0:
                raise ValueError(f"prompt {i} is empty: give at least one token, as the end of a text before")
        largest = model.config.vocab_size - 1
        for token in [*chain.from_iterable(prompts), *([] if stop is None else [stop])]:
            if not 0 <= token <= largest:
                raise ValueError(f"id {token} is outside the vocabulary: the model's run from 0 to {largest}")
        self.model, self.stop = model, stop
        self.device = model.embedding.tokens.weight.device
        if isinstance(model, EncoderDecoder):
            source, self.source_mask = self.padded(prompts)
            with torch.no_grad():
                self.memory = model.encode(source, self.source_mask)  # (B, S, D)
            self.texts = [[model.config.start_id] for _ in prompts]
            sizes = self.memory.shape[:2]
        else:
            self.memory = None
            self.texts = [list(prompt) for prompt in prompts]
            sizes = (len(prompts),)
        self.caches = model.new_caches(*sizes) if cached else None

    @torch.no_grad()
    def next_logits(self) -> Tensor:
        """(B, V): of the token that follows each text."""
        context_length = self.model.config.context_length
        if self.caches is not None and 0 < self.caches.length < context_length:
            tokens = torch.tensor([[text[-1]] for text in self.texts], device=self.device)  # (B, 1)
            self.token_mask = torch.cat([self.token_mask, torch.ones_like(tokens, dtype=torch.bool)], dim=1)
        else:
            tokens, self.token_mask = self.padded([window(text, context_length) for text in self.texts])
            if self.caches is not None:
                self.caches.clear()
        if self.memory is None:
            features = self.model.features(tokens, self.token_mask, self.caches)
        else:
            features = self.model.features(
                tokens, self.memory, self.source_mask, self.token_mask, self.caches
            )
        return self.model.to_logits(features[:, -1])  # (B, V)

    def append(self, tokens: list[int]) -> None:
        """One more token a text, after a call of `next_logits`."""
        for text, token in zip(self.texts, tokens, strict=True):
            text.append(token)

    def select(self, rows: Tensor) -> None:
        """Text i becomes a copy of text rows[i]; there may be more or fewer of them than before."""
        self.texts = [list(self.texts[row]) for row in rows.tolist()]
        self.token_mask = self.token_mask[rows]
        if self.memory is not None:
            self.memory, self.source_mask = self.memory[rows], self.source_mask[rows]
        for cache in (self.caches or {}).values():
            cache.keys, cache.values = cache.keys[rows], cache.values[rows]

    def padded(self, texts: Prompts) -> tuple[Tensor, Tensor]:
        """tokens (B, T) with padding on the left, token_mask (B, T)."""
        width = max(map(len, texts))
        tokens = [[0] * (width - len(text)) + list(text) for text in texts]
        lengths = torch.tensor([len(text) for text in texts], device=self.device)
        token_mask = torch.arange(width, device=self.device) >= width - lengths[:, None]  # (B, T)
        return torch.tensor(tokens, device=self.device), token_mask


def sample(state: DecodingState, config: SamplingConfig) -> Iterator[list[tuple[int, int]]]:
    """Step by step (text, new token) of the texts that have not stopped. Ends when all have."""
    n_texts = len(state.texts)
    # One generator a text: what its neighbours draw, and whether they have stopped, does not move it on.
    generators = [torch.Generator().manual_seed(config.seed + i) for i in range(n_texts)]
    seen = torch.zeros(n_texts, state.model.config.vocab_size, dtype=torch.bool, device=state.device)
    for row, text in enumerate(state.texts):
        seen[row, text] = True
    running = list(range(n_texts))
    for _ in range(config.max_new_tokens):
        logits = penalise_repetition(state.next_logits(), seen, config.repetition_penalty)
        if config.temperature == 0:
            tokens = logits.argmax(dim=-1).tolist()
        else:
            drawn = zip(token_probabilities(logits, config).cpu(), generators, strict=True)
            tokens = [int(torch.multinomial(p, 1, generator=own)) for p, own in drawn]
        running = [row for row in running if tokens[row] != state.stop]
        if not running:
            return
        yield [(row, tokens[row]) for row in running]
        seen[range(n_texts), tokens] = True
        state.append(tokens)


def token_probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """logits (..., V) -> what tokens are drawn from, (..., V): temperature, then each filter that is set."""
    # The likeliest token's logit becomes 0, so that no temperature, however low, gives infinity.
    logits = (logits.double() - logits.double().amax(dim=-1, keepdim=True)) / config.temperature
    if config.top_k:
        logits = top_k_filter(logits, config.top_k)
    if config.top_p < 1:
        logits = top_p_filter(logits, config.top_p)
    if config.min_p:
        logits = min_p_filter(logits, config.min_p)
    return logits.softmax(dim=-1)


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """logits (B, V); seen (B, V), True = the text has this token; Keskar et al. 2019 (CTRL), section 4.1.

    The logit of a seen token is divided by the penalty. Where it is negative it is multiplied instead: division,
    which is what the paper writes, would make such a token likelier.
    """
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalised, logits)


def top_k_filter(logits: Tensor, k: int) -> Tensor:
    """-inf for all but the k largest logits (..., V), exactly k; of equal ones the lower ids stay.

    Fan et al. 2018, section 5.1.
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)[..., :k]  # (..., k)
    return keep(logits, order, torch.ones_like(order, dtype=torch.bool))


def top_p_filter(logits: Tensor, p: float) -> Tensor:
    """-inf for all but the fewest tokens whose probability together is at least p; lower ids first among equals.

    Nucleus sampling, Holtzman et al. 2020, section 3.1.
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)  # (..., V)
    falling = logits.softmax(dim=-1).gather(-1, order)  # (..., V)
    before = falling.cumsum(dim=-1) - falling  # (..., V): the probability of all likelier tokens
    return keep(logits, order, before < p)


def min_p_filter(logits: Tensor, p: float) -> Tensor:
    """-inf for all tokens less than p times as probable as the likeliest. Nguyen et al. 2024, section 3."""
    probabilities = logits.softmax(dim=-1)
    few = probabilities < p * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(few, float("-inf"))


def keep(logits: Tensor, ids: Tensor, kept: Tensor) -> Tensor:
    """logits (..., V), -inf except at those ids (..., n) where kept (..., n)."""
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
    cached: bool = True,
) -> list[tuple[list[int], float]]:
    """The best reply that is found for each prompt, and its score, by Wu et al. 2016, equation 14:

        score(Y) = log P(Y) / ((5 + |Y|) / 6)^length_penalty,    |Y| counting the stop id

    (no coverage penalty). After each step the `width` most probable unfinished replies go on; each of them is
    also tried with the stop id. A prompt's search ends at max_new_tokens, or as soon as none can score higher.
    ValueError as in `generate`, and where width or max_new_tokens is below 1 or length_penalty below 0.
    """
    if min(width, max_new_tokens) < 1 or length_penalty < 0:
        raise ValueError(f"{width=} and {max_new_tokens=} must be at least 1, {length_penalty=} at least 0")
    state = DecodingState(model, prompts, stop, cached)
    skip = [len(text) for text in state.texts]
    best = [([], float("-inf"))] * len(prompts)
    scores = torch.zeros(len(prompts), 1, dtype=torch.float64, device=state.device)  # (B, W), W = 1 at first

    def offer(log_probability: Tensor, length: int) -> None:
        """Compare the best of the replies (B, W) with the best so far of each prompt."""
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
        # Log-probabilities only fall, and no reply is divided by more than one of full length.
        bound = scores[:, 0] / ((5 + max_new_tokens) / 6) ** length_penalty
        if all(value >= most for (_, value), most in zip(best, bound.tolist(), strict=True)):
            return best
    offer(scores, max_new_tokens)
    return best
