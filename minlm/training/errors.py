"""Errors of users as one line and exit status 2, and output streams to which printing cannot fail."""

import errno
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from minlm.training.loop import Interrupted


def out_of_memory(error: Exception) -> bool:
    """Return True for errors of Python, NumPy, torch's allocators and the system when memory runs out."""
    messages = r"out of memory|can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED"
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and re.search(messages, str(error)) is not None)
    )


def disk_full(error: Exception) -> bool:
    """Return True for errors of Python, NumPy, safetensors and torch.save when the disk, or a quota, is full."""
    messages = (
        r"No space left on device|Not enough free space|Disk quota exceeded"
        r"|^\d+ requested and \d+ written|unexpected pos \d+|PytorchStreamWriter failed writing"
    )
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or (
        not isinstance(error, ValueError) and re.search(messages, str(error)) is not None
    )


def one_line(error: Exception) -> str | None:
    """Return one line for an error that the user can correct, or None for a fault of the code."""
    if out_of_memory(error):
        return "out of memory"
    if disk_full(error):
        return "no space left on the device: free some and try again"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError | OSError | RecursionError):
        # An error raised in a loader's worker arrives below its traceback.
        return (str(error).splitlines() or [type(error).__name__])[-1]
    return None


class Outlet:
    """A text stream to which writing cannot fail.

    Characters that its encoding lacks are escaped. If the reader closes the pipe, as in `| head -1`, text is dropped.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self.reader_may_leave():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self.reader_may_leave():
            self.stream.flush()

    @contextmanager
    def reader_may_leave(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # what the stream still holds must not raise again when Python ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


@contextmanager
def outlets() -> Iterator[None]:
    """Replace stdout and stderr by Outlets within the context."""
    streams = sys.stdout, sys.stderr  # None where one was closed before Python began
    made = [stream and Outlet(stream) for stream in streams]
    sys.stdout, sys.stderr = made
    try:
        yield
    finally:
        for outlet in filter(None, made):
            outlet.flush()
        sys.stdout, sys.stderr = streams


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Within the context, print errors that the user can correct as one line and exit with status 2."""
    script = Path(sys.argv[0])
    name = f"python -m {script.parent.name}" if script.name == "__main__.py" else script.name
    shown, warnings.formatwarning = (
        warnings.formatwarning,
        lambda message, *_: f"{name}: warning: {message}\n",
    )
    with outlets():
        try:
            yield
        except Exception as error:
            line = one_line(error)
            if line is None:
                raise
            print(f"{name}: error: {line}", file=sys.stderr)
            sys.exit(2)
        except Interrupted as error:
            print(f"\n{name}: {error}", file=sys.stderr)
            sys.exit(128 + error.number)
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            sys.exit(130)
        finally:
            warnings.formatwarning = shown


def run_main(main: Callable[[], None]) -> None:
    """Run main() with `errors_in_one_line`."""
    with errors_in_one_line():
        main()
