"""Parquet files written by pyarrow give back their rows, pixel by pixel."""

import builtins
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minclip.data import parquet
from minclip.data.parquet import ParquetConfig
from minclip.data.records import Record
from tests.minclip.data.published import png, write_parquet

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is optional")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is optional")


def read(path: Path, **fields) -> dict[str, list[Record]]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "left out .* repeated captions")
        return ParquetConfig(path=str(path), **{"dev_fraction": 0.5, **fields}).read()


def content(splits: dict[str, list[Record]]) -> dict[int, tuple[str, ...]]:
    """Return {colour of the decoded image: its captions}."""
    records = [record for members in splits.values() for record in members]
    return {np.asarray(record.open())[0, 0, 0].item(): record.captions for record in records}


TEXT = st.text(min_size=1, max_size=12).filter(lambda text: text.strip())
ROWS = st.lists(st.tuples(st.integers(0, 9), TEXT), min_size=2, max_size=12).filter(
    lambda rows: len({number for number, _ in rows}) > 1
)


@given(
    ROWS, st.sampled_from(["img text_EN", "image caption", "Image TEXT"]), st.booleans(), st.integers(1, 5)
)
def test_round_trip(tmp_path_factory, rows, names, as_struct, rows_in_group):
    """One row per caption, equal images in any rows; bytes alone or, as on hubs, with a path."""
    folder = tmp_path_factory.mktemp("parquet")
    image, caption = names.split()
    images = [{"bytes": png(n), "path": None} if as_struct else png(n) for n, _ in rows]
    columns = {"id": list(range(len(rows))), image: images, caption: [text for _, text in rows]}
    splits = read(write_parquet(folder / "pairs.parquet", rows_in_group, **columns))
    expected: dict[int, tuple[str, ...]] = {}
    for number, text in rows:
        expected[number] = tuple(dict.fromkeys((*expected.get(number, ()), text.strip())))
    assert content(splits) == expected
    assert splits.keys() == {"train", "dev"}
    records = [record for members in splits.values() for record in members]
    assert sorted(record.group for record in records) == list(range(len(expected)))
    assert len({record.image_id for record in records}) == len(records)


def test_lists_of_captions_and_several_files_of_a_hub(tmp_path):
    for name, numbers in (("train-00000-of-00002", (1, 2)), ("train-00001-of-00002", (3,)), ("test-0", (4,))):
        images = [{"bytes": png(n), "path": f"{n}.png"} for n in numbers]
        captions = [[f"a {n}", "", f"b {n}"] for n in numbers]
        write_parquet(tmp_path / "data" / f"{name}.parquet", image=images, caption=captions)
    splits = read(tmp_path)
    assert content({"train": splits["train"]}) == {n: (f"a {n}", f"b {n}") for n in (1, 2, 3)}
    assert content({"test": splits["test"]}) == {4: ("a 4", "b 4")}
    assert splits.keys() == {"train", "test"}


def test_the_split_column_wins_over_file_names(tmp_path):
    """Flickr30k is shared with all splits in files named TEST."""
    columns = {"image": [png(n) for n in range(4)], "caption": list("abcd")}
    write_parquet(tmp_path / "TEST-0000-of-0001.parquet", **columns, split=["train", "val", "test", "train"])
    assert {name: sorted(content({name: records})) for name, records in read(tmp_path).items()} == {
        "train": [0, 3],
        "dev": [1],
        "test": [2],
    }


def test_the_split_is_drawn_if_every_row_is_for_training(tmp_path):
    columns = {"img": [png(n) for n in range(20)], "text_EN": [f"text {n}" for n in range(20)]}
    for name in ("train-00000-of-00001", "pairs", "train"):
        path = write_parquet(tmp_path / f"{name}.parquet", 3, **columns)
        splits = read(path, dev_fraction=0.1, split_seed=42)
        assert {split: len(records) for split, records in splits.items()} == {"train": 18, "dev": 2}
        assert [r.image_id for r in read(path, dev_fraction=0.1)["dev"]] != [
            r.image_id for r in splits["dev"]
        ]
        assert content(splits) == {n: (f"text {n}",) for n in range(20)}


def test_records_are_places_in_the_file_and_row_groups_are_read_once(tmp_path, monkeypatch):
    path = write_parquet(
        tmp_path / "a.parquet", 5, img=[png(n) for n in range(20)], text=list("abcdefghijklmnopqrst")
    )
    splits = read(path, dev_fraction=0.1)
    records = sorted(splits["train"] + splits["dev"], key=lambda record: record.image_id)
    assert len(pickle.dumps(records[0])) < 400
    copies = pickle.loads(pickle.dumps(records))
    calls = []
    original = parquet.open_parquet
    parquet.images_of_group.cache_clear()
    monkeypatch.setattr(parquet, "open_parquet", lambda path: calls.append(path) or original(path))
    assert [np.asarray(record.open())[0, 0, 0] for record in copies] == list(range(20))
    assert len(calls) == 4


