"""Random scripts in several layouts, the turns they must be parsed into, and laws of any parsed script."""

import html
import textwrap
from itertools import pairwise

from minlm.screenplay.script import Turn, plain_text

NAMES = ["HOT ROD", "ANNA", "McCOY", "OLD MAN #2", "DR. O'NEIL", "1ST COP", "ZOË"]
WORDS = ["I", "you", "never", "we", "1962", "12", "NO", "STOP", "don't", "it's,", "money", "what's", "so(me)"]
WORDS += ["Paris--night", "the", "a", "of", "walking", "é"]
HEADINGS = [
    "INT. KITCHEN - DAY",
    "EXT. RUE DE RIVOLI -- NIGHT",
    "INT./EXT. CAR (MOVING) - DUSK",
    "I/E GARAGE",
]
PARENTHETICALS = ["(beat)", "(to ANNA, who is not listening to any of it)", "(laughs, then stops)"]
EXTENSIONS = ["", "", " (O.S.)", " (V.O.)", "'S VOICE (O.S.)"]


def sentence(rng):
    """Draw a sentence that begins with a plain word: a parenthesis or number would be ambiguous."""
    words = rng.choices(WORDS, k=rng.randrange(25))
    return " ".join(["Oh", *words]) + rng.choice([".", "!", "?", "", " --"])


def draw_scenes(rng):
    """Draw a script's content without layout: [(heading, [action | (name, [sentence | parenthetical])])]."""
    scenes = []
    for _ in range(rng.randrange(1, 4)):
        items = []
        for _ in range(rng.randrange(1, 7)):
            asides = rng.sample(PARENTHETICALS, rng.randrange(3))
            parts = [part for aside in asides for part in (aside, sentence(rng))] or [sentence(rng)]
            if rng.random() < 0.3:
                parts.insert(0, sentence(rng))
            items.append((rng.choice(NAMES), parts))
            if rng.random() < 0.4:
                objects = rng.choices(["the door", "her", "HER"], k=rng.randrange(30))
                items.append(f"He looks at {' '.join(objects)}.")
        scenes.append((rng.choice(HEADINGS), items))
    return scenes


def expected_turns(scenes):
    turns = []
    for k, (_, items) in enumerate(scenes):
        for name, parts in (item for item in items if not isinstance(item, str)):
            line = " ".join(" ".join(part for part in parts if part not in PARENTHETICALS).split())
            turns.append(Turn(name, line, tuple(part for part in parts if part in PARENTHETICALS), k))
    return turns


class Indented:
    """Columns for action, speech, parentheticals and cues; speech may break across pages between any two lines."""

    def __init__(self, rng):
        self.rng = rng
        self.action = rng.choice([0, 5, 15])
        self.speech = self.action + rng.randrange(5, 15)
        self.parenthetical = self.speech + rng.randrange(3, 6)
        self.cue = self.parenthetical + rng.randrange(3, 9)

    def page_break(self, name, lines):
        number = self.rng.choice(["12.", "12", "Page 7", "- 3 -"])
        yield from ["", " " * 60 + number, ""] if self.rng.random() < 0.5 else ["", " " * 60 + number]
        if self.rng.random() < 0.5:
            yield from ["", " " * self.cue + f"{name} (CONT'D)"]

    def turn(self, name, parts):
        yield " " * self.cue + name + self.rng.choice(EXTENSIONS)
        for k, part in enumerate(parts):
            column, width = (self.parenthetical, 22) if part in PARENTHETICALS else (self.speech, 35)
            lines = textwrap.wrap(part, width, break_on_hyphens=False)
            for n, line in enumerate(lines):
                yield " " * column + line
                is_last = k + 1 == len(parts) and n + 1 == len(lines)
                if part not in PARENTHETICALS and not is_last and self.rng.random() < 0.15:
                    yield from self.page_break(name, lines)

    def paragraph(self, text):
        yield from (" " * self.action + line for line in textwrap.wrap(text, 60))


