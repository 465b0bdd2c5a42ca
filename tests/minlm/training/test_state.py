"""TrainConfig's limits and bounds; a step of all optimizers; the state that a checkpoint restores."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minlm.training.bounds import bounds_of
from minlm.training.state import TrainConfig, TrainingState, make_optimizers
from tests.minlm.training.points import model_with_dropout


@pytest.mark.parametrize("matrix", ["embedding", "blocks"])
def test_if_one_optimizers_gradient_overflows_none_steps(matrix):
    """With fp16 and Muon, if one gradient is infinite, neither optimizer steps and the scale is halved."""
    model = nn.ModuleDict({"embedding": nn.Linear(2, 2), "blocks": nn.ModuleList([nn.Linear(2, 2)])})
    config = TrainConfig(steps=9, precision="fp16", muon_lr=0.1)
    state = TrainingState(model, config, torch.amp.GradScaler("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state.scaler.scale(torch.stack([p.sum() for p in model.parameters()]).sum()).backward()
    overflowed: Any = next(p for name, p in model.named_parameters() if name.startswith(matrix))
    overflowed.grad[0, 0] = float("inf")
    scale = state.scaler.get_scale()
    assert state.optimize(1.0) == float("inf")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert state.scaler.get_scale() == scale / 2
    model.zero_grad()
    state.scaler.scale(torch.stack([p.sum() for p in model.parameters()]).sum()).backward()
    state.optimize(1.0)  # the next step is taken, by both
    assert all(not torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(value.isfinite().all() for value in model.state_dict().values())


@given(st.integers(1, 60), st.floats(0.1, 40))
def test_a_run_of_epochs_ends_at_its_exact_step(steps_per_epoch, epochs):
    """1.1 epochs of 50 steps are 55 steps, not 56, though 1.1 * 50 > 55 in floating point."""
    epochs = round(epochs, 1)
    config = TrainConfig(epochs=epochs, batch_size=1)
    last = math.ceil(Fraction(str(epochs)) * steps_per_epoch)
    assert config.progress(last, steps_per_epoch, 0.0) >= 1
    assert config.progress(last - 1, steps_per_epoch, 0.0) < 1


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


def state_of(**options: Any) -> Any:
    """Return the training state of a linear model."""
    torch.manual_seed(0)
    config = TrainConfig(steps=9, **options)
    scaler = torch.amp.GradScaler("cpu", enabled=config.precision == "fp16")
    return TrainingState(nn.Linear(2, 1), config, scaler)


def test_every_option_of_the_optimizers_reaches_them():
    options: dict[str, Any] = {
        "lr": 0.1,
        "muon_lr": 0.3,
        "muon_momentum": 0.8,
        "weight_decay": 0.25,
        "beta2": 0.9,
    }
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


def test_clock_weights_and_average_are_restored(tmp_path):
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
