"""Shards: records from files, counts, classes and faults; bounded memory."""

import json
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.layouts import write_shards
from minclip.clip import CLIP
from minclip.data.cifar10 import Cifar10Config
from minclip.data.dataset import PairDataset
from minclip.data.shards import ShardBatches, ShardRecords, ShardsConfig, expand, shard_order
from minclip.data.tarfiles import read_shard
from minclip.data.tokenizer import WordPiece
from minclip.data.transforms import ImageTransform, TransformConfig
from minclip.features import with_features
from tests.drawing import SMALL
from tests.minclip.data.tars import encoded, make_shards, same_image, samples, write_tar

TOKENIZER = WordPiece.train(["caption 0123456789"], 40)


def read(path: Path, **fields) -> dict[str, ShardRecords]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "counted")
        return ShardsConfig(path=str(path), **fields).read()


def numbers(records) -> list[int]:
    return [int(record.captions[0].split()[1]) for record in records]


def dataset(records, **options) -> PairDataset:
    transform = ImageTransform(TransformConfig(crop_scale=(0.5, 1.0), flip=True), (4, 4), train=True)
    return PairDataset(records, transform, TOKENIZER, 16, seed=3, **options)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_draw_their_keys_from_the_files(tmp_path, workers):
    make_shards(tmp_path, 23)
    pairs = dataset(read(tmp_path)["train"])
    batches = ShardBatches(dataset(read(tmp_path)["train"]), 4, 7, 6, workers)
    for step, found in zip(range(3, 12), batches.from_step(3), strict=False):
        batch = pairs.collate([pairs[key] for key in batches.keys(step)])
        assert found.keys() == batch.keys()
        assert all(torch.equal(found[name], batch[name]) for name in batch)


