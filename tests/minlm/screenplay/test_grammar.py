"""Sampling, parsing and expectations against complete enumeration of a small grammar, and closed forms."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minlm.screenplay.grammar import (
    Grammar,
    Move,
    Variable,
    check_words,
    expectations,
    mixture,
    parse,
    read_pattern,
    sample,
    uniform,
)

# A small play with all features of the scenes: variables of two pools, drawn at different times, word lists,
# capitals, facts in the state, states that recur (up to `limit` times).
WORDS = {"how": ("softly", "loud", "in tune"), "what": ("a", "two")}
POOLS = {"ABC": ("AL", "BERTHA", "CY", "DORA"), "X": ("key", "lantern")}


def small_play(limit: int) -> Grammar:
    def to(text, state, **roles):
        return uniform([(read_pattern(text, WORDS, **roles), state)])

    def moves(state):
        node, holder, count = state
        if node == "open":
            alone = to("{A:new} sings <how>.", None)
            return mixture((1, alone), (2, to("{A:new} and {B:new}. {A} has the {X:new}. ", ("act", "A", 0))))
        end = to("<What> curtains.", None)
        if count == limit:
            return end
        other = {"A": "B", "B": "A", "C": "A"}[holder]
        hand = to("{H} gives the {X} to {O}. ", ("act", other, count + 1), H=holder, O=other)
        enter = to("{C:new} takes <what> {X}s, {h}! ", ("act", "C", limit), H=holder) if count == 1 else ()
        return mixture(
            (3, hand),
            (0.5, enter),
            (1, to("{h} hums <how>. ", ("act", holder, count + 1), H=holder)),
            (2, end),
        )

    return Grammar(start=("open", "", 0), moves=moves, pools=POOLS)


def enumerate_texts(grammar: Grammar) -> list[tuple[str, float]]:
    """Return every derivation's text and probability, by recursion, independently of `sample` and `parse`."""

    def fill(parts, names):
        if not parts:
            yield "", 1.0, names
            return
        first, rest = parts[0], parts[1:]
        if isinstance(first, Variable) and first.new:
            pool = next(values for variables, values in grammar.pools.items() if first.name in variables)
            free = [value for value in pool if value not in names.values()]
            choices = [(value, {**names, first.name: value}) for value in free]
        elif isinstance(first, Variable):
            value = names[first.name]
            choices = [(value[0] + value[1:].lower() if first.title else value, names)]
        else:
            choices = [(word, names) for word in ([first] if isinstance(first, str) else first)]
        for word, known in choices:
            for text, p, bound in fill(rest, known):
                yield word + text, p / len(choices), bound

    def walk(state, names):
        if state is None:
            yield "", 1.0
            return
        for move in grammar.moves(state):
            for text, p, bound in fill(move.pattern, names):
                for rest, q in walk(move.next_state, bound):
                    yield text + rest, move.probability * p * q

    return list(walk(grammar.start, {}))


class TestSmallPlay:
    """All texts of a small grammar, enumerated."""

    play = small_play(limit=3)
    texts = enumerate_texts(play)

    def test_probabilities_sum_to_one_and_no_text_has_two_derivations(self):
        assert len(self.texts) > 4000
        assert math.fsum(p for _, p in self.texts) == pytest.approx(1, abs=1e-12)
        assert len({text for text, _ in self.texts}) == len(self.texts)

    def test_parse_gives_the_product_of_the_choices(self):
        for text, p in self.texts:
            log_p, end = parse(self.play, text)
            assert log_p == pytest.approx(math.log(p), abs=1e-12)
            assert end == len(text)

    def test_expectations_are_the_sums_over_all_texts(self):
        entropy, length = expectations(self.play)
        assert entropy == pytest.approx(-math.fsum(p * math.log(p) for _, p in self.texts), rel=1e-12)
        assert length == pytest.approx(math.fsum(p * len(text) for text, p in self.texts), rel=1e-12)

    def test_samples_have_the_frequencies_of_their_probabilities(self):
        tally = small_play(limit=0)
        probabilities = dict(enumerate_texts(tally))
        rng, n = random.Random("tally"), 20_000
        counts = Counter(sample(tally, rng)[0] for _ in range(n))
        assert set(counts) <= set(probabilities)
        chi_square = sum((counts[t] - n * p) ** 2 / (n * p) for t, p in probabilities.items())
        freedom = len(probabilities) - 1
        assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)  # mean and std of chi-square

    @given(st.integers(0, 2**32), st.integers(0, 6))
    def test_a_sample_parses_to_the_probability_it_was_drawn_with(self, seed, limit):
        play = small_play(limit)
        text, log_p = sample(play, random.Random(seed))
        assert parse(play, text) == (pytest.approx(log_p, abs=1e-12), len(text))


def test_loops_agree_with_closed_forms():
    """After each "ha" another with probability q, or "!": H = h(q) / (1 - q), L = 2 q / (1 - q) + 1."""
    q = 0.9
    binary_entropy = -q * math.log(q) - (1 - q) * math.log(1 - q)

    def laugh(state):
        return Move(q, ("ha",), "laugh"), Move(1 - q, ("!",), None)

    def ping_pong(state):
        return Move(q, ("ha",), {"ping": "pong", "pong": "ping"}[state]), Move(1 - q, ("!",), None)

    for start, moves in (("laugh", laugh), ("ping", ping_pong)):
        entropy, length = expectations(Grammar(start=start, moves=moves, pools={}))
        assert entropy == pytest.approx(binary_entropy / (1 - q), rel=1e-11)
        assert length == pytest.approx(2 * q / (1 - q) + 1, rel=1e-11)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: check_words("noun", ("sailor", "sail")), "list 'noun': 'sail' is a prefix of 'sailor'"),
        (lambda: small_play(0).pool("Q"), "no pool has the variable 'Q': use one of ABC, X"),
        (
            lambda: parse(Grammar("s", lambda s: (Move(0.5, ("a",), None),) * 2, {}), "a"),
            "ambiguous grammar: 2 moves of s",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
