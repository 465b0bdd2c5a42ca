"""Spellings of splits and files, records of present and missing files, texts and JSON."""

import unicodedata
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minclip.config import Data
from minclip.data.records import Record
from minclip.data.sources import (
    FileNames,
    by_split,
    distinct_names,
    file_records,
    given_path,
    split_name,
)
from minclip.presets import PRESETS


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
        records = file_records(captions, FileNames(tmp_path), "", "")
    assert [(r.image_id, r.captions, r.group) for r in records] == [
        ("c.png", ("x", "y"), 1),
        ("sub/b.png", ("w",), 3),
    ]
    assert records[1].open().size == (3, 2)
    with pytest.raises(ValueError, match=r"none of the 1 images .* at '/nowhere/a.png': say where"):
        file_records({"a.png": ["z"]}, FileNames(Path("/nowhere")), "a.csv", "say where")
    with pytest.raises(
        ValueError, match=r"^no image with a caption in 'a.csv': is it the right one, and whole\?"
    ):
        file_records({}, FileNames(tmp_path), "a.csv", "say where")


def write_files(folder: Path, *names: str) -> FileNames:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return FileNames(folder)


@given(
    st.lists(st.sampled_from(["Sub", "dé", "ß x", "A.b", "日本"]), max_size=2),
    st.sampled_from(["a.JPG", "Ünter.png", "c d.png"]),
    st.sampled_from(["NFC", "NFD"]),
    st.sampled_from([str, str.upper, str.lower, str.casefold]),
    st.sampled_from(["NFC", "NFD"]),
    st.sampled_from(["/", "\\"]),
)
def test_names_in_another_spelling_are_found(
    tmp_path_factory, folders, name, on_disk, change, written, separator
):
    folder = tmp_path_factory.mktemp("images")
    filed = unicodedata.normalize(on_disk, "/".join([*folders, name]))
    names = write_files(folder, filed, "other.png", "Sub/other.png")
    wanted = separator.join(unicodedata.normalize(written, change(part)) for part in [*folders, name])
    assert names[wanted] == names[filed] == filed
    assert names[str(folder / wanted)] == (str(folder / filed) if wanted != filed else str(folder / wanted))
    assert names.missing == {}
    assert names.respelled == {
        name: found for name, found in names.items() if (folder / name).is_file() is False
    }


def test_missing_files_are_counted_by_cause(tmp_path):
    names = write_files(tmp_path, "A.png", "a.PNG", "Sub/b.png", "sub/B.png", "c.png", "d/e.png", "f\\g.png")
    spelled = ["a.png", "A.png", "SUB/b.png", "C.png", "d", "h.png", "x/i.png", "f\\g.png"]
    captions = {name: ["z"] for name in spelled}
    with pytest.warns(UserWarning, match="images") as caught:
        records = file_records(captions, names, "", "")
    assert [(record.image_id, names[record.image_id]) for record in records] == [
        ("A.png", "A.png"),
        ("C.png", "c.png"),
        ("f\\g.png", "f\\g.png"),
    ]
    assert [str(warning.message) for warning in caught] == [
        f"left out 3 images with captions, not in {tmp_path}: d, h.png, x/i.png",
        f"left out 2 images with captions, spelled like several files in {tmp_path}: SUB/b.png, a.png",
        f"read 1 images by names that differ from their files in {tmp_path} in case, Unicode form or "
        "backslashes; the first is 'C.png', its file 'c.png'",
    ]


def test_the_folder_itself_must_be_spelled_exactly(tmp_path):
    write_files(tmp_path, "Sub/a.png")
    names = FileNames(tmp_path / "SUB")
    assert names["a.png"] == "a.png"
    assert names.missing == {"a.png": f"not in {tmp_path / 'SUB'}"}


def test_exact_names_give_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(file_records({"a.png": ["x"]}, write_files(tmp_path, "a.png", "A.png"), "", "")) == 1


KINDS = {type(config.data): config.data for config in PRESETS.values()}


@pytest.mark.parametrize("data", KINDS.values(), ids=[kind.__name__ for kind in KINDS])
def test_a_missing_data_option_is_named(data: Data, monkeypatch, tmp_path):
    """Data in the current folder is not used without the option."""
    option = next((name for name in ("root", "path") if hasattr(data, name)), None)
    if option is None:
        return  # the built-in world
    write_files(tmp_path, "a.tar", "b.tar", "a.parquet", "captions.txt", "Images/a.jpg", "results.csv")
    monkeypatch.chdir(tmp_path)
    assert getattr(data, option) == ""
    with pytest.raises(ValueError, match=rf"^no .* is given: give it with --data\.{option} [A-Z]+$"):
        data.read()


def test_a_given_path_is_returned():
    assert given_path("a/b", "folder", "--data.root DIR") == Path("a/b")


@given(st.lists(st.sampled_from([" ", *"abcdef"])))
def test_class_names_differ_and_are_not_empty(names):
    if len(set(names)) == len(names) and all(map(str.strip, names)):
        assert distinct_names(names, Path("a.txt")) == tuple(names)
    else:
        with pytest.raises(
            ValueError, match=r"^'a.txt' names \d+ classes '.?': give each a name of its own$"
        ):
            distinct_names(names, Path("a.txt"))
