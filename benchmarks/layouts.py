"""Write Flickr8k in the layouts of other data sets, so that their presets run on real photographs.

    python benchmarks/layouts.py --root flickr8k --out layouts

layouts/flickr30k         results.csv with bars, a folder of images (links), the splits in Karpathy's JSON
layouts/captions.parquet  a row per caption: the photograph's bytes as `img`, the caption as `text_EN` (needs pyarrow)
layouts/shards            folders of tar shards, one per split: a photograph's .jpg with its captions as .txt
"""

import json
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minclip.data.flickr8k import IMAGE_FOLDERS, Flickr8kConfig, find_images
from minclip.data.records import Record
from minclip.data.sources import FileNames
from minlm.training.config import check_folder
from minlm.training.errors import run_main
from minlm.training.options import OneLineParser

ROWS = 500  # in a row group
THEIR_SPLITS = {"train": "train", "dev": "val", "test": "test"}
Splits = Mapping[str, Sequence[Record]]


def write_flickr30k(splits: Splits, files: Mapping[str, Path], out: Path) -> None:
    (out / "flickr30k_images").mkdir(parents=True)
    rows, listed = ["image_name| comment_number| comment\n"], []
    for split, records in splits.items():
        for record in records:
            name = record.image_id
            (out / "flickr30k_images" / name).symlink_to(files[name].resolve())
            rows += [f"{name}| {k}| {caption}\n" for k, caption in enumerate(record.captions)]
            listed.append({"filename": name, "split": THEIR_SPLITS[split], "sentences": []})
    (out / "results.csv").write_text("".join(rows), encoding="utf-8")
    (out / "dataset_flickr30k.json").write_text(json.dumps({"images": listed, "dataset": "flickr30k"}))


def write_parquet(splits: Splits, files: Mapping[str, Path], path: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"writing {path} needs the package pyarrow: pip install pyarrow") from None

    pairs = [(record, text) for some in splits.values() for record in some for text in record.captions]
    schema = pyarrow.schema([("img", pyarrow.binary()), ("text_EN", pyarrow.string())])
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(pairs), ROWS):
            part = pairs[start : start + ROWS]
            bytes_of = {record.image_id: files[record.image_id].read_bytes() for record, _ in part}
            columns = [[bytes_of[record.image_id] for record, _ in part], [text for _, text in part]]
            writer.write_table(pyarrow.table(columns, schema=schema))


def write_shards(samples: Iterable[Mapping[str, bytes]], folder: Path, shard_size: int = 1000) -> list[Path]:
    """Write samples, {extension: content}, as tar shards with their sizes.json; return the shards' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    numbered, sizes = enumerate(samples), {}
    while part := list(islice(numbered, shard_size)):
        path = folder / f"{len(sizes):05}.tar"
        with tarfile.open(path, "w") as tar:
            for number, files in part:
                for extension, content in files.items():
                    member = tarfile.TarInfo(f"s{number:07}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, BytesIO(content))
        sizes[path.name] = len(part)
    (folder / "sizes.json").write_text(json.dumps(sizes), encoding="utf-8")
    return [folder / name for name in sizes]


def lines(captions: Sequence[str]) -> bytes:
    """Encode captions as the content of a .txt in a shard: one caption per line."""
    return "\n".join(" ".join(caption.splitlines()) for caption in captions).encode()


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="Flickr8k")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    given = parser.parse_args()
    check_folder(given.out)
    splits = Flickr8kConfig(root=str(given.root)).read()
    names = [record.image_id for records in splits.values() for record in records]
    folder, _ = find_images(given.root, IMAGE_FOLDERS, names)
    spelled = FileNames(folder)
    files = {name: folder / spelled[name] for name in names}
    given.out.mkdir(parents=True, exist_ok=True)
    write_parquet(splits, files, given.out / "captions.parquet")
    write_flickr30k(splits, files, given.out / "flickr30k")
    for split, records in splits.items():
        samples = ({"jpg": files[r.image_id].read_bytes(), "txt": lines(r.captions)} for r in records)
        write_shards(samples, given.out / "shards" / split)
    print(f"{len(names):,} photographs: {given.out}")


if __name__ == "__main__":
    run_main(main)
