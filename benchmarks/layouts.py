"""Flickr8k's photographs in the published layouts of other data sets, so that their presets run on real pictures.

    python benchmarks/layouts.py --root flickr8k --out layouts

layouts/flickr30k         results.csv with bars, a folder of images (linked), the splits in Karpathy's JSON
layouts/captions.parquet  a row a caption: the photograph's bytes as `img`, the caption as `text_EN` (needs pyarrow)
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minclip.data.flickr8k import Flickr8kConfig
from minclip.data.records import Record
from minlm.training.command import OneLineParser, run_main
from minlm.training.config import check_folder

ROWS = 500  # in a row group
THEIR_SPLITS = {"train": "train", "dev": "val", "test": "test"}


def file_of(record: Record) -> Path:
    """The file that the reader found and that the record opens."""
    return Path(record.open.args[0])


def write_flickr30k(splits: dict[str, Sequence[Record]], out: Path) -> None:
    (out / "flickr30k_images").mkdir(parents=True)
    rows, listed = ["image_name| comment_number| comment\n"], []
    for split, records in splits.items():
        for record in records:
            name = record.image_id
            (out / "flickr30k_images" / name).symlink_to(file_of(record).resolve())
            rows += [f"{name}| {k}| {caption}\n" for k, caption in enumerate(record.captions)]
            listed.append({"filename": name, "split": THEIR_SPLITS[split], "sentences": []})
    (out / "results.csv").write_text("".join(rows), encoding="utf-8")
    (out / "dataset_flickr30k.json").write_text(json.dumps({"images": listed, "dataset": "flickr30k"}))


def write_parquet(splits: dict[str, Sequence[Record]], path: Path) -> None:
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
            bytes_of = {record.image_id: file_of(record).read_bytes() for record, _ in part}
            columns = [[bytes_of[record.image_id] for record, _ in part], [text for _, text in part]]
            writer.write_table(pyarrow.table(columns, schema=schema))


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="Flickr8k")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    given = parser.parse_args()
    check_folder(given.out)
    splits = Flickr8kConfig(root=str(given.root)).read()
    given.out.mkdir(parents=True, exist_ok=True)
    write_parquet(splits, given.out / "captions.parquet")
    write_flickr30k(splits, given.out / "flickr30k")
    print(f"{sum(map(len, splits.values())):,} photographs: {given.out}")


if __name__ == "__main__":
    run_main(main)
