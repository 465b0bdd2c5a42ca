"""Lines of a script -> rows: the text without its margins, its indent, and the blank lines above it.

Double spacing and centring are undone, so that `layout.py` sees every script single-spaced and indented. Functions of
a single text recognise names, cues and parentheticals.
"""

import re
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

HEADING = re.compile(
    r"(?:INT|EXT|INTERIOR|EXTERIOR|I/E|E/I|EST)\b[./ :-]|(?:Int|Ext)\. |"
    r"(?:SCENE|ACT)\s+(?:\d+|[IVX]+|ONE|TWO|THREE|FOUR|FIVE)\b"
)
TRANSITION = re.compile(r"FADE\b|(?:SMASH |MATCH |JUMP )?CUT\b|DISSOLVE\b|THE END|.* TO:$")
SHOT = re.compile(
    r"(?:ANGLE|CLOSE|CLOSER|WIDE|WIDER|MED|INSERT|REVERSE|POV|SUPER|TITLE)\b|.*\bSHOT\b|.* --? "
)
COLON = re.compile(r"([^:()[\]]{1,40}(?:(?:\([^()]*\)|\[[^][]*\]) ?)*:)(?: (.+))?")
SENTENCE_END = re.compile(r"(?<!\b[A-Z])(?<!\b[JSDM]R)\.$|[,;!?-]$")  # but JOHN JR. and ERNESTO S.
TITLE_CASE = re.compile(r"[A-Z][\w'’.-]*(?: (?:[A-Z][\w'’.-]*|#?\d+)){0,2}(?: \(.*\))?")
SCENE_NUMBER = re.compile(r"\d+[A-Z]?\.?")
CLOSING = {"(": ")", "[": "]"}
GAP_AT_START = 9  # blank lines assumed above the first row
NEAR = 3  # rows on either side whose spacing is compared


class Row(NamedTuple):
    """A line that is not blank; gap: blank lines above it; left, right: text in its margins."""

    line: int
    gap: int
    indent: int
    text: str
    left: str
    right: str


@lru_cache(1 << 16)
def character_name(cue: str) -> str:
    """Return the name in a cue: REGGIE for `REGGIE'S VOICE (O.S.)`, `"REGGIE"` and `REGGIE [laughs]:`."""
    name = re.sub(r"\([^)]*\)?|\[[^\]]*\]?", " ", cue).strip(' :"“”')
    return " ".join(re.sub(r"['’]S VOICE$", "", name).split())


@lru_cache(1 << 16)
def is_name(text: str) -> bool:
    """Return whether a text may be a name: short, mostly in capitals (McCOY is), no heading, no transition."""
    name = character_name(text)
    letters = [character for character in name if character.isalpha()]
    in_capitals = letters and sum(letter.isupper() for letter in letters) >= 0.7 * len(letters)
    no_other = not (text.startswith(tuple(CLOSING)) or HEADING.match(name) or TRANSITION.match(text))
    return bool(in_capitals and no_other and len(name) <= 45)


def split_cue(text: str, style: str) -> tuple[str, str] | None:
    """Split a line into (cue, speech on the same line) if it is written in a style of cues, else None.

    Styles: capitals (`ANNA`), title (`Anna`), colon (`Anna:`), inline (`Anna: speech`).
    """
    match = COLON.fullmatch(text)
    if style == "inline":
        if not match or not match[2] or SHOT.match(text):
            return None
        short = len(character_name(match[1]).split()) <= 4 and not text[0].islower()
        return (match[1], match[2]) if is_name(match[1]) or short else None
    if style == "colon":
        short = text[0].isupper() and len(text.split()) <= 5
        named = match and not match[2] and short and not TRANSITION.match(text)
    elif style == "capitals":
        inline = match and match[2]
        named = is_name(text) and not (inline or SHOT.match(text) or SENTENCE_END.search(text))
    else:
        named = TITLE_CASE.fullmatch(text) and not (is_name(text) or HEADING.match(text) or text[-1] == ".")
    return (text, "") if named else None


def is_parenthetical(row: Row) -> bool:
    return row.text[0] in CLOSING


def end_of_parenthetical(rows: list[Row], i: int) -> int:
    """Return the index after the rows of a parenthetical that begins at row i; i itself if none does.

    A parenthesis with speech behind it, in the row that closes it, is part of the speech.
    """
    close = CLOSING.get(rows[i].text[0])
    if close is None:
        return i
    for j in range(i, len(rows)):
        if (j > i and rows[j].gap) or close in rows[j].text:
            return j + 1 if rows[j].text.find(close) == len(rows[j].text) - 1 else i
    return i


def read_rows(lines: list[str]) -> list[Row]:
    """Make a row of each line that is not blank. Scene numbers and revision marks (***) go to the margins."""
    rows, last = [], -1 - GAP_AT_START
    for number, line in enumerate(lines):
        text = line.strip()
        if not text:
            continue
        body = text.rstrip("*")
        stars = text[len(body) :] if body.endswith("  ") else ""
        body = body.strip() if stars else text
        left, middle, right = _margins(body)
        if not (HEADING.match(middle) or (left and left == right)):
            left, middle, right = "", body, ""
        indent, right = len(line) - len(line.lstrip()), f"{right} {stars}".strip()
        rows.append(Row(number, number - last - 1, indent, " ".join(middle.split()), left, right))
        last = number
    return rows


def _margins(text: str) -> tuple[str, str, str]:
    """Split a line into (scene number on the left, text, scene number on the right)."""
    left, middle = [*text.split(maxsplit=1), ""][:2]
    if not (SCENE_NUMBER.fullmatch(left) and middle):
        left, middle = "", text
    body, right = (["", *middle.rsplit(maxsplit=1)])[-2:]
    if not (SCENE_NUMBER.fullmatch(right) and middle.removesuffix(right).endswith("  ")):
        body, right = middle, ""
    return left, body, right


def single_spaced(rows: list[Row]) -> list[Row]:
    """Subtract from each gap the smallest gap nearby, which undoes double spacing."""
    gaps = [row.gap for row in rows]
    least = [min(gaps[max(0, i - NEAR) : i + NEAR + 1]) for i in range(len(rows))]
    return [row._replace(gap=row.gap - gap) for row, gap in zip(rows, least, strict=True)]


def uncentred(rows: list[Row]) -> list[Row]:
    """Indent names, parentheticals and speech by fixed columns if they are centred on one axis."""
    axes = Counter(_middle(row) for row in rows if is_name(row.text) and row.indent)
    if not axes:
        return rows
    axis = axes.most_common(1)[0][0]
    centred = [row.indent > 0 and abs(_middle(row) - axis) <= 1 for row in rows]
    pairs = [i for i in range(len(rows) - 1) if centred[i] and is_name(rows[i].text)]
    below = [rows[i + 1].indent for i in pairs if centred[i + 1]]
    usual = Counter(below).most_common(1)[0][1] if below else 0
    if 2 * len(below) < len(pairs) or len(set(below)) < 5 or 2 * usual > len(below):
        return rows
    columns = [axis - (0 if is_name(row.text) else 5 if is_parenthetical(row) else 10) for row in rows]
    return [
        row._replace(indent=column if middle else row.indent)
        for row, column, middle in zip(rows, columns, centred, strict=True)
    ]


def _middle(row: Row) -> int:
    return row.indent + len(row.text) // 2
