"""Tar shards: round trips, layouts of other programs, damage found and named."""

import json
import pickle
import tarfile
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.layouts import write_shards
from minclip.data.records import Record
from minclip.data.tarfiles import check_end, read_shard
from tests.minclip.data.tars import draw, encoded, same_image, samples, write_tar

CLASSES = [("a cat", "one cat"), ("a dog",)]


TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
LINES = st.lists(TEXT.filter(lambda text: text.strip()), min_size=1, max_size=3)


@given(st.lists(LINES, min_size=1, max_size=8), st.integers(1, 5), st.booleans())
def test_round_trip(tmp_path_factory, captions, shard_size, with_class):
    folder = tmp_path_factory.mktemp("shards")
    records = [Record(f"{k}", partial(draw, k), tuple(texts), k % 2) for k, texts in enumerate(captions)]
    shards = write_shards(samples(records, with_class), folder, shard_size)
    sizes = json.loads((folder / "sizes.json").read_text())
    assert [path.name for path in shards] == list(sizes)
    assert max(sizes.values()) <= shard_size
    found: list[Record] = []
    for path in shards:
        check_end(path)
        read, left_out = read_shard(path, CLASSES if with_class else (), first=len(found))
        assert (len(read), left_out) == (sizes[path.name], [])
        found += read
    assert len(found) == len(records) == len({record.image_id for record in found})
    for number, (record, written) in enumerate(zip(pickle.loads(pickle.dumps(found)), records, strict=True)):
        assert same_image(record, number)
        assert record.group == (written.group if with_class else number)
        one_line = tuple(" ".join(text.splitlines()).strip() for text in written.captions)
        assert record.captions == (CLASSES[written.group] if with_class else one_line)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards_written_by_other_programs(tmp_path, format):
    """Captions and class together, metadata, classes alone; folders and long names; files in any order."""
    long = "deep/" * 10 + "n" * 40
    members = [
        ("./train/000.jpg", encoded(0, "WEBP")),  # the format is recognised by content, not by name
        ("./train/000.txt", b" a cat \n\none cat\r\n"),
        ("./train/000.cls", b"1\n"),
        ("x/1.0.b.txt", b"no image of this name"),
        ("x/1.png", encoded(1)),
        ("x/1.cls", b"0"),
        ("x/1.json", json.dumps({"url": "u", "caption": "a dog", "width": 3}).encode()),
        (f"{long}.cls", b"0"),
        (f"{long}.WEBP", encoded(2, "WEBP")),
        ("3.json", json.dumps({"captions": ["x", "", " y "]}).encode()),
        ("3.png", encoded(3)),
        ("3.cls", b"1"),
        ("README", b"nothing"),
        ("._3.png", b"left by a Mac"),
    ]
    path = write_tar(tmp_path / "0.tar", members, format=format)
    check_end(path)
    records, left_out = read_shard(path, CLASSES, first=100)
    assert [record.captions for record in records] == [
        ("a cat", "one cat"),
        ("a dog",),
        CLASSES[0],
        ("x", "y"),
    ]
    assert [record.group for record in records] == [1, 0, 0, 1]
    assert [record.image_id for record in records] == [
        "0.tar/train/000",
        "0.tar/x/1",
        f"0.tar/{long}",
        "0.tar/3",
    ]
    assert all(same_image(record, number) for number, record in enumerate(records))
    assert left_out == []


def test_classes_without_names_and_numbers_of_samples_are_different_groups(tmp_path):
    """Sample 1 has the class 0, sample 2 the class 1, samples 0 and 3 none."""
    labels = {"b": b"0", "c": b"1"}
    members = [(f"{key}.png", encoded(0)) for key in "abcd"] + [(f"{key}.txt", b"x") for key in "abcd"]
    path = write_tar(tmp_path / "0.tar", members + [(f"{key}.cls", label) for key, label in labels.items()])
    groups = [record.group for record in read_shard(path, ())[0]]
    assert len(set(groups)) == 4
    again = [record.group for record in read_shard(path, (), first=4)[0]]
    assert [group in groups for group in again] == [False, True, True, False]
    write_tar(path, [("a.png", encoded(0)), ("a.txt", b"x"), ("a.cls", b"-1")])
    with pytest.raises(ValueError, match=r"0.tar/a has the class -1: classes are numbered from 0"):
        read_shard(path, ())


