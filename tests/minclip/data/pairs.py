"""Datasets of drawn images with captions, used by several test files."""

from functools import partial

import numpy as np
from PIL import Image

from minclip.data.dataset import PairDataset
from minclip.data.records import Record, open_image
from minclip.data.tokenizer import WordPiece
from minclip.data.transforms import ImageTransform, TransformConfig

CAPTIONS = ("a dog runs", "a cat sleeps on the mat", "two dogs", "one cat", "a dog and a cat")
TOKENIZER = WordPiece.train(CAPTIONS, 60)
SMALL = {"image_size": (8, 8), "crop_scale": (0.4, 1.0), "flip": True}


def draw(seed: int, height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_records(n: int, damaged: tuple[int, ...] = (), size: tuple[int, int] = (10, 12)) -> list[Record]:
    """Return n records of different images with five captions each; damaged ones name files that do not exist."""
    return [
        Record(
            f"{k}.png",
            partial(open_image, f"/nowhere/{k}.png") if k in damaged else partial(draw, k, *size),
            tuple(f"{caption} {k}" for caption in CAPTIONS),
            group=100 + k,
        )
        for k in range(n)
    ]


def make(records: list[Record], train: bool = True, **options) -> PairDataset:
    fields = dict(options.pop("fields", SMALL))
    transform = ImageTransform(
        image_size=fields.pop("image_size"), config=TransformConfig(**fields), train=train
    )
    return PairDataset(records, transform, TOKENIZER, 12, **{"seed": 0, **options})
