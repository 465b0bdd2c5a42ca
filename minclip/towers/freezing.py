"""Towers with frozen parts and a learning rate of their own, for fine-tuning pretrained weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from torch import nn

from minlm.training.bounds import Bounded, above, at_least


@dataclass(frozen=True, kw_only=True)
class TowerConfig(Bounded):
    """Source of a tower's weights, and which of them are trained.

    weights: file or folder of pretrained weights, or a run of this project, which also gives the tower its sizes,
        heads and activation; none = random weights
    trained_blocks: train this many of the last Blocks, and the layers after them; 0 = freeze the tower; -1 = train
        the whole tower
    lr_factor: factor of this tower's learning rate
    """

    weights: str | None = None
    trained_blocks: Annotated[int, at_least(-1)] = -1
    lr_factor: Annotated[float, above(0)] = 1.0


class Tower(nn.Module):
    """A network with a TowerConfig whose first part may be frozen.

    Frozen parts get no gradient and stay in evaluation mode: their weights, their BatchNorm statistics and their
    outputs do not change, and dropout is off.
    """

    width: int  # of the features

    def freeze(self, config: TowerConfig, blocks: Iterable[nn.Module], *after: nn.Module) -> None:
        """Freeze all but the last config.trained_blocks Blocks; called at the end of a tower's constructor.

        blocks: in the order they run; after: modules that run after the last Block. Raises ValueError if there are
        fewer Blocks than trained_blocks.
        """
        blocks, count = list(blocks), config.trained_blocks
        if count > len(blocks):
            raise ValueError(f"trained_blocks={count}, but this tower has {len(blocks)}; -1 trains all of it")
        self.trained_blocks = count
        self.lr_factor = config.lr_factor  # read by minlm/training/optim.py
        self.trained_parts = [*blocks[len(blocks) - count :], *after] if count > 0 else []
        if count >= 0:
            self.requires_grad_(False)
        for part in self.trained_parts:
            part.requires_grad_(True)
        self.train(self.training)

    @property
    def frozen(self) -> bool:
        """True if no part of the tower is trained."""
        return self.trained_blocks == 0

    def train(self, mode: bool = True) -> "Tower":
        """Set training mode for the trained parts only."""
        super().train(mode and self.trained_blocks == -1)
        for part in self.trained_parts:
            part.train(mode)
        return self
