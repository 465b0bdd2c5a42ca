"""Faults of tables are named with their line, column or file."""

import math
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minclip.data.records import Record
from minclip.data.table import TableConfig, cell
from tests.minclip.data.published import write_table

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)


def read(path: Path, **fields) -> dict[str, list[Record]]:
    return TableConfig(path=str(path), **fields).read()


def captions_of(splits: dict[str, list[Record]]) -> dict[str, tuple[str, ...]]:
    return {record.image_id: record.captions for records in splits.values() for record in records}


@pytest.mark.parametrize("options", [{}, {"image_column": "picture", "caption_column": "caption"}])
def test_columns_found_are_named(tmp_path, options):
    path = write_table(tmp_path, "photo;caption\na.png;a dog\n")
    wanted = "not 'picture'" if options else "not any of image, image_path"
    with pytest.raises(
        ValueError, match=f"has the columns 'photo', 'caption', {wanted}.* with --data.image_column"
    ):
        read(path, **options)
    path = write_table(tmp_path, "photo\timage\na.png\ta dog\n")
    with pytest.raises(
        ValueError, match=r"'photo', 'image', not any of caption, .*with --data.caption_column"
    ):
        read(path)
    with pytest.raises(ValueError, match=r"has the columns \(none\)"):
        read(write_table(tmp_path, ""))


@pytest.mark.parametrize(
    "first, separator",
    [("a.png,a dog", ","), ("a dog;a.PNG", ";"), ("sub/a.jpeg\ta dog, big", "\t"), ("C:\\a.webp|x", "|")],
)
@pytest.mark.parametrize("options", [{}, {"image_column": "a.png", "caption_column": "a dog"}])
def test_a_table_without_column_names_keeps_its_first_row(tmp_path, first, separator, options):
    path = write_table(tmp_path, f"{first}\nb.png,a cat\n")
    with pytest.raises(
        ValueError,
        match=r"table.csv' begins with the image '.*', not with column names: add a first line such as",
    ) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(f"such as {f'image{separator}caption'!r}")


def test_missing_images_are_counted_and_named(tmp_path):
    rows = "".join(f"{name}.png,x,train\n" for name in "azyxw")
    path = write_table(tmp_path, "image,caption,split\n" + rows)
    with pytest.warns(UserWarning, match=r"left out 4 images with captions, not in .*: w.png, x.png, y.png$"):
        assert captions_of(read(path)) == {"a.png": ("x",)}
    with pytest.raises(
        ValueError, match=r"none of the 5 images .* looked for at '/nowhere/a.png': .*--data.image_root"
    ):
        read(path, image_root="/nowhere")
    with (
        pytest.warns(UserWarning, match="1 of 1 rows"),
        pytest.raises(ValueError, match=r"no image with a caption in '.*table.csv': is it the right one"),
    ):
        read(write_table(tmp_path, "image,caption\na.png,\n"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("image,caption\na.png,x\nb.png,a dog, a cat\n", "line 3 has 3 fields for 2 columns: .*','"),
        ('image,caption\na.png,"a dog" he said\n', "line 2: ',' expected after '\"'; put captions"),
        ('image,caption\na.png,"a dog\n', "line 2: unexpected end of data"),
        ("image,caption,split\na.png,x,trian\n", "line 2 has the split 'trian': use train, dev, test"),
        ("image,caption,split\na.png,x,train\na.png,y,dev\n", "line 3 puts image 'a.png' in dev, .* train"),
        ('{"image": "a.png", "caption": "x"}\n{"image"\n', "line 2 is not a JSON object: "),
        ('{"image": "a.png", "caption": "x"}\n["image"]\n', "line 2 is not a JSON object: a list"),
        (
            '{"image": "a.png", "caption": "x"}\n' + "[" * 100_000,
            "line 2 is not a JSON object: maximum recursion",
        ),
        (
            '{"image": {"a": 1}, "caption": "x"}',
            "line 1 column 'image' holds {'a': 1}, which is not text: write",
        ),
        (
            '{"image": "a.png", "caption": ["x", ["y"]]}',
            r"line 1 column 'caption' holds \['y'\], which is not text",
        ),
        (
            '{"image": "a.png", "caption": "x", "split": true}',
            "line 1 column 'split' holds True, which is not",
        ),
        ('{"image": "a.png", "caption": NaN}', "line 1 column 'caption' holds nan, which is not text"),
        ("image,caption,image\na.png,x,b.png\n", "has 2 columns 'image': rename all but one"),
        ("image,text,split,split\na.png,x,train,dev\n", "has 2 columns 'split': rename all but one"),
        (
            f'image,caption\na.png,"{"x" * 131073}"\n',
            "line 2: field larger .*; shorten this caption, or close",
        ),
        ("x" * 131073, "line 1: field larger than field limit .*; let it name the columns"),
    ],
)
def test_a_faulty_line_is_named(tmp_path, text, message):
    path = write_table(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert "table.csv" in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)


@given(VALUES)
def test_a_cell_is_a_text_or_a_number_or_refused(value):
    expected = str(value).strip() if type(value) in (str, int, float) else "" if value is None else None
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            expected = value.decode().strip()
    if expected is None or (type(value) is float and not math.isfinite(value)):
        with pytest.raises(
            ValueError, match=r"^here holds .*, which is not text: write this column as"
        ) as caught:
            cell(value, "here")
        assert "\n" not in str(caught.value)
    else:
        assert cell(value, "here") == expected


def test_a_missing_or_foreign_file(tmp_path):
    with pytest.raises(ValueError, match=r"none.csv' is not a file: .*--data.path"):
        read(tmp_path / "none.csv")
    for encoding in ("latin-1", "utf-16"):
        path = tmp_path / "table.csv"
        path.write_bytes("image,caption\na.png,café\n".encode(encoding))
        with pytest.raises(ValueError, match=r"is not UTF-8 text \(.*\): save it as UTF-8"):
            read(path)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0])
def test_dev_fraction_lies_between_0_and_1(fraction):
    with pytest.raises(ValueError, match=f"dev_fraction={fraction} must be in"):
        TableConfig(dev_fraction=fraction)
