"""A checker of the facts in a scene of the built-in script, independent of the grammar.

It reads each paragraph with the templates of `scene.py` but keeps its own record of the facts, and knows nothing of
the plot's states and probabilities. So it confirms that the grammar writes consistent scenes only.
"""

import re
from dataclasses import dataclass, field
from functools import cache

from minlm.screenplay import scene
from minlm.screenplay.grammar import MARK

SPEECHES = {
    "talk": scene.TALK,
    "question": [*scene.QUESTIONS.values(), *(text for texts in scene.ANSWERS.values() for text in texts)],
    "mine": scene.MINE,
    "theirs": scene.THEIRS,
    "carried off": scene.CARRIED_OFF,
    "left lying": scene.LEFT_LYING,
    "promise": scene.PROMISES,
    "giver to taker": [scene.REMINDERS["D", True], scene.SETTLED["D", True]],
    "giver alone": [scene.REMINDERS["D", False], scene.SETTLED["D", False]],
    "taker to giver": [scene.REMINDERS["E", True], scene.SETTLED["E", True]],
    "taker alone": [scene.REMINDERS["E", False], scene.SETTLED["E", False]],
    "overheard": [scene.OVERHEARD],
}
ACTIONS = {
    "setting": scene.SETTINGS,
    "opening": scene.OPENINGS,
    "gesture": scene.GESTURES,
    "picked up": scene.PICKED_UP,
    "handed on": scene.HANDED_ON,
    "laid down": scene.LAID_DOWN,
    "enters": scene.ENTERS,
    "returns": scene.RETURNS,
    "leaves": scene.LEAVES,
    "leaves with": scene.LEAVES_WITH,
}


@dataclass
class Facts:
    """Facts known at a point of a scene, by name."""

    on_stage: set[str] = field(default_factory=set)
    away: set[str] = field(default_factory=set)
    thing: str = ""
    holder: str = ""
    giver: str = ""
    taker: str = ""
    promised: str = ""


@cache
def expression(text: str) -> re.Pattern:
    """Turn a template into a regular expression with one group per variable, named by its letter."""
    parts, seen = [], set()
    for piece in MARK.split(text):
        if piece.startswith("<"):
            words = "|".join(scene.WORDS[piece[1:-1].lower()])
            parts.append(f"(?i:{words})")
        elif piece.startswith("{"):
            letter = piece[1]
            values = {"X": "|".join(scene.POOLS["X"]), "P": "|".join(scene.POOLS["P"])}
            name = "[A-Z]+" if letter.isupper() else "[A-Z][a-z]+"
            group = f"(?P<{letter}>{values.get(letter, name)})"
            parts.append(f"(?P={letter})" if letter in seen else group)
            seen.add(letter)
        else:
            parts.append(re.escape(piece))
    return re.compile("".join(parts))


def read(text: str, kinds: dict[str, list[str]]) -> tuple[str, dict[str, str]] | None:
    """Return (kind, variables' values) of a paragraph, names in capitals; None if no template matches."""
    for kind, templates in kinds.items():
        for template in templates:
            found = expression(template).fullmatch(text)
            if found:
                values = found.groupdict().items()
                return kind, {k.upper(): v if k in "XP" else v.upper() for k, v in values}
    return None


def check_facts(text: str) -> list[str]:
    """Return the faults in a text of scenes, one line per fault.

    A paragraph that matches no template, such as a truncated one, is a fault too ("cannot read").
    """
    faults, facts = [], Facts()
    for paragraph in filter(None, text.split("\n\n")):
        if paragraph.startswith(("INT. ", "EXT. ")):
            facts = Facts()
        elif paragraph.strip() in scene.WORDS["cut"]:
            faults += [f"the scene ends before {facts.giver or 'anybody'} has promised"] * (
                not facts.promised
            )
        elif paragraph.startswith(" "):
            faults += hear(paragraph, facts)
        else:
            faults += see(paragraph, facts)
    return faults


