"""Parquet files with the images inside: a column of image files' bytes and a column of captions.

That is how data sets are shared on hubs: a column `image` of {bytes, path}, files named train-00000-of-00002.
Reading them needs the package pyarrow, and only this module does.
"""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from tqdm import tqdm

from minclip.data.config import DataConfig
from minclip.data.records import Record, decode_image, split_by_image
from minclip.data.sources import SPLITS, by_split, given_path, split_name, warn_of_repeats
from minclip.data.table import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    SPLIT_COLUMN,
    cell,
    check_single,
    find_column,
    pick_column,
    texts_of,
)
from minlm.training.bounds import within

Place = tuple[str, int, int, str]  # file, row group, row in it, column
OPEN_GROUPS = 4  # row groups whose images a process keeps: threads that read one after the other share them


@dataclass(frozen=True, kw_only=True)
class ParquetConfig(DataConfig):
    """Images and captions in one or several Parquet files. Rows with the very same image become one record.

    A picture is fetched with its whole row group, so reading in order is fast and reading at random is not: keep
    the decoded pictures in memory (cache_gib), or write sets too large for it as shards (minclip/data/shards.py).

    path: a .parquet file, or a folder of them
    image_column: column of the images' bytes, alone or in a struct with `bytes` (empty: found by its name)
    caption_column: column of captions or of lists of them (empty: found by its name)
    dev_fraction: share of the images held out for `dev` where neither a column `split` nor the files' names tell
    split_seed: draws these images
    """

    path: str = "data/pairs.parquet"
    image_column: str = ""
    caption_column: str = ""
    dev_fraction: Annotated[float, within("(0, 1)")] = 0.1
    split_seed: int = 0

    def read(self) -> dict[str, list[Record]]:
        """Records by split: of the column `split`, of files named train-*, validation-*, test-*, or drawn.

        Drawn too where all rows are for training. Goes through all images once, a row group at a time, to find
        those that are the same. Rows without image or caption and repeated captions of an image are left out, with
        warnings that count them.
        An image of two splits stays in the one that comes first. Raises ValueError where pyarrow or files are
        missing, no column fits, or a file is damaged.
        """
        found = self.gather(find_files(given_path(self.path, "Parquet file", "--data.path PATH")))
        records, split_of = [], {}
        for group, (place, captions, split) in enumerate(found.values()):
            records.append(Record(where(place), partial(open_row, *place), tuple(captions), group))
            split_of[where(place)] = split
        if set(split_of.values()) <= {"train", None}:
            fractions = {"train": 1 - self.dev_fraction, "dev": self.dev_fraction}
            return split_by_image(records, fractions, self.split_seed)
        return by_split(records, split_of)

    def gather(self, files: list[Path]) -> dict[bytes, tuple[Place, dict[str, None], str | None]]:
        """{digest of the image: (where it first stands, its different captions in order, its split if told)}."""
        found: dict[bytes, tuple[Place, dict[str, None], str | None]] = {}
        rows = empty = twice = n_texts = 0
        for place, content, captions, split in self.rows(files):
            rows += 1
            if not content or not captions:
                empty += 1
                continue
            _, texts, first_split = found.setdefault(hashlib.sha256(content).digest(), (place, {}, split))
            texts.update(dict.fromkeys(captions))
            n_texts += len(captions)
            twice += split != first_split
        if not found:
            raise ValueError(f"none of the {rows} rows of {self.path!r} has both image and caption")
        if empty:
            warnings.warn(
                f"left out {empty} of {rows} rows of {self.path}: no image or no caption", stacklevel=3
            )
        if twice:
            warnings.warn(
                f"{twice} rows of {self.path} have an image of another split: moved there", stacklevel=3
            )
        warn_of_repeats(n_texts - sum(len(texts) for _, texts, _ in found.values()), self.path)
        return found

    def rows(self, files: list[Path]) -> Iterator[tuple[Place, bytes | None, list[str], str | None]]:
        """(place, the image file's bytes, captions, split if told) of every row, one after the other."""
        groups = [(path, group) for path in files for group in range(open_parquet(path).num_row_groups)]
        named = all(file_split(path) for path in files)
        for path, group in tqdm(groups, "looking through images", unit="row group", leave=False):
            by_name = file_split(path) if named else None
            columns = open_parquet(path).schema_arrow.names
            image = pick_column(columns, self.image_column, IMAGE_COLUMNS, "image_column", path)
            caption = pick_column(columns, self.caption_column, CAPTION_COLUMNS, "caption_column", path)
            split = find_column(columns, "", (SPLIT_COLUMN,))
            check_single((image, caption, split), columns, path)
            images, texts = read_column(path, group, image), read_column(path, group, caption)
            splits = read_column(path, group, split) if split else [None] * len(texts)
            for row, (content, value, spelling) in enumerate(zip(images, texts, splits, strict=True)):
                place = (str(path), group, row, image)
                captions = texts_of(value, f"{where(place)} column {caption!r}")
                told = by_name
                if split:
                    told = split_name(cell(spelling, f"{where(place)} column {split!r}"), where(place))
                yield place, image_bytes(content, place), captions, told


def find_files(path: Path) -> list[Path]:
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise ValueError(
            f"no .parquet file at {str(path)!r}: give a file or a folder of them (--data.path PATH)"
        )
    return files


def file_split(path: Path) -> str | None:
    """The split that a file's name begins with: "validation-00000-of-00003.parquet" -> "dev"."""
    word = path.stem.partition("-")[0].lower()
    return next((name for name, spellings in SPLITS.items() if word in spellings), None)


def open_parquet(path: str | Path) -> Any:
    """A pyarrow.parquet.ParquetFile; ValueError where the package is missing or the file damaged."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"reading {str(path)!r} needs the package pyarrow: pip install pyarrow") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise damaged(path, error) from error


def read_column(path: str | Path, group: int, column: str) -> list:
    """One column of one row group as Python values."""
    file = open_parquet(path)
    from pyarrow import ArrowException

    try:
        return file.read_row_group(group, columns=[column]).column(column).to_pylist()
    except (OSError, ArrowException, UnicodeDecodeError) as error:
        raise damaged(path, error) from error


images_of_group = lru_cache(maxsize=OPEN_GROUPS)(read_column)


def open_row(path: str, group: int, row: int, column: str) -> Image.Image:
    """The picture in one row; what a record keeps is only its place."""
    place = (path, group, row, column)
    return decode_image(image_bytes(images_of_group(path, group, column)[row], place), where(place))


def image_bytes(value: Any, place: Place) -> bytes | None:
    """A cell's image file: bytes, {"bytes": bytes, ...}, or None; ValueError where it is neither."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is not None and not isinstance(content, bytes):
        raise ValueError(
            f"{where(place)} holds a {type(value).__name__} in column {place[3]!r}, not an image's bytes: "
            "name another column with --data.image_column, or read paths with a CSV table"
        )
    return content


def where(place: Place) -> str:
    path, group, row, _ = place
    return f"{path}:{group:04}:{row:06}"


def damaged(path: str | Path, error: Exception) -> ValueError:
    return ValueError(
        f"{str(path)!r} is not a whole Parquet file: {' '.join(str(error).split())}; fetch it again"
    )
