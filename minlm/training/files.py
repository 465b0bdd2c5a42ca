"""Files that are whole or absent, JSON from users' files, and the folder of a run, owned by one process."""

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

LOCK = ".lock"
if sys.platform == "win32":
    import msvcrt

    def lock(file: IO[str]) -> None:
        """Lock an open file until the process ends; OSError if another process holds the lock."""
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def lock(file: IO[str]) -> None:
        """Lock an open file until the process ends; OSError if another process holds the lock."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def read_text(path: Path, newline: str | None = None) -> str:
    """Return a UTF-8 text without its byte-order mark; ValueError if the file is missing or not UTF-8.

    newline: as in `open`; "" keeps line ends as they are.
    """
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror}; is the path right?") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text ({error.reason}): save it as UTF-8") from None


def read_json(path: Path, remedy: str) -> Any:
    """Return the value in a JSON file.

    Raises ValueError, in one line, if the file is missing, not UTF-8, truncated or too deeply nested; for the last
    two, the line ends with the remedy.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except Exception as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}; {remedy}") from None


def read_object(
    path: Path, remedy: str = "put back the original", missing_ok: bool = False
) -> dict[str, Any]:
    """Return the object in a JSON file; with missing_ok, {} if there is no file. Errors as `read_json`."""
    if missing_ok and not path.is_file():
        return {}
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise ValueError(f"{str(path)!r} holds a {type(value).__name__}, not an object; {remedy}")
    return value


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file atomically; NaN and infinity, which JSON lacks, become null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    replace_text(path, json.dumps(finite(values), indent=2, allow_nan=False) + "\n")


def flush_to_disk(path: Path) -> None:
    """Return once a file's bytes, or a folder's entries, are on disk."""
    if path.is_file():
        with path.open("r+b") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
    elif sys.platform != "win32":  # Windows cannot flush folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def has_content(folder: Path) -> bool:
    """Return True if a folder holds more than the lock of a run."""
    return folder.is_dir() and any(path.name != LOCK for path in folder.iterdir())


@contextmanager
def run_folder(run: Path, *, new: bool, numbered: bool = False) -> Iterator[Path]:
    """Create the folder of a new run, or open that of an old one, and lock it against other processes.

    numbered: if the folder exists, take the next free name (`run-2`, ...) instead of refusing it.
    A new folder in which nothing was written is removed again, with the parents created for it. Raises ValueError
    if another process trains in the folder, or if a new run would write into that of an old one.
    """
    made = [folder for folder in run.parents if not folder.exists()]
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
                with suppress(OSError):  # a parent that another run uses by now stays
                    for folder in [run, *made]:
                        folder.rmdir()


def numbered_names(path: Path) -> Iterator[Path]:
    """Yield path, path-2, path-3, ..."""
    return (path if n == 1 else path.with_name(f"{path.name}-{n}") for n in count(1))


def created(folder: Path) -> bool:
    """Create a folder; return False if it exists, even if another process created it just before."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True
