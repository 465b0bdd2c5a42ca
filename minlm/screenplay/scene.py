"""Plot and words of one scene of the built-in script, as a grammar (see `grammar.py`).

A scene is a walk over `State`: heading, setting, opening, then beats. A beat is an action, or a cue with its speech.
The state contains the facts, which last: the characters on stage (only they speak or are addressed), the holder of the
thing (it is handed on, laid down, picked up, carried off), the promise made. A scene ends only after its promise is
kept or called in. Names are the grammar's variables, so the plot never depends on them.
"""

from functools import cache
from typing import NamedTuple

from minlm.screenplay.grammar import Grammar, Move, Part, check_words, mixture, read_pattern, uniform

# Variables: A, B, C the cast in order of entrance; X the thing; P the thing promised.
POOLS = {
    "ABC": ("ADA", "BRUNO", "CLEMENT", "DELPHINE", "FELIX", "IRIS", "MARLOW", "TOBIAS"),
    "X": ("lantern", "violin", "letter", "teapot", "parrot", "telescope", "umbrella", "map"),
    "P": (
        "the last waltz",
        "a trip to the moon",
        "half the treasure",
        "a song at midnight",
        "the corner table",
        "a proper apology",
        "one honest answer",
        "the window seat",
    ),
}
WORD_LINES = {
    "adj": "bald bitter brave clumsy crooked damp dizzy dusty foggy gentle golden greedy grumpy hollow humble "
    "jealous lazy lonely merry modest nervous noisy pale patient plump polite purple quiet rusty shy silver sleepy "
    "sour stubborn tender tiny velvet wicked witty wooden",
    "noun": "baker barrel bishop button candle captain cellist curtain dentist fiddle garden ghost hammer hermit "
    "kettle ladder lobster magnet mirror monk pigeon pillow pirate poet pudding river saddle sailor secret shadow "
    "sparrow spoon tailor teacup tiger trumpet turnip walnut widow window",
    "do": "admire blame borrow bribe follow forgive insult invite kidnap measure paint praise rescue salute tickle "
    "trust",
    "did": "bowed danced fainted prayed sang sneezed snored stumbled vanished waited wept whistled",
    "ing": "bowing humming laughing limping shivering sighing smiling whispering whistling yawning",
    "goods": "butter cocoa coffee fog garlic ginger gravel honey ink lemon mustard onions pepper rain roses smoke "
    "soap sugar tar tobacco",
    "city": "Bruges Cairo Dover Lisbon Malta Naples Odessa Prague Tangier Trieste Vienna Zurich",
    "when": "breakfast dawn dinner Easter lunch Monday sunset winter",
    "room": "ATTIC,BAKERY,BALLROOM,BELL TOWER,GREENHOUSE,LIBRARY,LIGHTHOUSE,OPERA BOX,TICKET OFFICE,CELLAR",
    "outside": "BRIDGE,CEMETERY,CLIFF PATH,FAIRGROUND,FERRY DECK,HARBOUR,ORCHARD,PLATFORM,ROOFTOP,SQUARE",
    "time": "DAWN DAY DUSK EVENING NIGHT",
    "cut": "CUT TO:,DISSOLVE TO:,FADE OUT.",
}
WORDS = {name: tuple(line.split("," if "," in line else None)) for name, line in WORD_LINES.items()}
for _name, _words in (WORDS | POOLS).items():
    check_words(_name, _words)

HEADINGS = ["INT. <room> -- <time>", "EXT. <outside> -- <time>"]
SETTINGS = [
    "<Goods> and <goods>. A <adj> <noun>, a <adj> <noun>\nand a <adj>, <adj> smell of <goods>.",
    "The <adj> <noun> has left. Only <goods>, <goods>\nand a <adj>, <adj> <noun> remain.",
    "Somewhere <adj> <noun>s <do> the <noun>.\nNothing but <goods>, <goods> and <adj> <noun>s.",
]
OPENINGS = [
    "{A:new} and {B:new} stand by the <adj> <noun>.\n{A} holds the {X:new}.",
    "{A:new}, <ing>, holds the {X:new}.\n{B:new} <do>s the <adj> <noun>.",
]
GESTURES = ["{S} <do>s the <adj> <noun> and <do>s the <noun>.", "{S}, <ing>, <do>s a <adj>, <adj> <noun>."]
PICKED_UP = ["{S} picks up the {X} and <do>s the <noun>."]
HANDED_ON = ["{H} hands the {X} to {S}, <ing>."]
LAID_DOWN = ["{H} lays the {X} on the <adj> <noun>."]
ENTERS = ["{C:new} enters with a <adj>, <adj> <noun>, <ing>."]
RETURNS = ["{S} returns from <city> with a <noun>, <ing>."]
LEAVES = ["{S} leaves to <do> a <adj> <noun>."]
LEAVES_WITH = ["{S} leaves with the {X} to <do> a <noun>."]

