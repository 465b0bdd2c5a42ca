"""One tar file in the WebDataset layout: `key.jpg` with `key.txt`, `key.cls` or `key.json`, sample after sample.

Tar files are not compressed, so an image is read with one seek once its place is known.
"""

import json
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from minclip.data.records import Record, decode_image
from minclip.data.table import CAPTION_COLUMNS, find_column, texts_of

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
CLASSES, SIZES = "classnames.txt", "sizes.json"
Parts = dict[str, tuple[int, int]]  # a sample's files: extension -> (offset, size) in the shard


def check_end(path: Path) -> None:
    """Raise ValueError for an incomplete tar file: a whole one ends with two blocks of zeros."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 1024))
            whole = size % 512 == 0 and file.read() == bytes(1024)
    except OSError as error:
        raise ValueError(f"cannot read shard {str(path)!r}: {error.strerror}; is the path right?") from error
    if not whole:
        raise ValueError(
            f"shard {str(path)!r} does not end as a tar file does at byte {size}: fetch it again"
        )


def read_members(path: str | Path) -> dict[str, Parts]:
    """Return the offsets and sizes of each sample's files, by the sample's key. ValueError for a damaged tar.

    The key is a file's name up to its first dot.
    """
    samples: dict[str, Parts] = {}
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                stem, _, extension = name.name.lower().partition(".")
                if not (member.isreg() and stem and extension):  # folders, and what a Mac adds
                    continue
                parts = samples.setdefault(str(name)[: -len(extension) - 1], {})
                if extension in parts:
                    raise tarfile.TarError(f"{member.name} is there twice")
                parts[extension] = (member.offset_data, member.size)
            file.seek(tar.offset)  # tarfile takes a damaged header for the end
            if file.read(512) != bytes(512):
                raise tarfile.TarError(f"no header at byte {tar.offset}")
    except Exception as error:
        raise ValueError(f"shard {str(path)!r} is not a whole tar file: {error}; fetch it again") from error
    return samples


def read_shard(
    path: str | Path, captions_of_class: Sequence[tuple[str, ...]], first: int = 0
) -> tuple[list[Record], list[str]]:
    """Read a shard's records, in its order, and the keys of samples without image or caption.

    A sample's group is its class, or its number, counted from `first`. Classes without names are counted down from
    -1, so that they differ from the numbers of samples without class.
    """
    records, left_out = [], []
    with open(path, "rb") as file:
        for key, parts in read_members(path).items():
            name = f"{Path(path).name}/{key}"
            image = next((parts[extension] for extension in IMAGES if extension in parts), None)
            texts = {}
            for extension in {"txt", "json", "cls"} & parts.keys():
                file.seek(parts[extension][0])
                texts[extension] = file.read(parts[extension][1])
            captions, label = captions_of(texts, captions_of_class, f"{path}/{key}")
            if image is None or not captions:
                left_out.append(name)
                continue
            if label is None and captions_of_class:
                raise ValueError(
                    f"{path}/{key} has no .cls: give every sample a class, or remove {CLASSES} beside the shards"
                )
            group = first + len(records)
            if label is not None:
                group = label if captions_of_class else -1 - label
            records.append(Record(name, partial(open_member, str(path), *image, key), captions, group))
    return records, left_out


def captions_of(
    texts: dict[str, bytes], captions_of_class: Sequence[tuple[str, ...]], where: str
) -> tuple[tuple[str, ...], int | None]:
    """Parse a sample's .txt, .json and .cls: (captions, class or None). A ValueError begins with `where`."""
    try:
        label = int(texts["cls"]) if "cls" in texts else None
        lines = None
        if "txt" in texts:
            lines = texts["txt"].decode().splitlines()
        elif "json" in texts:
            row = json.loads(texts["json"])
            column = find_column(list(row), "", CAPTION_COLUMNS)
            lines = texts_of(row.get(column), f"column {column!r}")
    except Exception as error:
        raise ValueError(
            f"{where} has a damaged .txt, .json or .cls: {error}; fetch the shard again"
        ) from error
    if label is not None:
        if label < 0:
            raise ValueError(f"{where} has the class {label}: classes are numbered from 0, correct its .cls")
        if label >= len(captions_of_class) and (captions_of_class or lines is None):
            raise ValueError(
                f"{where} has the class {label}, {CLASSES} beside the shards names {len(captions_of_class)} classes"
            )
        if lines is None:
            lines = captions_of_class[label]
    return tuple(line.strip() for line in lines or () if line.strip()), label


def open_member(path: str, offset: int, size: int, key: str) -> Image.Image:
    """Decode the image at this place in a shard."""
    with open(path, "rb") as file:
        file.seek(offset)
        return decode_image(file.read(size), f"{path}/{key}")
