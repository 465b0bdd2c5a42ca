"""Flickr30k (Young et al. 2014) as published by its authors or by Kaggle, with the same records from both."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from minclip.data.config import DataConfig
from minclip.data.flickr8k import published_splits, read_flickr, token_rows
from minclip.data.karpathy import read_split_lists
from minclip.data.records import Record, split_by_image
from minclip.data.sources import given_path

TEXT_FOLDERS = (".", "flickr30k_images", "flickr30k")
IMAGE_FOLDERS = (
    *("flickr30k-images", "flickr30k_images", "flickr30k_images/flickr30k_images"),
    *("flickr30k/flickr30k-images", "Images", "images"),
)
KARPATHY = "dataset_flickr30k.json"
FRACTIONS = {"train": 0.936, "dev": 0.032, "test": 0.032}  # nearly 1,000 of 31,783 each, as in Karpathy's
HEADER = ["image_name", "comment_number", "comment"]
ROW = re.compile(r"(?P<name>[^|]+)\|\s*\d+\s*\|?(?P<caption>.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Flickr30kConfig(DataConfig):
    """Flickr30k: 31,783 photographs of people in everyday life with five captions each.

    root: folder with results.csv or results_20130124.token, the images, and Karpathy's dataset_flickr30k.json if any
    split_seed: draws the split by image when the folder has no dataset_flickr30k.json
    """

    root: str = "data/flickr30k"
    split_seed: int = 0

    def read(self) -> dict[str, list[Record]]:
        """Read Karpathy's splits if his file is there, else draw "train", "dev" and "test" at random.

        Images in none of his splits are left out. So are images without a file, with a warning. Raises ValueError
        if folder, captions or images are missing.
        """
        root = given_path(self.root, "folder of Flickr30k", "--data.root DIR")
        records = read_flickr("Flickr30k", root, CAPTION_FILES, TEXT_FOLDERS, IMAGE_FOLDERS)
        if not (root / KARPATHY).is_file():
            return split_by_image(list(records.values()), FRACTIONS, self.split_seed)
        lists = read_split_lists(root / KARPATHY)
        return published_splits(records, lists, {split: f"{KARPATHY} ({split})" for split in lists})


def bar_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the rows of `name.jpg| number| caption` below a header; one published row lacks its second bar.

    Nothing is quoted: captions may contain bars and quotes.
    """
    lines = iter(file)
    header = [name.strip() for name in next(lines, "").split("|")]
    if header != HEADER:
        raise ValueError(f"{str(path)!r} has the columns {header}, not {HEADER}: fetch it again")
    for number, line in enumerate(lines, 2):
        row = ROW.fullmatch(line)
        if row:
            yield row["name"], row["caption"]
        elif line.strip():
            raise ValueError(f"{str(path)!r} line {number} is not `image| number| caption`: fetch it again")


CAPTION_FILES = {"results.csv": bar_rows, "results_20130124.token": token_rows}
