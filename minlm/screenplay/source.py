"""The built-in script: independent scenes drawn from a grammar, with exactly known entropy.

Scenes (`scene.py`) look like a real screenplay and contain facts that hold to the end. Each text has exactly one
derivation (`grammar.py`), so its log-probability and the entropy of the source are exact. They bound a model's loss
from below: `floor_of(text)` is the loss of a perfect model on a given text, `entropy_rate()` its limit for long texts.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Annotated

from minlm.screenplay.grammar import expectations, parse, sample
from minlm.screenplay.scene import SCENE
from minlm.training.bounds import Bounded, at_least


@dataclass(frozen=True, kw_only=True)
class ScreenplayConfig(Bounded):
    """Size and seed of the built-in script.

    seed: random seed; equal seeds give equal scripts in every process
    n_scenes: training scenes; a longer script begins with the shorter one of the same seed
    validation_scenes: scenes for validation; they follow the training scenes
    """

    seed: int = 0
    n_scenes: Annotated[int, at_least(1)] = 1000
    validation_scenes: Annotated[int, at_least(1)] = 50

    def read(self) -> dict[str, str]:
        """Return the texts {"train", "validation"}, each of whole scenes."""
        longer = replace(self, n_scenes=self.n_scenes + self.validation_scenes)
        scenes = [text for text, _ in write_scenes(longer)]
        return {
            "train": "".join(scenes[: self.n_scenes]),
            "validation": "".join(scenes[self.n_scenes :]),
        }

    def entropy(self, text: str) -> dict[str, float]:
        """Return the entropy of the source and the floor of one of its texts, in nats per character."""
        return {
            "source_entropy_nats_per_character": entropy_rate(),
            "validation_floor_nats_per_character": floor_of(text),
        }


def write_scenes(config: ScreenplayConfig) -> list[tuple[str, float]]:
    """Sample the script's scenes, each with its log-probability in nats. Scenes are independent."""
    return [sample(SCENE, Random(f"{config.seed}/{index}")) for index in range(config.n_scenes)]


def log_probability(text: str) -> float:
    """Compute log p of a text of whole scenes, in nats, given their number; -inf for an impossible text."""
    total, at = 0.0, 0
    while at < len(text) and total > -math.inf:
        log_p, at = parse(SCENE, text, at)
        total += log_p
    return total


def floor_of(text: str) -> float:
    """Compute -log p(text) in nats per character: the loss of a model that knows the source.

    The floor is infinite unless the text consists of whole scenes. Raises ValueError for an empty text.
    """
    if not text:
        raise ValueError("an empty text has no floor: pass at least 1 scene")
    return -log_probability(text) / len(text)


@cache
def entropy_rate() -> float:
    """Compute the source's entropy in nats per character: a scene's entropy over its expected length.

    Scenes are independent, so `floor_of` a script converges to it with the script's length (renewal-reward theorem).
    """
    nats, characters = expectations(SCENE)
    return nats / characters
