"""Pairs are a function of (seed, epoch, index), with and without cache and workers; damaged images are replaced."""

import pickle
import random
import warnings
from collections import Counter
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from minclip.data.dataset import PairDataset, in_threads
from minclip.data.records import Record
from minclip.data.tokenizer import encode_batch
from tests.minclip.data.pairs import CAPTIONS, TOKENIZER, draw, make, make_records


def same(first: dict, second: dict) -> bool:
    return (
        torch.equal(first["image"], second["image"])
        and first["caption"] == second["caption"]
        and first["group"] == second["group"]
    )


@given(st.integers(0, 10**6), st.integers(0, 50), st.integers(0, 9))
def test_an_item_depends_on_seed_epoch_and_index_alone(seed, epoch, index):
    records = make_records(10)
    dataset, fresh = make(records, seed=seed), make(records, seed=seed)
    _ = dataset[(0, 0)], dataset[(epoch, 9 - index)]  # earlier draws do not matter
    random.seed(seed)  # nor does any global state
    torch.manual_seed(seed)
    item = dataset[(epoch, index)]
    assert same(item, fresh[(epoch, index)])
    assert item["group"] == records[index].group
    assert item["caption"] in records[index].captions


def test_seed_and_epoch_both_draw_anew():
    records = make_records(1)
    views = [
        make(records, seed=seed)[(epoch, 0)]["image"] for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert not any(torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])


def test_every_caption_is_drawn_equally_often_over_the_epochs():
    dataset = make(make_records(2), fields={"image_size": (1, 1)})
    assert len(dataset) == 2  # one pair per image and epoch, for any number of captions
    counts = Counter(dataset[(epoch, 1)]["caption"] for epoch in range(2000))
    assert set(counts) == set(dataset.records[1].captions)
    assert max(abs(count - 400) for count in counts.values()) < 90  # five standard deviations


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.booleans(),
    st.integers(0, 20),
    st.integers(0, 3),
    st.integers(0, 4),
)
@example((40, 50), True, 1, 2, 2)  # crops of images that are shrunk
def test_the_views_do_not_depend_on_what_fits_into_the_cache(size, train, epoch, workers, fitting):
    """Images of any size: all of them kept, the first few, or none."""
    records = make_records(5, damaged=(2,), size=size)
    plain = make(records, train, max_corrupt=0.5)
    width, height = plain.transform.shrink(draw(0, *size)).size
    cached = make(records, train, cache_bytes=3 * width * height * fitting, max_corrupt=0.5)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        cached.fill_cache(workers, progress=False)
    kept = [index for index in range(5) if index != 2][:fitting]
    assert cached.places[:, 1].count_nonzero() == fitting
    assert cached.pixels.nbytes == 3 * width * height * fitting
    if fitting in (0, 4):
        assert not warned
    else:
        first_without = next(index for index in (0, 1, 3, 4) if index not in kept)
        assert f"{first_without} of 5 training images fit" in str(warned[0].message)
    for index in range(5):
        assert same(cached[(epoch, index)], plain[(epoch, index)])


def test_kept_images_are_not_decoded_again():
    opened = []
    records = [Record(str(k), lambda k=k: opened.append(k) or draw(k, 40, 60), CAPTIONS, 0) for k in range(3)]
    dataset = make(records, cache_bytes=2 * 3 * 12 * 18 + 1)
    with pytest.warns(UserWarning, match=r"2 of 3 training images fit .* raise cache_gib"):
        dataset.fill_cache(1, progress=False)
    assert dataset.places.tolist() == [[0, 12, 18], [648, 12, 18]]
    opened.clear()
    for index in range(3):
        dataset[(0, index)], dataset[(1, index)]
    assert opened == [2, 2]


def test_without_a_cache_nothing_is_decoded():
    opened = []
    dataset = make([Record("a", lambda: opened.append(1), CAPTIONS, 0)], cache_bytes=0)
    dataset.fill_cache(2, progress=False)
    assert not opened


def test_few_images_are_decoded_ahead():
    """One job per item would fill the memory with millions of jobs before the first is decoded."""
    taken = []
    results = in_threads(lambda item: item * item, (taken.append(k) or k for k in range(10**9)), workers=2)
    assert [next(results) for _ in range(50)] == [k * k for k in range(50)]
    assert len(taken) <= 50 + 8 + 1
    results.close()
    assert list(in_threads(str, range(20))) == [str(k) for k in range(20)]


def test_processes_share_the_cache_and_copy_no_image():
    """Pickled as for workers started by spawn or forkserver; fork shares all memory anyway."""
    dataset = make(make_records(50, size=(14, 15)), cache_bytes=10**6)
    dataset.fill_cache(1, progress=False)
    message = ForkingPickler.dumps(dataset)
    assert len(message) < dataset.pixels.nbytes / 2
    arrived = pickle.loads(message)
    assert same(arrived[(0, 7)], dataset[(0, 7)])
    dataset.pixels[:] = 7
    assert (arrived.pixels == 7).all()


