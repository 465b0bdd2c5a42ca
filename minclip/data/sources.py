"""Shared by the readers: names of splits, classes and image files, records of files, texts, JSON."""

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from minclip.data.records import Record, open_image, warn_of_missing

SPLITS = {  # ours, and how published files spell them
    "train": ("train", "training", "restval"),  # restval: more training images in Karpathy's files
    "dev": ("dev", "val", "valid", "validation"),
    "test": ("test", "testing"),
}


def split_name(spelling: str, where: str) -> str:
    """The split that a published file means by this word: "val" -> "dev". ValueError beginning with `where`."""
    for name, spellings in SPLITS.items():
        if spelling.lower() in spellings:
            return name
    raise ValueError(f"{where} has the split {spelling!r}: use {', '.join(SPLITS)}")


def by_split(records: Sequence[Record], split_of: Mapping[str, str]) -> dict[str, list[Record]]:
    """Records under the split that their image id has; a split without records is left out."""
    splits = {name: [record for record in records if split_of[record.image_id] == name] for name in SPLITS}
    return {name: members for name, members in splits.items() if members}


def given_path(path: str, what: str, option: str) -> Path:
    """The path that an option holds; ValueError naming the option where it is empty."""
    if not path:
        raise ValueError(f"no {what} is given: give it with {option}")
    return Path(path)


class FileNames(dict[str, str]):
    """Image names as a data set spells them -> names of the files in `folder`, each looked up once.

    Case, Unicode form and backslashes may differ where a single file fits. Other names map to themselves.

    respelled: the names that differ from their files'
    missing: names without a file, and the cause
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
        """The path itself if it exists, else all that differ from it in case or Unicode form only."""
        if os.path.exists(path) or path == self.folder:
            return [path]
        return [
            entry
            for folder in self.fitting(path.parent)
            for entry in self.listing(folder).get(plain(path.name), [])
        ]

    def listing(self, folder: Path) -> dict[str, list[Path]]:
        """The folder's entries by their plain names; nothing where it is no folder."""
        if folder not in self.listings:
            entries = self.listings[folder] = {}
            for entry in folder.iterdir() if folder.is_dir() else []:
                entries.setdefault(plain(entry.name), []).append(entry)
        return self.listings[folder]


def plain(name: str) -> str:
    """A name without its case and Unicode form."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def file_records(
    captions: Mapping[str, Sequence[str]], names: FileNames, source: str, remedy: str
) -> list[Record]:
    """A record for each image name that has a file; groups are numbered in the order of the names.

    Names without a file are left out, with a warning per cause that counts them; another one counts those that
    their files spell otherwise. ValueError ending with `remedy` when all are left out, and when there is no
    name: `source` is where they are from.
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


def warn_of_repeats(count: int, source: str | Path) -> None:
    """Warn in one line of captions that a reader leaves out since the image has the same one already."""
    if count:
        warnings.warn(
            f"left out {count} repeated captions of {source}: a text counts once per image", stacklevel=4
        )


def distinct_names(names: Sequence[str], path: Path) -> tuple[str, ...]:
    """The names of classes that a file gives; ValueError where two are equal or one is empty."""
    for name, count in Counter(names).items():
        if count > 1 or not name.strip():
            raise ValueError(f"{str(path)!r} names {count} classes {name!r}: give each a name of its own")
    return tuple(names)