TALK = [
    "No <adj> <noun>, no <goods>, no <noun>:\nonly <adj>, <adj> <noun>s and <goods>,\n<goods> and <adj> <noun>s.",
    "<Do> the <noun>, {l}, <do> the <noun>\nand <do> no <adj>, <adj> <noun>.",
    "First <goods>, then <goods>, then <adj>,\n<adj> <noun>s, <goods>, <goods>\nand a <adj>, <adj> <noun>.",
    "<City>, <city>, <city>! <Adj> <noun>s,\n<adj> <noun>s, <adj> <goods>,\n<adj> <goods>, and never <goods>.",
    "<Adj> <noun>s <do> <adj> <noun>s, {l},\nand <adj> <noun>s <do> us.",
    "The <noun> <did>, the <noun> <did>,\nthe <adj>, <adj> <noun> <did>,\nand then <goods>, <goods>, <goods>.",
    "You <adj>, <adj>, <adj> <noun>, {l}!\n<Do> your <adj> <noun>.",
    "Love is <goods>, <goods> and <goods>,\na <adj> <noun>, a <adj> <noun>\nand <adj>, <adj> <noun>s.",
    "My <noun> had <adj> <noun>s, <goods>,\n<goods> and a <adj>, <adj> <noun>,\nand <did> in <city>.",
    "Better <do> <adj> <noun>s, {l},\nthan <do> <adj>, <adj> <noun>s.",
    "A <adj> <noun> needs <goods>, <goods>,\n<adj> <noun>s and a <noun>.",
    "In <city> <noun>s <do> <noun>s\nand <adj> <noun>s <do> <adj> <noun>s.",
]
QUESTIONS = {
    "why": "{l}, why did the <adj>, <adj> <noun>\n<do> a <adj> <noun>?",
    "where": "{l}, where did you <do>\nthat <adj>, <adj> <noun>?",
}
ANSWERS = {
    "why": [
        "Because <adj> <noun>s <do> <adj> <noun>s.",
        "To <do> a <adj> <noun>, {l},\nand <do> the <noun>.",
        "Out of love for <goods>, <goods>\nand <adj> <noun>s.",
    ],
    "where": [
        "In <city>, behind <adj> <noun>s\nand a <adj> <noun>.",
        "Between <city> and <city>,\nover <goods>, <goods> and <goods>.",
    ],
}
MINE = [  # said by S, who holds the thing
    "This {X} saved me from <adj>, <adj>\n<noun>s in <city>.",
    "I will not sell the {X}, {l},\nfor <goods>, <goods> or <adj> <noun>s.",
]
THEIRS = [  # said to H, who holds the thing
    "Put down the {X}, {h},\nyou <adj>, <adj> <noun>.",
    "{h}, I would <do> <adj>, <adj> <noun>s\nto hold the {X}.",
]
CARRIED_OFF = [  # H has left with the thing
    "{h} has the {X} now, and <adj> <noun>s,\nand a <adj> <noun>.",
    "Without the {X} I am <adj>, <adj>\nand <adj>. May {h} <do> <noun>s!",
]
LEFT_LYING = [  # no character holds the thing
    "Nobody holds the {X}. It smells\nof <goods>, <goods> and <adj> <noun>s.",
    "Who will pick up the {X}? A <adj>\n<noun> or a <adj> <noun>?",
]
PROMISES = [
    "I promise you {P:new}, {l},\nbefore <when>, by my <adj> <noun>.",
    "You shall have {P:new}, {l},\nas <adj> <noun>s have <adj> <noun>s.",
]
# D has promised E: (speaker, whether the other is on stage) -> line.
REMINDERS = {
    ("D", True): "You will have {P}, {e},\nonce I <do> the <adj>, <adj> <noun>.",
    ("D", False): "I still owe {e} {P}\nand <goods>, and a <adj> <noun>.",
    ("E", True): "You owe me {P}, {d},\nyou <adj>, <adj> <noun>.",
    ("E", False): "{d} still owes me {P},\nthat <adj>, <adj> <noun>.",
}
OVERHEARD = "{d} owes {e} {P}.\nEven <adj> <noun>s and <noun>s know."  # said by the third
SETTLED = {
    ("D", True): "Here it is, {e}: {P},\nwith <goods> and a <adj> <noun>.",
    ("D", False): "{e} is gone. I keep {P}\nfor a <adj>, <adj> <noun>.",
    ("E", True): "{d}, you promised me {P}.\nI want it before <when>, with <goods>.",
    ("E", False): "{d} is gone, and so is {P}.\nI shall <do> <adj> <noun>s.",
}