@given(st.sets(st.integers(0, 9), max_size=9), st.integers(0, 9), st.booleans())
def test_a_damaged_image_is_replaced_by_the_next_good_one(damaged, index, cached):
    records = make_records(10, tuple(damaged))
    dataset = make(records, max_corrupt=0.95, cache_bytes=10**6)
    if cached:
        dataset.fill_cache(2, progress=False)
    item = dataset[(0, index)]
    expected = next(k % 10 for k in range(index, index + 10) if k % 10 not in damaged)
    assert item["group"] == 100 + expected
    assert item["caption"] in records[expected].captions
    whole = make(make_records(10))
    view = whole.transform(records[expected].open(), random_after_caption(f"0/0/{index}"))
    assert torch.equal(item["image"], view)
    reported = [name for name, _ in dataset.corrupt]
    assert reported == [f"{k}.png" for k in sorted(damaged) if cached or k in met(index, expected)]
    assert all("is not a file" in message and "/nowhere/" in message for _, message in dataset.corrupt)


def random_after_caption(seed: str) -> random.Random:
    """Return the random state of an item after its caption is drawn."""
    rng = random.Random(seed)
    rng.choice(CAPTIONS)
    return rng


def met(index: int, expected: int) -> set[int]:
    """Return the indices from `index` up to `expected`, wrapping around."""
    return {(index + step) % 10 for step in range((expected - index) % 10)}


@pytest.mark.parametrize("cached", [False, True])
def test_workers_give_the_same_items_and_report_what_they_find(cached):
    records = make_records(8, damaged=(3,))
    dataset = make(records, max_corrupt=0.2, cache_bytes=10**6)
    if cached:
        dataset.fill_cache(2, progress=False)
    batches = [[(0, k) for k in range(4)], [(0, k) for k in range(4, 8)], [(1, 3), (1, 7)]]
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=batches, num_workers=2, collate_fn=dataset.collate
    )
    found = list(loader)
    assert [name for name, _ in dataset.corrupt] == ["3.png"]  # in this process
    alone = make(records, max_corrupt=0.2)
    for batch, keys in zip(found, batches, strict=True):
        expected = alone.collate([alone[key] for key in keys])
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in batch)


@pytest.mark.parametrize("cached", [False, True])
def test_too_large_a_share_of_damaged_images_is_an_error(cached):
    def visit(dataset: PairDataset) -> None:
        if cached:
            dataset.fill_cache(2, progress=False)
        for index in range(20):
            dataset[(0, index)]

    visit(make(make_records(20, damaged=(7,)), cache_bytes=10**6))  # 1 of 20 is the default limit
    with pytest.raises(ValueError, match=r"2 of the 20 images .* at most 5% may be: .*'/nowhere/9.png'") as e:
        visit(make(make_records(20, damaged=(7, 9)), cache_bytes=10**6))
    assert "\n" not in str(e.value)


def test_all_images_damaged_is_an_error_whatever_the_limit():
    with pytest.raises(ValueError, match="3 of the 3 images cannot be decoded"):
        make(make_records(3, damaged=(0, 1, 2)), max_corrupt=1.0)[(0, 1)]


def test_an_image_that_was_unreadable_for_a_moment_is_reported_as_such():
    attempts = []

    def flaky() -> Image.Image:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError("gone")
        return draw(0, 9, 9)

    records = [Record("flaky", flaky, CAPTIONS, 0), *make_records(1)]
    dataset = make(records, max_corrupt=0.5)
    assert dataset[(0, 0)]["group"] == 100
    assert dataset.corrupt == [
        ("flaky", "was unreadable once and is readable now: is the disk or network reliable?")
    ]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=7))
def test_collate_stacks_images_and_encodes_captions(keys):
    dataset = make(make_records(6))
    items = [dataset[key] for key in keys]
    batch = dataset.collate(items)
    tokens, token_mask, _ = encode_batch(TOKENIZER, [item["caption"] for item in items], 12)
    assert torch.equal(batch["tokens"], tokens)
    assert torch.equal(batch["token_mask"], token_mask)
    assert batch["groups"].dtype == torch.int64
    assert batch["groups"].tolist() == [100 + index for _, index in keys]
    for image, item in zip(batch["images"], items, strict=True):
        assert torch.equal(image, item["image"])


def test_no_records_is_an_error():
    with pytest.raises(ValueError, match="at least one record, got 0"):
        make([])


def test_progress_is_shown_only_on_request(capsys):
    for progress in (False, True):
        make(make_records(3), cache_bytes=10**6).fill_cache(1, progress)
        assert ("decoding images" in capsys.readouterr().err) == progress
