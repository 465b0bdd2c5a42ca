"""Findings on run length, hardware and model, and the exit status of doctor."""

import pytest
import torch
from torch import nn

from minlm.training.findings import examine_hardware, examine_model, examine_schedule, print_findings
from minlm.training.state import TrainConfig


@pytest.mark.parametrize(
    "train, level, text",
    [
        (
            TrainConfig(steps=100, batch_size=10, warmup=0.1),
            "ok",
            "at most 100 steps, 1.0 epochs; warm-up takes 10",
        ),
        (
            TrainConfig(epochs=2, batch_size=10, warmup=0.1),
            "ok",
            "at most 200 steps, 2.0 epochs; warm-up takes 20",
        ),
        (
            TrainConfig(steps=50, epochs=2, batch_size=10, warmup=0.1),
            "ok",
            "at most 50 steps, 0.5 epochs; warm-up takes 5",
        ),
        (
            TrainConfig(epochs=0.25, batch_size=100, warmup=0.5),  # a step begun is a step
            "ok",
            "at most 3 steps, 0.3 epochs; warm-up takes 2",
        ),
        (
            TrainConfig(steps=5, batch_size=10, warmup=0.05),
            "problem",
            "at most 5 steps, 0.1 epochs; warm-up takes 0",
        ),
        (TrainConfig(steps=5, batch_size=10, warmup=0), "ok", "at most 5 steps, 0.1 epochs"),
        (TrainConfig(minutes=2, warmup=0.1), "ok", "at most 2 minutes; warm-up takes 12 s"),
        (
            TrainConfig(steps=5, batch_size=1002, neighbours=1002),
            "problem",
            "1000 training items are too few for one batch",
        ),
    ],
)
def test_run_length_and_warm_up(train, level, text):
    found = list(examine_schedule(train, 1000, "training images"))
    assert any(found_level == level and said.startswith(text) for found_level, said in found)
    assert len(found) == 1


def test_both_limits_are_reported():
    found = list(examine_schedule(TrainConfig(steps=10, minutes=2), 1000, "windows"))
    assert [text.split(";")[0] for _, text in found] == ["at most 10 steps, 1.4 epochs", "at most 2 minutes"]


@pytest.mark.parametrize("levels, status", [(["ok", "note"], 0), (["ok", "problem", "note"], 1), ([], 0)])
def test_findings_are_lines_and_a_problem_is_status_one(levels, status, capsys):
    with pytest.raises(SystemExit) as exit:
        print_findings((level, f"finding {i}") for i, level in enumerate(levels))
    assert exit.value.code == status
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ") for line in lines] == [
        [level.rjust(7), f"finding {i}"] for i, level in enumerate(levels)
    ]


def test_a_batch_larger_than_the_data_is_lowered():
    found = list(examine_schedule(TrainConfig(steps=50, batch_size=2000), 1000, "training images"))
    assert found == [
        ("note", "--train.batch_size 2000 would be lowered to 1000: there are 1,000 training images"),
        ("ok", "at most 50 steps, 50.0 epochs; warm-up takes 2 of them"),
    ]


def test_an_absent_gpu_is_a_problem(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    level, text = examine_hardware(TrainConfig(steps=1, device="cuda"))
    assert (level, text.split(":")[0]) == ("problem", "device=cuda, but torch sees no such GPU")
    assert examine_hardware(TrainConfig(steps=1)) == ("ok", "computed on cpu, precision auto")


def test_a_model_is_made_without_memory():
    assert examine_model(lambda: nn.Linear(10**7, 10**7)) == (
        "ok",
        f"the model has {10**14 + 10**7:,} parameters",
    )
