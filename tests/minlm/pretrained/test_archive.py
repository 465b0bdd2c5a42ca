"""TorchScript archives are read as data: right numbers, and nothing that could run."""

import io
import os
import pickle
import tracemalloc
import zipfile
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minlm.pretrained import archive
from minlm.pretrained.archive import MAX_NESTING, check_nesting, is_torchscript, read_torchscript
from minlm.pretrained.weight_files import read_file

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES += [torch.int64, torch.int32, torch.uint8, torch.bool]


class Body(nn.Module):
    def __init__(self, dtype, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 3), nn.BatchNorm1d(3))
        self.word = nn.Parameter(torch.randn(width))
        self.register_buffer("number", torch.tensor(7))
        self.register_buffer("table", torch.randn(2, width).to(dtype))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.sizes = [1, 2]
        self.name = "x"

    def forward(self, x):
        return self.layers(x) + self.word.sum()


def write(path, dtype=torch.float32, width=2):
    module = Body(dtype, width).eval()
    torch.jit.script(module).save(str(path))
    return module


@given(st.sampled_from(DTYPES), st.integers(1, 5))
def test_tensors_are_those_of_the_state_dict(tmp_path_factory, dtype, width):
    path = tmp_path_factory.mktemp("jit") / "any.pt"
    module = write(path, dtype, width)
    assert is_torchscript(path)
    found, expected = read_torchscript(path), module.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_views_and_shared_numbers(tmp_path):
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            base = torch.arange(12.0)
            self.register_buffer("turned", base.view(3, 4).T)
            self.register_buffer("part", base[2:5])

        def forward(self, x):
            return x

    module = Views()
    torch.jit.script(module).save(str(tmp_path / "views.pt"))
    found = read_torchscript(tmp_path / "views.pt")
    assert torch.equal(found["turned"], module.turned)
    assert torch.equal(found["part"], module.part)


def rewrite(path, changes: dict[str, bytes], compression=zipfile.ZIP_STORED):
    """The archive with other contents for the records whose names end so."""
    with zipfile.ZipFile(path) as zipped:
        records = {name: zipped.read(name) for name in zipped.namelist()}
    with zipfile.ZipFile(path, "w", compression) as zipped:
        for name, data in records.items():
            zipped.writestr(name, next((new for end, new in changes.items() if name.endswith(end)), data))