class State(NamedTuple):
    """Next node of a scene and the facts so far, in terms of variables, not names."""

    node: str  # heading, setting, opening, beat, cue (a parenthetical or line follows) or line
    on_stage: str = ""
    away: str = ""  # the character who has left the stage
    holder: str = ""  # the character who has the thing, on stage or away; "" if it has been laid down
    speaker: str = ""  # the last or present speaker
    listeners: str = ""  # the characters that the speaker may address
    question: str = ""  # the kind of the unanswered question
    promise: str = ""  # "", "AB" after A has promised B, or "settled"


@cache
def pattern(text: str, **roles: str) -> tuple[Part, ...]:
    """Read a pattern over this scene's words."""
    return read_pattern(text, WORDS, **roles)


def moves_to(state: State, texts: list[str], **roles: str) -> tuple[Move, ...]:
    """Return equally likely paragraphs, all followed by one state."""
    return uniform([(pattern(f"{text}\n\n", **roles), state) for text in texts])


def either(choices: list[tuple[Move, ...]]) -> tuple[Move, ...]:
    """Join groups of moves as equally likely alternatives."""
    return mixture(*((1.0, choice) for choice in choices))


@cache
def scene_moves(state: State) -> tuple[Move, ...]:
    """Return the moves open in a state."""
    if state.node == "heading":
        return moves_to(state._replace(node="setting"), HEADINGS)
    if state.node == "setting":
        return moves_to(state._replace(node="opening"), SETTINGS)
    if state.node == "opening":
        return moves_to(State("beat", on_stage="AB", holder="A"), OPENINGS)
    if state.node == "beat" and state.question:  # the character asked answers
        return cue(state, speaker=state.listeners, listeners=state.speaker)
    if state.node == "beat":
        ending = uniform([(pattern(f"{'':20}<cut>\n\n"), None)]) if state.promise == "settled" else ()
        return mixture((0.70, cues(state)), (0.25, actions(state)), (0.80, ending))
    lines = answers(state) if state.question else remarks(state)
    return mixture((0.25, parentheticals(state)), (0.75, lines)) if state.node == "cue" else lines


def cue(state: State, speaker: str, listeners: str) -> tuple[Move, ...]:
    """Return the cue of one speaker."""
    spoken = state._replace(node="cue", speaker=speaker, listeners=listeners)
    return uniform([(pattern(f"{'':10}{{S}}\n", S=speaker), spoken)])


def cues(state: State) -> tuple[Move, ...]:
    """Return cues of all on stage but the last speaker."""
    able = [who for who in state.on_stage if who != state.speaker]
    return either([cue(state, who, state.on_stage.replace(who, "")) for who in able])


def parentheticals(state: State) -> tuple[Move, ...]:
    """Return parentheticals: a manner of speaking, or the only listener addressed."""
    line = state._replace(node="line")
    manner = uniform([(pattern(f"{'':7}(<ing>)\n"), line)])
    to_whom = [
        (pattern(f"{'':7}(to {{L}})\n", L=listener), line._replace(listeners=listener))
        for listener in state.listeners
    ]
    return mixture((0.6, manner), (0.4, uniform(to_whom)))


