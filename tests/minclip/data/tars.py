"""Tar files of drawn images, used by several test files."""

import io
import tarfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.layouts import lines, write_shards
from minclip.data.records import Record


def draw(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8))


def encoded(number: int, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    draw(number).save(content, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return content.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], **options) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def same_image(record: Record, number: int) -> bool:
    return np.array_equal(np.asarray(record.open()), np.asarray(draw(number)))


def samples(records: Iterable[Record], with_class: bool = False) -> Iterator[dict[str, bytes]]:
    """Yield each record's image as PNG, with its captions or, instead of them, its class."""
    for record in records:
        image = io.BytesIO()
        record.open().save(image, "PNG")
        text = {"cls": str(record.group).encode()} if with_class else {"txt": lines(record.captions)}
        yield {"png": image.getvalue()} | text


def make_shards(folder: Path, n: int, shard_size: int = 4) -> list[Path]:
    """Write shards of n drawn images with one caption each, "caption 0" and so on."""
    records = (Record(f"{k}", partial(draw, k), (f"caption {k}",), k) for k in range(n))
    return write_shards(samples(records), folder, shard_size)
