"""Parquet files that contain their images: a column of image files' bytes and a column of captions.

Data sets on hubs have this layout: a column `image` of {bytes, path}, files named train-00000-of-00002.
Only this module needs the package pyarrow.
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
from minclip.data.records import Record, decode_image, hold_out_dev
from minclip.data.sources import SPLITS, by_split, given_path, split_name, warn_of_empty, warn_of_repeats
from minclip.data.table import cell, pick_columns, texts_of
from minlm.training.bounds import within

Place = tuple[str, int, int, str]  # file, row group, row in it, column
OPEN_GROUPS = 4  # row groups kept in memory, so that threads that read in order share them


@dataclass(frozen=True, kw_only=True)
class ParquetConfig(DataConfig):
    """Images and captions in one or several Parquet files. Rows with the same image become one record.

    Each image is read with its whole row group: reading in order is fast, reading at random is not. Keep the
    decoded images in memory (cache_gib), or convert sets too large for it to tar shards (minclip/data/shards.py).

    path: a .parquet file, or a folder of them
    image_column: column of the images' bytes, alone or in a struct with `bytes` (empty: found by its name)
    caption_column: column of captions or of lists of them (empty: found by its name)
    dev_fraction: share of the images held out for `dev` if neither a column `split` nor file names give splits
    split_seed: draws these images
    """

    path: str = "data/pairs.parquet"
    image_column: str = ""
    caption_column: str = ""
    dev_fraction: Annotated[float, within("(0, 1)")] = 0.1
    split_seed: int = 0

    def read(self) -> dict[str, list[Record]]:
        """Read the splits of the column `split`, else of files named train-*, validation-*, test-*.

        "train" and "dev" are drawn by image if there are no splits, or only "train". All images are read once, to
        find equal ones; an image of two splits stays in the first. Rows without image or caption and repeated
        captions of an image are left out, with warnings. Raises ValueError if pyarrow or files are missing, no
        column fits, or a file is damaged.
        """
        found = self.gather(find_files(given_path(self.path, "Parquet file", "--data.path PATH")))
        records, split_of = [], {}
        for group, (place, captions, split) in enumerate(found.values()):
            records.append(Record(where(place), partial(open_row, *place), tuple(captions), group))
            split_of[where(place)] = split
        if set(split_of.values()) <= {"train", None}:
            return hold_out_dev(records, self.dev_fraction, self.split_seed)
        return by_split(records, split_of)

    def gather(self, files: list[Path]) -> dict[bytes, tuple[Place, dict[str, None], str | None]]:
        """Group rows by image: {its digest: (first place, distinct captions in order, split or None)}."""
        found: dict[bytes, tuple[Place, dict[str, None], str | None]] = {}
        rows = empty = moved = n_texts = 0
        for place, content, captions, split in self.rows(files):
            rows += 1
            if not content or not captions:
                empty += 1
                continue
            _, texts, first_split = found.setdefault(hashlib.sha256(content).digest(), (place, {}, split))
            texts.update(dict.fromkeys(captions))
            n_texts += len(captions)
            moved += split != first_split
        if not found:
            raise ValueError(f"none of the {rows} rows of {self.path!r} has both image and caption")
        warn_of_empty(empty, rows, self.path)
        if moved:
            warnings.warn(
                f"{moved} rows of {self.path} have an image of another split: moved there", stacklevel=3
            )
        warn_of_repeats(n_texts - sum(len(texts) for _, texts, _ in found.values()), self.path)
        return found

    def rows(self, files: list[Path]) -> Iterator[tuple[Place, bytes | None, list[str], str | None]]:
        """Yield (place, the image file's bytes, captions, split or None) of every row."""
        groups = [(path, group) for path in files for group in range(open_parquet(path).num_row_groups)]
        named = all(file_split(path) for path in files)
        for path, group in tqdm(groups, "reading images", unit="row group", leave=False):
            columns = open_parquet(path).schema_arrow.names
            image, caption, split_column = pick_columns(columns, self.image_column, self.caption_column, path)
            images, texts = read_column(path, group, image), read_column(path, group, caption)
            splits = read_column(path, group, split_column) if split_column else [None] * len(texts)
            for row, (content, value, spelling) in enumerate(zip(images, texts, splits, strict=True)):
                place = (str(path), group, row, image)
                captions = texts_of(value, f"{where(place)} column {caption!r}")
                split = file_split(path) if named else None
                if split_column:
                    split = split_name(
                        cell(spelling, f"{where(place)} column {split_column!r}"), where(place)
                    )
                yield place, image_bytes(content, place), captions, split


def find_files(path: Path) -> list[Path]:
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise ValueError(
            f"no .parquet file at {str(path)!r}: give a file or a folder of them (--data.path PATH)"
        )
    return files


def file_split(path: Path) -> str | None:
    """Return the split that a file's name begins with: "validation-00000-of-00003.parquet" -> "dev"."""
    word = path.stem.partition("-")[0].lower()
    return next((name for name, spellings in SPLITS.items() if word in spellings), None)


def open_parquet(path: str | Path) -> Any:
    """Open a pyarrow.parquet.ParquetFile; ValueError if the package is missing or the file damaged."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"reading {str(path)!r} needs the package pyarrow: pip install pyarrow") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except Exception as error:
        raise damaged(path, error) from error


def read_column(path: str | Path, group: int, column: str) -> list:
    """Read one column of one row group as Python values."""
    file = open_parquet(path)
    try:
        return file.read_row_group(group, columns=[column]).column(column).to_pylist()
    except Exception as error:
        raise damaged(path, error) from error


images_of_group = lru_cache(maxsize=OPEN_GROUPS)(read_column)


def open_row(path: str, group: int, row: int, column: str) -> Image.Image:
    """Decode the image in one row; a record stores only these arguments."""
    place = (path, group, row, column)
    return decode_image(image_bytes(images_of_group(path, group, column)[row], place) or b"", where(place))


def image_bytes(value: Any, place: Place) -> bytes | None:
    """Return the image file in a cell, bytes, {"bytes": bytes, ...} or None; ValueError for other values."""
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