def actions(state: State) -> tuple[Move, ...]:
    """Return gestures, errands, entrances and exits."""
    gestures = either([moves_to(state, GESTURES, S=who) for who in state.on_stage])
    return mixture((0.4, gestures), (0.3, errands(state)), (0.3, entrances_and_exits(state)))


def errands(state: State) -> tuple[Move, ...]:
    """Return actions that hand on, lay down or pick up the thing; none if it was carried off."""
    if not state.holder:
        return either([moves_to(state._replace(holder=who), PICKED_UP, S=who) for who in state.on_stage])
    if state.holder in state.away:
        return ()
    takers = [who for who in state.on_stage if who != state.holder]
    handed = [moves_to(state._replace(holder=who), HANDED_ON, H=state.holder, S=who) for who in takers]
    return mixture(
        (0.7, either(handed)), (0.3, moves_to(state._replace(holder=""), LAID_DOWN, H=state.holder))
    )


def entrances_and_exits(state: State) -> tuple[Move, ...]:
    """Return the third character's entrance; with three on stage, exits. The thing leaves with its holder."""
    if len(state.on_stage) == 2:
        everyone = state._replace(on_stage="ABC", away="")
        return moves_to(everyone, RETURNS if state.away else ENTERS, S=state.away)
    leaving = []
    for who in state.on_stage:
        remaining = state._replace(on_stage=state.on_stage.replace(who, ""), away=who)
        leaving.append(moves_to(remaining, LEAVES_WITH if who == state.holder else LEAVES, S=who))
    return either(leaving)


def lines_to(state: State, texts: list[str], listeners: str = "", **roles: str) -> tuple[Move, ...]:
    """Return lines of dialogue; a line with an addressee ({l}) goes to each listener equally often."""
    said = []
    for text in texts:
        indented = ["    " + text.replace("\n", "\n    ")]
        to_each = [moves_to(state, indented, L=listener, **roles) for listener in listeners]
        said.append(either(to_each) if "{l}" in text else moves_to(state, indented, **roles))
    return either(said)


def answers(state: State) -> tuple[Move, ...]:
    """Return answers to the state's question."""
    after = state._replace(node="beat", listeners="", question="")
    return lines_to(after, ANSWERS[state.question], state.listeners)


def remarks(state: State) -> tuple[Move, ...]:
    """Return lines other than answers: small talk, questions, remarks on the thing or the promise."""
    after = state._replace(node="beat", listeners="")
    talk = lines_to(after, TALK, state.listeners)
    questions = []
    for kind, text in QUESTIONS.items():
        for listener in state.listeners:
            questions.append(lines_to(after._replace(listeners=listener, question=kind), [text], listener))
    return mixture(
        (0.65, talk),
        (0.10, either(questions)),
        (0.20, lines_to(after, thing_lines(state), state.listeners, H=state.holder)),
        (0.50, promise_lines(state, after)),
    )


def thing_lines(state: State) -> list[str]:
    """Return the texts about the thing that are true of its holder."""
    if not state.holder:
        return LEFT_LYING
    if state.holder in state.away:
        return CARRIED_OFF
    if state.holder == state.speaker:
        return MINE
    return THEIRS if state.holder in state.listeners else []


def promise_lines(state: State, after: State) -> tuple[Move, ...]:
    """Return lines that make the scene's one promise or, while it is open, recall or settle it."""
    if state.promise == "settled":
        return ()
    if not state.promise:
        made = [lines_to(after._replace(promise=state.speaker + to), PROMISES, to) for to in state.listeners]
        return either(made)
    giver, taker = state.promise
    roles = {"D": giver, "E": taker}
    if state.speaker not in state.promise:
        return lines_to(after, [OVERHEARD], **roles)
    other = taker if state.speaker == giver else giver
    if other in state.on_stage and other not in state.listeners:  # the speaker has turned to the third
        return ()
    key = ("D" if state.speaker == giver else "E"), other in state.on_stage
    settled = lines_to(after._replace(promise="settled"), [SETTLED[key]], **roles)
    return mixture((0.3, lines_to(after, [REMINDERS[key]], **roles)), (0.7, settled))


SCENE = Grammar(start=State("heading"), moves=scene_moves, pools=POOLS)
