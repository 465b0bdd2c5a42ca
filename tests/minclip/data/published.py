"""Data sets written as they are published, and Parquet files as hubs share them; used by several test files."""

import csv
import io
import json
import pickle
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minclip.data.flickr8k import LISTS

FLICKR30K_HEADER = "image_name| comment_number| comment\n"


def write_images(root: Path, names: Iterable[str], folder: str = "Images") -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (2, 2)).save(root / folder / name)


def write_flickr8k_csv(root: Path, captions: dict[str, list[str]], prefix: str = "") -> None:
    root.mkdir(exist_ok=True)
    with (root / "captions.txt").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        writer.writerows((prefix + name, text) for name, texts in captions.items() for text in texts)


def write_flickr8k_tokens(root: Path, captions: dict[str, list[str]], line_end: str = "\n") -> None:
    root.mkdir(exist_ok=True)
    rows = [f"{name}#{k}\t{text}" for name, texts in captions.items() for k, text in enumerate(texts)]
    (root / "Flickr8k.token.txt").write_text(line_end.join(rows) + line_end, encoding="utf-8", newline="")


def write_flickr8k_lists(root: Path, **lists: list[str]) -> None:
    for split, names in lists.items():
        (root / LISTS[split]).write_text("".join(name + "\n" for name in names))


def karpathy_entry(name: str, split: str, captions: list[str], folder: str | None = None) -> dict:
    """Return an entry with all the fields of the published files."""
    sentences = [
        {"tokens": text.split(), "raw": text, "imgid": 0, "sentid": k} for k, text in enumerate(captions)
    ]
    entry = {"sentids": [0], "imgid": 0, "sentences": sentences, "split": split, "filename": name}
    return entry | ({"filepath": folder, "cocoid": 1} if folder else {})


def write_karpathy(path: Path, images: list[dict], with_files: bool = True) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": images, "dataset": "any"}), encoding="utf-8")
    for entry in images if with_files else ():
        folder = path.parent / entry.get("filepath", "")
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (3, 2)).save(folder / entry["filename"])
    return path


def write_flickr30k_csv(root: Path, captions: dict[str, list[str]], without_bar: int = -1) -> None:
    rows = [f"{name}| {k}| {text}\n" for name, texts in captions.items() for k, text in enumerate(texts)]
    if 0 <= without_bar < len(rows):
        name, number, text = rows[without_bar].split("|", 2)
        rows[without_bar] = f"{name}|{number}  {text}"
    (root / "flickr30k_images").mkdir(parents=True)
    (root / "flickr30k_images" / "results.csv").write_text(FLICKR30K_HEADER + "".join(rows), encoding="utf-8")
    write_images(root, captions, "flickr30k_images/flickr30k_images")


def write_flickr30k_splits(root: Path, **splits: list[str]) -> None:
    listed = [karpathy_entry(name, split, ["x"]) for split, names in splits.items() for name in names]
    write_karpathy(root / "dataset_flickr30k.json", listed, with_files=False)


def write_coco(
    root: Path, folder: str, captions: dict[int, list[str]], with_files: bool = True
) -> dict[int, str]:
    """Write an annotation file in which captions of different images alternate; return the image files' names."""
    prefix = f"COCO_{folder}_" if "2014" in folder else ""
    names = {number: f"{prefix}{number:012}.jpg" for number in captions}
    images = [
        {"license": 3, "file_name": name, "height": 2, "width": 3, "id": number}
        for number, name in names.items()
    ]
    longest = max(map(len, captions.values()), default=0)
    annotations = [
        {"image_id": number, "id": 10 * number + k, "caption": texts[k]}
        for k in range(longest)
        for number, texts in captions.items()
        if k < len(texts)
    ]
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / folder).mkdir(exist_ok=True)
    content = {"info": {}, "images": images, "licenses": [], "annotations": annotations}
    (root / "annotations" / f"captions_{folder}.json").write_text(json.dumps(content), encoding="utf-8")
    for name in names.values() if with_files else ():
        Image.new("RGB", (3, 2)).save(root / folder / name)
    return names


CIFAR10_NAMES = (b"airplane", b"cat", b"dog")
CIFAR10_BATCHES = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")


def python2_pickle(pixels: np.ndarray, labels: list[int], module: bytes = b"numpy.core.multiarray") -> bytes:
    """Pickle a batch as Python 2 and its numpy did, opcode by opcode (protocol 2)."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"c" + module + b"\n_reconstruct\ncnumpy\nndarray\n"
    array += number(0) + b"\x85" + text(b"b") + b"\x87R"
    shape = b"".join(map(number, pixels.shape)) + b"\x86"
    content = b"T" + struct.pack("<i", pixels.nbytes) + pixels.tobytes()
    array += b"(" + number(1) + shape + dtype + b"\x89" + content + b"tb"
    items = text(b"data") + array + text(b"labels") + b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + items + text(b"batch_label") + text(b"batch 1 of 5") + b"u."


def cifar10_noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def write_cifar10(
    root: Path, sizes: tuple[int, ...] = (2,) * 6, names: tuple[bytes, ...] = CIFAR10_NAMES
) -> dict[str, tuple]:
    """Write the pickles, with batches of these sizes; return (pixels, labels) of each."""
    root.mkdir(exist_ok=True)
    (root / "batches.meta").write_bytes(pickle.dumps({b"label_names": list(names)}, 2))
    written = {}
    for number, (name, n) in enumerate(zip(CIFAR10_BATCHES, sizes, strict=True)):
        pixels, labels = cifar10_noise(n, number), [k % len(names) for k in range(n)]
        (root / name).write_bytes(python2_pickle(pixels, labels))
        written[name] = pixels, labels
    return written


def png(number: int) -> bytes:
    """Return a PNG of one colour, which depends on the number."""
    content = io.BytesIO()
    Image.new("RGB", (3, 2), (number, 7, 9)).save(content, "PNG")
    return content.getvalue()


def write_parquet(path: Path, rows_in_group: int = 2, **columns: list) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is optional")
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is optional")
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pyarrow.table(columns), path, row_group_size=rows_in_group)
    return path


def write_table(folder: Path, text: str, names: tuple[str, ...] = ("a.png", "b.png", "c.png")) -> Path:
    """Write a table of this text and images of these names beside it; return the table's path."""
    for name in names:
        Image.new("RGB", (2, 2)).save(folder / name)
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path
