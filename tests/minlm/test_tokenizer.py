"""Round trips, a recount-everything oracle for training, and GPT-2's own ids."""

import base64
import json
import pickle
from collections import Counter
from itertools import pairwise

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from minlm.tokenizer import (
    FILE_NAME,
    GPT2_PATTERN,
    BPETokenizer,
    CharTokenizer,
    load_tokenizer,
    train_bpe,
)

CORPUS = (
    "The hat in the hall is the cat's hat. That's that, said the cat; and so it sat in the hall, "
    "where the draught came in under the great door, and it slept there until the bell rang for supper.\n"
)
SMALL = train_bpe(CORPUS, 300, ("end", "pad", "start"))
words = st.text(alphabet="aab' \n0é", max_size=60)  # few letters, so that pairs repeat and tie
corpora = words.map(lambda text: text + " ab")  # at least one merge to learn


def slow_bpe(text, n_merges):
    """Sennrich et al. 2016, algorithm 1, with everything counted anew for every merge."""
    corpus = [[bytes([b]) for b in word.encode()] for word in regex.findall(GPT2_PATTERN, text)]
    ids = {bytes([b]): b for b in range(256)}
    while len(ids) < 256 + n_merges:
        counts = Counter(pair for word in corpus for pair in pairwise(word))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))
        ids.setdefault(best[0] + best[1], len(ids))
        for word in corpus:
            k = 0
            while k + 1 < len(word):
                if (word[k], word[k + 1]) == best:
                    word[k : k + 2] = [best[0] + best[1]]
                k += 1
    return ids, corpus


def merge_by_rank(tokenizer, text):
    """The definition of encoding: in each word, join the neighbours of lowest rank until none has one."""
    ids = []
    for word in regex.findall(GPT2_PATTERN, text):
        parts = [bytes([b]) for b in word.encode()]
        while True:
            joins = [tokenizer.ranks.get(a + b, 1 << 30) for a, b in pairwise(parts)]
            if not joins or min(joins) == 1 << 30:
                break
            i = joins.index(min(joins))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [tokenizer.ranks[part] for part in parts]
    return ids


@given(text=corpora, n_merges=st.integers(0, 25))
def test_training_equals_the_textbook(text, n_merges):
    expected, segmented = slow_bpe(text, n_merges)
    trained = train_bpe(text, len(expected), specials=())
    assert trained.ranks == expected
    # and what tiktoken makes of the corpus is what training had made of it
    assert trained.encode(text) == [expected[token] for word in segmented for token in word]


def test_training_on_real_words_equals_the_textbook():
    expected, _ = slow_bpe(CORPUS, 40)
    assert train_bpe(CORPUS, 297).ranks == expected


def test_equal_counts_go_to_the_lowest_ids():
    ranks = train_bpe("dc ba", 259, specials=()).ranks  # all counts are one; a new token has the highest id
    assert [token for token, i in ranks.items() if i >= 256] == [b" b", b"dc", b" ba"]


@given(text=st.text(max_size=200))
def test_bpe_gives_any_text_back(text):
    ids = SMALL.encode(text)
    assert SMALL.decode(ids) == text
    assert all(0 <= i < len(SMALL.ranks) for i in ids)
    assert ids == merge_by_rank(SMALL, text)


@given(text=st.text(alphabet="thecasl' \n.", max_size=200))
def test_bpe_merges_by_rank(text):
    assert SMALL.encode(text) == merge_by_rank(SMALL, text)


@given(data=st.binary(max_size=50))
def test_bpe_replaces_what_is_not_utf8(data):
    assert SMALL.decode(list(data)) == data.decode("utf-8", errors="replace")  # ids below 256 are the bytes


@given(text=st.text(max_size=60), specials=st.sampled_from([(), ("end",), ("pad", "end", "start")]))
def test_the_tokens_bytes_joined_are_the_texts(text, specials):
    for tokenizer in (CharTokenizer(text + "x", specials), BPETokenizer(SMALL.ranks, specials)):
        assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()
        named = [getattr(tokenizer, f"{name}_id") for name in specials]
        assert b"".join(map(tokenizer.token_bytes, named)).decode() == tokenizer.decode(named)


@given(text=st.text(max_size=100), other=st.text(max_size=100))
def test_characters_round_trip(text, other):
    tokenizer = CharTokenizer(text + "x")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.characters == "".join(sorted(set(text + "x")))
    assert tokenizer.vocab_size == len(set(text + "x"))
    unknown = [character for character in other if character not in text + "x"]
    if unknown:
        with pytest.raises(ValueError, match=rf"U\+{ord(unknown[0]):04X}.*is not among the") as error:
            tokenizer.encode(other)
        assert "\n" not in str(error.value)
        assert repr(unknown[0]) in str(error.value)
    else:
        assert tokenizer.decode(tokenizer.encode(other)) == other


