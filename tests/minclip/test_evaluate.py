"""Figures equal plain Python loops, ties and all; no chunk, order or batch changes them; chance is enumerated."""

import itertools
import statistics
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from minclip.data.records import Question, Record
from minclip.evaluate import (
    chance_recalls,
    choice_accuracy,
    embed_classes,
    embed_images,
    embed_texts,
    evaluate_records,
    evaluating,
    exact_pair,
    format_retrieval,
    retrieval,
    retrieval_ranks,
    zero_shot,
)
from minclip.tokenizer import WordPiece

SEEDS = st.integers(0, 2**31 - 1)
WORDS = ["a", "photo", "of", "red", "green", "blue", "circle", "square", "star", "the"]
TOKENIZER = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])


def units_with_ties(rows, seed):
    """Rows of the 24-cell: unit vectors whose dot products are -1, -1/2, 0, 1/2 or 1, so that ties abound."""
    corners = torch.tensor(list(itertools.product((-0.5, 0.5), repeat=4)))
    axes = torch.cat([torch.eye(4), -torch.eye(4)])
    corners = torch.cat([corners, axes])
    return corners[torch.randint(len(corners), (rows,), generator=torch.Generator().manual_seed(seed))]


def units(rows, width, seed):
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def dot(first, second):
    return sum(a * b for a, b in zip(first, second, strict=True))


@st.composite
def pairings(draw):
    """Image number of each text, in any order, every image with one to four texts."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=9))
    return draw(st.permutations([image for image, count in enumerate(counts) for _ in range(count)]))


def brute_force(images, texts, image_of_text, ks):
    """Retrieval by definition, in loops over numbers."""
    image_ranks, text_ranks = [], []
    for i, image in enumerate(images):
        best = max(dot(image, texts[m]) for m, own in enumerate(image_of_text) if own == i)
        rivals = [texts[m] for m, own in enumerate(image_of_text) if own != i]
        image_ranks.append(1 + sum(dot(image, rival) >= best for rival in rivals))
    for m, text in enumerate(texts):
        own = dot(images[image_of_text[m]], text)
        rivals = [image for i, image in enumerate(images) if i != image_of_text[m]]
        text_ranks.append(1 + sum(dot(rival, text) >= own for rival in rivals))
    figures = {}
    for name, ranks in (("image_to_text", image_ranks), ("text_to_image", text_ranks)):
        figures[name] = {f"recall@{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in ks}
        figures[name]["median_rank"] = statistics.median(ranks)
    return image_ranks, text_ranks, figures


class TinyCLIP(nn.Module):
    """The interface of CLIP around a table of words and a colour; its dropout shows the mode it is in."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(text=SimpleNamespace(context_length=16))
        self.logit_scale = nn.Parameter(torch.tensor(0.0))
        self.words = nn.Embedding(TOKENIZER.vocab_size, 8)
        self.colours = nn.Linear(3, 8)
        self.dropout = nn.Dropout(0.5)

    def encode_image(self, images):
        return F.normalize(self.dropout(self.colours(images.mean(dim=(2, 3)))), dim=-1)

    def encode_text(self, tokens, token_mask):
        words = self.dropout(self.words(tokens)) * token_mask[..., None]
        return F.normalize(words.sum(dim=1), dim=-1)


def transform(image):
    return torch.tensor(image.get_flattened_data()).T.reshape(3, image.height, image.width) / 255


def plain(colour):
    return Image.new("RGB", (2, 2), colour)


def record(index, captions):
    return Record(
        f"image {index}", partial(plain, (40 * index % 256, 91 * index % 256, 255 - index)), captions, index
    )


phrases = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)


# retrieval


@given(pairings(), SEEDS, st.integers(1, 12))
def test_retrieval_is_brute_force_with_ties(image_of_text, seed, chunk):
    n_images = max(image_of_text) + 1
    images, texts = units_with_ties(n_images, seed), units_with_ties(len(image_of_text), seed + 1)
    image_ranks, text_ranks, wanted = brute_force(images.tolist(), texts.tolist(), image_of_text, (1, 2, 5))
    got_images, got_texts = retrieval_ranks(images, texts, torch.tensor(image_of_text), chunk)
    assert got_images.tolist() == image_ranks
    assert got_texts.tolist() == text_ranks
    got = retrieval(images, texts, torch.tensor(image_of_text), (1, 2, 5), chunk)
    assert {key: got[key] for key in wanted} == wanted