def hear(paragraph: str, facts: Facts) -> list[str]:
    """Return the faults of a cue and its lines; record a promise in the facts."""
    cue, *lines = (line.strip() for line in paragraph.split("\n"))
    faults = [] if cue in facts.on_stage else [f"{cue} speaks but is not on stage"]
    audience = facts.on_stage - {cue}
    if lines and lines[0].startswith("(to "):
        listener = lines[0].removeprefix("(to ").rstrip(")")
        faults += [] if listener in audience else [f"{cue} speaks to {listener}, who is not there"]
        audience = {listener}
    if lines and lines[0].startswith("("):
        lines = lines[1:]
    found = read("\n".join(lines), SPEECHES)
    if found is None:
        return [*faults, f"cannot read {paragraph!r}"]
    kind, said = found
    if kind == "promise":
        faults += [f"a second promise: {said['P']}"] if facts.promised else []
        facts.giver, facts.taker, facts.promised = cue, said["L"], said["P"]
    party = {"giver": facts.giver, "taker": facts.taker}.get(kind.split()[0])
    other = facts.taker if kind.startswith("giver") else facts.giver
    wrong = {
        f"{cue} speaks to {said.get('L')}, who is not there": "L" in said and said["L"] not in audience,
        f"{said.get('X')} is not the thing": "X" in said and said["X"] != facts.thing,
        f"{said.get('H')} does not have the {facts.thing}": "H" in said and said["H"] != facts.holder,
        f"{cue} does not hold the {facts.thing}": kind == "mine" and cue != facts.holder,
        f"{facts.holder} is not spoken to": kind == "theirs" and facts.holder not in audience,
        f"{facts.holder} has not gone off": kind == "carried off" and facts.holder not in facts.away,
        f"{facts.holder} holds the {facts.thing}": kind == "left lying" and bool(facts.holder),
        f"{said.get('P')} was not promised": "P" in said and said["P"] != facts.promised,
        f"{said.get('D')} has promised nothing": "D" in said and said["D"] != facts.giver,
        f"{said.get('E')} was promised nothing": "E" in said and said["E"] != facts.taker,
        f"{cue} is not the promise's {kind.split()[0]}": party is not None and cue != party,
        f"{other} is not spoken to": kind in ("giver to taker", "taker to giver") and other not in audience,
        f"{other} has not gone": kind in ("giver alone", "taker alone") and other not in facts.away,
        f"{cue} is part of the promise": kind == "overheard" and cue in (facts.giver, facts.taker),
    }
    return faults + [fault for fault, holds in wrong.items() if holds]


def see(paragraph: str, facts: Facts) -> list[str]:
    """Return the faults of an action; record its changes in the facts."""
    found = read(paragraph, ACTIONS)
    if found is None:
        return [f"cannot read {paragraph!r}"]
    kind, seen = found
    who, thing = seen.get("S") or seen.get("H") or seen.get("C", ""), facts.thing
    if kind == "opening":
        facts.on_stage, facts.holder, facts.thing = {seen["A"], seen["B"]}, seen["A"], seen["X"]
    if kind in ("setting", "opening"):
        return []
    coming = kind in ("enters", "returns")
    wrong = {
        f"{who} is there already": coming and who in facts.on_stage,
        f"{who} has not been here": kind == "returns" and who not in facts.away,
        f"{who} is not on stage": not coming and who not in facts.on_stage,
        f"{seen.get('X')} is not the thing": "X" in seen and seen["X"] != thing,
        f"{seen.get('H')} does not hold the {thing}": "H" in seen and seen["H"] != facts.holder,
        f"{who} does not hold the {thing}": kind == "leaves with" and who != facts.holder,
        f"{who} forgets the {thing}": kind == "leaves" and who == facts.holder,
        f"{facts.holder} holds the {thing}": kind == "picked up" and bool(facts.holder),
    }
    if coming:
        facts.on_stage.add(who)
        facts.away.discard(who)
    if kind in ("leaves", "leaves with"):
        facts.on_stage.discard(who)
        facts.away.add(who)
    if kind in ("picked up", "handed on", "laid down"):
        facts.holder = "" if kind == "laid down" else who
    return [fault for fault, holds in wrong.items() if holds]
