"""Real scripts: every word is kept, and turns, scenes and pairs are counted independently."""

from collections import Counter

import pytest

from minlm.screenplay.script import Turn, parse_script, read_script, reply_pairs
from tests.minlm.screenplay.drawn_scripts import check_whole


@pytest.fixture(scope="module")
def charade(data_root):
    text = read_script(data_root / "scripts" / "Charade.txt")
    return text, parse_script(text)


def test_charade_keeps_every_word(charade):
    check_whole(*charade)


def test_charade_has_the_known_counts(charade):
    text, script = charade
    assert len(script.scenes) == 210  # 209 headings and the text before the first
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
    # an independent count: lines in the column of names, and two names elsewhere
    assert sum(line[:38].strip() != "" and line[:37].strip() == "" for line in text.split("\n")) == 1217 - 2
    speech = sum(line[:26].strip() != "" and line[:25].strip() == "" for line in text.split("\n"))
    n_dialogue = sum(piece.kind == "dialogue" for piece in script.pieces)
    assert n_dialogue == speech + 3 - 1  # a cue, TEX, is in that column


def test_charade_is_parsed_correctly(charade):
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