@given(st.integers(2, 20), st.integers(1, 6), st.booleans())
def test_records_equal_those_written(tmp_path_factory, n, shard_size, listed):
    folder = tmp_path_factory.mktemp("shards")
    shards = make_shards(folder, n, shard_size)
    if not listed:
        (folder / "sizes.json").unlink()
    records = read(folder, dev_shards=0)["train"]
    assert len(records) == n
    assert numbers(records) == list(range(n))
    assert [record.group for record in records] == list(range(n))
    assert numbers(records[1:-1:2]) == list(range(n))[1:-1:2]
    assert numbers([records[-1], records[-n]]) == [n - 1, 0]
    for index in (n, -n - 1):
        with pytest.raises(IndexError):
            records[index]
    copy = pickle.loads(pickle.dumps(records))
    assert same_image(copy[n // 2], n // 2)
    if len(shards) > 1:
        splits = read(folder)
        assert numbers(splits["train"]) + numbers(splits["dev"]) == list(range(n))
        assert len(splits["dev"]) == (n - 1) % shard_size + 1


def test_only_shards_being_read_are_kept_in_memory(tmp_path, monkeypatch):
    make_shards(tmp_path, 40, 4)
    opened = []
    monkeypatch.setattr(
        "minclip.data.shards.read_shard", lambda path, *rest: opened.append(path) or read_shard(path, *rest)
    )
    records = read(tmp_path, dev_shards=0, buffer=4)["train"]
    order = shard_order(records.sizes, 0, 0, 4)
    most = 0
    for index in order:
        assert numbers([records[index]]) == [index]
        most = max(most, sum(len(held) for held in records.held.values()))
    assert len(opened) == 10  # each shard once
    assert most <= 2 * 4 + 2 * 4 < len(records)


def test_the_folders_of_a_benchmark(tmp_path):
    """The layout of clip-benchmark: split folders, numbers without leading zeros, class names, {c} templates."""
    for split, count in (("train", 11), ("test", 2)):
        (tmp_path / split).mkdir()
        (tmp_path / split / "nshards.txt").write_text(f"{count}\n")
        for k in range(count):
            write_tar(
                tmp_path / split / f"{k}.tar",
                [(f"s{k:07}.png", encoded(k)), (f"s{k:07}.cls", b"%d" % (k % 2))],
            )
    with pytest.raises(
        ValueError, match=r"has the class 0, classnames.txt beside the shards names 0 classes"
    ):
        read(tmp_path)
    (tmp_path / "classnames.txt").write_text("apple\ndog\n")
    splits = read(tmp_path)
    assert {split: len(records) for split, records in splits.items()} == {"train": 11, "test": 2}
    assert [record.group for record in splits["train"]] == [k % 2 for k in range(11)]  # 2.tar before 10.tar
    assert splits["test"][0].captions == ("a photo of an apple",)
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}.\nthe {c}\n")
    assert read(tmp_path)["test"][1].captions == ("a dog.", "the dog")
    config = ShardsConfig(path=str(tmp_path), templates=("one {}",))
    assert config.read()["test"][1].captions == ("one dog",)
    assert (config.class_names(), config.class_templates()) == (("apple", "dog"), ("one {}",))


def test_brace_ranges(tmp_path):
    assert expand("a-{008..010}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert expand("{0..1}/{9..10}.tar") == ["0/9.tar", "0/10.tar", "1/9.tar", "1/10.tar"]
    assert expand("plain.tar") == ["plain.tar"]
    make_shards(tmp_path, 12)
    splits = read(Path(f"{tmp_path}/{{00000..00002}}.tar"))
    assert (numbers(splits["train"]), numbers(splits["dev"])) == (list(range(8)), list(range(8, 12)))
    with pytest.raises(ValueError, match=r"cannot read shard '.*00003\.tar': No such file"):
        read(Path(f"{tmp_path}/{{00000..00003}}.tar"))


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """Names of the shards that were read."""
    names = []
    monkeypatch.setattr(
        "minclip.data.shards.read_shard",
        lambda path, *rest: names.append(path.name) or read_shard(path, *rest),
    )
    return names


def test_samples_are_counted_once(tmp_path, counted):
    """The count is written beside the shards, and counts already there stay."""
    shards = make_shards(tmp_path, 12)
    sizes = tmp_path / "sizes.json"
    sizes.write_text('{"00001.tar": 4, "x.tar": 7}')
    with pytest.warns(UserWarning, match=f"counted 8 samples in 2 shards, kept in '{sizes}': remove it"):
        first = ShardsConfig(path=str(tmp_path)).read()
    assert sorted(counted) == ["00000.tar", "00002.tar"]
    assert json.loads(sizes.read_text()) == {"x.tar": 7} | {shard.name: 4 for shard in shards}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = ShardsConfig(path=str(tmp_path)).read()
    assert len(counted) == 2
    assert {split: records.sizes for split, records in second.items()} == {"train": [4, 4], "dev": [4]}
    assert [records.sizes for records in first.values()] == [records.sizes for records in second.values()]


def test_each_folder_keeps_its_own_count(tmp_path):
    for split, n in (("train", 8), ("dev", 3)):
        make_shards(tmp_path / split, n)
        (tmp_path / split / "sizes.json").unlink()
    with pytest.warns(UserWarning, match="counted") as caught:
        ShardsConfig(path=str(tmp_path)).read()
    messages = [str(warning.message).partition(":")[0] for warning in caught]
    assert sorted(messages) == [
        f"counted {count}, kept in '{tmp_path / split / 'sizes.json'}'"
        for count, split in (("3 samples in 1 shards", "dev"), ("8 samples in 2 shards", "train"))
    ]
    assert json.loads((tmp_path / "train" / "sizes.json").read_text()) == {"00000.tar": 4, "00001.tar": 4}
    assert json.loads((tmp_path / "dev" / "sizes.json").read_text()) == {"00000.tar": 3}


def test_a_folder_that_cannot_be_written_is_read(tmp_path, counted, monkeypatch):
    make_shards(tmp_path, 8)
    (tmp_path / "sizes.json").unlink()

    def refuse(path, text):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("minclip.data.shards.replace_text", refuse)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"counted 8 samples in 2 shards, not kept: .*Read-only file"):
            assert [len(records) for records in ShardsConfig(path=str(tmp_path)).read().values()] == [4, 4]
    assert len(counted) == 4


def test_only_the_first_process_counts(tmp_path, counted, monkeypatch):
    """The second process receives the counts of the first."""
    shards = make_shards(tmp_path, 8)
    (tmp_path / "sizes.json").unlink()
    monkeypatch.setattr("minlm.training.distributed.rank", lambda: 1)
    monkeypatch.setattr("minlm.training.distributed.world_size", lambda: 2)
    received = dict.fromkeys(shards, 3)
    monkeypatch.setattr(
        "minlm.training.distributed.dist.broadcast_object_list", lambda v: v.__setitem__(0, received)
    )
    assert [records.sizes for records in read(tmp_path).values()] == [[3], [3]]
    assert not counted
    assert not (tmp_path / "sizes.json").exists()


def test_incomplete_samples_are_counted_and_named(tmp_path):
    for k in range(2):
        write_tar(tmp_path / f"{k}.tar", [("a.png", encoded(k)), ("a.txt", b"x"), ("b.png", encoded(k))])
    with pytest.warns(UserWarning, match=r"left out 2 samples, .* caption: 0\.tar/b, 1\.tar/b$"):
        assert len(ShardsConfig(path=str(tmp_path)).read()["train"]) == 1


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.filterwarnings("ignore:left out 1 samples", "ignore:counted 1 samples")
def test_a_split_without_samples_is_refused(tmp_path, listed):
    write_tar(tmp_path / "0.tar", [("a.png", encoded(0)), ("a.txt", b"x")])
    write_tar(tmp_path / "1.tar", [("b.png", encoded(0))])
    if listed:
        (tmp_path / "sizes.json").write_text('{"0.tar": 1, "1.tar": 0}')
    with pytest.raises(ValueError, match=r"no sample of split dev at '.*' has an image and a caption: fetch"):
        ShardsConfig(path=str(tmp_path)).read()


def test_faults_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"0 shards at '.*', dev_shards=1 of them held out: none is left"):
        read(tmp_path)
    shards = make_shards(tmp_path, 8)
    with pytest.raises(ValueError, match=r"2 shards at '.*', dev_shards=2 of them"):
        read(tmp_path, dev_shards=2)
    (tmp_path / "sizes.json").write_text(json.dumps({"00000.tar": 5, "00001.tar": 4}))
    with pytest.raises(
        ValueError, match=r"'.*00000.tar' gives 4 records, sizes.json .* says 5: remove sizes.json"
    ):
        read(tmp_path)["train"][0]
    for content in ("[4, 4]", '{"00000.tar": "4"}', '{"00000.tar": -1}'):
        (tmp_path / "sizes.json").write_text(content)
        with pytest.raises(ValueError, match=r"sizes.json' is not a table of shards and numbers"):
            read(tmp_path)
    (tmp_path / "sizes.json").write_text(json.dumps({"00000.tar": 4, "00001.tar": 4}))
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"00000.tar/s0000000 has no .cls: give every sample a class, or"):
        read(tmp_path)
    for content, message in (
        (b"cat\ndog\ncat\n", r"names 2 classes 'cat': give each a name of its own"),
        (b"cat\n\ndog\n", r"names 1 classes '': give each a name of its own"),
        (b"caf\xe9\n", r"is not UTF-8 text \(invalid continuation byte\): save it as UTF-8"),
    ):
        (tmp_path / "classnames.txt").write_bytes(content)
        for path in (tmp_path, tmp_path / "{00000..00001}.tar"):
            with pytest.raises(ValueError, match=f"^'{tmp_path}/classnames.txt' {message}$"):
                read(path)
    (tmp_path / "classnames.txt").unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:900])
    with pytest.raises(ValueError, match=r"shard '.*00001.tar' does not end as a tar file does at byte 900"):
        read(tmp_path)
    with pytest.raises(ValueError, match="buffer=0 must be at least 1"):
        ShardsConfig(buffer=0)
    with pytest.raises(ValueError, match="templates"):
        ShardsConfig(templates=("a photo",))


