"""Probabilistic state machines in which every text has exactly one derivation.

A grammar is a function `moves(state)`: the moves open in a state, each with a probability, a pattern of text
and the next state. A text is written by a walk from `start` to `None`. In every state the patterns are
distinguishable (no text of one is a prefix of a text of another), so a text determines its walk, and

    p(text) = product over the walk of  p(move) * product over the pattern of 1 / (number of fillings)

is the text's exact probability. `sample` draws a text, `parse` finds the walk of a given text, `expectations` sums
over all walks. All three use the same `moves` and `fillings`, so they agree about the distribution.

A pattern has three kinds of parts:

    "{H} hands the {X} to {R}."   capital in braces: a variable, drawn once per text, then fixed ({h}: title case)
    "{C:new} enters."             the place where a variable is drawn, uniformly from the unused values of its pool
    "a <adj> <thing>"             a word of that list, drawn uniformly each time (<Adj>: capitalised)

Variables carry long-range facts while the sums stay exact: moves may depend on which variables are drawn, present
or promised (all part of the state) but never on their values, so the sums run over states and not over names.
"""

import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from random import Random
from typing import NamedTuple

MARK = re.compile(r"(\{[A-Za-z](?::new)?\}|<[A-Za-z]+>)")


class Variable(NamedTuple):
    """A variable in a pattern. new: it is drawn here; title: it is written in title case."""

    name: str
    new: bool
    title: bool


Part = str | tuple[str, ...] | Variable  # fixed text, list of words, or variable


class Move(NamedTuple):
    """One choice in a state. `next_state` is None at the end of the text."""

    probability: float
    pattern: tuple[Part, ...]
    next_state: Hashable | None


@dataclass(frozen=True)
class Grammar:
    """A state machine over texts, as described in the module's docstring.

    pools: variables, in drawing order -> their values, {"AB": ("ADA", "IRIS", ...)}; no two pools share a value
    """

    start: Hashable
    moves: Callable[[Hashable], tuple[Move, ...]]
    pools: dict[str, tuple[str, ...]]

    def pool(self, name: str) -> tuple[int, tuple[str, ...]]:
        """Return (number of values in use when the variable is drawn, all values) of a variable's pool."""
        for variables, values in self.pools.items():
            if name in variables:
                return variables.index(name), values
        raise ValueError(f"no pool has the variable {name!r}: use one of {', '.join(self.pools)}")

    def fillings(self, part: Part, bound: dict[str, str]) -> tuple[str, ...]:
        """Return the texts that a part can become, all equally likely, given the variables drawn so far."""
        if isinstance(part, str):
            return (part,)
        if not isinstance(part, Variable):
            return part
        if part.new:
            taken = bound.values()
            return tuple(value for value in self.pool(part.name)[1] if value not in taken)
        value = bound[part.name]
        return (value.title() if part.title else value,)


def check_words(name: str, words: tuple[str, ...]) -> None:
    """Raise ValueError if a word is a prefix of another: a text would not determine the word drawn."""
    ordered = sorted(words)
    for word, following in pairwise(ordered):
        if following.startswith(word):
            raise ValueError(
                f"list {name!r}: {word!r} is a prefix of {following!r}, so a text could be ambiguous: change one"
            )


def read_pattern(text: str, words: dict[str, tuple[str, ...]], **roles: str) -> tuple[Part, ...]:
    """Split "{S} <acts> the {X}." into parts. S="A" renames the variable S to A; others keep their names."""
    parts: list[Part] = []
    for piece in MARK.split(text):
        if piece.startswith("{"):
            letter, new = piece[1], piece.endswith(":new}")
            name = roles.get(letter.upper(), letter.upper())
            parts.append(Variable(name, new=new, title=letter.islower()))
        elif piece.startswith("<"):
            options = words[piece[1:-1].lower()]
            parts.append(tuple(w[0].upper() + w[1:] for w in options) if piece[1].isupper() else options)
        elif piece:
            parts.append(piece)
    return tuple(parts)


def uniform(choices: Sequence[tuple[tuple[Part, ...], Hashable | None]]) -> tuple[Move, ...]:
    """Make (pattern, next state) pairs equally likely moves."""
    return tuple(Move(1 / len(choices), pattern, state) for pattern, state in choices)


def mixture(*groups: tuple[float, tuple[Move, ...]]) -> tuple[Move, ...]:
    """Join groups of moves with the given weights; the share of an empty group goes to the others."""
    total = sum(weight for weight, moves in groups if moves)
    return tuple(
        m._replace(probability=m.probability * weight / total) for weight, moves in groups for m in moves
    )


