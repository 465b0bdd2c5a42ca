"""The folder of a run: created at once, owned by one process, and written to disk for certain."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO

WINDOWS = os.name == "nt"
if WINDOWS:  # it has its own call for the same lock
    import msvcrt
else:
    import fcntl

LOCK = ".lock"


def flush_to_disk(path: Path) -> None:
    """Return once a file's bytes, or a folder's entries, are on disk."""
    if path.is_file():
        with path.open("r+b") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
    elif not WINDOWS:  # Windows has no such call for folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lock(file: IO[str]) -> None:
    """Lock an open file; OSError if another process holds it. The system unlocks it when the process ends."""
    if WINDOWS:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def has_content(folder: Path) -> bool:
    """Tell if a folder holds more than the lock of a run."""
    return folder.is_dir() and any(path.name != LOCK for path in folder.iterdir())


@contextmanager
def run_folder(run: Path, *, new: bool, numbered: bool = False) -> Iterator[Path]:
    """Create the folder of a new run, or open an old run's, and keep other processes out of it.

    numbered: where the folder exists, take the next free name, `run-2` and so on, instead of refusing it.
    A new folder in which nothing was written is removed again. Raises ValueError if another process trains in
    the folder, or if a new run would write into an old one's.
    """
    if numbered:
        run = next(path for path in numbered_names(run) if created(path))
    elif new:
        run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("a") as file:
        try:
            lock(file)
        except OSError:
            raise ValueError(f"another process is training in {run}: wait for it, or stop it") from None
        if new and has_content(run):  # another run came and went since the command line was checked
            raise ValueError(f"--out {run} is not empty: choose another folder")
        try:
            yield run
        finally:
            if new and not has_content(run):
                file.close()  # Windows removes only what is closed
                (run / LOCK).unlink()
                run.rmdir()


def numbered_names(path: Path) -> Iterator[Path]:
    """path, path-2, path-3, ..."""
    return (path if n == 1 else path.with_name(f"{path.name}-{n}") for n in count(1))


def created(folder: Path) -> bool:
    """Create a folder -> False if it existed, also when another process was faster."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True
