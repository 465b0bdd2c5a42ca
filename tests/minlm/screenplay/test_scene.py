"""Scenes: moves are distinguishable in every state, the form is a screenplay's, and facts are consistent."""

import math
import re
from functools import cache
from itertools import combinations, pairwise

import pytest

from minlm.screenplay import scene
from minlm.screenplay.grammar import Variable, reachable
from minlm.screenplay.source import ScreenplayConfig, write_scenes
from tests.minlm.screenplay.continuity import check_facts

SCENES = write_scenes(ScreenplayConfig(seed=1, n_scenes=400))


def may_clash(first: list[tuple[str, ...]], second: list[tuple[str, ...]]) -> bool:
    """Return whether a text of one sequence of word choices is a prefix of a text of the other."""

    @cache
    def ahead(mine, yours, rest):  # mine is `rest` ahead of yours
        if not yours:
            return True
        if not rest and not mine:
            return True
        if not rest:
            return any(ahead(mine[1:], yours, word) for word in mine[0])
        for word in yours[0]:
            if word.startswith(rest) and ahead(yours[1:], mine, word[len(rest) :]):
                return True
            if rest.startswith(word) and word != rest and ahead(mine, yours[1:], rest[len(word) :]):
                return True
        return False

    return ahead(tuple(first), tuple(second), "")


def test_clash_finder():
    assert may_clash([("a", "b"), ("c",)], [("ac",), ("d",)])
    assert may_clash([("ab",)], [("a",), ("b", "c")])
    assert not may_clash([("a", "b"), ("c",)], [("ab", "bb"), ("c",)])


def test_at_every_state_the_moves_are_distinguishable():
    """In no state is a text of one move a prefix of a text of another, so a text has one derivation."""
    cast = dict(zip("ABC", scene.POOLS["ABC"], strict=False)) | {"X": "lantern", "P": "the last waltz"}

    @cache
    def choices(pattern):
        sequence = []
        for part in pattern:
            if isinstance(part, Variable) and part.new:
                sequence.append(
                    next(values for variables, values in scene.POOLS.items() if part.name in variables)
                )
            elif isinstance(part, Variable):
                sequence.append((cast[part.name].title() if part.title else cast[part.name],))
            else:
                sequence.append((part,) if isinstance(part, str) else part)
        return sequence

    @cache
    def clash(first, second):
        return may_clash(choices(first), choices(second))

    states = reachable(scene.SCENE)
    for patterns in {tuple(move.pattern for move in scene.scene_moves(state)) for state in states}:
        assert not any(clash(first, second) for first, second in combinations(patterns, 2))
    for state in states:
        assert math.fsum(move.probability for move in scene.scene_moves(state)) == pytest.approx(1, abs=1e-12)


def test_form_of_a_screenplay():
    text = "".join(t for t, _ in SCENES)
    indented = (
        r" {10}[A-Z]+| {7}\([A-Za-z ]+\)| {4}[A-Z].*| {4}[a-z].*| {20}(CUT TO:|DISSOLVE TO:|FADE OUT\.)"
    )
    for line, following in pairwise(text.split("\n")):
        assert line.isascii()
        assert len(line) <= 62
        if line.startswith(("INT.", "EXT.")):
            assert re.fullmatch(r"(INT|EXT)\. [A-Z ]+ -- [A-Z]+", line)
        if line.startswith(" "):
            assert re.fullmatch(indented, line), line
        if re.fullmatch(r" {10}[A-Z]+| {7}\(.*\)", line):
            assert re.match(r" {4}\w| {7}\(", following), line  # speech follows a cue
        if re.fullmatch(r" {10}[A-Z]+", following):
            assert line == ""


