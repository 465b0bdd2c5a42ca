"""Parameter groups, AdamW, learning-rate schedules, and the moving average of weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import cos, pi
from typing import Literal

import torch
from torch import Tensor, nn

Schedule = Literal["cosine", "linear"]


def parameter_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict]:
    """Two groups that partition the trainable parameters: matrices decay; vectors and scalars do not.

    Gains, biases, the class token and logit_scale are not decayed (Radford et al. 2021, section 2.5).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() >= 2]
    others = [p for p in trained if p.dim() < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay, "lr": lr},
        {"params": others, "weight_decay": 0.0, "lr": lr},
    ]


def schedule(progress: float, warmup: float, shape: Schedule, floor: float) -> float:
    """The factor on the peak learning rate at `progress` in [0, 1] of the run.

    It rises linearly over the first `warmup` share, then falls to `floor` along half a cosine or a line.
    """
    if progress < warmup:
        return progress / warmup
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
