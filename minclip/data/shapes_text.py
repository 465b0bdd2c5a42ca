"""The language of the built-in world: full descriptions of a scene in many wordings, and multiple-choice sentences.

Every caption names size, pattern, colour and shape of every object, and the place or the relations. So a scene's
attributes can be read from each of its captions, and no caption describes two scenes of different attributes.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import replace

from minclip.data.shapes_scene import COLOURS, PATTERNS, RADII, SHAPES, Object, Scene

SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
PATTERN_WORDS = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
}
PATTERN_TAILS = {"plain": "with no pattern", "striped": "with stripes", "dotted": "with dots"}
PLACE_WORDS = {
    "top left": ("in the top left corner", "in the upper left corner"),
    "top centre": ("at the top centre", "in the middle of the top edge"),
    "top right": ("in the top right corner", "in the upper right corner"),
    "middle left": ("at the centre left", "in the middle of the left edge"),
    "middle centre": ("in the centre", "in the middle"),
    "middle right": ("at the centre right", "in the middle of the right edge"),
    "bottom left": ("in the bottom left corner", "in the lower left corner"),
    "bottom centre": ("at the bottom centre", "in the middle of the bottom edge"),
    "bottom right": ("in the bottom right corner", "in the lower right corner"),
}
RELATION_WORDS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above",),
    "below": ("below", "under", "beneath"),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
SIDES = {"left": ("on the left", "on the right"), "above": ("at the top", "at the bottom")}
# Three objects: the relation of the first to the second, and of the third to both.
TRIPLES = {
    "row above": ("left", "below"),
    "row below": ("left", "above"),
    "column left": ("above", "right"),
    "column right": ("above", "left"),
}


def captions(scene: Scene) -> tuple[str, ...]:
    """Write five different full descriptions, a function of the scene."""
    rng = random.Random(repr(scene))

    def say(thing: Object) -> str:
        return _mention(thing, rng)

    def relate(relation: str) -> str:
        return rng.choice(RELATION_WORDS[relation])

    if len(scene.objects) == 1:
        return _one(scene, say, lambda: rng.choice(PLACE_WORDS[scene.layout]))
    return (_two if len(scene.objects) == 2 else _three)(scene, say, relate)


def _one(scene: Scene, say: Callable[[Object], str], place: Callable[[], str]) -> tuple[str, ...]:
    (a,) = scene.objects
    return (
        f"{say(a)} {place()}",
        f"a picture of {say(a)} {place()}",
        f"there is {say(a)} {place()}",
        f"{place()} there is {say(a)}",
        f"the image shows {say(a)} {place()}",
    )


def _two(scene: Scene, say: Callable[[Object], str], relate: Callable[[str], str]) -> tuple[str, ...]:
    a, b = scene.objects
    there = "left" if scene.layout == "row" else "above"
    back = OPPOSITE[there]
    return (
        f"{say(a)} {relate(there)} {say(b)}",
        f"a picture of {say(b)} {relate(back)} {say(a)}",
        f"there is {say(a)} and {relate(back)} it {say(b)}",
        f"{say(b)} can be seen {relate(back)} {say(a)}",
        f"{say(a)} and {say(b)}, the first {relate(there)} the second",
    )


def _three(scene: Scene, say: Callable[[Object], str], relate: Callable[[str], str]) -> tuple[str, ...]:
    a, b, c = scene.objects
    pair, third = TRIPLES[scene.layout]
    first, second = SIDES[pair]
    return (
        f"{say(a)} {relate(pair)} {say(b)}, with {say(c)} {relate(third)} both",
        f"a picture of {say(b)} {relate(OPPOSITE[pair])} {say(a)}, with {say(c)} {relate(third)} them",
        f"{say(c)} {relate(third)} two others, {say(a)} {first} and {say(b)} {second}",
        f"{say(a)} {first}, {say(b)} {second} and {say(c)} {relate(third)} them",
        f"there is {say(c)} and {relate(OPPOSITE[third])} it {say(a)} {relate(pair)} {say(b)}",
    )


def _mention(thing: Object, rng: random.Random) -> str:
    """Describe one object with its article, in one of three word orders."""
    size, pattern = rng.choice(SIZE_WORDS[thing.size]), rng.choice(PATTERN_WORDS[thing.pattern])
    return rng.choice(
        (
            f"a {size} {pattern} {thing.colour} {thing.shape}",
            f"a {size} {thing.colour} {thing.shape} {PATTERN_TAILS[thing.pattern]}",
            f"a {size} {pattern} {thing.shape} in {thing.colour}",
        )
    )


def attribute_choices(scene: Scene) -> dict[str, tuple[dict[str, str], str]]:
    """Return the questions about a scene: name -> ({value: sentence}, true value).

    One object: colour, shape, size, pattern and place; sentences differ only in the value asked. Two objects: their
    relation. Three objects: none.
    """
    if len(scene.objects) == 1:
        (thing,) = scene.objects
        where = PLACE_WORDS[scene.layout][0]
        values = {"colour": COLOURS, "shape": SHAPES, "size": RADII, "pattern": PATTERNS}
        asked = {name: (_each(thing, name, of, where), getattr(thing, name)) for name, of in values.items()}
        places = {place: f"{_plainly(thing)} {words[0]}" for place, words in PLACE_WORDS.items()}
        return {**asked, "place": (places, scene.layout)}
    if len(scene.objects) == 2:
        a, b = scene.objects
        true = "left" if scene.layout == "row" else "above"
        if random.Random(repr(scene)).random() < 0.5:  # so that all four relations occur
            a, b, true = b, a, OPPOSITE[true]
        relations = {
            name: f"{_plainly(a)} {words[0]} {_plainly(b)}" for name, words in RELATION_WORDS.items()
        }
        return {"relation": (relations, true)}
    return {}


def _each(thing: Object, name: str, values: Iterable[str], where: str) -> dict[str, str]:
    """Write the sentence about one object for each value of one attribute."""
    return {value: f"{_plainly(replace(thing, **{name: value}))} {where}" for value in values}


def _plainly(thing: Object) -> str:
    """Describe one object in the first word order, with the plainest words."""
    return f"a {thing.size} {thing.pattern} {thing.colour} {thing.shape}"
