"""Movie scripts as found in the wild -> scenes, turns of dialogue, and (line, reply) pairs.

Every line is labelled heading, action, cue, parenthetical, dialogue or mark (page number, CONTINUED), apart
from scene numbers and revision stars in its margins. The columns of cues and dialogue are learned from the
file; where nothing is indented, a cue is a name in capitals or `Name:` above its speech, or `NAME: speech`.
The words of all pieces, in order, are those of the text: a wrong label misplaces a line but never loses it.
"""

import html
import re
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

HEADING = re.compile(
    r"(?:INT|EXT|I/E|E/I|EST)\b[./ :-]|(?:SCENE|ACT)\s+(?:\d+|[IVX]+|ONE|TWO|THREE|FOUR|FIVE)\b"
)
TRANSITION = re.compile(r"FADE\b|(?:SMASH |MATCH |JUMP )?CUT\b|DISSOLVE\b|THE END|.* TO:$")
SHOT = re.compile(
    r"(?:ANGLE|CLOSE|CLOSER|WIDE|WIDER|MED|INSERT|REVERSE|POV|SUPER|TITLE)\b|.*\bSHOT\b|.* --? "
)
CONTINUED = re.compile(r"(?:\d+\w?\s+)?\(?(?:CONTINUED|CONT['’]?D|MORE)\)?:?(?:\s+\(\d+\))?(?:\s+\d+\w?)?")
PAGE_NUMBER = re.compile(r"-?\s*(?:Page\s+)?\d{1,3}\s*[.-]?", re.IGNORECASE)
MARGINS = re.compile(r"(?:(\d+[A-Z]?\.?)\s+)?(\S.*?)(?:\s{2,}(\d+[A-Z]?\.?))?")
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")  # none is white space
COLON = re.compile(r"([^:()]{1,40}(?:\([^)]*\)\s*)*:)(?:\s+(\S.*))?")


class Piece(NamedTuple):
    """Words of one line; kind: heading, action, cue, parenthetical, dialogue, mark or margin."""

    kind: str
    text: str
    line: int


@dataclass(frozen=True)
class Turn:
    """What one character says in one go; `scene` is the scene's index. A mere gesture has the line ""."""

    character: str
    line: str
    parentheticals: tuple[str, ...]
    scene: int


@dataclass(frozen=True)
class Scene:
    """heading: without scene numbers, "" for what comes before the first; elements: turns, and paragraphs of
    action as plain strings; text: the scene's lines as they stand.
    """

    heading: str
    elements: tuple[str | Turn, ...]
    text: str


@dataclass(frozen=True)
class Script:
    """The scenes, whose texts joined by line ends are the whole text; pieces: every word of it, labelled."""

    scenes: tuple[Scene, ...]
    pieces: tuple[Piece, ...]

    @property
    def turns(self) -> list[Turn]:
        return [element for scene in self.scenes for element in scene.elements if isinstance(element, Turn)]


class Row(NamedTuple):
    """A line that is not blank; left and right: the scene numbers and revision stars of its margins."""

    line: int
    indent: int
    text: str
    left: str
    right: str


class Columns(NamedTuple):
    """Where action, dialogue and cues stand, in characters from the left."""

    action: int
    dialogue: int
    cue: int


def read_script(path: str | Path) -> str:
    """The text of a file in UTF-8 or, failing that, Windows-1252; what was encoded twice is put right."""
    if not Path(path).is_file():
        raise ValueError(f"no such script: {path}")
    data = Path(path).read_bytes()
    if b"\0" in data or len(CONTROL.findall(data)) > 1 + len(data) // 100:
        raise ValueError(f"{path} holds NUL or many control characters: is it a text file in UTF-8?")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    return plain_text(re.sub(r"[^\x00-\x7f]+", lambda run: _decoded_again(run[0]), text))


def plain_text(text: str) -> str:
    """Without byte-order mark, carriage returns, form feeds and tabs; of a web page, what its <pre> holds."""
    text = re.sub(r"\r\n?|\f", "\n", text.replace("\ufeff", ""))
    if re.search(r"<(?:html|body|pre)\b", text, re.IGNORECASE):
        text = re.sub(r"(?is)<!--.*?-->|<(script|style|head)\b.*?</\1>", "", text)
        text = re.sub(r"(?is)^.*?<pre\b[^>]*>|</pre>(?!.*</pre>).*$", "", text)
        text = re.sub(r"(?i)<br\b[^>]*>\n?|</?p\b[^>]*>", "\n", text)
        text = html.unescape(re.sub(r"</?[a-zA-Z][^>]*>", "", text))
    return "\n".join(line.expandtabs() for line in text.replace("\xa0", " ").split("\n"))


def parse_script(text: str) -> Script:
    """Scenes and turns of a script. ValueError where the text is empty or nobody speaks in it.

    The law: the words of `Script.pieces`, in order, are those of `plain_text(text)`.
    """
    lines = plain_text(text).split("\n")
    rows = [_row(i, line) for i, line in enumerate(lines) if line.strip()]
    if not rows:
        raise ValueError("the script is empty: give a text file with scene headings, names and speeches")
    pieces = _label(rows, _learn_columns(rows))
    script = Script(_gather(pieces, lines), tuple(pieces))
    if not any(turn.line for turn in script.turns):
        raise ValueError(
            f"no dialogue found in {len(lines)} lines: looked for names in capitals with speech below, "
            "indented or not (INT. ROOM - DAY / ANNA / Hello.), and for ANNA: Hello."
        )
    return script


