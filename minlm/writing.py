"""Text in, text out: prompts and stop strings around `minlm.generate`, which knows ids only."""

from collections.abc import Iterator, Sequence

from minlm.generate import Model, SamplingConfig, beam_search, generate, stream
from minlm.tokenizer import BPETokenizer, CharTokenizer

Tokenizer = CharTokenizer | BPETokenizer
TORN = "\ufffd"  # how bytes that are not a whole character, or not yet, are decoded


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
    complete = (lambda text: cut(tokenizer.decode(text), stops)[1]) if stops else None
    texts = generate(model, ids, config, tokenizer.end_id, complete=complete)
    return [cut(tokenizer.decode(text), stops)[0] for text in texts]


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
    """What `write` returns for one prompt, piece by piece, as soon as each is settled.

    A piece is held back while it may turn out the beginning of a stop string, or of a character of several bytes.
    """
    check_stops(stops)
    ids, text, given = [], "", 0
    for token in stream(model, prompt_ids(tokenizer, prompt), config, tokenizer.end_id):
        ids.append(token)
        text, stopped = cut(tokenizer.decode(ids), stops)
        settled = len(text) if stopped else len(text) - max(unsettled(text, stop) for stop in ("", *stops))
        if settled > given:
            yield text[given:settled]
            given = settled
        if stopped:
            return
    if given < len(text):
        yield text[given:]


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the stop string that is complete first (the longest of such), and whether there is one."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]  # (end, start)
    return (text[: min(found)[1]], True) if found else (text, False)


def unsettled(text: str, stop: str) -> int:
    """How many characters at the end may be gone once more is known: torn ones, or the beginning of `stop`."""
    whole = text.rstrip(TORN)
    begun = (n for n in range(min(len(stop) - 1, len(whole)), 0, -1) if whole.endswith(stop[:n]))
    return len(text) - len(whole) + next(begun, 0)


def check_stops(stops: Sequence[str]) -> None:
    if "" in stops:
        raise ValueError("a stop string is empty: it would end every text before it begins")


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a prompt; ValueError where it has none."""
    ids = tokenizer.encode(prompt)
    if not ids:
        raise ValueError("the prompt is empty: give at least one character to begin with")
    return ids
