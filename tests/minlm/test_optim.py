"""Parameter groups, schedules and the average of weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minlm.training.optim import AveragedWeights, parameter_groups, schedule
from minlm.transformer import Transformer, TransformerConfig

seeds = st.integers(0, 10**6)


@given(st.integers(1, 3), st.booleans())
def test_groups_partition_the_trainable_parameters(n_layers, frozen):
    model = Transformer(TransformerConfig(d_model=8, n_heads=2, n_layers=n_layers))
    if frozen:
        model.blocks[0].requires_grad_(False)
    decayed, plain = parameter_groups(model, lr=0.1, weight_decay=0.3)
    grouped = [id(p) for p in decayed["params"] + plain["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert decayed["weight_decay"] == 0.3
    assert plain["weight_decay"] == 0
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[id(p)].endswith("proj.weight") or ".fc" in names[id(p)] for p in decayed["params"])
    assert all("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in plain["params"])


shapes = st.sampled_from(["cosine", "linear"])


@given(st.floats(0.01, 0.9), shapes, st.floats(0, 1))
def test_schedule_rises_to_one_and_falls_to_the_floor(warmup, shape, floor):
    assert schedule(0, warmup, shape, floor) == 0
    assert schedule(warmup / 2, warmup, shape, floor) == pytest.approx(0.5)
    assert schedule(warmup, warmup, shape, floor) == pytest.approx(1)
    middle = (1 + warmup) / 2  # half way down, cosine and line agree
    assert schedule(middle, warmup, shape, floor) == pytest.approx((1 + floor) / 2)
    assert schedule(1, warmup, shape, floor) == pytest.approx(floor)


@given(st.floats(0, 0.9), shapes, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_schedule_never_rises_after_the_warmup(warmup, shape, floor, a, b):
    first, second = (warmup + (1 - warmup) * x for x in sorted([a, b]))
    assert schedule(first, warmup, shape, floor) >= schedule(second, warmup, shape, floor) - 1e-12


def test_cosine_and_line_differ_a_quarter_of_the_way():
    assert schedule(0.25, 0.0, "cosine", 0.0) == pytest.approx(0.5 * (1 + 0.5**0.5))
    assert schedule(0.25, 0.0, "linear", 0.0) == pytest.approx(0.75)


@given(st.floats(0.1, 0.999), st.integers(1, 8), seeds)
def test_the_average_is_the_written_out_recurrence(decay, n_updates, seed):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(3, 2).double()
    average = AveragedWeights(model, decay)
    expected = model.weight.detach().clone()
    for n in range(n_updates):
        model.weight.data = torch.randn(2, 3, generator=generator).double()
        average.update(model)
        d = min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * model.weight.data
    torch.testing.assert_close(average.average["weight"], expected)


def test_buffers_are_averaged_and_counters_copied():
    model = nn.BatchNorm1d(2)
    average = AveragedWeights(model, 0.5)
    model(torch.randn(8, 2))
    average.update(model)
    assert average.average["num_batches_tracked"] == 1
    expected = 0.9 * model.running_mean  # the first update's decay is 1 / 10, of a mean that was zero
    torch.testing.assert_close(average.average["running_mean"], expected)


@given(seeds)
def test_swapping_the_average_in_and_out_restores_the_weights(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = AveragedWeights(model, 0.9)
    model[0].weight.data += 1
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with average.swapped_into(model):
        for name, value in model.state_dict().items():
            assert torch.equal(value, average.average[name])
    for name, value in model.state_dict().items():
        assert torch.equal(value, own[name])
    with pytest.raises(RuntimeError, match="inside"), average.swapped_into(model):
        raise RuntimeError("inside")
    assert torch.equal(model[0].weight, own["0.weight"])
