"""Lines of a script -> rows: text apart from its margins, how far it is indented, what stands above it.

Spacing and centring are taken out here, so that `layout.py` sees every script as if it were single-spaced and flush.
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
SCENE_NUMBER = re.compile(r"\d+[A-Z]?\.?")
MANY = 9  # blank lines thought to stand above the first line
NEAR = 3  # rows on either side whose spacing is compared


class Row(NamedTuple):
    """A line that is not blank; gap: blank lines above it, many above the first; left, right: its margins."""

    line: int
    gap: int
    indent: int
    text: str
    left: str
    right: str


@lru_cache(1 << 16)
def character_name(cue: str) -> str:
    """REGGIE for `REGGIE'S VOICE (O.S.)`, `"REGGIE"`, `REGGIE (CONT'D):`, `REGGIE [laughs]:`."""
    name = re.sub(r"\([^)]*\)?|\[[^\]]*\]?", " ", cue).strip(' :"“”')
    return " ".join(re.sub(r"['’]S VOICE$", "", name).split())


@lru_cache(1 << 16)
def is_name(text: str) -> bool:
    """Mostly capitals (McCOY and REGGIE and ADAM pass), short, no heading and no transition."""
    name = character_name(text)
    letters = [character for character in name if character.isalpha()]
    in_capitals = letters and sum(letter.isupper() for letter in letters) >= 0.7 * len(letters)
    no_other = not (text.startswith(("(", "[")) or HEADING.match(name) or TRANSITION.match(text))
    return bool(in_capitals and no_other and len(name) <= 45)


def is_gesture(row: Row) -> bool:
    return row.text.startswith(("(", "["))


def end_of_gesture(rows: list[Row], i: int) -> int:
    """The row after the one that closes the parenthesis of row i; i itself where speech follows in that."""
    close = {"(": ")", "[": "]"}.get(rows[i].text[0])
    for j in range(i, len(rows) if close else i):
        if (j > i and rows[j].gap) or close in rows[j].text:
            return j + 1 if rows[j].text.find(close) == len(rows[j].text) - 1 else i
    return i


def read_rows(lines: list[str]) -> list[Row]:
    rows, last = [], -1 - MANY
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
        rows.append(
            Row(
                number,
                number - last - 1,
                len(line) - len(line.lstrip()),
                " ".join(middle.split()),
                left,
                f"{right} {stars}".strip(),
            )
        )
        last = number
    return rows


def _margins(text: str) -> tuple[str, str, str]:
    """(scene number on the left, text, scene number on the right)."""
    left, middle = [*text.split(maxsplit=1), ""][:2]
    if not (SCENE_NUMBER.fullmatch(left) and middle):
        left, middle = "", text
    body, right = (["", *middle.rsplit(maxsplit=1)])[-2:]
    if not (SCENE_NUMBER.fullmatch(right) and middle.removesuffix(right).endswith("  ")):
        body, right = middle, ""
    return left, body, right


def single_spaced(rows: list[Row]) -> list[Row]:
    """Take away blank lines that stand between all lines of a stretch, as double spacing has them."""
    gaps = [row.gap for row in rows]
    least = [min(gaps[max(0, i - NEAR) : i + NEAR + 1]) for i in range(len(rows))]
    return [row._replace(gap=row.gap - gap) for row, gap in zip(rows, least, strict=True)]


def uncentred(rows: list[Row]) -> list[Row]:
    """Where names and speeches are centred on one axis, give them columns as if they were indented."""
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
    return [
        row._replace(indent=axis - (0 if is_name(row.text) else 5 if is_gesture(row) else 10))
        if middle
        else row
        for row, middle in zip(rows, centred, strict=True)
    ]


def _middle(row: Row) -> int:
    return row.indent + len(row.text) // 2
