"""Random weights for a model of another library, and the comparison with ours: outputs and every gradient."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from minlm.pretrained.key_map import Row, export_weights, spread

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Draw every parameter and BatchNorm's statistics, at scales that keep activations near 1; set eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape):
        return torch.randn(shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            gain = 0.5 if isinstance(module, nn.BatchNorm2d) else 1.0
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 0:  # the log of the scale: near 1
                    parameter.copy_(normal(()) * 0.1 + 1)
                elif parameter.dim() == 1:
                    centre = gain if name == "weight" else 0.0
                    parameter.copy_(centre + 0.1 * normal(parameter.shape))
                else:
                    parameter.copy_(normal(parameter.shape) * parameter[0].numel() ** -0.5)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(0.1 * normal(module.running_mean.shape))
                module.running_var.copy_(1 + torch.rand(module.running_var.shape, generator=generator))
                module.num_batches_tracked.fill_(seed + 7)
    return model.eval()


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the largest value if that is above 1."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)).item()


def agree(
    ours: nn.Module,
    theirs: nn.Module,
    rows: list[Row],
    run: Callable[[torch.dtype], tuple[list[Tensor], list[Tensor]]],
    their_prefix: str = "",
    our_prefix: str = "",
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64),
    saved_names: Callable[[nn.Module], dict[str, Tensor]] = lambda model: dict(model.state_dict()),
) -> None:
    """Check that outputs and gradients of two models agree, in float32 and in float64.

    run: dtype -> (outputs of ours, outputs of theirs); both models have that dtype. rows: the table between their
    parameters; their_prefix is what the table has and their parameters have not, our_prefix likewise.
    saved_names: a model of theirs -> its tensors under the names that it is saved with.
    """
    for dtype in dtypes:
        ours.to(dtype).zero_grad()
        theirs.to(dtype).zero_grad()
        mine, other = run(dtype)
        for a, b in zip(mine, other, strict=True):
            assert difference(a, b) <= TOLERANCE[dtype]
            direction = torch.randn(a.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
            (a * direction).mean().backward(retain_graph=True)
            (b * direction).mean().backward(retain_graph=True)
        other = saved_names(with_gradients(theirs))
        other = {their_prefix + name: value for name, value in other.items()}
        compare_gradients(ours, other, rows, our_prefix, TOLERANCE[dtype])


def with_gradients(model: nn.Module) -> nn.Module:
    """Copy the model with its gradients as parameters."""
    result = deepcopy(model)
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in result.named_parameters(remove_duplicate=False):
        gradient = named[name].grad
        parameter.data = torch.zeros_like(parameter) if gradient is None else gradient.clone()
    return result


def compare_gradients(
    ours, other: dict[str, Tensor], rows: list[Row], our_prefix: str, tolerance: float
) -> None:
    """Check our gradients against `other`, {name in the table: gradient} of theirs."""
    mine = {our_prefix + name: p.data for name, p in with_gradients(ours).named_parameters()}
    compared = 0
    for row in rows:
        names = spread(row.ours)
        if not all(name in mine for name in names):
            continue  # a statistic of BatchNorm
        values = [mine[name] for name in names]
        if len(names) == 3 and names[1].endswith("patch_embedding.bias"):
            values[1] = torch.zeros_like(values[1])  # theirs has none: ours is added to the positions
        for name, value in zip(spread(row.theirs), row.transform.to_theirs(values), strict=True):
            assert difference(value, other[name]) <= tolerance, name
            compared += 1
    assert compared > 10


def assert_identity(ours: nn.Module, rows: list[Row], tensors: dict[str, Tensor]) -> None:
    """Check that export returns the imported tensors under their names."""
    present = [row for row in rows if all(name in tensors for name in spread(row.theirs))]
    exported = export_weights(ours.state_dict(), present, "test")
    for name, value in exported.items():
        assert torch.equal(value, tensors[name]), name


def save(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path
