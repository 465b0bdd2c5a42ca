"""Precomputed features of frozen towers: the same pairs, and heads trained as with the towers run in each step."""

import copy
import itertools
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minclip.clip import CLIP, CLIPConfig, embed_batch
from minclip.data.dataset import PairDataset
from minclip.features import FeatureDataset, features_of_texts, with_features
from minlm.training.batches import Batches
from tests.drawing import IMAGES, LOSSES, TEXTS, backward
from tests.minclip.data.pairs import TOKENIZER, make, make_records

seeds = st.integers(0, 10**6)
FIXED_VIEW = {"image_size": (16, 16)}
sides = st.sampled_from([("image",), ("text",), ("image", "text")])


def model_of(frozen: tuple[str, ...], image=IMAGES[1], text=TEXTS[1], **fields) -> CLIP:
    """A CLIP whose sides in `frozen` are frozen; without dropout, whose masks would differ."""
    text = replace(text, vocab_size=TOKENIZER.vocab_size, context_length=12, dropout=0.0)
    if hasattr(text, "end_id"):
        text = replace(text, end_id=TOKENIZER.end_id)
    if hasattr(image, "dropout"):
        image = replace(image, dropout=0.0, patch_dropout=0.0)
    image, text = (
        replace(config, trained_blocks=0 if side in frozen else -1)
        for side, config in (("image", image), ("text", text))
    )
    return CLIP(CLIPConfig(image=image, text=text, embed_dim=6, **fields))


def pairs_of(n: int, seed: int = 0, damaged: tuple[int, ...] = ()) -> PairDataset:
    records = make_records(n, damaged)
    return make(records, train=True, fields=FIXED_VIEW, seed=seed, max_corrupt=0.9, cache_bytes=10**6)


def trained(model: CLIP, dataset, steps: int, micro_batches: int) -> dict[str, torch.Tensor]:
    """The state of a copy of the model after some steps on the dataset."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for batch in itertools.islice(Batches(dataset, 4, seed=0).from_step(0), steps):
        optimizer.zero_grad()
        backward(model, batch, micro_batches)
        optimizer.step()
    return model.state_dict()


@given(
    sides,
    st.sampled_from(IMAGES),
    st.sampled_from(TEXTS),
    st.sampled_from(LOSSES),
    st.sampled_from(["linear", "linear_norm", "ndlinear"]),
    st.integers(1, 2),
    seeds,
)
def test_training_on_features_is_training_with_the_towers(
    frozen, image, text, loss, projection, micro_batches, seed
):
    """To float32's rounding, for every weight that is trained; those of the frozen towers bit for bit."""
    torch.manual_seed(seed)
    model, pairs = model_of(frozen, image, text, loss=loss, projection=projection), pairs_of(9, seed)
    features = with_features(pairs, model, batch_size=4)
    assert isinstance(features, FeatureDataset)
    started = model.state_dict()
    expected, found = (trained(model, dataset, 3, micro_batches) for dataset in (pairs, features))
    for name, value in expected.items():
        if name.startswith(tuple(f"{side}_tower" for side in frozen)):
            assert torch.equal(found[name], started[name]), name
        else:
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    heads = [name for name in found if "projection." in name]
    assert not all(torch.equal(found[name], started[name]) for name in heads)


