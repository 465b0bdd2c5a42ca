"""Drawn scripts of several layouts come back turn by turn; no word is lost; a real screenplay's figures."""

import html
import random
import re
import textwrap
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import minlm.screenplay.script
from minlm.screenplay.script import Turn, parse_script, plain_text, read_script, reply_pairs, without_hidden

NAMES = ["HOT ROD", "ANNA", "McCOY", "OLD MAN #2", "DR. O'NEIL", "1ST COP", "ZOË"]
WORDS = ["I", "you", "never", "we", "1962", "12", "NO", "STOP", "don't", "it's,", "money", "what's", "so(me)"]
WORDS += ["Paris--night", "the", "a", "of", "walking", "é"]
HEADINGS = [
    "INT. KITCHEN - DAY",
    "EXT. RUE DE RIVOLI -- NIGHT",
    "INT./EXT. CAR (MOVING) - DUSK",
    "I/E GARAGE",
]
GESTURES = ["(beat)", "(to ANNA, who is not listening to any of it)", "(laughs, then stops)"]
EXTENSIONS = ["", "", " (O.S.)", " (V.O.)", "'S VOICE (O.S.)"]


def sentence(rng):
    words = [
        "Oh",
        *rng.choices(WORDS, k=rng.randrange(25)),
    ]  # never "(" or a number first: those are ambiguous
    return " ".join(words) + rng.choice([".", "!", "?", "", " --"])


def draw_scenes(rng):
    """[(heading, [action | (name, [sentence | gesture])])]: what a script says, whatever its layout."""
    scenes = []
    for _ in range(rng.randrange(1, 4)):
        items = []
        for _ in range(rng.randrange(1, 7)):
            gestures = rng.sample(GESTURES, rng.randrange(3))
            parts = [part for gesture in gestures for part in (gesture, sentence(rng))] or [sentence(rng)]
            if rng.random() < 0.3:
                parts.insert(0, sentence(rng))
            items.append((rng.choice(NAMES), parts))
            if rng.random() < 0.4:
                items.append(
                    "He looks at "
                    + " ".join(rng.choices(["the door", "her", "HER"], k=rng.randrange(30)))
                    + "."
                )
        scenes.append((rng.choice(HEADINGS), items))
    return scenes


def expected_turns(scenes):
    turns = []
    for k, (_, items) in enumerate(scenes):
        for name, parts in (item for item in items if not isinstance(item, str)):
            line = " ".join(" ".join(part for part in parts if part not in GESTURES).split())
            turns.append(Turn(name, line, tuple(part for part in parts if part in GESTURES), k))
    return turns


class Indented:
    """Columns for action, speech, gestures and cues; a page may break a speech between any two lines."""

    def __init__(self, rng):
        self.rng = rng
        self.action = rng.choice([0, 5, 15])
        self.speech = self.action + rng.randrange(5, 15)
        self.gesture = self.speech + rng.randrange(3, 6)
        self.cue = self.gesture + rng.randrange(3, 9)

    def page_break(self, name, lines):
        number = self.rng.choice(["12.", "12", "Page 7", "- 3 -"])
        yield from ["", " " * 60 + number, ""] if self.rng.random() < 0.5 else ["", " " * 60 + number]
        if self.rng.random() < 0.5:
            yield from ["", " " * self.cue + f"{name} (CONT'D)"]

    def turn(self, name, parts):
        yield " " * self.cue + name + self.rng.choice(EXTENSIONS)
        for k, part in enumerate(parts):
            column, width = (self.gesture, 22) if part in GESTURES else (self.speech, 35)
            lines = textwrap.wrap(part, width, break_on_hyphens=False)
            for n, line in enumerate(lines):
                yield " " * column + line
                is_last = k + 1 == len(parts) and n + 1 == len(lines)
                if part not in GESTURES and not is_last and self.rng.random() < 0.15:
                    yield from self.page_break(name, lines)

    def paragraph(self, text):
        yield from (" " * self.action + line for line in textwrap.wrap(text, 60))


class Flush:
    """No indents: a page that breaks a speech says who goes on, or breaks it in mid-sentence."""

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
    """`HOT ROD: speech`, the speech going on below."""

    def turn(self, name, parts):
        head, *rest = [line for part in parts for line in textwrap.wrap(part, 35, break_on_hyphens=False)]
        yield f"{name}: {head}"
        yield from rest


def render(scenes, layout, rng):
    """The lines of the script; CONTINUED and a page number may stand between items of different people."""
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


