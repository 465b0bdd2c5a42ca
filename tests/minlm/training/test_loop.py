"""fit(): resumed = uninterrupted bit for bit, accumulated = full batch, schedule and log."""

import itertools
import signal
import time
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minlm.training.batches import Batches
from minlm.training.checkpoint import best_score, last_checkpoint, load_weights
from minlm.training.loop import Interrupted, Precision, due, fit
from minlm.training.state import TrainConfig, TrainingState
from tests.minlm.training.points import (
    Points,
    PointsTask,
    Stop,
    model_with_dropout,
    rows,
    squared_error,
    train,
)


@settings(max_examples=8)  # each is up to four runs with their checkpoints
@given(
    st.integers(1, 4),
    st.sampled_from([0.0, 0.8]),
    st.lists(st.integers(0, 7), max_size=3),
    st.sampled_from(["float32", "bf16"]),
    st.sampled_from([0.0, 0.02]),
)
def test_resumed_is_uninterrupted_bit_for_bit(
    tmp_path_factory, save_every, average, stops, precision, muon_lr
):
    """A run killed at any steps ends with the same weights and the same log, dropout and batches included."""
    config = TrainConfig(
        steps=11,
        batch_size=5,
        lr=0.05,
        save_every=save_every,
        evaluate_every=3,
        ema_decay=average,
        precision=precision,
        muon_lr=muon_lr,
    )
    folder = tmp_path_factory.mktemp("runs")
    evaluate: dict[str, Any] = {
        "evaluate": lambda model: {
            "dev_loss": squared_error(model, Points().collate([Points()[0, 1]]))[0].item()
        }
    }
    whole = train(folder / "whole", config, **evaluate)
    for stop_after in stops:
        with suppress(Stop):  # not raised if fewer steps are left
            train(folder / "killed", config, stop_after=stop_after, **evaluate)
    resumed = train(folder / "killed", config, **evaluate)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    for name, value in load_weights(last_checkpoint(folder / "whole")).items():
        assert torch.equal(load_weights(last_checkpoint(folder / "killed"))[name], value)
    clock = ("seconds", "tokens_per_second")
    assert rows(folder / "killed", *clock) == rows(folder / "whole", *clock)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_is_saved(tmp_path, number):
    """The continued run has the weights and log of an uninterrupted one, though no checkpoint was due."""
    config = TrainConfig(steps=6, batch_size=6, lr=0.05)
    whole, steps = train(tmp_path / "whole", config), itertools.count(1)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"stopped after step 4; continue with --resume .*run") as caught:
        train(
            tmp_path / "run",
            config,
            after_step=lambda model: next(steps) == 4 and signal.raise_signal(number),
        )
    assert caught.value.number == number
    assert signal.getsignal(number) is before
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-00000004"]
    resumed = train(tmp_path / "run", config)
    assert all(torch.equal(resumed.state_dict()[name], value) for name, value in whole.state_dict().items())
    clock = ("seconds", "tokens_per_second")
    assert rows(tmp_path / "run", *clock) == rows(tmp_path / "whole", *clock)


def test_the_second_signal_ends_the_run_at_once(tmp_path):
    def twice(model):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path / "run", TrainConfig(steps=6, batch_size=6), after_step=twice)
    assert not isinstance(caught.value, Interrupted)
    assert not list((tmp_path / "run").glob("step-*"))


