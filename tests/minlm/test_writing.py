"""Text in, text out: streaming is writing, neighbours change nothing, and no part of a stop string is ever shown."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minlm import writing
from minlm.generate import SamplingConfig, beam_search
from minlm.lm import LMConfig
from minlm.seq2seq import Seq2SeqConfig
from minlm.tokenizer import BPETokenizer, CharTokenizer, train_bpe
from minlm.writing import cut, stream_text, write, write_best
from tests.minlm.test_lm import language_model
from tests.minlm.test_seq2seq import encoder_decoder

seeds = st.integers(0, 10**6)
BPE = train_bpe("aé€ aé€ 😀b 😀b", 262)  # bytes, a few merges of parts of characters, and the end
LETTERS = "aé€😀b"
stop_lists = st.lists(st.text(LETTERS + "\ufffd", min_size=1, max_size=3), max_size=3)


class Parrot(nn.Module):
    """Says the same ids whatever it is asked: a language model whose next text the test knows."""

    def __init__(self, ids, prompt_length):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=BPE.vocab_size, context_length=10_000)
        self.embedding = SimpleNamespace(tokens=SimpleNamespace(weight=torch.zeros(1)))
        self.ids, self.prompt_length = ids, prompt_length
        self.eval()

    def new_caches(self, batch):
        return SimpleNamespace(length=0, clear=lambda: None)

    def features(self, tokens, token_mask, caches):
        return (torch.ones_like(tokens) if token_mask is None else token_mask).cumsum(dim=1)

    def to_logits(self, n_seen):
        return 9.0 * nn.functional.one_hot(self.ids[n_seen - self.prompt_length], self.config.vocab_size)


def parrot(ids):
    return Parrot(torch.tensor([*ids, BPE.end_id]), len(BPE.encode("b")))


def first_complete(text, stops):
    """The text before the stop string that a reader, character by character, sees complete first."""
    for end in range(1, len(text) + 1):
        if over := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, over))]
    return text


greedy = SamplingConfig(max_new_tokens=200, temperature=0)


@given(st.text(LETTERS, max_size=12), stop_lists)
def test_a_text_ends_before_the_first_stop_and_streams_as_it_is(text, stops):
    """In bytes: characters arrive torn, and stop strings overlap each other and themselves."""
    for ids in (BPE.encode(text), list(text.encode())):
        model = parrot([BPE.ranks[bytes([i])] for i in ids] if ids == list(text.encode()) else ids)
        expected = first_complete(text, stops)
        assert write(model, BPE, ["b"], greedy, stops) == [expected]
        pieces = list(stream_text(model, BPE, "b", greedy, stops))
        assert "".join(pieces) == expected
        assert all(pieces)


@given(st.text(LETTERS, max_size=12))
def test_each_character_is_shown_as_soon_as_it_is_whole(text):
    model = parrot([BPE.ranks[bytes([b])] for b in text.encode()])
    assert list(stream_text(model, BPE, "b", greedy)) == list(text)
    assert list(stream_text(model, BPE, "b", greedy, ["no"])) == list(text)


def test_a_piece_is_held_back_only_while_it_may_begin_a_stop():
    model = parrot(BPE.encode("aab"))
    assert list(stream_text(model, BPE, "b", greedy, ["aé"])) == ["a", "ab"]


@given(st.text("ab", max_size=3), st.text("ab", max_size=2), st.sampled_from("é€😀"))
def test_no_part_of_a_stop_is_shown_while_its_last_character_is_torn(text, begin, last):
    model = parrot([BPE.ranks[bytes([b])] for b in f"{text}{begin}{last}a".encode()])
    assert "".join(stream_text(model, BPE, "b", greedy, [begin + last])) == text


@pytest.mark.parametrize(
    "stops, text", [([], "xabcy"), (["b", "abc"], "xa"), (["c", "bc"], "xa"), (["n"], "xabcy"), (["x"], "")]
)
def test_the_stop_that_is_complete_first_counts(stops, text):
    assert cut("xabcy", stops) == (text, text != "xabcy")


@given(st.text(LETTERS, min_size=20, max_size=60), stop_lists, st.booleans())
def test_the_work_of_a_token_does_not_grow_with_the_text(text, stops, streamed):
    """Each token is decoded once, and stop strings are sought in the last few characters only."""
    ids = [BPE.ranks[bytes([b])] for b in text.encode()]
    decoded, searched = [], []

    class Counting(BPETokenizer):
        def decode(self, ids):
            decoded.extend(ids)
            return super().decode(ids)

        def token_bytes(self, token):
            decoded.append(token)
            return super().token_bytes(token)

    def counted_cut(text, stops):
        searched.append(len(text))
        return cut(text, stops)

    counting = Counting(BPE.ranks, BPE.specials)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "cut", counted_cut)
        model = parrot(ids)
        if streamed:
            assert "".join(stream_text(model, counting, "b", greedy, stops)) == first_complete(text, stops)
        else:
            assert write(model, counting, ["b"], greedy, stops) == [first_complete(text, stops)]
    assert len(decoded) <= len(ids)
    assert max(searched) <= max(map(len, stops), default=1)


@given(st.lists(st.integers(0, 255), max_size=12), stop_lists)
def test_bytes_that_are_no_text_are_written_as_they_decode(some_bytes, stops):
    model = parrot([BPE.ranks[bytes([b])] for b in some_bytes])
    expected = first_complete(bytes(some_bytes).decode("utf-8", "replace"), stops)
    assert write(model, BPE, ["b"], greedy, stops) == [expected]
    assert "".join(stream_text(model, BPE, "b", greedy, stops)) == expected


CHARACTERS = CharTokenizer("ab \n", ("end", "pad", "start"))


def drawn_model(replies, seed):
    sizes = {"d_model": 8, "n_heads": 2, "n_layers": 1, "vocab_size": CHARACTERS.vocab_size}
    if replies:
        return encoder_decoder(Seq2SeqConfig(context_length=8, start_id=CHARACTERS.start_id, **sizes), seed)
    return language_model(LMConfig(context_length=6, positions="rotary", **sizes), seed)


prompts = st.lists(st.text("ab \n", min_size=1, max_size=8), min_size=1, max_size=3)
char_stops = st.lists(st.text("ab \n", min_size=1, max_size=3), max_size=2)


@given(st.booleans(), prompts, char_stops, st.sampled_from([0.0, 0.8, 1.5]), seeds)
def test_each_prompt_is_written_as_if_alone_and_as_it_streams(replies, prompts, stops, temperature, seed):
    model = drawn_model(replies, seed)
    config = SamplingConfig(max_new_tokens=12, temperature=temperature, seed=seed)
    texts = write(model, CHARACTERS, prompts, config, stops)
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        own = replace(config, seed=seed + i)
        assert write(model, CHARACTERS, [prompt], own, stops) == [text]
        assert "".join(stream_text(model, CHARACTERS, prompt, own, stops)) == text
        assert not any(stop in text for stop in stops)
        assert "<|endoftext|>" not in text


@given(st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_nothing_is_computed_once_each_text_has_its_stop(letters_before):
    """Texts "aaabaa..." whose stop comes after a drawn number of letters: the last one's is the last step."""

    class Counted(Parrot):
        def to_logits(self, n_seen):
            self.steps += 1
            rows = [self.ids[row, n - 1] for row, n in enumerate(n_seen.flatten())]
            return 9.0 * nn.functional.one_hot(torch.stack(rows), self.config.vocab_size)

    a, stop = BPE.encode("a")[0], BPE.encode("b")[0]
    ids = torch.full((len(letters_before), 30), a)
    ids[range(len(letters_before)), letters_before] = stop
    model = Counted(ids, 1)
    model.steps = 0
    written = write(model, BPE, ["a"] * len(letters_before), greedy, ["b"])
    assert written == ["a" * n for n in letters_before]
    assert model.steps == max(letters_before) + 1
    for row, text in enumerate(written):  # streamed, each on its own
        model.ids, model.steps = ids[row : row + 1], 0
        assert "".join(stream_text(model, BPE, "a", greedy, ["b"])) == text
        assert model.steps == len(text) + 1


@given(st.booleans(), prompts, seeds)
def test_the_best_text_is_the_beams(replies, prompts, seed):
    model = drawn_model(replies, seed)
    ids = [CHARACTERS.encode(prompt) for prompt in prompts]
    expected = [CHARACTERS.decode(best) for best, _ in beam_search(model, ids, 5, 3, CHARACTERS.end_id)]
    assert write_best(model, CHARACTERS, prompts, 5, 3) == expected


@pytest.mark.parametrize(
    "prompt, stops, message",
    [
        ("", [], "the prompt is empty: give at least one character"),
        ("a", ["b", ""], "a stop string is empty"),
        ("aé", [], r"character 'é' \(U\+00E9\) is not among the 4 characters"),
    ],
)
def test_prompts_and_stops_that_cannot_be_are_refused(prompt, stops, message):
    model, config = drawn_model(False, 0), SamplingConfig(max_new_tokens=2)
    with pytest.raises(ValueError, match=message):
        write(model, CHARACTERS, ["a", prompt], config, stops)
    with pytest.raises(ValueError, match=message):
        list(stream_text(model, CHARACTERS, prompt, config, stops))
    if not stops:
        with pytest.raises(ValueError, match=message):
            write_best(model, CHARACTERS, [prompt], 2, 2)