def test_a_damaged_image_is_replaced_and_a_damaged_shard_stops_the_run(tmp_path):
    members = [(f"{k}.png", encoded(k)[: 40 if k == 1 else None]) for k in range(4)]
    path = write_tar(
        tmp_path / "0.tar", [m for k in range(4) for m in (members[k], (f"{k}.txt", b"caption %d" % k))]
    )
    records = read(tmp_path, dev_shards=0)["train"]
    data = dataset(records, max_corrupt=0.3)
    assert [data[0, k]["group"] for k in range(4)] == [0, 2, 2, 3]
    assert [(name, "cannot decode image" in message) for name, message in data.corrupt] == [("0.tar/1", True)]
    records.held.clear()
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match="is not a whole tar file"):
        data[1, 0]
    assert data.damaged.sum() == 1


@pytest.mark.parametrize("frozen", [("image",), ("image", "text")])
def test_a_frozen_image_tower_does_not_stop_the_streaming_of_shards(tmp_path, frozen):
    """Also without random views, since the features of all images may not fit into memory."""
    make_shards(tmp_path, 8)
    image = replace(SMALL.image, trained_blocks=0)
    known = {"vocab_size": TOKENIZER.vocab_size, "end_id": TOKENIZER.end_id}
    text = replace(SMALL.text, trained_blocks=0 if "text" in frozen else -1, **known)
    transform = ImageTransform(TransformConfig(), image.image_size, train=True)
    records = read(tmp_path, dev_shards=0)["train"]
    pairs = PairDataset(records, transform, TOKENIZER, 8, seed=0, cache_bytes=10**6)
    data = with_features(pairs, CLIP(replace(SMALL, image=image, text=text)))
    batch = next(ShardBatches(data, 4, seed=0).from_step(0))
    assert batch["images"].shape == (4, 3, 8, 8)
    assert ("text_features" in batch) == ("text" in frozen)


def test_the_real_cifar10_through_shards(data_root, tmp_path):
    """The test images, written with their classes, give back the same records."""
    config = Cifar10Config(root=str(data_root / "cifar-10-batches-py"))
    expected = config.read()["test"]
    write_shards(samples(expected, with_class=True), tmp_path, 128)
    (tmp_path / "classnames.txt").write_text("\n".join(config.class_names()))
    found = read(tmp_path, dev_shards=0)["train"]
    assert [(r.captions, r.group) for r in found] == [(r.captions, r.group) for r in expected]
    assert all(a.open().tobytes() == b.open().tobytes() for a, b in zip(found, expected, strict=True))
