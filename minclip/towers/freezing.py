"""Towers that start from pretrained weights: which of their parts are trained, and how fast."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from torch import nn

from minlm.training.bounds import Bounded, above, at_least


@dataclass(frozen=True, kw_only=True)
class TowerConfig(Bounded):
    """Where a tower's weights come from, and which of them are trained.

    weights: file or folder of pretrained weights, or a run of this project; the tower has its sizes, heads and
        activation; none = random weights
    trained_blocks: how many of the last Blocks are trained, with what follows them; 0 = none, a frozen tower;
        -1 = the whole tower
    lr_factor: learning rate of this tower, as a share of the rest's
    """

    weights: str | None = None
    trained_blocks: Annotated[int, at_least(-1)] = -1
    lr_factor: Annotated[float, above(0)] = 1.0


class Tower(nn.Module):
    """A network with a TowerConfig, whose first part may be frozen.

    What is frozen gets no gradient and stays in evaluation mode, whatever train() says: its weights, its
    BatchNorm statistics and what it computes do not change (dropout is off).
    """

    config: TowerConfig

    def freeze(self, blocks: Sequence[nn.Module], *after: nn.Module) -> None:
        """Freeze what config.trained_blocks says; a tower calls it at the end of its constructor.

        blocks: in the order they run; after: what runs after the last. Raises ValueError for too few blocks.
        """
        count = self.config.trained_blocks
        if count > len(blocks):
            raise ValueError(f"trained_blocks={count}, but this tower has {len(blocks)}; -1 trains all of it")
        self.trained_parts = [*list(blocks)[len(blocks) - count :], *after] if count > 0 else []
        if count >= 0:
            self.requires_grad_(False)
        for part in self.trained_parts:
            part.requires_grad_(True)
        self.train(self.training)

    @property
    def frozen(self) -> bool:
        """Whether nothing of the tower is trained."""
        return self.config.trained_blocks == 0

    @property
    def lr_factor(self) -> float:
        """Read by minlm/training/optim.py."""
        return self.config.lr_factor

    def train(self, mode: bool = True) -> "Tower":
        super().train(mode and self.config.trained_blocks == -1)
        for part in self.trained_parts:
            part.train(mode)
        return self
