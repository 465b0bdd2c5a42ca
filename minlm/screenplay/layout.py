"""Lines of a screenplay -> labelled pieces: heading, action, cue, parenthetical, dialogue, mark or margin.

The layout of a file is learned once: the distance of names to the right of their speech or, if nothing is indented,
the style of names (ANNA, Anna, `Anna:` or `Anna: speech`). A line is a cue if it is such a name at such a distance
from the speech below it. Distances, unlike columns, survive pages with other margins. Speech continues in the column
of its first line until another column, a paragraph of action or another cue ends it.
"""

import re
from collections import Counter
from typing import NamedTuple

from minlm.screenplay.rows import (
    HEADING,
    SENTENCE_END,
    Row,
    character_name,
    end_of_parenthetical,
    is_name,
    is_parenthetical,
    read_rows,
    single_spaced,
    split_cue,
    uncentred,
)

CONTINUED = re.compile(r"(?:\d+\w? )?\(?(?:CONTINUED|CONT['’]?D|MORE)\)?:?(?: \(\d+\))?(?: \d+\w?)?")
PAGE_NUMBER = re.compile(r"-? ?(?:Page )?\d{1,3} ?[.-]?", re.IGNORECASE)
NO_TEXT = re.compile(f"{CONTINUED.pattern}|{PAGE_NUMBER.pattern}", re.IGNORECASE)
EXTENSION = re.compile(r".*\((?:O\.? ?[SC]|V\.? ?O|CONT)\b", re.IGNORECASE)
PAGE_WIDTH = 90  # characters; longer lines are whole paragraphs
MAX_GAP = 2  # blank lines between a name and its speech


class Piece(NamedTuple):
    """Words of one line; kind: heading, action, cue, parenthetical, dialogue, mark or margin."""

    kind: str
    text: str
    line: int


