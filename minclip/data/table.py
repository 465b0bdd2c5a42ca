"""CSV, TSV and JSONL files with columns of images and captions; separator and columns are found by name."""

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from PIL import Image

from minclip.data.config import DataConfig
from minclip.data.records import Record, hold_out_dev
from minclip.data.sources import (
    FileNames,
    by_split,
    file_records,
    given_path,
    split_name,
    warn_of_empty,
    warn_of_repeats,
)
from minlm.training.bounds import within
from minlm.training.files import read_text

SEPARATORS = (",", "\t", ";", "|")
IMAGE_COLUMNS = (
    *("image", "image_path", "image_file", "image_name", "filepath", "file_path", "filename", "file_name"),
    *("file", "path", "img", "img_path"),
)
CAPTION_COLUMNS = ("caption", "captions", "text", "text_en", "sentence", "description", "comment", "title")
SPLIT_COLUMN = "split"
Row = tuple[int, dict]  # line number; column -> value


@dataclass(frozen=True, kw_only=True)
class TableConfig(DataConfig):
    """Your own images: a table with one row per caption, or per image.

    path: CSV, TSV or JSONL file; the first line of CSV and TSV files names the columns
    image_column: column of image files (empty: found by its name)
    caption_column: column of captions; in JSONL it may hold lists of them (empty: found by its name)
    image_root: folder that image files are relative to (empty: the table's own)
    split_seed: draws the split by image when the table has no column `split`
    dev_fraction: share of the images held out for `dev` when the table has no column `split`
    """

    path: str = "data/captions.csv"
    image_column: str = ""
    caption_column: str = ""
    image_root: str = ""
    split_seed: int = 0
    dev_fraction: Annotated[float, within("(0, 1)")] = 0.1

    def read(self) -> dict[str, list[Record]]:
        """Read the splits of the column `split`; without it, draw "train" and "dev" by image.

        All rows of one image become one record. Rows without image or caption, repeated captions of an image and
        images without a file are left out, with warnings. Raises ValueError if no column fits, a row is damaged, or
        no image is found.
        """
        path = given_path(self.path, "table of images and captions", "--data.path FILE")
        names = FileNames(Path(self.image_root) if self.image_root else path.parent)
        if not path.is_file():
            raise ValueError(
                f"{self.path!r} is not a file: give the table of images and captions (--data.path FILE)"
            )
        text = read_text(path, newline="")  # captions may contain line ends
        is_jsonl = text.lstrip().startswith("{")  # not by the suffix
        columns, rows = read_jsonl(path, text) if is_jsonl else read_csv(path, text, self)
        image, caption, split = pick_columns(columns, self.image_column, self.caption_column, path)
        captions, split_of = group_rows(rows, image, caption, split, path, names)
        remedy = "give the folder they are relative to with --data.image_root DIR"
        records = file_records(captions, names, self.path, remedy)
        if split:
            return by_split(records, split_of)
        return hold_out_dev(records, self.dev_fraction, self.split_seed)


def read_jsonl(path: Path, text: str) -> tuple[list[str], list[Row]]:
    """Return the first object's keys, and each object with its line number."""
    rows = []
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"a {type(row).__name__}")
            except Exception as error:
                raise ValueError(f"{str(path)!r} line {number} is not a JSON object: {error}") from error
            rows.append((number, row))
    return list(rows[0][1]), rows


def read_csv(path: Path, text: str, config: TableConfig) -> tuple[list[str], list[Row]]:
    """Return the column names, and each row below them with its line number.

    The separator is the one that gives the first line an image and a caption column, else most columns.
    """
    file = io.StringIO(text, newline="")

    def header(separator: str) -> list[str]:
        file.seek(0)
        return [name.strip() for name in next(csv.reader(file, delimiter=separator), [])]

    def fit(separator: str) -> tuple[bool, int]:
        columns = headers[separator]
        image = find_column(columns, config.image_column, IMAGE_COLUMNS)
        return bool(image and find_column(columns, config.caption_column, CAPTION_COLUMNS)), len(columns)

    try:
        headers = {separator: header(separator) for separator in SEPARATORS}
    except csv.Error as error:
        raise ValueError(f"{str(path)!r} line 1: {error}; let it name the columns") from error
    separator = max(SEPARATORS, key=fit)
    columns, rows = headers[separator], []
    if not find_column(columns, "", IMAGE_COLUMNS):
        check_header(headers, path)
    file.seek(0)
    reader = csv.reader(file, delimiter=separator, strict=True)
    try:
        next(reader, None)  # the header
        for row in reader:
            if len(row) > len(columns):
                raise ValueError(
                    f"{str(path)!r} line {reader.line_num} has {len(row)} fields for {len(columns)} "
                    f"columns: put captions that contain {separator!r} in quotes"
                )
            if row:
                rows.append((reader.line_num, dict(zip(columns, row, strict=False))))
    except csv.Error as error:
        remedy = "put captions that contain quotes in quotes, and double theirs"
        if "limit" in str(error):
            remedy = "shorten this caption, or close the quotes before it"
        raise ValueError(f"{str(path)!r} line {reader.line_num}: {error}; {remedy}") from error
    return columns, rows


