"""COCO captions (Chen et al. 2015), from the published annotation files of 2014 or 2017."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minclip.data.config import DataConfig
from minclip.data.records import Record
from minclip.data.sources import FileNames, by_split, file_records, given_path
from minlm.training.files import read_json


@dataclass(frozen=True, kw_only=True)
class CocoConfig(DataConfig):
    """COCO captions: 123,287 photographs with at least five captions each.

    root: folder with annotations/captions_train2017.json, captions_val2017.json and the folders train2017, val2017
    year: the year of the split into training and validation images, 2014 or 2017
    """

    root: str = "data/coco"
    year: Literal["2014", "2017"] = "2017"

    def read(self) -> dict[str, list[Record]]:
        """Read "train" and "dev" (the validation images); one of the two annotation files is enough.

        Captions of the test images were never published. Images without a caption or a file are left out, the latter
        with a warning. Raises ValueError if annotations or images are missing or not as published.
        """
        root = given_path(self.root, "folder of COCO", "--data.root DIR")
        captions: dict[str, list[str]] = {}
        split_of: dict[str, str] = {}
        for split, folder in (("train", f"train{self.year}"), ("dev", f"val{self.year}")):
            path = root / "annotations" / f"captions_{folder}.json"
            if path.is_file():
                found = {f"{folder}/{name}": texts for name, texts in read_captions(path).items()}
                captions |= found
                split_of |= dict.fromkeys(found, split)
        if not split_of:
            raise ValueError(
                f"no captions_train{self.year}.json and no captions_val{self.year}.json in "
                f"{str(root / 'annotations')!r}: give COCO's folder as root (--data.root DIR)"
            )
        remedy = (
            f"put the images into {str(root / f'train{self.year}')!r} and {str(root / f'val{self.year}')!r}"
        )
        return by_split(file_records(captions, FileNames(root), str(root / "annotations"), remedy), split_of)


def read_captions(path: Path) -> dict[str, list[str]]:
    """Read the captions of each image file, in the order of the annotations; empty ones are dropped."""
    content = read_json(path, "fetch it again")
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        pairs = [(item["image_id"], item["caption"].strip()) for item in content["annotations"]]
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} is not as published ({type(error).__name__}: {error}): it needs images with id and "
            "file_name, annotations with image_id and caption"
        ) from error
    captions: dict[str, list[str]] = {}
    for image, caption in pairs:
        if image not in names:
            raise ValueError(
                f"{str(path)!r} has a caption for image {image}, which it does not list: fetch it again"
            )
        if caption:
            captions.setdefault(names[image], []).append(caption)
    if not captions:
        raise ValueError(f"{str(path)!r} has no caption: fetch it again")
    return captions
