"""Tables of any dialect give back their records."""

import csv
import json
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minclip.data.records import Record
from minclip.data.table import CAPTION_COLUMNS, IMAGE_COLUMNS, SEPARATORS, TableConfig
from tests.minclip.data.published import write_table

FILES = ("a.png", "b c.png", "ü,1.png", "it's;2.png", "sub/d|e.png", "日本.png")


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)


CAPTIONS = st.one_of(
    TEXT, st.sampled_from(['a "big", dog', "one\ntwo", "x;y|z\tw", "=1+1", "a\r\nb", '"', "\u2028a"])
)


ROWS = st.lists(
    st.tuples(st.sampled_from(FILES), CAPTIONS.filter(lambda text: text.strip())), min_size=1, max_size=12
)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    (root / "sub").mkdir()
    for name in FILES:
        Image.new("RGB", (2, 2)).save(root / name)
    return root


def read(path: Path, **fields) -> dict[str, list[Record]]:
    return TableConfig(path=str(path), **fields).read()


def quietly(path: Path, **fields) -> dict[str, list[Record]]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "left out .* repeated captions")
        return read(path, **fields)


def captions_of(splits: dict[str, list[Record]]) -> dict[str, tuple[str, ...]]:
    return {record.image_id: record.captions for records in splits.values() for record in records}


def grouped(rows: list[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    captions: dict[str, tuple[str, ...]] = {}
    for name, text in rows:
        captions[name] = tuple(dict.fromkeys((*captions.get(name, ()), text.strip())))
    return captions


@st.composite
def headers(draw) -> tuple[list[str], int, int]:
    """Column names that include a usual image and a usual caption column, and the positions of these."""
    image, caption = draw(st.sampled_from(IMAGE_COLUMNS)), draw(st.sampled_from(CAPTION_COLUMNS))
    spell = draw(st.sampled_from([str, str.upper, str.title]))
    others = draw(
        st.lists(st.sampled_from(["id", "width", "comment number", "a,b", "licence;x"]), unique=True)
    )
    columns = draw(st.permutations([spell(image), spell(caption), "split", *others]))
    return columns, columns.index(spell(image)), columns.index(spell(caption))


@given(ROWS, headers(), st.sampled_from(SEPARATORS), st.booleans(), st.booleans(), st.booleans())
def test_csv_round_trip(images, rows, header, separator, quote_all, mark, prefix):
    columns, image, caption = header
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "any.name")
        with path.open("w", encoding="utf-8-sig" if mark else "utf-8", newline="") as file:
            quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
            writer = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator="\r\n")
            writer.writerow(columns)
            for name, text in rows:
                row = ["1"] * len(columns)
                row[columns.index("split")] = "train"
                row[image], row[caption] = ("./" if prefix else "") + name, text
                writer.writerow(row)
        splits = quietly(path, image_root=str(images))
    assert splits.keys() == {"train"}
    assert captions_of(splits) == grouped(rows)
    assert len({record.group for record in splits["train"]}) == len(splits["train"])
    assert splits["train"][0].open().size == (2, 2)


@given(ROWS, headers(), st.booleans(), st.booleans(), st.booleans())
def test_jsonl_round_trip(images, rows, header, ascii_only, mark, lists):
    columns, image, caption = header
    expected = grouped(rows)
    pairs = [(name, list(texts)) for name, texts in expected.items()] if lists else rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "any.name")
        with path.open("w", encoding="utf-8-sig" if mark else "utf-8", newline="") as file:
            for name, text in pairs:
                row = {columns[image]: name, columns[caption]: text, "split": "train", "id": 7}
                file.write(json.dumps(row, ensure_ascii=ascii_only) + "\n\n")
        assert captions_of(quietly(path, image_root=str(images))) == expected


def test_images_are_found_beside_the_table_or_absolutely(tmp_path):
    path = write_table(tmp_path, f"image,caption,split\na.png,a dog,dev\n{tmp_path}/b.png,a cat,dev\n")
    assert [record.open().size for record in quietly(path)["dev"]] == [(2, 2), (2, 2)]


def test_flickr30k_layout(tmp_path):
    """Flickr30k's file has bars, blanks after them and one incomplete row."""
    path = write_table(
        tmp_path,
        "image_name| comment_number| comment\na.png| 0| A dog , there .\na.png| 1| Two\nb.png| 4   A dog\n"
        'b.png| 0| "Hey" he said\n',
    )
    with pytest.warns(UserWarning, match=r"left out 1 of 4 rows of .*table.csv: no image or no caption"):
        splits = read(path, dev_fraction=0.5)
    assert captions_of(splits) == {"a.png": ("A dog , there .", "Two"), "b.png": ('"Hey" he said',)}


