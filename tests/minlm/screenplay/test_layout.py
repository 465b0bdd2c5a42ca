"""Scripts labelled by hand, one per layout: nearly every word of speech, names and headings is recognised.

A line of scripts/*.txt is its label, "|" and the line itself: H heading, A action, C cue, P parenthetical,
D dialogue, M mark, I a cue with its speech on the same line, N a heading between two scene numbers.
"""

from pathlib import Path

import pytest

from minlm.screenplay.layout import label
from minlm.screenplay.rows import character_name
from minlm.screenplay.script import parse_script

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))


def labelled(path: Path) -> tuple[str, list[str]]:
    """Read a labelled file -> (text, label of each word)."""
    lines, labels = [], []
    for row in path.read_text(encoding="utf-8").splitlines():
        kind, line = row.split("|", 1)
        lines.append(line)
        words = line.split()
        if kind == "I":
            n_cue = len(line.partition(":")[0].split())
            labels += ["C"] * n_cue + ["D"] * (len(words) - n_cue)
        elif kind == "N":
            labels += ["M", *["H"] * (len(words) - 2), "M"]
        else:
            labels += [kind] * len(words)
    return "\n".join(lines), labels


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_speech_and_names_are_found_in_every_layout(path, record_property):
    text, labels = labelled(path)
    found = [piece.kind for piece in label(text.split("\n")) for _ in piece.text.split()]
    assert len(found) == len(labels)
    for kind, of_piece in (("D", "dialogue"), ("C", "cue"), ("H", "heading")):
        both = sum(pair == (kind, of_piece) for pair in zip(labels, found, strict=True))
        recall, precision = both / labels.count(kind), both / max(1, found.count(of_piece))
        report = f"{path.stem}: {of_piece} words: precision {precision:.1%}, recall {recall:.1%}"
        record_property(of_piece, report)
        assert min(recall, precision) >= 0.99, report


def test_all_layouts_contain_the_same_speech():
    spoken = {
        path.stem: [w for t in parse_script(labelled(path)[0]).turns for w in t.line.split()]
        for path in SCRIPTS
    }
    assert len(spoken) == 15
    for stem, words in spoken.items():
        assert words == spoken["indented"], stem


def pieces(text):
    return [(piece.kind, piece.text) for piece in label(text.split("\n"))]


@pytest.mark.parametrize(
    "heading",
    ["INT. A - DAY", "EXT. A", "INTERIOR A - DAY", "EXTERIOR: A", "INT./EXT. A", "Int. A", "12 INT. A 12"],
)
def test_headings(heading):
    assert ("heading", heading.strip("12 ")) in pieces(
        f"ANNA\nYes.\n\n{heading.replace(' 12', '   12')}\n\nHe goes."
    )


def test_a_recurring_sentence_is_no_name_in_title_case():
    text = "\n\n".join(["Anna\nYes.", "Rex\nNo.", "Boom.\nHe falls."] * 3)
    assert {name for kind, name in pieces(text) if kind == "cue"} == {"Anna", "Rex"}


def test_square_brackets_are_parentheticals():
    text = "ANNA\n[nods]\nYes.\n\nROD [aside]:\nNo.\n\nRex [loud]: Oh.\n\nRex: No.\n\nRex [low]: Ah."
    assert pieces(text) == [
        ("cue", "ANNA"),
        ("parenthetical", "[nods]"),
        ("dialogue", "Yes."),
        ("cue", "ROD [aside]:"),
        ("dialogue", "No."),
        ("cue", "Rex [loud]:"),
        ("dialogue", "Oh."),
        ("cue", "Rex:"),
        ("dialogue", "No."),
        ("cue", "Rex [low]:"),
        ("dialogue", "Ah."),
    ]
    assert character_name("Rex [loud, to ANNA]:") == "Rex"


@pytest.mark.parametrize(
    "line", [" " * 300_000 + "x", "x" + " " * 300_000 + "y", "1" + " " * 300_000 + "x  ****"]
)
def test_time_is_linear_in_the_length_of_a_line(line):
    """Trying every pair of positions would take hours."""
    assert [
        piece for _, text in pieces(f"ANNA\nYes.\n\n{line}") for piece in text.split()
    ] == f"ANNA Yes. {line}".split()
