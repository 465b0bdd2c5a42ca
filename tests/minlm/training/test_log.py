"""The record of a run: one JSON line per step, flushed at once; lines after the last checkpoint are dropped."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minlm.training.log import Log, truncate_metrics


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


@pytest.mark.parametrize("unit", ["tokens", "pairs"])
def test_a_bar_of_80_columns_shows_the_remaining_time_and_the_unit(log, unit):
    """Even with long numbers: a run of many hours, a step above 100,000, the rate of a GPU."""
    row = {"step": 100_000, "loss": 10.9, "chance": 10.82, f"{unit}_per_second": 123_456.0}
    log.step(row, 0.5)
    shown = log.bar.format_meter(**log.bar.format_dict | {"ncols": 80, "elapsed": 36_000.0})
    assert len(shown) <= 80
    assert shown.startswith(" 50% 10:00:00<20:00:00|")  # a quarter of the run took ten hours
    assert shown.endswith(f"| step 100000 loss 10.900 (chance 10.82) 123456 {unit}/s")


def test_an_evaluation_is_broken_between_metrics_only(log, capsys):
    names = ("dev_loss", "dev_image_to_text_recall@10", "dev_text_to_image_recall@10", "dev_zero_shot_top1")
    log.bar.ncols = 80
    log.evaluation({"step": 400, **dict.fromkeys(names, 0.5)})
    shown = [line.strip("\r ") for line in capsys.readouterr().err.splitlines() if "=" in line]
    assert [word for line in shown for word in line.split()[-3:] if "=" in word] == [
        f"{name}=0.500" for name in names
    ]
    assert max(map(len, shown)) <= 80


def test_the_bar_shows_loss_chance_rate_and_progress(log):
    assert log.bar.n == 25
    log.step(ROW, 0.5)
    assert log.bar.n == 50
    assert log.bar.postfix[0] == "step 3 loss 1.235 (chance 4.85) 812 items/s"


def test_progress_past_the_end_stays_within_the_bar(log):
    log.step(ROW, 1.7)
    assert log.bar.n == 100


def test_evaluations_are_lines_too(log, capsys):
    log.evaluation({"step": 4, "dev_loss": 2.5})
    assert lines(log) == [{"step": 4, "dev_loss": 2.5}]
    assert "step 4: dev_loss=2.500" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["[1]", "{}", '{"step": "3"}', "7"])
def test_lines_without_a_step_are_refused_not_dropped(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl has a line without a step"):
        truncate_metrics(path, 1)
    assert path.read_text().endswith(f"{line}\n")


LINES = ["", "   ", '{"step": 1', "nul\0l", '{"step": 3, "lo']


@given(st.integers(0, 9), st.integers(1, 9), st.lists(st.tuples(st.integers(0, 9), st.sampled_from(LINES))))
def test_metrics_after_the_checkpoint_are_dropped(tmp_path_factory, n_lines, step, torn):
    """So are blank and torn lines, wherever a kill or a full disk left them; every other line stays."""
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    rows = [{"step": i, "loss": 0.5} for i in range(1, n_lines + 1)]
    lines = list(map(json.dumps, rows))
    for place, line in torn:
        lines.insert(place, line)
    path.write_text("\n".join(lines))
    truncate_metrics(path, step)
    assert path.read_text() == "".join(json.dumps(row) + "\n" for row in rows[:step])


def test_the_log_of_a_run_without_checkpoint_is_kept(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    for n in (1, 2):
        path.write_text(f"log {n}\n")
        truncate_metrics(path, 0)
        assert (tmp_path / f"metrics-{n}.jsonl").read_text() == f"log {n}\n"
        assert not path.exists()
        assert f"has no checkpoint: training starts at step 1; the old log is kept as metrics-{n}" in (
            capsys.readouterr().out
        )
