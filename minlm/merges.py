"""Merges of neighbouring symbols, learned and applied, for every tokenizer here; and bytes as visible characters.

Sennrich et al. 2016, section 3.2, algorithm 1.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import TypeVar

Symbol = TypeVar("Symbol", str, int)

# GPT-2's and CLIP's files write each byte as a visible character: itself if printable, else one from U+0100 on.
# The order is that of the ids 0 to 255.
_PRINTABLE = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_CHARACTERS = {b: chr(b) for b in _PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(_HIDDEN)}
CHARACTER_BYTES = {character: byte for byte, character in BYTE_CHARACTERS.items()}


def merge_pair(word: list[Symbol], pair: tuple[Symbol, Symbol], joined: Symbol) -> list[Symbol]:
    """Return the word with every occurrence of the pair, from left to right, replaced by `joined`."""
    merged, i = [], 0
    while i < len(word):
        hit = word[i] == pair[0] and i + 1 < len(word) and word[i + 1] == pair[1]
        merged.append(joined if hit else word[i])
        i += 2 if hit else 1
    return merged


def learn_merges(
    words: list[list[Symbol]], frequency: list[int], join: Callable[[Symbol, Symbol], Symbol]
) -> Iterator[tuple[Symbol, int]]:
    """Yield (joined symbol, occurrences) of the most frequent pair of neighbours, again and again.

    Ties go to the lowest pair. `words` holds each different word once; it is changed in place, and the last pair is
    merged when the next one is asked for. A merge visits only the words that hold its pair.

    words: as symbols; frequency: occurrences of each word; join: two symbols -> the symbol that replaces them.
    """
    counts: Counter[tuple[Symbol, Symbol]] = Counter()
    holders = defaultdict(set)  # pair -> words that may hold it
    for i, word in enumerate(words):
        for pair in itertools.pairwise(word):
            counts[pair] += frequency[i]
            holders[pair].add(i)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    while heap:
        negative_count, pair = heapq.heappop(heap)
        if counts[pair] != -negative_count:
            continue  # outdated: every change of a count pushes a new entry
        joined = join(*pair)
        yield joined, counts[pair]
        changed: Counter[tuple[Symbol, Symbol]] = Counter()
        for i in holders.pop(pair):
            merged = merge_pair(words[i], pair, joined)
            for old in itertools.pairwise(words[i]):
                changed[old] -= frequency[i]
            for new in itertools.pairwise(merged):
                changed[new] += frequency[i]
                holders[new].add(i)
            words[i] = merged
        for other, change in changed.items():
            counts[other] += change
            if change and counts[other]:
                heapq.heappush(heap, (-counts[other], other))
