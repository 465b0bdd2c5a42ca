"""Lines of a screenplay -> labelled pieces: heading, action, cue, parenthetical, dialogue, mark or margin.

The layout of a file is learned once: how far names stand to the right of their speech or, where nothing is
indented, how names are written (ANNA, Anna, `Anna:` or `Anna: speech`). A line is a cue if it is such a name and
stands so above its speech; these are distances, not columns, so that pages may have other margins. Speech goes on
in the column of its first line until another column, a paragraph of action or another cue ends it.
"""

import re
from collections import Counter
from typing import NamedTuple

from minlm.screenplay.rows import (
    HEADING,
    TRANSITION,
    Row,
    character_name,
    end_of_gesture,
    is_gesture,
    is_name,
    read_rows,
    single_spaced,
    uncentred,
)

SHOT = re.compile(
    r"(?:ANGLE|CLOSE|CLOSER|WIDE|WIDER|MED|INSERT|REVERSE|POV|SUPER|TITLE)\b|.*\bSHOT\b|.* --? "
)
CONTINUED = re.compile(r"(?:\d+\w? )?\(?(?:CONTINUED|CONT['’]?D|MORE)\)?:?(?: \(\d+\))?(?: \d+\w?)?")
PAGE_NUMBER = re.compile(r"-? ?(?:Page )?\d{1,3} ?[.-]?", re.IGNORECASE)
NO_TEXT = re.compile(f"{CONTINUED.pattern}|{PAGE_NUMBER.pattern}", re.IGNORECASE)
COLON = re.compile(r"([^:()[\]]{1,40}(?:(?:\([^()]*\)|\[[^][]*\]) ?)*:)(?: (.+))?")
EXTENSION = re.compile(r".*\((?:O\.? ?[SC]|V\.? ?O|CONT)\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"(?<!\b[A-Z])(?<!\b[JSDM]R)\.$|[,;!?-]$")  # but JOHN JR. and ERNESTO S.
TITLE_CASE = re.compile(r"[A-Z][\w'’.-]*(?: (?:[A-Z][\w'’.-]*|#?\d+)){0,2}(?: \(.*\))?")
PAGE_WIDTH = 90  # characters; longer lines are whole paragraphs
MAX_GAP = 2  # blank lines between a name and its speech


class Piece(NamedTuple):
    """Words of one line; kind: heading, action, cue, parenthetical, dialogue, mark or margin."""

    kind: str
    text: str
    line: int


class Layout(NamedTuple):
    """How names and speeches stand in a file.

    offsets: how far names stand to the right of their speech, commonest first; empty where nothing is indented
    depth: how far speech stands to the right of action; 0 where they share a column
    action: the usual column of action
    style: how names are written where nothing is indented: capitals, title, colon or inline
    cast: names that recur
    spaced: whether a blank line usually stands below a name
    tight: whether none usually stands above it
    width: of a line of speech, where only its width tells it from the action right below; else 0
    """

    offsets: tuple[int, ...] = ()
    depth: int = 0
    action: int = 0
    style: str = "capitals"
    cast: frozenset[str] = frozenset()
    spaced: bool = False
    tight: bool = False
    width: int = 0


def label(lines: list[str]) -> list[Piece]:
    """Label every word of the lines, in order."""
    rows = read_rows(lines)
    layout = learn_layout([row for row in rows if not NO_TEXT.fullmatch(row.text)])
    if layout.offsets:
        rows = single_spaced(uncentred(rows))
    marks = {row.line for i, row in enumerate(rows) if _is_mark(rows, i, layout)}
    body = [row for row in rows if row.line not in marks]
    labels = {row.line: [("mark", row.text)] for row in rows}
    speaking, column, gesture_end = False, None, 0  # rows before gesture_end belong to an open parenthesis
    for i, row in enumerate(body):
        is_heading = HEADING.match(row.text)
        cue = None if is_heading else _cue(body, i, layout)
        goes_on = speaking and not is_heading and _goes_on(body, i, column, layout, marks)
        speaking = bool(cue or goes_on)
        if cue:
            column = row.indent if cue[1] else None  # None where speech has yet to begin
            labels[row.line] = [("cue", cue[0]), ("dialogue", cue[1])]
            continue
        if speaking:
            gesture_end = max(gesture_end, end_of_gesture(body, i))
        if speaking and i >= gesture_end and column is None:
            column = row.indent
        spoken = "parenthetical" if i < gesture_end else "dialogue"
        labels[row.line] = [("heading" if is_heading else spoken if speaking else "action", row.text)]
    return [
        Piece(kind, text, row.line)
        for row in rows
        for kind, text in [("margin", row.left), *labels[row.line], ("margin", row.right)]
        if text
    ]


def learn_layout(rows: list[Row]) -> Layout:
    """Learn how names and speeches stand: indented if most names are, else flat."""
    single = single_spaced(uncentred(rows))
    found = Counter()  # how far a name stands to the right of the speech below it
    for i, row in enumerate(single):
        k = _speech_below(single, i) if is_name(row.text) else None
        if k is not None and single[k].indent < row.indent:
            found[row.indent - single[k].indent] += 1
    flat = _learn_flat(rows)
    n_flat = sum(_cue(rows, i, flat) is not None for i in range(len(rows)))
    if 2 * found.total() <= n_flat:
        return flat._replace(width=_width(rows, flat))
    near = {offset: sum(found[offset + d] for d in range(-2, 3)) for offset in found}
    offsets = tuple(offset for offset, _ in found.most_common() if 10 * near[offset] >= max(near.values()))
    layout = _learn_columns(single, offsets)
    return layout._replace(width=0 if layout.depth else _width(single, layout))


def _learn_columns(rows: list[Row], offsets: tuple[int, ...]) -> Layout:
    """Learn how far speech stands from action, who recurs, and whether blank lines stand below names."""
    speeches = {}  # name row -> speech row
    for i, row in enumerate(rows):
        k = _speech_below(rows, i) if is_name(row.text) else None
        if k is not None and row.indent - rows[k].indent in offsets:
            speeches[i] = k
    column = rows[next(iter(speeches.values()))].indent
    columns, actions, depths = Counter(), Counter(), Counter()
    below = 0  # rows before it are a name and the first row of its speech
    for i, row in enumerate(rows):
        if i in speeches:
            column, below = rows[speeches[i]].indent, speeches[i] + 1
            columns[column] += 1
        elif i < below or row.left or is_gesture(row) or is_name(row.text):
            continue
        cut_by_page = i > 0 and row.line - row.gap - 1 > rows[i - 1].line  # speech may go on here
        if (row.gap and not cut_by_page) or row.indent < column - 1:
            actions[row.indent] += 1
            depths[column - row.indent] += 1
    count = Counter(character_name(rows[i].text) for i in speeches)
    cast = frozenset(name for name in count if count[name] > 1 and not SENTENCE_END.search(name))
    spaced = 2 * sum(rows[i + 1].gap > 0 and k == i + 1 for i, k in speeches.items()) > len(speeches)
    [(speech, _)] = columns.most_common(1)
    deep = [depth for depth, _ in depths.most_common() if depth > 1]
    if sum(depths[depth] for depth in (-1, 0, 1)) > sum(depths[depth] for depth in deep):
        return Layout(offsets, 0, speech, cast=cast, spaced=spaced)
    lower = [action for action, _ in actions.most_common() if action < speech - 1]
    action = lower[0] if lower else speech - 2
    return Layout(offsets, deep[0] if deep else 2, action, cast=cast, spaced=spaced)


def _learn_flat(rows: list[Row]) -> Layout:
    """Learn how names are written, who recurs, and whether blank lines stand above and below names."""
    layouts = []
    for style in ("capitals", "colon", "inline", "title"):
        at_all = {
            i: character_name(cue[0]) for i, row in enumerate(rows) if (cue := _written(row.text, style))
        }
        set_off = {i: name for i, name in at_all.items() if rows[i].gap}
        tight = style != "inline" and 2 * len(_recurring(set_off, style)) < len(_recurring(at_all, style))
        cast = frozenset(_recurring(at_all if tight or style == "inline" else set_off, style).values())
        places = [i for i, name in at_all.items() if name in cast and i + 1 < len(rows)]
        spaced = 2 * sum(rows[i + 1].gap > 0 for i in places) > len(places)
        layouts.append((len(places), Layout(style=style, cast=cast, spaced=spaced, tight=tight)))
    return max(layouts, key=lambda counted: counted[0])[1]


def _recurring(names: dict[int, str], style: str) -> dict[int, str]:
    """Of the names of rows, those that recur; `Title Case` is so common that it must do so more often."""
    count = Counter(names.values())
    return {i: name for i, name in names.items() if count[name] >= (3 if style == "title" else 2)}


def _written(text: str, style: str) -> tuple[str, str] | None:
    """(cue, speech on the same line) where a line begins as names of that style do."""
    match = COLON.fullmatch(text)
    if style == "inline" and match and match[2] and not SHOT.match(text):
        short = len(character_name(match[1]).split()) <= 4 and not text[0].islower()
        return (match[1], match[2]) if is_name(match[1]) or short else None
    if style == "colon" and match and not match[2]:
        named = text[0].isupper() and len(text.split()) <= 5 and not TRANSITION.match(text)
        return (text, "") if named else None
    if style == "capitals":
        named = (
            is_name(text)
            and not (match and match[2])
            and not SHOT.match(text)
            and not SENTENCE_END.search(text)
        )
        return (text, "") if named else None
    if style == "title":
        named = (
            TITLE_CASE.fullmatch(text) and not is_name(text) and not HEADING.match(text) and text[-1] != "."
        )
        return (text, "") if named else None
    return None


def _cue(rows: list[Row], i: int, layout: Layout) -> tuple[str, str] | None:
    """(cue, speech on the same line) where a row is a name that stands as the layout has it."""
    if layout.offsets:
        return (rows[i].text, "") if _is_column_cue(rows, i, layout) else None
    row, below = rows[i], rows[i + 1] if i + 1 < len(rows) else None
    inline = _written(row.text, "inline")
    if inline:
        known = layout.style == "inline" and character_name(inline[0]) in layout.cast
        return inline if known or is_name(inline[0]) else None
    if below is None or HEADING.match(below.text):
        return None
    known = _written(row.text, layout.style) and character_name(row.text) in layout.cast
    above = row.gap > 0 or layout.tight
    if known and (not below.gap or (above and (layout.spaced or is_gesture(below)))):
        return row.text, ""
    set_off = row.gap > 0 and not below.gap
    return _written(row.text, "capitals") or _written(row.text, "colon") if set_off else None


def _is_column_cue(rows: list[Row], i: int, layout: Layout) -> bool:
    """A name as far to the right of its speech as others are, or anywhere, set off, above some speech."""
    row = rows[i]
    if not is_name(row.text) or i + 1 == len(rows) or HEADING.match(rows[i + 1].text):
        return False
    below, k = rows[i + 1], _speech_below(rows, i)
    speech = below if k is None else rows[k]
    offset = row.indent - speech.indent
    known = character_name(row.text) in layout.cast or EXTENSION.match(row.text)
    deep = speech.indent > layout.action + 1  # no action stands there, unless other pages have other margins
    may_be_apart = layout.depth > 0 or layout.spaced or known or is_gesture(below)
    near = not below.gap or (below.gap <= MAX_GAP and may_be_apart)
    usual = offset in layout.offsets if k is not None else 0 < offset <= max(layout.offsets)
    if near and (usual or (known and offset > 0)) and (deep or known or not layout.depth):
        return True
    set_off = row.gap > 0 and not below.gap
    elsewhere = offset > 0 and layout.depth > 0 and deep
    flush = abs(offset) <= 1 and known and not SENTENCE_END.search(row.text)
    return bool(set_off and (elsewhere or flush))


def _goes_on(rows: list[Row], i: int, column: int | None, layout: Layout, marks: set[int]) -> bool:
    """Whether a row carries on the speech above it, whose column is None before its first line."""
    row, above = rows[i], rows[i - 1]
    cut_by_page = any(line in marks for line in range(above.line + 1, row.line))
    unfinished = cut_by_page and re.search(r"[\w,;:-]$", above.text)
    if unfinished and row.text[0].islower():  # the next page may have another margin
        return True
    if column is None:  # right below the cue, or below its gesture
        return row.gap <= MAX_GAP or bool(unfinished)
    if not layout.offsets:
        return (row.gap == 0 and not _ends_above(rows, i, layout)) or bool(unfinished)
    if is_gesture(row) and row.gap <= 1 and row.indent > column + 1:
        return True
    if row.gap == 0:
        return 2 * (column - row.indent) < max(layout.depth, 2) and not _ends_above(rows, i, layout)
    level = abs(row.indent - column) <= 1
    after_gesture = row.gap <= 1 and above.text.endswith((")", "]")) and above.indent > column + 1
    return level and (layout.depth > 0 or after_gesture or bool(unfinished))


def _ends_above(rows: list[Row], i: int, layout: Layout) -> bool:
    """Whether a line of speech was the last: the next is too wide, or would have begun on that line."""
    row, above = rows[i], rows[i - 1]
    finished = re.search(r"[.!?…\"”*-]\)?$", above.text) and not row.text[0].islower()
    if not (layout.width and finished) or is_gesture(row) or is_gesture(above):
        return False
    return len(row.text) > layout.width or len(above.text) + len(row.text.split()[0]) + 3 < layout.width


def _width(rows: list[Row], layout: Layout) -> int:
    """The width of a line of speech if wider lines often stand right below it, in its column; else 0.

    Where names and speeches share lines, it is that of the widest line if lines are whole paragraphs.
    """
    if layout.style == "inline":
        widest = max((len(row.text) for row in rows), default=0)
        return widest if widest > PAGE_WIDTH else 0
    cues = [i for i in range(len(rows) - 1) if (cue := _cue(rows, i, layout)) and not cue[1]]
    first = sorted(len(rows[i + 1].text) for i in cues if not is_gesture(rows[i + 1]))
    if len(first) < 10:  # too few to tell
        return 0
    width = first[(len(first) - 1) * 9 // 10] + 2
    n_wide = 0
    for i in cues:
        k = i + 2
        while k < len(rows) and not rows[k].gap and abs(rows[k].indent - rows[i + 1].indent) <= 1:
            k += 1
        n_wide += any(len(row.text) > 1.15 * width for row in rows[i + 2 : k])
    return width if 20 * n_wide > len(cues) else 0


def _speech_below(rows: list[Row], i: int) -> int | None:
    """The first row of speech below a name: gestures are skipped, and single blank lines."""
    k = i + 1
    while k < len(rows) and rows[k].gap <= MAX_GAP:
        end = end_of_gesture(rows, k)
        if end == k:
            return None if HEADING.match(rows[k].text) else k
        k = end
    return None


def _is_mark(rows: list[Row], i: int, layout: Layout) -> bool:
    """CONTINUED and the like, and page numbers: a number that is set off, or stands in no speech's column."""
    row = rows[i]
    if CONTINUED.fullmatch(row.text):
        return True
    if not PAGE_NUMBER.fullmatch(row.text):
        return False
    speech = layout.action + layout.depth
    if layout.offsets and abs(row.indent - speech) > 1:
        return row.gap > 0 or row.indent > speech + min(layout.offsets)
    set_off = row.gap > 0 and (i + 1 == len(rows) or rows[i + 1].gap > 0)
    return set_off and not layout.depth