def hidden_as_written(text):
    """What `without_hidden` leaves, as one regular expression: quadratic where nothing has an end."""
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
def test_the_end_of_what_has_none_is_looked_for_once(monkeypatch, opening, kinds):
    looked_for = []
    find_end = minlm.screenplay.script.find_end
    monkeypatch.setattr(minlm.screenplay.script, "find_end", lambda *a: looked_for.append(a) or find_end(*a))
    assert without_hidden(opening * 1000) == opening * 1000
    assert len(looked_for) == kinds


def words_of(script):
    return " ".join(piece.text for piece in script.pieces).split()


def check_whole(text, script):
    """Nothing is lost: the laws that hold for whatever text could be read at all."""
    whole = plain_text(text)
    assert words_of(script) == whole.split()
    assert "\n".join(scene.text for scene in script.scenes) == whole
    kinds = {
        kind: "".join(p.text for p in script.pieces if p.kind == kind)
        for kind in ("dialogue", "action", "heading")
    }
    said, gestures = (
        "".join(t.line for t in script.turns),
        "".join("".join(t.parentheticals) for t in script.turns),
    )
    assert said.replace(" ", "") == kinds["dialogue"].replace(" ", "")
    paragraphs = "".join(e for scene in script.scenes for e in scene.elements if isinstance(e, str))
    assert paragraphs.replace(" ", "") == kinds["action"].replace(" ", "")
    assert "".join(scene.heading for scene in script.scenes) == kinds["heading"]
    aside = "".join(p.text for p in script.pieces if p.kind == "parenthetical")
    assert gestures.replace(" ", "") == aside.replace(" ", "")
    assert all(script.scenes[turn.scene].elements.count(turn) for turn in script.turns)


@pytest.mark.parametrize("make_layout", [Indented, Flush, Colons])
@given(seed=st.integers(0, 2**32))
def test_drawn_scripts_come_back(make_layout, seed):
    rng = random.Random(f"script/{seed}")
    scenes = draw_scenes(rng)
    if make_layout is Colons:  # a gesture before the first word has no line of its own there
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
    for _, items in scenes:  # a gesture of several lines cannot be told from speech without its block
        items[:] = [i if isinstance(i, str) else (i[0], [p for p in i[1] if p != GESTURES[1]]) for i in items]
        items[:] = [i for i in items if isinstance(i, str) or any(p not in GESTURES for p in i[1])]
    lines = [line for line in render(scenes, Indented(rng), rng) if line]
    if expected_turns(scenes):
        assert parse_script("\n\n".join(lines)).turns == expected_turns(scenes)


odd_lines = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [*HEADINGS, *NAMES, *GESTURES, "", "12.", "(CONTINUED)", "ANNA: yes", "Boy:", "CUT TO:", "(a", "b) c"]
    ),
)


@given(rows=st.lists(st.tuples(st.sampled_from(["", "    ", " " * 10, "\t\t"]), odd_lines), max_size=40))
def test_no_word_of_any_text_is_lost(rows):
    text = "\n".join(
        indent + line for indent, line in [*rows, ("", ""), (" " * 12, "ANNA"), (" " * 8, "Well, no.")]
    )
    try:
        script = parse_script(text)
    except ValueError as error:  # nobody is seen to speak where the odd lines look like another layout
        assert "no dialogue found" in str(error)  # noqa: PT017
    else:
        check_whole(text, script)


def one_script(text):
    """Written with / for the end of a line."""
    return parse_script(text.replace("/", "\n"))


def test_pairs_are_of_different_characters_in_one_scene():
    script = one_script(
        "INT. A - DAY//ANNA/One.//ROD/(nods)//ROD/Two.//He sits.//ROD (CONT'D)/Three.//He waits.//"
        "ROD/(nods)//ANNA/Four.//INT. B - DAY//ROD/Five.//ANNA/(nods)//ROD/Six."
    )
    lines = [turn.line for turn in script.turns]
    assert lines == ["One.", "", "Two.", "Three.", "", "Four.", "Five.", "", "Six."]
    assert reply_pairs(script) == [("One.", "Two. Three."), ("Two. Three.", "Four.")]


def test_what_is_no_cue():
    script = one_script(
        "FADE IN:/A room.//CLOSE SHOT/It turns.//THE CROWD ROARS./Long.//ANNA/Yes.//MEANWHILE/INT. B - DAY//"
        "She reads the long old letter:/Dear me.//SUPER: LATER//CUT TO:/black//"
        "THE END//12.//BOB//1/3//REX/12."
    )
    assert [(turn.character, turn.line) for turn in script.turns] == [("ANNA", "Yes."), ("REX", "12.")]
    assert [piece.text for piece in script.pieces if piece.kind == "mark"] == ["12."]


def test_what_is_no_cue_where_cues_are_indented():
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


def test_speakers_abreast_and_centred_names():
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


