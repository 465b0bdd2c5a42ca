"""Parameter groups, Muon, learning-rate schedules, and the moving average of weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import cos, pi
from typing import Literal

import torch
from torch import Tensor, nn

Schedule = Literal["cosine", "linear", "inverse_sqrt"]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Groups that partition the trainable parameters: matrices decay; vectors and scalars do not.

    Gains, biases, the class token and logit_scale are not decayed (Radford et al. 2021, section 2.5).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if (p.dim() >= 2) is wanted] for wanted in (True, False))
    return [
        *by_lr_factor(model, matrices, weight_decay=weight_decay),
        *by_lr_factor(model, vectors, weight_decay=0.0),
    ]


def by_lr_factor(model: nn.Module, parameters: list[nn.Parameter], **options: float) -> list[dict]:
    """One optimizer group with these options for each learning-rate factor among the parameters.

    A module with an attribute `lr_factor` sets that of its parameters, as a share of the peak; others have 1.
    """
    slowed = [module for module in model.modules() if hasattr(module, "lr_factor")]
    factor = {id(p): module.lr_factor for module in slowed for p in module.parameters()}
    groups = {1.0: []}
    for parameter in parameters:
        groups.setdefault(factor.get(id(parameter), 1.0), []).append(parameter)
    return [{"params": some, "lr_factor": factor, **options} for factor, some in groups.items()]


def hidden_matrices(model: nn.Module) -> dict[int, list[nn.Parameter]]:
    """The matrices and convolution kernels inside `blocks`: neither embeddings and stems nor projections.

    {how many matrices a parameter holds: parameters}: 3 in attention's in_proj (query, key, value), else 1.
    """
    found: dict[int, list[nn.Parameter]] = {1: [], 3: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dim() >= 2 and "blocks." in name:
            found[3 if name.endswith("in_proj.weight") else 1].append(parameter)
    return found


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is made orthogonal before it is applied (Jordan et al. 2024, Muon).

        M <- mu M + (1 - mu) G;   U = orthogonal((1 - mu) G + mu M);   W <- W - lr max(1, rows / columns)^1/2 U

    Every direction of the update then has the same size, which a gradient, nearly of low rank, does not give.
    For hidden matrices; a convolution's kernel counts as (outputs, the rest). A parameter that holds several
    matrices one below the other, as in_proj does, has its group's `stacked` say how many: each is made orthogonal
    by itself. Decoupled weight decay.
    """

    def __init__(self, params: list, lr: float, weight_decay: float, momentum: float = 0.95):
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "stacked": 1}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            lr, mu = group["lr"], group["momentum"]
            trained = [p for p in group["params"] if p.grad is not None]
            # Matrices of one shape are made orthogonal together: a small one does not fill the processor.
            ahead = {p: self.look_ahead(p, mu).flatten(1).chunk(group["stacked"]) for p in trained}
            for rows, columns in sorted({tuple(parts[0].shape) for parts in ahead.values()}):
                alike = [p for p, parts in ahead.items() if parts[0].shape == (rows, columns)]
                updates = orthogonalise(torch.stack([part for p in alike for part in ahead[p]]))
                for parameter, update in zip(alike, updates.split(group["stacked"]), strict=True):
                    parameter.mul_(1 - lr * group["weight_decay"])
                    parameter.add_(update.reshape(parameter.shape), alpha=-lr * max(1, rows / columns) ** 0.5)

    def look_ahead(self, parameter: Tensor, mu: float) -> Tensor:
        """Nesterov's step: the gradient, moved towards the momentum that has just taken it in."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - mu)
        return parameter.grad.lerp(momentum, mu)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """U V^T of the singular value decomposition U S V^T of each of N matrices, (N, R, C) -> (N, R, C), roughly:
    the singular values come out near 1.

    Newton-Schulz iteration with the quintic of Jordan et al. 2024, X <- a X + (b A + c A A) X, A = X X^T; it
    needs products only, and bfloat16 is enough. The factors make small singular values grow fast, at the
    price of ending anywhere in about 0.7 to 1.2.
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
    """The factor on the peak learning rate at `progress` in [0, 1] of the run.

    It rises linearly over the first `warmup` share, then falls to `floor` along half a cosine or a line, or as
    the inverse square root of the step (Vaswani et al. 2017, equation 3), which knows no end but the floor.
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

    average <- d * average + (1 - d) * weights after every step, d = min(decay, (1 + n) / (10 + n)) at update
    n, so that the random initial weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model carries the average; afterwards its own weights again, bit for bit."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, value in state["average"].items():
            self.average[name].copy_(value)
