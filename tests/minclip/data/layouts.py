"""A small data set for each preset, written into a folder; each function returns the options that name it."""

import json
from pathlib import Path

from tests.minclip.data import published
from tests.minclip.data.tars import make_shards

CAPTIONS = {f"{k}.jpg": [f"a dog number {k}", f"photograph {k}"] for k in range(24)}
PARTS = {"train": list(CAPTIONS)[:16], "dev": list(CAPTIONS)[16:]}


def flickr8k(root: Path) -> tuple:
    published.write_flickr8k_csv(root, CAPTIONS)
    published.write_images(root, list(CAPTIONS))
    published.write_flickr8k_lists(root, **PARTS)
    return "--data.root", root


def flickr30k(root: Path) -> tuple:
    published.write_flickr30k_csv(root, CAPTIONS)
    published.write_flickr30k_splits(root, train=PARTS["train"], val=PARTS["dev"])
    return "--data.root", root


def karpathy(root: Path) -> tuple:
    names = [("train", name) for name in PARTS["train"]] + [("val", name) for name in PARTS["dev"]]
    listed = [published.karpathy_entry(name, split, CAPTIONS[name]) for split, name in names]
    return "--data.path", published.write_karpathy(root / "dataset_flickr8k.json", listed)


def coco(root: Path) -> tuple:
    for folder, first, last in (("train2017", 0, 16), ("val2017", 16, 24)):
        published.write_coco(root, folder, {k: CAPTIONS[f"{k}.jpg"] for k in range(first, last)})
    return "--data.root", root


def shards(root: Path) -> tuple:
    make_shards(root, 24, shard_size=8)
    return "--data.path", root


def table(root: Path) -> tuple:
    published.write_images(root, list(CAPTIONS), "")
    rows = [{"image": name, "caption": text} for name, texts in CAPTIONS.items() for text in texts]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "--data.path", root / "pairs.jsonl", "--epochs", 0, "--data.dev_fraction", 0.34


def parquet(root: Path) -> tuple:
    rows = [(k, text) for k in range(24) for text in CAPTIONS[f"{k}.jpg"]]
    columns = {"img": [published.png(k) for k, _ in rows], "text_EN": [text for _, text in rows]}
    path = published.write_parquet(root / "train.parquet", **columns)
    return "--data.path", path, "--data.dev_fraction", 0.34


def cifar10(root: Path) -> tuple:
    published.write_cifar10(root, (5,) * 5 + (3,))
    return "--data.root", root, "--data.dev_fraction", 0.34


LAYOUTS = {
    "flickr8k": flickr8k,
    "pairs": table,
    "coco": coco,
    "karpathy": karpathy,
    "shards": shards,
    "resnet50-distilbert-flickr8k": flickr8k,
    "vit-gpt-captions": parquet,
    "vit-distilbert-cifar10": cifar10,
    "vit-distilbert-ndlinear-flickr8k": flickr8k,
    "resnet50-distilbert-flickr30k": flickr30k,
}
