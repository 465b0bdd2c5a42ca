import gzip
import pickle
import random
import re
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minclip.data import clip_bpe, wordpiece
from minclip.data.clip_bpe import ClipBPE
from minclip.data.tokenizer import encode_batch, load_tokenizer
from minclip.data.wordpiece import SPECIAL_TOKENS, WordPiece
from minclip.pretrained.vocabulary import save_tokenizer
from minlm.tokenizer import BPETokenizer, CharTokenizer
from tests.minclip.data.vocabularies import texts

CONTROL_STRINGS = [*SPECIAL_TOKENS, "<|startoftext|>", "<|endoftext|>"]


@given(texts, st.lists(st.sampled_from(CONTROL_STRINGS)), st.integers(0, 99))
def test_no_text_gives_a_control_id(small, pairs_bpe, text, controls, seed):
    parts = random.Random(seed).sample([text, *controls], 1 + len(controls))
    for text in ("".join(parts), " ".join(parts)):
        ids = small.encode(text)
        mask_id = small.tokens.index("[MASK]")
        assert not {small.pad_id, small.start_id, small.end_id, mask_id} & set(ids)
        assert all(0 <= i < small.vocab_size for i in ids)
        assert all(0 <= i < pairs_bpe.start_id for i in pairs_bpe.encode(text))


captions = st.lists(st.text("ab dé犬!", max_size=30), min_size=1, max_size=5)


@given(captions, st.integers(3, 24), st.sampled_from([0, 1]))
def test_batch_rows_are_start_ids_end_pads(small, pairs_bpe, texts, context_length, which):
    tokenizer = (small, pairs_bpe)[which]
    tokens, token_mask, n_truncated = encode_batch(tokenizer, texts, context_length)
    assert tokens.dtype == torch.int64
    assert token_mask.dtype == torch.bool
    rows = []
    for text, row, mask in zip(texts, tokens, token_mask, strict=True):
        ids = tokenizer.encode(text)
        rows.append([tokenizer.start_id, *ids[: context_length - 2], tokenizer.end_id])
        assert row[mask].tolist() == rows[-1]
        assert mask.tolist() == [True] * len(rows[-1]) + [False] * (tokens.shape[1] - len(rows[-1]))
        assert (row[~mask] == tokenizer.pad_id).all()
        assert (row == tokenizer.end_id).sum() == 1
    assert tokens.shape[1] == max(map(len, rows)) <= context_length
    assert n_truncated == sum(len(tokenizer.encode(text)) > context_length - 2 for text in texts)


@given(captions, st.integers(3, 24))
def test_without_a_start_rows_are_ids_and_end(byte_level, texts, context_length):
    """GPT-2's vocabulary has an end of text and no other control token: what is masked repeats it."""
    tokens, token_mask, n_truncated = encode_batch(byte_level, texts, context_length)
    for text, row, mask in zip(texts, tokens, token_mask, strict=True):
        ids = [*byte_level.encode(text)[: context_length - 1], byte_level.end_id]
        assert row.tolist() == ids + [byte_level.end_id] * (len(row) - len(ids))
        assert mask.tolist() == [True] * len(ids) + [False] * (len(row) - len(ids))
    assert n_truncated == sum(len(byte_level.encode(text)) > context_length - 1 for text in texts)


@given(captions, st.integers(3, 24))
def test_a_longer_neighbour_changes_nothing_but_pads(small, texts, context_length):
    tokens, token_mask, _ = encode_batch(small, texts, context_length)
    longer, longer_mask, _ = encode_batch(small, [*texts, "a " * 30], context_length)
    width = tokens.shape[1]
    assert torch.equal(longer[:-1, :width], tokens)
    assert torch.equal(longer_mask[:-1, :width], token_mask)
    assert not longer_mask[:-1, width:].any()


def test_truncation_counts_texts_and_keeps_the_end(small):
    exact, longer = "a a a", "a a a a"
    tokens, _, n_truncated = encode_batch(small, [exact, longer, longer, ""], 5)
    assert n_truncated == 2
    assert torch.equal(tokens[0], tokens[1])
    assert tokens[:3, -1].tolist() == [small.end_id] * 3
    assert tokens[3].tolist() == [small.start_id, small.end_id, *[small.pad_id] * 3]


