"""The built-in world: images of one to three coloured objects with their captions, drawn by code.

It needs no download, and every attribute is known exactly. Some combinations of colour and shape never occur in
training: retrieval among scenes of only these measures generalisation, not memory.
"""

import functools
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from minclip.data.config import DataConfig
from minclip.data.records import Question, Record
from minclip.data.shapes_scene import COLOURS, LAYOUTS, PATTERNS, RADII, SHAPES, Object, Scene, draw
from minclip.data.shapes_text import attribute_choices, captions
from minlm.training.bounds import at_least

Split = Literal["train", "dev", "seen"]
JITTER = 0.03  # maximal shift of each centre along both axes
DRIFT = 0.15  # maximal shift of a row up or down, of a column left or right


@dataclass(frozen=True, kw_only=True)
class ShapesConfig(DataConfig):
    """The built-in world of drawn scenes.

    Splits: `train`; `dev`, scenes in which every object's combination of colour and shape is held out; `seen`, as
    many new scenes of combinations that also occur in training. In each split a third of the scenes has one object, a
    third two, a third three. No two scenes of `dev`, and no two of `seen`, have equal attributes.

    seed: seed of the held-out combinations and of every scene
    train_size: training scenes
    variants: consecutive training scenes that show the same objects in other places
    dev_size: scenes in each of the splits dev and seen
    held_out: share of the 64 combinations that never occur in training, in eighths up to a half
    image_size: side of the images, in pixels
    """

    seed: int = 0
    train_size: Annotated[int, at_least(1)] = 20_000
    variants: Annotated[int, at_least(1)] = 2
    dev_size: Annotated[int, at_least(3)] = 500
    held_out: float = 0.25
    image_size: Annotated[int, at_least(32)] = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.held_out not in (0.125, 0.25, 0.375, 0.5):
            raise ValueError(
                f"held_out={self.held_out} is not in whole eighths: use 0.125, 0.25, 0.375 or 0.5"
            )
        # Only half of the scenes of one object, so that the draw of different ones stays quick.
        most = 3 * round(self.held_out * len(COLOURS) * len(SHAPES)) * len(RADII) * len(PATTERNS) * 9 // 2
        if self.dev_size > most:
            raise ValueError(f"dev_size={self.dev_size} must be at most {most} for held_out={self.held_out}")

    def questions(self) -> dict[str, list[Question]]:
        """Return multiple-choice questions about the images of dev; exactly one sentence of each is true.

        One object: colour and shape (8 choices each), size (2), pattern (3) and place (9). Two objects: their
        relation (4). Each value and each position is correct equally often, so a constant answer scores at chance,
        1 / (number of choices).
        """
        asked: dict[str, dict[str, list[tuple[Record, dict[str, str]]]]] = {}
        for record, scene in zip(_records(self, "dev"), scenes(self, "dev"), strict=True):
            for name, (sentences, true) in attribute_choices(scene).items():
                by_truth = asked.setdefault(name, {value: [] for value in sentences})
                by_truth[true].append((record, sentences))
        return {name: _balanced(by_truth) for name, by_truth in asked.items()}

    def read(self) -> dict[str, Sequence[Record]]:
        """Return the records of the splits train, dev and seen; opening a record draws its image."""
        return {split: _records(self, split) for split in ("train", "dev", "seen")}


def combinations(config: ShapesConfig) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the (colour, shape) pairs seen in training, and those held out.

    The held-out pairs are whole diagonals of the table of shuffled colours and shuffled shapes (a Latin square), so
    every colour and every shape is held out equally often.
    """
    rng = random.Random(f"{config.seed}/combinations")
    colours, shapes = rng.sample(list(COLOURS), 8), rng.sample(SHAPES, 8)
    seen, held_out = [], []
    for row, column in itertools.product(range(8), range(8)):
        diagonal = (column - row) % 8
        (held_out if diagonal < 8 * config.held_out else seen).append((colours[row], shapes[column]))
    return seen, held_out


def make_scene(config: ShapesConfig, split: Split, index: int) -> Scene:
    """Make scene `index` of an endless series with one, two and three objects in turn.

    The scene is a function of (seed, split, index). In `train`, `variants` consecutive scenes show the same objects,
    so that only places and relations distinguish them. `dev` and `seen` may repeat attributes; `scenes` removes
    the repetitions.
    """
    seen, held_out = combinations(config)
    number = index // config.variants if split == "train" else index
    rng = random.Random(f"{config.seed}/{split}/{number}")
    pairs = rng.sample(held_out if split == "dev" else seen, number % 3 + 1)
    things = [(shape, colour, rng.choice(list(RADII)), rng.choice(PATTERNS)) for colour, shape in pairs]
    return _place(things, f"{config.seed}/{split}/{index}/places")


def scenes(config: ShapesConfig, split: Split) -> list[Scene]:
    """Make all scenes of a split, in order; in `dev` and `seen` no two have the same attributes."""
    if split == "train":
        return [make_scene(config, split, index) for index in range(config.train_size)]
    found: dict[tuple, Scene] = {}
    series = [itertools.count(start, 3) for start in range(3)]  # the indices of one, two and three objects
    while len(found) < config.dev_size:
        scene = make_scene(config, split, next(series[len(found) % 3]))
        found.setdefault(scene.attributes, scene)
    return list(found.values())


def _place(things: list[tuple[str, str, str, str]], key: str) -> Scene:
    """Place objects (shape, colour, size, pattern) in random order in a random layout for their number."""
    rng = random.Random(key)
    layout = rng.choice([name for name, centres in LAYOUTS.items() if len(centres) == len(things)])
    drift = rng.uniform(-DRIFT, DRIFT)
    objects = []
    for (x, y), thing in zip(LAYOUTS[layout], rng.sample(things, len(things)), strict=True):
        x += rng.uniform(-JITTER, JITTER) + (drift if layout == "column" else 0)
        y += rng.uniform(-JITTER, JITTER) + (drift if layout == "row" else 0)
        objects.append(Object(*thing, round(x, 4), round(y, 4)))
    grey = rng.randint(206, 234)
    red, green, blue = (grey + rng.randint(-6, 6) for _ in range(3))
    return Scene(layout, tuple(objects), (red, green, blue))


def _records(config: ShapesConfig, split: Split) -> list[Record]:
    """Make one record per scene; scenes of equal attributes share a group, so they are never negatives."""
    records = []
    for number, scene in enumerate(scenes(config, split)):
        image = functools.partial(draw, scene, config.image_size)
        records.append(Record(f"{split}-{number}", image, captions(scene), scene.group))
    return records


def _balanced(by_truth: dict[str, list[tuple[Record, dict[str, str]]]]) -> list[Question]:
    """Make equally many questions per true value; the position of the answer cycles."""
    each = min(len(items) for items in by_truth.values())
    asked = [(true, *items[n]) for n in range(each) for true, items in by_truth.items()]
    result = []
    for number, (true, record, sentences) in enumerate(asked):
        wrong = [sentence for value, sentence in sentences.items() if value != true]
        answer = (number + number // len(sentences)) % len(sentences)
        result.append(Question(record, (*wrong[:answer], sentences[true], *wrong[answer:]), answer))
    return result
