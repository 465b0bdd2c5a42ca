"""fit(): resume = uninterrupted bit for bit, accumulated = full batch, limits, schedule and log."""

import itertools
import json
import math
import signal
import time
from collections import OrderedDict
from contextlib import suppress
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset

from minlm.task import TokenTask
from minlm.training.batches import Batches
from minlm.training.bounds import bounds_of
from minlm.training.checkpoint import best_score, last_checkpoint, load_weights
from minlm.training.hardware import Precision
from minlm.training.loop import Interrupted, due, fit
from minlm.training.state import TrainConfig, TrainingState, make_optimizers


class Points(Dataset):
    """Noisy points of a linear map; some of them do not count, as padding does not."""

    def __init__(self, n_items=24):
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(n_items, 4, generator=generator)
        self.y = self.x @ torch.randn(4, 2, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, key):
        epoch, index = key
        return {
            "x": self.x[index] + 0.01 * epoch,
            "targets": self.y[index],
            "token_mask": torch.tensor(index % 3 > 0),
        }

    def collate(self, items):
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def model_with_dropout():
    torch.manual_seed(1)
    blocks = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.ReLU(), nn.BatchNorm1d(8))
    layers = {"stem": nn.Linear(4, 8), "blocks": blocks, "head": nn.Linear(8, 2)}
    return nn.Sequential(OrderedDict(layers))


def squared_error(model, batch):
    x = batch["x"].to(next(model.parameters()).dtype)
    error = (model(x) - batch["targets"]).square().sum(dim=1)
    return (error * batch["token_mask"]).sum(), int(batch["token_mask"].sum())


class PointsTask(TokenTask):
    """What `fit` needs for Points; any of it can be replaced by a test."""

    def __init__(self, config, loss=squared_error, rank=0, world_size=1, **replaced):
        self.config = SimpleNamespace(train=config, model=SimpleNamespace(vocab_size=2))
        self.batches = Batches(Points(), config.batch_size, config.seed, rank=rank, world_size=world_size)
        self.loss = loss
        for name, function in replaced.items():
            setattr(self, name, function)

    loss = loss = None

    def evaluate(self, model):
        return {}

    def score(self, metrics):
        return 0.0

    def inference_files(self, folder):
        pass


class Stop(Exception):
    """Stands for a kill: it can come before any step's loss."""


def train(run, config, stop_after=None, dtype=torch.float32, **replaced):
    """One process's share of a run: from what lies in `run` to its end, or to the kill."""
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        if stop_after is not None and calls > stop_after:
            raise Stop
        return squared_error(model, batch)

    run.mkdir(exist_ok=True)
    model = model_with_dropout().to(dtype)
    fit(model, PointsTask(config, loss, **replaced), config, run)
    return model


def rows(run, *left_out):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in left_out} for line in lines if len(line) > 1]


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
    """Killed at any steps: the same weights, the same log line by line, dropout and batches included."""
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
    evaluate = {
        "evaluate": lambda model: {
            "dev_loss": squared_error(model, Points().collate([Points()[0, 1]]))[0].item()
        }
    }
    whole = train(folder / "whole", config, **evaluate)
    for stop_after in stops:
        with suppress(Stop):  # none comes where less than that was left to do
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
    """The run that is continued gives the undisturbed weights and log, though no checkpoint was due."""
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
    """A clock that moves 50 seconds per step, a checkpoint every two minutes: at 150, 300 and 350 seconds."""
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