def check_header(fields: Mapping[str, list[str]], path: Path) -> None:
    """Raise ValueError if the first line has an image file, and so is a row; fields: that line, by separator."""
    endings = tuple(Image.registered_extensions())
    images = [(n, s) for s, names in fields.items() for n in names if n.lower().endswith(endings)]
    if images:
        name, separator = min(images, key=lambda image: len(image[0]))  # the separator that splits off most
        raise ValueError(
            f"{str(path)!r} begins with the image {name!r}, not with column names: add a first line such as "
            f"{separator.join(('image', 'caption'))!r}"
        )


def find_column(columns: list[str], wanted: str, names: tuple[str, ...]) -> str | None:
    """Return the wanted column if it exists; without a wish, the first of the usual names, in any case."""
    if wanted:
        return wanted if wanted in columns else None
    lowered = {column.lower(): column for column in columns}
    return next((lowered[name] for name in names if name in lowered), None)


def pick_columns(columns: list[str], image: str, caption: str, path: Path) -> tuple[str, str, str | None]:
    """Return the columns of images, captions and splits (or None); ValueError if one is missing or repeated.

    image, caption: names wanted, or "" for any of the usual ones.
    """

    def pick(wanted: str, names: tuple[str, ...], option: str) -> str:
        column = find_column(columns, wanted, names)
        if column is None:
            expected = repr(wanted) if wanted else f"any of {', '.join(names)}"
            raise ValueError(
                f"{str(path)!r} has the columns {', '.join(map(repr, columns)) or '(none)'}, not {expected}: "
                f"name one of them with --data.{option}"
            )
        return column

    images = pick(image, IMAGE_COLUMNS, "image_column")
    captions = pick(caption, CAPTION_COLUMNS, "caption_column")
    split = find_column(columns, "", (SPLIT_COLUMN,))
    for column in (images, captions, split or ""):
        count = columns.count(column)
        if column and count > 1:
            raise ValueError(f"{str(path)!r} has {count} columns {column!r}: rename all but one")
    return images, captions, split


def group_rows(
    rows: list[Row], image: str, caption: str, split: str | None, path: Path, names: FileNames
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Group rows by image file: return its captions, and its split if there is such a column."""
    captions: dict[str, dict[str, None]] = {}  # in order, each once
    split_of: dict[str, str] = {}
    empty = n_texts = 0
    for number, row in rows:
        here = f"{str(path)!r} line {number}"
        name = cell(row.get(image), f"{here} column {image!r}")
        texts = texts_of(row.get(caption), f"{here} column {caption!r}")
        if not name or not texts:
            empty += 1
            continue
        name = names[os.path.normpath(name)]  # ./a.jpg and a.jpg are one image
        captions.setdefault(name, {}).update(dict.fromkeys(texts))
        n_texts += len(texts)
        if split:
            found = split_name(cell(row.get(split), f"{here} column {split!r}"), here)
            if split_of.setdefault(name, found) != found:
                raise ValueError(
                    f"{here} puts image {name!r} in {found}, a line above in "
                    f"{split_of[name]}: an image belongs to one split"
                )
    warn_of_empty(empty, len(rows), path)
    warn_of_repeats(n_texts - sum(map(len, captions.values())), path)
    return {name: list(texts) for name, texts in captions.items()}, split_of


def texts_of(value: object, where: str) -> list[str]:
    """Return the texts of a cell, which has one or a list of them, without empty ones."""
    texts = [cell(item, where) for item in (value if isinstance(value, list) else [value])]
    return list(filter(None, texts))


def cell(value: object, where: str) -> str:
    """Convert text, UTF-8 bytes, a number or None to text. ValueError, beginning with `where`, for other values."""
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            value = value.decode()
    if value is None or isinstance(value, str):
        return (value or "").strip()
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return str(value)
    raise ValueError(
        f"{where} holds {repr(value)[:40]}, which is not text: write this column as text in UTF-8"
    )
