"""Options made from a config: help, bounds, near misses, and one-line errors with exit status 2."""

import argparse
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minlm.training.command import command_line
from minlm.training.config import save_config
from minlm.training.errors import run_main
from minlm.training.options import add_options
from tests.minlm.training.towers import PRESETS, Config, read


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
