"""Weights are found by what files contain, taken out of wrappers, and read without running anything."""

import json
import os
import pickle
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from minlm.pretrained.weight_files import FILE_NAMES, plain_names, read_weights


def some_weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2), "steps": torch.tensor(3)}


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], x) for name, x in expected.items()
    )


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin", "weights.pt", "no-ending"])
@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_the_form_is_recognised_by_content(name, form, tmp_path):
    path = tmp_path / name
    if form == "safetensors":
        save_file(some_weights(), path)
    else:
        torch.save(some_weights(), path, _use_new_zipfile_serialization=form == "zip")
    assert same(read_weights(path).tensors, some_weights())


@pytest.mark.parametrize("length", range(0, 256, 8))
def test_any_length_of_a_safetensors_header(length, tmp_path):
    """Its lowest byte is the file's first, and may be the one that pickles begin with."""
    path = tmp_path / "a.safetensors"
    save_file(some_weights(), path, {"padding": "x" * length})
    assert same(read_weights(path).tensors, some_weights())


@pytest.mark.parametrize("wrap", ["state_dict", "model", "model_state_dict"])
def test_wrappers_and_prefixes_are_removed(wrap, tmp_path):
    names = {f"module._orig_mod.{name}": value for name, value in some_weights().items()}
    torch.save({wrap: {"state_dict": names}, "epoch": 3, "optimizer": {"lr": 1.0}}, tmp_path / "a.pt")
    assert same(read_weights(tmp_path / "a.pt").tensors, some_weights())


def test_compiled_parts_of_a_model_have_their_plain_names(tmp_path):
    model = nn.Sequential(torch.compile(nn.Linear(2, 2)), nn.Linear(2, 2))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert set(read_weights(tmp_path / "a.pt").tensors) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_module_is_a_prefix_only_where_every_name_has_it():
    tensors = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert plain_names(tensors, "x").keys() == tensors.keys()
    with pytest.raises(ValueError, match="holds some tensors twice"):
        plain_names({"a": torch.zeros(1), "_orig_mod.a": torch.zeros(1)}, "x")


