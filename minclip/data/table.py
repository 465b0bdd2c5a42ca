"""Any CSV, TSV or JSONL file of image and caption columns; separator and columns are found by their names."""

import csv
import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from PIL import Image

from minclip.data.config import DataConfig
from minclip.data.records import Record, split_by_image
from minclip.data.sources import FileNames, by_split, file_records, given_path, split_name, warn_of_repeats
from minlm.training.bounds import within

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
    """Your own images: a table with a row for each caption, or for each image.

    path: CSV, TSV or JSONL file; the first line of a CSV or TSV names the columns
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
        """Records by split: those that the column `split` names, else "train" and "dev" drawn by image.

        All rows of one image become one record, in which a repeated caption counts once. Rows without image or
        caption, repeated captions and images without a file are left out, with warnings that count them. Raises
        ValueError naming the columns found where none fits, the line of a row that does not, and the file looked
        for where no image is found.
        """
        path = given_path(self.path, "table of images and captions", "--data.path FILE")
        names = FileNames(Path(self.image_root) if self.image_root else path.parent)
        if not path.is_file():
            raise ValueError(
                f"{self.path!r} is not a file: give the table of images and captions (--data.path FILE)"
            )
        try:
            columns, rows = read_jsonl(path) if is_jsonl(path) else read_csv(path, self)
            image = pick_column(columns, self.image_column, IMAGE_COLUMNS, "image_column", path)
            caption = pick_column(columns, self.caption_column, CAPTION_COLUMNS, "caption_column", path)
            split = find_column(columns, "", (SPLIT_COLUMN,))
            check_single((image, caption, split), columns, path)
            captions, split_of = group_rows(rows, image, caption, split, path, names)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path!r} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
        except csv.Error as error:
            raise ValueError(f"{self.path!r} line 1: {error}; let it name the columns") from error
        remedy = "give the folder they are relative to with --data.image_root DIR"
        records = file_records(captions, names, self.path, remedy)
        if not split:
            fractions = {"train": 1 - self.dev_fraction, "dev": self.dev_fraction}
            return split_by_image(records, fractions, self.split_seed)
        return by_split(records, split_of)


def is_jsonl(path: Path) -> bool:
    """By its first character, not by its suffix: `{` opens an object."""
    with path.open(encoding="utf-8-sig") as file:
        return file.read(1024).lstrip().startswith("{")


def read_jsonl(path: Path) -> tuple[list[str], list[Row]]:
    """The first object's keys, and each object with its line number."""
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"a {type(row).__name__}")
                    rows.append((number, row))
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{str(path)!r} line {number} is no JSON object: {error}") from error
    return list(rows[0][1]), rows


def read_csv(path: Path, config: TableConfig) -> tuple[list[str], list[Row]]:
    """Column names, and each row below them with its line number.

    The separator is the one under which the first line has an image and a caption column; when there is none,
    the one that gives most columns, for the error to show.
    """

    def header(separator: str) -> list[str]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [name.strip() for name in next(csv.reader(file, delimiter=separator), [])]

    def fit(separator: str) -> tuple[bool, int]:
        columns = header(separator)
        image = find_column(columns, config.image_column, IMAGE_COLUMNS)
        return bool(image and find_column(columns, config.caption_column, CAPTION_COLUMNS)), len(columns)

    separator = max(SEPARATORS, key=fit)
    columns, rows = header(separator), []
    if not find_column(columns, "", IMAGE_COLUMNS):
        check_header({separator: header(separator) for separator in SEPARATORS}, path)
    with path.open(encoding="utf-8-sig", newline="") as file:
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
    """ValueError where the first line names an image file: it is a row. fields: by separator."""
    endings = tuple(Image.registered_extensions())
    images = [(n, s) for s, names in fields.items() for n in names if n.lower().endswith(endings)]
    if images:
        name, separator = min(images, key=lambda image: len(image[0]))  # the one that splits off the most
        raise ValueError(
            f"{str(path)!r} begins with the image {name!r}, not with column names: add a first line such as "
            f"{separator.join(('image', 'caption'))!r}"
        )


def find_column(columns: list[str], wanted: str, names: tuple[str, ...]) -> str | None:
    """The column asked for, else the first of the usual names, in any case, that is there."""
    if wanted:
        return wanted if wanted in columns else None
    lowered = {column.lower(): column for column in columns}
    return next((lowered[name] for name in names if name in lowered), None)


def pick_column(columns: list[str], wanted: str, names: tuple[str, ...], option: str, path: Path) -> str:
    column = find_column(columns, wanted, names)
    if column is None:
        looked = repr(wanted) if wanted else f"any of {', '.join(names)}"
        raise ValueError(
            f"{str(path)!r} has the columns {', '.join(map(repr, columns)) or '(none)'}, not {looked}: "
            f"name one of them with --data.{option}"
        )
    return column


def check_single(used: Iterable[str | None], columns: list[str], path: Path) -> None:
    """ValueError where a column that is used stands in the table twice."""
    for column in used:
        if columns.count(column) > 1:
            raise ValueError(
                f"{str(path)!r} has {columns.count(column)} columns {column!r}: rename all but one"
            )


def group_rows(
    rows: list[Row], image: str, caption: str, split: str | None, path: Path, names: FileNames
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Rows -> captions by image file, and split by image file where there is such a column."""
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
    if empty:
        warnings.warn(f"left out {empty} of {len(rows)} rows of {path}: no image or no caption", stacklevel=3)
    warn_of_repeats(n_texts - sum(map(len, captions.values())), path)
    return {name: list(texts) for name, texts in captions.items()}, split_of


def texts_of(value: object, where: str) -> list[str]:
    """The texts in a cell that holds one or a list of them, without empty ones."""
    texts = [cell(item, where) for item in (value if isinstance(value, list) else [value])]
    return list(filter(None, texts))


def cell(value: object, where: str) -> str:
    """A text, bytes in UTF-8 or a number as text, None as ""; ValueError beginning with `where` for others."""
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            value = value.decode()
    if value is None or isinstance(value, str):
        return (value or "").strip()
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return str(value)
    raise ValueError(
        f"{where} holds {repr(value)[:40]}, which is no text: write this column as text in UTF-8"
    )