def sample(grammar: Grammar, rng: Random) -> tuple[str, float]:
    """Sample a text; return it with its log-probability in nats."""
    pieces, bound, log_p, state = [], {}, 0.0, grammar.start
    while state is not None:
        moves = grammar.moves(state)
        move = rng.choices(moves, [m.probability for m in moves])[0]
        log_p += math.log(move.probability)
        for part in move.pattern:
            options = grammar.fillings(part, bound)
            piece = options[0] if len(options) == 1 else rng.choice(options)
            log_p -= math.log(len(options))
            if isinstance(part, Variable) and part.new:
                bound[part.name] = piece
            pieces.append(piece)
        state = move.next_state
    return "".join(pieces), log_p


def match(
    grammar: Grammar, pattern: tuple[Part, ...], bound: dict[str, str], text: str, at: int
) -> tuple[float, int, dict[str, str]] | None:
    """Match a pattern at text[at:]: (log-probability of the fillings, end, variables), or None."""
    log_p, bound = 0.0, dict(bound)
    for part in pattern:
        options = grammar.fillings(part, bound)
        piece = next((option for option in options if text.startswith(option, at)), None)
        if piece is None:
            return None
        log_p -= math.log(len(options))
        at += len(piece)
        if isinstance(part, Variable) and part.new:
            bound[part.name] = piece
    return log_p, at, bound


def parse(grammar: Grammar, text: str, at: int = 0) -> tuple[float, int]:
    """Return (log-probability in nats, end) of the grammar's text at text[at:]; (-inf, end) if there is none.

    In the second case, end is the position that no move matches. Raises ValueError for an ambiguous grammar.
    """
    bound, log_p, state = {}, 0.0, grammar.start
    while state is not None:
        fits = []
        for move in grammar.moves(state):
            found = match(grammar, move.pattern, bound, text, at)
            if found is not None:
                fits.append((move, found))
        if not fits:
            return -math.inf, at
        if len(fits) > 1:
            raise ValueError(
                f"ambiguous grammar: {len(fits)} moves of {state} match {text[at : at + 40]!r}; use distinct patterns"
            )
        move, (filling, at, bound) = fits[0]
        log_p += math.log(move.probability) + filling
        state = move.next_state
    return log_p, at


def pattern_sums(grammar: Grammar, pattern: tuple[Part, ...]) -> tuple[float, float]:
    """Compute the entropy (nats) and mean length (characters) of a pattern's fillings.

    On every walk a variable's value is uniform over its pool: it is drawn without replacement, and no move depends
    on it. So its mean length, at every occurrence, is the pool's mean.
    """
    nats = characters = 0.0
    for part in pattern:
        if isinstance(part, Variable):
            taken, options = grammar.pool(part.name)
            nats += math.log(len(options) - taken) if part.new else 0.0
        else:
            options = (part,) if isinstance(part, str) else part
            nats += math.log(len(options))
        characters += sum(map(len, options)) / len(options)
    return nats, characters


def reachable(grammar: Grammar) -> list[Hashable]:
    """Return all states in breadth-first order from the start."""
    states, seen = [grammar.start], {grammar.start}
    for state in states:
        for move in grammar.moves(state):
            if move.next_state is not None and move.next_state not in seen:
                seen.add(move.next_state)
                states.append(move.next_state)
    return states


def expectations(grammar: Grammar, tolerance: float = 1e-13) -> tuple[float, float]:
    """Compute the entropy (nats) and expected length (characters) of one text, over all texts of the grammar.

        H(s) = sum over moves p * (-log p + H(pattern) + H(next))
        L(s) = sum over moves p * (L(pattern) + L(next))

    Each text has one walk, so H(start) is the entropy of the text itself. States may recur, and texts may have any
    length: the linear equations are solved by Gauss-Seidel sweeps, later states first, until no value changes by more
    than `tolerance`, relatively.
    """
    sums = cache(lambda pattern: pattern_sums(grammar, pattern))
    rows: dict[Hashable, tuple[float, float, dict[Hashable, float]]] = {}
    for state in reachable(grammar):
        nats = characters = 0.0
        onward: dict[Hashable, float] = {}
        for p, pattern, next_state in grammar.moves(state):
            pattern_nats, pattern_characters = sums(pattern)
            nats += p * (pattern_nats - math.log(p))
            characters += p * pattern_characters
            if next_state is not None:
                onward[next_state] = onward.get(next_state, 0.0) + p
        rows[state] = nats, characters, onward
    entropy, length = dict.fromkeys(rows, 0.0), dict.fromkeys(rows, 0.0)
    change = math.inf
    while change > tolerance:
        change = 0.0
        for state in reversed(rows):
            nats, characters, onward = rows[state]
            for next_state, p in onward.items():
                if next_state != state:
                    nats += p * entropy[next_state]
                    characters += p * length[next_state]
            leaving = 1 - onward.get(state, 0.0)  # moves back to the same state are solved for directly
            nats, characters = nats / leaving, characters / leaving
            change = max(change, abs(characters - length[state]) / max(characters, 1.0))
            change = max(change, abs(nats - entropy[state]) / max(nats, 1.0))
            entropy[state], length[state] = nats, characters
    return entropy[grammar.start], length[grammar.start]
