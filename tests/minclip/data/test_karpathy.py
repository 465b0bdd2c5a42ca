"""Karpathy's JSON files: records and splits come back; faults are one line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minclip.data.flickr8k import LISTS, Flickr8kConfig, kaggle_rows, read_captions
from minclip.data.karpathy import KarpathyConfig, read_split_lists
from minclip.data.records import Record
from tests.minclip.data.published import karpathy_entry, write_karpathy

SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}
SPLIT = st.sampled_from(list(SPLITS))
TEXT = st.text(min_size=1, max_size=20).filter(lambda text: text.strip())


def read(path: Path, **fields) -> dict[str, list[Record]]:
    return KarpathyConfig(path=str(path), **fields).read()


@given(
    st.lists(st.tuples(SPLIT, st.lists(TEXT, min_size=1, max_size=5), st.booleans()), min_size=1, max_size=8)
)
def test_round_trip(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("karpathy")
    listed = [
        karpathy_entry(f"{k}.png", split, texts, "val2014" if filed else None)
        for k, (split, texts, filed) in enumerate(drawn)
    ]
    splits = read(write_karpathy(folder / "dataset_coco.json", listed))
    found = {r.image_id: (split, r.captions) for split, records in splits.items() for r in records}
    assert found == {
        ("val2014/" if filed else "") + f"{k}.png": (SPLITS[split], tuple(text.strip() for text in texts))
        for k, (split, texts, filed) in enumerate(drawn)
    }
    groups = [record.group for records in splits.values() for record in records]
    assert sorted(groups) == list(range(len(drawn)))
    assert all(record.open().size == (3, 2) for records in splits.values() for record in records)


def test_images_may_lie_elsewhere_and_some_may_be_missing(tmp_path):
    write_karpathy(
        tmp_path / "images" / "unused.json",
        [karpathy_entry("a.png", "train", ["x"]), karpathy_entry("b.png", "val", ["x"])],
    )
    path = tmp_path / "dataset_flickr8k.json"
    listed = [karpathy_entry(f"{name}.png", "train", ["x"]) for name in "abc"] + [
        karpathy_entry("d.png", "val", [])
    ]
    write_karpathy(path, listed, with_files=False)
    with pytest.raises(
        ValueError, match=r"none of the 3 images .*'.*a.png': give the folder .* with --data.image_root"
    ):
        read(path)
    with pytest.warns(UserWarning, match="left out 1 images with captions, not in .*images: c.png"):
        assert [r.image_id for r in read(path, image_root=str(tmp_path / "images"))["train"]] == [
            "a.png",
            "b.png",
        ]


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"images": [', "is not JSON: "),
        (
            '{"annotations": []}',
            r"is not as published \(KeyError: 'images'\): each of its images needs filename",
        ),
        ("[]", "is not as published"),
        ('{"images": [{"filename": "a.png"}]}', r"is not as published \(KeyError: 'split'\)"),
        ('{"images": ["a.png"]}', "is not as published"),
        (
            json.dumps({"images": [karpathy_entry("a.png", "trian", ["x"])]}),
            "image 'a.png' has the split 'trian': use train",
        ),
        (json.dumps({"images": [karpathy_entry("a.png", "val", ["x"])] * 2}), "lists image 'a.png' twice"),
        (json.dumps({"images": []}), "lists no image: fetch it again"),
        (
            json.dumps({"images": [karpathy_entry("a.png", "val", [])]}),
            "no image with a caption in '.*': is it the right",
        ),
    ],
)
def test_faults_are_named(tmp_path, content, message):
    path = tmp_path / "dataset_flickr30k.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert "dataset_flickr30k.json" in str(caught.value)
    with pytest.raises(ValueError, match=r"cannot read .*none\.json': No such file"):
        read(tmp_path / "none.json")


def test_the_published_flickr8k_through_its_json(data_root, tmp_path):
    """A JSON file made of the published lists and captions gives the same records as the lists."""
    root = data_root / "flickr8k"
    captions = read_captions(root / "captions.txt", kaggle_rows)
    listed = [
        karpathy_entry(name, {"train": "train", "dev": "val"}[split], captions[name])
        for split in ("train", "dev")
        for name in (root / LISTS[split]).read_text().split()
    ]
    path = write_karpathy(tmp_path / "dataset_flickr8k.json", listed, with_files=False)
    splits, expected = read(path, image_root=str(root / "Images")), Flickr8kConfig(root=str(root)).read()
    assert {name: len(records) for name, records in splits.items()} == {"train": 6000, "dev": 1000}
    for name, records in splits.items():
        assert {r.image_id: r.captions for r in records} == {r.image_id: r.captions for r in expected[name]}
    assert read_split_lists(path)["dev"] == (root / LISTS["dev"]).read_text().split()
