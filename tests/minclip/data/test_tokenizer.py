import gzip
import hashlib
import itertools
import json
import pickle
import random
import re
import tracemalloc
from collections import Counter
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minclip.data.tokenizer
from minclip.data import clip_bpe
from minclip.data.clip_bpe import ClipBPE, merge_pair
from minclip.data.tokenizer import (
    SPECIAL_TOKENS,
    WordPiece,
    count_words,
    encode_batch,
    learn_pieces,
    load_tokenizer,
    remove_case,
    remove_controls,
    split_words,
)
from minclip.pretrained.vocabulary import save_tokenizer
from minlm.tokenizer import BPETokenizer, CharTokenizer, train_bpe
from tests.minclip.data.test_clip_bpe import made_up_merges, texts

CORPUS = [
    "A dog runs.",
    "A dog is running in the grass",
    "Two dogs run, a man watches the dogs",
    "",
    "naïve 犬",
]
CONTROL_STRINGS = [*SPECIAL_TOKENS, "<|startoftext|>", "<|endoftext|>"]


@pytest.fixture(scope="module")
def small() -> WordPiece:
    return WordPiece.train(CORPUS, 90)


@pytest.fixture(scope="module")
def pairs_bpe() -> ClipBPE:
    return ClipBPE(made_up_merges())


@pytest.fixture(scope="module")
def byte_level() -> BPETokenizer:
    return train_bpe(" ".join(CORPUS) * 3, 270)


@pytest.fixture(scope="module")
def bert(data_root) -> WordPiece:
    return WordPiece.load(data_root / "vocab" / "bert-base-uncased-vocab.txt")


# --- how BERT cuts a text into words


@pytest.mark.parametrize(
    "text, words",
    [
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("ÀÉÎõü\u0327 Ångström", ["aeiou", "angstrom"]),
        ("don't $5 a_b ^x`", ["don", "'", "t", "$", "5", "a", "_", "b", "^", "x", "`"]),
        ("a中文b\uf900", ["a", "中", "文", "b", "\u8c48"]),
        ("a\ufa0eb", ["a", "\ufa0e", "b"]),  # the same block; this one has no other form
        ("カタカナ ひら", ["カタカナ", "ひら"]),
        ("a\x00b\x0bc\ufffdd\u200be\u00adf\ue000g\ud800h", ["abcdefgh"]),
        ("a\tb\nc\rd\u00a0e\u2028f\u3000g", ["a", "b", "c", "d", "e", "f", "g"]),
        ("«a»…b–c€d", ["«", "a", "»", "…", "b", "–", "c€d"]),
        ("\u0378a", ["\u0378a"]),  # a code point without a character yet, as emoji newer than this Python are
        ("ΟΔΟΣ", ["οδος"]),
        ("", []),
    ],
)
def test_words_as_bert_cuts_them(text, words):
    chunks = remove_controls(text).split()
    assert [word for chunk in chunks for word in split_words(remove_case(chunk))] == words


@given(texts)
def test_removing_case_twice_is_removing_it_once(text):
    """So that a token of an uncased vocabulary is its own lower-cased form."""
    assert remove_case(remove_case(text)) == remove_case(text)


# --- WordPiece: training


def naive_pieces(words: Counter, n_pieces: int) -> list[str]:
    """learn_pieces, with every count made anew at every step."""
    spelled = {word: [word[0], *("##" + c for c in word[1:])] for word in words}
    pieces = []
    while len(pieces) < n_pieces:
        counts = Counter()
        for word, symbols in spelled.items():
            for pair in itertools.pairwise(symbols):
                counts[pair] += words[word]
        if not counts or max(counts.values()) < 2:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        piece = best[0] + best[1][2:]
        spelled = {word: merge_pair(symbols, best, piece) for word, symbols in spelled.items()}
        if piece not in pieces:
            pieces.append(piece)
    return pieces


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=8), st.integers(1, 5), max_size=8), st.integers(0, 30)
)
def test_learned_pieces_equal_a_recount_at_every_step(words, n_pieces):
    assert learn_pieces(Counter(words), n_pieces) == naive_pieces(Counter(words), n_pieces)


@given(st.lists(texts, min_size=1, max_size=6), st.integers(0, 40))
def test_training_covers_its_corpus_and_every_recombination_of_its_characters(corpus, extra):
    words = count_words(corpus)
    characters = sorted({character for word in words for character in word})
    if not words:
        return
    size = len(SPECIAL_TOKENS) + 2 * len(characters) + extra
    trained = WordPiece.train(corpus, size)
    assert trained.vocab_size <= size
    assert trained.tokens[:5] == list(SPECIAL_TOKENS)
    assert set(characters) <= set(trained.tokens)
    shuffled = "".join(random.Random(extra).sample(characters, len(characters)))[:100]
    for text in [*corpus, shuffled, shuffled[::-1]]:
        ids = trained.encode(text)
        assert trained.unk_id not in ids
        assert all(5 <= i < trained.vocab_size for i in ids)


