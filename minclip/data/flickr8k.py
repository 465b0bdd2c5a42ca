"""Flickr8k (Hodosh et al. 2013) as published by its authors or by Kaggle, with the same records from both."""

import csv
import io
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from minclip.data.config import DataConfig
from minclip.data.records import Record, split_by_image, warn_of_missing
from minclip.data.sources import FileNames, file_records, given_path
from minlm.training.files import read_text

TEXT_FOLDERS = (".", "Flickr8k_text")
IMAGE_FOLDERS = ("Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset")
LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "dev": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
FRACTIONS = {"train": 0.75, "dev": 0.125, "test": 0.125}  # 6,000, 1,000 and 1,000 of 8,000, as published
NEVER_PUBLISHED = "2258277193_586949ec62.jpg"  # has captions in Flickr8k.token.txt, but no image
# (path, its lines) -> (image name, caption) per row
Rows = Callable[[Path, Iterable[str]], Iterator[tuple[str, str]]]


@dataclass(frozen=True, kw_only=True)
class Flickr8kConfig(DataConfig):
    """Flickr8k: photographs of people and dogs with five captions each.

    root: folder with captions.txt or Flickr8k.token.txt, the images, and the published split lists if any
    split_seed: draws the split by image when the folder has none of the published lists
    """

    root: str = "data/flickr8k"
    split_seed: int = 0

    def read(self) -> dict[str, list[Record]]:
        """Read the splits whose published lists exist; without any, draw "train", "dev" and "test".

        Images in no list are in no split. Images without a file are left out, with a warning. Raises ValueError if
        folder, captions or images are missing, or two lists overlap.
        """
        root = given_path(self.root, "folder of Flickr8k", "--data.root DIR")
        records = read_flickr("Flickr8k", root, CAPTION_FILES, TEXT_FOLDERS, IMAGE_FOLDERS)
        lists = {
            split: read_text(root / folder / name).split()
            for split, name in LISTS.items()
            for folder in TEXT_FOLDERS
            if (root / folder / name).is_file()
        }
        if not lists:
            return split_by_image(list(records.values()), FRACTIONS, self.split_seed)
        return published_splits(records, lists, LISTS)


def read_flickr(
    data: str,
    root: Path,
    caption_files: Mapping[str, Rows],
    text_folders: Sequence[str],
    image_folders: Sequence[str],
) -> dict[str, Record]:
    """Read the records, by image name, from the first caption file found and the folder of images.

    data: the data set's name, for messages. caption_files: file name -> function that yields its rows.
    """
    if not root.is_dir():
        raise ValueError(f"no folder {str(root)!r}: give {data}'s folder as root (--data.root DIR)")
    found = [
        (root / folder / file, rows_of)
        for folder in text_folders
        for file, rows_of in caption_files.items()
        if (root / folder / file).is_file()
    ]
    if not found:
        raise ValueError(f"no {' and no '.join(caption_files)} in {str(root)!r}: is it {data}'s folder?")
    captions = read_captions(*found[0])
    images, files = find_images(root, image_folders, captions)
    if NEVER_PUBLISHED not in files:
        captions.pop(NEVER_PUBLISHED, None)
    records = file_records(captions, FileNames(images), str(root), f"put {data}'s images there")
    return {record.image_id: record for record in records}


def read_captions(path: Path, rows_of: Rows) -> dict[str, list[str]]:
    """Read the captions of each image name; folders before names and empty captions are dropped."""
    captions: dict[str, list[str]] = {}
    try:
        for name, caption in rows_of(path, io.StringIO(read_text(path, newline=""), newline="")):
            if caption.strip():
                captions.setdefault(PureWindowsPath(name.strip()).name, []).append(caption.strip())
    except csv.Error as error:
        raise ValueError(f"{str(path)!r} is not as published: {error}; fetch it again") from error
    if not captions:
        raise ValueError(f"{str(path)!r} has no caption: fetch it again")
    return captions


def kaggle_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the rows of `image,caption` below a header; captions with commas are quoted."""
    rows = csv.reader(file, strict=True)
    header = next(rows, [])
    if header != ["image", "caption"]:
        raise ValueError(f"{str(path)!r} has the columns {header}, not image, caption: fetch it again")
    for row in filter(None, rows):
        if len(row) != 2:
            raise ValueError(
                f"{str(path)!r} line {rows.line_num} has {len(row)} columns, not 2: fetch it again"
            )
        yield row[0], row[1]


def token_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the rows of `name.jpg#number <tab> caption`; one image is spelled `.jpg.1` throughout."""
    for number, line in enumerate(file, 1):
        name, tab, caption = line.partition("\t")
        if tab:
            yield name.partition("#")[0].removesuffix(".1"), caption
        elif line.strip():
            raise ValueError(f"{str(path)!r} line {number} has no tab after the image: fetch it again")


CAPTION_FILES = {"captions.txt": kaggle_rows, "Flickr8k.token.txt": token_rows}  # Kaggle's, the authors'


def find_images(root: Path, folders: Sequence[str], wanted: Collection[str]) -> tuple[Path, set[str]]:
    """Return the folder with most of the wanted images, and the names of its files."""
    found = {
        root / name: {file.name for file in (root / name).iterdir() if file.is_file()}
        for name in folders
        if (root / name).is_dir()
    }
    if not found:
        raise ValueError(f"no folder of images in {str(root)!r}: looked for {', '.join(folders)}")
    return max(found.items(), key=lambda item: len(item[1].intersection(wanted)))


def published_splits(
    records: Mapping[str, Record], lists: Mapping[str, list[str]], sources: Mapping[str, str]
) -> dict[str, list[Record]]:
    """Select each split's records by its list of image names, in the list's order.

    sources: the lists' names, for messages. ValueError if an image is in two lists, or none is in any.
    """
    splits, owner = {}, {}
    for split, listed in lists.items():
        names = dict.fromkeys(listed)  # in order, once each
        for name in names:
            if name in owner:
                raise ValueError(
                    f"image {name!r} is in {sources[owner[name]]} and in {sources[split]}: remove one"
                )
            owner[name] = split
        present = [records[name] for name in names if name in records]
        if present:
            splits[split] = present
            warn_of_missing(
                names.keys() - records.keys(), f"images of {sources[split]}", "without file or caption"
            )
        else:
            warnings.warn(
                f"split {split!r} is left out: none of its {len(names)} images is there", stacklevel=4
            )
    if not splits:
        raise ValueError(
            f"no image is in any of {', '.join(sources[split] for split in lists)}: is one cut short?"
        )
    return splits
