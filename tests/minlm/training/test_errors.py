"""Errors as one line with exit status 2; memory, disk, signals, and output that cannot fail."""

import errno
import io
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from minlm.training.command import run_training
from minlm.training.config import save_config
from minlm.training.errors import run_main
from minlm.training.loop import Interrupted
from minlm.training.state import TrainConfig
from tests.minlm.training.towers import PRESETS, read

ROOT = Path(__file__).resolve().parents[3]


def test_an_error_from_a_worker_is_one_line_too(capsys):
    def fail():
        raise ValueError(
            "Caught ValueError in a worker.\nOriginal Traceback:\n  ...\nValueError: 3 images are damaged"
        )

    with pytest.raises(SystemExit):
        run_main(fail)
    assert capsys.readouterr().err.endswith("error: ValueError: 3 images are damaged\n")


def test_a_file_that_cannot_be_opened_is_one_line_with_its_name(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        run_main((tmp_path / "nowhere" / "x.txt").read_text)
    assert exit.value.code == 2
    assert capsys.readouterr().err.endswith("nowhere/x.txt: No such file or directory\n")


def test_a_warning_is_one_line_and_the_command_has_its_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/minclip/__main__.py", "search"])

    def careless():
        warnings.warn("left out 2 images", stacklevel=1)
        raise ValueError("no image is left")

    shown = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(
            warnings, "showwarning", lambda *given: sys.stderr.write(warnings.formatwarning(*given))
        )
        with pytest.raises(SystemExit):
            run_main(careless)
    assert capsys.readouterr().err == (
        "python -m minclip: warning: left out 2 images\npython -m minclip: error: no image is left\n"
    )
    assert warnings.formatwarning is shown


def training(failure, monkeypatch, run, *written):
    """The training script run_main calls, in which train() writes these files of its run and then fails."""

    def train(config, folder, resume):
        for name in written:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        failure()

    monkeypatch.setattr(sys, "argv", ["train.py", "--out", str(run)])
    return lambda: run_training(train, PRESETS, "Trains.", {})


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("there", [True, False])
def test_an_interrupt_names_the_way_on_where_there_is_one(tmp_path, monkeypatch, capsys, there):
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as exit:
        run_main(
            training(
                interrupt, monkeypatch, run, "step-00000001/model.safetensors" if there else "config.json"
            )
        )
    assert exit.value.code == 130
    said = capsys.readouterr().err
    assert ("--resume" in said) == (f"--resume {run} continues" in said) == there
    assert said.endswith("stopped\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_a_signal_ended_has_the_signals_exit_status(tmp_path, monkeypatch, capsys, number):
    def stopped():
        raise Interrupted(number, "stopped after step 3; continue with --resume RUN")

    with pytest.raises(SystemExit) as exit:
        run_main(training(stopped, monkeypatch, tmp_path / "run"))
    assert exit.value.code == 128 + number
    assert capsys.readouterr().err == "\ntrain.py: stopped after step 3; continue with --resume RUN\n"


def said_of(error, main, capsys):
    """The line that run_main says when `main` ends in this error."""
    with pytest.raises(SystemExit) as exit:
        run_main(main)
    assert exit.value.code == 2
    line, end, rest = capsys.readouterr().err.partition("\n")
    assert (end, rest) == ("\n", ""), error
    return line


def failing_with(error):
    def fail():
        raise error

    return fail


MEMORY = [
    lambda: torch.empty(2**55, dtype=torch.uint8),
    lambda: bytearray(2**60),
    failing_with(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee")),
    failing_with(RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)")),
    failing_with(OSError(errno.ENOMEM, "Cannot allocate memory")),
]
DISK = [  # as the libraries say it
    failing_with(OSError(errno.ENOSPC, "No space left on device", "step/config.json")),
    failing_with(OSError(errno.EDQUOT, "Disk quota exceeded")),
    failing_with(OSError("1003854 requested and 261120 written")),
    failing_with(OSError("Not enough free space to write 24000000 bytes after offset 0")),
    failing_with(
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    ),
    failing_with(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")),
]


@pytest.mark.parametrize("failure", MEMORY)
def test_out_of_memory_is_one_line_with_the_options_that_save_it(failure, tmp_path, monkeypatch, capsys):
    assert said_of(failure, failure, capsys).endswith(": error: out of memory")
    said = said_of(failure, training(failure, monkeypatch, tmp_path / "run"), capsys)
    assert said.startswith("train.py: error: out of memory: ")
    assert "a larger --train.micro_batches (it is 1)" in said
    assert "a smaller --train.batch_size (it is 128)" in said


def test_a_run_that_was_out_of_memory_goes_on_in_more_parts(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"

    def fail():
        save_config(PRESETS["plain"], run / "config.json")
        raise MemoryError

    said = said_of(fail, training(fail, monkeypatch, run), capsys)
    assert said.endswith(
        f": out of memory: continue with --resume {run} --train.micro_batches 2, which computes a "
        "batch in more parts"
    )
    config = read("--resume", str(run), "--train.micro_batches", "2").config
    assert config == replace(PRESETS["plain"], train=TrainConfig(steps=9, micro_batches=2))


@pytest.mark.parametrize("failure", DISK)
def test_a_full_disk_is_one_line_with_the_way_on(failure, tmp_path, monkeypatch, capsys):
    assert said_of(failure, failure, capsys).endswith(
        ": error: no space left on the device: free some and try again"
    )
    run = tmp_path / "run"
    said = said_of(failure, training(failure, monkeypatch, run), capsys)
    assert said == "train.py: error: no space left on the device: free some and start again"
    said = said_of(failure, training(failure, monkeypatch, run / "two", "config.json"), capsys)
    assert said.endswith(f": free some and continue with --resume {run / 'two'}")


@pytest.mark.parametrize(
    "error",
    [
        *(TypeError("x"), AssertionError("x"), KeyError("x"), ZeroDivisionError("x")),
        *(RuntimeError("size mismatch"), SafetensorError("x"), AttributeError("x")),
    ],
)
def test_a_fault_of_the_code_keeps_its_traceback(error, tmp_path, monkeypatch):
    for main in (failing_with(error), training(failing_with(error), monkeypatch, tmp_path / "run")):
        with pytest.raises(type(error)) as kept:
            run_main(main)
        assert kept.value is error


def test_an_error_without_a_message_has_its_name(capsys):
    assert said_of("", failing_with(ValueError()), capsys).endswith("error: ValueError")


def test_a_terminal_without_a_character_shows_its_escape(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    run_main(lambda: print("Zoë 漢"))
    assert shown.getvalue() == b"Zo\\xeb \\u6f22\n"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("buffered", [True, False])
def test_a_closed_pipe_ends_nothing(monkeypatch, name, buffered):
    reader, writer = os.pipe()
    os.close(reader)
    steps = []

    def main():
        for step in range(5):
            print("x" * 5000, file=getattr(sys, name), flush=not buffered)
            steps.append(step)

    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, name, stream)
        run_main(main)
        assert getattr(sys, name) is stream
    assert len(steps) == 5


def test_neither_costs_a_real_process_its_end(tmp_path):
    """Python itself, which writes what is left when it ends, and complains where it cannot."""
    code = (
        "from pathlib import Path\nfrom minlm.training.errors import run_main\n"
        f"def main():\n print('Zo\\xeb')\n Path({str(tmp_path / 'done')!r}).touch()\nrun_main(main)"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=stdout,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONUNBUFFERED": ""},
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "done").exists()