class Layout(NamedTuple):
    """Positions and style of names and speech in a file.

    offsets: columns from speech to the names above it, commonest first; empty if nothing is indented
    depth: columns from action to speech; 0 if they share a column
    action: the usual column of action
    style: style of names if nothing is indented: capitals, title, colon or inline
    cast: names that recur
    spaced: whether names usually have a blank line below
    tight: whether names usually have no blank line above
    width: maximal width of a line of speech, if wider lines right below it are action; else 0
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
    speaking, column, aside_end = False, None, 0  # rows before aside_end are in a parenthesis
    for i, row in enumerate(body):
        is_heading = HEADING.match(row.text)
        cue = None if is_heading else _cue(body, i, layout)
        goes_on = speaking and not is_heading and _goes_on(body, i, column, layout, marks)
        speaking = bool(cue or goes_on)
        if cue:
            column = row.indent if cue[1] else None  # None before speech begins
            labels[row.line] = [("cue", cue[0]), ("dialogue", cue[1])]
            continue
        if speaking:
            aside_end = max(aside_end, end_of_parenthetical(body, i))
        if speaking and i >= aside_end and column is None:
            column = row.indent
        spoken = "parenthetical" if i < aside_end else "dialogue"
        labels[row.line] = [("heading" if is_heading else spoken if speaking else "action", row.text)]
    return [
        Piece(kind, text, row.line)
        for row in rows
        for kind, text in [("margin", row.left), *labels[row.line], ("margin", row.right)]
        if text
    ]


def learn_layout(rows: list[Row]) -> Layout:
    """Learn the layout: columns if most names are indented, else flat."""
    single = single_spaced(uncentred(rows))
    found = Counter()  # columns from speech to the name above it -> names
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
    """Learn the distance of speech from action, the cast, and the spacing below names."""
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
        elif i < below or row.left or is_parenthetical(row) or is_name(row.text):
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
    """Learn the style of names, the cast, and the spacing above and below names."""
    layouts = []
    for style in ("capitals", "colon", "inline", "title"):
        cues = {i: split_cue(row.text, style) for i, row in enumerate(rows)}
        at_all = {i: character_name(cue[0]) for i, cue in cues.items() if cue}
        set_off = {i: name for i, name in at_all.items() if rows[i].gap}
        tight = style != "inline" and 2 * len(_recurring(set_off, style)) < len(_recurring(at_all, style))
        cast = frozenset(_recurring(at_all if tight or style == "inline" else set_off, style).values())
        places = [i for i, name in at_all.items() if name in cast and i + 1 < len(rows)]
        spaced = 2 * sum(rows[i + 1].gap > 0 for i in places) > len(places)
        layouts.append((len(places), Layout(style=style, cast=cast, spaced=spaced, tight=tight)))
    return max(layouts, key=lambda counted: counted[0])[1]


def _recurring(names: dict[int, str], style: str) -> dict[int, str]:
    """Keep the names that recur; in `Title Case`, which is common, they must recur more often."""
    count = Counter(names.values())
    return {i: name for i, name in names.items() if count[name] >= (3 if style == "title" else 2)}


def _cue(rows: list[Row], i: int, layout: Layout) -> tuple[str, str] | None:
    """Return (cue, speech on the same line) if a row is a cue in this layout, else None."""
    if layout.offsets:
        return (rows[i].text, "") if _is_column_cue(rows, i, layout) else None
    row, below = rows[i], rows[i + 1] if i + 1 < len(rows) else None
    inline = split_cue(row.text, "inline")
    if inline:
        known = layout.style == "inline" and character_name(inline[0]) in layout.cast
        return inline if known or is_name(inline[0]) else None
    if below is None or HEADING.match(below.text):
        return None
    known = split_cue(row.text, layout.style) and character_name(row.text) in layout.cast
    above = row.gap > 0 or layout.tight
    if known and (not below.gap or (above and (layout.spaced or is_parenthetical(below)))):
        return row.text, ""
    set_off = row.gap > 0 and not below.gap
    return split_cue(row.text, "capitals") or split_cue(row.text, "colon") if set_off else None


def _is_column_cue(rows: list[Row], i: int, layout: Layout) -> bool:
    """Return whether a row is a name at a usual distance from its speech, or at another one but set off."""
    row = rows[i]
    if not is_name(row.text) or i + 1 == len(rows) or HEADING.match(rows[i + 1].text):
        return False
    below, k = rows[i + 1], _speech_below(rows, i)
    speech = below if k is None else rows[k]
    offset = row.indent - speech.indent
    known = character_name(row.text) in layout.cast or EXTENSION.match(row.text)
    deep = speech.indent > layout.action + 1  # no action is there, unless other pages have other margins
    may_be_apart = layout.depth > 0 or layout.spaced or known or is_parenthetical(below)
    near = not below.gap or (below.gap <= MAX_GAP and may_be_apart)
    usual = offset in layout.offsets if k is not None else 0 < offset <= max(layout.offsets)
    if near and (usual or (known and offset > 0)) and (deep or known or not layout.depth):
        return True
    set_off = row.gap > 0 and not below.gap
    elsewhere = offset > 0 and layout.depth > 0 and deep
    flush = abs(offset) <= 1 and known and not SENTENCE_END.search(row.text)
    return bool(set_off and (elsewhere or flush))


def _goes_on(rows: list[Row], i: int, column: int | None, layout: Layout, marks: set[int]) -> bool:
    """Return whether a row continues the speech above it, whose column is None before its first line."""
    row, above = rows[i], rows[i - 1]
    cut_by_page = any(line in marks for line in range(above.line + 1, row.line))
    unfinished = cut_by_page and re.search(r"[\w,;:-]$", above.text)
    if unfinished and row.text[0].islower():  # the next page may have another margin
        return True
    if column is None:  # right below the cue or its parenthetical
        return row.gap <= MAX_GAP or bool(unfinished)
    if not layout.offsets:
        return (row.gap == 0 and not _ends_above(rows, i, layout)) or bool(unfinished)
    if is_parenthetical(row) and row.gap <= 1 and row.indent > column + 1:
        return True
    if row.gap == 0:
        return 2 * (column - row.indent) < max(layout.depth, 2) and not _ends_above(rows, i, layout)
    level = abs(row.indent - column) <= 1
    after_aside = row.gap <= 1 and above.text.endswith((")", "]")) and above.indent > column + 1
    return level and (layout.depth > 0 or after_aside or bool(unfinished))


def _ends_above(rows: list[Row], i: int, layout: Layout) -> bool:
    """Return whether speech ends above a row: the row is too wide, or its first word fits on the line above."""
    row, above = rows[i], rows[i - 1]
    finished = re.search(r"[.!?…\"”*-]\)?$", above.text) and not row.text[0].islower()
    if not (layout.width and finished) or is_parenthetical(row) or is_parenthetical(above):
        return False
    return len(row.text) > layout.width or len(above.text) + len(row.text.split()[0]) + 3 < layout.width


def _width(rows: list[Row], layout: Layout) -> int:
    """Compute the width of speech if wider lines often follow right below it, in its column; else 0.

    In the inline style: the width of the widest line if lines are whole paragraphs, else 0.
    """
    if layout.style == "inline":
        widest = max((len(row.text) for row in rows), default=0)
        return widest if widest > PAGE_WIDTH else 0
    cues = [i for i in range(len(rows) - 1) if (cue := _cue(rows, i, layout)) and not cue[1]]
    first = sorted(len(rows[i + 1].text) for i in cues if not is_parenthetical(rows[i + 1]))
    if len(first) < 10:  # too few to measure
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
    """Return the index of the first row of speech below a name, past parentheticals; None without one."""
    k = i + 1
    while k < len(rows) and rows[k].gap <= MAX_GAP:
        end = end_of_parenthetical(rows, k)
        if end == k:
            return None if HEADING.match(rows[k].text) else k
        k = end
    return None


def _is_mark(rows: list[Row], i: int, layout: Layout) -> bool:
    """Return whether a row is CONTINUED, MORE or a page number: a number set off, or outside the column of speech."""
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
