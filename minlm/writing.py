"""Generation from text to text: prompts, stop strings and streaming around `minlm.generate`."""

import codecs
from collections.abc import Iterator, Sequence

from minlm.generate import DecodingState, Model, SamplingConfig, beam_search, sample
from minlm.tokenizer import Tokenizer


class GrowingText:
    """Text of the bytes of tokens, up to its first stop string, in pieces that no later token changes.

    An incomplete character is held back, and so is what may begin a stop string. The work per token does not grow with
    the text. Bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(self, stops: Sequence[str]):
        self.stops = stops
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held, self.stopped = "", False

    def add(self, token: bytes) -> str:
        """Return the piece that a token completes, "" if none."""
        if self.stopped:
            return ""
        text, self.stopped = cut(self.held + self.decoder.decode(token, final=not token), self.stops)
        n_held = 0 if self.stopped else max((begun(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def end(self) -> str:
        """Return the last piece, when no token follows."""
        return self.add(b"") + self.held


def write(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    config: SamplingConfig,
    stops: Sequence[str] = (),
) -> list[str]:
    """Return the text after each prompt (from an EncoderDecoder: the reply), up to its first stop string.

    ValueError for an empty stop string or prompt, and for a prompt with characters outside the vocabulary.
    """
    ids, growing = prompt_ids(tokenizer, prompts, stops), [GrowingText(stops) for _ in prompts]
    texts = [""] * len(prompts)
    for step in sample(DecodingState(model, ids, tokenizer.end_id), config):
        for row, token in step:
            texts[row] += growing[row].add(tokenizer.token_bytes(token))
        if all(growing[row].stopped for row, _ in step):
            break
    return [text + rest.end() for text, rest in zip(texts, growing, strict=True)]


def write_best(
    model: Model, tokenizer: Tokenizer, prompts: Sequence[str], max_new_tokens: int, width: int
) -> list[str]:
    """Return the text of beam search after each prompt, with `width` beams."""
    ids = prompt_ids(tokenizer, prompts)
    found = beam_search(model, ids, max_new_tokens, width, tokenizer.end_id)
    return [tokenizer.decode(best) for best, _ in found]


def stream_text(
    model: Model, tokenizer: Tokenizer, prompt: str, config: SamplingConfig, stops: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the text that `write` returns for one prompt, each piece as soon as it is complete (see GrowingText)."""
    ids, growing = prompt_ids(tokenizer, [prompt], stops), GrowingText(stops)
    for ((_, token),) in sample(DecodingState(model, ids, tokenizer.end_id), config):
        if piece := growing.add(tokenizer.token_bytes(token)):
            yield piece
        if growing.stopped:
            return
    if piece := growing.end():
        yield piece


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return the text before its first stop string and True; without a stop string, the text and False.

    The first is the one that is complete first; of several, the longest.
    """
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]  # (end, start)
    return (text[: min(found)[1]], True) if found else (text, False)


def begun(text: str, stop: str) -> int:
    """Count the characters at the end of the text that begin the stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def prompt_ids(tokenizer: Tokenizer, prompts: Sequence[str], stops: Sequence[str] = ()) -> list[list[int]]:
    """Return the ids of each prompt. ValueError for an empty prompt or stop string."""
    if "" in stops:
        raise ValueError("a stop string is empty: it would end every text; leave it out")
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    if [] in ids:
        raise ValueError("the prompt is empty: give at least one character")
    return ids
