"""Karpathy's splits (Karpathy and Fei-Fei 2015): one JSON file each for Flickr8k, Flickr30k and COCO."""

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
        """Records by the file's splits: "train" (COCO's restval too), "dev" (val) and "test".

        Images without caption or file are left out, those without file with a warning that counts them.
        Raises ValueError where the file is missing or not as published, or no image is found.
        """
        path = given_path(self.path, "JSON file of Karpathy's splits", "--data.path FILE")
        listed = read_karpathy(path)
        captions = {name: texts for name, (_, texts) in listed.items() if texts}
        folder = Path(self.image_root) if self.image_root else path.parent
        remedy = "give the folder of the images with --data.image_root DIR"
        records = file_records(captions, FileNames(folder), self.path, remedy)
        return by_split(records, {name: split for name, (split, _) in listed.items()})


def read_karpathy(path: Path) -> dict[str, tuple[str, list[str]]]:
    """{image file: (split, captions)} in the file's order; COCO's images have their folder before the name."""
    listed: dict[str, tuple[str, list[str]]] = {}
    content = read_json(path, "fetch it again")
    try:
        for image in content["images"]:
            name = str(Path(image.get("filepath", "")) / image["filename"])
            split = split_name(image["split"], f"{str(path)!r} image {name!r}")
            captions = [sentence["raw"].strip() for sentence in image["sentences"]]
            if name in listed:
                raise ValueError(f"{str(path)!r} lists image {name!r} twice: fetch it again")
            listed[name] = split, [caption for caption in captions if caption]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} is not as published ({type(error).__name__}: {error}): each of its images has "
            "filename, split and sentences with raw"
        ) from error
    if not listed:
        raise ValueError(f"{str(path)!r} lists no image: fetch it again")
    return listed


def read_split_lists(path: Path) -> dict[str, list[str]]:
    """Image names of each split, as `flickr8k.published_splits` takes them."""
    lists: dict[str, list[str]] = {}
    for name, (split, _) in read_karpathy(path).items():
        lists.setdefault(split, []).append(name)
    return lists
