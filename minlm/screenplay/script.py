"""Movie scripts as found in the wild -> scenes, turns of dialogue, and (line, reply) pairs.

`layout.py` labels every line; here the labelled pieces become scenes and turns. The words of all pieces, in order,
are those of the text: a wrong label misplaces a line but never loses it.
"""

import html
import re
from bisect import bisect_left
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from minlm.screenplay.layout import Piece, label
from minlm.screenplay.rows import character_name

CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")  # none is white space


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


def read_script(path: str | Path) -> str:
    """The text of a file in UTF-8 or, failing that, Windows-1252; what was encoded twice is put right."""
    if not Path(path).is_file():
        raise ValueError(f"no such script: {path} is not a file; name a script or any plain text")
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
        text = _of_page(text)
    return "\n".join(line.expandtabs() for line in text.replace("\xa0", " ").split("\n"))


def parse_script(text: str) -> Script:
    """Scenes and turns of a script. ValueError where the text is empty or nobody speaks in it.

    The law: the words of `Script.pieces`, in order, are those of `plain_text(text)`.
    """
    lines = plain_text(text).split("\n")
    if not any(line.strip() for line in lines):
        raise ValueError("the script is empty: give a text file with scene headings, names and speeches")
    pieces = label(lines)
    script = Script(_gather(pieces, lines), tuple(pieces))
    if not any(turn.line for turn in script.turns):
        raise ValueError(
            f"no dialogue found in {len(lines)} lines: looked for names in capitals with speech below, "
            "indented or not (INT. ROOM - DAY / ANNA / Hello.), and for ANNA: Hello. A text that is no screenplay can "
            "be continued, not answered: --preset script-lm"
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


def _of_page(text: str) -> str:
    """The text of a web page: what stands between its first <pre> and its last </pre>, if there are any."""
    text = without_hidden(text)
    start, ends = re.search(r"(?i)<pre\b[^<>]*>", text), [m.start() for m in re.finditer(r"(?i)</pre>", text)]
    text = text[start.end() if start else 0 : ends[-1] if ends else None]
    text = re.sub(r"(?i)<br\b[^<>]*>\n?|</?p\b[^<>]*>", "\n", text)
    return html.unescape(re.sub(r"</?[a-zA-Z][^<>]*>", "", text))


def without_hidden(text: str) -> str:
    """A web page without its comments, scripts, styles and head. One that has no end is kept.

    An end that is not found is not looked for again: a page of openings alone takes linear time.
    """
    kept, done, endless = [], 0, set()
    for opening in re.finditer(r"(?i)<!--|<(script|style|head)\b", text):
        closing = f"</{opening[1].lower()}>" if opening[1] else "-->"
        if opening.start() < done or closing in endless:
            continue
        end = find_end(closing, text, opening.end())
        if end is None:
            endless.add(closing)
        else:
            kept.append(text[done : opening.start()])
            done = end
    return "".join(kept) + text[done:]


def find_end(closing: str, text: str, start: int) -> int | None:
    """The place behind the first `closing` from `start` on, in capitals or not; None where there is none."""
    found = re.compile(closing, re.IGNORECASE).search(text, start)
    return found.end() if found else None


def _decoded_again(run: str) -> str:
    """UTF-8 read as Latin-1 or Windows-1252 and encoded once more leaves runs that decode again."""
    try:
        return b"".join(c.encode("latin-1" if c < "\u0100" else "cp1252") for c in run).decode("utf-8")
    except UnicodeError:
        return run


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