def test_a_run_is_saved_by_wall_time(tmp_path, monkeypatch):
    """With 50 seconds per step and a checkpoint every two minutes, they are at 150, 300 and 350 seconds."""
    ticks = itertools.count(0, 50)
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    saved, save = [], TrainingState.save
    monkeypatch.setattr(
        TrainingState, "save", lambda state, *given: (save(state, *given), saved.append(state.step))
    )
    train(tmp_path / "run", TrainConfig(steps=7, batch_size=6, save_minutes=2.0))
    assert saved == [3, 6, 7]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_the_best_weights_by_the_score_are_kept(tmp_path_factory, scores):
    """The first of equal scores; a resumed run does not replace them by worse ones."""
    run, found, evaluations = tmp_path_factory.mktemp("run"), [], iter(scores)

    def evaluate(model):
        found.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"score": float(next(evaluations))}

    half = len(scores) // 2
    options = {"batch_size": 6, "lr": 0.1, "evaluate_every": 1, "ema_decay": 0.5}
    for steps in {half, len(scores)} - {0}:
        followed = {"evaluate": evaluate, "score": lambda metrics: metrics["score"]}
        train(run, TrainConfig(steps=steps, **options), **followed)
    best = scores.index(max(scores))
    weights = load_weights(last_checkpoint(run / "best"))
    assert all(torch.equal(weights[name], value) for name, value in found[best].items())
    assert best_score(run) == max(scores)


@pytest.mark.parametrize("muon_lr", [0.0, 0.1])
def test_a_gradient_that_is_not_finite_stops_the_run_before_a_weight_changes(tmp_path, muon_lr):
    """The loss is finite, its gradient is not: the square root at zero."""
    calls = itertools.count(1)

    def loss(model, batch):
        total, count = squared_error(model, batch)
        return total + ((total * 0).sqrt() if next(calls) == 3 else 0), count

    model = model_with_dropout()
    config = TrainConfig(steps=9, batch_size=6, save_every=1, muon_lr=muon_lr)
    with pytest.raises(ValueError, match=r"the gradient's norm is (nan|inf) at step 3: lower --train.lr"):
        fit(model, PointsTask(config, loss), config, tmp_path)
    saved = load_weights(last_checkpoint(tmp_path))
    assert all(
        torch.equal(saved[name], value) for name, value in model.state_dict().items() if "weight" in name
    )


def test_gradients_of_float32_regions_are_float32():
    """Backward runs outside autocast: a loss computed in float32 has a float32 gradient."""
    torch.manual_seed(0)
    x: Any = torch.randn(5, 16, requires_grad=True)
    weight = torch.randn(16, 16)

    def loss(model, batch):
        with torch.autocast("cpu", enabled=False):
            return (batch["x"] @ weight).square().sum(), 5

    batch = {"x": x, "targets": torch.zeros(5)}
    task = PointsTask(TrainConfig(steps=1, batch_size=5), loss)
    task.backward(nn.Linear(1, 1), batch, Precision("bf16", torch.device("cpu")))
    (expected,) = torch.autograd.grad(loss(None, batch)[0] / 5, x)
    assert torch.equal(x.grad, expected)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_accumulated_gradients_equal_the_full_batchs(n_items, n_parts, seed):
    """The parts have unequal counts."""
    n_parts = min(n_parts, n_items)
    torch.manual_seed(seed)
    batch = {"x": torch.randn(n_items, 4).double(), "targets": torch.randn(n_items, 2).double()}
    batch["token_mask"] = torch.rand(n_items) < 0.7
    batch["token_mask"][0] = True
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    total, count = squared_error(model, batch)
    expected = torch.autograd.grad(total / count, list(model.parameters()))
    task = PointsTask(TrainConfig(steps=1, batch_size=9, micro_batches=n_parts))
    value, counted, _ = task.backward(model, batch, Precision("float32", torch.device("cpu")))
    torch.testing.assert_close(value, (total / count).detach())
    assert counted == count
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_loop_equals_adamw_written_out(tmp_path):
    """Three steps by hand with torch's plain AdamW: draw, forward, backward, clip, schedule, step."""
    shape: dict[str, Any] = {"warmup": 0.5, "min_lr_ratio": 0.1, "grad_clip_norm": 0.3}
    config = TrainConfig(steps=3, batch_size=6, lr=0.1, weight_decay=0.2, precision="float32", **shape)
    # In float64: Adam divides a gradient by its own size, so rounding shows where a gradient is nearly zero.
    found = train(tmp_path / "run", config, dtype=torch.float64)
    batches, model = Batches(Points(), 6, 0), model_with_dropout().double()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.2}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, config.beta2),
    )
    torch.manual_seed(config.seed)
    model.train()
    # At the middle of each step, 1/6, 3/6 and 5/6 of the run: rising to the peak at one half, then falling.
    cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 2 / 3))).item()
    for batch, factor in zip(batches.from_step(0), [1 / 3, 1.0, 0.1 + 0.9 * cosine], strict=False):
        total, count = squared_error(model, batch)
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * factor
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, msg=name)


