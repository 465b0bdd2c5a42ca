"""Flickr8k: both published layouts give the same records; splits are published or drawn, and disjoint."""

import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minclip.data.flickr8k import LISTS, NEVER_PUBLISHED, Flickr8kConfig
from minclip.data.records import Record
from tests.minclip.data.published import (
    write_flickr8k_csv,
    write_flickr8k_lists,
    write_flickr8k_tokens,
    write_images,
)

# The signs that Kaggle's CSV has to quote, and what the published captions are made of.
WORDS = st.text("ab ,\"'.-#é|", min_size=1, max_size=20).filter(lambda text: text.strip())
CAPTIONS = st.lists(st.lists(WORDS, min_size=1, max_size=5), min_size=1, max_size=8).map(
    lambda lists: {f"{k}_ab.jpg": texts for k, texts in enumerate(lists)}
)


def some(n: int) -> dict[str, list[str]]:
    return {f"{k:03}.jpg": [f"a dog {k} .", f"a cat {k} ."] for k in range(n)}


def read(root: Path, **fields) -> dict[str, list[Record]]:
    return Flickr8kConfig(root=str(root), **fields).read()


def quietly(root: Path, **fields) -> dict[str, list[Record]]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read(root, **fields)


def names(splits: dict[str, list[Record]]) -> dict[str, list[str]]:
    return {split: [record.image_id for record in records] for split, records in splits.items()}


def contents(splits: dict[str, list[Record]]) -> dict[str, list[tuple]]:
    return {split: [(r.image_id, r.captions, r.group) for r in records] for split, records in splits.items()}


@given(CAPTIONS, st.sampled_from(["", "Images/", "./Flicker8k_Dataset/", "C:\\data\\"]), st.booleans())
def test_kaggle_and_token_layouts_give_the_same_records(captions, prefix, windows):
    with tempfile.TemporaryDirectory() as folder:
        kaggle, token = Path(folder, "kaggle"), Path(folder, "token")
        write_flickr8k_csv(kaggle, captions, prefix)
        write_images(kaggle, list(captions), "Images")
        write_flickr8k_tokens(token, captions, "\r\n" if windows else "\n")
        write_images(token, list(captions), "Flicker8k_Dataset")
        for root in (kaggle, token):
            write_flickr8k_lists(root, train=list(captions))
        assert contents(quietly(kaggle)) == contents(quietly(token))
        (records,) = quietly(kaggle).values()
        stripped = {name: tuple(text.strip() for text in texts) for name, texts in captions.items()}
        assert {record.image_id: record.captions for record in records} == stripped
        assert sorted(record.group for record in records) == list(range(len(captions)))
        assert records[0].open().size == (2, 2)


@pytest.mark.parametrize(
    "text, images",
    [
        ("Flickr8k_text", "Flickr8k_Dataset"),
        ("Flickr8k_text", "Flickr8k_Dataset/Flicker8k_Dataset"),
        (".", "Flicker8k_Dataset"),
    ],
)
def test_unpacked_archives_are_found(tmp_path, text, images):
    (tmp_path / text).mkdir(exist_ok=True)
    write_flickr8k_tokens(tmp_path / text, some(4))
    write_images(tmp_path, list(some(4)), images)
    write_flickr8k_lists(tmp_path / text, train=list(some(4)))
    assert names(quietly(tmp_path)) == {"train": list(some(4))}


def test_the_misspelt_image(tmp_path):
    """`.jpg.1` belongs to `.jpg`; its image was never published, so there is no warning that it is missing."""
    captions = some(2)
    write_flickr8k_tokens(tmp_path, {**captions, NEVER_PUBLISHED + ".1": ["people waiting"]})
    write_images(tmp_path, list(captions))
    write_flickr8k_lists(tmp_path, train=list(captions))
    assert names(quietly(tmp_path)) == {"train": list(captions)}
    write_images(tmp_path, [NEVER_PUBLISHED])
    write_flickr8k_lists(tmp_path, train=[NEVER_PUBLISHED])
    assert quietly(tmp_path)["train"][0].captions == ("people waiting",)


def test_captions_lose_white_space_and_nothing_else(tmp_path):
    write_flickr8k_csv(
        tmp_path, {"a.jpg": ['  A "big" dog , runs .\t', "   ", "Two  dogs ."], "b.jpg": [" "]}
    )
    write_images(tmp_path, ["a.jpg", "b.jpg"])
    write_flickr8k_lists(tmp_path, train=["a.jpg"])
    assert quietly(tmp_path)["train"][0].captions == ('A "big" dog , runs .', "Two  dogs .")


def test_images_in_no_list_are_in_no_split(tmp_path):
    write_flickr8k_csv(tmp_path, some(9))
    write_images(tmp_path, list(some(9)))
    write_flickr8k_lists(tmp_path, train=["002.jpg", "001.jpg"], dev=["005.jpg"], test=["007.jpg", "007.jpg"])
    assert names(quietly(tmp_path)) == {
        "train": ["002.jpg", "001.jpg"],
        "dev": ["005.jpg"],
        "test": ["007.jpg"],
    }


@given(st.sets(st.sampled_from(list(LISTS)), min_size=1))
def test_any_of_the_lists_may_be_there(present):
    with tempfile.TemporaryDirectory() as folder:
        root, captions = Path(folder), some(6)
        write_flickr8k_csv(root, captions)
        write_images(root, list(captions))
        write_flickr8k_lists(
            root, **{split: [f"00{k}.jpg"] for k, split in enumerate(LISTS) if split in present}
        )
        assert quietly(root).keys() == present


