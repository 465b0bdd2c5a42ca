"""The record of a run: one JSON line a step, at once on disk."""

import json

import pytest

from minlm.training.log import Log


@pytest.fixture
def log(tmp_path):
    log = Log(tmp_path / "metrics.jsonl", progress=0.25)
    yield log
    log.__exit__()


def lines(log):
    return [json.loads(line) for line in open(log.file.name, encoding="utf-8").read().splitlines()]


ROW = {"step": 3, "loss": 1.23456789, "chance": 4.85, "items_per_second": 812.4}


def test_lines_are_on_disk_at_once_with_six_digits(log):
    log.step(ROW, 0.5)
    assert lines(log) == [{"step": 3, "loss": 1.23457, "chance": 4.85, "items_per_second": 812.4}]


def test_a_gradient_that_overflows_is_null(log):
    log.step(ROW | {"gradient_norm": float("inf"), "top1": float("nan")}, 0.5)
    assert lines(log)[0].items() >= {"gradient_norm": None, "top1": None}.items()


def test_the_bar_shows_loss_chance_rate_and_progress(log):
    assert log.bar.n == 25
    log.step(ROW, 0.5)
    assert log.bar.n == 50
    assert log.bar.postfix[0] == "step 3 loss 1.235 (chance 4.85) 812 items/s"
    assert "remaining" in log.bar.bar_format


def test_progress_past_the_end_stays_within_the_bar(log):
    log.step(ROW, 1.7)
    assert log.bar.n == 100


def test_evaluations_are_lines_too(log, capsys):
    log.evaluation({"step": 4, "dev_loss": 2.5})
    assert lines(log) == [{"step": 4, "dev_loss": 2.5}]
    assert "step 4: dev_loss 2.500" in capsys.readouterr().err
