"""Parameter groups, schedules and the average of weights."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minlm.training.optim import (
    AveragedWeights,
    Muon,
    hidden_matrices,
    orthogonalise,
    parameter_groups,
    schedule,
)
from minlm.training.state import TrainConfig, make_optimizers
from minlm.transformer import Transformer, TransformerConfig

seeds = st.integers(0, 10**6)


@given(st.integers(1, 3), st.booleans())
def test_groups_partition_the_trainable_parameters(n_layers, frozen):
    model = Transformer(TransformerConfig(d_model=8, n_heads=2, n_layers=n_layers))
    if frozen:
        model.blocks[0].requires_grad_(False)
    decayed, plain = parameter_groups(model, weight_decay=0.3)
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


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 99))
def test_the_inverse_square_root_is_the_transformers_schedule(n_steps, step, warmup_steps):
    """Vaswani et al. 2017, equation 3, min(step^-1/2, step warmup^-3/2) / sqrt(D), over its largest value."""
    n_steps = max(n_steps, warmup_steps + 1, step)
    rate = min(step**-0.5, step * warmup_steps**-1.5)
    found = schedule(step / n_steps, warmup_steps / n_steps, "inverse_sqrt", 0.0)
    assert found == pytest.approx(rate / warmup_steps**-0.5)
    floored = schedule(step / n_steps, warmup_steps / n_steps, "inverse_sqrt", 0.3)
    assert floored == pytest.approx(max(found, 0.3) if step >= warmup_steps else found)


def test_the_inverse_square_root_needs_a_warm_up():
    with pytest.raises(ValueError, match="schedule=inverse_sqrt falls from the end of the warm-up"):
        TrainConfig(steps=1, schedule="inverse_sqrt", warmup=0.0)
    TrainConfig(steps=1, schedule="linear", warmup=0.0)


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
    model: Any = nn.BatchNorm1d(2)
    average = AveragedWeights(model, 0.5)
    model(torch.randn(8, 2))
    average.update(model)
    assert average.average["num_batches_tracked"] == 1
    expected = 0.9 * model.running_mean  # the first update's decay is 1 / 10, of a mean that was zero
    torch.testing.assert_close(average.average["running_mean"], expected)


@given(seeds)
def test_swapping_the_average_in_and_out_restores_the_weights(seed):
    torch.manual_seed(seed)
    linear = nn.Linear(3, 2)
    model = nn.Sequential(linear, nn.BatchNorm1d(2))
    average = AveragedWeights(model, 0.9)
    linear.weight.data += 1
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with average.swapped_into(model):
        for name, value in model.state_dict().items():
            assert torch.equal(value, average.average[name])
    for name, value in model.state_dict().items():
        assert torch.equal(value, own[name])
    with pytest.raises(RuntimeError, match="inside"), average.swapped_into(model):
        raise RuntimeError("inside")
    assert torch.equal(linear.weight, own["0.weight"])


@given(st.integers(1, 12), st.integers(1, 12), seeds)
def test_orthogonalised_updates_have_singular_values_near_one(rows, columns, seed):
    """They keep the singular vectors: U^T X V is diagonal for X = U S V^T."""
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ orthogonalise(matrix[None])[0] @ vt.T
    clear = s > 0.1 * s[0]  # smaller ones have not grown up to one after five steps
    diagonal = core.diagonal()[clear]
    assert (diagonal > 0.6).all()
    assert (diagonal < 1.3).all()
    assert (core - torch.diag(core.diagonal())).abs().max() < 0.12  # bfloat16's rounding


@given(st.integers(1, 6), st.integers(4, 8), st.booleans(), st.integers(1, 4), seeds)
def test_muon_equals_torchs_muon(short, more, tall, n_steps, seed):
    """The matrices are far from square: near a singular one, the result is bfloat16 rounding."""
    generator = torch.Generator().manual_seed(seed)
    shape = (short + more, short) if tall else (short, short + more)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    options: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    muons = Muon([ours], **options), torch.optim.Muon([theirs], nesterov=True, **options)
    for _ in range(n_steps):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for muon in muons:
            muon.step()
    torch.testing.assert_close(ours, theirs, atol=0.2 * 0.02 * n_steps, rtol=0)


matrix_shapes = st.sampled_from([(3, 5), (5, 3), (4, 4), (15, 1)])


@given(st.lists(matrix_shapes, min_size=1, max_size=5), st.integers(1, 3), seeds)
def test_each_matrix_moves_as_it_does_alone(shapes, n_steps, seed):
    """Matrices of one shape are orthogonalised together and do not mix, however different their gradients."""
    generator = torch.Generator().manual_seed(seed)
    together = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    options = {"lr": 0.1, "weight_decay": 0.1}
    muons = [Muon(together, **options), *(Muon([p], **options) for p in alone)]
    for _ in range(n_steps):
        for i, (p, own) in enumerate(zip(together, alone, strict=True)):
            p.grad = 100.0**-i * torch.randn(p.shape, generator=generator)
            own.grad = p.grad.clone()
        for muon in muons:
            muon.step()
    for p, own in zip(together, alone, strict=True):
        torch.testing.assert_close(p, own, atol=2e-3, rtol=0)


def test_a_gradient_of_zeros_only_decays_and_none_does_nothing():
    still, unseen = (nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    still.grad = torch.zeros(2, 3)
    Muon([still, unseen], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(still, torch.full((2, 3), 0.95))
    assert torch.equal(unseen, torch.ones(2, 3))


def test_muon_takes_a_kernel_as_a_matrix():
    kernel = nn.Parameter(torch.randn(4, 3, 2, 2))
    flat = nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn(4, 3, 2, 2)
    flat.grad = kernel.grad.flatten(1).clone()
    for parameter in (kernel, flat):
        Muon([parameter], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(kernel.flatten(1), flat)


@given(st.integers(2, 6), st.integers(1, 3), seeds)
def test_stacked_matrices_are_orthogonalised_separately(width, n_steps, seed):
    """in_proj moves as query, key and value would as three parameters."""
    generator = torch.Generator().manual_seed(seed)
    stacked = nn.Parameter(torch.randn(3 * width, width, generator=generator))
    apart = [nn.Parameter(part.clone()) for part in stacked.detach().chunk(3)]
    options = {"lr": 0.1, "weight_decay": 0.1}
    muons = [Muon([{"params": [stacked], "stacked": 3}], **options), Muon(apart, **options)]
    for _ in range(n_steps):
        stacked.grad = torch.randn(3 * width, width, generator=generator)
        for parameter, gradient in zip(apart, stacked.grad.chunk(3), strict=True):
            parameter.grad = gradient.clone()
        for muon in muons:
            muon.step()
    torch.testing.assert_close(stacked.detach(), torch.cat([p.detach() for p in apart]), atol=1e-6, rtol=1e-6)


def test_in_proj_is_three_hidden_matrices():
    model: Any = Transformer(TransformerConfig(d_model=8, n_heads=2, n_layers=2))
    found = hidden_matrices(model)
    assert found[3] == [block.attention.in_proj.weight for block in model.blocks]
    assert len(found[1]) == 6


def test_hidden_matrices_are_those_inside_the_blocks():
    blocks = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv2d(4, 4, 3)])
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 4, 3), "blocks": blocks, "head": nn.Linear(4, 2)})
    assert hidden_matrices(model) == {1: [blocks[0].weight, blocks[2].weight], 3: []}  # kernels too
    model["blocks"].requires_grad_(False)
    assert hidden_matrices(model) == {1: [], 3: []}


def test_muon_and_adamw_partition_the_parameters():
    model = Transformer(TransformerConfig(d_model=8, n_heads=2, n_layers=2))
    adamw, muon = make_optimizers(model, TrainConfig(steps=1, lr=0.1, muon_lr=0.3))
    held = [id(p) for optimizer in (adamw, muon) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert {p.dim() for group in muon.param_groups for p in group["params"]} == {2}
    assert {group["peak_lr"] for group in adamw.param_groups} == {0.1}
    assert {group["peak_lr"] for group in muon.param_groups} == {0.3}
    assert len(make_optimizers(model, TrainConfig(steps=1))) == 1
