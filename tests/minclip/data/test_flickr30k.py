"""Flickr30k: both published layouts give the same records; splits are Karpathy's."""

import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minclip.data.flickr30k import Flickr30kConfig
from minclip.data.records import Record
from tests.minclip.data.published import (
    FLICKR30K_HEADER,
    write_flickr30k_csv,
    write_flickr30k_splits,
    write_images,
)

# Captions hold bars, quotes and double blanks; none begins with a bar, which would be read as the separator.
TEXT = st.text("ab ,\"'.-#é|", min_size=1, max_size=20).filter(lambda text: text.strip().strip("|").strip())
CAPTIONS = st.lists(
    st.lists(TEXT.map(lambda text: "A" + text), min_size=1, max_size=5), min_size=1, max_size=6
).map(lambda lists: {f"{k}00.jpg": texts for k, texts in enumerate(lists)})


def write_token(root: Path, captions: dict[str, list[str]]) -> None:
    rows = [f"{name}#{k}\t{text}\n" for name, texts in captions.items() for k, text in enumerate(texts)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "results_20130124.token").write_text("".join(rows), encoding="utf-8")
    write_images(root, captions, "flickr30k-images")


def read(root: Path, **fields) -> dict[str, list[Record]]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Flickr30kConfig(root=str(root), **fields).read()


@given(CAPTIONS, st.integers(-1, 5))
def test_kaggle_and_token_layouts_give_the_same_records(tmp_path_factory, captions, without_bar):
    root = tmp_path_factory.mktemp("flickr30k")
    write_flickr30k_csv(root / "kaggle", captions, without_bar)
    write_token(root / "token", captions)
    for name in ("kaggle", "token"):
        write_flickr30k_splits(root / name, train=list(captions))
    write_flickr30k_splits(root / "kaggle" / "flickr30k_images", train=list(captions))
    expected = {name: tuple(text.strip() for text in texts) for name, texts in captions.items()}
    for folder in ("kaggle", "token", "kaggle/flickr30k_images"):
        (records,) = read(root / folder).values()
        assert {record.image_id: record.captions for record in records} == expected
        assert [record.group for record in records] == list(range(len(captions)))
        assert records[0].open().size == (2, 2)


def test_the_published_row_without_its_bar(tmp_path):
    write_images(tmp_path, ["2199200615.jpg"], "flickr30k_images")
    rows = "2199200615.jpg| 3| Dog runs .\n2199200615.jpg| 4   A dog runs across the grass .\n"
    (tmp_path / "results.csv").write_text(FLICKR30K_HEADER + rows)
    write_flickr30k_splits(tmp_path, val=["2199200615.jpg"])
    assert read(tmp_path)["dev"][0].captions == ("Dog runs .", "A dog runs across the grass .")


def test_karpathys_splits_are_used_if_his_file_exists(tmp_path):
    captions = {f"{k:03}.jpg": [f"A dog {k}"] for k in range(100)}
    write_token(tmp_path, captions)
    drawn = read(tmp_path)
    assert {split: len(records) for split, records in drawn.items()} == {"train": 94, "dev": 3, "test": 3}
    assert sorted(r.image_id for records in drawn.values() for r in records) == list(captions)
    other = read(tmp_path, split_seed=1)
    assert [r.image_id for r in other["test"]] != [r.image_id for r in drawn["test"]]
    write_flickr30k_splits(tmp_path, train=["007.jpg", "003.jpg"], val=["050.jpg"], test=["099.jpg"])
    splits = {split: [record.image_id for record in records] for split, records in read(tmp_path).items()}
    assert splits == {"train": ["007.jpg", "003.jpg"], "dev": ["050.jpg"], "test": ["099.jpg"]}
    write_flickr30k_splits(tmp_path, train=["007.jpg"], val=["999.jpg"])
    with pytest.warns(UserWarning, match="split 'dev' is left out: none of its 1 images is there"):
        assert Flickr30kConfig(root=str(tmp_path)).read().keys() == {"train"}


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("results.csv", "image,comment\n", r"has the columns \['image,comment'\], not \['image_name'"),
        (
            "results.csv",
            FLICKR30K_HEADER + "a.jpg| 0| x\nb.jpg, 1, y\n",
            "line 3 is not `image| number| caption`",
        ),
        ("results.csv", FLICKR30K_HEADER + "a.jpg| 0| x\nb.jpg| one| y\n", "line 3 is not"),
        ("results_20130124.token", "a.jpg#0 x\n", "line 1 has no tab"),
    ],
)
def test_faulty_lines_are_named(tmp_path, name, content, message):
    with pytest.raises(
        ValueError, match=r"no results.csv and no results_20130124.token in .* is it Flickr30k's"
    ):
        read(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message.replace("|", r"\|")) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"no folder .*nowhere'.*Flickr30k's folder as root"):
        read(tmp_path / "nowhere")