@given(st.lists(st.sampled_from([*CORPUS, "a dog", "grassy"]), min_size=1), st.integers(0, 9))
def test_training_does_not_see_the_order_of_the_texts(corpus, seed):
    corpus = ["dogs", *corpus]
    shuffled = random.Random(seed).sample(corpus, len(corpus))
    assert WordPiece.train(shuffled, 60).tokens == WordPiece.train(iter(corpus), 60).tokens


def test_training_gives_the_known_vocabulary():
    trained = WordPiece.train(["abab abab ab", "b!"], 12)
    assert trained.tokens == [*SPECIAL_TOKENS, "!", "a", "b", "##a", "##b", "ab", "##ab"]
    assert WordPiece.train(["abab abab ab", "b!"], 99).tokens == [*trained.tokens, "abab"]


def test_training_leaves_out_words_that_are_never_spelled():
    assert WordPiece.train(["z" * 101 + " y"], 99).tokens == [*SPECIAL_TOKENS, "y", "##y"]


# --- WordPiece: encoding


@given(texts)
def test_wordpiece_encode_decode_encode_is_encode(text):
    if not count_words([text]):
        return
    trained = WordPiece.train([text, "ab" * 5], 500)
    ids = trained.encode(text)
    assert trained.encode(trained.decode(ids)) == ids


@given(
    st.sets(st.text("ab", min_size=1, max_size=4)), st.sets(st.text("ab", min_size=1, max_size=4)), st.data()
)
def test_wordpiece_takes_the_longest_known_piece(first, later, data):
    vocabulary = WordPiece([*SPECIAL_TOKENS, *sorted(first), *sorted("##" + piece for piece in later)])

    def longest(pieces, prefix, rest):
        return next((prefix + rest[:n] for n in range(len(rest), 0, -1) if rest[:n] in pieces), None)

    for word in data.draw(st.lists(st.text("ab", min_size=1, max_size=12))):
        expected, rest = [], word
        while rest:
            piece = longest(later, "##", rest) if expected else longest(first, "", rest)
            if piece is None:
                expected = ["[UNK]"]
                break
            expected.append(piece)
            rest = rest[len(piece.removeprefix("##")) :]
        assert [vocabulary.tokens[i] for i in vocabulary.encode(word)] == expected


def test_words_over_a_hundred_characters_are_unknown(small):
    assert small.unk_id not in small.encode("a" * 100)
    assert small.encode("a " + "a" * 101) == [*small.encode("a"), small.unk_id]
    assert small.encode("q") == [small.unk_id]


@given(texts, st.lists(st.sampled_from(CONTROL_STRINGS)), st.integers(0, 99))
def test_no_text_gives_a_control_id(small, pairs_bpe, text, controls, seed):
    parts = random.Random(seed).sample([text, *controls], 1 + len(controls))
    for text in ("".join(parts), " ".join(parts)):
        ids = small.encode(text)
        mask_id = small.tokens.index("[MASK]")
        assert not {small.pad_id, small.start_id, small.end_id, mask_id} & set(ids)
        assert all(0 <= i < small.vocab_size for i in ids)
        assert all(0 <= i < pairs_bpe.start_id for i in pairs_bpe.encode(text))


def test_wordpiece_decode(small):
    ids = small.encode("Two DOGS run!")
    assert small.decode(ids) == "two dogs run [UNK]"
    tail = small.encode("man")
    assert small.decode([small.start_id, *ids, small.end_id, *tail, small.pad_id]) == small.decode(ids)
    assert small.decode(torch.tensor([small.pad_id, *tail, small.pad_id])) == "man"


@given(st.lists(st.text("abcdef", min_size=1, max_size=9), min_size=1, max_size=20))
def test_no_word_is_unfamiliar_that_training_saw_twice(words):
    """Pairs that occur twice are merged while there is room: what occurs twice becomes one token."""
    tokenizer = WordPiece.train(words * 2, 10_000)
    assert tokenizer.unfamiliar(" ".join(words)) == []


