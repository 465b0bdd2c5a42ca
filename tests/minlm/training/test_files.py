"""JSON that users damaged; the folder of a run: locked, numbered if it exists, removed if nothing was written."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minlm.training import files
from minlm.training.files import read_json, read_object, run_folder, write_json

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys
from pathlib import Path
from minlm.training.files import run_folder
with run_folder(Path(sys.argv[1]), new=sys.argv[2] == "new") as run:
    (run / "config.json").write_text("{}")
    print("held", flush=True)
    sys.stdin.readline()
"""


numbers = st.floats() | st.integers() | st.booleans() | st.none() | st.text(max_size=3)
objects = st.dictionaries(
    st.text(max_size=3),
    st.recursive(
        numbers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner)
    ),
    max_size=4,
)


@given(objects)
def test_written_json_is_valid_whatever_the_numbers(values):
    """Python's own reader would take NaN too, which no other JSON reader does."""

    def same(read, value):
        if isinstance(value, dict):
            return read.keys() == value.keys() and all(same(read[key], value[key]) for key in value)
        if isinstance(value, list):
            return len(read) == len(value) and all(map(same, read, value))
        return read is None if isinstance(value, float) and not math.isfinite(value) else read == value

    with TemporaryDirectory() as name:
        path = Path(name) / "metrics.json"
        write_json(path, values)
        read = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda word: pytest.fail(word))
        assert same(read, values)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"a": 1} {', b'{"a": ' + b"1" * 5000])
def test_a_damaged_json_file_is_one_line_with_the_remedy(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a.json' is not JSON: .*; fetch it again$") as caught:
        read_json(path, "fetch it again")
    assert "\n" not in str(caught.value)


def test_json_files(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"é": [1]}', encoding="utf-8-sig")
    assert read_json(path, "") == read_object(path) == {"é": [1]}
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"a.json' holds a list, not an object; remove it$"):
        read_object(path, "remove it")
    path.write_bytes(b"\xff{}")
    with pytest.raises(ValueError, match=r"a.json' is not UTF-8 .*invalid start byte\): save it as UTF-8$"):
        read_json(path, "")
    with pytest.raises(ValueError, match=r"cannot read '.*': Is a directory; is the path right\?$"):
        read_json(tmp_path, "")
    with pytest.raises(ValueError, match=r"cannot read '.*none.json': No such file"):
        read_object(tmp_path / "none.json")
    assert read_object(tmp_path / "none.json", missing_ok=True) == {}


@pytest.fixture
def hold():
    """A function that locks a run's folder in another process -> that process."""
    held = []

    def start(run, new="new"):
        command = [sys.executable, "-c", HOLD, str(run), new]
        process: Any = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        held.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in held:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("new", [True, False])
def test_a_folder_belongs_to_one_process_until_that_is_killed(tmp_path, hold, new):
    run = tmp_path / "runs" / "one"
    other = hold(run)
    with pytest.raises(ValueError, match=r"another process is training in .*one: wait for it"):  # noqa: SIM117
        with run_folder(run, new=new):
            pass
    assert (run / "config.json").exists()
    other.kill()
    other.wait()
    with run_folder(run, new=False) as folder:
        assert folder == run


def test_a_new_run_does_not_write_into_an_old_ones_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is not empty: choose another folder"):  # noqa: SIM117
        with run_folder(tmp_path, new=True):
            pass
    assert (tmp_path / "config.json").exists()


def test_runs_without_a_name_of_their_own_are_numbered(tmp_path, hold):
    run = tmp_path / "shapes"
    hold(run)
    for number in (2, 3):
        with run_folder(run, new=True, numbered=True) as folder:
            assert folder.name == f"shapes-{number}"
            (folder / "config.json").write_text("{}")


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("written", [True, False])
def test_a_new_folder_stays_only_if_something_was_written(tmp_path, written, numbered):
    """Its parents too, if they were created for it."""
    run = tmp_path / "runs" / "inner" / "run"
    with run_folder(run, new=True, numbered=numbered):
        if written:
            (run / "config.json").write_text("{}")
    assert run.exists() == (tmp_path / "runs").exists() == written
    assert tmp_path.exists()


def test_a_parent_that_another_run_uses_by_now_stays(tmp_path):
    with run_folder(tmp_path / "runs" / "one", new=True):
        (tmp_path / "runs" / "two").mkdir()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]


@pytest.fixture
def windows(monkeypatch):
    """The module as Windows imports it; no process holds its lock twice."""
    locked = set()

    def locking(descriptor, mode, size):
        place = os.fstat(descriptor).st_ino
        if place in locked:
            raise OSError(13, "Permission denied")
        locked.add(place)

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking))
    monkeypatch.setattr(sys, "platform", "win32")
    spec: Any = importlib.util.spec_from_file_location("files_of_windows", files.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_on_windows_files_are_flushed_and_folders_are_not(tmp_path, monkeypatch, windows):
    """Windows refuses to flush what is open for reading only, and to open a folder."""
    flags, flushed, opened = {}, [], os.open

    def open_as_windows(path, mode, *more, **named):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode, *more, **named)

    def flush(descriptor):
        import fcntl

        flags[descriptor] = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if flags[descriptor] == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        flushed.append(descriptor)

    monkeypatch.setattr(os, "open", open_as_windows)
    monkeypatch.setattr(os, "fsync", flush)
    (tmp_path / "file").write_text("bytes")
    windows.flush_to_disk(tmp_path / "file")
    windows.flush_to_disk(tmp_path)
    assert len(flushed) == 1
    assert (tmp_path / "file").read_text() == "bytes"


def test_the_lock_of_windows(tmp_path, windows):
    with windows.run_folder(tmp_path / "run", new=True) as run:
        (run / "config.json").write_text("{}")
        with pytest.raises(ValueError, match="another process is training"):  # noqa: SIM117
            with windows.run_folder(run, new=False):
                pass
