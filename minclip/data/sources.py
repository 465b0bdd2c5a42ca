"""Shared by the readers of files: names of splits, classes and image files; records of image files."""

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from minclip.data.records import Record, open_image, warn_of_missing

SPLITS = {  # our names -> spellings in published files
    "train": ("train", "training", "restval"),  # restval: more training images in Karpathy's files
    "dev": ("dev", "val", "valid", "validation"),
    "test": ("test", "testing"),
}


def split_name(spelling: str, where: str) -> str:
    """Return our name of a published split: "val" -> "dev". ValueError, beginning with `where`, for other words."""
    for name, spellings in SPLITS.items():
        if spelling.lower() in spellings:
            return name
    raise ValueError(f"{where} has the split {spelling!r}: use {', '.join(SPLITS)}")


def by_split(records: Sequence[Record], split_of: Mapping[str, str]) -> dict[str, list[Record]]:
    """Group records by the split of their image id; a split without records is left out."""
    splits = {name: [record for record in records if split_of[record.image_id] == name] for name in SPLITS}
    return {name: members for name, members in splits.items() if members}


def given_path(path: str, what: str, option: str) -> Path:
    """Return an option's path; ValueError naming the option if it is empty."""
    if not path:
        raise ValueError(f"no {what} is given: give it with {option}")
    return Path(path)


class FileNames(dict[str, str]):
    """Map from image names, as a data set spells them, to names of files in `folder`.

    Each name is looked up once. Case, Unicode form and backslashes may differ if exactly one file fits. Names without
    a file map to themselves.

    respelled: names that differ from their files', with the files' names
    missing: names without a file, with the cause
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        self.respelled: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.listings: dict[Path, dict[str, list[Path]]] = {}

    def __missing__(self, name: str) -> str:
        self[name] = name
        if not os.path.isfile(self.folder / name):
            fitting = [path for path in self.fitting(self.folder / name.replace("\\", "/")) if path.is_file()]
            if len(fitting) == 1:
                found = os.path.relpath(fitting[0], self.folder)
                self[name] = self.respelled[name] = str(fitting[0]) if os.path.isabs(name) else found
            else:
                cause = "spelled like several files in" if fitting else "not in"
                self.missing[name] = f"{cause} {self.folder}"
        return self[name]

    def fitting(self, path: Path) -> list[Path]:
        """Return the path if it exists, else all paths that differ from it only in case or Unicode form."""
        if os.path.exists(path) or path == self.folder:
            return [path]
        return [
            entry
            for folder in self.fitting(path.parent)
            for entry in self.listing(folder).get(plain(path.name), [])
        ]

    def listing(self, folder: Path) -> dict[str, list[Path]]:
        """Return the folder's entries by their plain names; none if it is not a folder."""
        if folder not in self.listings:
            entries = self.listings[folder] = {}
            for entry in folder.iterdir() if folder.is_dir() else []:
                entries.setdefault(plain(entry.name), []).append(entry)
        return self.listings[folder]


def plain(name: str) -> str:
    """Return a name without its case and Unicode form."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def file_records(
    captions: Mapping[str, Sequence[str]], names: FileNames, source: str, remedy: str
) -> list[Record]:
    """Make a record for each image name that has a file; groups are numbered in the order of the names.

    Warns of names without a file, which are left out, and of names that their files spell otherwise. Raises
    ValueError if `captions`, which are from `source`, are empty, or, ending with `remedy`, if no name has a file.
    """
    if not captions:
        raise ValueError(f"no image with a caption in {source!r}: is it the right one, and whole?")
    files = {name: str(names.folder / names[name]) for name in sorted(captions)}
    if not files.keys() - names.missing:
        raise ValueError(
            f"none of the {len(files)} images with captions has a file; the first was looked for at "
            f"{next(iter(files.values()))!r}: {remedy}"
        )
    for cause in sorted(set(names.missing.values())):
        left_out = [name for name, why in names.missing.items() if why == cause]
        warn_of_missing(left_out, "images with captions", cause)
    if names.respelled:
        first = min(names.respelled)
        warnings.warn(
            f"read {len(names.respelled)} images by names that differ from their files in {names.folder} in case, "
            f"Unicode form or backslashes; the first is {first!r}, its file {names.respelled[first]!r}",
            stacklevel=3,
        )
    return [
        Record(name, partial(open_image, file), tuple(captions[name]), group)
        for group, (name, file) in enumerate(files.items())
        if name not in names.missing
    ]


def warn_of_empty(empty: int, total: int, source: str | Path) -> None:
    """Warn of rows left out because they have no image or no caption."""
    if empty:
        warnings.warn(f"left out {empty} of {total} rows of {source}: no image or no caption", stacklevel=4)


def warn_of_repeats(count: int, source: str | Path) -> None:
    """Warn of captions left out because they repeat one of the same image."""
    if count:
        warnings.warn(
            f"left out {count} repeated captions of {source}: a text counts once per image", stacklevel=4
        )


def distinct_names(names: Sequence[str], path: Path) -> tuple[str, ...]:
    """Return class names read from a file; ValueError if two are equal or one is empty."""
    for name, count in Counter(names).items():
        if count > 1 or not name.strip():
            raise ValueError(f"{str(path)!r} names {count} classes {name!r}: give each a name of its own")
    return tuple(names)
