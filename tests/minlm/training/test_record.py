"""run.json and data.sha256: the data of a run stays the same, and a finished run has a result to return."""

from dataclasses import dataclass

import pytest

from minlm.training.config import save_config
from minlm.training.files import write_json
from minlm.training.record import check_same_data, finished_result, mark_finished


def test_a_run_is_continued_with_its_own_data(tmp_path):
    check_same_data(tmp_path, "one")
    check_same_data(tmp_path, "one")
    with pytest.raises(ValueError, match=r"the data is not what .* began with: put it back"):
        check_same_data(tmp_path, "another")


@dataclass(frozen=True)
class Config:
    seed: int


def test_only_a_finished_run_of_the_same_config_has_a_result(tmp_path, capsys):
    result = {"accuracy": 0.5}
    write_json(tmp_path / "result.json", result)
    (tmp_path / "report.html").write_text("")
    save_config(Config(seed=1), tmp_path / "config.json")
    assert finished_result(tmp_path, Config(seed=1)) == {}
    mark_finished(tmp_path)
    assert finished_result(tmp_path, Config(seed=2)) == {}
    assert capsys.readouterr().out == ""
    assert finished_result(tmp_path, Config(seed=1)) == result
    assert "is already finished" in capsys.readouterr().out
