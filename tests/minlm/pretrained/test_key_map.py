"""The key-map engine is strict and invertible; facts are read or given, never guessed."""

import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minlm.pretrained.key_map import (
    BATCHED,
    JOINED,
    SAME,
    TOKEN,
    TRANSPOSED,
    Plan,
    Row,
    count_layers,
    export_weights,
    import_weights,
    layers,
    module,
    prefixed,
    spread,
)
from minlm.pretrained.options import complete, expect, option, our_activation, their_activation
from minlm.transformer import ACTIVATIONS

ROWS = [
    *prefixed(layers([*module("h.*.{q,k,v}", "b.*.qkv", JOINED)], 2), theirs="body."),
    *module("out", "out", TRANSPOSED),
    Row("cls", "token", TOKEN),
    Row("position", "positions", BATCHED),
]
IGNORED = {r"h\.\d+\.mask": "no parameter"}


def draw(width: int, seed: int) -> dict[str, torch.Tensor]:
    """Their tensors for ROWS."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"cls": (1, 1, width), "position": (1, 3, width), "out.weight": (2, width), "out.bias": (width,)}
    for name in (f"body.h.{layer}.{part}" for layer in range(2) for part in "qkv"):
        shapes |= {f"{name}.weight": (width, width), f"{name}.bias": (width,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def expected(width: int) -> dict[str, torch.Tensor]:
    shapes = {"token": (width,), "positions": (3, width), "out.weight": (width, 2), "out.bias": (width,)}
    for layer in range(2):
        shapes |= {f"b.{layer}.qkv.weight": (3 * width, width), f"b.{layer}.qkv.bias": (3 * width,)}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def bring_in(tensors, width=4, ignored=IGNORED):
    return import_weights(tensors, Plan(None, ROWS, ignored), expected(width), "FILE")


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_export_after_import_is_the_identity(width, seed):
    theirs = draw(width, seed)
    back = export_weights(bring_in(theirs, width), ROWS, "FILE")
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], value) for name, value in theirs.items())


def test_matrices_are_joined_in_order():
    theirs = draw(4, 0)
    ours = bring_in(theirs)
    for layer in range(2):
        for leaf in ("weight", "bias"):
            parts = [theirs[f"body.h.{layer}.{part}.{leaf}"] for part in "qkv"]
            assert torch.equal(ours[f"b.{layer}.qkv.{leaf}"], torch.cat(parts))
    assert torch.equal(ours["out.weight"], theirs["out.weight"].T)


@pytest.mark.parametrize("shapes", [[(4, 4), (4, 5), (4, 4)], [(4,), (4, 4), (4, 4)], [(), (), ()]])
def test_matrices_that_do_not_fit_one_another_are_reported_by_name(shapes):
    theirs = draw(4, 0)
    for part, shape in zip("qkv", shapes, strict=True):
        theirs[f"body.h.1.{part}.weight"] = torch.zeros(shape)
    with pytest.raises(
        ValueError, match=r"FILE does not fit .* 1 shapes: b.1.qkv.weight \(.*\) where \(12, 4\)"
    ):
        bring_in(theirs)


@pytest.mark.parametrize("transform", [SAME, TRANSPOSED, BATCHED, TOKEN, JOINED])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (1, 2, 3), (4, 1, 1, 1)])
def test_transforms_take_any_shape_of_a_hostile_file(transform, shape):
    """Wrong shapes are to be reported by name, together, not by the first transform that they break."""
    transform.to_ours([torch.zeros(shape)])


def test_results_own_their_memory_and_are_float32():
    theirs = {name: value.half() for name, value in draw(4, 0).items()}
    ours = bring_in(theirs)
    assert {value.dtype for value in ours.values()} == {torch.float32}
    assert all(value.untyped_storage().nbytes() == 4 * value.numel() for value in ours.values())
    assert all(value.is_contiguous() for value in ours.values())
    whole = bring_in({name: value.float() for name, value in theirs.items()})
    assert all(torch.equal(whole[name], value) for name, value in ours.items())


@given(
    st.sampled_from(sorted(draw(4, 0))),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.data(),
)
def test_nan_and_infinite_values_are_refused_by_name(name, number, data):
    theirs = draw(4, 0)
    theirs[name].view(-1)[data.draw(st.integers(0, theirs[name].numel() - 1))] = number
    with pytest.raises(ValueError, match=r"^FILE: \S+ has NaN or infinite values: take another file$"):
        bring_in(theirs)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
@given(name=st.sampled_from(sorted(draw(4, 0))))
def test_integer_and_complex_tensors_are_refused(dtype, name):
    theirs = draw(4, 0)
    with pytest.raises(
        ValueError, match=rf"^FILE: \S+ is of {dtype}, torch.float32 is needed: take another file$"
    ):
        bring_in(theirs | {name: theirs[name].to(dtype)})


def test_values_that_overflow_float32_are_refused():
    theirs = {name: value.double() for name, value in draw(4, 0).items()}
    bring_in(theirs)
    theirs["cls"] += 1e39
    with pytest.raises(ValueError, match="FILE: token has NaN or infinite"):
        bring_in(theirs)


def test_both_leftover_lists_and_shapes_are_in_one_line():
    theirs = draw(4, 0) | {
        "stranger": torch.zeros(2),
        "h.7.mask": torch.zeros(1),
        "position": torch.zeros(1, 5, 4),
    }
    del theirs["cls"]
    with pytest.raises(ValueError, match="FILE does not fit") as caught:
        bring_in(theirs)
    message = str(caught.value)
    assert "\n" not in message
    assert "1 not used: stranger;" in message
    assert "1 not filled: token;" in message
    assert message.endswith("1 shapes: positions (5, 4) where (3, 4) is needed")


def test_ignored_means_the_whole_name():
    with pytest.raises(ValueError, match=r"not used: h\.7\.mask\.more"):
        bring_in(draw(4, 0) | {"h.7.mask.more": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"not used: h\.7\.mask$"):
        bring_in(draw(4, 0) | {"h.7.mask": torch.zeros(1)}, ignored={})


def test_export_names_tensors_without_a_row():
    ours = bring_in(draw(4, 0))
    with pytest.raises(ValueError, match="1 not used: more; 1 not filled: token"):
        export_weights(
            {name: x for name, x in ours.items() if name != "token"} | {"more": ours["token"]}, ROWS, "x"
        )


def test_names():
    assert spread("a.{b,c}.d") == ["a.b.d", "a.c.d"]
    assert spread("a.b") == ["a.b"]
    assert count_layers({"h.0.a": 0, "h.0.b": 0, "h.11.a": 0, "x.h.3": 0}, r"h\.(\d+)\.") == 2


@dataclass(frozen=True, kw_only=True)
class Sizes:
    width: int = 1
    heads: int = 1
    activation: str = "gelu"

    def __post_init__(self):
        if self.width < 1:
            raise ValueError("width below 1")


def test_facts_are_read_or_given_never_guessed():
    facts = {"width": 8, "heads": None, "activation": None}
    with pytest.raises(
        ValueError, match=r"FILE does not say heads, activation: .* give heads=..., activation=..."
    ):
        complete(Sizes, facts, {}, "FILE")
    assert complete(Sizes, facts, {"heads": 2, "activation": "relu"}, "FILE") == Sizes(
        width=8, heads=2, activation="relu"
    )
    with pytest.raises(ValueError, match=r"\['hats'\] are not options of Sizes"):
        complete(Sizes, facts, {"hats": 2}, "FILE")
    with pytest.raises(ValueError, match=r"^FILE: width='wide' must be int, not str$"):
        complete(Sizes, {"width": "wide"}, {}, "FILE")


def test_options_that_change_the_function_are_refused():
    expect({"other": 1}, {"causal": True}, "FILE")
    with pytest.raises(ValueError, match="FILE has causal=False: only True can be loaded"):
        expect({"causal": False}, {"causal": True}, "FILE")


def test_activations_have_names_on_both_sides():
    for name in ACTIVATIONS:
        assert our_activation(their_activation(name), "FILE") == name
    assert our_activation("gelu_new", "FILE") == "gelu_tanh"
    assert our_activation(None, "FILE") is None
    for other in ("swish", "", [], {}, 3, True):
        with pytest.raises(
            ValueError, match=re.escape(f"FILE asks for the activation {other!r}: there are gelu")
        ):
            our_activation(other, "FILE")


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)


@given(st.none() | st.booleans() | numbers | st.text() | st.lists(st.integers()))
def test_options_are_of_their_kind(value):
    kind = int if value is None else type(value)
    assert option({"name": value}, "name", kind, "FILE", 7) is (7 if value is None else value)
    assert option({}, "name", kind, "FILE", 7) == 7
    if value is not None:
        with pytest.raises(ValueError, match=r"^FILE: the option name=.* must be dict, not "):
            option({"name": value}, "name", dict, "FILE")