def test_columns_given_by_hand_win(tmp_path):
    path = write_table(
        tmp_path, "image,caption,photo;place,words\nno.png,no,a.png,yes\nno.png,no,b.png,yes\n"
    )
    splits = quietly(path, image_column="photo;place", caption_column="words", dev_fraction=0.5)
    assert captions_of(splits) == {"a.png": ("yes",), "b.png": ("yes",)}


def test_a_separator_must_show_both_columns(tmp_path):
    path = write_table(tmp_path, "image,caption,split,a;text;b;c;d\na.png,yes,train,no\n")
    assert captions_of(quietly(path)) == {"a.png": ("yes",)}


def test_empty_captions_of_a_list_are_dropped(tmp_path):
    path = write_table(tmp_path, '{"image": "a.png", "captions": [" x ", "", null, "y"], "split": "train"}\n')
    assert captions_of(quietly(path)) == {"a.png": ("x", "y")}


def test_the_first_usual_name_wins(tmp_path):
    path = write_table(tmp_path, "title,text,path,filename,split\nno,yes,no.png,a.png,train\n")
    assert captions_of(quietly(path)) == {"a.png": ("yes",)}


def test_a_column_name_may_end_like_an_image_file(tmp_path):
    path = write_table(tmp_path, "image,caption,b.png,split\na.png,x,y,train\n")
    assert captions_of(quietly(path)) == {"a.png": ("x",)}


def test_repeated_captions_of_an_image_count_once(tmp_path):
    rows = ["a.png,x", "b.png,x", "./a.png, x ", "a.png,X", "b.png,y"]
    path = write_table(tmp_path, "\n".join(["image,caption,split", *(f"{row},train" for row in rows)]))
    with pytest.warns(UserWarning, match=f"left out 1 repeated captions of {path}: .* once"):
        assert captions_of(read(path)) == {"a.png": ("x", "X"), "b.png": ("x", "y")}
    path.write_text('{"image": "a.png", "captions": ["x", "y", "x"], "split": "train"}')
    with pytest.warns(UserWarning, match="left out 1 repeated captions"):
        assert captions_of(read(path)) == {"a.png": ("x", "y")}


def test_two_spellings_of_one_image_are_one_image(tmp_path):
    path = write_table(tmp_path, "image,caption,split\na.png,x,train\n.\\A.png,y,train\nB.png,z,dev\n")
    with pytest.warns(
        UserWarning, match=r"read 2 images by names that differ .*; the first is '\.\\\\A.png'"
    ):
        splits = read(path)
    assert {name: captions_of({name: records}) for name, records in splits.items()} == {
        "train": {"a.png": ("x", "y")},
        "dev": {"b.png": ("z",)},
    }
    path.write_text("image,caption,split\na.png,x,train\nA.png,y,dev\n")
    with pytest.raises(ValueError, match=r"line 3 puts image 'a.png' in dev, a line above in train"):
        read(path)


def test_the_split_is_drawn_by_image(tmp_path):
    names = [f"{k}.png" for k in range(20)]
    lines = [f"{name},caption {k}" for k in range(3) for name in names]
    path = write_table(tmp_path, "\n".join(["image,caption", *lines]), tuple(names))
    splits = {split: [r.image_id for r in records] for split, records in quietly(path).items()}
    assert {split: len(members) for split, members in splits.items()} == {"train": 18, "dev": 2}
    assert sorted(name for members in splits.values() for name in members) == sorted(names)
    path.write_text("\n".join(["image,caption", *lines[::-1]]))
    assert {split: [r.image_id for r in records] for split, records in quietly(path).items()} == splits
    other = {split: [r.image_id for r in records] for split, records in quietly(path, split_seed=1).items()}
    assert other != splits
    assert len(quietly(path, dev_fraction=0.5)["dev"]) == 10


def test_the_split_column_is_used(tmp_path):
    path = write_table(
        tmp_path, "image,caption,Split\na.png,x,Train\nb.png,x,val\nc.png,x,test\na.png,y,restval\n"
    )
    splits = {split: [r.image_id for r in records] for split, records in quietly(path).items()}
    assert splits == {"train": ["a.png"], "dev": ["b.png"], "test": ["c.png"]}


def test_groups_do_not_depend_on_the_split(tmp_path):
    path = write_table(tmp_path, "image,caption,split\nc.png,x,train\na.png,x,dev\nb.png,x,train\n")
    groups = {r.image_id: r.group for records in quietly(path).values() for r in records}
    assert groups == {"a.png": 0, "b.png": 1, "c.png": 2}


def test_rows_without_image_or_caption_are_counted(tmp_path):
    path = write_table(tmp_path, "image,caption,split\na.png,x,train\n,x,train\nb.png,  ,train\nc.png\n\n")
    with pytest.warns(UserWarning, match="left out 3 of 4 rows"):
        assert captions_of(read(path)) == {"a.png": ("x",)}