def reply_pairs(script: Script) -> list[tuple[str, str]]:
    """(line, reply) of neighbours in one scene; what one says before and after an action is one line."""
    speeches = []  # (scene, character, line)
    for turn in script.turns:
        if turn.line and speeches and speeches[-1][:2] == (turn.scene, turn.character):
            speeches[-1] = (turn.scene, turn.character, f"{speeches[-1][2]} {turn.line}")
        elif turn.line:
            speeches.append((turn.scene, turn.character, turn.line))
    return [(line, reply) for (scene, _, line), (other, _, reply) in pairwise(speeches) if scene == other]


def character_name(cue: str) -> str:
    """REGGIE for `REGGIE'S VOICE (O.S.)`, `"REGGIE"`, `REGGIE (CONT'D):`."""
    name = re.sub(r"\([^)]*\)?", " ", cue).strip(' :"“”')
    return " ".join(re.sub(r"['’]S VOICE$", "", name).split())


def _decoded_again(run: str) -> str:
    """UTF-8 read as Latin-1 or Windows-1252 and encoded once more leaves runs that decode again."""
    try:
        return b"".join(c.encode("latin-1" if c < "\u0100" else "cp1252") for c in run).decode("utf-8")
    except UnicodeError:
        return run


def _row(number: int, line: str) -> Row:
    text, stars = re.fullmatch(r"(.*?)(?:\s{2,}(\*+))?", line.strip()).groups(default="")
    indent = len(line) - len(line.lstrip())
    left, middle, right = MARGINS.fullmatch(text).groups(default="")
    if HEADING.match(middle) or (left and left == right):
        return Row(number, indent, middle, left, f"{right} {stars}")
    return Row(number, indent, text, "", stars)


def _joins(rows: list[Row], i: int) -> bool:
    """Whether no blank line stands between a row and the one before it."""
    return 0 < i < len(rows) and rows[i].line == rows[i - 1].line + 1


def _is_name(text: str) -> bool:
    """Mostly capitals (McCOY and REGGIE and ADAM pass), short, no heading and no transition."""
    name = character_name(text)
    letters = [character for character in name if character.isalpha()]
    in_capitals = letters and sum(letter.isupper() for letter in letters) >= 0.7 * len(letters)
    no_other = not (text.startswith("(") or HEADING.match(name) or TRANSITION.match(text))
    return bool(in_capitals and no_other and len(name) <= 45)


def _flat_cue(rows: list[Row], i: int) -> tuple[str, str] | None:
    """Without columns: (cue, speech on the same line)."""
    text, match = rows[i].text, COLON.fullmatch(rows[i].text)
    if match and match[2]:
        return match.groups() if _is_name(match[1]) and not SHOT.match(text) else None
    if _joins(rows, i) or not _joins(rows, i + 1) or HEADING.match(rows[i + 1].text):
        return None
    in_capitals = _is_name(text) and not SHOT.match(text) and text[-1] not in ".,;!?-"
    with_colon = match and text[0].isupper() and len(text.split()) <= 5 and not TRANSITION.match(text)
    return (text, "") if in_capitals or with_colon else None


def _column_cue(rows: list[Row], i: int, columns: Columns) -> tuple[str, str] | None:
    """A name in the cues' column, or anywhere (centred, two abreast) between a blank line and its speech."""
    if not _is_name(rows[i].text) or i + 1 == len(rows):
        return None
    row, below = rows[i], rows[i + 1]
    usual = abs(row.indent - columns.cue) <= 2 and below.line <= row.line + 2
    unusual = not _joins(rows, i) and _joins(rows, i + 1)
    lower = below.indent < row.indent or (below.text.startswith("(") and row.indent > columns.dialogue + 1)
    return (row.text, "") if (usual or unusual) and lower and below.indent > columns.action else None


def _learn_columns(rows: list[Row]) -> Columns | None:
    """The commonest columns of speeches and of names above them; None where most names are not indented."""
    found = Counter()
    for i, row in enumerate(rows[:-1]):
        k = _gesture_end(rows, i + 1)  # a blank line after every line is no reason to find nothing
        if k < len(rows) and _is_name(row.text) and rows[k].line <= row.line + 2 * (k - i):
            found[rows[k].indent, row.indent] += rows[k].indent < row.indent
    if not (found := +found):
        return None
    dialogue = Counter(d for d, _ in found.elements()).most_common(1)[0][0]
    cue = Counter(c for d, c in found.elements() if d == dialogue).most_common(1)[0][0]
    n_indented = sum(count for (d, _), count in found.items() if abs(d - dialogue) <= 1)
    if 2 * n_indented < sum(_flat_cue(rows, i) is not None for i in range(len(rows))):
        return None
    actions = Counter(row.indent for row in rows if row.indent < dialogue)
    return Columns(actions.most_common(1)[0][0] if actions else dialogue - 1, dialogue, cue)


