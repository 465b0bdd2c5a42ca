"""COCO: each image has its captions and its split; faults are one line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minclip.data.coco import CocoConfig
from minclip.data.records import Record
from tests.minclip.data.published import write_coco


def read(root: Path, **fields) -> dict[str, list[Record]]:
    return CocoConfig(root=str(root), **fields).read()


TEXT = st.text(min_size=1, max_size=20).filter(lambda text: text.strip())
IMAGES = st.dictionaries(
    st.integers(1, 10**6), st.lists(TEXT, min_size=1, max_size=6), min_size=1, max_size=5
)


@given(IMAGES, IMAGES, st.sampled_from(["2014", "2017"]))
def test_round_trip(tmp_path_factory, train, val, year):
    root, expected = tmp_path_factory.mktemp("coco"), {}
    for folder, split, captions in ((f"train{year}", "train", train), (f"val{year}", "dev", val)):
        for number, name in write_coco(root, folder, captions).items():
            expected[f"{folder}/{name}"] = split, tuple(text.strip() for text in captions[number])
    splits = read(root, year=year)
    assert expected == {r.image_id: (split, r.captions) for split, records in splits.items() for r in records}
    groups = [record.group for records in splits.values() for record in records]
    assert sorted(groups) == list(range(len(expected)))
    assert splits["dev"][0].open().size == (3, 2)


def test_one_of_the_files_is_enough_and_some_images_may_be_missing(tmp_path):
    names = write_coco(tmp_path, "val2017", {1: ["x"], 2: ["y", " "], 3: []})
    (tmp_path / "val2017" / names[1]).unlink()
    with pytest.warns(
        UserWarning, match="left out 1 images with captions, not in .*: val2017/000000000001.jpg"
    ):
        splits = read(tmp_path)
    assert {split: [(r.image_id, r.captions) for r in records] for split, records in splits.items()} == {
        "dev": [("val2017/000000000002.jpg", ("y",))]
    }
    with pytest.raises(
        ValueError, match=r"no captions_train2014.json and no captions_val2014.json in .*annotations'"
    ):
        read(tmp_path, year="2014")


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is not JSON"),
        ("[]", "is not as published"),
        (
            '{"images": [], "annotations": [{"caption": "x"}]}',
            r"is not as published \(KeyError: 'image_id'\)",
        ),
        ('{"images": [{"id": 1}], "annotations": []}', r"is not as published \(KeyError: 'file_name'\)"),
        (
            '{"images": [], "annotations": [{"image_id": 5, "caption": "x"}]}',
            "a caption for image 5, which it does",
        ),
        (
            '{"images": [], "annotations": []}',
            "captions_train2017.json' has no caption: fetch it again",
        ),
    ],
)
def test_faults_are_named(tmp_path, content, message):
    write_coco(tmp_path, "train2017", {1: ["x"]}, with_files=False)
    with pytest.raises(ValueError, match=r"none of the 1 images .*: put the images into .*train2017' and"):
        read(tmp_path)
    (tmp_path / "annotations" / "captions_train2017.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
    assert "captions_train2017.json" in str(caught.value)
