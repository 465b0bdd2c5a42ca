"""The generated command line: presets, dotted options, saved configs, and one-line errors with exit status 2."""

import signal
import sys
import warnings
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minlm.training.command import command_line, run_main
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
class Config:
    """A run.

    tower: the tower
    train: the training
    """

    tower: Tower = field(default_factory=Tower)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=9))


PRESETS = {"plain": Config(), "tall": Config(tower=Tower(height=100))}


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
    with pytest.raises(ValueError, match="give no other option beside it"):
        read("--resume", str(tmp_path), "--steps", "3")


def test_a_folder_with_something_in_it_is_not_written_over(tmp_path):
    assert read("--out", str(tmp_path)).run == tmp_path
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ValueError, match=r"--out .* is not empty: .* --resume"):
        read("--out", str(tmp_path))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tower.heigth", "4"], "unknown option --tower.heigth: did you mean --tower.height?"),
        (["--tower.heigh=4"], "unknown option --tower.heigh=4: did you mean --tower.height?"),
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


@pytest.mark.parametrize("option", [("--preset", "plain"), ("--size", "tiny"), ("--tower.height", "4")])
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


@pytest.mark.parametrize(
    "error, status, said",
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (
            Interrupted(signal.SIGTERM, "stopped after step 3; continue with --resume RUN"),
            143,
            "--resume RUN",
        ),
        (Interrupted(signal.SIGINT, "stopped after step 3; continue with --resume RUN"), 130, "after step 3"),
    ],
)
def test_an_interrupt_says_how_to_go_on(capsys, error, status, said):
    """The shell's own exit status of the signal; `--resume` only where a checkpoint was saved."""

    def interrupted():
        raise error

    with pytest.raises(SystemExit) as exit:
        run_main(interrupted)
    assert exit.value.code == status
    printed = capsys.readouterr().err
    assert said in printed
    assert ("--resume" in printed) == isinstance(error, Interrupted)


def test_help_shows_every_option_its_meaning_and_default(capsys):
    with pytest.raises(SystemExit) as exit:
        read("--preset", "tall", "--help")
    assert exit.value.code == 0
    said = capsys.readouterr().out
    assert "--tower.height" in said
    assert "in metres (default: 100)" in said
    assert "--train.steps" in said
    assert "--steps" in said
