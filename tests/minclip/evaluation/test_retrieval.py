"""Recalls equal plain Python loops, ties and groups and all; no chunk or order changes them; chance is enumerated."""

import itertools
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from minclip.evaluation.retrieval import chance_recalls, retrieval, retrieval_ranks
from tests.minclip.tiny_clip import SEEDS, dot, units, units_with_ties


@st.composite
def pairings(draw):
    """Image number of each text, in any order, every image with one to four texts."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=9))
    return draw(st.permutations([image for image, count in enumerate(counts) for _ in range(count)]))


def brute_force(images, texts, image_of_text, groups, ks):
    """Retrieval by definition, in loops over numbers."""
    of_texts = [groups[image] for image in image_of_text]
    image_ranks = [
        rank_of(image, group, texts, of_texts) for image, group in zip(images, groups, strict=True)
    ]
    text_ranks = [rank_of(text, group, images, groups) for text, group in zip(texts, of_texts, strict=True)]
    metrics = {}
    for name, ranks in (("image_to_text", image_ranks), ("text_to_image", text_ranks)):
        metrics[name] = {f"recall@{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in ks}
        metrics[name]["median_rank"] = statistics.median(ranks)
    return image_ranks, text_ranks, metrics


def rank_of(query, group, answers, groups):
    scores = [(dot(query, answer), other == group) for answer, other in zip(answers, groups, strict=True)]
    best = max(score for score, right in scores if right)
    return 1 + sum(score >= best for score, right in scores if not right)


# retrieval


@given(pairings(), SEEDS, st.integers(1, 400), st.data())
def test_retrieval_is_brute_force_with_ties_and_groups(image_of_text, seed, most, data):
    n_images = max(image_of_text) + 1
    images, texts = units_with_ties(n_images, seed), units_with_ties(len(image_of_text), seed + 1)
    pairs = torch.tensor(image_of_text)
    drawn = data.draw(st.lists(st.integers(0, 3), min_size=n_images, max_size=n_images))
    for groups, given_groups in ((list(range(n_images)), None), (drawn, torch.tensor(drawn))):
        image_ranks, text_ranks, wanted = brute_force(
            images.tolist(), texts.tolist(), image_of_text, groups, (1, 2, 5)
        )
        got_images, got_texts = retrieval_ranks(images, texts, pairs, given_groups, most)
        assert got_images.tolist() == image_ranks
        assert got_texts.tolist() == text_ranks
        got = retrieval(images, texts, pairs, given_groups, (1, 2, 5), most)
        assert {key: got[key] for key in wanted} == wanted


@given(pairings(), SEEDS, st.integers(1, 64), st.integers(1, 400))
def test_any_block_gives_the_same_ranks_of_real_numbers(image_of_text, seed, width, most):
    images, texts = units(max(image_of_text) + 1, width, seed), units(len(image_of_text), width, seed + 1)
    texts[0] = texts[-1]  # equal embeddings, at both ends of the matrix product
    whole = retrieval_ranks(images, texts, torch.tensor(image_of_text))
    parts = retrieval_ranks(images, texts, torch.tensor(image_of_text), most_scores=most)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@given(pairings(), SEEDS)
def test_ranks_follow_their_images_and_texts_through_a_permutation(image_of_text, seed):
    pairs = torch.tensor(image_of_text)
    images, texts = units_with_ties(int(pairs.max()) + 1, seed), units_with_ties(len(pairs), seed + 1)
    generator = torch.Generator().manual_seed(seed)
    of_images, of_texts = (torch.randperm(len(part), generator=generator) for part in (images, texts))
    moved_pairs = of_images.argsort()[pairs[of_texts]]
    image_ranks, text_ranks = retrieval_ranks(images, texts, pairs)
    moved_image_ranks, moved_text_ranks = retrieval_ranks(images[of_images], texts[of_texts], moved_pairs)
    assert torch.equal(moved_image_ranks, image_ranks[of_images])
    assert torch.equal(moved_text_ranks, text_ranks[of_texts])
    assert retrieval(images[of_images], texts[of_texts], moved_pairs) == retrieval(images, texts, pairs)


@given(pairings(), st.integers(1, 512), SEEDS)
def test_a_collapsed_model_ranks_worst(image_of_text, width, seed):
    pairs = torch.tensor(image_of_text)
    n_images = int(pairs.max()) + 1
    one = units(1, width, seed)
    image_ranks, text_ranks = retrieval_ranks(one.repeat(n_images, 1), one.repeat(len(pairs), 1), pairs)
    assert text_ranks.tolist() == [n_images] * len(pairs)
    assert image_ranks.tolist() == (len(pairs) - torch.bincount(pairs) + 1).tolist()


@given(pairings())
def test_a_perfect_model_recalls_all(image_of_text):
    pairs = torch.tensor(image_of_text)
    images = torch.eye(int(pairs.max()) + 1)
    got = retrieval(images, images[pairs], pairs)
    perfect = {"recall@1": 1.0, "recall@5": 1.0, "recall@10": 1.0, "median_rank": 1.0}
    assert got["image_to_text"] == got["text_to_image"] == perfect


def test_low_precision_embeddings_are_accepted():
    images = units(64, 3, 0).bfloat16()
    assert (images.double().norm(dim=1) - 1).abs().max() > 0.002  # bfloat16 is that coarse
    assert retrieval(images, images, torch.arange(64))["text_to_image"]["recall@10"] == 1.0


class LargestTensor(TorchDispatchMode):
    """Inside, `numel` becomes the number of elements of the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return result


