"""Records, splits by image, captions of classes."""

import pickle
import random
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minclip.data.records import (
    Question,
    Record,
    class_captions,
    open_image,
    split_by_image,
    warn_of_missing,
)


def make_record(image_id: str, captions: tuple[str, ...] = ("a dog",), group: int = 0) -> Record:
    return Record(image_id, partial(open_image, image_id), captions, group)


def test_a_record_can_be_pickled(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2), "red").save(path)
    record = pickle.loads(pickle.dumps(make_record(str(path))))
    assert record.open().tobytes() == Image.new("RGB", (3, 2), "red").tobytes()


def test_invalid_records_and_questions_are_refused():
    with pytest.raises(ValueError, match=r"'x.png' has no caption"):
        make_record("x.png", captions=())
    with pytest.raises(ValueError, match="answer 2 is not a position in 2 choices"):
        Question(make_record("x.png"), ("a", "b"), 2)
    with pytest.raises(ValueError, match="answer -1"):
        Question(make_record("x.png"), ("a", "b"), -1)


def ids(splits: dict[str, list[Record]]) -> dict[str, list[str]]:
    return {name: [record.image_id for record in records] for name, records in splits.items()}


@given(st.integers(10, 80), st.integers(0, 10**6), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_a_split_is_disjoint_and_depends_on_image_ids_alone(n, seed, parts):
    fractions = {f"part{k}": part / sum(parts) for k, part in enumerate(parts)}
    if min(fractions.values()) * n < 1:
        fractions = {"all": 1.0}
    records = [make_record(f"{k}.jpg", tuple("abc"), k) for k in range(n)]
    splits = ids(split_by_image(records, fractions, seed))
    together = [name for names in splits.values() for name in names]
    assert sorted(together) == sorted(record.image_id for record in records)  # covers all, each once
    assert all(names == sorted(names) for names in splits.values())
    for name, fraction in fractions.items():
        assert abs(len(splits[name]) - fraction * n) <= 1
    rng = random.Random(seed)
    shuffled = [make_record(r.image_id, tuple(rng.sample(r.captions, 3)), r.group) for r in records]
    rng.shuffle(shuffled)
    assert ids(split_by_image(shuffled, fractions, seed)) == splits


def test_the_seed_draws_the_split():
    records = [make_record(f"{k:03}.jpg") for k in range(100)]
    first, second = (ids(split_by_image(records, {"train": 0.5, "dev": 0.5}, seed)) for seed in (0, 1))
    assert first != second
    assert first["train"] != sorted(record.image_id for record in records)[:50]  # drawn, not cut


def test_invalid_splits_are_refused():
    records = [make_record(f"{k}.jpg") for k in range(4)]
    with pytest.raises(ValueError, match=r"'0.jpg' has two records"):
        split_by_image([*records, records[0]], {"train": 1.0}, 0)
    with pytest.raises(ValueError, match=r"split 'dev' \(0.1 of 4 images\) would be empty"):
        split_by_image(records, {"train": 0.9, "dev": 0.1}, 0)


def test_missing_images_are_counted_and_named():
    with pytest.warns(UserWarning, match="left out 4 images, not on disk: a, b, c$"):
        warn_of_missing({"d", "c", "b", "a"}, "images", "not on disk")


def test_captions_of_a_class():
    templates = ("a photo of a {}", "A {} of A {}", "the {}", "data {}", "two {}s and a {}")
    assert class_captions("owl", templates) == (
        *("a photo of an owl", "An owl of An owl", "the owl", "data owl", "two owls and an owl"),
    )
    assert class_captions("Cat", templates[:2]) == ("a photo of a Cat", "A Cat of A Cat")
    assert class_captions("Emu", templates[:1]) == ("a photo of an Emu",)
    assert class_captions(r"\1", ("a {}",)) == (r"a \1",)
