"""What every data format gives: records of one image with all of its captions, and splits by image."""

import itertools
import random
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

# All that Pillow was seen to raise on missing, damaged, foreign and oversized files of fourteen formats.
UNREADABLE = (
    OSError,  # missing, truncated; UnidentifiedImageError is one of them
    Image.DecompressionBombError,
    SyntaxError,  # Pillow's own word for a broken PNG or TIFF header
    ValueError,
    RuntimeError,  # AVIF; NotImplementedError, of DDS, is one of them
    TypeError,
    ArithmeticError,
    LookupError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Record:
    """One image and all of its captions.

    image_id: unique per image
    open: gives the RGB picture; picklable; ValueError in one line when it cannot be decoded
    captions: at least one
    group: pairs of one group are never each other's negatives (the image's number, or a class)
    """

    image_id: str
    open: Callable[[], Image.Image]
    captions: tuple[str, ...]
    group: int

    def __post_init__(self):
        if not self.captions:
            raise ValueError(f"image {self.image_id!r} has no caption: give it one or leave it out")


@dataclass(frozen=True)
class Question:
    """A k-choice caption test: which of `choices` belongs to the record's image? `answer` is its position."""

    record: Record
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self):
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(f"answer {self.answer} is not a position in {len(self.choices)} choices")


def open_image(path: str | Path) -> Image.Image:
    """Decode an image file to RGB, upright, on white where it is transparent.

    Upright: the EXIF orientation is applied. 16-bit grey is scaled to 8 bits (Pillow would clip it).
    Raises ValueError, one line naming the file, when it is missing, truncated, too large or not an image.
    """
    return decode(path, str(path))


def decode_image(content: bytes, name: str) -> Image.Image:
    """Like `open_image`, of an image file's content that lies in a larger file; `name` says where."""
    return decode(BytesIO(content), name)


def decode(file: str | Path | BinaryIO, name: str) -> Image.Image:
    try:
        with Image.open(file) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot decode image {name!r}: {reason}; repair or remove the file") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes -> RGB. Transparency is shown on white, deep grey scaled to 8 bits."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if image.mode.startswith("I"):  # 16-bit grey: I;16, I;16B or, as some files are decoded, I
        return grey_to_rgb(np.asarray(image) / 65535)
    if image.mode == "F":
        return grey_to_rgb(np.asarray(image))
    return image.convert("RGB")


def grey_to_rgb(grey: np.ndarray) -> Image.Image:
    """(h, w) brightness from 0 to 1 -> RGB picture."""
    return Image.fromarray((grey.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")


def split_by_image(
    records: Sequence[Record], fractions: Mapping[str, float], seed: int
) -> dict[str, list[Record]]:
    """Share records out at random, each image to one split only: {"train": 0.9, "dev": 0.1} -> two lists.

    A function of the set of image ids and the seed: neither the records' order nor their captions' matters.
    The lists are ordered by image id. Raises ValueError when fractions do not sum to 1, ids repeat, or a
    split would be empty.
    """
    if any(share <= 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"split fractions {dict(fractions)} must be positive and sum to 1")
    ordered = sorted(records, key=lambda record: record.image_id)
    for first, second in itertools.pairwise(ordered):
        if first.image_id == second.image_id:
            raise ValueError(f"image {first.image_id!r} has two records: merge its captions into one")
    shuffled = list(ordered)
    random.Random(f"{seed}/split").shuffle(shuffled)
    splits, start, share = {}, 0, 0.0
    for name, fraction in fractions.items():
        share += fraction
        end = round(share * len(shuffled))
        splits[name] = sorted(shuffled[start:end], key=lambda record: record.image_id)
        if not splits[name]:
            raise ValueError(
                f"split {name!r} ({fraction:g} of {len(shuffled)} images) would be empty: "
                "give more images, or a larger share where one is an option"
            )
        start = end
    return splits


def class_captions(name: str, templates: Sequence[str]) -> tuple[str, ...]:
    """A caption from each template: "a photo of a {}" -> "a photo of a cat", "a photo of an airplane"."""
    if not templates or any("{}" not in template for template in templates):
        raise ValueError(
            f'templates {tuple(templates)} need one or more texts, each with "{{}}" for the class'
        )
    an = r"\1n {}" if name[:1].lower() in "aeiou" else r"\1 {}"
    return tuple(
        re.sub(r"\b(a) {}", an, template, flags=re.IGNORECASE).replace("{}", name) for template in templates
    )


def warn_of_missing(names: Collection[str], what: str, where: str) -> None:
    """Warn in one line of records that a reader leaves out: how many, and the first three names."""
    if names:
        first = ", ".join(sorted(names)[:3])
        warnings.warn(f"left out {len(names)} {what}, {where}: {first}", stacklevel=4)
