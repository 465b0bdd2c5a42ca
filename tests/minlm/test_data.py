"""Windows and pairs: disjoint, complete, never across a split; files that hold the text's ids and nothing else."""

import hashlib
import re
import tracemalloc
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minlm.data import (
    PIECE,
    ReplyDataset,
    TextFileConfig,
    TokenizedDataset,
    encode_splits,
    encoded,
    fit_context,
    pieces,
    split_scenes,
    text_size,
    texts_digest,
    token_counts,
)
from minlm.screenplay.source import ScreenplayConfig, write_scenes
from minlm.tokenizer import CharTokenizer, train_bpe
from minlm.training.batches import Batches

seeds = st.integers(0, 10**6)
contexts = st.integers(1, 7)
CORPUS = "a 'll b's 'll  ab\n\n  ab \n ba'll ab 11 'es\t\tab  \n" * 3
BPE = train_bpe(CORPUS, 273)
BYTES = train_bpe("", 257)


def places(context_length: int, more: int, seed: int) -> TokenizedDataset:
    """A split whose ids are their own places."""
    return TokenizedDataset(np.arange(context_length + 1 + more), context_length, seed)


@given(contexts, st.integers(0, 60), seeds, st.integers(0, 9), st.integers(1, 3))
def test_the_windows_of_an_epoch_are_disjoint_and_their_targets_follow(
    context_length, more, seed, epoch, batch_size
):
    dataset = places(context_length, more, seed)
    n_ids, n_windows = len(dataset.ids), len(dataset)
    whole = dataset.collate([dataset[epoch, i] for i in range(n_windows)])
    tokens = whole["tokens"]
    assert tokens.shape == (n_windows, context_length)
    assert torch.equal(whole["targets"], tokens + 1)
    assert len(tokens.unique()) == tokens.numel()
    assert whole["targets"].max() < n_ids
    assert n_ids - 1 - tokens.numel() < 2 * context_length  # no more windows would fit behind every phase
    if batch_size > n_windows:
        return
    batches = Batches(dataset, batch_size, seed)
    steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
    keys = [key for step in steps for key in batches.keys(step)]
    assert len(keys) == n_windows // batch_size * batch_size
    assert len(set(keys)) == len(keys)
    assert set(keys) <= {(epoch, i) for i in range(n_windows)}


@given(st.integers(1, 4), st.integers(0, 16), seeds)
def test_over_the_epochs_windows_begin_wherever_one_fits(context_length, more, seed):
    dataset = places(context_length, more, seed)
    starts = {int(dataset[epoch, i][0]) for epoch in range(400) for i in range(len(dataset))}
    assert starts == set(range(len(dataset.ids) - context_length))


def test_the_phase_is_drawn_from_the_seed_and_the_epoch():
    phases = [[places(9, 100, seed).phase(epoch) for epoch in range(20)] for seed in (1, 1, 2)]
    assert phases[0] == phases[1] != phases[2]
    assert len(set(phases[0])) > 5


def test_a_split_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="5 tokens do not fill a window of context_length=5"):
        TokenizedDataset(np.arange(5), 5, 0)


texts = st.text(alphabet="ab é€😀\n", min_size=2, max_size=80)


@given(texts, texts, st.booleans())
def test_the_files_hold_the_ids_and_are_not_written_twice(train, validation, characters):
    tokenizer = CharTokenizer(train + validation) if characters else train_bpe("ab é€😀", 257)

    class Untouched:
        vocab_size = tokenizer.vocab_size

        def encode(self, text):
            raise AssertionError("resumed runs read the ids that are there")

    given_texts = {"train": train, "validation": validation}
    with TemporaryDirectory() as name:
        for encoder in (tokenizer, Untouched()):
            splits = encode_splits(given_texts, encoder, Path(name))
            for split, text in given_texts.items():
                assert isinstance(splits[split], np.memmap)
                assert splits[split].tolist() == tokenizer.encode(text)
                assert tokenizer.decode(splits[split].tolist()) == text
        assert {path.name for path in Path(name).iterdir()} == {"train.ids", "validation.ids"}