def test_plain_text_is_plain():
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


def test_one_word_broken_at_its_hyphen_is_whole():
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
    if twice:  # five bytes mean nothing in Windows-1252: readers let them through as they are
        unused = b"\x81\x8d\x8f\x90\x9d"
        once = "".join(chr(b) if b in unused else bytes([b]).decode(twice) for b in text.encode())
    (tmp_path / "script.txt").write_bytes(once.encode(encoding))
    assert read_script(tmp_path / "script.txt") == plain_text(text)
    assert "\r" not in plain_text(text)
    assert plain_text(plain_text(text)) == plain_text(text)


def test_bad_scripts_are_named(tmp_path):
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
            "no such script: .*none.txt is not a file; name a script",
        ),
    ]:
        with pytest.raises(ValueError, match=match) as error:
            call()
        assert "\n" not in str(error.value)


@given(text=st.text(min_size=1), noise=st.integers(1, 8), encoding=st.sampled_from(["utf-16", "utf-32"]))
def test_what_is_no_text_is_refused(tmp_path_factory, text, noise, encoding):
    """Other encodings, pictures and the like; a stray control character in a long text is none of them."""
    path = tmp_path_factory.mktemp("script") / "script.txt"
    plain = "Nobody spoke. " * 40
    for data in (
        (plain + text).encode(encoding, "replace"),
        plain.encode() + bytes([noise]) * 20,
        b"\xff\xd8\0",
    ):
        path.write_bytes(data)
        with pytest.raises(
            ValueError, match=r"script.txt holds NUL or many control .*: is it a text file in UTF-8\?"
        ):
            read_script(path)
    path.write_bytes(plain.encode() + bytes([noise]))
    assert read_script(path) == plain + chr(noise)


@pytest.fixture(scope="module")
def charade(data_root):
    text = read_script(data_root / "scripts" / "Charade.txt")
    return text, parse_script(text)


def test_charade_keeps_every_word(charade):
    check_whole(*charade)


def test_charade_has_its_figures(charade):
    text, script = charade
    assert len(script.scenes) == 210  # 209 headings, and what stands before the first
    assert len(script.turns) == 1217
    assert len(reply_pairs(script)) == 955
    count = Counter(turn.character for turn in script.turns)
    leads = {
        "REGGIE": 491,
        "DYLE": 133,
        "PETER": 98,
        "ADAM": 96,
        "BARTHOLOMEW": 90,
        "TEX": 53,
        "GRANDPIERRE": 41,
    }
    assert dict(count.most_common(7)) == leads
    assert count["FÉLIX"] == 16
    # an independent count: lines in the names' column, and two who speak abreast
    assert sum(line[:38].strip() != "" and line[:37].strip() == "" for line in text.split("\n")) == 1217 - 2
    speech = sum(line[:26].strip() != "" and line[:25].strip() == "" for line in text.split("\n"))
    assert (
        sum(piece.kind == "dialogue" for piece in script.pieces) == speech + 3 - 1
    )  # TEX stands in that column


def test_charade_is_read_right(charade):
    _, script = charade
    assert all(turn.line for turn in script.turns)
    for turn in script.turns:
        assert not {"(O.S.)", "REGGIE", "INT.", "EXT."} & set(turn.line.split()), turn
    assert script.turns[0] == Turn("JEAN-LOUIS", "Oh, la.", ("(in for trouble)",), 2)
    assert reply_pairs(script)[3] == ("Sylvie -- I'm getting a divorce.", "Ça alors! From Charles?")
    (broken,) = [turn for turn in script.turns if "tired of American Provincial" in turn.line]
    assert "Provincial, but that doesn't mean I'm ready for French Traditional." in broken.line
    lines = [turn.line for turn in script.turns]
    k = lines.index("This ain't no game, Miz Lampert.")
    assert [turn.character for turn in script.turns[k - 1 : k + 3]] == ["GIDEON", "TEX", "SCOBIE", "DYLE"]
    assert lines[k + 1] == "We want that money -- now!"
    assert lines[-1].startswith("Before we start on that, do you mind")
    assert script.scenes[1].heading == "EXT. FRENCH COUNTRYSIDE -- DUSK"
    assert script.scenes[-1].elements[-1] == "Back to IMSDb"


def test_shakespeare_is_a_script_too(data_root):
    text = (data_root / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")[:50000]
    script = parse_script(text)
    check_whole(text, script)
    assert script.turns[0] == Turn("First Citizen", "Before we proceed any further, hear me speak.", (), 0)
    named = [
        block for block in text.split("\n\n") if block.split("\n")[0].endswith(":") and "\n" in block.strip()
    ]
    assert len(script.turns) == len(named)