@given(pairings(), SEEDS, st.integers(1, 64), st.integers(1, 12))
def test_any_chunk_gives_the_same_ranks_of_real_numbers(image_of_text, seed, width, chunk):
    images, texts = units(max(image_of_text) + 1, width, seed), units(len(image_of_text), width, seed + 1)
    texts[0] = texts[-1]  # equal embeddings, at both ends of the matrix product
    whole = retrieval_ranks(images, texts, torch.tensor(image_of_text), chunk=len(images))
    parts = retrieval_ranks(images, texts, torch.tensor(image_of_text), chunk=chunk)
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


def test_scores_are_exact():
    """Sums in another order round differently in float32: here they do not round at all."""
    images, texts = exact_pair(units(3, 777, 0), units(5, 777, 1), "text")
    shuffled = torch.randperm(777, generator=torch.Generator().manual_seed(2))
    assert torch.equal(images @ texts.T, images[:, shuffled] @ texts[:, shuffled].T)
    assert torch.equal((images[0] * texts[0]).sum(), (images @ texts.T)[0, 0])
    torch.testing.assert_close(images.float(), units(3, 777, 0), atol=2**-25, rtol=0)


def test_low_precision_embeddings_are_accepted():
    images = units(64, 3, 0).bfloat16()
    assert (images.double().norm(dim=1) - 1).abs().max() > 0.002  # bfloat16 is that coarse
    assert retrieval(images, images, torch.arange(64))["text_to_image"]["recall@10"] == 1.0


# chance


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 7))
def test_chance_is_what_all_orders_average_to(counts, k):
    owners = [image for image, count in enumerate(counts) for _ in range(count)]
    draws = list(itertools.combinations(owners, min(k, len(owners))))
    hits = statistics.fmean(i in drawn for i in range(len(counts)) for drawn in draws)
    chance = chance_recalls(counts, [k])
    assert chance["image_to_text"][f"recall@{k}"] == pytest.approx(hits, abs=1e-12)
    images = list(itertools.combinations(range(len(counts)), min(k, len(counts))))
    hits = statistics.fmean(0 in drawn for drawn in images)
    assert chance["text_to_image"][f"recall@{k}"] == pytest.approx(hits, abs=1e-12)


def test_chance_of_the_usual_split():
    chance = chance_recalls([5] * 1000, (1, 10))
    assert chance["text_to_image"] == {"recall@1": 0.001, "recall@10": 0.01}
    assert chance["image_to_text"]["recall@1"] == 0.001
    missed = 1.0
    for place in range(10):
        missed *= (4995 - place) / (5000 - place)
    assert chance["image_to_text"]["recall@10"] == pytest.approx(1 - missed, rel=1e-9)


# embedding


@given(st.lists(phrases, min_size=1, max_size=12), st.integers(1, 5))
def test_texts_do_not_depend_on_the_batch_and_equal_texts_are_equal(texts, batch_size):
    model = TinyCLIP()
    got = embed_texts(model, TOKENIZER, texts, batch_size)
    one_by_one = torch.cat([embed_texts(model, TOKENIZER, [text], 1) for text in texts])
    torch.testing.assert_close(got, one_by_one, atol=1e-6, rtol=0)
    for first, second in itertools.combinations(range(len(texts)), 2):
        if texts[first] == texts[second]:
            assert torch.equal(got[first], got[second])
    torch.testing.assert_close(got.norm(dim=1), torch.ones(len(texts)))


@given(st.integers(1, 9), st.integers(1, 5))
def test_images_do_not_depend_on_the_batch(count, batch_size):
    model, records = TinyCLIP(), [record(index, ("a",)) for index in range(count)]
    got = embed_images(model, records, transform, batch_size)
    one_by_one = torch.cat([embed_images(model, [some], transform, 1) for some in records])
    torch.testing.assert_close(got, one_by_one, atol=1e-6, rtol=0)
    assert not got.requires_grad


def test_every_module_gets_its_mode_back_also_after_an_error():
    model = TinyCLIP().train()
    model.colours.eval()  # a frozen tower
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert torch.is_inference_mode_enabled()
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ValueError, match="broken file"), evaluating(model):
        raise ValueError("broken file")
    assert [module.training for module in model.modules()] == before
    embed_texts(model, TOKENIZER, ["a"])
    embed_images(model, [record(0, ("a",))], transform)
    assert [module.training for module in model.modules()] == before


def test_embeddings_can_be_trained_on_afterwards():
    got = embed_texts(TinyCLIP(), TOKENIZER, ["a", "red"])
    probe = nn.Linear(8, 1)
    probe(got).sum().backward()
    got[0] = 0.0  # and are ordinary tensors, no longer bound to inference mode