# What the vocabulary has merged, and everything that one of the engines takes for white space.
BLOCKS = [
    *"ab' \n1",
    *"\t\r\v\f\x1c\x1f\x85\xa0\u2003\u2028\u200b",
    "ab",
    "ba",
    "'ll",
    "'s",
    "  ",
    "\n\n",
    " \n",
    "é€",
]
PIECES = st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=60).map("".join)


@given(PIECES, st.integers(1, 9), st.booleans())
def test_a_text_encoded_in_pieces_has_the_ids_of_the_whole(text, size, characters):
    """A vocabulary with many merges of white space and words, so that a wrong cut shows."""
    tokenizer = CharTokenizer(text + "x") if characters else BPE
    parts = list(pieces(text, size))
    assert "".join(parts) == text
    found = [i for part in encoded(text, tokenizer, size) for i in part.tolist()]
    assert found == tokenizer.encode(text), f"cut into {parts}"


@given(st.lists(st.text("abc'é1.", min_size=1, max_size=9), min_size=1), st.integers(1, 40))
def test_pieces_are_no_longer_than_asked_but_for_a_word(words, size):
    text = " ".join(words)
    parts = list(pieces(text, size))
    assert all(len(part) <= size + 9 for part in parts)
    assert len(parts) <= -(-len(text) // size)


@given(PIECES, st.booleans())
def test_characters_and_bytes_are_counted_without_decoding(text, characters):
    tokenizer = CharTokenizer(text) if characters else BPE
    ids = np.array(tokenizer.encode(text), dtype=np.uint32)
    assert text_size(ids, tokenizer) == (len(text), len(text.encode()))


@given(st.text("aé€😀", min_size=1, max_size=9), st.data())
def test_a_character_counts_where_it_begins(text, data):
    """Of a text in single bytes, from any of them on."""
    ids = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)
    start = data.draw(st.integers(0, len(ids)))
    first, rest = text_size(ids[:start], BYTES), text_size(ids[start:], BYTES)
    assert (first[0] + rest[0], first[1] + rest[1]) == (len(text), len(ids))
    whole = text.encode()[start:].decode("utf-8", "ignore")
    assert rest == (len(whole), len(ids) - start)


@given(st.lists(PIECES, min_size=1, max_size=3))
def test_the_digest_is_that_of_the_texts_joined(some):
    texts = {str(i): text for i, text in enumerate(some)}
    assert texts_digest(texts) == hashlib.sha256("\0".join(some).encode()).hexdigest()


@pytest.mark.parametrize("n_ids", [0, 1, PIECE, PIECE + 1])
def test_ids_are_counted_in_every_piece(n_ids):
    ids = np.arange(n_ids, dtype=np.uint32) % 7
    assert token_counts(ids, 9).tolist() == [np.count_nonzero(ids == i) for i in range(9)]


def test_never_are_all_ids_held_at_once(tmp_path):
    """A text of two million characters in pieces: only one piece's ids are a list at a time."""
    text = "a bc def " * 230_000
    tokenizer = CharTokenizer(text)
    tracemalloc.start()
    try:
        encode_splits({"train": text}, tokenizer, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(text), f"{peak / len(text):.1f} bytes of memory per character"


def test_ids_that_cannot_be_written_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="is not among the 3 characters"):
        encode_splits({"train": "abcd"}, CharTokenizer("abc"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"is not a token file \(0 bytes\): delete it to rebuild it"),
        (b"\0" * 7, r"is not a token file \(7 bytes\)"),
        (b"\0" * 8 + b"\3\0\0\0", "has id 3, but the vocabulary has 3 ids: delete it to rebuild it"),
    ],
)
def test_ids_that_are_none_are_refused(tmp_path, content, message):
    (tmp_path / "train.ids").write_bytes(content)
    with pytest.raises(ValueError, match=f"train.ids {message}"):
        encode_splits({"train": "abcabc"}, CharTokenizer("abc"), tmp_path)