def test_without_lists_the_split_is_drawn_by_image(tmp_path):
    captions = some(40)
    write_flickr8k_csv(tmp_path, captions)
    write_images(tmp_path, list(captions))
    splits = names(quietly(tmp_path))
    assert {split: len(members) for split, members in splits.items()} == {"train": 30, "dev": 5, "test": 5}
    assert sorted(name for members in splits.values() for name in members) == list(captions)
    assert names(quietly(tmp_path, split_seed=1)) != splits
    write_flickr8k_csv(tmp_path, {name: captions[name][::-1] for name in reversed(captions)})
    assert names(quietly(tmp_path)) == splits


def test_too_few_images_for_its_fixed_shares(tmp_path):
    write_flickr8k_csv(tmp_path, some(2))
    write_images(tmp_path, list(some(2)))
    with pytest.raises(
        ValueError, match=r"split 'dev' \(0.125 of 2 images\) would be empty: give more images, or"
    ):
        read(tmp_path)


def test_images_in_another_spelling_are_found(tmp_path):
    write_flickr8k_csv(tmp_path, some(2))
    write_images(tmp_path, ["000.JPG", "001.jpg"])
    write_flickr8k_lists(tmp_path, train=["000.jpg", "001.jpg"])
    with pytest.warns(
        UserWarning, match="read 1 images by names .* the first is '000.jpg', its file '000.JPG'"
    ):
        records = read(tmp_path)["train"]
    assert [record.open().size for record in records] == [(2, 2)] * 2


def test_missing_images_are_counted_and_named(tmp_path):
    write_flickr8k_csv(tmp_path, some(9))
    write_images(tmp_path, list(some(4)))
    write_flickr8k_lists(tmp_path, train=list(some(6)), dev=["007.jpg"])
    with pytest.warns(UserWarning, match="left out") as caught:
        splits = read(tmp_path)
    assert names(splits) == {"train": list(some(4))}
    messages = sorted(str(warning.message) for warning in caught)
    assert messages == [
        "left out 2 images of Flickr_8k.trainImages.txt, without file or caption: 004.jpg, 005.jpg",
        f"left out 5 images with captions, not in {tmp_path / 'Images'}: 004.jpg, 005.jpg, 006.jpg",
        "split 'dev' is left out: none of its 1 images is there",
    ]


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere'.*--data.root"):
        read(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"no captions.txt and no Flickr8k.token.txt in .* is it Flickr8k's folder"
    ):
        read(tmp_path)
    write_flickr8k_csv(tmp_path, some(3))
    with pytest.raises(ValueError, match=r"no folder of images in .* Images, Flicker8k_Dataset"):
        read(tmp_path)
    write_images(tmp_path, ["other.jpg"])
    with pytest.raises(
        ValueError, match=r"none of the 3 images .* looked for at '.*Images/000.jpg': put Flickr8k's images"
    ):
        read(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lists_that_overlap_or_name_nothing(tmp_path):
    write_flickr8k_csv(tmp_path, some(3))
    write_images(tmp_path, list(some(3)))
    write_flickr8k_lists(tmp_path, train=["000.jpg", "001.jpg"], dev=["001.jpg"])
    with pytest.raises(ValueError, match=r"'001.jpg' is in Flickr_8k.trainImages.txt and in Flickr_8k.dev"):
        read(tmp_path)
    (tmp_path / LISTS["dev"]).write_bytes(b"caf\xe9.jpg\n")
    with pytest.raises(ValueError, match=r"devImages.txt' is not UTF-8 text \(.*\): save it as UTF-8$"):
        read(tmp_path)
    write_flickr8k_lists(tmp_path, train=[], dev=["099.jpg"])
    with pytest.raises(ValueError, match=r"no image is in any of Flickr_8k.trainImages.txt, Flickr_8k.dev"):
        read(tmp_path)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("captions.txt", b"file,text\na.jpg,a dog\n", r"has the columns \['file', 'text'\]"),
        ("captions.txt", b"", r"has the columns \[\]"),
        ("captions.txt", b"image,caption\na.jpg,a dog, a cat\n", "line 2 has 3 columns, not 2"),
        ("captions.txt", b'image,caption\na.jpg,"a dog\n', "is not as published: unexpected end of data"),
        ("captions.txt", b"image,caption\na.jpg,caf\xe9\n", "is not UTF-8 text \\(invalid"),
        ("captions.txt", b"image,caption\na.jpg, \n", "captions.txt' has no caption: fetch it again"),
        ("Flickr8k.token.txt", b"a.jpg#0\ta dog\n\nb.jpg#0 a cat\n", "line 3 has no tab"),
        ("Flickr8k.token.txt", b"", "has no caption: fetch it again"),
    ],
)
def test_a_damaged_captions_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_the_published_data(data_root, tmp_path):
    """6,000 and 1,000 images with five captions each, and the same records from the token file."""
    root = data_root / "flickr8k"
    splits = quietly(root)
    assert {split: len(records) for split, records in splits.items()} == {"train": 6000, "dev": 1000}
    assert {len(record.captions) for records in splits.values() for record in records} == {5}
    for name in ("Images", "Flickr8k.token.txt", LISTS["train"], LISTS["dev"]):
        (tmp_path / name).symlink_to(root / name)
    assert contents(quietly(tmp_path)) == contents(splits)
