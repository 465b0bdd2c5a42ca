"""Odd texts to draw from, and a full table of made-up merges for CLIP's tokenizer."""

import itertools

from hypothesis import strategies as st

from minclip.data.clip_bpe import N_MERGES, WORD_END
from minlm.merges import BYTE_CHARACTERS

# accents (composed and not), case oddities, CJK, Hangul, kana, controls, white space, marks, emoji, symbols, numbers
ODD = (
    "aBcE éÅÑßİΣσſ\u0301\u0327ǆ中文\uf900가か\x00\x01\t\n\r\x1c\x85\u00a0\u2028\u200b\u00ad\ue000\ufffd"
    "😀👍🏽#'-.…«$+^`½²Ⅷ٣_&;"
)
texts = st.text(max_size=60) | st.text(st.sampled_from(ODD), max_size=60)


def made_up_merges() -> list[tuple[str, str]]:
    """A full table: every pair of the first 96 bytes (ASCII and a few more), inside a word and at its end."""
    characters = list(BYTE_CHARACTERS.values())
    pairs = ((a, b + end) for a, b in itertools.product(characters, repeat=2) for end in ("", WORD_END))
    return list(itertools.islice(pairs, N_MERGES))


CORPUS = [
    "A dog runs.",
    "A dog is running in the grass",
    "Two dogs run, a man watches the dogs",
    "",
    "naïve 犬",
]
