"""GPT-2's tokenizer here and in transformers give the same ids."""

import random

import pytest

from minlm.tokenizer import load_tokenizer

transformers = pytest.importorskip("transformers")


def drawn_strings(data_root, count):
    """Return lines of several scripts and languages, and random characters of every plane."""
    rng = random.Random("0/gpt2")
    play = (data_root / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    film = (data_root / "scripts" / "Charade.txt").read_text(encoding="utf-8")
    for _ in range(count // 2):
        text = rng.choice((play, film))
        start = rng.randrange(len(text) - 200)
        yield text[start : start + rng.randrange(1, 200)]
    ranges = [(32, 127), (0, 256), (0x370, 0x700), (0x2000, 0x3100), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF)]
    for _ in range(count - count // 2):
        pieces = [rng.choice([" ", "  ", "\n", "'s", "'LL", "12", "é", ""]) for _ in range(rng.randrange(8))]
        pieces += [chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(20))]
        rng.shuffle(pieces)
        yield "".join(pieces)


def test_ids_equal_transformers(data_root):
    ours = load_tokenizer(data_root / "vocab")
    theirs = transformers.GPT2Tokenizer(
        str(data_root / "vocab" / "encoder.json"), str(data_root / "vocab" / "vocab.bpe")
    )
    for text in drawn_strings(data_root, 10000):
        ids = ours.encode(text)
        assert ids == theirs.encode(text), repr(text)
        assert ours.decode(ids) == text
    assert ours.end_id == theirs.eos_token_id
