"""The command line of a training script: presets, saved configs, --resume, and the run's folder."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minlm.training.config import save_config
from minlm.training.state import TrainConfig
from tests.minlm.training.towers import PRESETS, Config, Tower, read


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
def test_a_config_cannot_be_combined_with_a_preset(tmp_path, option):
    save_config(PRESETS["tall"], tmp_path / "config.json")
    with pytest.raises(ValueError, match="--config cannot be combined with --preset or --size"):
        read("--config", str(tmp_path / "config.json"), *option)
