"""Text in, text out: prompts and stop strings around `minlm.generate`, which knows ids only."""

import codecs
from collections.abc import Iterator, Sequence

from minlm.generate import DecodingState, Model, SamplingConfig, beam_search, sample, stream
from minlm.tokenizer import BPETokenizer, CharTokenizer

Tokenizer = CharTokenizer | BPETokenizer


class GrowingText:
    """The text of tokens that come one by one, up to its first stop string, in pieces that no later token changes.

    A character of which bytes are missing is held back, and so is what may be the beginning of a stop string: the work
    per token does not grow with the text. Bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]):
        self.tokenizer, self.stops = tokenizer, stops
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held, self.stopped = "", False

    def add(self, token: int) -> str:
        """The piece that the token settles, "" while there is none."""
        return self._settle(self.decoder.decode(self.tokenizer.token_bytes(token)))

    def end(self) -> str:
        """The last piece, when no token follows."""
        return self._settle(self.decoder.decode(b"", final=True)) + self.held

    def _settle(self, new: str) -> str:
        if self.stopped:
            return ""
        text, self.stopped = cut(self.held + new, self.stops)
        n_held = 0 if self.stopped else max((begun(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def write(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    config: SamplingConfig,
    stops: Sequence[str] = (),
) -> list[str]:
    """What follows each prompt (from an EncoderDecoder: the reply to it), up to its first stop string.

    ValueError: an empty stop string or prompt, a prompt with characters outside the vocabulary.
    """
    check_stops(stops)
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    growing = [GrowingText(tokenizer, stops) for _ in prompts]
    pieces = [[] for _ in prompts]
    for step in sample(DecodingState(model, ids, tokenizer.end_id), config):
        for row, token in step:
            pieces[row].append(growing[row].add(token))
        if all(growing[row].stopped for row, _ in step):
            break
    return ["".join([*row, text.end()]) for row, text in zip(pieces, growing, strict=True)]


def write_best(
    model: Model, tokenizer: Tokenizer, prompts: Sequence[str], max_new_tokens: int, width: int
) -> list[str]:
    """As `write`, but the likeliest text that a beam of `width` finds instead of a drawn one."""
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    return [
        tokenizer.decode(best) for best, _ in beam_search(model, ids, max_new_tokens, width, tokenizer.end_id)
    ]


def stream_text(
    model: Model, tokenizer: Tokenizer, prompt: str, config: SamplingConfig, stops: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the text that `write` returns for one prompt, each piece as soon as it is settled (see GrowingText)."""
    check_stops(stops)
    growing = GrowingText(tokenizer, stops)
    for token in stream(model, prompt_ids(tokenizer, prompt), config, tokenizer.end_id):
        if piece := growing.add(token):
            yield piece
        if growing.stopped:
            return
    if piece := growing.end():
        yield piece


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the stop string that is complete first (the longest of such), and whether there is one."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]  # (end, start)
    return (text[: min(found)[1]], True) if found else (text, False)


def begun(text: str, stop: str) -> int:
    """Number of characters at the end of the text that are the beginning of the stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def check_stops(stops: Sequence[str]) -> None:
    if "" in stops:
        raise ValueError("a stop string is empty: it would end every text before it begins")


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a prompt; ValueError where it has none."""
    ids = tokenizer.encode(prompt)
    if not ids:
        raise ValueError("the prompt is empty: give at least one character to begin with")
    return ids