@pytest.mark.parametrize("make", [lambda specials: CharTokenizer("<|>adefnoprstx", specials), None])
@pytest.mark.parametrize("specials", [(), ("end",), ("start", "pad"), ("pad", "start", "end")])
def test_reserved_ids_come_last_and_are_never_encoded(make, specials):
    tokenizer = make(specials) if make else train_bpe(CORPUS, 290 + len(specials), specials)
    first = tokenizer.vocab_size - len(specials)
    for name in ("end", "pad", "start"):
        expected = first + specials.index(name) if name in specials else None
        assert getattr(tokenizer, f"{name}_id") == expected
    for text in ("<|endoftext|>", "<|pad|>", "x<|start|>"):
        ids = tokenizer.encode(text)
        assert max(ids) < first
        assert tokenizer.decode(ids) == text
    if specials:
        assert tokenizer.decode([first]).startswith("<|")


def test_characters_have_no_end_of_text_unless_asked():
    assert CharTokenizer("abc").end_id is None
    assert train_bpe(CORPUS, 290).end_id == 289


def is_same(one, other):
    return (
        type(one) is type(other)
        and one.digest == other.digest
        and one.vocab_size == other.vocab_size
        and (one.end_id, one.pad_id, one.start_id) == (other.end_id, other.pad_id, other.start_id)
        and one.encode(CORPUS) == other.encode(CORPUS)
    )


@pytest.mark.parametrize("tokenizer", [SMALL, CharTokenizer(CORPUS + "é\n", ("pad", "end"))])
def test_saving_keeps_everything(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "run")
    assert [file.name for file in (tmp_path / "run").iterdir()] == [FILE_NAME]
    assert is_same(tokenizer, load_tokenizer(tmp_path / "run"))
    assert is_same(tokenizer, load_tokenizer(str(tmp_path / "run" / FILE_NAME)))
    assert is_same(tokenizer, pickle.loads(pickle.dumps(tokenizer)))


def test_the_digest_sees_every_part():
    def swapped(ranks):
        a, b = list(ranks)[-2:]
        return ranks | {a: ranks[b], b: ranks[a]}

    tokenizers = [
        CharTokenizer("abc"),
        CharTokenizer("abd"),
        CharTokenizer("abc", ("end",)),
        CharTokenizer("abc", ("pad",)),
        SMALL,
        BPETokenizer(SMALL.ranks),
        BPETokenizer(swapped(SMALL.ranks)),
        train_bpe(CORPUS, 299, ("end", "pad", "start")),
    ]
    assert len({tokenizer.digest for tokenizer in tokenizers}) == len(tokenizers)
    assert train_bpe(CORPUS, 300, ("end", "pad", "start")).digest == SMALL.digest


# GPT-2's files, made up: every byte, then 50,000 pairs of bytes, in the order in which GPT-2 lists bytes.


def write_gpt2(folder, names=("encoder.json", "vocab.bpe"), version="#version: 0.2\n", **change):
    visible = [b for b in range(256) if chr(b).isprintable() and b != 32]
    order = visible + [b for b in range(256) if b not in visible]
    shown = {b: chr(b) if b in visible else chr(256 + order.index(b) - len(visible)) for b in order}
    pairs = [(a, b) for a in order for b in order][:50000]
    tokens = [bytes([b]) for b in order] + [bytes(pair) for pair in pairs]
    ids = {"".join(shown[b] for b in token): i for i, token in enumerate(tokens)} | {"<|endoftext|>": 50256}
    folder.mkdir(exist_ok=True)
    (folder / names[0]).write_text(json.dumps(ids | change), encoding="utf-8")
    merges = version + "".join(f"{shown[a]} {shown[b]}\n" for a, b in pairs)
    (folder / names[1]).write_text(merges, encoding="utf-8")
    return tokens


def write_tiktoken(path, tokens):
    path.write_text("".join(f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(tokens)))


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_gpt2_forms_are_told_apart_by_content(names, tmp_path):
    tokens = write_gpt2(tmp_path / "gpt2", names)
    write_tiktoken(tmp_path / "ranks", tokens)
    (tmp_path / "folder").mkdir()
    write_tiktoken(tmp_path / "folder" / "gpt2.tiktoken", tokens)
    expected = BPETokenizer({token: i for i, token in enumerate(tokens)})
    assert (expected.vocab_size, expected.end_id) == (50257, 50256)
    for place in ("gpt2", f"gpt2/{names[0]}", f"gpt2/{names[1]}", "ranks", "folder"):
        assert is_same(expected, load_tokenizer(tmp_path / place))
    assert expected.decode(expected.encode("\x00 naïve\u00ad\xa0")) == "\x00 naïve\u00ad\xa0"
    SMALL.save(tmp_path / "gpt2")  # a run's own tokenizer goes before files lying beside it
    assert is_same(SMALL, load_tokenizer(tmp_path / "gpt2"))