@given(st.integers(1, 300), st.integers(1, 3), st.integers(1, 9), st.integers(1, 20_000), SEEDS)
def test_no_tensor_holds_the_scores_of_all_images_with_all_texts(n_images, captions, width, most, seed):
    pairs = torch.arange(n_images).repeat(captions)
    images, texts = units(n_images, width, seed), units(len(pairs), width, seed + 1)
    groups = 10**15 * (torch.arange(n_images) // 2)  # numbers of any size are groups
    with LargestTensor() as largest:
        retrieval(images, texts, pairs, groups, most_scores=most)
    assert largest.numel <= max(most, len(pairs) * width), "a block is larger than it may be"


# chance


@given(pairings(), st.data())
def test_chance_is_the_mean_over_all_orders(image_of_text, data):
    image_of_text = image_of_text[:6]
    images = sorted(set(image_of_text))
    image_of_text = [images.index(image) for image in image_of_text]  # numbered from 0 again
    groups = data.draw(st.lists(st.integers(0, 2), min_size=len(images), max_size=len(images)))
    of_texts = [groups[image] for image in image_of_text]
    units = torch.eye(len(images))
    got = retrieval(units, units[image_of_text], torch.tensor(image_of_text), torch.tensor(groups), (1, 2, 7))
    ways = {"image_to_text": (groups, of_texts), "text_to_image": (of_texts, groups)}
    for way, (queries, answers) in ways.items():
        for k in (1, 2, 7):
            draws = list(itertools.combinations(answers, min(k, len(answers))))
            hits = statistics.fmean(query in drawn for query in queries for drawn in draws)
            assert got["chance"][way][f"recall@{k}"] == pytest.approx(hits, abs=1e-12)


def test_chance_of_the_usual_split():
    assert chance_recalls([1] * 5000, 1000, (1, 10)) == {"recall@1": 0.001, "recall@10": 0.01}
    chance = chance_recalls([5] * 1000, 5000, (1, 10))
    assert chance["recall@1"] == 0.001
    missed = 1.0
    for place in range(10):
        missed *= (4995 - place) / (5000 - place)
    assert chance["recall@10"] == pytest.approx(1 - missed, rel=1e-9)


# errors

EYE = torch.eye(3)
OWN = torch.arange(3)
BROKEN = torch.eye(3).index_fill(0, torch.tensor([1]), float("nan"))


@pytest.mark.parametrize(
    "images, texts, image_of_text, message",
    [
        (BROKEN, EYE, OWN, r"image embeddings: row 1 and 0 more of 3 are not finite"),
        (EYE, EYE / 0.0, OWN, r"text embeddings: row 0 and 2 more of 3 are not finite"),
        (EYE, 2 * EYE, OWN, r"text embeddings: row 0 has length 2, not 1: normalise it"),
        (torch.zeros(0, 3), EYE, OWN, r"image embeddings must be \(rows, width\), not empty: got \(0, 3\)"),
        (EYE, torch.ones(3), OWN, r"text embeddings must be \(rows, width\), not empty: got \(3,\)"),
        (EYE, torch.eye(4), torch.arange(4), r"image embeddings have width 3, text embeddings 4"),
        (EYE, EYE, torch.arange(2), r"image_of_text must have shape \(3,\), one per row: got \(2,\)"),
        (EYE, EYE, OWN + 1, r"image_of_text must lie in 0 to 2: got 1 to 3"),
        (EYE, EYE, OWN - 1, r"image_of_text must lie in 0 to 2: got -1 to 1"),
        (EYE, EYE, torch.zeros(3, dtype=torch.int64), r"image 1 and 1 more of 3 have no text: drop them"),
    ],
)
def test_retrieval_refuses(images, texts, image_of_text, message):
    with pytest.raises(ValueError, match=message):
        retrieval(images, texts, image_of_text)


def test_there_is_one_group_per_image():
    with pytest.raises(ValueError, match=r"groups must have shape \(3,\), one per image: got \(2,\)"):
        retrieval(EYE, EYE, OWN, OWN[:2])