@given(st.integers(2, 40), st.integers(2, 40), contexts, seeds)
def test_no_window_reaches_across_the_splits(n_train, n_validation, context_length, seed):
    tokenizer = CharTokenizer("abcxyz")
    rng = np.random.default_rng(seed)
    texts = {
        "train": "".join(rng.choice(list("abc"), n_train)),
        "validation": "".join(rng.choice(list("xyz"), n_validation)),
    }
    with TemporaryDirectory() as name, redirect_stdout(StringIO()):
        splits = encode_splits(texts, tokenizer, Path(name))
        context_length = fit_context(context_length, splits)
        for split, text in texts.items():
            dataset = TokenizedDataset(splits[split], context_length, seed)
            for epoch in range(5):
                for i in range(len(dataset)):
                    assert tokenizer.decode(dataset[epoch, i].tolist()) in text


@given(st.integers(1, 50), st.lists(st.integers(2, 50), min_size=1, max_size=3))
def test_a_context_longer_than_a_split_is_shortened(context_length, lengths):
    splits = {f"split{i}": np.arange(n) for i, n in enumerate(lengths)}
    fitted = fit_context(context_length, splits)
    assert fitted == min(context_length, min(lengths) - 1)
    assert all(len(TokenizedDataset(ids, fitted, 0)) for ids in splits.values())


def test_a_split_of_one_token_is_refused():
    with pytest.raises(ValueError, match="split b has 1 tokens, at least 2 are needed"):
        fit_context(4, {"a": np.arange(9), "b": np.arange(1)})


scene_lists = st.lists(st.integers(0, 30), min_size=2, max_size=12).map(
    lambda sizes: [f"<{i}{'x' * size}>" for i, size in enumerate(sizes)]
)


@given(scene_lists, st.floats(0.01, 0.6), st.floats(0.01, 0.6), seeds)
def test_scenes_are_held_out_whole_until_the_fraction_is_reached(scenes, fraction, other, seed):
    found, total = {}, sum(map(len, scenes))
    for share in sorted([fraction, other]):
        wanted, longest = share * total, max(map(len, scenes))
        splits = split_scenes(scenes, share, seed)
        if splits is None:  # only where one scene may be all that is wanted, or half of what should be left
            assert longest > min(wanted, (total - wanted) / 2)
            continue
        train, held_out = (re.findall("<.*?>", splits[name]) for name in ("train", "validation"))
        assert [s for s in scenes if s in train] == train
        assert [s for s in scenes if s in held_out] == held_out
        assert sorted(train + held_out) == sorted(scenes)
        size = sum(map(len, held_out))
        assert size >= wanted > size - max(map(len, held_out))
        assert size <= 2 * wanted
        assert total - size >= (total - wanted) / 2
        found[share] = set(held_out)
    if len(found) == 2:
        assert found[min(fraction, other)] <= found[max(fraction, other)]


def test_the_seed_alone_draws_the_scenes():
    scenes = [f"<{i}>" for i in range(30)]
    first, again, other = (split_scenes(scenes, 0.3, seed)["validation"] for seed in (3, 3, 4))
    assert first == again != other
    shouted = split_scenes([scene.replace("<", "!") for scene in scenes], 0.3, 3)["validation"]
    assert shouted == first.replace("<", "!")


@given(st.text(alphabet="ab \n", min_size=20, max_size=90), st.floats(0.11, 0.89))
def test_the_end_of_a_plain_text_is_held_out(text, fraction):
    with TemporaryDirectory() as name:
        path = Path(name) / "text.txt"
        path.write_text(text, encoding="utf-8")
        splits = TextFileConfig(path=str(path), validation_fraction=fraction).read()
    assert splits["train"] + splits["validation"] == text
    assert abs(len(splits["validation"]) - fraction * len(text)) <= 1


def test_whole_scenes_of_a_script_are_held_out(tmp_path):
    scenes = [text for text, _ in write_scenes(ScreenplayConfig(n_scenes=9))]
    (tmp_path / "script.txt").write_text("".join(scenes), encoding="cp1252")
    config = TextFileConfig(path=str(tmp_path / "script.txt"), split="scenes", validation_fraction=0.3)
    splits = config.read()
    where = [[name for name, text in splits.items() if scene in text] for scene in scenes]
    assert all(len(names) == 1 for names in where)
    assert {name for names in where for name in names} == {"train", "validation"}
    assert sum(map(len, splits.values())) == len("".join(scenes)) + 1  # a line end behind the last one


