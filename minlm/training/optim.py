"""Parameter groups, Muon, learning-rate schedules, and the moving average of weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import cos, pi
from typing import Any, Literal

import torch
from torch import Tensor, nn

Schedule = Literal["cosine", "linear", "inverse_sqrt"]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Partition the trainable parameters into optimizer groups: matrices decay; vectors and scalars do not.

    Gains, biases, the class token and logit_scale are not decayed (Radford et al. 2021, section 2.5).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if (p.dim() >= 2) is wanted] for wanted in (True, False))
    return [
        *by_lr_factor(model, matrices, weight_decay=weight_decay),
        *by_lr_factor(model, vectors, weight_decay=0.0),
    ]


def by_lr_factor(model: nn.Module, parameters: list[nn.Parameter], **options: float) -> list[dict[str, Any]]:
    """Return one optimizer group, with these options, per learning-rate factor among the parameters.

    A module's attribute `lr_factor` is that of its parameters, as a share of the peak learning rate; the default is 1.
    """
    slowed: list[Any] = [module for module in model.modules() if hasattr(module, "lr_factor")]
    factor = {id(p): module.lr_factor for module in slowed for p in module.parameters()}
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for parameter in parameters:
        groups.setdefault(factor.get(id(parameter), 1.0), []).append(parameter)
    return [{"params": some, "lr_factor": factor, **options} for factor, some in groups.items()]


def hidden_matrices(model: nn.Module) -> dict[int, list[nn.Parameter]]:
    """Return the matrices and convolution kernels in `blocks`, which excludes embeddings, stems and projections.

    The keys are the number of matrices in a parameter: 3 in attention's in_proj (query, key, value), else 1.
    """
    found: dict[int, list[nn.Parameter]] = {1: [], 3: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dim() >= 2 and "blocks." in name:
            found[3 if name.endswith("in_proj.weight") else 1].append(parameter)
    return found


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised before it is applied (Jordan et al. 2024, Muon), with decoupled weight decay.

        M <- mu M + (1 - mu) G;   U = orthogonal((1 - mu) G + mu M);   W <- W - lr max(1, rows / columns)^1/2 U

    All directions of the update then have the same size, whereas a gradient is nearly of low rank. Muon is for hidden
    matrices; a convolution kernel counts as (outputs, the rest). A group's `stacked` is the number of matrices in each
    of its parameters, as in in_proj; each of them is orthogonalised separately.
    """

    def __init__(self, params: list, lr: float, weight_decay: float, momentum: float = 0.95):
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "stacked": 1}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] (no closure)
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            lr, mu = group["lr"], group["momentum"]
            trained = [p for p in group["params"] if p.grad is not None]
            # Matrices of one shape are orthogonalised together: a small one does not fill the processor.
            ahead = {p: self.look_ahead(p, p.grad, mu).flatten(1).chunk(group["stacked"]) for p in trained}
            for rows, columns in sorted({tuple(parts[0].shape) for parts in ahead.values()}):
                alike = [p for p, parts in ahead.items() if parts[0].shape == (rows, columns)]
                updates = orthogonalise(torch.stack([part for p in alike for part in ahead[p]]))
                for parameter, update in zip(alike, updates.split(group["stacked"]), strict=True):
                    parameter.mul_(1 - lr * group["weight_decay"])
                    parameter.add_(update.reshape(parameter.shape), alpha=-lr * max(1, rows / columns) ** 0.5)

    def look_ahead(self, parameter: Tensor, gradient: Tensor, mu: float) -> Tensor:
        """Update a parameter's momentum and return Nesterov's direction, a mean of gradient and momentum."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - mu)
        return gradient.lerp(momentum, mu)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate U V^T of the singular value decomposition U S V^T of N matrices, (N, R, C) -> (N, R, C).

    Newton-Schulz iteration of Jordan et al. 2024, X <- a X + (b A + c A A) X with A = X X^T; bfloat16 suffices. With
    these factors small singular values grow fast, and all end between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b A + c A A
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def schedule(progress: float, warmup: float, shape: Schedule, floor: float) -> float:
    """Return the factor on the peak learning rate at `progress` in [0, 1] of the run.

    It rises linearly over the first `warmup` share, then falls to `floor` along half a cosine or a line, or as the
    inverse square root of the step, bounded by `floor` (Vaswani et al. 2017, equation 3).
    """
    if progress < warmup:
        return progress / warmup
    if shape == "inverse_sqrt":
        return max(floor, (warmup / progress) ** 0.5) if progress else 1.0
    rest = min(1.0, (progress - warmup) / (1 - warmup))
    fall = 0.5 * (1 + cos(pi * rest)) if shape == "cosine" else 1 - rest
    return floor + (1 - floor) * fall


class AveragedWeights:
    """Exponential moving average of a model's parameters and buffers (Polyak & Juditsky 1992).

    average <- d * average + (1 - d) * weights after every step, with d = min(decay, (1 + n) / (10 + n)) at update n,
    so that the random initial weights soon vanish from it.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights within the context, and its own again afterwards, bit for bit."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the number of updates and the averaged weights."""
        self.updates = state["updates"]
        for name, value in state["average"].items():
            self.average[name].copy_(value)
