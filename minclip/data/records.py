"""Records: one image with all of its captions. Decoding of images, splits by image, captions of classes."""

import itertools
import random
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import inf
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# The only formats decoded, whatever a file's name: some of Pillow's other decoders start programs.
Image.init()
FORMATS = [
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
    if name in Image.OPEN  # AVIF: only in Pillow from 11.3 on
]
# Pillow's own warning of large images names no file; decode() warns with the name.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Record:
    """One image and all of its captions.

    image_id: unique per image
    open: decodes the image to RGB; picklable; raises ValueError if the image is damaged
    captions: at least one
    group: the image's number, or its class; pairs of one group are never each other's negatives
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
    """Multiple-choice question: the caption of the record's image is `choices[answer]`."""

    record: Record
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self):
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(f"answer {self.answer} is not a position in {len(self.choices)} choices")


def open_image(path: str | Path) -> Image.Image:
    """Decode an image file of one of FORMATS to RGB, upright, on white where it is transparent.

    Upright: the EXIF orientation is applied. 16-bit grey is scaled to 8 bits (Pillow would clip it). An animation
    gives its first frame. Raises ValueError if the file is missing, damaged, of another format, or larger than twice
    `Image.MAX_IMAGE_PIXELS`; warns above `Image.MAX_IMAGE_PIXELS`.
    """
    return decode(path, str(path))


def decode_image(content: bytes, name: str) -> Image.Image:
    """Decode the content of an image file as `open_image` does; `name` is used in messages."""
    return decode(BytesIO(content), name)


def decode(file: str | Path | BinaryIO, name: str) -> Image.Image:
    """Decode an image from a path or an open file; see `open_image`."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > (Image.MAX_IMAGE_PIXELS or inf):
                warnings.warn(f"image {name!r} has {pixels:,} pixels: shrink it to save memory", stacklevel=3)
            return to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise ValueError(
            f"cannot decode image {name!r}: cannot identify it as {', '.join(FORMATS)}; "
            "repair, convert or remove the file"
        ) from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"cannot decode image {name!r}: it is not a file; check the name") from error
    except Exception as error:  # a damaged file can raise anything in Pillow's decoders
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot decode image {name!r}: {reason}; repair or remove the file") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to RGB, with transparency on white and deep grey scaled to 8 bits."""
    if image.mode.startswith("I"):  # 16-bit grey: I;16, I;16B or, as some files are decoded, I
        grey = np.asarray(image) / 65535
        return grey_to_rgb(np.where(np.asarray(image) == image.info.get("transparency"), 1, grey))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if image.mode == "F":
        return grey_to_rgb(np.asarray(image))
    return image.convert("RGB")


def grey_to_rgb(grey: np.ndarray) -> Image.Image:
    """Convert grey values (h, w), 0 to 1, to an RGB image."""
    return Image.fromarray((grey.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")


def split_by_image(
    records: Sequence[Record], fractions: Mapping[str, float], seed: int
) -> dict[str, list[Record]]:
    """Split records at random, by image; the fractions sum to 1.

    The split depends on the set of image ids and the seed alone. Each list is ordered by image id. Raises ValueError
    if an id repeats or a split would be empty.
    """
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


def hold_out_dev(records: Sequence[Record], dev_fraction: float, seed: int) -> dict[str, list[Record]]:
    """Split records at random, by image, into "train" and "dev"."""
    return split_by_image(records, {"train": 1 - dev_fraction, "dev": dev_fraction}, seed)


def class_captions(name: str, templates: Sequence[str]) -> tuple[str, ...]:
    """Fill each template with a class name: "a photo of a {}" -> "a photo of a cat", "a photo of an owl"."""
    if not templates or any("{}" not in template for template in templates):
        raise ValueError(
            f'templates {tuple(templates)} need one or more texts, each with "{{}}" for the class'
        )
    an = r"\1n {}" if name[:1].lower() in "aeiou" else r"\1 {}"
    return tuple(
        re.sub(r"\b(a) {}", an, template, flags=re.IGNORECASE).replace("{}", name) for template in templates
    )


def warn_of_missing(names: Collection[str], what: str, where: str) -> None:
    """Warn of records that are left out: their number and the first three names."""
    if names:
        first = ", ".join(sorted(names)[:3])
        warnings.warn(f"left out {len(names)} {what}, {where}: {first}", stacklevel=4)