def _is_mark(rows: list[Row], i: int, columns: Columns | None) -> bool:
    """CONTINUED and the like, and page numbers: a number that stands where no speech stands."""
    row, apart = rows[i], not _joins(rows, i) and not _joins(rows, i + 1)
    if columns:
        apart = abs(row.indent - columns.dialogue) > 1 and (not _joins(rows, i) or row.indent > columns.cue)
    return bool(CONTINUED.fullmatch(row.text) or (apart and PAGE_NUMBER.fullmatch(row.text)))


def _label(rows: list[Row], columns: Columns | None) -> list[Piece]:
    marks = {row.line for i, row in enumerate(rows) if _is_mark(rows, i, columns)}
    body = [row for row in rows if row.line not in marks]
    labels = {row.line: [("mark", row.text)] for row in rows}
    in_speech, gesture_end = False, 0  # rows before gesture_end belong to an open parenthesis
    for i, row in enumerate(body):
        is_heading = HEADING.match(row.text)
        cue = _column_cue(body, i, columns) if columns else _flat_cue(body, i)
        in_speech = not is_heading and bool(cue or (in_speech and _goes_on(body, i, columns, marks)))
        if in_speech and not cue:
            gesture_end = max(gesture_end, _gesture_end(body, i))
        if cue and in_speech:
            labels[row.line] = [("cue", cue[0]), ("dialogue", cue[1])]
        else:
            spoken = "parenthetical" if i < gesture_end else "dialogue"
            labels[row.line] = [("heading" if is_heading else spoken if in_speech else "action", row.text)]
    return [
        Piece(kind, " ".join(text.split()), row.line)
        for row in rows
        for kind, text in [("margin", row.left), *labels[row.line], ("margin", row.right)]
        if text.strip()
    ]


def _goes_on(rows: list[Row], i: int, columns: Columns | None, marks: set[int]) -> bool:
    """Whether a row carries on the speech above: right below it, in its column, or cut off by a page mark."""
    row, above = rows[i], rows[i - 1]
    if columns and _joins(rows, i):
        return row.indent > columns.action
    if columns:
        in_parenthesis = row.text.startswith("(") and columns.dialogue < row.indent < columns.cue
        return in_parenthesis or abs(row.indent - columns.dialogue) <= 1
    cut_by_page = any(line in marks for line in range(above.line + 1, row.line))
    return _joins(rows, i) or (cut_by_page and bool(re.search(r"[\w,;:-]$", above.text)))


def _gesture_end(rows: list[Row], i: int) -> int:
    """The row after the one that closes the parenthesis of row i; i itself where speech follows in that."""
    for j in range(i, len(rows) if rows[i].text.startswith("(") else i):
        if (j > i and not _joins(rows, j)) or ")" in rows[j].text:
            return j + 1 if rows[j].text.find(")") == len(rows[j].text) - 1 else i
    return i


def _gather(pieces: list[Piece], lines: list[str]) -> tuple[Scene, ...]:
    """Cuts the text at its headings; a scene number in the left margin belongs to its heading."""
    starts = [piece.line for piece in pieces if piece.kind == "heading"]
    if not starts or starts[0] > pieces[0].line:
        starts.insert(0, 0)
    scenes, places = [], [piece.line for piece in pieces]
    for k, (first, last) in enumerate(pairwise([0, *starts[1:], len(lines)])):
        own = pieces[bisect_left(places, first) : bisect_left(places, last)]
        heading = " ".join(piece.text for piece in own if piece.kind == "heading")
        scenes.append(Scene(heading, tuple(_elements(own, k)), "\n".join(lines[first:last])))
    return tuple(scenes)


def _elements(pieces: list[Piece], scene: int) -> list[str | Turn]:
    """Paragraphs and turns; a speech cut by a page mark or (CONT'D) is one turn."""
    elements, previous = [], Piece("", "", 0)
    for piece in pieces:
        last = elements[-1] if elements else None
        if piece.kind == "cue":
            name = character_name(piece.text)
            goes_on = previous.kind == "mark" or "(CONT" in piece.text
            if not (goes_on and isinstance(last, Turn) and last.character == name):
                elements.append(Turn(name, "", (), scene))
        elif piece.kind == "dialogue":
            elements[-1] = replace(last, line=_joined(last.line, piece.text))
        elif piece.kind == "parenthetical":
            *closed, open_one = last.parentheticals or ("",)
            if open_one.count("(") == open_one.count(")"):
                closed, open_one = last.parentheticals, ""
            elements[-1] = replace(last, parentheticals=(*closed, _joined(open_one, piece.text)))
        elif piece.kind == "action" and isinstance(last, str) and previous.line + 1 == piece.line:
            elements[-1] = _joined(last, piece.text)
        elif piece.kind == "action":
            elements.append(piece.text)
        previous = piece
    return elements


def _joined(text: str, more: str) -> str:
    """Two lines as one; a word that breaks at its hyphen is whole again."""
    return text + more if not text or re.search(r"[^\W\d_]-$", text) else f"{text} {more}"
