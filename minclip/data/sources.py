"""What the readers of published data share: names of splits and classes, records of files, texts, JSON."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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


def file_records(
    captions: Mapping[str, Sequence[str]], folder: Path, source: str, remedy: str
) -> list[Record]:
    """A record for each image name that is a file in `folder`; groups are numbered in the order of the names.

    Names without a file are left out, with a warning that counts them; ValueError ending with `remedy` when
    all are, and when there is no name: `source` is where they are from.
    """
    if not captions:
        raise ValueError(f"no image with a caption in {source!r}: is it the right one, and whole?")
    names = sorted(captions)
    missing = {name for name in names if not (folder / name).is_file()}
    if len(missing) == len(names):
        raise ValueError(
            f"none of the {len(names)} images with captions has a file; the first was looked for at "
            f"{str(folder / names[0])!r}: {remedy}"
        )
    warn_of_missing(missing, "images with captions", f"not in {folder}")
    return [
        Record(name, partial(open_image, str(folder / name)), tuple(captions[name]), group)
        for group, name in enumerate(names)
        if name not in missing
    ]


def distinct_names(names: Sequence[str], path: Path) -> tuple[str, ...]:
    """The names of classes that a file gives; ValueError where two are equal or one is empty."""
    for name, count in Counter(names).items():
        if count > 1 or not name.strip():
            raise ValueError(f"{str(path)!r} names {count} classes {name!r}: give each a name of its own")
    return tuple(names)


def read_text(path: Path) -> str:
    """A text without its byte-order mark; ValueError in one line when it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror}; is the path right?") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text ({error.reason}): save it as UTF-8") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError in one line when it is missing or not JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}; fetch it again") from error