@given(st.integers(0, 6), st.integers(1, 20))
def test_due_at_each_multiple_and_at_the_end(every, step):
    assert due(every, step, 1.0)
    assert due(every, step, 0.5) == (every > 0 and step % every == 0)


def test_a_time_budget_schedules_the_learning_rate_over_it(tmp_path):
    train(tmp_path / "run", TrainConfig(minutes=0.01, batch_size=6, lr=0.1, warmup=0.0, schedule="linear"))
    for row, before in zip(rows(tmp_path / "run")[1:], rows(tmp_path / "run"), strict=False):
        assert row["lr"] == pytest.approx(0.1 * (1 - before["seconds"] / 0.6), abs=1e-4)
    assert rows(tmp_path / "run")[-1]["seconds"] >= 0.6


def test_the_log_has_one_line_per_step_with_the_metrics_of_the_task(tmp_path):
    train(tmp_path / "run", TrainConfig(steps=4, batch_size=6))
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4]
    assert all(
        {"loss", "chance", "lr", "gradient_norm", "seconds"} <= row.keys() for row in rows(tmp_path / "run")
    )
    assert rows(tmp_path / "run")[-1]["epoch"] == 1.0


def test_what_is_evaluated_is_what_is_saved_and_returned(tmp_path):
    seen = []

    def evaluate(model):
        assert not model.training
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"dev_loss": 1.0}

    model = train(tmp_path / "run", TrainConfig(steps=4, batch_size=6, ema_decay=0.9), evaluate=evaluate)
    saved = load_weights(last_checkpoint(tmp_path / "run"))
    for name, value in seen[-1].items():
        assert torch.equal(saved[name], value)
        assert torch.equal(model.state_dict()[name], value)


def test_parameters_are_put_back_into_their_bounds_after_each_step(tmp_path):
    bounded = []
    train(tmp_path / "run", TrainConfig(steps=3, batch_size=6), after_step=lambda model: bounded.append(1))
    assert len(bounded) == 3


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    def broken(model, batch):
        total, count = squared_error(model, batch)
        return total / 0, count

    config = TrainConfig(steps=2, lr=0.5, batch_size=6)
    with pytest.raises(ValueError, match=r"the loss is inf at step 1: lower --train.lr \(it is 0.5\)"):
        fit(model_with_dropout(), PointsTask(config, broken), config, tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"ema_decay": 0.5}, {"muon_lr": 0.1}, {"muon_lr": 0.1, "ema_decay": 0.5}],
    ids=str,
)
def test_a_checkpoint_of_another_config_is_not_restored(tmp_path, options):
    train(tmp_path / "run", TrainConfig(steps=2, batch_size=6))
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    message = r"step-00000002 is not a checkpoint of this run's config.json \(.+\): put back"
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", TrainConfig(steps=4, batch_size=6, **options))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("damage", [[], {}, {"random": 3}, {"random": [{}]}], ids=str)
def test_a_damaged_training_state_is_not_restored(tmp_path, damage):
    train(tmp_path / "run", TrainConfig(steps=2, batch_size=6))
    torch.save(damage, last_checkpoint(tmp_path / "run") / "training.pt")
    with pytest.raises(ValueError, match=r"is not a checkpoint of this run's config\.json"):
        train(tmp_path / "run", TrainConfig(steps=4, batch_size=6))