def test_incomplete_samples_are_left_out_by_name(tmp_path):
    members = [
        ("a.png", encoded(0)),
        ("b.txt", b"a dog"),
        ("c.png", encoded(1)),
        ("c.txt", b" \n"),
        ("d.json", b"{}"),
    ]
    path = write_tar(tmp_path / "0.tar", [*members, ("e.png", encoded(2)), ("e.txt", b"a cat")])
    records, left_out = read_shard(path, (), first=7)
    assert [(record.image_id, record.group) for record in records] == [("0.tar/e", 7)]
    assert left_out == ["0.tar/a", "0.tar/b", "0.tar/c", "0.tar/d"]


@pytest.mark.parametrize(
    "name, content, classes, message",
    [
        ("a.cls", b"2", CLASSES, "0.tar/a has the class 2, classnames.txt beside the shards names 2 classes"),
        ("a.cls", b"-1", CLASSES, "0.tar/a has the class -1: classes are numbered from 0"),
        ("a.cls", b"0", (), "has the class 0, classnames.txt beside the shards names 0 classes"),
        ("a.cls", b"cat", CLASSES, "has a damaged .txt, .json or .cls: invalid literal"),
        ("a.txt", b"caf\xe9", (), "has a damaged .txt, .json or .cls: 'utf-8'"),
        ("a.json", b"{", (), "has a damaged .txt, .json or .cls: "),
        ("a.json", b"[1]", (), "has a damaged .txt, .json or .cls: "),
        ("a.json", b"[" * 100_000, (), "has a damaged .txt, .json or .cls: maximum recursion"),
        (
            "a.json",
            b'{"text": {"a": 1}}',
            (),
            "or .cls: column 'text' holds {'a': 1}, which is not text: write",
        ),
        (
            "a.txt",
            b"a dog",
            CLASSES,
            "0.tar/a has no .cls: give every sample a class, or remove classnames.txt",
        ),
    ],
)
def test_faulty_texts_are_named(tmp_path, name, content, classes, message):
    path = write_tar(tmp_path / "0.tar", [("a.png", encoded(0)), (name, content)])
    with pytest.raises(ValueError, match=message) as caught:
        read_shard(path, classes)
    assert "\n" not in str(caught.value)


def test_a_damaged_image_is_named_when_it_is_opened(tmp_path):
    path = write_tar(
        tmp_path / "0.tar", [("a.png", encoded(0)[:60]), ("a.txt", b"x"), ("b.png", b""), ("b.txt", b"y")]
    )
    for record in read_shard(path, ())[0]:
        with pytest.raises(ValueError, match=r"cannot decode image '.*0\.tar/[ab]': "):
            record.open()


@given(st.integers(1, 10240))
def test_every_cut_is_found(tmp_path_factory, missing):
    """`check_end` finds a cut before the final padding, and `read_shard` a cut within any file."""
    folder = tmp_path_factory.mktemp("shards")
    path = write_tar(folder / "0.tar", [(f"{k}.{e}", encoded(k)) for k in range(3) for e in ("png", "txt")])
    whole = path.read_bytes()
    used = len(whole.rstrip(b"\0"))
    path.write_bytes(whole[: len(whole) - missing])
    if missing > len(whole) - used or missing % 512:
        with pytest.raises(ValueError, match=r"shard '.*0\.tar' does not end as a tar file does at byte"):
            check_end(path)
    if missing > len(whole) - used:
        with pytest.raises(ValueError, match=r"shard '.*0\.tar' is not a whole tar file: ") as caught:
            read_shard(path, ())
        assert "\n" not in str(caught.value)


def test_damaged_headers_doubles_and_other_files(tmp_path):
    path = write_tar(tmp_path / "0.tar", [(f"{k}.txt", b"x") for k in range(3)])
    whole = path.read_bytes()
    path.write_bytes(
        whole[:1024] + b"\xff" * 512 + whole[1536:]
    )  # tarfile alone would end here without an error
    with pytest.raises(ValueError, match="is not a whole tar file: no header at byte 1024; fetch it again"):
        read_shard(path, ())
    write_tar(path, [("a.txt", b"x"), ("b.txt", b"x"), ("a.TXT", b"x")])
    with pytest.raises(ValueError, match=r"is not a whole tar file: a\.TXT is there twice"):
        read_shard(path, ())
    path.write_bytes(b"no tar at all" * 200)
    with pytest.raises(ValueError, match="does not end as a tar file does at byte 2600"):
        check_end(path)
    with pytest.raises(ValueError, match=r"cannot read shard '.*none\.tar': No such file"):
        check_end(tmp_path / "none.tar")
