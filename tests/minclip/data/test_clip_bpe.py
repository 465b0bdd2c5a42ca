import gzip
import hashlib
import itertools
import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minclip.data import clip_bpe
from minclip.data.clip_bpe import WORD_END, ClipBPE, clean_text, word_pattern
from minclip.data.tokenizer import load_tokenizer
from minlm.merges import BYTE_CHARACTERS, merge_pair
from tests.minclip.data.vocabularies import made_up_merges, texts


@pytest.fixture(scope="module")
def clip(data_root) -> ClipBPE:
    return ClipBPE.load(data_root / "vocab" / "bpe_simple_vocab_16e6.txt.gz")


def squeezed(text: str) -> str:
    return clip_bpe.WHITESPACE.sub("", text)


def kind_of(character: str) -> str:
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "other"


def test_pattern_has_exactly_the_letters_and_numbers_of_unicode():
    """Every code point in one string: runs of letters, single numbers, runs of the rest."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    expected = []
    for kind, run in itertools.groupby(everything, kind_of):
        characters = list(run)
        expected += characters if kind == "N" else ["".join(characters)]
    assert word_pattern().findall(everything) == expected


@pytest.mark.parametrize(
    "chunk, words",
    [
        ("it's", ["it", "'s"]),
        ("we'll've", ["we", "'ll", "'ve"]),
        ("'tis", ["'t", "is"]),
        ("a!!'s", ["a", "!!'", "s"]),
        ("'ſ", ["'ſ"]),  # the long s, which ignoring case makes an s
        ("12½Ⅷ", ["1", "2", "½", "Ⅷ"]),
        ("a_b--c", ["a", "_", "b", "--", "c"]),
        ("中文é", ["中文é"]),
        ("e\u0301", ["e", "\u0301"]),
        ("<|endoftext|>", ["<|", "endoftext", "|>"]),
    ],
)
def test_pattern_cuts_words_as_clip(chunk, words):
    assert word_pattern().findall(chunk) == words


@pytest.mark.parametrize(
    "text, cleaned",
    [
        ("  A\tB\n\nC\u3000", "a b c"),
        ("&lt;b&gt; &amp;amp; &amp;lt;", "<b> & <"),
        ("e\u0301", "é"),
        ("a\x1cb", "a\x1cb"),
        ("a&nbsp;b", "a b"),
        (" \n", ""),
    ],
)
def test_clip_cleaning(text, cleaned):
    assert clean_text(text) == cleaned


@given(texts)
def test_clip_decode_gives_the_cleaned_text_back(pairs_bpe, text):
    ids = pairs_bpe.encode(text)
    assert squeezed(pairs_bpe.decode(ids)) == squeezed(clean_text(text))
    assert all(0 <= i < pairs_bpe.vocab_size for i in ids)


@given(texts)
def test_clip_decode_gives_the_cleaned_text_back_with_clips_merges(clip, text):
    assert squeezed(clip.decode(clip.encode(text))) == squeezed(clean_text(text))


def merge_in_file_order(merges, word: str) -> list[str]:
    """The same result by another way: every merge of the file once, from the first to the last."""
    symbols = [BYTE_CHARACTERS[byte] for byte in word.encode()]
    symbols[-1] += WORD_END
    for pair in merges:
        if pair[0] in symbols:
            symbols = merge_pair(symbols, pair, "".join(pair))
    return symbols


@given(st.text(st.sampled_from("abcdefghilmnorstuvwyé犬"), min_size=1, max_size=12))
def test_clip_merges_equal_the_file_applied_in_order(pairs_bpe, word):
    assert [pairs_bpe.tokens[i] for i in pairs_bpe.encode(word)] == merge_in_file_order(
        pairs_bpe.merges, word
    )


@given(st.text(st.sampled_from("abcdefghilmnorstuvwyé犬"), min_size=1, max_size=12))
def test_clip_merges_equal_its_file_applied_in_order(clip, word):
    assert [clip.tokens[i] for i in clip.encode(word)] == merge_in_file_order(clip.merges, word)


def test_clip_known_ids(clip):
    assert (clip.vocab_size, clip.pad_id, clip.start_id, clip.end_id) == (49408, 0, 49406, 49407)
    assert clip.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert clip.encode("Hello  World!") == [3306, 1002, 256]
    assert clip.encode("a diagram") == [320, 22697]
    assert clip.encode("<|endoftext|>") == clip.encode("<| endoftext |>")


def test_clip_decode(pairs_bpe):
    ids = pairs_bpe.encode("Hi, you!")
    assert pairs_bpe.decode(ids) == "hi , you !"
    assert pairs_bpe.decode([pairs_bpe.start_id, *ids, pairs_bpe.end_id, 0, 0]) == "hi , you !"
    assert pairs_bpe.decode(pairs_bpe.encode("犬")[:1]) == "\ufffd"  # cut inside a character
    assert pairs_bpe.encode("a\ud800") == pairs_bpe.encode("a?")
    assert pairs_bpe.encode(" \n") == []


def test_clip_save_and_load(pairs_bpe, tmp_path):
    pairs_bpe.save(tmp_path / "run")
    path = tmp_path / "run" / "merges.txt"
    assert pairs_bpe.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    zipped = tmp_path / "vocab.txt"  # told apart by content, not by name
    zipped.write_bytes(gzip.compress(path.read_bytes() + b"more merges\nthan used\n"))
    for loaded in (ClipBPE.load(path), load_tokenizer(path.parent), load_tokenizer(zipped)):
        assert isinstance(loaded, ClipBPE)
        assert loaded.tokens == pairs_bpe.tokens
        assert loaded.digest == pairs_bpe.digest
    others = made_up_merges()
    others[-1] = ("é", "z")
    assert ClipBPE(others).digest != pairs_bpe.digest


def test_clip_file_saved_as_text_is_the_same(clip, tmp_path):
    clip.save(tmp_path)
    assert load_tokenizer(tmp_path).tokens == clip.tokens


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m[:-1], r"48893 merges where CLIP uses 48894: fetch the file again"),
        (lambda m: [*m[:4], m[1], *m[5:]], r"line 6: '! !</w>' makes a symbol that an earlier merge makes"),
        (lambda m: [("!!", "犬"), *m[1:]], r"line 2: '!! 犬' uses a symbol that no earlier merge makes"),
    ],
)
def test_damaged_merges(change, message, tmp_path):
    merges = change(made_up_merges())
    with pytest.raises(ValueError, match=f"^{message}$"):
        ClipBPE(merges)
    path = tmp_path / "merges.txt"
    path.write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8", newline="\n"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {message}$"):
        load_tokenizer(path)


def test_gpt2_merges_are_not_taken_for_clips(data_root):
    with pytest.raises(ValueError, match="another model's merges"):
        ClipBPE.load(data_root / "vocab" / "vocab.bpe")
