"""Bounds declared in a config's types: every value inside is taken, every other one is refused by name."""

from dataclasses import dataclass
from math import inf, nan
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minlm.training.bounds import Bounded, above, at_least, bounds_of, within


@dataclass(frozen=True)
class Config(Bounded):
    n: Annotated[int, at_least(2)] = 2
    rate: Annotated[float, above(0)] = 1.0
    share: Annotated[float | None, within("[0, 1)")] = None
    sides: Annotated[tuple[int, ...], at_least(1)] = (1,)
    free: float = nan


@dataclass(frozen=True)
class Wider(Config):
    n: Annotated[int, at_least(0)] = 0


HOLDS = {
    "n": lambda x: 2 <= x < inf,
    "rate": lambda x: 0 < x < inf,
    "share": lambda x: 0 <= x < 1,
}


@given(
    st.sampled_from(sorted(HOLDS)), st.integers(-3, 3) | st.floats(-2, 3) | st.sampled_from([inf, -inf, nan])
)
def test_a_config_is_made_of_values_inside_its_bounds_only(name, value):
    if HOLDS[name](value):
        assert getattr(Config(**{name: value}), name) == value
    else:
        with pytest.raises(ValueError, match=rf"^{name}={value} must be (at least|above|in) "):
            Config(**{name: value})


@given(st.lists(st.integers(-1, 3), max_size=4).map(tuple))
def test_each_item_of_a_tuple_must_be_inside(sides):
    if all(side >= 1 for side in sides):
        assert Config(sides=sides).sides == sides
    else:
        with pytest.raises(ValueError, match=r"^sides=\(.*\) must be at least 1$"):
            Config(sides=sides)


@pytest.mark.parametrize(
    "interval, inside, outside",
    [
        ("[0, 1]", [0, 1], [-1e-9, 1.1]),
        ("(0, 1]", [0.1, 1], [0]),
        ("(0, 1)", [0.5], [0, 1]),
        ("[2, 3)", [2], [3]),
    ],
)
def test_ends_of_an_interval_are_in_it_where_its_brackets_are_square(interval, inside, outside):
    bound = within(interval)
    assert bound.text == f"in {interval}"
    assert all(map(bound.holds, inside))
    assert not any(map(bound.holds, outside))


def test_a_subclass_may_declare_a_field_with_another_bound():
    assert Wider().n == 0
    assert bounds_of(Config)["n"].text == "at least 2"
    assert bounds_of(Wider)["n"].text == "at least 0"
