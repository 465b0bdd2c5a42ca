"""Merges against a recount at every step; the bytes' characters."""

from collections import Counter
from itertools import pairwise
from operator import add

from hypothesis import given
from hypothesis import strategies as st

from minlm.merges import BYTE_CHARACTERS, CHARACTER_BYTES, learn_merges, merge_pair


@given(st.dictionaries(st.text("abc", min_size=1, max_size=8), st.integers(1, 5), max_size=8))
def test_merges_equal_a_recount_at_every_step(words):
    """Each symbol, its pair's count, and the words as spelled when the next one is learned; ties go to the lowest."""
    spelled, learned = [list(word) for word in words], [list(word) for word in words]
    for symbol, count in learn_merges(learned, list(words.values()), add):
        assert learned == spelled
        counts = Counter()
        for word, frequency in zip(spelled, words.values(), strict=True):
            for pair in pairwise(word):
                counts[pair] += frequency
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        assert (symbol, count) == ("".join(best), counts[best])
        spelled = [merge_pair(word, best, symbol) for word in spelled]
    assert spelled == [[word] for word in words]


@given(st.text("ab", max_size=12), st.sampled_from(["ab", "aa"]))
def test_a_pair_is_merged_from_the_left(word, pair):
    merged = merge_pair(list(word), tuple(pair), "X")
    assert "".join(merged) == word.replace(pair, "X")


def test_each_byte_has_a_visible_character_of_its_own():
    assert sorted(BYTE_CHARACTERS) == list(range(256))
    assert all(character.isprintable() and character != " " for character in BYTE_CHARACTERS.values())
    assert {CHARACTER_BYTES[character]: character for character in CHARACTER_BYTES} == BYTE_CHARACTERS
    assert [BYTE_CHARACTERS[byte] for byte in (0, 10, 32, 65, 173)] == ["Ā", "Ċ", "Ġ", "A", "Ń"]
