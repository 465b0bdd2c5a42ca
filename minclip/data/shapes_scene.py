"""A scene of the built-in world, and how it is drawn.

All lengths are fractions of the image's side, x to the right and y downwards, so a scene has no resolution.
"""

import functools
import math
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart", "ring")
COLOURS = {
    "red": (210, 18, 40),
    "orange": (248, 128, 10),
    "yellow": (254, 226, 32),
    "green": (22, 148, 52),
    "cyan": (40, 208, 224),
    "blue": (28, 62, 214),
    "purple": (144, 40, 176),
    "black": (24, 24, 26),
}
LIGHT = ("yellow", "cyan")  # have patterns in black; the darker colours in white
RADII = {"small": 0.13, "large": 0.2}  # half the side of an object's box
PATTERNS = ("plain", "striped", "dotted")
STRIPE, DOT = 0.085, 0.07  # period of stripes and of dots, on small and large objects alike
RIM = 0.01  # border without pattern, which keeps the outline visible
SUPERSAMPLE = 4  # scenes are drawn this many times larger, then averaged, for smooth edges

EDGES = (0.24, 0.5, 0.76)
LAYOUTS = {  # the objects' centres, in the scene's order
    **{
        f"{row} {column}": ((x, y),)
        for row, y in zip(("top", "middle", "bottom"), EDGES, strict=True)
        for column, x in zip(("left", "centre", "right"), EDGES, strict=True)
    },
    "row": ((0.26, 0.5), (0.74, 0.5)),  # the first left of the second
    "column": ((0.5, 0.26), (0.5, 0.74)),  # the first above the second
    "row above": ((0.26, 0.26), (0.74, 0.26), (0.5, 0.74)),  # a row of two, above the third
    "row below": ((0.26, 0.74), (0.74, 0.74), (0.5, 0.26)),
    "column left": ((0.26, 0.26), (0.26, 0.74), (0.74, 0.5)),  # a column of two, left of the third
    "column right": ((0.74, 0.26), (0.74, 0.74), (0.26, 0.5)),
}


@dataclass(frozen=True, slots=True)
class Object:
    """An object of a scene: its four attributes in words, and its centre."""

    shape: str
    colour: str
    size: str
    pattern: str
    x: float
    y: float

    @property
    def attributes(self) -> tuple[str, str, str, str]:
        """(size, pattern, colour, shape), as in captions."""
        return self.size, self.pattern, self.colour, self.shape


@dataclass(frozen=True, slots=True)
class Scene:
    """One to three objects in the order of `LAYOUTS[layout]`, on a plain background (red, green, blue)."""

    layout: str
    objects: tuple[Object, ...]
    background: tuple[int, int, int]

    @property
    def attributes(self) -> tuple:
        """The content of a full caption: equal for two scenes exactly if one caption can describe both."""
        return (self.layout, *(thing.attributes for thing in self.objects))

    @property
    def group(self) -> int:
        """`attributes` as a number below 2^30, in mixed radix."""
        number = 0
        for size, pattern, colour, shape in (thing.attributes for thing in self.objects):
            number = number * len(RADII) + list(RADII).index(size)
            number = number * len(PATTERNS) + PATTERNS.index(pattern)
            number = number * len(COLOURS) + list(COLOURS).index(colour)
            number = number * len(SHAPES) + SHAPES.index(shape)
        return number * len(LAYOUTS) + list(LAYOUTS).index(self.layout)


