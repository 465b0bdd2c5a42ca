"""dataclass <-> JSON <-> text: what goes in comes out, and nothing unknown or ill-typed gets through."""

import json
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minlm.training.config import (
    check_file,
    check_folder,
    field_help,
    from_dict,
    load_config,
    parse_option,
    save_config,
    to_dict,
    with_prefix,
)


@dataclass(frozen=True, kw_only=True)
class Lion:
    """A lion.

    mane: length in centimetres,
        measured at noon
    roar: how loud
    """

    mane: int = 10
    roar: Literal["soft", "loud"] = "soft"

    def __post_init__(self):
        if self.mane < 0:
            raise ValueError(f"mane={self.mane} must be at least 0")


@dataclass(frozen=True, kw_only=True)
class Owl:
    """An owl.

    eyes: left,right
    wise: whether it is
    color_jitter: of its feathers
    """

    eyes: tuple[int, int] = (1, 1)
    wise: bool = True
    color_jitter: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Zoo:
    """A zoo.

    name: of the zoo
    fee: at the gate
    limit: of visitors, or none
    king: a lion
    star: a lion or an owl
    """

    name: str = "zoo"
    fee: float = 1.0
    limit: int | None = None
    king: Lion = field(default_factory=Lion)
    star: Lion | Owl = field(default_factory=Owl)


lions = st.builds(Lion, mane=st.integers(0, 99), roar=st.sampled_from(["soft", "loud"]))
owls = st.builds(Owl, eyes=st.tuples(st.integers(), st.integers()), wise=st.booleans())
zoos = st.builds(
    Zoo,
    name=st.text(),
    fee=st.floats(allow_nan=False, allow_infinity=False),
    limit=st.none() | st.integers(),
    king=lions,
    star=lions | owls,
)


@given(zoos)
def test_json_and_back_is_the_identity(zoo):
    assert from_dict(Zoo, json.loads(json.dumps(to_dict(zoo)))) == zoo


def test_files_and_back_is_the_identity(tmp_path):
    zoo = Zoo(name="Zoo à Paris", star=Lion(mane=3))
    save_config(zoo, tmp_path / "config.json")
    assert load_config(Zoo, tmp_path / "config.json") == zoo


@given(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.tuples(st.integers(), st.integers()),
)
def test_text_of_the_command_line_is_read_as_its_type(whole, real, truth, pair):
    assert parse_option(int, str(whole), "x") == whole
    assert parse_option(float, repr(real), "x") == real
    assert parse_option(bool, str(truth).lower(), "x") is truth
    assert parse_option(tuple[int, int], f"{pair[0]},{pair[1]}", "x") == pair
    assert parse_option(tuple[int, int], str(whole), "x") == (whole, whole)
    assert parse_option(int | None, str(whole), "x") == whole
    assert parse_option(int | None, "none", "x") is None
    assert parse_option(Literal["a", "b"], "b", "x") == "b"


def test_a_byte_order_mark_is_no_part_of_a_config(tmp_path):
    save_config(Zoo(name="z"), tmp_path / "config.json")
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "config.json").read_bytes())
    assert load_config(Zoo, tmp_path / "marked.json") == Zoo(name="z")