def test_folders(tmp_path):
    with pytest.raises(
        ValueError, match=r"no checkpoint at .*: it has neither a run's step-\* folders nor a file of weights"
    ):
        read_weights(tmp_path)
    torch.save(some_weights(), tmp_path / "any.pt")
    assert read_weights(tmp_path).path == tmp_path / "any.pt"
    torch.save(some_weights(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds 2 files of weights: name one of them"):
        read_weights(tmp_path)
    for name in reversed([n for n in FILE_NAMES if not n.endswith(".json")]):
        torch.save(some_weights(), tmp_path / name)
        assert read_weights(tmp_path).path == tmp_path / name
    with pytest.raises(ValueError, match="there is no such file or folder"):
        read_weights(tmp_path / "nowhere")


def write_shards(folder, places):
    save_file({"a.weight": some_weights()["a.weight"]}, folder / "one.safetensors")
    rest = {name: value for name, value in some_weights().items() if name != "a.weight"}
    save_file(rest, folder / "two.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_shards(tmp_path):
    places = {"a.weight": "one.safetensors", "a.bias": "two.safetensors", "steps": "two.safetensors"}
    write_shards(tmp_path, places)
    assert same(read_weights(tmp_path).tensors, some_weights())
    write_shards(tmp_path, places | {"more": "two.safetensors"})
    with pytest.raises(ValueError, match=r"differ in \['more'\]"):
        read_weights(tmp_path)
    write_shards(tmp_path, places | {"a.bias": "three.safetensors"})
    with pytest.raises(ValueError, match=r"names three.safetensors, which is not there"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["../one.safetensors", "/etc/passwd", "", 3, [], {}, None])
def test_shards_lie_in_the_indexs_own_folder(name, tmp_path):
    write_shards(tmp_path, {"a.weight": name})
    with pytest.raises(ValueError, match="has no weight_map from tensors to files of its own folder"):
        read_weights(tmp_path)


class Hostile:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("call", [os.mkdir, eval])
def test_a_pickle_that_would_run_code_is_refused_by_name(form, call, tmp_path):
    path, target = tmp_path / "a.bin", str(tmp_path / "made")
    hostile = some_weights() | {"x": Hostile(call, target)}
    if form == "bare":
        path.write_bytes(pickle.dumps(hostile["x"], protocol=2))
    else:
        torch.save(hostile, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(
        ValueError, match=r"a.bin cannot be read: it asks to run \S+, which tensors do not need"
    ):
        read_weights(path)
    assert not os.path.exists(target)


def test_a_pickle_of_another_protocol_is_refused_without_advice_for_pytorch(tmp_path):
    path, target = tmp_path / "a.bin", tmp_path / "made"
    path.write_bytes(pickle.dumps({"x": Hostile(os.mkdir, str(target))}, protocol=4))
    refused = pytest.raises(ValueError, match=r"a.bin .*: it is not a pickle of tensors: refused")
    with warnings.catch_warnings(record=True) as said, refused:
        read_weights(path)
    assert not said
    assert not target.exists()


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
@given(share=st.floats(0, 0.97))
def test_a_truncated_file_is_one_error(tmp_path_factory, form, share):
    path = tmp_path_factory.mktemp("torn") / "a.bin"
    if form == "safetensors":
        save_file(some_weights(), path)
    else:
        torch.save(some_weights(), path, _use_new_zipfile_serialization=form == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"^[^\n]*a.bin[^\n]*$"):
        read_weights(path)


FORMS = ["safetensors", "zip", "legacy"]


@pytest.mark.parametrize("form", FORMS)
@given(
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8)
)
def test_any_changed_bytes_give_tensors_or_one_error(tmp_path_factory, form, places):
    """At any place of the file: a zip's directory asks for other compressions, passwords and versions there."""
    path = tmp_path_factory.mktemp("changed") / "a.bin"
    if form == "safetensors":
        save_file(some_weights(), path)
    else:
        torch.save(some_weights(), path, _use_new_zipfile_serialization=form == "zip")
    data = bytearray(path.read_bytes())
    for place, byte in places:
        data[int(len(data) * place)] = byte
    path.write_bytes(data)
    try:
        found, message = read_weights(path).tensors, "a.bin"
    except ValueError as error:
        found, message = {}, str(error)
    assert "a.bin" in message
    assert "\n" not in message
    assert sum(value.numel() * value.itemsize for value in found.values()) <= 2 * len(data)


def test_every_byte_of_a_zips_directory(tmp_path):
    """Each of its bytes is a compression, a flag, a size or a place that some reader trips over."""
    path = tmp_path / "a.bin"
    torch.save({"a": torch.zeros(1)}, path)
    data = path.read_bytes()
    for place in range(data.index(b"PK\x01\x02"), len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            read_weights(path)
        except ValueError as error:
            assert str(error).startswith(f"{path} ")  # noqa: PT017


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}},
        {"a\nb": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F1", "shape": [1], "data_offsets": [0, 4]}},
    ],
)
def test_a_hostile_safetensors_header_is_one_line(header, tmp_path):
    path = tmp_path / "a.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(ValueError, match=r"^[^\n]*a.safetensors[^\n]*$"):
        read_weights(path)
    path.write_bytes((2**31).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(ValueError, match=r"^[^\n]*a.safetensors[^\n]*$"):
        read_weights(path)


def test_tensors_larger_than_the_file_are_refused(tmp_path):
    """Import copies: one number with a stride of zero would become any number of numbers."""
    tensors = {"a": torch.zeros(1).expand(10**12), "b": torch.zeros(2)}
    torch.save(tensors, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a.pt has \d+ bytes for tensors of 4000000000008 in all: refused"):
        read_weights(tmp_path / "a.pt")
    tied = torch.randn(2000)
    torch.save({"a": tied, "b": tied}, tmp_path / "a.pt")
    assert torch.equal(read_weights(tmp_path / "a.pt").tensors["b"], tied)


def test_files_that_are_not_weights_are_refused(tmp_path):
    path = tmp_path / "a.bin"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(ValueError, match="is a Git LFS pointer of 63 bytes: fetch the file itself"):
        read_weights(path)
    path.write_text("<!DOCTYPE html>")
    with pytest.raises(
        ValueError, match="is neither safetensors nor a file of PyTorch: it begins with b'<!DOCTYPE"
    ):
        read_weights(path)


@pytest.mark.parametrize(
    "content, words",
    [
        ([torch.zeros(1)], "holds a list, not tensors by name"),
        ({}, "all 0 entries"),
        ({"a": torch.zeros(1), "lr": 0.1}, r"\['lr'\]"),
        ({"a": torch.zeros(2, 2).to_sparse()}, r"\['a'\]"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, r"\['a'\]"),
        ({"a": torch.zeros(2, device="meta")}, r"\['a'\]"),
        ({"a\nb": torch.zeros(2)}, r"\['a\\nb'\]"),
        ({"model": {"a": torch.zeros(1)}, "state_dict": {"a": torch.zeros(1)}}, "several state dicts"),
    ],
)
def test_contents_that_are_not_state_dicts_are_refused(content, words, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=words):
        read_weights(tmp_path / "a.pt")


def test_a_wrapper_inside_itself_ends(tmp_path):
    knot = {}
    knot["model"] = knot
    torch.save(knot, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="is not a state dict"):
        read_weights(tmp_path / "a.pt")


def test_shapes_and_configs(tmp_path):
    save_file(some_weights(), tmp_path / "model.safetensors")
    source = read_weights(tmp_path)
    assert source.shape("a.weight", 2) == (2, 3)
    with pytest.raises(ValueError, match="has no b"):
        source.shape("b", 2)
    with pytest.raises(ValueError, match=r"a.weight is \(2, 3\), not of 4 axes"):
        source.shape("a.weight", 4)
    assert source.read_json("config.json") == {}
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list, not an object"):
        source.read_json("config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json' is not JSON"):
        source.read_json("config.json")
