"""Probabilistic state machines whose every text has exactly one derivation.

A grammar is a function `moves(state)`: the moves open in a state, each with a probability, a pattern of text
and the state that follows. A text is what a walk from `start` to `None` writes. At every state the patterns are
distinguishable (no text of one begins a text of another), so a text tells its walk, and

    p(text) = product over the walk of  p(move) * product over the pattern of 1 / (number of fillings)

is the text's exact probability. `sample` draws a text, `parse` finds the walk of a given one, `expectations` sums
over all walks: the three read the same `moves` and `fillings`, so they cannot disagree about the distribution.

A pattern mixes three things:

    "{H} hands the {X} to {R}."   capital in braces: a variable, drawn once a text, then remembered ({h}: title case)
    "{C:new} enters."             the place where a variable is drawn: uniform over what its pool has left
    "a <adj> <thing>"             a word of that list, drawn afresh each time, uniform (<Adj>: capitalised)

Variables carry long-range facts at no cost to the exact sums: moves may depend on which variables are held, present
or promised (that is in the state) but never on their values, so the sums run over states and not over names.
"""

import math
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from random import Random
from typing import NamedTuple

MARK = re.compile(r"(\{[A-Za-z](?::new)?\}|<[A-Za-z]+>)")


class Variable(NamedTuple):
    """A place in a pattern where a remembered value stands."""

    name: str
    new: bool
    title: bool


Part = str | tuple[str, ...] | Variable  # a fixed text, a list of words, or a variable


class Move(NamedTuple):
    """One choice at a state. `next_state` is None where the text ends."""

    probability: float
    pattern: tuple[Part, ...]
    next_state: Hashable | None


@dataclass(frozen=True)
class Grammar:
    """A state machine over texts; see the module's docstring.

    `pools` maps a pool's variables, in the order in which they are drawn, to its values, {"AB": ("ADA", "IRIS", ...)};
    no value stands in two pools.
    """

    start: Hashable
    moves: Callable[[Hashable], tuple[Move, ...]]
    pools: dict[str, tuple[str, ...]]

    def pool(self, name: str) -> tuple[int, tuple[str, ...]]:
        """How many values of the variable's pool are taken before it is drawn, and the pool's values."""
        for variables, values in self.pools.items():
            if name in variables:
                return variables.index(name), values
        raise ValueError(f"no pool holds the variable {name!r}: pools are for {sorted(self.pools)}")

    def fillings(self, part: Part, bound: dict[str, str]) -> tuple[str, ...]:
        """The texts that may stand for a part, all equally likely, given the variables drawn so far."""
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
    """Raises ValueError where one word begins another: the text would not tell which was drawn."""
    ordered = sorted(words)
    for word, following in pairwise(ordered):
        if following.startswith(word):
            raise ValueError(
                f"list {name!r}: {word!r} begins {following!r}, so a text would not tell them apart"
            )


def read_pattern(text: str, words: dict[str, tuple[str, ...]], **roles: str) -> tuple[Part, ...]:
    """The parts of "{S} <acts> the {X}."; with S="A", the variable S is A. Unnamed variables keep their name."""
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


def uniform(choices: list[tuple[tuple[Part, ...], Hashable | None]]) -> tuple[Move, ...]:
    """(pattern, next state) pairs as equally likely moves."""
    return tuple(Move(1 / len(choices), pattern, state) for pattern, state in choices)


def mixture(*groups: tuple[float, tuple[Move, ...]]) -> tuple[Move, ...]:
    """Groups of moves in the given proportions; a group without a move drops out, its share goes to the others."""
    total = sum(weight for weight, moves in groups if moves)
    return tuple(
        m._replace(probability=m.probability * weight / total) for weight, moves in groups for m in moves
    )


def sample(grammar: Grammar, rng: Random) -> tuple[str, float]:
    """One text and its log-probability in nats."""
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


def match(grammar: Grammar, pattern: tuple[Part, ...], bound: dict[str, str], text: str, at: int):
    """(log-probability of the fillings, end, variables) where the pattern stands at text[at:], else None."""
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
    """The log-probability (nats) and the end of the grammar's one text at text[at:]; -inf where there is none.

    In the second case the end is the last place that some walk reaches: what stands there, no move could write.
    Raises ValueError where two moves fit: such a grammar is ambiguous.
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
            raise ValueError(f"ambiguous grammar: {len(fits)} moves of {state} fit {text[at : at + 40]!r}")
        move, (filling, at, bound) = fits[0]
        log_p += math.log(move.probability) + filling
        state = move.next_state
    return log_p, at


def pattern_sums(grammar: Grammar, pattern: tuple[Part, ...]) -> tuple[float, float]:
    """Entropy (nats) and mean length (characters) of a pattern's fillings.

    A variable's value is uniform over its pool whatever the walk (it is drawn without replacement, and no move looks
    at it), so its mean length is the pool's mean, at its first place and at every later one.
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
    """All states, in the order of a breadth-first walk from the start."""
    states, seen = [grammar.start], {grammar.start}
    for state in states:
        for move in grammar.moves(state):
            if move.next_state is not None and move.next_state not in seen:
                seen.add(move.next_state)
                states.append(move.next_state)
    return states


def expectations(grammar: Grammar, tolerance: float = 1e-13) -> tuple[float, float]:
    """Entropy (nats) and expected length (characters) of one text, over all texts of the grammar.

        H(s) = sum over moves p * (-log p + H(pattern) + H(next))
        L(s) = sum over moves p * (L(pattern) + L(next))

    Each text has one walk, so H(start) is the entropy of the text itself. States may return to earlier ones (a text
    may have no longest length): the linear equations are solved by sweeps in place (Gauss-Seidel), later states
    first, until no value changes by more than `tolerance` of its size.
    """
    sums = cache(lambda pattern: pattern_sums(grammar, pattern))
    rows = {}
    for state in reachable(grammar):
        nats = characters = 0.0
        onward: dict[Hashable, float] = {}
        for p, pattern, next_state in grammar.moves(state):
            pattern_nats, pattern_characters = sums(pattern)
            nats += p * (pattern_nats - math.log(p))
            characters += p * pattern_characters
            if next_state is not None:
                onward[next_state] = onward.get(next_state, 0.0) + p
        rows[state] = nats, characters, list(onward.items())
    entropy, length = dict.fromkeys(rows, 0.0), dict.fromkeys(rows, 0.0)
    change = math.inf
    while change > tolerance:
        change = 0.0
        for state in reversed(rows):
            nats, characters, onward = rows[state]
            stay = 1.0
            for next_state, p in onward:
                if next_state == state:
                    stay -= p
                else:
                    nats += p * entropy[next_state]
                    characters += p * length[next_state]
            nats, characters = (
                nats / stay,
                characters / stay,
            )  # a move back to the same state, solved for directly
            change = max(change, abs(characters - length[state]) / max(characters, 1.0))
            change = max(change, abs(nats - entropy[state]) / max(nats, 1.0))
            entropy[state], length[state] = nats, characters
    return entropy[grammar.start], length[grammar.start]