@given(sides, st.sampled_from([(), (2,), (0, 1, 6)]), seeds, st.integers(0, 5))
def test_a_batch_is_the_same_pairs(frozen, damaged, seed, epoch):
    """The same images, captions and groups for the same keys, damaged images replaced by the same ones."""
    model, pairs = model_of(frozen), pairs_of(7, seed, damaged)
    features, keys = (
        with_features(pairs_of(7, seed, damaged), model, batch_size=3),
        [(epoch, i) for i in range(7)],
    )
    items = [[dataset[key] for key in keys] for dataset in (pairs, features)]
    for ours, theirs in zip(*items, strict=True):
        assert (ours["caption"], ours["group"]) == (theirs["caption"], theirs["group"])
    batch, kept = pairs.collate(items[0]), features.collate(items[1])
    names = {"image": {"images"}, "text": {"tokens", "token_mask"}}
    replaced = set().union(*(names[side] for side in frozen))
    assert set(kept) == set(batch) - replaced | {f"{side}_features" for side in frozen}
    assert torch.equal(kept["groups"], batch["groups"])
    for found, expected in zip(embed_batch(model, kept), embed_batch(model, batch), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    if "image" in frozen:  # every image has been decoded
        assert [name for name, _ in features.corrupt] == [f"{k}.png" for k in damaged]
    assert len(features) == len(pairs)


@given(sides, st.integers(1, 5))
def test_each_item_is_computed_once(frozen, batch_size):
    """And only once: no tower runs and no image is opened when items are drawn."""
    model, pairs, seen = model_of(frozen), pairs_of(6), {"image": 0, "text": 0}

    def count(side):
        def hook(module, inputs):
            seen[side] += len(inputs[0])

        return hook

    model.image_tower.register_forward_pre_hook(count("image"))
    model.text_tower.register_forward_pre_hook(count("text"))
    features = with_features(pairs, model, batch_size)
    expected = {"image": 6 if "image" in frozen else 0, "text": 30 if "text" in frozen else 0}
    assert seen == expected
    pairs.decodable = None if "image" in frozen else pairs.decodable
    batch = features.collate([features[(epoch, i)] for epoch in range(2) for i in range(6)])
    assert seen == expected
    assert not any(value.requires_grad for value in batch.values())
    assert not any(value.is_inference() for value in batch.values())


def test_equal_captions_are_computed_once():
    """Class names as captions: ten texts, however many images."""
    records = [replace(record, captions=("a cat", "a dog")) for record in make_records(20)]
    model, lengths = model_of(("text",)), []
    model.text_tower.register_forward_pre_hook(lambda module, inputs: lengths.append(len(inputs[0])))
    with_features(make(records, fields=FIXED_VIEW, cache_bytes=10**6), model)
    assert lengths == [2]


@given(st.integers(0, 3000))
def test_features_share_the_memory_of_the_cache(cache_bytes):
    """Images first, then captions, of which no more are read than fit; decoded images may use the rest."""
    model, pairs = model_of(("image", "text")), pairs_of(8)
    pairs.cache_bytes, looked_at = cache_bytes, []
    sizes = {"image": 4 * 8 * model.image_tower.width, "text": 4 * 40 * model.text_tower.width}
    kept, left = set(), cache_bytes
    for side, size in sizes.items():
        if size <= left:
            kept.add(side)
            left -= size
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = with_features(pairs, model)
    assert [" captions " in str(one.message) for one in warned] == [
        s == "text" for s in sizes if s not in kept
    ]
    assert all("raise cache_gib" in str(one.message) for one in warned)
    assert pairs.cache_bytes == left
    batch = found.collate([found[(0, index)] for index in range(8)])
    assert {side for side in sizes if f"{side}_features" in batch} == kept
    pairs.records = (looked_at.append(record) or record for record in make_records(8))
    pairs.cache_bytes = min(left, 4 * 6 * model.text_tower.width)
    with pytest.warns(UserWarning, match="captions need at least"):
        assert features_of_texts(pairs, model, 4) is None
    assert len(looked_at) <= 2


def test_the_features_of_captions_are_one_tensor():
    row_of, features = with_features(pairs_of(6), model_of(("text",))).texts
    assert sorted(row_of.values()) == list(range(30))
    assert features.shape[0] == 30
    assert features.untyped_storage().nbytes() == features.nbytes


VIEWS = [{"crop_scale": (0.5, 1.0)}, {"flip": True}, {"color_jitter": 0.2}]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: next(iter(view)))
def test_random_views_are_encoded_in_every_step(view):
    pairs = make(make_records(6), fields=FIXED_VIEW | view, cache_bytes=10**6)
    assert with_features(pairs, model_of(("image",))) is pairs
    both = with_features(pairs, model_of(("image", "text")))
    assert set(both.collate([both[(0, 0)]])) == {"images", "text_features", "groups"}
    assert torch.equal(both[(3, 1)]["image"], pairs[(3, 1)]["image"])


def test_without_a_frozen_tower_there_are_no_features():
    pairs = pairs_of(6)
    assert with_features(pairs, model_of(())) is pairs
    partly = CLIPConfig(image=replace(IMAGES[1], trained_blocks=1), text=replace(TEXTS[1], trained_blocks=2))
    assert with_features(pairs, CLIP(partly)) is pairs


def test_too_many_damaged_images_stop_it():
    pairs = make(make_records(6, damaged=(0, 3)), fields=FIXED_VIEW, max_corrupt=0.1, cache_bytes=10**6)
    with pytest.raises(ValueError, match=r"of the 6 images cannot be decoded, at most 10% may be"):
        with_features(pairs, model_of(("image",)))
