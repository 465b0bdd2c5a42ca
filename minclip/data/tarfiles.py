"""One tar file in the WebDataset layout: `key.jpg` with `key.txt`, `key.cls` or `key.json`, sample after sample.

A sample of an uncompressed tar file is one seek and one read away once its place is known.
"""

import json
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath

from PIL import Image
from tqdm import tqdm

from minclip.data.records import Record, decode_image
from minclip.data.table import CAPTION_COLUMNS, find_column, texts_of

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
CLASSES, SIZES = "classnames.txt", "sizes.json"
Parts = dict[str, tuple[int, int]]  # a sample's files: extension -> (offset, size) in the shard


def check_end(path: Path) -> None:
    """A whole tar file ends with two blocks of zeros: a download that stopped is found before step 0."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 1024))
            whole = size % 512 == 0 and file.read() == bytes(1024)
    except OSError as error:
        raise ValueError(f"cannot read shard {str(path)!r}: {error.strerror}; is the path right?") from error
    if not whole:
        raise ValueError(
            f"shard {str(path)!r} does not end as a tar file does at byte {size}: fetch it again"
        )


def read_members(path: str | Path) -> dict[str, Parts]:
    """Where each sample's files lie, by key: the name up to its first dot. ValueError for a damaged tar."""
    samples: dict[str, Parts] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                stem, _, extension = name.name.lower().partition(".")
                if not (member.isreg() and stem and extension):  # folders, and what a Mac adds
                    continue
                parts = samples.setdefault(str(name)[: -len(extension) - 1], {})
                if extension in parts:
                    raise tarfile.TarError(f"{member.name} is there twice")
                parts[extension] = (member.offset_data, member.size)
            tar.fileobj.seek(tar.offset)  # tarfile takes a damaged header for the end
            if tar.fileobj.read(512) != bytes(512):
                raise tarfile.TarError(f"no header at byte {tar.offset}")
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"shard {str(path)!r} is not a whole tar file: {error}; fetch it again") from error
    return samples


def read_shard(
    path: str | Path, captions_of_class: Sequence[tuple[str, ...]], first: int = 0
) -> tuple[list[Record], list[str]]:
    """(the records of a shard, in its order; the keys of samples without image or caption).

    first: number of the shard's first record. A sample's group is its number, or its class; classes without
    names, which may stand beside samples without class, are counted down from -1: so none is a number.
    """
    records, left_out = [], []
    with open(path, "rb") as file:
        for key, parts in read_members(path).items():
            name = f"{Path(path).name}/{key}"
            image = next((parts[extension] for extension in IMAGES if extension in parts), None)
            texts = {}
            for extension in {"txt", "json", "cls"} & parts.keys():
                file.seek(parts[extension][0])
                texts[extension] = file.read(parts[extension][1])
            captions, label = captions_of(texts, captions_of_class, f"{path}/{key}")
            if image is None or not captions:
                left_out.append(name)
                continue
            if label is None and captions_of_class:
                raise ValueError(
                    f"{path}/{key} has no .cls: give every sample a class, or remove {CLASSES} beside the shards"
                )
            group = first + len(records)
            if label is not None:
                group = label if captions_of_class else -1 - label
            records.append(Record(name, partial(open_member, str(path), *image, key), captions, group))
    return records, left_out


def captions_of(
    texts: dict[str, bytes], captions_of_class: Sequence[tuple[str, ...]], where: str
) -> tuple[tuple[str, ...], int | None]:
    """(captions, class if any) of a sample's .txt, .json and .cls; ValueError beginning with `where`."""
    try:
        label = int(texts["cls"]) if "cls" in texts else None
        if "txt" in texts:
            lines = texts["txt"].decode().splitlines()
        elif "json" in texts:
            row = json.loads(texts["json"])
            column = find_column(list(row), "", CAPTION_COLUMNS)
            lines = texts_of(row.get(column), f"column {column!r}")
        else:
            lines = captions_of_class[label] if label is not None else ()
        if label is not None and captions_of_class and label >= len(captions_of_class):
            raise IndexError
    except IndexError:
        raise ValueError(
            f"{where} has the class {label}, {CLASSES} beside the shards names {len(captions_of_class)} classes"
        ) from None
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{where} has a damaged .txt, .json or .cls: {error}; fetch the shard again"
        ) from error
    if label is not None and label < 0:
        raise ValueError(f"{where} has the class {label}: classes are numbered from 0, correct its .cls")
    return tuple(line.strip() for line in lines if line.strip()), label


def open_member(path: str, offset: int, size: int, key: str) -> Image.Image:
    """The picture at this place in the shard."""
    with open(path, "rb") as file:
        file.seek(offset)
        return decode_image(file.read(size), f"{path}/{key}")


def write_shards(
    records: Sequence[Record], folder: str | Path, shard_size: int = 1000, class_names: Sequence[str] = ()
) -> list[Path]:
    """Write any records as shards with sizes.json -> the shards' paths; pictures as PNG, which loses nothing.

    class_names: written as classnames.txt, and each record's group as .cls instead of its captions as .txt.
    """
    folder, sizes = Path(folder), {}
    folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=len(records), desc="writing shards", unit="image", leave=False)
    for start in range(0, len(records), shard_size):
        part = records[start : start + shard_size]
        path = folder / f"{start // shard_size:05}.tar"
        with tarfile.open(path, "w") as tar:
            for number, record in enumerate(part, start):
                for extension, content in sample_files(record, with_class=bool(class_names)):
                    member = tarfile.TarInfo(f"s{number:07}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, BytesIO(content))
                bar.update()
        sizes[path.name] = len(part)
    bar.close()
    (folder / SIZES).write_text(json.dumps(sizes), encoding="utf-8")
    if class_names:
        (folder / CLASSES).write_text("\n".join(class_names) + "\n", encoding="utf-8")
    return [folder / name for name in sizes]


def sample_files(record: Record, with_class: bool) -> Iterator[tuple[str, bytes]]:
    image = BytesIO()
    record.open().save(image, "PNG")
    yield "png", image.getvalue()
    lines = (" ".join(caption.splitlines()) for caption in record.captions)  # a line of .txt is a caption
    yield ("cls", str(record.group).encode()) if with_class else ("txt", "\n".join(lines).encode())
