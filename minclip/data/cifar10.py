"""CIFAR-10 (Krizhevsky 2009) from the published Python pickles, with captions made of the class names.

A pickle can run any code when it is loaded. The unpickler here allows only the names that the published files use,
and builds `Saved`, which only stores its arguments, in place of numpy's arrays.
"""

import codecs
import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image

from minclip.data.config import DataConfig
from minclip.data.records import Record, class_captions, hold_out_dev
from minclip.data.sources import distinct_names, given_path
from minlm.training.bounds import within

TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST, META = "test_batch", "batches.meta"
SIDE = 32
ROW = 3 * SIDE * SIDE  # the red rows, then the green, then the blue


@dataclass(frozen=True, kw_only=True)
class Cifar10Config(DataConfig):
    """CIFAR-10: photographs of 32 x 32 pixels in ten classes, captioned by their class.

    A record's group is its class, a position in `class_names()`: images of one class are never each other's
    negatives, and zero-shot classification and linear probes use the group as label.

    root: folder of the pickles: data_batch_1 to data_batch_5, test_batch, batches.meta
    templates: captions, with {} for the class; "a {}" becomes "an {}" before a vowel
    dev_fraction: share of the training images held out for `dev`
    split_seed: draws the images of `dev`
    """

    root: str = "data/cifar-10-batches-py"
    templates: tuple[str, ...] = ("a photo of a {}",)
    dev_fraction: Annotated[float, within("(0, 1)")] = 0.1
    split_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        class_captions("class", self.templates)  # ValueError if one has no {}

    def classes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.class_names(), self.templates

    def class_names(self) -> tuple[str, ...]:
        """Read the names of the classes; a record's group is a position in them."""
        path = given_path(self.root, "folder of CIFAR-10", "--data.root DIR") / META
        content = load_pickle(path)
        try:
            names = [name.decode() for name in content[b"label_names"]]
        except Exception as error:
            raise ValueError(
                f"{str(path)!r} has no list label_names of texts in UTF-8: fetch CIFAR-10 again"
            ) from error
        return distinct_names(names, path)

    def read(self) -> dict[str, list[Record]]:
        """Read "train" and "dev", drawn from the training batches, and "test".

        Raises ValueError if a file is missing, damaged or not as published.
        """
        captions = [class_captions(name, self.templates) for name in self.class_names()]
        root = Path(self.root)
        train = [record for name in TRAIN for record in read_batch(root / name, captions)]
        splits = hold_out_dev(train, self.dev_fraction, self.split_seed)
        return splits | {"test": read_batch(root / TEST, captions)}


def read_batch(path: Path, captions: list[tuple[str, ...]]) -> list[Record]:
    """Read the records of one file; `captions` by label."""
    batch = load_pickle(path)
    rows, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(rows, Saved) or not isinstance(labels, list):
        raise ValueError(f"{str(path)!r} has no array data with a list labels: fetch CIFAR-10 again")
    pixels = rows.pixels(path)  # (N, 3072)
    if len(labels) != len(pixels):
        raise ValueError(f"{str(path)!r} has {len(pixels)} images and {len(labels)} labels: fetch it again")
    for label in labels:
        if type(label) is not int or not 0 <= label < len(captions):
            raise ValueError(f"{str(path)!r} has the label {label!r}, {META} names {len(captions)} classes")
    return [
        Record(f"{path.name}/{number:05}", partial(to_image, row), captions[label], label)
        for number, (row, label) in enumerate(zip(pixels, labels, strict=True))
    ]


def to_image(row: np.ndarray) -> Image.Image:
    """Convert a row (3072,) uint8 to an RGB image."""
    return Image.fromarray(np.ascontiguousarray(row.reshape(3, SIDE, SIDE).transpose(1, 2, 0)))  # (32, 32, 3)


class Saved:
    """Harmless replacement for numpy's arrays and types in a pickle: stores arguments and state."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments
        self.state: Any = ()

    def __setstate__(self, state: Any):
        self.state = state

    def pixels(self, path: Path) -> np.ndarray:
        """Return the stored array, (N, 3072) uint8; ValueError if it has another shape or type."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise ValueError(f"{str(path)!r} holds an array without content: fetch CIFAR-10 again")
        _, shape, kind, columns_first, content = self.state  # numpy's ndarray.__setstate__
        kind = kind.arguments[:1] if isinstance(kind, Saved) else kind
        if kind not in (("u1",), (b"u1",)) or columns_first:
            raise ValueError(
                f"{str(path)!r} holds an array of type {kind}, not of bytes in rows: fetch it again"
            )
        rows_of_bytes = isinstance(shape, tuple) and isinstance(content, bytes)
        if not rows_of_bytes or len(shape) != 2 or shape[1] != ROW:
            raise ValueError(f"{str(path)!r} holds an array of shape {shape}, not (N, {ROW}): fetch it again")
        if len(content) != shape[0] * ROW:
            raise ValueError(
                f"{str(path)!r} has {len(content)} bytes for {shape[0]} images of {ROW}: fetch it again"
            )
        return np.frombuffer(content, np.uint8).reshape(shape)


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): Saved,
    ("numpy._core.multiarray", "_reconstruct"): Saved,  # its name since numpy 2
    ("numpy", "ndarray"): Saved,
    ("numpy", "dtype"): Saved,
    ("_codecs", "encode"): codecs.encode,  # how Python 3 writes a Python 2 text
}


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR-10 does not need")


def load_pickle(path: Path) -> dict:
    """Load the dictionary of a published pickle, keys as bytes; ValueError for any other file."""
    try:
        with path.open("rb") as file:
            content = Unpickler(file, encoding="bytes").load()
    except OSError as error:
        raise ValueError(
            f"cannot read {str(path)!r}: {error.strerror}; give CIFAR-10's folder as root"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{str(path)!r} is not one of CIFAR-10's pickles: {reason}; fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{str(path)!r} holds a {type(content).__name__}, not a dictionary: fetch CIFAR-10 again"
        )
    return content