TURNS = "".join(f"ANNA\nHow many doors has number {i}?\n\nROD\nThere are {i}.\n\n" for i in range(40))


@pytest.mark.parametrize(
    "text",
    [
        "nobody says a word " * 20,
        TURNS,
        f"INT. A - DAY\n\n{TURNS}INT. B - DAY\n\n{TURNS}INT. C - DAY\n\n{TURNS}EXT. D - DAY\n\n{TURNS}",
    ],
    ids=["no script", "no headings", "four long scenes"],
)
def test_a_text_that_has_no_scenes_for_the_fraction_is_split_at_its_end(tmp_path, capsys, text):
    (tmp_path / "text.txt").write_text(text)
    splits = TextFileConfig(path=str(tmp_path / "text.txt"), split="scenes").read()
    assert splits["train"] + splits["validation"] == text
    assert abs(len(splits["validation"]) - 0.1 * len(text)) <= 1
    said = capsys.readouterr().err
    assert "text.txt cannot be split into 90% and 10%: its end is held out instead" in said
    TextFileConfig(path=str(tmp_path / "text.txt"), split="end").read()
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "text, options, message",
    [
        (None, {}, r"no text to learn from: .* --data.path FILE"),
        (None, {"path": "nowhere.txt"}, "nowhere.txt"),
        ("", {}, "split train has 0 characters"),
        ("ab", {}, "split train has 1 characters"),
        ("abcde", {"validation_fraction": 0.2}, "split validation has 1 characters"),
        ("a", {"split": "scenes"}, "split train has 0 characters"),
    ],
)
def test_texts_that_cannot_be_split_are_refused(tmp_path, text, options, message):
    if text is not None:
        (tmp_path / "text.txt").write_text(text)
        options = options | {"path": str(tmp_path / "text.txt")}
    with pytest.raises(ValueError, match=message) as error:
        TextFileConfig(**options).read()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_the_fraction_lies_between_none_and_all(fraction):
    with pytest.raises(ValueError, match=r"validation_fraction=.* must be in"):
        TextFileConfig(validation_fraction=fraction)


pairs_of_lines = st.lists(st.tuples(*[st.text("ab ", min_size=1, max_size=9)] * 2), min_size=1, max_size=7)


@given(pairs_of_lines, st.integers(2, 12), st.integers(1, 4))
def test_replies_begin_and_end_and_stand_beside_their_lines(pairs, length, batch_size):
    tokenizer = CharTokenizer("ab ", ("end", "pad", "start"))
    dataset = ReplyDataset(pairs, tokenizer, length)
    told = []
    for batch in dataset.batches(batch_size):
        assert batch["source"].shape == batch["source_mask"].shape
        assert batch["tokens"].shape == batch["targets"].shape == batch["token_mask"].shape
        for row in range(len(batch["source"])):
            real = {name: value[row] for name, value in batch.items()}
            source = real["source"][real["source_mask"]].tolist()
            tokens, targets = (real[name][real["token_mask"]].tolist() for name in ("tokens", "targets"))
            assert tokens[0] == tokenizer.start_id
            assert tokens[1:] == targets[:-1]
            assert targets[-1] == tokenizer.end_id
            for name, mask in (("source", "source_mask"), ("targets", "token_mask")):
                n_real = int(real[mask].sum())
                assert real[mask][:n_real].all()  # padding stands on the right
                assert (real[name][n_real:] == tokenizer.pad_id).all()
            told.append((tokenizer.decode(source), tokenizer.decode(targets[:-1])))
    assert told == [(line[:length], reply[: length - 1]) for line, reply in pairs]
    assert dataset.n_cut == sum(cut != whole for cut, whole in zip(told, pairs, strict=True))
    assert len(dataset) == len(pairs)
    assert dataset[5, 0] == dataset.pairs[0]


def test_a_split_without_a_reply_is_refused():
    with pytest.raises(ValueError, match="no reply in this split"):
        ReplyDataset([], CharTokenizer("a", ("end", "pad", "start")), 5)
