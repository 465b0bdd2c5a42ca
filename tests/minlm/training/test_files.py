"""The folder of a run: one process's, numbered where its name is taken, and gone if nothing was written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minlm.training import files
from minlm.training.files import flush_to_disk, run_folder

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


@pytest.fixture
def hold():
    """A function that has another process hold a run's folder -> that process."""
    held = []

    def start(run, new="new"):
        command = [sys.executable, "-c", HOLD, str(run), new]
        process = subprocess.Popen(
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


@pytest.mark.parametrize("written", [True, False])
def test_a_new_folder_stays_only_if_something_was_written(tmp_path, written):
    run = tmp_path / "run"
    with run_folder(run, new=True):
        if written:
            (run / "config.json").write_text("{}")
    assert run.exists() == written


def test_on_windows_files_are_flushed_and_folders_are_not(tmp_path, monkeypatch):
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

    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(os, "open", open_as_windows)
    monkeypatch.setattr(os, "fsync", flush)
    (tmp_path / "file").write_text("bytes")
    flush_to_disk(tmp_path / "file")
    flush_to_disk(tmp_path)
    assert len(flushed) == 1
    assert (tmp_path / "file").read_text() == "bytes"


def test_the_lock_of_windows(tmp_path, monkeypatch):
    """The same refusal, through the call that Windows has."""
    locked = set()

    class Msvcrt:
        LK_NBLCK = 2

        @staticmethod
        def locking(descriptor, mode, size):
            place = os.fstat(descriptor).st_ino
            if place in locked:
                raise OSError(13, "Permission denied")
            locked.add(place)

    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(files, "msvcrt", Msvcrt, raising=False)
    with run_folder(tmp_path / "run", new=True) as run:
        (run / "config.json").write_text("{}")
        with pytest.raises(ValueError, match="another process is training"):  # noqa: SIM117
            with run_folder(run, new=False):
                pass