class Flush:
    """No indents. After a page break the cue is repeated, or the sentence continues."""

    action = 0

    def __init__(self, rng):
        self.rng = rng

    def turn(self, name, parts):
        yield name + self.rng.choice(["", ":", " (O.S.)", " (V.O.):"])
        lines = [line for part in parts for line in textwrap.wrap(part, 35, break_on_hyphens=False)]
        for line, below in pairwise([*lines, ""]):
            yield line
            whole = below and "(" not in line + below and ")" not in line + below
            if whole and self.rng.random() < 0.2:
                yield from ["", "(MORE)", "", "12.", "", f"{name} (CONT’D)"]
            elif (
                whole
                and line[-1].isalpha()
                and below[0].isalpha()
                and below == below.lower()
                and self.rng.random() < 0.5
            ):
                yield from ["", "12.", ""]

    def paragraph(self, text):
        yield from textwrap.wrap(text, 60)


class Colons(Flush):
    """`HOT ROD: speech`, continued on the next lines."""

    def turn(self, name, parts):
        head, *rest = [line for part in parts for line in textwrap.wrap(part, 35, break_on_hyphens=False)]
        yield f"{name}: {head}"
        yield from rest


def render(scenes, layout, rng):
    """Lay out a script as lines, some with CONTINUED and page numbers between items of different characters."""
    lines = []
    numbered = rng.random() < 0.3
    blank = [""] * rng.choice([1, 1, 2])
    for n, (heading, items) in enumerate(scenes, start=12):
        lines += [f"{n}A   {heading}      {n}A" if numbered else " " * layout.action + heading, *blank]
        previous = None
        for item in items:
            name = None if isinstance(item, str) else item[0]
            clear = lines[-len(blank) - 1][-1] in ".!?" or isinstance(layout, Indented)
            if previous and name != previous and clear and rng.random() < 0.15:
                lines += [
                    "(CONTINUED)",
                    "",
                    "12.",
                    "",
                    rng.choice(["CONTINUED:", "12A CONTINUED: (2) 12A"]),
                    "",
                ]
            lines += [*(layout.paragraph(item) if name is None else layout.turn(*item)), *blank]
            previous = name
    return lines


def starred(lines, rng):
    return [f"{line}    *" if line.strip() and rng.random() < 0.1 else line for line in lines]


def web_page(text):
    body = html.escape(text, quote=False).replace("INT.", "<b>INT.</b>")
    page = f"<html><head><title>MENU\nLOGIN: here</title></head><body>LOGIN<pre class='x'>{body}</pre>"
    return page + "FOOT: er</body></html>"


def words_of(script):
    return " ".join(piece.text for piece in script.pieces).split()


def check_whole(text, script):
    """Check the laws of every parsed text: pieces, scenes and turns each keep all of its words."""
    whole = plain_text(text)
    assert words_of(script) == whole.split()
    assert "\n".join(scene.text for scene in script.scenes) == whole
    kinds = {
        kind: "".join(p.text for p in script.pieces if p.kind == kind)
        for kind in ("dialogue", "action", "heading")
    }
    said, parentheticals = (
        "".join(t.line for t in script.turns),
        "".join("".join(t.parentheticals) for t in script.turns),
    )
    assert said.replace(" ", "") == kinds["dialogue"].replace(" ", "")
    paragraphs = "".join(e for scene in script.scenes for e in scene.elements if isinstance(e, str))
    assert paragraphs.replace(" ", "") == kinds["action"].replace(" ", "")
    assert "".join(scene.heading for scene in script.scenes) == kinds["heading"]
    aside = "".join(p.text for p in script.pieces if p.kind == "parenthetical")
    assert parentheticals.replace(" ", "") == aside.replace(" ", "")
    assert all(script.scenes[turn.scene].elements.count(turn) for turn in script.turns)
