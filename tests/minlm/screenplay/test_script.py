"""Random scripts in several layouts are parsed turn by turn, no word is lost, and web pages are read."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import minlm.screenplay.script
from minlm.screenplay.script import Turn, parse_script, plain_text, read_script, reply_pairs, without_hidden
from tests.minlm.screenplay.drawn_scripts import (
    HEADINGS,
    NAMES,
    PARENTHETICALS,
    Colons,
    Flush,
    Indented,
    check_whole,
    draw_scenes,
    expected_turns,
    render,
    starred,
    web_page,
)


def hidden_as_written(text):
    """Compute `without_hidden` by one regular expression, in quadratic time."""
    return re.sub(r"(?is)<!--.*?-->|<(script|style|head)\b.*?</\1>", "", text)


HIDDEN = (
    "<!--",
    "-->",
    "<script>",
    "</SCRIPT>",
    "<style a>",
    "</style>",
    "<Head\n",
    "</head>",
    "<headline>",
    "é\n",
    "<",
)


@given(st.lists(st.sampled_from(HIDDEN), max_size=12).map("".join))
def test_hidden_parts_of_a_page_end_at_their_first_end(text):
    assert without_hidden(text) == hidden_as_written(text)


@pytest.mark.parametrize("opening, kinds", [("<script>", 1), ("<!--", 1), ("<style><head><script>", 3)])
def test_a_missing_end_is_searched_once(monkeypatch, opening, kinds):
    searched = []
    find_end = minlm.screenplay.script.find_end
    monkeypatch.setattr(minlm.screenplay.script, "find_end", lambda *a: searched.append(a) or find_end(*a))
    assert without_hidden(opening * 1000) == opening * 1000
    assert len(searched) == kinds


@pytest.mark.parametrize("make_layout", [Indented, Flush, Colons])
@given(seed=st.integers(0, 2**32))
def test_random_scripts_are_parsed_into_their_turns(make_layout, seed):
    rng = random.Random(f"script/{seed}")
    scenes = draw_scenes(rng)
    if make_layout is Colons:  # a parenthetical before the first word would not have a line of its own
        scenes = [
            (h, [i if isinstance(i, str) else (i[0], ["Oh", *i[1]]) for i in items]) for h, items in scenes
        ]
    lines = starred(render(scenes, make_layout(rng), rng), rng)
    if make_layout is Indented and rng.random() < 0.3:
        lines = [line.replace(" " * 8, "\t") for line in lines]
    text = "\n".join(lines)
    dressed = rng.choice([str, lambda t: "\ufeff" + t, lambda t: t.replace("\n", "\r\n"), web_page])(text)
    script = parse_script(dressed)
    assert script.turns == expected_turns(scenes)
    assert [scene.heading for scene in script.scenes] == [heading for heading, _ in scenes]
    check_whole(dressed, script)


@given(seed=st.integers(0, 2**32))
def test_a_blank_line_after_every_line_changes_nothing(seed):
    rng = random.Random(f"script/{seed}")
    scenes = draw_scenes(rng)
    for _, items in scenes:  # a parenthetical of several lines needs them together
        items[:] = [
            i if isinstance(i, str) else (i[0], [p for p in i[1] if p != PARENTHETICALS[1]]) for i in items
        ]
        items[:] = [i for i in items if isinstance(i, str) or any(p not in PARENTHETICALS for p in i[1])]
    lines = [line for line in render(scenes, Indented(rng), rng) if line]
    if expected_turns(scenes):
        assert parse_script("\n\n".join(lines)).turns == expected_turns(scenes)


odd_lines = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            *HEADINGS,
            *NAMES,
            *PARENTHETICALS,
            "",
            "12.",
            "(CONTINUED)",
            "ANNA: yes",
            "Boy:",
            "CUT TO:",
            "(a",
            "b) c",
        ]
    ),
)


@given(rows=st.lists(st.tuples(st.sampled_from(["", "    ", " " * 10, "\t\t"]), odd_lines), max_size=40))
def test_no_word_of_any_text_is_lost(rows):
    text = "\n".join(
        indent + line for indent, line in [*rows, ("", ""), (" " * 12, "ANNA"), (" " * 8, "Well, no.")]
    )
    try:
        script = parse_script(text)
    except ValueError as error:  # the odd lines may look like another layout
        assert "no dialogue found" in str(error)  # noqa: PT017
    else:
        check_whole(text, script)


def one_script(text):
    """Parse a text whose lines end in /."""
    return parse_script(text.replace("/", "\n"))


def test_pairs_are_of_different_characters_in_one_scene():
    script = one_script(
        "INT. A - DAY//ANNA/One.//ROD/(nods)//ROD/Two.//He sits.//ROD (CONT'D)/Three.//He waits.//"
        "ROD/(nods)//ANNA/Four.//INT. B - DAY//ROD/Five.//ANNA/(nods)//ROD/Six."
    )
    lines = [turn.line for turn in script.turns]
    assert lines == ["One.", "", "Two.", "Three.", "", "Four.", "Five.", "", "Six."]
    assert reply_pairs(script) == [("One.", "Two. Three."), ("Two. Three.", "Four.")]


def test_transitions_shots_and_numbers_are_no_cues():
    script = one_script(
        "FADE IN:/A room.//CLOSE SHOT/It turns.//THE CROWD ROARS./Long.//ANNA/Yes.//MEANWHILE/INT. B - DAY//"
        "She reads the long old letter:/Dear me.//SUPER: LATER//CUT TO:/black//"
        "THE END//12.//BOB//1/3//REX/12."
    )
    assert [(turn.character, turn.line) for turn in script.turns] == [("ANNA", "Yes."), ("REX", "12.")]
    assert [piece.text for piece in script.pieces if piece.kind == "mark"] == ["12."]


def test_indented_words_that_are_no_cues():
    script = parse_script(
        """INT. A - DAY

                    ANNA
          So

                                                       12.

          STOP!
               (beat)
          Now.

                    BANG