def test_gpt2_files(data_root, tmp_path):
    tokenizer = load_tokenizer(data_root / "vocab")
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.encode("\n\nHOT ROD  's café <|endoftext|>") == [
        *(198, 198, 39, 2394, 371, 3727, 220, 705, 82),
        *(40304, 1279, 91, 437, 1659, 5239, 91, 29),
    ]
    assert (tokenizer.vocab_size, tokenizer.end_id) == (50257, 50256)
    assert tokenizer.decode([50256]) == "<|endoftext|>"
    write_tiktoken(tmp_path / "gpt2.tiktoken", sorted(tokenizer.ranks, key=tokenizer.ranks.get))
    assert is_same(tokenizer, load_tokenizer(tmp_path / "gpt2.tiktoken"))
    text = (data_root / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")[:20000]
    assert tokenizer.encode(text) == merge_by_rank(tokenizer, text)


def one_line(call, match):
    with pytest.raises(ValueError, match=match) as error:
        call()
    assert "\n" not in str(error.value)


def test_bad_arguments_are_named():
    one_line(lambda: CharTokenizer(""), "the text is empty")
    one_line(lambda: CharTokenizer("a", ("unk",)), r"specials \('unk',\) must be different names of")
    one_line(lambda: CharTokenizer("a", ("end", "end")), "must be different names of")
    one_line(lambda: train_bpe("abc", 256), "vocab_size 256 is too small: give at least 257")
    one_line(
        lambda: train_bpe("abc", 4000),
        "--model.vocab_size 4000 is .* text of 3 characters yields: give at most 259",
    )
    assert train_bpe("abc", 259).vocab_size == 259
    one_line(lambda: BPETokenizer({b"a": 0}), "255 missing")
    one_line(lambda: BPETokenizer(SMALL.ranks | {b"zz": 999}), "ids 0 to 297 once each")
    for tokenizer in (SMALL, CharTokenizer("abc")):
        one_line(lambda t=tokenizer: t.decode([t.vocab_size]), "is outside the vocabulary: ids run from 0 to")
        one_line(lambda t=tokenizer: t.decode([-1]), "id -1 is outside")


def test_bad_files_are_named(tmp_path):
    one_line(lambda: load_tokenizer(tmp_path / "none"), "no such tokenizer file")
    one_line(lambda: load_tokenizer(tmp_path), "no tokenizer in .*looked for")
    for content, match in [
        (b"\xff\xfe", "not UTF-8"),
        (b"once upon a time", "neither JSON nor lines"),
        (b"once upon", "neither JSON nor lines"),
        (b"{", "damaged or not a run's tokenizer"),
        (b'{"kind": ' + b"[" * 100_000, "damaged or not a run's tokenizer"),
        (b'{"kind": "bpe", "tokens": ["YQ=="], "specials": [], "digest": ""}', "damaged"),
        (b'{"model": {}}', "damaged or not a run's tokenizer"),
        (b"YQ== 0\n", "has 1 tokens, GPT-2's has 50256"),
        (b"", "has 0 tokens"),
    ]:
        (tmp_path / "file").write_bytes(content)
        one_line(lambda: load_tokenizer(tmp_path / "file"), match)


@pytest.mark.parametrize("tokenizer", [SMALL, CharTokenizer(CORPUS, ("pad", "end"))])
def test_a_changed_file_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    file = tmp_path / FILE_NAME
    saved = json.loads(file.read_text())
    tokens = saved.get("tokens", [])
    swapped = [*tokens[:-2], *reversed(tokens[-2:])]
    changes = [{"specials": ["end"]}, {"digest": "0" * 64}, {"kind": "words"}]
    changes.append({"tokens": swapped} if tokens else {"characters": saved["characters"] + "~"})
    for change in changes:
        file.write_text(json.dumps(saved | change))
        if change == {"kind": "words"} and tokens:
            continue  # the kind of a BPE says nothing its other fields do not
        one_line(lambda: load_tokenizer(file), "damaged or not a run's tokenizer")
    file.write_text(json.dumps(saved)[:-40])
    one_line(lambda: load_tokenizer(tmp_path), "damaged or not a run's tokenizer")


def test_gpt2_files_that_do_not_fit_are_refused(tmp_path):
    write_gpt2(tmp_path, extra=50257)
    one_line(
        lambda: load_tokenizer(tmp_path),
        "encoder.json and vocab.bpe do not fit together .*: fetch both again",
    )
    write_gpt2(tmp_path, A=7)
    one_line(lambda: load_tokenizer(tmp_path), "do not fit together")
    write_gpt2(tmp_path, version="Ü \u4e00\n")
    one_line(lambda: load_tokenizer(tmp_path), "do not fit together")
    for content in ("[", "[" * 100_000):
        (tmp_path / "encoder.json").write_text(content)
        one_line(lambda: load_tokenizer(tmp_path), "do not fit together")
    (tmp_path / "vocab.bpe").unlink()
    one_line(lambda: load_tokenizer(tmp_path / "encoder.json"), "no such tokenizer file: .*vocab.bpe")
