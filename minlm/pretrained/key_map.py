"""One table for two layouts of the same weights, used in both directions.

A row names their tensors, our tensors, and the transform between them. Import and export are strict: every tensor is
used or listed as ignored with a reason, every parameter is filled, every shape agrees, every value is finite.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from minlm.training.checkpoint import require_numbers

Tensors = list[Tensor]
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Transform:
    """Function from a row's tensors of theirs to ours, and its inverse. Neither raises: shapes are checked later."""

    to_ours: Callable[[Tensors], Tensors]
    to_theirs: Callable[[Tensors], Tensors]


def transpose(tensors: Tensors) -> Tensors:
    """Transpose matrices; other tensors stay."""
    return [x.mT if x.dim() == 2 else x for x in tensors]


def join(tensors: Tensors) -> Tensors:
    """Concatenate tensors of one shape. If shapes differ, return the first, whose shape is refused later."""
    if not tensors[0].dim() or len({x.shape for x in tensors}) > 1:
        return tensors[:1]
    kinds = [x.dtype for x in tensors if not x.is_floating_point()] or [tensors[0].dtype]  # the odd one shows
    return [torch.cat([x.to(kinds[0]) for x in tensors])]


SAME = Transform(list, list)
TRANSPOSED = Transform(transpose, transpose)  # a matrix stored (in, out); vectors stay
JOINED = Transform(
    join, lambda x: list(x[0].chunk(3))
)  # query, key and value, three of theirs, in our in_proj
BATCHED = Transform(lambda x: [x[0].squeeze(0)], lambda x: [x[0][None]])  # (1, T, D) and (T, D)
TOKEN = Transform(lambda x: [x[0].flatten()], lambda x: [x[0][None, None]])  # (1, 1, D) and (D)


@dataclass(frozen=True)
class Row:
    """One line of the table. Names may hold one {a,b,c} for several tensors in order, and * for the layer."""

    theirs: str
    ours: str
    transform: Transform = SAME


@dataclass(frozen=True)
class Plan:
    """A published file in our terms.

    config: of the model to fill. rows: the table. ignored: {pattern of a whole name: why it is not needed}.
    """

    config: Any
    rows: list[Row]
    ignored: dict[str, str]


def spread(name: str) -> list[str]:
    """Expand a name: "q.{a,b}.weight" -> ["q.a.weight", "q.b.weight"]."""
    head, brace, rest = name.partition("{")
    middle, _, tail = rest.partition("}")
    return [f"{head}{part}{tail}" for part in middle.split(",")] if brace else [name]


def module(theirs: str, ours: str, transform: Transform = SAME, leaves: str = "weight bias") -> list[Row]:
    """Return one row per tensor of a layer."""
    return [Row(f"{theirs}.{leaf}", f"{ours}.{leaf}", transform) for leaf in leaves.split()]


def layers(rows: Iterable[Row], count: int) -> list[Row]:
    """Repeat the rows per layer, with its number for the *."""
    table = list(rows)
    return [
        replace(row, theirs=row.theirs.replace("*", str(i)), ours=row.ours.replace("*", str(i)))
        for i in range(count)
        for row in table
    ]


def prefixed(rows: Iterable[Row], theirs: str = "", ours: str = "") -> list[Row]:
    """Put prefixes before the rows' names."""
    return [replace(row, theirs=theirs + row.theirs, ours=ours + row.ours) for row in rows]


def count_layers(tensors: dict[str, Tensor], pattern: str) -> int:
    """Count the distinct values of the group in `pattern`, which matches the beginning of names."""
    return len({found[1] for name in tensors if (found := re.match(pattern, name))})


def import_weights(
    tensors: dict[str, Tensor], plan: Plan, expected: dict[str, Tensor], where: Any
) -> dict[str, Tensor]:
    """Return {our name: float32 tensor of its own memory} from theirs.

    expected: the state dict to fill, for its names and shapes. Raises one ValueError that lists what is left over
    on either side, and shapes that disagree; another for NaN and infinite values (`require_numbers`).
    """
    result, used = {}, set()
    for row in plan.rows:
        theirs = spread(row.theirs)
        ours = spread(row.ours)
        if all(name in tensors for name in theirs) and all(name in expected for name in ours):
            values = row.transform.to_ours([tensors[name] for name in theirs])
            result.update(zip(ours, values, strict=False))
            used.update(theirs)
    unused = [
        name
        for name in tensors.keys() - used
        if not any(re.fullmatch(pattern, name) for pattern in plan.ignored)
    ]
    complain(where, unused, expected.keys() - result.keys(), shape_differences(result, expected))
    result = {name: own(value) for name, value in result.items()}
    require_numbers(result, expected, where)
    return result


def export_weights(
    weights: dict[str, Tensor], rows: Iterable[Row], where: Any = "the model"
) -> dict[str, Tensor]:
    """Return {their name: tensor} from ours. Raises ValueError for a tensor without a row or a row without a tensor."""
    result, used, absent = {}, set(), []
    for row in rows:
        ours = spread(row.ours)
        absent += [name for name in ours if name not in weights]
        if all(name in weights for name in ours):
            values = row.transform.to_theirs([weights[name].detach() for name in ours])
            result.update(zip(spread(row.theirs), map(own, values), strict=True))
            used.update(ours)
    complain(where, weights.keys() - used, absent, [])
    return result


def shape_differences(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Describe the shapes that disagree."""
    return [
        f"{name} {tuple(weights[name].shape)} where {tuple(value.shape)} is needed"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]


def complain(where: Any, unused: Iterable[str], unfilled: Iterable[str], shapes: list[str]) -> None:
    """Raise one ValueError with every leftover of both sides, if there are any."""
    parts = []
    for text, names in (("not used", sorted(unused)), ("not filled", sorted(unfilled)), ("shapes", shapes)):
        if names:
            parts.append(f"{len(names)} {text}: {', '.join(names)}")
    if parts:
        raise ValueError(f"{where} does not fit this model: {'; '.join(parts)}")


def own(value: Tensor) -> Tensor:
    """Copy into contiguous memory of its own, floating-point values as float32 for training."""
    kind = torch.float32 if value.is_floating_point() else value.dtype
    return torch.empty(value.shape, dtype=kind).copy_(value)


def on_meta(make: Callable[[], Model]) -> Model:
    """Make a model with shapes but no memory, so that nothing is initialised only to be overwritten."""
    with torch.device("meta"):
        return make()


def filled(model: Model, weights: dict[str, Tensor]) -> Model:
    """Fill a model made by on_meta with weights, in eval mode; what its config freezes stays frozen."""
    model.load_state_dict(weights, assign=True)
    return model.eval()
