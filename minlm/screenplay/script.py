"""Movie scripts from any source -> scenes, turns of dialogue, and (line, reply) pairs.

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

CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")  # control characters other than white space


@dataclass(frozen=True)
class Turn:
    """One character's speech; scene: the scene's index. The line is "" if there are only parentheticals."""

    character: str
    line: str
    parentheticals: tuple[str, ...]
    scene: int


@dataclass(frozen=True)
class Scene:
    """One scene of a script.

    heading: without scene numbers; "" for text before the first heading
    elements: turns, and paragraphs of action as strings
    text: the scene's lines, unchanged
    """

    heading: str
    elements: tuple[str | Turn, ...]
    text: str


@dataclass(frozen=True)
class Script:
    """A parsed script. The scenes' texts, joined by line ends, are the whole text; pieces: its labelled words."""

    scenes: tuple[Scene, ...]
    pieces: tuple[Piece, ...]

    @property
    def turns(self) -> list[Turn]:
        """All turns, in order."""
        return [element for scene in self.scenes for element in scene.elements if isinstance(element, Turn)]


def read_script(path: str | Path) -> str:
    """Read a text file as UTF-8 or, failing that, Windows-1252; undo double encoding.

    Raises ValueError if the file is missing or binary.
    """
    if not Path(path).is_file():
        raise ValueError(f"no such script: {path} is not a file; pass the path of a script or any plain text")
    data = Path(path).read_bytes()
    if b"\0" in data or len(CONTROL.findall(data)) > 1 + len(data) // 100:
        raise ValueError(f"{path} has NUL or many control characters: convert it to text in UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    return plain_text(re.sub(r"[^\x00-\x7f]+", lambda run: _decoded_again(run[0]), text))


def plain_text(text: str) -> str:
    """Remove byte-order marks, carriage returns, form feeds and tabs; of a web page, keep the text in <pre>."""
    text = re.sub(r"\r\n?|\f", "\n", text.replace("\ufeff", ""))
    if re.search(r"<(?:html|body|pre)\b", text, re.IGNORECASE):
        text = _of_page(text)
    return "\n".join(line.expandtabs() for line in text.replace("\xa0", " ").split("\n"))


def parse_script(text: str) -> Script:
    """Parse a script into scenes and turns. Raises ValueError if the text is empty or has no dialogue.

    The words of `Script.pieces`, in order, are always those of `plain_text(text)`.
    """
    lines = plain_text(text).split("\n")
    if not any(line.strip() for line in lines):
        raise ValueError("the script is empty: pass a text with scene headings, names and speech")
    pieces = label(lines)
    script = Script(_gather(pieces, lines), tuple(pieces))
    if not any(turn.line for turn in script.turns):
        raise ValueError(
            f"no dialogue found in {len(lines)} lines: dialogue is a name in capitals above its speech "
            "(ANNA / Hello.) or a name and a colon (ANNA: Hello.); for other texts use --preset script-lm"
        )
    return script


def reply_pairs(script: Script) -> list[tuple[str, str]]:
    """Return (line, reply) pairs of consecutive speakers in one scene.

    Consecutive turns of one character, interrupted only by action, are one line.
    """
    speeches = []  # (scene, character, line)
    for turn in script.turns:
        if turn.line and speeches and speeches[-1][:2] == (turn.scene, turn.character):
            speeches[-1] = (turn.scene, turn.character, f"{speeches[-1][2]} {turn.line}")
        elif turn.line:
            speeches.append((turn.scene, turn.character, turn.line))
    return [(line, reply) for (scene, _, line), (other, _, reply) in pairwise(speeches) if scene == other]


def _of_page(text: str) -> str:
    """Extract the text of a web page, from its first <pre> to its last </pre> if it has them."""
    text = without_hidden(text)
    start, ends = re.search(r"(?i)<pre\b[^<>]*>", text), [m.start() for m in re.finditer(r"(?i)</pre>", text)]
    text = text[start.end() if start else 0 : ends[-1] if ends else None]
    text = re.sub(r"(?i)<br\b[^<>]*>\n?|</?p\b[^<>]*>", "\n", text)
    return html.unescape(re.sub(r"</?[a-zA-Z][^<>]*>", "", text))


def without_hidden(text: str) -> str:
    """Remove a web page's comments, scripts, styles and head; keep those that are never closed.

    A missing end is searched only once, so that even a page of openings takes linear time.
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
    """Return the end of the first `closing` after `start`, ignoring case; None without one."""
    found = re.compile(closing, re.IGNORECASE).search(text, start)
    return found.end() if found else None


def _decoded_again(run: str) -> str:
    """Decode a run of UTF-8 bytes that were read as Latin-1 or Windows-1252; return other runs unchanged."""
    try:
        return b"".join(c.encode("latin-1" if c < "\u0100" else "cp1252") for c in run).decode("utf-8")
    except UnicodeError:
        return run


def _gather(pieces: list[Piece], lines: list[str]) -> tuple[Scene, ...]:
    """Cut the text at its headings; a scene number in the left margin belongs to its heading."""
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
    """Gather paragraphs and turns; a speech interrupted by a page mark or (CONT'D) is one turn."""
    elements: list[str | Turn] = []
    turn, previous = Turn("", "", (), scene), Piece("", "", 0)
    for piece in pieces:
        last = elements[-1] if elements else None
        if piece.kind == "cue":
            name = character_name(piece.text)
            goes_on = previous.kind == "mark" or "(CONT" in piece.text
            if not (goes_on and last is turn and turn.character == name):
                turn = Turn(name, "", (), scene)
                elements.append(turn)
        elif piece.kind == "dialogue":
            elements[-1] = turn = replace(turn, line=_joined(turn.line, piece.text))
        elif piece.kind == "parenthetical":
            *closed, open_one = turn.parentheticals or ("",)
            if open_one.count("(") == open_one.count(")"):
                closed, open_one = turn.parentheticals, ""
            asides = (*closed, _joined(open_one, piece.text))
            elements[-1] = turn = replace(turn, parentheticals=asides)
        elif piece.kind == "action" and isinstance(last, str) and previous.line + 1 == piece.line:
            elements[-1] = _joined(last, piece.text)
        elif piece.kind == "action":
            elements.append(piece.text)
        previous = piece
    return elements


def _joined(text: str, more: str) -> str:
    """Join two lines by a space, or by nothing if the first ends in a hyphenated word."""
    return text + more if not text or re.search(r"[^\W\d_]-$", text) else f"{text} {more}"