def draw(scene: Scene, image_size: int) -> Image.Image:
    """Draw a scene as an RGB image of image_size × image_size pixels."""
    side = SUPERSAMPLE * image_size
    image = Image.new("RGB", (side, side), scene.background)
    for thing in scene.objects:
        body, pattern = _masks(thing.shape, thing.size, thing.pattern, side)
        corner = (round(thing.x * side) - body.width // 2, round(thing.y * side) - body.height // 2)
        image.paste(COLOURS[thing.colour], corner, body)
        if pattern is not None:
            image.paste("black" if thing.colour in LIGHT else "white", corner, pattern)
    return image.reduce(SUPERSAMPLE)


@functools.lru_cache(maxsize=len(SHAPES) * len(RADII) * len(PATTERNS))
def _masks(shape: str, size: str, pattern: str, side: int) -> tuple[Image.Image, Image.Image | None]:
    """Return masks of an object and of its pattern (None if plain), for an image of `side` pixels."""
    radius = int(RADII[size] * side)
    body = _shape(shape, radius)
    if pattern == "plain":
        return body, None
    ink = _stripes(radius, STRIPE * side) if pattern == "striped" else _dots(radius, DOT * side)
    rim = round(RIM * side)
    inside = ImageOps.expand(body, rim).filter(ImageFilter.MinFilter(2 * rim + 1))
    return body, ImageChops.multiply(ImageOps.crop(inside, rim), ink)


def _shape(shape: str, radius: int) -> Image.Image:
    """Draw a white shape on black that fills most of a box of 2 radius × 2 radius pixels."""
    mask = Image.new("L", (2 * radius, 2 * radius))
    pen = ImageDraw.Draw(mask)
    if shape in ("circle", "ring"):
        pen.ellipse(_box(radius, radius, radius - 1), fill=255)
        if shape == "ring":
            pen.ellipse(_box(radius, radius, 0.45 * radius), fill=0)
    else:
        pen.polygon(
            [(radius + x * (radius - 1), radius + y * (radius - 1)) for x, y in _outline(shape)], fill=255
        )
    return mask


def _outline(shape: str) -> list[tuple[float, float]]:
    """Return the corners of a shape inside the box from -1 to 1."""
    if shape == "square":
        return [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]
    if shape == "triangle":
        return [(0, -1), (1, 0.86), (-1, 0.86)]
    if shape == "diamond":
        return [(0, -1), (0.82, 0), (0, 1), (-0.82, 0)]
    if shape == "star":
        tips = [(1.0 if corner % 2 == 0 else 0.5, math.pi * corner / 5) for corner in range(10)]
        return [(length * math.sin(angle), 0.08 - length * math.cos(angle)) for length, angle in tips]
    if shape == "cross":
        arm = [(-0.38, -1), (0.38, -1), (0.38, -0.38)]  # a quarter turn gives the next arm
        return [corner for turn in range(4) for corner in _turned(arm, turn)]
    angles = [2 * math.pi * step / 60 for step in range(60)]  # the heart remains
    return [(math.sin(angle) ** 3, 0.06 - _heart(angle) / 16) for angle in angles]


def _turned(corners: list[tuple[float, float]], quarters: int) -> list[tuple[float, float]]:
    """Turn corners about the origin by quarter turns."""
    for _ in range(quarters):
        corners = [(-y, x) for x, y in corners]
    return corners


def _heart(angle: float) -> float:
    """Height of the heart curve whose width is 16 sin³(angle)."""
    return 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)


def _stripes(radius: int, period: float) -> Image.Image:
    """Draw white diagonal stripes on black, one of them through the centre."""
    mask = Image.new("L", (2 * radius, 2 * radius))
    pen = ImageDraw.Draw(mask)
    step = period * math.sqrt(2)  # along the box's edge, for stripes at 45 degrees
    for number in range(-math.ceil(2 * radius / step), math.ceil(2 * radius / step) + 1):
        x = number * step
        pen.line([(x - radius, 3 * radius), (x + 3 * radius, -radius)], fill=255, width=round(0.45 * period))
    return mask


def _dots(radius: int, spacing: float) -> Image.Image:
    """Draw white dots on black, odd rows shifted by half a step, one dot at the centre."""
    mask = Image.new("L", (2 * radius, 2 * radius))
    pen = ImageDraw.Draw(mask)
    reach = math.ceil(radius / spacing) + 1
    for row in range(-reach, reach + 1):
        for column in range(-reach, reach + 1):
            x = radius + (column + 0.5 * (row % 2)) * spacing
            y = radius + row * spacing * math.sqrt(3) / 2
            pen.ellipse(_box(x, y, 0.3 * spacing), fill=255)
    return mask


def _box(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    """Return the bounding box of a circle."""
    return x - radius, y - radius, x + radius, y + radius