@pytest.mark.parametrize(
    "texts, context_length, message",
    [
        (["a"], 2, r"context_length 2 is below 3: give room for start, one token and end"),
        ([], 8, r"texts is \[\]: give a list of at least one string"),
        ("a dog", 8, r"texts is 'a dog': give a list of at least one string"),
        (["a", float("nan")], 8, r"texts\[1\] is nan, not a string: remove the row or correct its caption"),
    ],
)
def test_batch_errors(small, texts, context_length, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        encode_batch(small, texts, context_length)


@pytest.mark.parametrize("form", ["vocab.txt", "merges.txt", "merges.gz", "tokenizer_config.json"])
@given(
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    kept=st.floats(0, 1),
)
def test_damaged_vocabularies_are_read_or_one_line(small, pairs_bpe, tmp_path_factory, form, places, kept):
    folder = tmp_path_factory.mktemp("damaged")
    pairs = pairs_bpe.merges[:3] if form.startswith("merges") else []
    path = folder / form
    with mock.patch.object(clip_bpe, "N_MERGES", 3):
        if pairs:
            data = b"#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs).encode()
            path.write_bytes(gzip.compress(data) if form.endswith("gz") else data)
        else:
            WordPiece(small.tokens, lower_case=False).save(folder)
        data = bytearray(path.read_bytes())
        for place, byte in places:
            data[int(len(data) * place)] = byte
        path.write_bytes(data[: round(len(data) * kept)])
        try:
            assert load_tokenizer(path if pairs else folder).vocab_size > 0
        except ValueError as error:
            assert str(folder) in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


def test_gpt2s_files_are_known_by_their_content(byte_level, small, tmp_path):
    """A run's own file, Hugging Face's pair beside others, OpenAI's pair; CLIP's merges have the same name."""
    save_tokenizer(byte_level, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} > {"vocab.json", "merges.txt"}
    folder = tmp_path / "openai"
    folder.mkdir()
    for theirs, name in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        (folder / name).write_bytes((tmp_path / "run" / theirs).read_bytes())
    (tmp_path / "run" / "minlm-tokenizer.json").rename(tmp_path / "minlm-tokenizer.json")
    pair = [tmp_path / "run" / name for name in ("vocab.json", "merges.txt")]
    for path in (tmp_path, tmp_path / "run", folder, *folder.iterdir(), *pair):
        loaded = load_tokenizer(path)
        assert isinstance(loaded, BPETokenizer)
        assert loaded.digest == byte_level.digest
    CharTokenizer("ab").save(tmp_path / "characters")
    with pytest.raises(
        ValueError, match="characters has no end of text, at which captions are pooled: give GPT-2's files"
    ):
        load_tokenizer(tmp_path / "characters")


def test_clips_merges_beside_its_ids_are_clips(pairs_bpe, tmp_path):
    save_tokenizer(pairs_bpe, tmp_path)
    assert (tmp_path / "vocab.json").is_file()
    for path in (tmp_path, tmp_path / "merges.txt"):
        assert load_tokenizer(path).digest == pairs_bpe.digest


def test_gpt2s_published_files(data_root):
    tokenizer = load_tokenizer(data_root / "vocab" / "encoder.json")
    assert (tokenizer.vocab_size, tokenizer.end_id) == (50257, 50256)
    assert tokenizer.encode("Hello world") == [15496, 995]


def test_tokenizers_travel_to_workers(small, pairs_bpe, byte_level):
    for tokenizer in (small, pairs_bpe, byte_level):
        there = pickle.loads(pickle.dumps(tokenizer))
        assert there.encode("a dog runs") == tokenizer.encode("a dog runs")
        assert there.digest == tokenizer.digest


def test_the_cache_stays_small_and_changes_nothing(small, pairs_bpe, monkeypatch):
    words = ["a", "dog", "runs", "a", "man", "dogs", "the", "dog"]
    expected = [(small.encode(word), pairs_bpe.encode(word)) for word in words]
    monkeypatch.setattr(wordpiece, "CACHE_LIMIT", 2)
    monkeypatch.setattr(clip_bpe, "CACHE_LIMIT", 2)
    small._cache.clear()
    pairs_bpe._cache.clear()
    for word, ids in zip(words, expected, strict=True):
        assert (small.encode(word), pairs_bpe.encode(word)) == ids
        assert len(small._cache) <= 2
        assert len(pairs_bpe._cache) <= 2
    small.encode("dog").append(-1)
    assert -1 not in small.encode("dog")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r" is empty: fetch it again"),
        (b"\n \n", r" is empty: fetch it again"),
        (b"\xff\xfe", r" is damaged \('utf-8' codec can't decode .*\): fetch it again"),
        (gzip.compress(b"#version\n" * 99)[:-12], r" is damaged \(.*\): fetch it again"),
        (b"\x1f\x8bnot gzip", r" is damaged \(.*\): fetch it again"),
        (b"#version: 0.2\na b\nc\n", r": line 3 is 'c', not two symbols and a space"),
        (b"#version: 0.2\na b\n", r" has no merge with </w>: another model's merges \(GPT-2's\?\)"),
        (
            b'{"a": 1}',
            r" is damaged or not a run's tokenizer \(.*\): give a vocab.txt, or the copy in .* step-\* folder",
        ),
        (
            b"a dog",
            r" starts with 'a dog': give a WordPiece list \(one token per line, with \[CLS\]\) "
            r"or CLIP's merges \(#version in the first line\)",
        ),
    ],
)
def test_damaged_files(content, message, tmp_path):
    path = tmp_path / "vocabulary"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}{message}$"):
        load_tokenizer(path)


def test_missing_and_ambiguous_files(small, pairs_bpe, tmp_path):
    names = r"vocab\.txt, merges\.txt, bpe_simple_vocab_16e6\.txt\.gz"
    with pytest.raises(
        ValueError, match=rf"nowhere is missing: give a vocabulary file or its folder \({names}\)$"
    ):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=rf" has 0 of {names}: keep exactly one$"):
        load_tokenizer(tmp_path)
    small.save(tmp_path)
    with pytest.raises(
        ValueError, match=r"vocab\.txt starts with '\[PAD\]', not with #version: give a merges file"
    ):
        ClipBPE.load(tmp_path / "vocab.txt")
    pairs_bpe.save(tmp_path)
    with pytest.raises(ValueError, match=rf" has 2 of {names}: keep exactly one$"):
        load_tokenizer(tmp_path)
    assert WordPiece.load(tmp_path).tokens == small.tokens
    assert ClipBPE.load(tmp_path).tokens == pairs_bpe.tokens


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_decoding_ids_of_another_tokenizer(small, pairs_bpe, wrong):
    for tokenizer in (small, pairs_bpe):
        last = tokenizer.vocab_size - 1
        with pytest.raises(
            ValueError, match=rf"^token id {wrong} is outside 0\.\.{last}: use the tokenizer that made it$"
        ):
            tokenizer.decode([wrong])
