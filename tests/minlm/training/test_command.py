"""The generated command line: presets, dotted options, saved configs, and one-line errors with exit status 2."""

import argparse
import errno
import io
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from minlm.training.command import add_options, command_line, run_main, run_training
from minlm.training.config import save_config
from minlm.training.loop import Interrupted
from minlm.training.state import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A tower.

    height: in metres
    """

    height: int = 3


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """A bridge.

    length: in metres
    """

    length: int = 40


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run.

    tower: what is built
    train: the training
    """

    tower: Tower | Bridge = field(default_factory=Tower)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=9))


PRESETS = {"plain": Config(), "tall": Config(tower=Tower(height=100)), "river": Config(tower=Bridge())}
ROOT = Path(__file__).resolve().parents[3]


def read(*arguments):
    return command_line(PRESETS, "Trains.", list(arguments))


def test_the_first_preset_is_the_default():
    command = read()
    assert command.config == PRESETS["plain"]
    assert command.run.parent.name == "runs"
    assert command.run.name.startswith("plain-")
    assert not command.resume


@given(st.integers(1, 999), st.floats(1e-6, 1), st.integers(1, 99))
def test_options_override_the_preset(height, lr, steps):
    config = read(
        "--preset", "tall", "--tower.height", str(height), "--train.lr", repr(lr), "--steps", str(steps)
    ).config
    assert (config.tower.height, config.train.lr, config.train.steps) == (height, lr, steps)
    assert config.train.batch_size == PRESETS["tall"].train.batch_size


def test_a_saved_config_comes_before_options(tmp_path):
    save_config(Config(tower=Tower(height=7), train=TrainConfig(steps=5)), tmp_path / "config.json")
    config = read("--config", str(tmp_path / "config.json"), "--steps", "6").config
    assert (config.tower.height, config.train.steps) == (7, 6)


def test_resume_takes_the_runs_own_config(tmp_path):
    save_config(PRESETS["tall"], tmp_path / "config.json")
    command = read("--resume", str(tmp_path))
    assert (command.config, command.run, command.resume) == (PRESETS["tall"], tmp_path, True)


LIMITS = st.dictionaries(st.sampled_from(["steps", "minutes", "epochs"]), st.integers(1, 99), max_size=3)


@given(LIMITS.filter(bool), LIMITS)
def test_limits_given_to_a_resumed_run_replace_its_own(tmp_path_factory, own, limits):
    """Else a run that ended after its epochs could not be trained longer with --steps."""
    run, train = tmp_path_factory.mktemp("run"), TrainConfig(**own)
    save_config(replace(PRESETS["tall"], train=train), run / "config.json")
    for prefix in ("--", "--train."):
        options = [word for name, value in limits.items() for word in (prefix + name, str(value))]
        command = read("--resume", str(run), *options)
        expected = replace(PRESETS["tall"], train=TrainConfig(**limits) if limits else train)
        assert (command.config, command.run, command.resume) == (expected, run, True)


def test_a_resumed_run_is_not_ended_before_its_checkpoint(tmp_path):
    save_config(PRESETS["tall"], tmp_path / "config.json")
    (tmp_path / "step-00000007").mkdir()
    (tmp_path / "step-00000007" / "model.safetensors").write_text("")
    with pytest.raises(ValueError, match=f"--steps 6: {tmp_path} has trained 7 steps already: ask for more"):
        read("--resume", str(tmp_path), "--steps", "6")
    for steps in (7, 8):
        assert read("--resume", str(tmp_path), "--steps", str(steps)).config.train.steps == steps


def test_a_resumed_run_has_an_end(tmp_path):
    save_config(PRESETS["tall"], tmp_path / "config.json")
    with pytest.raises(ValueError, match="the run has no end"):
        read("--resume", str(tmp_path), "--steps", "0")


def test_a_folder_with_something_in_it_is_not_written_over(tmp_path):
    assert read("--out", str(tmp_path)).run == tmp_path
    (tmp_path / "holiday.jpg").write_text("")
    with pytest.raises(ValueError, match=r"--out .* is not empty: choose another folder$"):  # not a run
        read("--out", str(tmp_path))
    save_config(PRESETS["tall"], tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"--out .* is not empty: .* --resume"):
        read("--out", str(tmp_path))
    read("--resume", str(tmp_path))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tower.heigth", "4"], "unknown option --tower.heigth: did you mean --tower.height?"),
        (["--tower.heigh=4"], "unknown option --tower.heigh=4: did you mean --tower.height?"),
        (["--height", "4"], "unknown option --height: did you mean --tower.height?"),
        (["--lr", "1"], "unknown option --lr: did you mean --train.lr?"),
        (["--bach_size", "1"], "unknown option --bach_size: did you mean --train.batch_size?"),
        (
            ["--tower.length", "4"],
            "unknown option --tower.length: --tower.length is an option of --preset river",
        ),
        (["--lenght", "4"], "unknown option --lenght: --tower.length is an option of --preset river"),
        (
            ["--preset", "river", "--tower.height=4"],
            "--tower.height is an option of --preset plain | tall",
        ),
        (["--qqqq", "4"], "unknown option --qqqq; --help"),
        (["--preset", "short"], "invalid choice: 'short'"),
        (["--tower.height"], "expected one argument"),
    ],
)
def test_unknown_options_exit_with_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        read(*arguments)
    said = capsys.readouterr().err
    assert exit.value.code == 2
    assert message in said
    assert said.count("\n") == 1


