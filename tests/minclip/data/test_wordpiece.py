import gzip
import hashlib
import itertools
import json
import random
import re
import tracemalloc
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minclip.data.tokenizer import load_tokenizer
from minclip.data.wordpiece import (
    SPECIAL_TOKENS,
    WordPiece,
    count_words,
    learn_pieces,
    remove_case,
    remove_controls,
    split_words,
)
from minclip.pretrained.vocabulary import save_tokenizer
from minlm.merges import merge_pair
from tests.minclip.data.vocabularies import CORPUS, texts


@pytest.fixture(scope="module")
def bert(data_root) -> WordPiece:
    return WordPiece.load(data_root / "vocab" / "bert-base-uncased-vocab.txt")


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
    with pytest.raises(ValueError, match=r"vocab.txt is longer than 67108864 bytes: give a vocabulary file"):
        WordPiece.load(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2.5 * 2**26
    tracemalloc.stop()


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
            r"accents \('école'\) without capitals .*: put a tokenizer_config.json",
        ),
        (UNCASED, {"do_lower_case": "no"}, "the option do_lower_case='no' must be bool, not str"),
        (CASED, {"strip_accents": True}, "has strip_accents=True: with do_lower_case=False it must be False"),
        (UNCASED, {"tokenize_chinese_chars": False}, "has tokenize_chinese_chars=False: .* it must be True"),
        (UNCASED, [], "holds a list, not an o"),
    ],
)
def test_case_is_not_guessed(tokens, options, message, tmp_path):
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    if options is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match=f"^{tmp_path}[^\n]*{message}[^\n]*$"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "tokens, message",
    [
        ([*SPECIAL_TOKENS[:3], "a"], r"the vocabulary of 4 tokens has no \[SEP\], \[MASK\]: give BERT's"),
        ([*SPECIAL_TOKENS, "a", "b", "a"], r"the token 'a' is on lines 6 and 8: keep one"),
        ([*SPECIAL_TOKENS, ""], r"line 6 of the vocabulary is '': a token is not empty and has no line end"),
        (
            [*SPECIAL_TOKENS, "a\n"],
            r"line 6 of the vocabulary is 'a\\n': a token is not empty and has no line end",
        ),
        (
            [*SPECIAL_TOKENS, "a\rb"],
            r"line 6 of the vocabulary is 'a\\rb': a token is not empty and has no line end",
        ),
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
