"""The built-in script: an endless film of small scenes, of which the exact entropy is known.

Scenes (`scene.py`) have the form of a real screenplay and facts that last; each text has one derivation
(`grammar.py`). So the log-probability of a text is exact, and so is the source's entropy: a model's loss on this text
has a floor, and the distance to the floor is what the model has not understood. `floor_of(validation text)` is that
floor for the text at hand, `entropy_rate()` its limit over all scenes. `continuity.py` tells which facts a model's
scene gets wrong.
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
    """Which part of the film to write.

    seed: another seed, another script; equal in every process
    n_scenes: how many scenes; a longer script begins with the shorter one of the same seed
    validation_scenes: how many of the scenes that follow are for validation
    """

    seed: int = 0
    n_scenes: Annotated[int, at_least(1)] = 1000
    validation_scenes: Annotated[int, at_least(1)] = 50

    def read(self) -> dict[str, str]:
        """{"train", "validation"}: two texts of whole scenes."""
        longer = replace(self, n_scenes=self.n_scenes + self.validation_scenes)
        scenes = [text for text, _ in write_scenes(longer)]
        return {
            "train": "".join(scenes[: self.n_scenes]),
            "validation": "".join(scenes[self.n_scenes :]),
        }

    def entropy(self, text: str) -> dict[str, float]:
        """The entropy of the film, and of this very text of it, in nats per character."""
        return {
            "source_entropy_nats_per_character": entropy_rate(),
            "validation_floor_nats_per_character": floor_of(text),
        }


def write_scenes(config: ScreenplayConfig) -> list[tuple[str, float]]:
    """The script's scenes, each with its log-probability in nats."""
    return [sample(SCENE, Random(f"{config.seed}/{index}")) for index in range(config.n_scenes)]


def write_screenplay(config: ScreenplayConfig) -> str:
    """The script: its scenes one after another, independent of each other."""
    return "".join(text for text, _ in write_scenes(config))


def log_probability(text: str) -> float:
    """log p of a text of whole scenes, in nats, given how many they are; -inf where the film cannot have it."""
    total, at = 0.0, 0
    while at < len(text) and total > -math.inf:
        log_p, at = parse(SCENE, text, at)
        total += log_p
    return total


def floor_of(text: str) -> float:
    """-log p(text) in nats a character: the loss of a model that knows the source; inf on an impossible text.

    The text starts and ends with whole scenes. Raises ValueError where it is empty.
    """
    if not text:
        raise ValueError("an empty text has no floor: pass at least 1 scene")
    return -log_probability(text) / len(text)


@cache
def scene_expectations() -> tuple[float, float]:
    """(entropy in nats, expected number of characters) of one scene: sums over all scenes, not an estimate."""
    return expectations(SCENE)


def entropy_rate() -> float:
    """The source's entropy in nats a character: a scene's entropy over its expected length.

    Scenes are independent, so this is the limit of `floor_of` a script as it grows (renewal-reward theorem).
    """
    nats, characters = scene_expectations()
    return nats / characters
