"""The built-in world: pictures of one to three coloured objects with their captions, drawn by code.

It needs no download, every attribute is known exactly, and some combinations of a colour and a shape never
occur in training: retrieval among scenes made of those alone measures what was understood, not memorised.
"""

import functools
import itertools
import random
from dataclasses import dataclass
from typing import Annotated, Literal

from minclip.data.config import DataConfig
from minclip.data.records import Question, Record
from minclip.data.shapes_scene import COLOURS, LAYOUTS, PATTERNS, RADII, SHAPES, Object, Scene, draw
from minclip.data.shapes_text import attribute_choices, captions
from minlm.training.bounds import at_least

Split = Literal["train", "dev", "seen"]
JITTER = 0.03  # each centre moves by up to this along both axes
DRIFT = 0.15  # a row of two moves by up to this up or down, a column left or right


@dataclass(frozen=True, kw_only=True)
class ShapesConfig(DataConfig):
    """The built-in world of drawn scenes.

    Splits: `train`; `dev`, scenes in which every object's colour-shape combination is held out; `seen`, as
    many new drawings of combinations that training has too. In each split a third of the scenes have one
    object, a third two, a third three. No two scenes of `dev`, and no two of `seen`, have equal attributes.

    seed: decides which combinations are held out, and every scene
    train_size: scenes to train on
    variants: training scenes, one after the other, that show the same objects in other places
    dev_size: scenes in each of the splits dev and seen
    held_out: share of the 64 colour-shape combinations that training never sees, in eighths up to a half
    image_size: side of the drawn pictures, in pixels
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
        return shape_questions(self)

    def read(self) -> dict[str, list[Record]]:
        """Records of the splits train, dev and seen; a picture is drawn when its record is opened."""
        return {split: _records(self, split) for split in ("train", "dev", "seen")}


def combinations(config: ShapesConfig) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The (colour, shape) pairs seen in training, and those held out.

    The held-out ones are whole diagonals of the table of shuffled colours against shuffled shapes (a Latin
    square), so every colour and every shape is held out equally often, and seen equally often.
    """
    rng = random.Random(f"{config.seed}/combinations")
    colours, shapes = rng.sample(list(COLOURS), 8), rng.sample(SHAPES, 8)
    seen, held_out = [], []
    for row, column in itertools.product(range(8), range(8)):
        diagonal = (column - row) % 8
        (held_out if diagonal < 8 * config.held_out else seen).append((colours[row], shapes[column]))
    return seen, held_out


def make_scene(config: ShapesConfig, split: Split, index: int) -> Scene:
    """Scene `index` of an endless series, from (seed, split, index) only; one, two and three objects in turn.

    In `train` each run of `variants` scenes shows the same objects in other places, a hard lesson in where
    things are. `dev` and `seen` leave out the scenes of this series whose attributes came before: see `scenes`.
    """
    seen, held_out = combinations(config)
    number = index // config.variants if split == "train" else index
    things = _make_things(
        held_out if split == "dev" else seen, f"{config.seed}/{split}/{number}", number % 3 + 1
    )
    return _place(things, f"{config.seed}/{split}/{index}/places")


def scenes(config: ShapesConfig, split: Split) -> list[Scene]:
    """All scenes of a split, in order; in `dev` and `seen` no two have the same attributes."""
    if split == "train":
        return [make_scene(config, split, index) for index in range(config.train_size)]
    found: dict[tuple, Scene] = {}
    series = [itertools.count(start, 3) for start in range(3)]  # the indices of one, two and three objects
    while len(found) < config.dev_size:
        scene = make_scene(config, split, next(series[len(found) % 3]))
        found.setdefault(scene.attributes, scene)
    return list(found.values())


def _make_things(allowed: list[tuple[str, str]], key: str, count: int) -> list[tuple[str, str, str, str]]:
    """Shape, colour, size and pattern of that many objects, all of different combinations, each allowed."""
    rng = random.Random(key)
    return [
        (shape, colour, rng.choice(list(RADII)), rng.choice(PATTERNS))
        for colour, shape in rng.sample(allowed, count)
    ]


def _place(things: list[tuple[str, str, str, str]], key: str) -> Scene:
    """A scene of these objects, in any order in any layout for so many."""
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
    """One record a scene; its group is its attributes' number, so that equal scenes are no negatives."""
    records = []
    for number, scene in enumerate(scenes(config, split)):
        image = functools.partial(draw, scene, config.image_size)
        records.append(Record(f"{split}-{number}", image, captions(scene), scene.group))
    return records


def shape_questions(config: ShapesConfig, split: Split = "dev") -> dict[str, list[Question]]:
    """Choices between sentences of which one is true, about the pictures of a split.

    Scenes of one object ask for colour, shape (8 choices each), size (2), pattern (3) and place (9), scenes
    of two for their relation (4). Each value is the true one equally often, and so is each position in the
    list: chance is one in the number of choices, also for whoever always takes one value or one position.
    """
    asked: dict[str, dict[str, list[tuple[Record, dict[str, str]]]]] = {}
    for record, scene in zip(_records(config, split), scenes(config, split), strict=True):
        for name, (sentences, true) in attribute_choices(scene).items():
            by_truth = asked.setdefault(name, {value: [] for value in sentences})
            by_truth[true].append((record, sentences))
    return {name: _balanced(by_truth) for name, by_truth in asked.items()}


def _balanced(by_truth: dict[str, list[tuple[Record, dict[str, str]]]]) -> list[Question]:
    """Equally many questions for each true value; the right answer's position goes round."""
    each = min(len(items) for items in by_truth.values())
    asked = [(true, *items[n]) for n in range(each) for true, items in by_truth.items()]
    result = []
    for number, (true, record, sentences) in enumerate(asked):
        wrong = [sentence for value, sentence in sentences.items() if value != true]
        answer = (number + number // len(sentences)) % len(sentences)
        result.append(Question(record, (*wrong[:answer], sentences[true], *wrong[answer:]), answer))
    return result
