"""Spellings of splits, records of files that are there and that are not, damaged JSON."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minclip.data.records import Record
from minclip.data.sources import by_split, distinct_names, file_records, read_json, split_name


def names(splits: dict[str, list[Record]]) -> dict[str, list[str]]:
    return {name: [record.image_id for record in records] for name, records in splits.items()}


def test_split_names_and_records_by_split():
    spellings = ("Train", "restval", "VAL", "validation", "dev", "test")
    assert [split_name(word, "") for word in spellings] == ["train", "train", "dev", "dev", "dev", "test"]
    with pytest.raises(ValueError, match=r"^line 3 has the split 'vla': use train, dev, test$"):
        split_name("vla", "line 3")
    records = [Record(name, Image.new, ("a dog",), 0) for name in "abc"]
    assert names(by_split(records, {"a": "test", "b": "train", "c": "test"})) == {
        "train": ["b"],
        "test": ["a", "c"],
    }


def test_records_of_files(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("sub/b.png", "c.png"):
        Image.new("RGB", (3, 2)).save(tmp_path / name)
    captions = {"c.png": ["x", "y"], "a.png": ["z"], "sub/b.png": ["w"], "sub": ["a folder"]}
    with pytest.warns(UserWarning, match="left out 2 images with captions, not in .*: a.png, sub$"):
        records = file_records(captions, tmp_path, "", "")
    assert [(r.image_id, r.captions, r.group) for r in records] == [
        ("c.png", ("x", "y"), 1),
        ("sub/b.png", ("w",), 3),
    ]
    assert records[1].open().size == (3, 2)
    with pytest.raises(ValueError, match=r"none of the 1 images .* at '/nowhere/a.png': say where"):
        file_records({"a.png": ["z"]}, Path("/nowhere"), "a.csv", "say where")
    with pytest.raises(
        ValueError, match=r"^no image with a caption in 'a.csv': is it the right one, and whole\?"
    ):
        file_records({}, tmp_path, "a.csv", "say where")


@given(st.lists(st.sampled_from([" ", *"abcdef"])))
def test_class_names_differ_and_are_not_empty(names):
    if len(set(names)) == len(names) and all(map(str.strip, names)):
        assert distinct_names(names, Path("a.txt")) == tuple(names)
    else:
        with pytest.raises(
            ValueError, match=r"^'a.txt' names \d+ classes '.?': give each a name of its own$"
        ):
            distinct_names(names, Path("a.txt"))


def test_json_files(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"é": [1]}', encoding="utf-8-sig")
    assert read_json(path) == {"é": [1]}
    for content in (b"{", b"", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.json' is not JSON: .*; fetch it again$") as caught:
            read_json(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"\xff{}")
    with pytest.raises(
        ValueError, match=r"a.json' is not UTF-8 text \(invalid start byte\): save it as UTF-8$"
    ):
        read_json(path)
    with pytest.raises(ValueError, match=r"cannot read '.*': Is a directory; is the path right\?$"):
        read_json(tmp_path)
    with pytest.raises(ValueError, match=r"cannot read '.*none.json': No such file"):
        read_json(tmp_path / "none.json")