def test_the_code_in_it_is_never_read(tmp_path):
    module = write(tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", {".py": b"raise SystemExit", "constants.pkl": b"no pickle"})
    assert torch.equal(read_torchscript(tmp_path / "a.pt")["word"], module.word)


class Hostile:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("call", [os.mkdir, eval, getattr, torch.load, print, pickle.loads, __import__])
def test_code_is_refused_by_name(call, tmp_path):
    write(tmp_path / "a.pt")
    target = str(tmp_path / "made")
    rewrite(tmp_path / "a.pt", {"data.pkl": pickle.dumps(Hostile(call, target), protocol=2)})
    with pytest.raises(
        ValueError, match=rf"a.pt cannot be read: it asks to run \S*{call.__name__}, .*: refused"
    ):
        read_file(tmp_path / "a.pt")
    assert not os.path.exists(target)


def test_damage_is_reported_in_one_line(tmp_path):
    whole = tmp_path / "whole.pt"
    write(whole)
    data = whole.read_bytes()
    for cut in (len(data) // 2, len(data) - 30, 100):
        torn = tmp_path / "torn.pt"
        torn.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"torn.pt cannot be read: [^\n]*$"):
            read_file(torn)
    rewrite(whole, {"data/0": b"123"})
    with pytest.raises(ValueError, match=r"data/0 has 3 bytes, not \d+: damaged"):
        read_file(whole)


def test_a_tensor_larger_than_its_numbers_is_refused(tmp_path):
    """With a stride of zero, four bytes would stand for any number of numbers."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", 1) if value == "the numbers" else None

    write(tmp_path / "a.pt")
    for size in (1, 10**12):
        data = io.BytesIO()
        tensor = Hostile(torch._utils._rebuild_tensor_v2, "the numbers", 0, (size,), (0,), False, {})
        Pickler(data, protocol=2).dump(tensor)
        rewrite(tmp_path / "a.pt", {"data.pkl": data.getvalue(), "data/0": b"\0\0\0\0"})
        if size == 1:
            assert read_torchscript(tmp_path / "a.pt")[""].tolist() == [0.0]
    with pytest.raises(ValueError, match=r"a tensor of \(1000000000000,\) with 1 numbers: refused"):
        read_file(tmp_path / "a.pt")


def test_records_that_unfold_are_refused(tmp_path):
    write(tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", {}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"'a/data/0' in it is compressed: save the weights anew$"):
        read_file(tmp_path / "a.pt")


@pytest.mark.parametrize("save", [write, lambda path: torch.save({"a": torch.zeros(1)}, path)])
def test_a_small_zip_takes_no_more_memory_than_its_size(save, tmp_path):
    """A deflated data.pkl of 50 MB, and a directory that names one record many times."""
    path = tmp_path / "a.pt"
    save(path)
    with zipfile.ZipFile(path) as zipped:
        [name] = [name for name in zipped.namelist() if name.endswith("data.pkl")]
    with zipfile.ZipFile(path, "a") as zipped, pytest.warns(UserWarning, match="Duplicate name"):
        zipped.writestr(name, bytes(50_000_000), zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a.pt cannot be read: '.*/data.pkl' in it is compressed"):
        read_file(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    save(path)
    with zipfile.ZipFile(path, "a") as zipped:
        zipped.writestr("a/data/99", bytes(1000))
        zipped.filelist += zipped.filelist[-1:] * 50
    with pytest.raises(ValueError, match=r"a.pt cannot be read: it unfolds from \d+ bytes to \d+: refused"):
        read_file(path)


@pytest.mark.parametrize("depth", [MAX_NESTING + 5, 1_000_000])
@pytest.mark.parametrize("form", ["TorchScript", "zip", "bare", "legacy"])
def test_a_nested_key_does_not_crash_the_interpreter(form, depth, tmp_path):
    """{((((...),),),): 1}: hashing the key takes a call of its own for each tuple."""
    path = tmp_path / "a.pt"
    data = b"\x80\x02}" + b")" + b"\x85" * depth + b"K\x01s."
    if form == "TorchScript":
        write(path)
        rewrite(path, {"data.pkl": data})
    elif form == "zip":
        torch.save({"a": torch.zeros(1)}, path)
        rewrite(path, {"data.pkl": data})
    else:
        head = {"bare": (), "legacy": (torch.serialization.MAGIC_NUMBER, 1001, {})}[form]
        path.write_bytes(b"".join(pickle.dumps(value, 2) for value in head) + data)
    with pytest.raises(ValueError, match=r"a.pt cannot be read: it is nested more than 200 deep: refused$"):
        read_file(path)


@given(
    st.recursive(
        st.integers() | st.text(max_size=2),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=4).map(tuple)
            | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        ),
    ),
    st.integers(2, 5),
)
def test_nesting_is_that_of_the_value(value, protocol):
    """Twice the same object: the second one comes from the pickle's memo."""

    def depth(value):
        items = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, items), default=-1) if isinstance(value, dict | list | tuple) else 0

    data = io.BytesIO(pickle.dumps([value, value], protocol))
    with mock.patch.object(archive, "MAX_NESTING", depth([value])):
        check_nesting(data)
    assert not data.read()
    less = mock.patch.object(archive, "MAX_NESTING", depth([value]) - 1)
    with less, pytest.raises(pickle.UnpicklingError, match="nested more than"):
        check_nesting(io.BytesIO(data.getvalue()))


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_any_flipped_bytes_give_tensors_or_one_error(tmp_path_factory, seed, n_bytes):
    """A hostile data.pkl neither runs nor escapes as another kind of error."""
    path = tmp_path_factory.mktemp("jit") / "a.pt"
    write(path)
    with zipfile.ZipFile(path) as zipped:
        data = bytearray(zipped.read(next(n for n in zipped.namelist() if n.endswith("/data.pkl"))))
    generator = torch.Generator().manual_seed(seed)
    for place in torch.randint(len(data), (n_bytes,), generator=generator).tolist():
        data[place] = int(torch.randint(256, (), generator=generator))
    rewrite(path, {"data.pkl": bytes(data)})
    try:
        found, message = read_file(path), ""
    except ValueError as error:
        found, message = {}, str(error)
    assert "\n" not in message
    assert all(isinstance(value, torch.Tensor) for value in found.values())
