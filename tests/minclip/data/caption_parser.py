"""A parser of the built-in world's captions, written independently of the code that writes them."""

import itertools
import re

MENTION = re.compile(
    r"\ba (?P<size>small|little|large|big)(?: (?P<pattern>plain|solid|striped|stripy|dotted|spotted))?"
    r"(?: (?P<colour>red|orange|yellow|green|cyan|blue|purple|black))?"
    r" (?P<shape>circle|square|triangle|diamond|star|cross|heart|ring)\b"
    r"(?: in (?P<colour2>red|orange|yellow|green|cyan|blue|purple|black)\b)?"
    r"(?: with (?P<tail>no pattern|stripes|dots)\b)?"
)
MEANING = {
    "little": "small",
    "big": "large",
    "solid": "plain",
    "no pattern": "plain",
    "stripy": "striped",
    "stripes": "striped",
    "spotted": "dotted",
    "dots": "dotted",
}
PLACES = {
    "in the (top|upper) left corner": "top left",
    "at the top centre|in the middle of the top edge": "top centre",
    "in the (top|upper) right corner": "top right",
    "at the centre left|in the middle of the left edge": "middle left",
    "in the centre|in the middle": "middle centre",
    "at the centre right|in the middle of the right edge": "middle right",
    "in the (bottom|lower) left corner": "bottom left",
    "at the bottom centre|in the middle of the bottom edge": "bottom centre",
    "in the (bottom|lower) right corner": "bottom right",
}
ONE = re.compile(r"(?:a picture of |there is |the image shows )?0 (?P<place>.+)|(?P<first>.+) there is 0")
# Skeletons: R for a relation, digits for the objects in order of mention -> (a, b): a is in that relation to b.
TWO = {
    "0 R 1": (0, 1),
    "a picture of 0 R 1": (0, 1),
    "there is 0 and R it 1": (1, 0),
    "0 can be seen R 1": (0, 1),
    "0 and 1, the first R the second": (0, 1),
}
THREE = {  # -> the pair, the index of its relation, the third object
    "0 R 1, with 2 R both": ((0, 1), 0, 2),
    "a picture of 0 R 1, with 2 R them": ((0, 1), 0, 2),
    "there is 0 and R it 1 R 2": ((1, 2), 1, 0),
}
SIDES = {
    "0 R two others, 1 on the left and 2 on the right": ((1, 2), "left", 0),
    "0 R two others, 1 at the top and 2 at the bottom": ((1, 2), "above", 0),
    "0 on the left, 1 on the right and 2 R them": ((0, 1), "left", 2),
    "0 at the top, 1 at the bottom and 2 R them": ((0, 1), "above", 2),
}
REVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
LAYOUT_OF = {
    ("left", "below"): "row above",
    ("left", "above"): "row below",
    ("above", "right"): "column left",
    ("above", "left"): "column right",
}


def parse(caption):
    """Parse a caption into `Scene.attributes`."""
    things = []
    for found in MENTION.finditer(caption):
        (colour,) = {found["colour"], found["colour2"]} - {None}
        (pattern,) = {found["pattern"], found["tail"]} - {None}
        words = (found["size"], pattern, colour, found["shape"])
        things.append(tuple(MEANING.get(word, word) for word in words))
    numbers = itertools.count()
    skeleton = MENTION.sub(lambda _: str(next(numbers)), caption)
    if len(things) == 1:
        said = ONE.fullmatch(skeleton)
        assert said, caption
        (place,) = (
            name for words, name in PLACES.items() if re.fullmatch(words, said["place"] or said["first"])
        )
        return (place, things[0])
    relations = []
    pattern = r"(?:to the )?(left|right) of\b|\b(above|below|under|beneath)\b"
    for found in re.finditer(pattern, skeleton):
        relations.append({"under": "below", "beneath": "below"}.get(found[0], found[1] or found[2]))
    skeleton = re.sub(pattern, "R", skeleton)
    if len(things) == 2:
        layout, pair = ordered(TWO[skeleton], relations[0])
        return ({"left": "row", "above": "column"}[layout], *(things[n] for n in pair))
    if skeleton in SIDES:
        pair, between, odd = SIDES[skeleton]
        (third,) = relations
    else:
        pair, which, odd = THREE[skeleton]
        between, third = relations[which], relations[1 - which]
        if odd == 0:  # "there is C and above it A and B": the relation is the pair's to C
            third = REVERSE[third]
    between, pair = ordered(pair, between)
    return (LAYOUT_OF[between, third], *(things[n] for n in (*pair, odd)))


def ordered(pair, relation):
    """Rewrite "B right of A" as "A left of B", "B below A" as "A above B"."""
    return (relation, pair) if relation in ("left", "above") else (REVERSE[relation], pair[::-1])
