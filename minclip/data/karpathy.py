"""Karpathy's splits (Karpathy and Fei-Fei 2015): one JSON file per data set, for Flickr8k, Flickr30k and COCO."""

from dataclasses import dataclass
from pathlib import Path

from minclip.data.config import DataConfig
from minclip.data.records import Record
from minclip.data.sources import FileNames, by_split, file_records, given_path, split_name
from minlm.training.files import read_json


@dataclass(frozen=True, kw_only=True)
class KarpathyConfig(DataConfig):
    """Images and captions of a dataset_flickr8k.json, dataset_flickr30k.json or dataset_coco.json.

    path: the JSON file
    image_root: folder of the images, or for COCO of the folders train2014 and val2014 (empty: the file's own)
    """

    path: str = "data/flickr30k/dataset_flickr30k.json"
    image_root: str = ""

    def read(self) -> dict[str, list[Record]]:
        """Read the file's splits: "train" (with COCO's restval), "dev" (val) and "test".

        Images without a caption or a file are left out, the latter with a warning. Raises ValueError if the JSON file
        is missing or not as published, or no image is found.
        """
        path = given_path(self.path, "JSON file of Karpathy's splits", "--data.path FILE")
        listed = read_karpathy(path)
        captions = {name: texts for name, (_, texts) in listed.items() if texts}
        folder = Path(self.image_root) if self.image_root else path.parent
        remedy = "give the folder of the images with --data.image_root DIR"
        records = file_records(captions, FileNames(folder), self.path, remedy)
        return by_split(records, {name: split for name, (split, _) in listed.items()})


def read_karpathy(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Read {image file: (split, captions)} in the file's order; COCO's image files include their folder."""
    content = read_json(path, "fetch it again")
    try:
        found = [
            (
                str(Path(image.get("filepath", "")) / image["filename"]),
                image["split"].strip(),
                [sentence["raw"].strip() for sentence in image["sentences"]],
            )
            for image in content["images"]
        ]
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} is not as published ({type(error).__name__}: {error}): each of its images needs "
            "filename, split and sentences with raw"
        ) from error
    listed: dict[str, tuple[str, list[str]]] = {}
    for name, split, captions in found:
        if name in listed:
            raise ValueError(f"{str(path)!r} lists image {name!r} twice: fetch it again")
        here = f"{str(path)!r} image {name!r}"
        listed[name] = split_name(split, here), [caption for caption in captions if caption]
    if not listed:
        raise ValueError(f"{str(path)!r} lists no image: fetch it again")
    return listed


def read_split_lists(path: Path) -> dict[str, list[str]]:
    """Read the image names of each split, for `flickr8k.published_splits`."""
    lists: dict[str, list[str]] = {}
    for name, (split, _) in read_karpathy(path).items():
        lists.setdefault(split, []).append(name)
    return lists
