"""A small config, as the configs of runs are made, and the command line made from it."""

from dataclasses import dataclass, field

from minlm.training.command import command_line
from minlm.training.state import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A tower.

    height: in metres
    """

    height: int = 3


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """A bridge.

    length: in metres
    """

    length: int = 40


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run.

    tower: what is built
    train: the training
    """

    tower: Tower | Bridge = field(default_factory=Tower)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=9))


PRESETS = {"plain": Config(), "tall": Config(tower=Tower(height=100)), "river": Config(tower=Bridge())}


def read(*arguments):
    return command_line(PRESETS, "Trains.", list(arguments))