def test_bad_values_become_one_line_and_status_two(capsys):
    with pytest.raises(SystemExit) as exit:
        run_main(lambda: read("--tower.height", "tall"))
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert "--tower.height='tall' is not an int" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--train.batch_size", "0"], r"^--train.batch_size=0 must be at least 1$"),
        (
            ["--train.neighbours", "3", "--train.batch_size", "128"],
            r"^--train.neighbours=3 does not divide --train.batch_size=128$",
        ),
    ],
)
def test_impossible_values_name_the_option_as_it_is_typed(arguments, message):
    with pytest.raises(ValueError, match=message):
        read(*arguments)


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


@pytest.mark.parametrize(
    "option",
    [("--preset", "plain"), ("--size", "tiny"), ("--tower.height", "4"), ("--out", "x"), ("--seed", "4")],
)
def test_resume_takes_no_other_option(tmp_path, option):
    save_config(PRESETS["tall"], tmp_path / "config.json")
    with pytest.raises(ValueError, match="--resume continues a run with its own config"):
        read("--resume", str(tmp_path), *option)


def test_a_checkpoint_is_not_a_run_to_resume(tmp_path):
    (tmp_path / "step-00000003").mkdir()
    (tmp_path / "step-00000003" / "model.safetensors").touch()
    with pytest.raises(ValueError, match=rf"step-00000003 is a checkpoint: give its run, {tmp_path}"):
        read("--resume", str(tmp_path / "step-00000003"))


@pytest.mark.parametrize("option", [("--preset", "plain"), ("--size", "full")])
def test_a_config_stands_in_place_of_a_preset(tmp_path, option):
    save_config(PRESETS["tall"], tmp_path / "config.json")
    with pytest.raises(ValueError, match="--config FILE stands in place of a preset"):
        read("--config", str(tmp_path / "config.json"), *option)


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
        "from pathlib import Path\nfrom minlm.training.command import run_main\n"
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


def test_help_shows_every_option_its_meaning_and_default(capsys):
    with pytest.raises(SystemExit) as exit:
        read("--preset", "tall", "--help")
    assert exit.value.code == 0
    said = capsys.readouterr().out
    assert "--tower.height" in said
    assert "in metres (default: 100)" in said
    assert "--train.steps" in said
    assert "--steps" in said


def help_of(capsys, *arguments, **more):
    with pytest.raises(SystemExit):
        command_line(PRESETS, "Trains.", [*arguments, "--help"], **more)
    return capsys.readouterr().out


def test_help_has_a_line_on_each_preset(capsys):
    about = {"plain": "a tower", "tall": "100 metres of it", "river": "a bridge"}
    said = help_of(capsys, about=about)
    for name, line in about.items():
        assert f"  {name:5}  {line}\n" in said


def test_help_says_whose_options_it_lists(capsys, tmp_path):
    assert "the options of --preset tall:" in help_of(capsys, "--preset", "tall")
    save_config(PRESETS["river"], tmp_path / "config.json")
    assert f"the options of {tmp_path / 'config.json'}:" in help_of(
        capsys, "--config", str(tmp_path / "config.json")
    )


def test_help_shows_common_options_first_and_each_once(capsys):
    said = help_of(capsys)
    common = said[said.index("common options:") :].split("\n\n")[0]
    shown = [line.split()[0].rstrip(",") for line in common.splitlines() if line.startswith("  --")]
    names = ("minutes", "steps", "epochs", "seed", "batch_size", "lr")
    assert shown == [f"--train.{name}" for name in names]
    listed = [line.split()[0].rstrip(",") for line in said.splitlines() if line.startswith("  --")]
    assert len(listed) == len(set(listed))
    assert {"--tower.height", "--train.warmup", "--train.min_lr_ratio"} <= set(listed) - set(shown)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A tower whose bricks are counted.

    bricks: how many there are; set from the data
    height: in metres
    """

    bricks: int = field(default=0, metadata={"set_from": "data"})
    height: int = 3


def test_what_is_set_from_the_data_is_no_option(capsys):
    parser = argparse.ArgumentParser()
    add_options(parser, Fitted())
    assert [action.dest for action in parser._actions] == ["help", "height"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """A building site.

    built: what is built there
    """

    built: Config = field(default_factory=Config, metadata={"inline": True})


@given(height=st.integers(1, 99))
def test_options_of_an_inline_config_go_without_its_name(height):
    built = command_line({"site": Site()}, "", ["--tower.height", str(height), "--steps", "2"]).config.built
    assert (built.tower.height, built.train.steps) == (height, 2)


def test_errors_in_an_inline_config_name_its_options_as_they_are_typed():
    with pytest.raises(ValueError, match=r"^--train\.lr=-1\.0 must be above 0$"):
        command_line({"site": Site()}, "", ["--train.lr", "-1"])
