"""CIFAR-10: published pickles give back every pixel; other content is refused and never run."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minclip.data.cifar10 import Cifar10Config
from tests.minclip.data.published import CIFAR10_NAMES, cifar10_noise, python2_pickle, write_cifar10


def read(root: Path, **fields) -> dict:
    return Cifar10Config(root=str(root), **{"dev_fraction": 0.5, **fields}).read()


@given(st.lists(st.integers(1, 5), min_size=6, max_size=6))
def test_every_row_comes_back(tmp_path_factory, sizes):
    root = tmp_path_factory.mktemp("cifar")
    written = write_cifar10(root, tuple(sizes))
    splits = read(root)
    assert len(splits["test"]) == sizes[-1]
    assert len(splits["train"]) + len(splits["dev"]) == sum(sizes[:-1])
    found = {record.image_id: record for records in splits.values() for record in records}
    assert len(found) == sum(sizes)
    for name, (pixels, labels) in written.items():
        for number, (row, label) in enumerate(zip(pixels, labels, strict=True)):
            record = pickle.loads(pickle.dumps(found[f"{name}/{number:05}"]))
            red, green, blue = row[:1024], row[1024:2048], row[2048:]
            image = np.asarray(record.open())
            for y, x in ((0, 0), (0, 31), (31, 0), (7, 19)):
                assert image[y, x].tolist() == [channel[32 * y + x] for channel in (red, green, blue)]
            assert image.tobytes() == np.stack([red, green, blue], -1).tobytes()
            assert record.group == label
            article = "an" if CIFAR10_NAMES[label] == b"airplane" else "a"
            assert record.captions == (f"a photo of {article} {CIFAR10_NAMES[label].decode()}",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_of_todays_numpy_are_read(tmp_path, protocol):
    """Python 3 writes bytes through _codecs.encode, and numpy 2 under new module names."""
    write_cifar10(tmp_path)
    pixels = cifar10_noise(3, 9)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": pixels, b"labels": [0, 1, 2]}, protocol))
    test = read(tmp_path)["test"]
    assert np.asarray(test[2].open()).tobytes() == pixels[2].reshape(3, 1024).T.tobytes()
    assert [record.group for record in test] == [0, 1, 2]


def test_dev_is_drawn_from_the_training_images(tmp_path):
    write_cifar10(tmp_path, (4, 4, 4, 4, 4, 3))
    splits = read(tmp_path, dev_fraction=0.25)
    assert [len(splits[name]) for name in ("train", "dev", "test")] == [15, 5, 3]
    other = read(tmp_path, dev_fraction=0.25, split_seed=1)
    assert [r.image_id for r in other["dev"]] != [r.image_id for r in splits["dev"]]
    assert {r.image_id.split("/")[0] for r in splits["test"]} == {"test_batch"}


def test_class_names_and_templates(tmp_path):
    write_cifar10(tmp_path)
    config = Cifar10Config(root=str(tmp_path), templates=("a {}", "A {} of a {}", "the {}", "data {}"))
    assert config.class_names() == ("airplane", "cat", "dog")
    airplane = next(record for record in config.read()["test"] if record.group == 0)
    assert airplane.captions == ("an airplane", "An airplane of an airplane", "the airplane", "data airplane")
    for templates in ((), ("a photo",)):
        with pytest.raises(ValueError, match=r"templates \(.*\) need one or more texts, each with \"\{\}\""):
            Cifar10Config(templates=templates)
    with pytest.raises(ValueError, match=r"dev_fraction=1\.0 must be in"):
        Cifar10Config(dev_fraction=1.0)


class Hostile:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    "call, name", [((os.mkdir, "hacked"), "mkdir"), ((eval, "1"), "eval"), ((np.load, "x"), "load")]
)
def test_a_hostile_pickle_is_refused_unrun(tmp_path, monkeypatch, call, name):
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps({b"data": Hostile(*call), b"labels": []}, 2))
    with pytest.raises(
        ValueError, match=rf"data_batch_3' is not .* it asks for \S+\.{name}, which CIFAR-10"
    ) as e:
        read(tmp_path)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "hacked").exists()


@given(st.integers(0, 6400), st.integers(0, 255))
def test_damage_is_a_one_line_error_or_changes_no_more_than_pixels(tmp_path_factory, place, value):
    """A truncated file is always an error; a changed byte gives an error or a whole batch."""
    root = tmp_path_factory.mktemp("cifar")
    write_cifar10(root)
    content = python2_pickle(cifar10_noise(2), [0, 1])
    place = place % len(content)
    (root / "test_batch").write_bytes(content[:place])
    with pytest.raises(ValueError, match="test_batch") as caught:
        read(root)
    assert "\n" not in str(caught.value)
    (root / "test_batch").write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
    outcome = ""
    try:
        assert [record.open().size for record in read(root)["test"]] == [(32, 32)] * 2
    except ValueError as error:
        outcome = str(error)
    assert not outcome or ("test_batch" in outcome and "\n" not in outcome)


@pytest.mark.parametrize(
    "content, message",
    [
        (
            {b"data": cifar10_noise(2)[:, :3000], b"labels": [0, 1]},
            r"holds an array of shape \(2, 3000\), not \(N, 3072\)",
        ),
        (
            {b"data": cifar10_noise(2).astype("u2"), b"labels": [0, 1]},
            r"holds an array of type .*u2.*, not of bytes",
        ),
        (
            {b"data": np.asfortranarray(cifar10_noise(2)), b"labels": [0, 1]},
            "holds an array of .* not of bytes in rows",
        ),
        ({b"data": cifar10_noise(2), b"labels": [0]}, "has 2 images and 1 labels"),
        ({b"data": cifar10_noise(2), b"labels": [0, 3]}, "has the label 3, batches.meta names 3 classes"),
        ({b"data": cifar10_noise(2), b"labels": [0, -1]}, "has the label -1"),
        ({b"data": cifar10_noise(2), b"labels": [0, "1"]}, "has the label '1'"),
        ({b"data": np.ndarray, b"labels": []}, "has no array data with a list labels"),
        ({b"data": np.dtype("u1"), b"labels": []}, "holds an array without content"),
        ({b"fine_labels": []}, "has no array data with a list labels"),
        ([1, 2], "holds a list, not a dictionary"),
    ],
)
def test_other_content_is_named(tmp_path, content, message):
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ValueError, match=f"data_batch_2' {message}") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_bytes_that_do_not_fill_the_rows(tmp_path):
    write_cifar10(tmp_path)
    whole = python2_pickle(cifar10_noise(2), [0, 1])
    (tmp_path / "test_batch").write_bytes(whole.replace(b"J\x02\0\0\0J\x00\x0c", b"J\x03\0\0\0J\x00\x0c"))
    with pytest.raises(ValueError, match="has 6144 bytes for 3 images of 3072"):
        read(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(
        ValueError, match=r"cannot read .*batches.meta': No such file .* CIFAR-10's folder as root"
    ):
        read(tmp_path)
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*data_batch_4'"):
        read(tmp_path)
    for content in ({b"fine_label_names": []}, {b"label_names": ["cat"]}, {b"label_names": [b"caf\xe9"]}):
        (tmp_path / "batches.meta").write_bytes(pickle.dumps(content, 2))
        with pytest.raises(
            ValueError, match=r"batches\.meta' has no list label_names of texts in UTF-8: fetch"
        ):
            read(tmp_path)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat", b"dog", b"cat"]}, 2))
    with pytest.raises(
        ValueError, match=r"batches\.meta' names 2 classes 'cat': give each a name of its own"
    ):
        read(tmp_path)


def test_the_real_data(data_root):
    """Every image is read and equals numpy's own unpickling."""
    config = Cifar10Config(root=str(data_root / "cifar-10-batches-py"), dev_fraction=0.1)
    splits = config.read()
    with open(Path(config.root) / "test_batch", "rb") as file:
        expected = pickle.load(file, encoding="bytes")
    assert [r.group for r in splits["test"]] == expected[b"labels"]
    for record, row in zip(splits["test"], expected[b"data"], strict=True):
        assert np.asarray(record.open()).tobytes() == row.reshape(3, 1024).T.tobytes()
    assert {name: len(records) for name, records in splits.items()} == {
        "train": 4653,
        "dev": 517,
        "test": 500,
    }
    assert config.class_names()[3:5] == ("cat", "deer")
    assert {len({r.captions for r in records}) for records in splits.values()} == {10}