# a model on records


@given(st.lists(st.lists(phrases, min_size=1, max_size=3), min_size=1, max_size=6), st.integers(1, 4))
def test_evaluation_of_records(captions, batch_size):
    model = TinyCLIP()
    records = [record(index, tuple(some)) for index, some in enumerate(captions)]
    got = evaluate_records(model, records, transform, TOKENIZER, batch_size)
    owners = [index for index, some in enumerate(captions) for _ in some]
    assert got.image_of_text.tolist() == owners
    assert torch.equal(got.image_embeddings, embed_images(model, records, transform, batch_size))
    texts = [caption for some in captions for caption in some]
    assert torch.equal(got.text_embeddings, embed_texts(model, TOKENIZER, texts, batch_size))
    assert got.figures == {
        "images": len(records),
        "captions": len(texts),
        **retrieval(got.image_embeddings, got.text_embeddings, torch.tensor(owners)),
    }
    assert got.seconds > 0


def test_figures_read_as_one_line_a_direction():
    images = torch.eye(4)
    figures = {"images": 4, "captions": 8, **retrieval(images, images[[0, 1, 2, 3] * 2], torch.arange(8) % 4)}
    first, second = format_retrieval(figures, 12.34).split("\n")
    assert first == (
        "image to text: recall@1 100.0% (chance 25.00%), recall@5 100.0% (chance 89.29%), "
        "recall@10 100.0% (chance 100.00%), median rank 1 of 8; 4 images, 8 captions, 12.3 s"
    )
    assert second == (
        "text to image: recall@1 100.0% (chance 25.00%), recall@5 100.0% (chance 100.00%), "
        "recall@10 100.0% (chance 100.00%), median rank 1 of 4; 4 images, 8 captions, 12.3 s"
    )


# choices and zero-shot


@st.composite
def question_lists(draw):
    questions = []
    for index in range(draw(st.integers(1, 5))):
        choices = tuple(draw(st.lists(phrases, min_size=2, max_size=5)))
        questions.append(Question(record(index, ("a",)), choices, draw(st.integers(0, len(choices) - 1))))
    return questions


@given(question_lists(), SEEDS)
def test_choice_accuracy_is_brute_force(questions, seed):
    torch.manual_seed(seed)
    model = TinyCLIP()
    right = 0
    for question in questions:
        image = embed_images(model, [question.record], transform)
        texts = embed_texts(model, TOKENIZER, list(question.choices))
        images, texts = exact_pair(image, texts, "text")
        scores = (texts @ images[0]).tolist()
        rivals = [score for place, score in enumerate(scores) if place != question.answer]
        right += scores[question.answer] > max(rivals)
    got = choice_accuracy(model, TOKENIZER, transform, questions, batch_size=3)
    chance = statistics.fmean(1 / len(question.choices) for question in questions)
    assert got == {"accuracy": right / len(questions), "chance": pytest.approx(chance), "n": len(questions)}


def test_a_tied_choice_is_wrong():
    question = Question(record(0, ("a",)), ("red circle", "red circle"), 0)
    assert choice_accuracy(TinyCLIP(), TOKENIZER, transform, [question])["accuracy"] == 0.0


@given(st.integers(1, 12), st.integers(1, 8), SEEDS)
def test_zero_shot_is_brute_force_with_ties(n_images, n_classes, seed):
    images, classes = units_with_ties(n_images, seed), units_with_ties(n_classes, seed + 1)
    labels = torch.randint(n_classes, (n_images,), generator=torch.Generator().manual_seed(seed))
    names = [f"class {number}" for number in range(n_classes)]
    ranks = []
    for image, label in zip(images.tolist(), labels.tolist(), strict=True):
        scores = [dot(image, some) for some in classes.tolist()]
        rivals = scores[:label] + scores[label + 1 :]
        ranks.append(1 + sum(score >= scores[label] for score in rivals))
    of_class = {names[label]: [] for label in sorted(set(labels.tolist()))}
    for label, rank in zip(labels.tolist(), ranks, strict=True):
        of_class[names[label]].append(rank == 1)
    got = zero_shot(images, labels, classes, names)
    assert got == {
        "top1": pytest.approx(sum(rank == 1 for rank in ranks) / n_images),
        "top5": pytest.approx(sum(rank <= 5 for rank in ranks) / n_images),
        "chance": {"top1": 1 / n_classes, "top5": min(1, 5 / n_classes)},
        "per_class": {name: pytest.approx(statistics.fmean(some)) for name, some in of_class.items()},
        "n": n_images,
    }


