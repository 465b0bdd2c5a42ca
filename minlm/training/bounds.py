"""Bounds of a config's fields, declared in their types: `n_layers: Annotated[int, at_least(1)]`."""

from collections.abc import Callable
from functools import cache
from math import inf
from typing import Annotated, Any, NamedTuple, get_origin, get_type_hints


class Bound(NamedTuple):
    """A condition on a number, and its words in --help and in errors. NaN and infinity never satisfy it."""

    text: str
    holds: Callable[[float], bool]


def at_least(low: float) -> Bound:
    return Bound(f"at least {low}", lambda x: low <= x < inf)


def above(low: float) -> Bound:
    return Bound(f"above {low}", lambda x: low < x < inf)


def within(interval: str) -> Bound:
    """Values in an interval such as "[0, 1)", whose upper end is excluded."""
    low, high = map(float, interval[1:-1].split(","))
    open_low, open_high = interval[0] == "(", interval[-1] == ")"
    return Bound(
        f"in {interval}",
        lambda x: (low < x if open_low else low <= x) and (x < high if open_high else x <= high),
    )


@cache
def bounds_of(cls: type) -> dict[str, Bound]:
    """{field: bound} of the fields that have one."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if get_origin(hint) is Annotated}


class Bounded:
    """A config whose construction fails if a field is outside its bound.

    Of a tuple, each item must be inside; None always is. Raises ValueError naming field, value and bound.
    """

    def __post_init__(self) -> None:
        for name, bound in bounds_of(type(self)).items():
            value: Any = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                if item is not None and not bound.holds(item):
                    raise ValueError(f"{name}={value} must be {bound.text}")