He falls.

                    REX
          Oh
                                                       13.
          no. Say

          13.
He nods.
"""
    )
    assert script.turns == [
        Turn("ANNA", "So STOP! Now.", ("(beat)",), 0),
        Turn("REX", "Oh no. Say 13.", (), 0),
    ]
    assert [element for element in script.scenes[0].elements if isinstance(element, str)] == [
        "BANG He falls.",
        "He nods.",
    ]


def test_two_columns_of_speech_and_centred_names():
    script = parse_script(
        """INT. A - DAY

                      ANNA
          Go on.

                    GRANDPIERRE
          I go.

          TEX
  This ain't
  no game.

                                        SCOBIE
                                Now!

He goes.
"""
    )
    assert [(turn.character, turn.line) for turn in script.turns] == [
        ("ANNA", "Go on."),
        ("GRANDPIERRE", "I go."),
        ("TEX", "This ain't no game."),
        ("SCOBIE", "Now!"),
    ]
    assert script.scenes[0].elements[-1] == "He goes."


def test_a_few_indented_lines_do_not_make_columns():
    script = one_script("   THE HEIST/  a film//INT. A - DAY//ANNA/Yes.//ROD/No.//ANNA/Yes.//ROD/Oh.")
    assert [turn.line for turn in script.turns][-4:] == ["Yes.", "No.", "Yes.", "Oh."]


def test_a_heading_ends_a_speech():
    script = one_script("ANNA/Yes./INT. B - DAY/He goes.//ROD/Oh.")
    assert [scene.heading for scene in script.scenes] == ["", "INT. B - DAY"]
    assert script.scenes[1].elements == ("He goes.", Turn("ROD", "Oh.", (), 1))


def test_plain_text():
    assert plain_text("\ufeffa\r\nb\rc\fd\te\xa0f &amp;") == "a\nb\nc\nd       e f &amp;"
    assert plain_text("<html><style>x</style><p>A &amp; <i>b</i><br/>c</html>") == "\nA & b\nc"


def test_parentheses_that_are_speech():
    script = one_script("ANNA/(oh) no (yes)//ROD/(never closed//He goes.//REX/Who)")
    assert [(turn.line, turn.parentheticals) for turn in script.turns] == [
        ("(oh) no (yes)", ()),
        ("(never closed", ()),
        ("Who)", ()),
    ]


def test_a_name_repeated_on_the_next_page_goes_on():
    script = one_script("ROD/One//12.//ROD/two.//ROD/Three.//ROD (CONT'D)/Four.//ANNA/Five.//13.//ROD/Six.")
    assert [turn.line for turn in script.turns] == ["One two.", "Three. Four.", "Five.", "Six."]


def test_a_word_broken_at_its_hyphen_is_joined():
    script = one_script("ANNA/A vice-/president, or --/12-/13 -/no?")
    assert script.turns[0].line == "A vice-president, or -- 12- 13 - no?"


def test_names_above_their_speech_with_a_colon():
    script = one_script("First Citizen:/Before we/proceed: hear me.//All:/Speak,/Now: speak.")
    assert [(turn.character, turn.line) for turn in script.turns] == [
        ("First Citizen", "Before we proceed: hear me."),
        ("All", "Speak, Now: speak."),
    ]


@pytest.mark.parametrize(
    "encoding, twice",
    [("utf-8", None), ("utf-8-sig", None), ("cp1252", None), ("utf-8", "latin-1"), ("utf-8", "cp1252")],
)
def test_encodings(encoding, twice, tmp_path):
    text = "ZOË\nVoilà — 20 £, “no”.\tÇa va: ÉÈ\r\n\x0cNo."
    if twice == "latin-1":
        text = text.replace("—", "-").replace("“", "'").replace("”", "'")
    once = text
    if twice:  # Windows-1252 leaves five bytes undefined; readers keep them
        unused = b"\x81\x8d\x8f\x90\x9d"
        once = "".join(chr(b) if b in unused else bytes([b]).decode(twice) for b in text.encode())
    (tmp_path / "script.txt").write_bytes(once.encode(encoding))
    assert read_script(tmp_path / "script.txt") == plain_text(text)
    assert "\r" not in plain_text(text)
    assert plain_text(plain_text(text)) == plain_text(text)


def test_bad_scripts_are_refused(tmp_path):
    for call, match in [
        (lambda: parse_script(""), "the script is empty"),
        (lambda: parse_script(" \n\ufeff\t\r\n"), "the script is empty"),
        (
            lambda: parse_script("It was a dark night.\nNobody spoke.\n"),
            "no dialogue found in 3 lines.*ANNA: Hello.*--preset script-lm",
        ),
        (lambda: parse_script("INT. HOUSE - DAY\n\nANNA\n(nods)\n"), "no dialogue found"),
        (
            lambda: read_script(tmp_path / "none.txt"),
            "no such script: .*none.txt is not a file; pass the path",
        ),
    ]:
        with pytest.raises(ValueError, match=match) as error:
            call()
        assert "\n" not in str(error.value)


@given(text=st.text(min_size=1), noise=st.integers(1, 8), encoding=st.sampled_from(["utf-16", "utf-32"]))
def test_binary_files_are_refused(tmp_path_factory, text, noise, encoding):
    """Other encodings and images are refused; one control character in a long text is allowed."""
    path = tmp_path_factory.mktemp("script") / "script.txt"
    plain = "Nobody spoke. " * 40
    for data in (
        (plain + text).encode(encoding, "replace"),
        plain.encode() + bytes([noise]) * 20,
        b"\xff\xd8\0",
    ):
        path.write_bytes(data)
        with pytest.raises(
            ValueError, match=r"script.txt has NUL or many control .*: convert it to text in UTF-8"
        ):
            read_script(path)
    path.write_bytes(plain.encode() + bytes([noise]))
    assert read_script(path) == plain + chr(noise)