@pytest.mark.parametrize("matrix", ["embedding", "blocks"])
def test_an_overflow_of_one_optimizer_holds_all_of_them_back(matrix):
    """fp16 with Muon: one gradient is infinite; neither optimizer steps, and the scale is halved."""
    model = nn.ModuleDict({"embedding": nn.Linear(2, 2), "blocks": nn.ModuleList([nn.Linear(2, 2)])})
    config = TrainConfig(steps=9, precision="fp16", muon_lr=0.1)
    state = TrainingState(model, config, torch.amp.GradScaler("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state.scaler.scale(sum(p.sum() for p in model.parameters())).backward()
    next(p for name, p in model.named_parameters() if name.startswith(matrix)).grad[0, 0] = float("inf")
    scale = state.scaler.get_scale()
    assert state.optimize(1.0) == float("inf")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert state.scaler.get_scale() == scale / 2
    model.zero_grad()
    state.scaler.scale(sum(p.sum() for p in model.parameters())).backward()
    state.optimize(1.0)  # the next step is taken, by both
    assert all(not torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_gradients_of_float32_regions_are_float32():
    """Backward runs outside autocast: what the loss computes in float32 has the gradient of float32."""
    torch.manual_seed(0)
    x = torch.randn(5, 16, requires_grad=True)
    weight = torch.randn(16, 16)

    def loss(model, batch):
        with torch.autocast("cpu", enabled=False):
            return (batch["x"] @ weight).square().sum(), 5

    batch = {"x": x, "targets": torch.zeros(5)}
    task = PointsTask(TrainConfig(steps=1, batch_size=5), loss)
    task.backward(nn.Linear(1, 1), batch, Precision("bf16", torch.device("cpu")))
    found, x.grad = x.grad, None
    (loss(None, batch)[0] / 5).backward()
    assert torch.equal(found, x.grad)


@given(st.integers(1, 60), st.floats(0.1, 40))
def test_epochs_end_at_the_step_they_say(steps_per_epoch, epochs):
    """The first step at which so many epochs are seen: 1.1 epochs of 50 steps are 55, not 56."""
    epochs = round(epochs, 1)
    config = TrainConfig(epochs=epochs, batch_size=1)
    last = math.ceil(Fraction(str(epochs)) * steps_per_epoch)
    assert config.progress(last, steps_per_epoch, 0.0) >= 1
    assert config.progress(last - 1, steps_per_epoch, 0.0) < 1


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_accumulated_gradients_are_the_full_batchs(n_items, n_parts, seed):
    """For every parameter, though the parts have unequal counts."""
    n_parts = min(n_parts, n_items)
    torch.manual_seed(seed)
    batch = {"x": torch.randn(n_items, 4).double(), "targets": torch.randn(n_items, 2).double()}
    batch["token_mask"] = torch.rand(n_items) < 0.7
    batch["token_mask"][0] = True
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    total, count = squared_error(model, batch)
    (total / count).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    task = PointsTask(TrainConfig(steps=1, batch_size=9, micro_batches=n_parts))
    value, counted, _ = task.backward(model, batch, Precision("float32", torch.device("cpu")))
    torch.testing.assert_close(value, (total / count).detach())
    assert counted == count
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_loop_is_adamw_written_out(tmp_path):
    """Three steps by hand with torch's plain AdamW: draw, forward, backward, clip, schedule, step."""
    shape = {"warmup": 0.5, "min_lr_ratio": 0.1, "grad_clip_norm": 0.3}
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


@given(st.integers(0, 20), st.floats(0, 4), st.floats(0, 2), st.integers(0, 30), st.floats(0, 200))
def test_the_nearest_limit_ends_the_run(steps, epochs, minutes, step, seconds):
    if not (steps or epochs or minutes):
        with pytest.raises(ValueError, match="the run has no end"):
            TrainConfig(steps=0)
        return
    config = TrainConfig(steps=steps, epochs=epochs, minutes=minutes)
    ended = (
        (steps and step >= steps)
        or (epochs and step >= max(1, math.ceil(round(epochs * 5, 6))))
        or (minutes and seconds >= 60 * minutes)
    )
    assert (config.progress(step, 5, seconds) >= 1) == bool(ended)


@given(st.integers(0, 6), st.integers(1, 20))
def test_due_at_each_multiple_and_at_the_end(every, step):
    assert due(every, step, 1.0)
    assert due(every, step, 0.5) == (every > 0 and step % every == 0)


def test_a_time_budget_schedules_the_learning_rate_over_it(tmp_path):
    train(tmp_path / "run", TrainConfig(minutes=0.01, batch_size=6, lr=0.1, warmup=0.0, schedule="linear"))
    for row, before in zip(rows(tmp_path / "run")[1:], rows(tmp_path / "run"), strict=False):
        assert row["lr"] == pytest.approx(0.1 * (1 - before["seconds"] / 0.6), abs=1e-4)
    assert rows(tmp_path / "run")[-1]["seconds"] >= 0.6


def test_the_log_has_a_line_a_step_with_what_the_loss_returned(tmp_path):
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
def test_a_training_state_that_is_none_is_not_restored(tmp_path, damage):
    train(tmp_path / "run", TrainConfig(steps=2, batch_size=6))
    torch.save(damage, last_checkpoint(tmp_path / "run") / "training.pt")
    with pytest.raises(ValueError, match=r"is not a checkpoint of this run's config\.json"):
        train(tmp_path / "run", TrainConfig(steps=4, batch_size=6))


@pytest.mark.parametrize(
    "values, message",
    [
        ({}, "the run has no end: set epochs, steps or minutes"),
        ({"steps": 1, "warmup": 1.0}, r"warmup=1.0 must be in \[0, 1\)"),
        ({"steps": 1, "ema_decay": 1.0}, "ema_decay=1.0 must be in"),
        ({"steps": 1, "batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"steps": 1, "neighbours": 0}, "neighbours=0 must be at least 1"),
        ({"steps": 1, "batch_size": 6, "neighbours": 4}, "neighbours=4 does not divide batch_size=6"),
        ({"steps": 1, "batch_size": 2, "micro_batches": 3}, "micro_batches=3 is more than batch_size=2"),
        ({"steps": 1, "lr": 0.0}, "lr=0.0 must be above 0"),
        *(
            ({"steps": 1, "epochs": 1.0, name: -1}, f"{name}=-1 must be at least 0")
            for name, bound in bounds_of(TrainConfig).items()
            if bound.text == "at least 0"
        ),
        ({"steps": 1, "muon_momentum": 1.0}, r"muon_momentum=1.0 must be in \[0, 1\)"),
        ({"steps": 1, "beta2": -0.5}, r"beta2=-0.5 must be in \[0, 1\)"),
        ({"steps": 1, "min_lr_ratio": 1.5}, "min_lr_ratio=1.5 must be in"),
        ({"steps": 1, "seed": 2**32}, r"seed=4294967296 must be in"),
    ],
)
def test_impossible_training_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


def state_of(**options):
    torch.manual_seed(0)
    config = TrainConfig(steps=9, **options)
    scaler = torch.amp.GradScaler("cpu", enabled=config.precision == "fp16")
    return TrainingState(nn.Linear(2, 1), config, scaler)


def test_every_option_of_the_optimizers_reaches_them():
    options = {"lr": 0.1, "muon_lr": 0.3, "muon_momentum": 0.8, "weight_decay": 0.25, "beta2": 0.9}
    adamw, muon = make_optimizers(model_with_dropout(), TrainConfig(steps=1, **options))
    assert {(group["betas"], group["lr"]) for group in adamw.param_groups} == {((0.9, 0.9), 0.1)}
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.25, 0.0}
    found = {(group["lr"], group["momentum"], group["weight_decay"]) for group in muon.param_groups}
    assert found == {(0.3, 0.8, 0.25)}


def test_a_clip_norm_of_zero_clips_nothing():
    state = state_of(grad_clip_norm=0.0)
    state.model.weight.grad, state.model.bias.grad = torch.full((1, 2), 300.0), torch.full((1,), 400.0)
    assert state.optimize(1.0) == pytest.approx((2 * 300.0**2 + 400.0**2) ** 0.5)
    assert torch.equal(state.model.weight.grad, torch.full((1, 2), 300.0))


def test_clock_own_weights_and_average_come_back_each_to_its_place(tmp_path):
    state, again = (state_of(ema_decay=0.5) for _ in range(2))
    state.step, state.seconds = 7, 41.5
    state.model.weight.data += 1
    state.average.update(state.model)
    state.save(tmp_path, lambda folder: None)
    again.restore(tmp_path)
    assert (again.step, again.seconds, again.average.updates) == (7, 41.5, 1)
    assert torch.equal(again.model.weight, state.model.weight)
    assert torch.equal(again.average.average["weight"], state.average.average["weight"])
    assert not torch.equal(again.model.weight, again.average.average["weight"])


def test_a_scaled_loss_gives_the_same_step_and_the_scale_is_kept(tmp_path):
    moved = []
    for precision in ("float32", "fp16"):
        state = state_of(precision=precision, grad_clip_norm=0.1)
        state.scaler.scale(state.model(torch.ones(1, 2)).square().sum()).backward()
        moved.append((state.optimize(1.0), state.model.weight.detach()))
    torch.testing.assert_close(*moved)
    state.scaler.update(128.0)
    state.save(tmp_path, lambda folder: None)
    again = state_of(precision="fp16")
    again.restore(tmp_path)
    assert again.scaler.get_scale() == 128.0