class TestFacts:
    def test_facts_hold_in_every_scene(self):
        assert [check_facts(text) for text, _ in SCENES] == [[]] * len(SCENES)

    def test_only_those_on_stage_speak_and_only_holders_hand_on(self):
        """Check without the templates, from cues, entrances, exits and the thing's holders."""
        anyone = r"\b(?:" + "|".join(scene.POOLS["ABC"]) + r")\b"
        exits = hands = 0
        for text, _ in SCENES:
            met, on_stage, holder = set(), set(), None
            for block in text.split("\n\n"):
                names = re.findall(anyone, block)
                if " holds the " in block and not block.startswith(" "):
                    met, on_stage, holder = (
                        set(names),
                        set(names),
                        re.findall(r"([A-Z]+)(?:, \w+,)? holds", block)[0],
                    )
                elif re.match(r"[A-Z]+ (enters|returns)", block):
                    assert names[0] not in on_stage
                    on_stage.add(names[0])
                    met.add(names[0])
                elif re.match(r"[A-Z]+ leaves", block):
                    exits += 1
                    on_stage.remove(names[0])
                    assert (names[0] == holder) == (" leaves with the " in block)
                elif found := re.match(r"([A-Z]+) hands the \w+ to ([A-Z]+)", block):
                    hands += 1
                    assert found[1] == holder
                    holder = found[2]
                elif " picks up the " in block:
                    assert holder is None
                    holder = names[0]
                elif " lays the " in block:
                    assert names[0] == holder
                    holder = None
                assert {name.upper() for name in re.findall(anyone, block, re.IGNORECASE)} <= met
                if cue := re.match(r" {10}([A-Z]+)\n", block):
                    assert cue[1] in on_stage
                if found := re.search(r"This (\w+) saved me", block):
                    assert names[0] == holder
        assert exits > 20
        assert hands > 50

    def test_the_character_asked_answers(self):
        asked = 0
        for text, _ in SCENES:
            for block, following in pairwise(text.split("\n\n")):
                if question := re.search(r"\n    (\w+), (why|where) did", block):
                    asked += 1
                    cue, *_, answer = re.split(r"\n(?= {4}\S)", following)[:2]
                    assert cue.split()[0] == question[1].upper()
                    openings = {"why": ("Because", "To", "Out"), "where": ("In", "Between")}[question[2]]
                    assert answer.strip().startswith(openings)
        assert asked > 50

    def test_every_kind_of_fact_occurs(self):
        text = "".join(t for t, _ in SCENES)
        for group in (scene.MINE, scene.THEIRS, scene.CARRIED_OFF, scene.LEFT_LYING, scene.SETTLED.values()):
            for template in group:
                fixed = max(re.split(r"\{.\}|<\w+>|\n", template), key=len)
                assert fixed in text, template
        assert " owes " in text

    head = "INT. ATTIC -- DAY\n\nADA and IRIS stand by the damp kettle.\nADA holds the map.\n\n"

    @pytest.mark.parametrize(
        "block, fault",
        [
            (
                "          FELIX\n    You damp, damp, damp poet, Ada!\n    Trust your damp poet.",
                "FELIX speaks but is not on",
            ),
            (
                "          IRIS\n       (to FELIX)\n    You owe me half the treasure, Ada,\n    you damp, damp poet.",
                "to FELIX",
            ),
            (
                "          IRIS\n    This map saved me from damp, damp\n    poets in Cairo.",
                "IRIS does not hold the map",
            ),
            (
                "          ADA\n    This violin saved me from damp, damp\n    poets in Cairo.",
                "violin is not the thing",
            ),
            (
                "          ADA\n    Put down the map, Iris,\n    you damp, damp poet.",
                "IRIS does not have the map",
            ),
            (
                "          ADA\n    Iris has the map now, and damp poets,\n    and a damp poet.",
                "ADA has not gone off",
            ),
            (
                "          IRIS\n    Nobody holds the map. It smells\n    of tar, tar and damp poets.",
                "ADA holds the map",
            ),
            (
                "          IRIS\n    Ada, you promised me the last waltz.\n    I want it before dawn, with tar.",
                "was not promised",
            ),
            ("IRIS hands the map to ADA, bowing.", "IRIS does not hold the map"),
            ("IRIS picks up the map and trusts the poet.", "ADA holds the map"),
            ("IRIS leaves with the map to trust a poet.", "IRIS does not hold the map"),
            ("ADA leaves to trust a damp poet.", "ADA forgets the map"),
            ("FELIX returns from Cairo with a poet, bowing.", "FELIX has not been here"),
            ("ADA enters with a damp, damp poet, bowing.", "ADA is there already"),
            ("FELIX, bowing, trusts a damp, damp poet.", "FELIX is not on stage"),
            ("ADA flies away.", "cannot read"),
            ("                    CUT TO:", "ends before"),
        ],
    )
    def test_faults_are_named(self, block, fault):
        assert check_facts(self.head) == []
        assert any(fault in found for found in check_facts(f"{self.head}{block}\n\n"))

    def test_promises_are_remembered(self):
        promise = (
            "          ADA\n    I promise you half the treasure, Iris,\n    before dawn, by my damp poet.\n\n"
        )
        kept = "          ADA\n    Here it is, Iris: half the treasure,\n    with tar and a damp poet.\n\n"
        assert check_facts(self.head + promise + kept) == []
        other = kept.replace("half the treasure", "the last waltz")
        assert check_facts(self.head + promise + other) == ["the last waltz was not promised"]
        called = "          ADA\n    Iris, you promised me half the treasure.\n    I want it before dawn, with tar.\n\n"
        gone = (
            "          IRIS\n    Ada is gone, and so is half the treasure.\n    I shall trust damp poets.\n\n"
        )
        assert check_facts(self.head + promise + gone) == ["ADA has not gone"]
        felix = "FELIX enters with a damp, damp poet, bowing.\n\n"
        aside = kept.replace("ADA\n", "ADA\n       (to FELIX)\n")
        assert check_facts(self.head + promise + felix + aside) == ["IRIS is not spoken to"]
        wanted = "          IRIS\n       (to FELIX)\n    Put down the map, Ada,\n    you damp, damp poet.\n\n"
        assert check_facts(self.head + felix + wanted) == ["ADA is not spoken to"]
        assert "IRIS has promised nothing" in check_facts(self.head + promise + called)
        assert any("second promise" in fault for fault in check_facts(self.head + promise + promise))