def test_rows_without_image_or_caption_and_images_of_two_splits(tmp_path):
    columns = {"image": [png(1), None, b"", png(2), png(3)], "caption": ["a", "b", "c", None, "  "]}
    path = write_parquet(tmp_path / "a.parquet", **columns)
    with (
        pytest.warns(UserWarning, match=r"left out 4 of 5 rows of .*a.parquet: no image or no caption"),
        pytest.raises(ValueError, match="would be empty"),
    ):
        ParquetConfig(path=str(path)).read()
    with pytest.raises(ValueError, match=r"none of the 2 rows of .* has both image and caption"):
        read(write_parquet(path, image=[None, png(1)], caption=["a", ""]))
    split = ["test", "train", "train"]
    write_parquet(path, image=[png(1), png(1), png(2)], caption=["a", "b", "c"], split=split)
    with pytest.warns(
        UserWarning, match=r"1 rows of .*a.parquet have an image of another split: moved there"
    ):
        splits = ParquetConfig(path=str(path)).read()
    assert content({"test": splits["test"]}) == {1: ("a", "b")}
    assert content({"train": splits["train"]}) == {2: ("c",)}


@pytest.mark.parametrize(
    "columns, message",
    [
        (
            {"photo": [b"x"], "text": ["a"]},
            "has the columns 'photo', 'text', not any of image, .*with --data.image_column",
        ),
        (
            {"image": [b"x"], "words": ["a"]},
            "has the columns 'image', 'words', not any of caption, .*with --data.caption_column",
        ),
        (
            {"image": ["a.jpg"], "text": ["a"]},
            "0000:000000 holds a str in column 'image', not an image's bytes: name another column with --data.image",
        ),
        (
            {"image": [b"x"], "text": ["a"], "split": ["trian"]},
            "0000:000000 has the split 'trian': use train",
        ),
        (
            {"image": [b"x"], "text": [{"a": 1}]},
            "0000:000000 column 'text' holds {'a': 1}, which is not text",
        ),
        (
            {"image": [b"x"], "text": [b"caf\xe9"]},
            "0000:000000 column 'text' holds .*, which is not text: write",
        ),
        ({"image": [b"x"], "text": [float("nan")]}, "0000:000000 column 'text' holds nan, which is not text"),
        (
            {"image": [b"x"], "text": ["a"], "split": [True]},
            "0000:000000 column 'split' holds True, which is",
        ),
    ],
)
def test_other_columns_are_named(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(write_parquet(tmp_path / "a.parquet", **columns))
    assert "\n" not in str(caught.value)
    assert "a.parquet" in str(caught.value)


def test_captions_may_be_bytes_and_a_repeated_column_is_refused(tmp_path):
    captions = [b"ein Hund", "ünter".encode(), b" "]
    path = write_parquet(tmp_path / "a.parquet", image=[png(1), png(2), png(2)], caption=captions)
    with pytest.warns(UserWarning, match="left out 1 of 3 rows"):
        assert content(ParquetConfig(path=str(path), dev_fraction=0.5).read()) == {
            1: ("ein Hund",),
            2: ("ünter",),
        }
    for name in ("image", "caption", "split"):
        columns = {"image": [png(1)], "caption": ["x"], "split": ["train"]}
        names, arrays = [*columns, name], [*columns.values(), columns[name]]
        pq.write_table(pyarrow.table([pyarrow.array(array) for array in arrays], names=names), path)
        with pytest.raises(ValueError, match=f"a.parquet' has 2 columns '{name}': rename all but one"):
            read(path)
    arrow = pyarrow.StringArray.from_buffers(
        1, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xe9")
    )
    write_parquet(path, image=[png(1)], caption=arrow)
    with pytest.raises(ValueError, match=r"a.parquet' is not a whole Parquet file: 'utf-8' codec"):
        read(path)


def test_repeated_captions_of_an_image_count_once(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", image=[png(1), png(2), png(1)], caption=[["x", "y"], ["x"], ["z", " x"]]
    )
    with pytest.warns(UserWarning, match=r"left out 1 repeated captions of .*a\.parquet: .* once"):
        splits = ParquetConfig(path=str(path), dev_fraction=0.5).read()
    assert content(splits) == {1: ("x", "y", "z"), 2: ("x",)}


def test_a_damaged_image_is_named_when_it_is_opened(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", 3, image=[png(1), png(2)[:50], png(3)], caption=["a", "b", "c"]
    )
    damaged = [r for records in read(path).values() for r in records if r.captions == ("b",)]
    with pytest.raises(ValueError, match=r"cannot decode image '.*a.parquet:0000:000001'"):
        damaged[0].open()


def test_missing_files_damaged_files_and_no_pyarrow(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no .parquet file at .*nowhere'.*--data.path"):
        read(tmp_path / "nowhere")
    path = write_parquet(tmp_path / "a.parquet", image=[png(1), png(2)], caption=["a", "b"])
    whole = path.read_bytes()
    for kept in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"a.parquet' is not a whole Parquet file: ") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])  # the first column's pages
    with pytest.raises(ValueError, match=r"a.parquet' is not a whole Parquet file: ") as caught:
        read(path)
    assert "\n" not in str(caught.value)

    path.write_bytes(whole)
    original = builtins.__import__

    def without_pyarrow(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(
        ValueError, match=r"reading .*a.parquet' needs the package pyarrow: pip install pyarrow"
    ):
        read(path)


def test_dev_fraction_lies_between_0_and_1():
    with pytest.raises(ValueError, match=r"dev_fraction=0\.0 must be in"):
        ParquetConfig(dev_fraction=0.0)