def test_help_is_read_from_the_docstring():
    assert field_help(Lion) == {"mane": "length in centimetres, measured at noon", "roar": "how loud"}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"kin": {}}, "unknown option kin: did you mean king?"),
        ({"star": {"type": "Owl", "jitter": 0.1}}, r"unknown option star\.jitter: it is now color_jitter$"),
        ({"king": {"man": 1}}, "unknown option king.man: did you mean mane?"),
        ({"zzz": 1}, "unknown option zzz; there are name, fee, limit, king, star"),
        ({"king": {"mane": "long"}}, "king.mane='long' must be int, not str"),
        ({"king": {"mane": True}}, "king.mane=True must be int, not bool"),
        ({"king": {"roar": "mute"}}, "king.roar='mute' must be one of soft, loud"),
        ({"king": {"mane": -1}}, "^king.mane=-1 must be at least 0"),
        ({"king": 3}, "king must be an object of options, not 3"),
        ({"star": {"eyes": [1, 2]}}, "star.type=None must be one of Lion, Owl"),
        ({"star": {"type": "Owl", "eyes": [1]}}, r"star.eyes=\[1\] must be 2 values"),
        ({"fee": "free"}, "fee='free' must be float, not str"),
        ({"fee": float("nan")}, "fee=nan must be a finite number"),
        ({"fee": 10**400}, "must be float, not int"),
        ({"king": None}, "king=None must be Lion, not NoneType"),
        ({"star": None}, "star=None must be Lion, not NoneType"),
        ({"star": {"type": []}}, r"star.type=\[\] must be one of Lion, Owl"),
    ],
)
def test_bad_values_name_the_option(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(Zoo, values)


@pytest.mark.parametrize(
    "message, shown",
    [
        ("steps=0 and steps", "--a.steps=0 and steps"),  # a word elsewhere is a word
        ("steps 0 must be above 0: set more steps", "--a.steps 0 must be above 0: set more steps"),
        ("24 does not divide batch_size", "24 does not divide --a.batch_size"),
        ("lr=0.5 is below min_lr_ratio=1", "--a.lr=0.5 is below --a.min_lr_ratio=1"),
        ("b.lr=1, my_lr=1, lrs=1", "b.lr=1, my_lr=1, lrs=1"),  # other names
    ],
)
def test_a_check_of_a_part_names_the_whole_option(message, shown):
    assert with_prefix(message, ["steps", "lr", "min_lr_ratio", "batch_size"], "--a.") == shown


@pytest.mark.parametrize(
    "annotation, text, message",
    [
        (int, "ten", "x='ten' is not an int"),
        (float, "1,5", "x='1,5' is not a float"),
        (float, "inf", "x=inf must be a finite number"),
        (float | None, "nan", "x=nan must be a finite number"),
        (bool, "yes", "x='yes' must be true or false"),
        (Literal["a", "b"], "c", "x='c' must be one of a, b"),
        (tuple[int, int], "1,2,3", r"x=\[1, 2, 3\] must be 2 values"),
    ],
)
def test_bad_text_names_the_option(annotation, text, message):
    with pytest.raises(ValueError, match=message):
        parse_option(annotation, text, "x")


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no config at .*nowhere.json: give a run folder"):
        load_config(Zoo, tmp_path / "nowhere.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep.json' is not JSON"):
        load_config(Zoo, tmp_path / "deep.json")
    (tmp_path / "wrong.json").write_text('{"king": {"mane": -1}}')
    with pytest.raises(ValueError, match=r"^[^:]*wrong.json: king.mane=-1 must be at least 0$"):
        load_config(Zoo, tmp_path / "wrong.json")
    (tmp_path / "torn.json").write_text('{"name": ')
    with pytest.raises(
        ValueError,
        match=r"torn.json' is not JSON: .*; correct it, or put back the copy in the run's newest step-",
    ):
        load_config(Zoo, tmp_path / "torn.json")


def test_every_option_of_the_training_scripts_has_a_help_text():
    from minclip.presets import PRESETS

    def check(config):
        for name, text in field_help(type(config)).items():
            assert text, f"{type(config).__name__}.{name} has no line in the docstring"
        for part in fields(config):
            if is_dataclass(getattr(config, part.name)):
                check(getattr(config, part.name))

    for preset in PRESETS.values():
        check(preset)


def test_places_to_write_to_are_checked_before_any_work(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for place in ("new", "empty"):
        check_folder(tmp_path / place)
    with pytest.raises(ValueError, match=f"^--out {tmp_path} is not empty: choose another folder$"):
        check_folder(tmp_path)
    with pytest.raises(ValueError, match=f"^--out {tmp_path / 'file'} is a file: name a folder$"):
        check_folder(tmp_path / "file", ", or do something else")
    for place in (None, tmp_path / "new", tmp_path / "file"):
        check_file(place, "--json")
    for place in (
        tmp_path,
        tmp_path / "none" / "new",
        tmp_path / "file" / "new",
        Path("/dev/null"),
        Path(""),
    ):
        with pytest.raises(
            ValueError, match=f"^--json {place} cannot be written: name a file in an existing folder"
        ):
            check_file(place, "--json")


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A ticket.

    price: of the visit
    """

    price: float


def test_a_field_without_a_default_must_be_given():
    assert from_dict(Ticket, {"price": 2}) == Ticket(price=2.0)
    with pytest.raises(ValueError, match=r"^--zoo\.price is missing"):
        from_dict(Ticket, {}, "--zoo.")