def test_an_ensemble_of_one_template_is_that_template():
    model, names = TinyCLIP(), ["red circle", "star"]
    got = embed_classes(model, TOKENIZER, names, ["a photo of a {}"])
    wanted = embed_texts(model, TOKENIZER, [f"a photo of a {name}" for name in names])
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


def test_an_ensemble_is_the_mean_of_unit_vectors_at_unit_length():
    model = TinyCLIP()
    got = embed_classes(model, TOKENIZER, ["star", "circle"], ["a {}", "photo of the {}", "{} {}"])
    prompts = ["a star", "photo of the star", "star star"]
    mean = embed_texts(model, TOKENIZER, prompts).sum(dim=0)
    torch.testing.assert_close(got[0], mean / mean.norm(), atol=1e-6, rtol=0)
    torch.testing.assert_close(got.norm(dim=1), torch.ones(2))


# errors

EYE = torch.eye(3)
OWN = torch.arange(3)
BROKEN = torch.eye(3).index_fill(0, torch.tensor([1]), float("nan"))


@pytest.mark.parametrize(
    "images, texts, image_of_text, message",
    [
        (BROKEN, EYE, OWN, r"image embeddings: row 1 and 0 more of 3 are not finite"),
        (EYE, EYE / 0.0, OWN, r"text embeddings: row 0 and 2 more of 3 are not finite"),
        (EYE, 2 * EYE, OWN, r"text embeddings: row 0 has length 2, must be 1"),
        (torch.zeros(0, 3), EYE, OWN, r"image embeddings must be \(rows, width\), not empty: got \(0, 3\)"),
        (EYE, torch.ones(3), OWN, r"text embeddings must be \(rows, width\), not empty: got \(3,\)"),
        (EYE, torch.eye(4), torch.arange(4), r"image embeddings have width 3, text embeddings 4"),
        (EYE, EYE, torch.arange(2), r"image_of_text must have shape \(3,\), one a row: got \(2,\)"),
        (EYE, EYE, OWN + 1, r"image_of_text must lie in 0 to 2: got 1 to 3"),
        (EYE, EYE, OWN - 1, r"image_of_text must lie in 0 to 2: got -1 to 1"),
        (EYE, EYE, torch.zeros(3, dtype=torch.int64), r"image 1 and 1 more of 3 have no text: drop them"),
    ],
)
def test_retrieval_refuses(images, texts, image_of_text, message):
    with pytest.raises(ValueError, match=message):
        retrieval(images, texts, image_of_text)


def test_nothing_to_evaluate():
    model = TinyCLIP()
    with pytest.raises(ValueError, match="no images to evaluate: 0 given, at least 1 needed"):
        evaluate_records(model, [], transform, TOKENIZER)
    with pytest.raises(ValueError, match="no texts to evaluate"):
        embed_texts(model, TOKENIZER, [])
    with pytest.raises(ValueError, match="no images to evaluate"):
        choice_accuracy(model, TOKENIZER, transform, [])


@pytest.mark.parametrize(
    "names, templates, message",
    [
        (["star"], ["a photo"], r"template 'a photo' has no \"\{\}\": put one where the class name goes"),
        ([], ["a {}"], "0 class names, 1 templates: at least 1 of each"),
        (["star"], [], "1 class names, 0 templates: at least 1 of each"),
        (["star", "red", "star"], ["a {}"], "class names must differ: 'star' is given more than once"),
    ],
)
def test_embed_classes_refuses(names, templates, message):
    with pytest.raises(ValueError, match=message):
        embed_classes(TinyCLIP(), TOKENIZER, names, templates)


@pytest.mark.parametrize(
    "labels, classes, names, message",
    [
        (OWN + 1, EYE, "abc", "labels must lie in 0 to 2: got 1 to 3"),
        (OWN[:2], EYE, "abc", r"labels must have shape \(3,\)"),
        (OWN, EYE, "ab", "2 class names for 3 class embeddings"),
        (OWN, BROKEN, "abc", "class embeddings: row 1 and 0 more of 3 are not finite"),
        (OWN, torch.eye(4), "abcd", "image embeddings have width 3, class embeddings 4"),
    ],
)
def test_zero_shot_refuses(labels, classes, names, message):
    with pytest.raises(ValueError, match=message):
        zero_shot(EYE, labels, classes, names)