def test_words_spelled_from_letters_are_unfamiliar():
    pieces = ["red", "circle", "c", "d", "##a", "##t", "##ot", "##o", "##ing", "##g", "paint", "!", "犬"]
    tokenizer = WordPiece([*SPECIAL_TOKENS, *pieces])
    text = "Red CAT, cat (dot)! painting dog zebra 犬 猫 ? $"
    assert tokenizer.unfamiliar(text) == ["cat", "dot", "dog", "zebra", "猫"]
    assert tokenizer.unfamiliar("red circle painting! ...") == []


def test_common_words_are_familiar_to_bert(bert):
    assert bert.unfamiliar("A photo of an elephant, two zebras and a skateboard near Paris.") == []
    assert bert.unfamiliar("a photo of a xqzvk") == ["xqzvk"]


def test_bert_known_ids(bert):
    assert (bert.vocab_size, bert.pad_id, bert.unk_id, bert.start_id, bert.end_id) == (
        30522,
        0,
        100,
        101,
        102,
    )
    assert bert.digest == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
    assert bert.encode("Hello, WORLD!") == [7592, 1010, 2088, 999]
    assert [bert.tokens[i] for i in bert.encode("unaffable")] == ["una", "##ffa", "##ble"]
    assert bert.encode("[SEP] [UNK]") == bert.encode("[ sep ] [ unk ]")


# --- batches

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
        (["a"], 2, r"context_length 2 is below 3: start, one token and end must fit"),
        ([], 8, r"texts is \[\]: give a list of at least one string"),
        ("a dog", 8, r"texts is 'a dog': give a list of at least one string"),
        (["a", float("nan")], 8, r"texts\[1\] is nan, not a string: drop the row or mend its caption"),
    ],
)
def test_batch_errors(small, texts, context_length, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        encode_batch(small, texts, context_length)


# --- files


def test_wordpiece_save_and_load(small, tmp_path):
    small.save(tmp_path / "run")
    path = tmp_path / "run" / "vocab.txt"
    assert small.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    crlf = tmp_path / "list"
    crlf.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    loads = [
        WordPiece.load(path),
        WordPiece.load(tmp_path / "run"),
        load_tokenizer(str(path.parent)),
        load_tokenizer(crlf),
    ]
    for loaded in loads:
        assert isinstance(loaded, WordPiece)
        assert loaded.tokens == small.tokens
        assert loaded.digest == small.digest
    assert WordPiece(small.tokens[::-1]).digest != small.digest


def test_a_small_zip_that_unfolds_without_end_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(gzip.compress(bytes(2**27)))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"vocab.txt is longer than 67108864 bytes, as no vocabulary is"):
        WordPiece.load(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2.5 * 2**26
    tracemalloc.stop()


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


UNCASED = [*SPECIAL_TOKENS, "[unused0]", "e", "##c", "paris"]
CASED = [*UNCASED, "École", "Paris", "É"]


@pytest.mark.parametrize(
    "tokens, options, lower_case",
    [
        (UNCASED, None, True),
        (CASED, None, False),
        (CASED, {}, False),
        (CASED, {"do_lower_case": True}, True),
        (CASED, {"do_lower_case": False, "strip_accents": None}, False),
        (CASED, {"do_lower_case": False, "strip_accents": False, "tokenize_chinese_chars": True}, False),
        (UNCASED, {"do_lower_case": False}, False),
        ([*UNCASED, "école"], {"do_lower_case": True, "strip_accents": True}, True),
    ],
)
def test_case_is_kept_where_the_file_or_the_tokens_say_so(tokens, options, lower_case, tmp_path):
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    if options is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    for path in (tmp_path, tmp_path / "vocab.txt"):
        tokenizer = load_tokenizer(path)
        assert tokenizer.lower_case == lower_case
        ids = tokenizer.encode("Paris École [SEP]")[:2]
        if lower_case:
            assert ids[0] == tokens.index("paris")
        elif tokens == CASED:
            assert [tokens[i] for i in ids] == ["Paris", "École"]
            assert tokenizer.decode(tokenizer.encode("Paris")) == "Paris"


def test_a_cased_vocabulary_comes_back_cased(tmp_path):
    """From a run, whose tokens alone would say that it is uncased; and by the digest where the file is lost."""
    tokenizer = WordPiece(UNCASED, lower_case=False)
    tokenizer.save(tmp_path / "run")
    save_tokenizer(tokenizer, tmp_path / "export")
    for folder in ("run", "export"):
        again = load_tokenizer(tmp_path / folder)
        assert (again.lower_case, again.digest) == (False, tokenizer.digest)
    (tmp_path / "run" / "tokenizer_config.json").unlink()
    assert load_tokenizer(tmp_path / "run").digest == WordPiece(UNCASED).digest != tokenizer.digest


@pytest.mark.parametrize(
    "tokens, options, message",
    [
        (
            [*UNCASED, "école"],
            None,
            r"it has accents \('école'\) and no capitals, .*: put a tokenizer_config.json",
        ),
        (UNCASED, {"do_lower_case": "no"}, "the option do_lower_case='no' must be bool, not str"),
        (CASED, {"strip_accents": True}, "has strip_accents=True: with do_lower_case=False it must be False"),
        (UNCASED, {"tokenize_chinese_chars": False}, "has tokenize_chinese_chars=False: .* it must be True"),
        (UNCASED, [], "holds a list where an object of options is needed"),
    ],
)
def test_case_is_not_guessed(tokens, options, message, tmp_path):
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    if options is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match=f"^{tmp_path}[^\n]*{message}[^\n]*$"):
        load_tokenizer(tmp_path)


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
    with pytest.raises(ValueError, match="characters is a vocabulary without an end of text"):
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
    monkeypatch.setattr(minclip.data.tokenizer, "CACHE_LIMIT", 2)
    monkeypatch.setattr(clip_bpe, "CACHE_LIMIT", 2)
    small._cache.clear()
    pairs_bpe._cache.clear()
    for word, ids in zip(words, expected, strict=True):
        assert (small.encode(word), pairs_bpe.encode(word)) == ids
        assert len(small._cache) <= 2
        assert len(pairs_bpe._cache) <= 2
    small.encode("dog").append(-1)
    assert -1 not in small.encode("dog")


# --- errors


@pytest.mark.parametrize(
    "tokens, message",
    [
        ([*SPECIAL_TOKENS[:3], "a"], r"the vocabulary of 4 tokens misses \[SEP\], \[MASK\]"),
        ([*SPECIAL_TOKENS, "a", "b", "a"], r"the token 'a' is on lines 6 and 8: keep one"),
        ([*SPECIAL_TOKENS, ""], r"line 6 of the vocabulary is '': empty, or with a line end inside"),
        ([*SPECIAL_TOKENS, "a\n"], r"line 6 of the vocabulary is 'a\\n': empty, or with a line end inside"),
        ([*SPECIAL_TOKENS, "a\rb"], r"line 6 of the vocabulary is 'a\\rb': empty, or with a line end inside"),
    ],
)
def test_damaged_wordpiece_list(tokens, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{message}$"):
        WordPiece(tokens)
    if "\n" not in "".join(tokens):
        path = tmp_path / "vocab.txt"
        path.write_bytes("".join(f"{token}\n" for token in tokens).encode())
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {message}$"):
            load_tokenizer(path)


@pytest.mark.parametrize(
    "texts, vocab_size, message",
    [
        (
            ["ab!"],
            9,
            r"vocab_size 9 is too small for the special tokens and the 3 characters of the texts: give at least 10",
        ),
        ([" ", "\x00"], 50, r"texts has no words to train on: give at least one text that is not blank"),
        ("a dog", 50, r"texts is one string: give a list of strings"),
    ],
)
def test_training_errors(texts, vocab_size, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        WordPiece.train(texts, vocab_size)


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
            r" is damaged or no tokenizer of a run: give a vocab.txt, or the copy in .* step-\* folder",
        ),
        (
            b"a dog",
            r" starts with 'a dog': neither a WordPiece list \(one token a line, \[CLS\] among them\) "
            r"nor CLIP's merges \(#version in the first line\)",
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
    with pytest.raises(ValueError, match=rf" holds 0 of {names}: exactly one is needed$"):
        load_tokenizer(tmp_path)
    small.save(tmp_path)
    with pytest.raises(
        ValueError, match=r"vocab\.txt starts with '\[PAD\]', not with a merges file's header"
    ):
        ClipBPE.load(tmp_path / "vocab.txt")
    pairs_bpe.save(tmp_path)
    with pytest.raises(ValueError, match=rf" holds 2 of {names}: exactly one is needed$"):
        load_tokenizer(tmp_path)
    assert WordPiece.load(tmp_path).tokens == small.tokens
    assert ClipBPE.load(tmp_path).tokens == pairs_bpe.tokens


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_decoding_ids_of_another_tokenizer(small, pairs_bpe, wrong):
    for tokenizer in (small, pairs_bpe):
        last = tokenizer.vocab_size - 1
        with pytest.raises(
            ValueError, match=rf"^token id {wrong} is outside 0\.\.{last}: another tokenizer's\?$"
        ):
            tokenizer.decode([wrong])
